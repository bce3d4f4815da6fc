import API
import Foundation
import Testing

/// PostgreSQL in a guest, under load, with the agent inside; and what is left of it in a copy of the guest.
@Suite(
    "Guests: PostgreSQL inside", .serialized,
    .enabled(if: LongTests.areWanted, "\(LongTests.skipReason)"),
    .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"),
    .enabled(if: Components.hasPostgres, "needs PostgreSQL and setpriv: scripts/setup.sh test"))
struct KVMPostgreSQLTests {
    private static let data = "/mnt/pg/pgdata"
    private static let query = "psql -h /run/pg -U postgres -XAtq postgres"

    @Test("a snapshot of a loaded server holds all that was committed before it, and restored beside it starts")
    func committedTransactions() throws {
        let world = try KVMWorld()
        defer { world.tearDown() }
        let guest = try world.guest("db", volumes: [])
        let cluster = try Self.cluster()
        defer { cluster.remove() }
        guest.disks.append(
            try world.node.guestDisk(
                volume: "pg", sizeText: "512MiB", target: "vda", initiator: guest.initiator, host: world.host,
                content: cluster.path))
        let agent = try AgentInGuest(name: "inside", guest: guest, node: world.node, more: ["postgresql"])
        // For the server, and all that the agent starts beside it.
        guest.memoryMiB = 1024
        try guest.boot()
        try world.startAgents()
        try agent.start()
        try Self.startServer(guest)
        try Self.startLoad(guest)
        let levels: [(String, [String], String)] = [
            ("with-agent", ["--consistency", "application"], "application"),
            ("frozen", ["--consistency", "file-system"], "fileSystem"),
        ]
        var acknowledged: [String: (before: Int, after: Int)] = [:]
        for (name, options, level) in levels {
            let before = try Self.newest(guest)
            let made = try Self.snapshot(world, agent, name, options)
            #expect(made.achievedConsistency.rawValue == level)
            let plugins = made.evidence?.members.map { "\($0.agent) \($0.plugin)" } ?? []
            #expect(plugins == (level == "application" ? ["inside postgresql"] : []) + ["kvm1 libvirt"])
            #expect(made.evidence?.members.contains { !$0.stillHeldAtRelease } == false)
            #expect(try Shell.wait(upToSeconds: 120) { try Self.newest(guest) > before + 3 }, "the server goes on")
            acknowledged[name] = (before, try Self.newest(guest))
        }
        guest.destroy()
        for (name, bounds) in acknowledged { try restored(world, name, bounds) }
    }

    /// A cluster with tables for the load, as a folder to fill a volume with.
    private static func cluster() throws -> TemporaryFolder {
        let folder = try TemporaryFolder(prefix: "sp-pgdata")
        try Shell.check(["chmod", "755", folder.path])
        let server = try TestPostgres(mountPoint: folder.path)
        defer { server.remove() }
        // The guest has neither locales nor time zones.
        try server.create("--locale=C", "--encoding=UTF8")
        try server.start()
        for name in ["timezone", "log_timezone"] { try server.sql("ALTER SYSTEM SET \(name) = 'GMT'") }
        try server.sql("CREATE TABLE numbers (n integer PRIMARY KEY)")
        try server.pgbench("-i", "-q")
        server.stop()
        return folder
    }

    private static func snapshot(
        _ world: KVMWorld, _ agent: AgentInGuest, _ name: String, _ options: [String]
    ) throws -> SnapshotInfo {
        let arguments = ["snapshot", "create", "pg", "--name", name, "--lease", "30"] + options
        var result = try world.node.cli(arguments, timeoutSeconds: 120)
        // An agent under load on an emulated processor may take too long to say what it sees: rightly refused.
        for _ in 0..<6 where result.status != 0 && result.errors.contains("does not answer") {
            // What it was asked before is still being looked at.
            sleep(10)
            result = try world.node.cli(arguments, timeoutSeconds: 120)
        }
        guard result.status == 0 else {
            let inside = (try? agent.guest.shell("uptime; free; ps; tail -n 30 /run/sp/agent.log")) ?? ""
            throw CommandFailed(description: "\(result)\n\(world.agent.log.suffix(2000))\ninside:\n\(inside)")
        }
        return try world.node.json(SnapshotInfo.self, "snapshot", "show", name)
    }

