import API
import Foundation
import Testing

/// Promise 4: an application is never left quiesced. Everything here runs on real parts: ext4 on a LUN of our own
/// target, PostgreSQL on it, and a node that is killed at each step. `PostgreSQLKillTests` kills agent and plug-ins.
@Suite(
    "Quiet window", .serialized,
    .enabled(
        if: Components.hasAttachment && Components.hasPostgres,
        "needs root, FUSE, qemu-storage-daemon, nbdfuse and PostgreSQL"))
struct QuietWindowTests {
    /// Long enough for a slow machine, short enough that a lease which never ends would be seen.
    static let leaseSeconds = 10.0
    static let marginSeconds = 20.0

    final class Stage {
        let node: TestNode
        let host: ProtectedHost
        let postgres: TestPostgres
        var agent: TestAgent { host.agent }

        init() throws {
            node = try TestNode()
            try node.start()
            host = try ProtectedHost(node: node, agentName: "host-a", volume: "db")
            try host.mount()
            postgres = try TestPostgres(mountPoint: host.mountPoint)
            try postgres.create()
            try postgres.start()
            try postgres.sql("CREATE TABLE ledger (n int)")
            // Whatever initdb left unwritten is not for the freeze to write.
            try Shell.check(["sync", "-f", host.mountPoint])
            try agent.enroll()
            try agent.start()
            try waitForPostgresToBeFound()
        }

        func waitForPostgresToBeFound() throws {
            let found = try Shell.wait {
                let info = try node.json(AgentInfo.self, "agent", "show", "host-a")
                return info.resources?.contains { $0.plugin == "postgresql" } == true
            }
            guard found else {
                let shown = try node.must("agent", "show", "host-a")
                throw CommandFailed(description: "PostgreSQL was not discovered:\n\(shown)\n\(agent.log.suffix(2000))")
            }
        }

        func startSnapshot(name: String) throws -> ChildProcess {
            try Shell.start(
                [
                    Components.bin + "/stillpoint", "snapshot", "create", "db", "--consistency", "application",
                    "--name", name,
                    "--lease", "\(Int(leaseSeconds))",
                ], environment: ["STILLPOINT_RUN_DIR": node.runFolder], outputPath: node.folder.path + "/snapshot.out")
        }

        var snapshotOutput: String {
            (try? String(contentsOfFile: node.folder.path + "/snapshot.out", encoding: .utf8)) ?? ""
        }

        func expectEverythingRuns(_ comment: Comment) throws {
            #expect(host.acceptsWrites(withinSeconds: leaseSeconds + marginSeconds), comment)
            _ = try postgres.sql("INSERT INTO ledger VALUES (1)", timeoutSeconds: leaseSeconds + marginSeconds)
            // A session that was killed is gone when its server process notices; a discovery may be asking just now.
            let isLetGo = try Shell.wait {
                try postgres.sql(
                    """
                    SELECT count(*) FROM pg_stat_activity
                    WHERE application_name LIKE 'stillpoint%' AND state <> 'idle'
                    """) == "0"
            }
            #expect(isLetGo, comment)
        }

        func tearDown() {
            postgres.stop(mode: "immediate")
            host.tearDown()
            node.stop()
            postgres.remove()
        }
    }

    static func withStage(_ body: (Stage) throws -> Void) throws {
        let stage = try Stage()
        defer { stage.tearDown() }
        try body(stage)
    }

    @Test("an application-consistent snapshot has evidence for every member, and only then the label")
    func evidence() throws {
        try Self.withStage { stage in
            let made = try stage.node.json(
                SnapshotInfo.self, "snapshot", "create", "db", "--consistency", "application", "--name", "good")
            #expect(made.achievedConsistency == .application)
            let shown = try stage.node.json(SnapshotInfo.self, "snapshot", "show", "good")
            let evidence = try #require(shown.evidence)
            #expect(Set(evidence.members.map(\.plugin)) == ["filesystem", "postgresql"])
            for member in evidence.members {
                #expect(member.heldBeforeCut && member.stillHeldAtRelease && member.releasedAfterCut, "\(member)")
                #expect(member.quietSeconds > 0)
            }
            let label = evidence.members.first { $0.plugin == "postgresql" }?.artifacts["backup_label"]
            #expect(label?.contains("START WAL LOCATION") == true)
            #expect(shown.quietSeconds > 0)
            try stage.expectEverythingRuns("after a good snapshot")

            // The frozen copy needs no journal recovery, and holds a completed write that was never synced.
            try Shell.check(["sh", "-c", "echo unsynced > \(stage.host.mountPoint)/unsynced"])
            try stage.node.must("snapshot", "create", "db", "--consistency", "fileSystem", "--name", "frozen")
            try Shell.check(["sh", "-c", "echo later > \(stage.host.mountPoint)/later"])
            try stage.node.must("snapshot", "create", "db", "--name", "crash")
            let frozen = try stage.agent.attach("frozen")
            let header = try Shell.check(["dumpe2fs", "-h", frozen])
            #expect(!header.contains("needs_recovery"))
            #expect(try Shell.check(["debugfs", "-R", "cat /unsynced", frozen]).contains("unsynced"))
            stage.agent.detach("frozen")
            let crash = try stage.agent.attach("crash")
            #expect(try Shell.check(["dumpe2fs", "-h", crash]).contains("needs_recovery"))
            #expect(try !Shell.check(["debugfs", "-R", "cat /later", crash]).contains("later\n"))
            stage.agent.detach("crash")
        }
    }

