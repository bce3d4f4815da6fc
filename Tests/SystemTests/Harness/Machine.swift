import API
import Foundation

/// What this machine offers to the tests.
enum Components {
    static let isRoot = getuid() == 0
    static let hasAttachment =
        isRoot && FileManager.default.fileExists(atPath: "/dev/fuse")
        && ["qemu-storage-daemon", "nbdfuse", "losetup", "mkfs.ext4"].allSatisfy { Shell.locate($0) != nil }
    static let postgresBin: String? = ["17", "16", "15", "14"].map { "/usr/lib/postgresql/\($0)/bin" }
        .first { FileManager.default.isExecutableFile(atPath: $0 + "/initdb") }
    static let hasPostgres = isRoot && postgresBin != nil && Shell.locate("setpriv") != nil
    static let hasQEMU = Shell.locate("qemu-io") != nil && Shell.locate("qemu-img") != nil
    static let hasLibiscsi = Shell.locate("iscsi-ls") != nil && Shell.locate("iscsi-inq") != nil
    static let hasNamespaces = isRoot && Shell.locate("ip") != nil

    /// Where the executables under test lie: beside the test bundle.
    static let bin: String = {
        let bundle = CommandLine.arguments.first { $0.hasSuffix(".xctest") } ?? CommandLine.arguments[0]
        var folder = URL(filePath: bundle).deletingLastPathComponent()
        while folder.path != "/" {
            if FileManager.default.isExecutableFile(atPath: folder.path + "/stillpoint-agent") { return folder.path }
            folder.deleteLastPathComponent()
        }
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        return root.path + "/.build/debug"
    }()
}

/// Tests that take minutes: `make test-long` runs them.
enum LongTests {
    static let areWanted = ProcessInfo.processInfo.environment["STILLPOINT_LONG_TESTS"] == "1"
    static let skipReason = "takes minutes: make test-long"
}

/// A storage node of the test's own: real process, real data directory, loopback (or the address it is given).
final class TestNode {
    let folder: TemporaryFolder
    let runFolder: String
    var dataFolder: String
    var extraEnvironment: [String: String] = [:]
    /// Put before the command, e.g. `ip netns exec NAME`.
    var prefix: [String] = []
    var apiListen = "127.0.0.1:0"
    private(set) var process: ChildProcess?
    private(set) var api = ""
    private(set) var iscsi = ""

    init() throws {
        folder = try TemporaryFolder(prefix: "sp-node")
        runFolder = folder.path + "/run"
        dataFolder = folder.path + "/data"
        try FileManager.default.createDirectory(atPath: runFolder, withIntermediateDirectories: true)
    }