    private static func startServer(_ guest: Guest) throws {
        let owner = try FileManager.default.attributesOfItem(atPath: "/var/lib/postgresql")
        let (uid, gid) = (owner[.ownerAccountID] ?? 0, owner[.groupOwnerAccountID] ?? 0)
        try guest.shell(
            """
            grep -q ^postgres: /etc/passwd 2> /dev/null || {
                echo 'root:x:0:0::/:/bin/sh' >> /etc/passwd
                echo 'postgres:x:\(uid):\(gid)::/:/bin/sh' >> /etc/passwd
                echo 'postgres:x:\(gid):' >> /etc/group
            }
            mkdir -p /run/pg /dev/shm; mount -t tmpfs tmpfs /dev/shm; chown postgres /run/pg
            for program in postgres psql pgbench; do
                ln -sf /mnt/tools/trees\(Components.postgresBin ?? "")/$program /usr/bin/$program
            done
            """)
        let start = """
            #!/bin/sh
            cd /
            exec /usr/bin/postgres -D \(data) -k /run/pg -c listen_addresses= -c shared_buffers=16MB > /run/pg/log 2>&1
            """
        try guest.shell("cat > /run/pg/start <<'END'\n\(start)\nEND\nchmod 755 /run/pg/start")
        try guest.background("exec su -s /bin/sh postgres -c /run/pg/start")
        // Asked within the guest, with pauses: each question starts a program on the emulated processor.
        let isReady = "for i in $(seq 90); do \(query) -c 'SELECT 1' && exit 0; sleep 1; done; exit 1"
        let answers = (try? guest.shell(isReady)) != nil
        guard answers else {
            throw CommandFailed(description: try guest.shell("tail -n 40 /run/pg/log /run/background.log 2>&1; true"))
        }
    }

    /// Numbers one after another, each in a transaction of its own, and pgbench beside them. Both with pauses: the
    /// guest's only processor is emulated, and the agent inside needs some of it.
    private static func startLoad(_ guest: Guest) throws {
        try guest.background(
            "n=1; while :; do echo \"INSERT INTO numbers VALUES ($n);\"; n=$((n+1)); "
                + "usleep 100000; done | \(query)")
        try guest.background(
            "exec pgbench -h /run/pg -U postgres -n -c 2 -R 5 -T 3000 postgres > /run/pgbench 2>&1")
        let isLoaded = try Shell.wait(upToSeconds: 180) {
            try guest.shell("sleep 2")
            return try newest(guest) > 10 && balance(guest).contains("t")
        }
        guard isLoaded else {
            throw CommandFailed(description: try guest.shell("cat /run/background.log /run/pg/log"))
        }
    }

    private static func newest(_ guest: Guest) throws -> Int {
        let text = try guest.shell("\(query) -c 'SELECT coalesce(max(n), 0) FROM numbers'")
        return Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }

    /// `t` when every transaction of pgbench is there wholly or not at all, and some are.
    private static func balance(_ guest: Guest) throws -> String {
        try guest.shell(
            """
            \(query) -c "SELECT count(*) > 0 AND sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts) \
            AND sum(delta) = (SELECT sum(tbalance) FROM pgbench_tellers) \
            AND sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history"
            """)
    }

    private func restored(_ world: KVMWorld, _ snapshot: String, _ bounds: (before: Int, after: Int)) throws {
        let name = "copy-\(snapshot)"
        try world.node.must(
            "guest", "restore", "db", "--from", snapshot, "--beside", name, "--no-start", timeoutSeconds: 120)
        let image = "\(world.host.folder.path)/\(GuestTools.label).img"
        try world.host.virsh("attach-disk", name, image, "vdz", "--config", "--mode", "readonly")
        let copy = Guest(host: world.host, name: name)
        try copy.start()
        defer { copy.destroy() }
        try copy.waitForAgent(seconds: 180)
        try AgentInGuest.linkLibraries(copy)
        try Self.startServer(copy)
        let text = try copy.shell("\(Self.query) -c 'SELECT count(*), coalesce(max(n), 0) FROM numbers'")
        let parts = text.trimmingCharacters(in: .whitespacesAndNewlines).split(separator: "|").compactMap { Int($0) }
        #expect(parts.count == 2 && parts[0] == parts[1], "\(snapshot): a number is missing: \(text)")
        #expect((bounds.before...bounds.after).contains(parts.last ?? 0), "\(snapshot): \(text) of \(bounds)")
        #expect(try Self.balance(copy) == "t\n", "\(snapshot)")
    }
}