    /// The names in docs/saga.md.
    static let crashPoints = [
        "plan.before", "plan.after", "preflight.before", "preflight.after", "quiesce.application.before",
        "quiesce.application.after", "quiesce.fileSystem.before", "quiesce.fileSystem.after", "cut.before", "cut.after",
        "unquiesce.fileSystem.before", "unquiesce.fileSystem.after", "unquiesce.application.before",
        "unquiesce.application.after", "label.before", "label.after",
    ]

    /// All on one database, which has survived every one of these kills at the end.
    @Test("kill -9 of the node at each step leaves nothing quiet, no half group and no wrong label")
    func nodeDiesAtEachStep() throws {
        try Self.withStage { stage in
            for point in Self.crashPoints { try dieAndComeBack(at: point, stage) }
            #expect(try stage.postgres.sql("SELECT count(*) FROM ledger") == "\(Self.crashPoints.count)")
            try stage.postgres.amcheck()
        }
    }

    private func dieAndComeBack(at point: String, _ stage: Stage) throws {
        stage.node.terminate()
        stage.node.extraEnvironment["STILLPOINT_CRASH_AT"] = point
        try stage.node.start()
        try stage.waitForPostgresToBeFound()
        let client = try stage.startSnapshot(name: "killed-\(point)")
        let died = Shell.wait { !stage.node.isRunning || !client.isRunning } && !stage.node.isRunning
        #expect(died, "the node should have died at \(point): \(stage.snapshotOutput)")
        // The LUN itself is away until the node is back; what was held is not held any longer then.
        stage.node.extraEnvironment["STILLPOINT_CRASH_AT"] = nil
        stage.node.killHard()
        try stage.node.start()
        try stage.expectEverythingRuns("after the restart from \(point)")
        let settled = try Shell.wait {
            try stage.node.json([JobInfo].self, "job", "list").allSatisfy { $0.state.isEnded }
        }
        #expect(settled, "a job is still running after the restart from \(point)")
        _ = Shell.wait { !client.isRunning }
        if client.isRunning { client.killHard() }
        for snapshot in try stage.node.json([SnapshotInfo].self, "snapshot", "list", "db") {
            let whole = try stage.node.json(SnapshotInfo.self, "snapshot", "show", snapshot.id)
            let proven = whole.evidence?.members.allSatisfy {
                $0.heldBeforeCut && $0.releasedAfterCut && $0.stillHeldAtRelease
            }
            #expect(whole.achievedConsistency == .application && proven == true, "\(point): \(whole)")
        }
    }

    @Test("a lower level is kept only when the policy allows it, and says why")
    func allowLower() throws {
        try Self.withStage { stage in
            try stage.node.must("volume", "create", "bare", "--size", "64MiB")
            let refused = try stage.node.cli(
                "snapshot", "create", "bare", "--consistency", "application", "--name", "no")
            #expect(refused.status == 1)
            #expect(refused.errors.contains("bare"), "\(refused)")
            #expect(try stage.node.achievedLevels(volume: "bare").isEmpty)
            let lower = try stage.node.json(
                SnapshotInfo.self, "snapshot", "create", "bare", "--consistency", "application", "--allow-lower",
                "--name", "low")
            #expect(lower.requestedConsistency == .application)
            #expect(lower.achievedConsistency == .crash)
            let shown = try stage.node.json(SnapshotInfo.self, "snapshot", "show", "low")
            #expect(shown.evidence?.reasons.isEmpty == false)
        }
    }
}
