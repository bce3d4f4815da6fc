import API
import Foundation
import Testing

/// What others' tools say of clones of snapshots that were taken of a database at work.
@Suite(
    "Clones of a database under load", .serialized,
    .enabled(
        if: Components.hasAttachment && Components.hasPostgres,
        "needs root, FUSE, qemu-storage-daemon, nbdfuse and PostgreSQL"))
struct CloneVerificationTests {
    @Test("e2fsck, pg_checksums, pg_amcheck and pgbench's sums find nothing, and nothing acknowledged is missing")
    func underLoad() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let host = try ProtectedHost(node: node, agentName: "host-a", volume: "db")
        defer { host.tearDown() }
        try host.mount()
        let postgres = try TestPostgres(mountPoint: host.mountPoint)
        defer {
            postgres.stop(mode: "immediate")
            postgres.remove()
        }
        try postgres.create()
        try postgres.start()
        try postgres.makeBench()
        // The cluster was made without syncing: a power cut, and so a crash copy, could find its files empty.
        try Shell.check(["sync", "-f", host.mountPoint])
        try host.agent.enroll()
        try host.agent.start()
        let isFound = try Shell.wait {
            try node.json(AgentInfo.self, "agent", "show", "host-a").resources?.contains { $0.plugin == "postgresql" }
                == true
        }
        #expect(isFound, "\(host.agent.log.suffix(2000))")
        let load = try postgres.startBench()
        defer { load.killHard() }
        var acknowledged: [String: Int] = [:]
        for (round, level) in ["crash", "application"].enumerated() {
            #expect(try Shell.wait { try postgres.bench().transactions > 100 * (round + 1) })
            acknowledged[level] = try postgres.bench().transactions
            let made = try node.json(
                SnapshotInfo.self, "snapshot", "create", "db", "--name", level, "--consistency", level)
            #expect(made.achievedConsistency.rawValue == level)
        }
        #expect(load.isRunning)
        load.killHard()
        postgres.stop(mode: "immediate")
        for (level, count) in acknowledged { try verify(level, atLeast: count, node: node, host: host) }
    }

    private func verify(_ snapshot: String, atLeast count: Int, node: TestNode, host: ProtectedHost) throws {
        let clone = "clone-of-\(snapshot)"
        try node.must("clone", "create", snapshot, "--name", clone)
        let device = try host.agent.attach(clone)
        defer { host.agent.detach(clone) }
        // Only what was not frozen has a journal to be replayed.
        let header = try Shell.check(["dumpe2fs", "-h", device])
        #expect(header.contains("needs_recovery") == (snapshot == "crash"), "\(snapshot)")
        if snapshot == "crash" { _ = try Shell.run(["e2fsck", "-p", device]) }
        let checked = try Shell.run(["e2fsck", "-fn", device])
        #expect(checked.status == 0, "\(snapshot): \(checked)")

        let look = host.agent.folder.path + "/look-\(snapshot)"
        try FileManager.default.createDirectory(atPath: look, withIntermediateDirectories: true)
        try Shell.check(["mount", device, look])
        defer { _ = try? Shell.run(["umount", look]) }
        let copy = try TestPostgres(mountPoint: look)
        defer {
            copy.stop(mode: "immediate")
            copy.remove()
        }
        try copy.forgetServer()
        try copy.start()
        let bench = try copy.bench()
        #expect(bench.isWhole && bench.transactions >= count, "\(snapshot): \(bench), \(count) were acknowledged")
        try copy.amcheck()
        copy.stop()
        try copy.checkChecksums()
    }
}