    var logPath: String { folder.path + "/node.log" }
    var log: String { (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? "" }
    var isRunning: Bool { process?.isRunning ?? false }
    var pid: Int32 { process?.processIdentifier ?? -1 }
    var tokenFile: String { dataFolder + "/admin-token" }
    private var iscsiListen = "127.0.0.1:0"

    /// Starts and waits until it prints where it listens. A second start uses the same ports.
    func start() throws {
        if FileManager.default.fileExists(atPath: logPath) {
            try? FileManager.default.removeItem(atPath: logPath + ".before")
            try FileManager.default.moveItem(atPath: logPath, toPath: logPath + ".before")
        }
        var environment = extraEnvironment
        environment["STILLPOINT_RUN_DIR"] = runFolder
        process = try Shell.start(
            prefix + [
                Components.bin + "/stillpoint", "serve", "--data", dataFolder, "--iscsi-listen", iscsiListen,
                "--api-listen", apiListen,
            ], environment: environment, outputPath: logPath)
        func printed(_ word: String) -> String? {
            // A line that is not ended yet may be half a line.
            log.split(separator: "\n", omittingEmptySubsequences: false).dropLast().first { $0.hasPrefix(word + " ") }
                .map { String($0.dropFirst(word.count + 1)) }
        }
        let ready = Shell.wait { (printed("api") != nil && printed("iscsi") != nil) || !isRunning }
        guard ready, isRunning, let api = printed("api"), let iscsi = printed("iscsi") else {
            throw CommandFailed(description: "the node did not start:\n\(log)")
        }
        self.api = api
        self.iscsi = iscsi
        iscsiListen = iscsi
        apiListen = api.split(separator: "/").last.map(String.init) ?? apiListen
    }

    func killHard() {
        guard let process, process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// SIGTERM; the exit status, or nil when it did not end.
    @discardableResult
    func terminate() -> Int32? {
        guard let process, process.isRunning else { return process?.terminationStatus }
        process.terminate()
        guard Shell.wait({ !process.isRunning }) else {
            killHard()
            return nil
        }
        return process.terminationStatus
    }

    func stop() {
        terminate()
        folder.remove()
    }

    func cli(_ arguments: String..., runFolder other: String? = nil, timeoutSeconds: Double = 180) throws
        -> CommandResult
    {
        try cli(arguments, runFolder: other, timeoutSeconds: timeoutSeconds)
    }

    func cli(_ arguments: [String], runFolder other: String? = nil, timeoutSeconds: Double = 180) throws
        -> CommandResult
    {
        var environment = ["STILLPOINT_RUN_DIR": other ?? runFolder]
        if other != nil {
            environment["STILLPOINT_API"] = api
            environment["STILLPOINT_TOKEN_FILE"] = tokenFile
        }
        return try Shell.run(
            prefix + [Components.bin + "/stillpoint"] + arguments, environment: environment,
            timeoutSeconds: timeoutSeconds)
    }

    /// The command must succeed; its output.
    @discardableResult
    func must(_ arguments: String..., runFolder: String? = nil, timeoutSeconds: Double = 180) throws -> String {
        let result = try cli(arguments, runFolder: runFolder, timeoutSeconds: timeoutSeconds)
        guard result.status == 0 else {
            throw CommandFailed(description: "\(result)\nnode's log:\n\(log.suffix(2000))")
        }
        return result.output
    }

    func json<T: Decodable>(_ type: T.Type, _ arguments: String...) throws -> T {
        let result = try cli(arguments + ["-o", "json"])
        guard result.status == 0 else { throw CommandFailed(description: "\(result)") }
        return try APIJSON.decoder().decode(type, from: Data(result.output.utf8))
    }

    /// Ready for the libiscsi tools: `iscsi://HOST:PORT/IQN/LUN`.
    func url(volume: String) throws -> String {
        let info = try json(VolumeInfo.self, "volume", "show", volume)
        guard let export = info.exports.first else { throw CommandFailed(description: "\(volume) has no export") }
        return "iscsi://\(iscsi)/\(export.iqn)/\(export.lun)"
    }

    func allowAny(volume: String) throws {
        let info = try json(VolumeInfo.self, "volume", "show", volume)
        try must("target", "allow", info.exports[0].iqn, "--initiator", "any")
    }
}

/// A host agent of the test's own, enrolled with a node, with a tmpfs for its journal.
final class TestAgent {
    let name: String
    let folder: TemporaryFolder
    let node: TestNode
    /// Attachments that only this agent sees: this makes several "hosts" out of one machine.
    let attachFolder: String
    var port: Int
    var host = "127.0.0.1"
    var prefix: [String] = []
    var configuration = ""
    var extraEnvironment: [String: String] = [:]
    private(set) var process: ChildProcess?

    init(name: String, node: TestNode) throws {
        self.name = name
        self.node = node
        folder = try TemporaryFolder(prefix: "sp-agent")
        attachFolder = folder.path + "/host"
        port = try freePort()
        for part in ["/run", "/state", "/host"] {
            try FileManager.default.createDirectory(atPath: folder.path + part, withIntermediateDirectories: true)
        }
        try Shell.check(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", folder.path + "/run"])
    }

    var logPath: String { folder.path + "/agent.log" }
    var log: String { (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? "" }
    var pid: Int32 { process?.processIdentifier ?? -1 }

    func enroll() throws {
        let token = try node.json(AgentToken.self, "agent", "token", name)
        let tokenFile = folder.path + "/token"
        try token.token.write(toFile: tokenFile, atomically: true, encoding: .utf8)
        try Shell.check(
            prefix + [
                Components.bin + "/stillpoint-agent", "enroll", "--node", node.api, "--token-file", tokenFile,
                "--address",
                "\(host):\(port)", "--state", folder.path + "/state",
            ])
    }

    func start() throws {
        var arguments =
            prefix + [
                Components.bin + "/stillpoint-agent", "serve", "--listen", "\(host):\(port)", "--state",
                folder.path + "/state",
                "--run", folder.path + "/run", "--plugins", Components.bin,
            ]
        if !configuration.isEmpty {
            let path = folder.path + "/agent.yaml"
            try configuration.write(toFile: path, atomically: true, encoding: .utf8)
            arguments += ["--config", path]
        }
        process = try Shell.start(
            arguments, environment: extraEnvironment.merging(["STILLPOINT_RUN_DIR": attachFolder]) { $1 },
            outputPath: logPath)
        let name = self.name
        let answered = try Shell.wait {
            try node.json(AgentInfo.self, "agent", "show", name).isReachable || process?.isRunning != true
        }
        guard answered, process?.isRunning == true else {
            throw CommandFailed(description: "the agent did not start:\n\(log)\nnode:\n\(node.log.suffix(1500))")
        }
    }

    func killHard() {
        guard let process, process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    func stopProcess() {
        guard let process, process.isRunning else { return }
        process.terminate()
        if !Shell.wait({ !process.isRunning }) { killHard() }
    }

    func stop() {
        stopProcess()
        _ = try? Shell.run(["umount", "-l", folder.path + "/run"])
        folder.remove()
    }

    func attach(_ volume: String) throws -> String {
        struct Attached: Decodable { var device: String }
        let text = try node.must("volume", "attach", volume, "-o", "json", runFolder: attachFolder)
        return try JSONDecoder().decode(Attached.self, from: Data(text.utf8)).device
    }

    func detach(_ volume: String) { _ = try? node.cli("volume", "detach", volume, runFolder: attachFolder) }
}

/// A port that nobody has now, and that the kernel gives to nobody: below those it takes for connections and for
/// listeners that leave the choice to it. So it is free still when somebody binds it later.
func freePort() throws -> Int {
    let ranges = try? String(contentsOfFile: "/proc/sys/net/ipv4/ip_local_port_range", encoding: .utf8)
    let first = ranges?.split(whereSeparator: \.isWhitespace).first.flatMap { Int($0) } ?? 32_768
    for _ in 0..<1000 {
        let port = Int.random(in: 10_000..<max(10_001, first))
        if isFree(port) { return port }
    }
    throw CommandFailed(description: "no free port")
}

private func isFree(_ port: Int) -> Bool {
    let socketHandle = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(socketHandle) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(port).bigEndian
    address.sin_addr.s_addr = inet_addr("127.0.0.1")
    return withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            bind(socketHandle, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
        }
    }
}
