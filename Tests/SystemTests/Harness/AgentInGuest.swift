import API
import Foundation

/// A disk with the agent, plug-ins and all libraries that they need, for guests to start them from. Read-only.
enum GuestTools {
    static let label = "tools"

    /// Makes the image `path`: below `root` these executables in `plugins`, and all libraries that they and the trees
    /// need, each at its own path; below `trees` what else is wanted, at its own path too.
    static func make(_ path: String, programs: [String], trees: [String] = [], megabytes: Int) throws {
        let folder = path + ".files"
        let root = folder + "/root"
        for place in [root + "/plugins", folder + "/trees"] {
            try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        }
        defer { try? FileManager.default.removeItem(atPath: folder) }
        for tree in trees { try Shell.check(["cp", "-RL", "--parents", tree, folder + "/trees"]) }
        for program in programs {
            // Without the names for debuggers, which are most of them.
            try Shell.check(["strip", "-o", "\(root)/plugins/\(URL(filePath: program).lastPathComponent)", program])
        }
        for program in programs + trees {
            for word in try Shell.run(["ldd", program]).output.split(whereSeparator: \.isWhitespace)
            where word.hasPrefix("/") && !FileManager.default.fileExists(atPath: root + word) {
                let place = URL(filePath: root + word)
                try FileManager.default.createDirectory(
                    at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
                try Shell.check(["cp", "-L", String(word), place.path])
            }
        }
        try Shell.check(["truncate", "-s", "\(megabytes)M", path])
        try Shell.check(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label, "-d", folder, path])
    }
}

/// A `stillpoint-agent` that runs inside of a guest, enrolled with the node, reached through a forwarded port.
final class AgentInGuest {
    static let plugins = ["filesystem", "hook"]
    /// What of Debian's PostgreSQL a server needs.
    private static let postgres: [String] = {
        guard let bin = Components.postgresBin else { return [] }
        let home = String(bin.dropLast("/bin".count))
        let version = URL(filePath: home).lastPathComponent
        return ["postgres", "psql", "pgbench"].map { "\(bin)/\($0)" }
            + ["plpgsql", "dict_snowball"].map { "\(home)/lib/\($0).so" } + ["/usr/share/postgresql/\(version)"]
    }()
    let name: String
    let guest: Guest
    let node: TestNode
    var configuration = ""

    /// Before the guest is defined: it gets a disk and a network.
    init(name: String, guest: Guest, node: TestNode, more plugins: [String] = []) throws {
        self.name = name
        self.guest = guest
        self.node = node
        let image = "\(guest.host.folder.path)/\(GuestTools.label).img"
        if !FileManager.default.fileExists(atPath: image) {
            let names = ["stillpoint-agent"] + (Self.plugins + plugins).map { "stillpoint-plugin-" + $0 }
            try GuestTools.make(
                image, programs: names.map { Components.bin + "/" + $0 },
                trees: plugins.contains("postgresql") ? Self.postgres : [], megabytes: 500)
        }
        guest.disks.append(
            GuestDisk(
                target: "vdz", serial: GuestTools.label, source: .file(image, format: "raw"), isReadOnly: true))
        guest.memoryMiB = 384
        guest.forwardedPort = try freePort()
    }

    /// In the running guest.
    func start() throws {
        let state = "\(node.folder.path)/state-\(name)"
        let token = try node.json(AgentToken.self, "agent", "token", name)
        let tokenFile = node.folder.path + "/token-" + name
        try token.token.write(toFile: tokenFile, atomically: true, encoding: .utf8)
        try Shell.check([
            Components.bin + "/stillpoint-agent", "enroll", "--node", node.api, "--token-file", tokenFile, "--address",
            "127.0.0.1:\(guest.forwardedPort ?? 0)", "--state", state,
        ])
        let archive = state + ".tar"
        try Shell.check(["tar", "-C", state, "-cf", archive, "."])
        let packed = try Data(contentsOf: URL(filePath: archive)).base64EncodedString()
        try guest.shell(
            """
            mkdir -p /run/sp && mount -t tmpfs -o mode=0700 tmpfs /run/sp && mkdir -p /run/sp/state /run/sp/run
            echo \(packed) | base64 -d | tar -x -C /run/sp/state -f -
            chmod 700 /run/sp/state /run/sp/run
            ip link set lo up
            ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
            """)
        try Self.linkLibraries(guest)
        try run()
    }

    /// Every file of the tools where it is looked for.
    static func linkLibraries(_ guest: Guest) throws {
        try guest.shell(
            """
            cd /mnt/tools/root && find . -type f | while read -r file; do
                [ -e "/$file" ] && continue
                mkdir -p "/${file%/*}" && ln -s "/mnt/tools/root/$file" "/$file"
            done
            """)
    }

    /// The agent itself; again after it was stopped.
    func run() throws {
        let configuration = Data(configuration.utf8).base64EncodedString()
        try guest.shell("echo \(configuration) | base64 -d > /run/sp/agent.yaml")
        try guest.background(
            "exec /plugins/stillpoint-agent serve --listen 0.0.0.0:11169 --state /run/sp/state --run /run/sp/run "
                + "--plugins /plugins --config /run/sp/agent.yaml > /run/sp/agent.log 2>&1")
        guard try Shell.wait(upToSeconds: 60, { try node.json(AgentInfo.self, "agent", "show", name).isReachable })
        else { throw CommandFailed(description: "the agent in \(guest.name) did not start:\n\(log)") }
    }

    func stop() throws {
        try guest.shell("killall stillpoint-agent; while pidof stillpoint-agent > /dev/null; do sleep 0.2; done")
    }

    var log: String { (try? guest.shell("tail -n 60 /run/sp/agent.log")) ?? "" }
}
