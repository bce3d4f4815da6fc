import API
import Foundation
import Testing

/// Nothing stays quiet, whatever dies at whichever step of a snapshot: a PostgreSQL cluster with its data on one volume
/// and its log on another, an ext4 on each, and an agent with its plug-ins.
///
/// Each step is a named point at which one process waits (`PausePoint`, `CrashPoint`; docs/saga.md): what dies, dies
/// right there. All on one database, which has survived every one of these kills at the end.
/// `QuietWindowTests` does the same with the node.
@Suite(
    "PostgreSQL: kills", .serialized,
    .enabled(
        if: Components.hasAttachment && Components.hasPostgres,
        "needs root, FUSE, qemu-storage-daemon, nbdfuse and PostgreSQL"))
struct PostgreSQLKillTests {
    enum Victim: String {
        case filesystem, postgresql, agent
        /// Both at once: nothing but a new agent is left to release.
        case agentAndPlugins
        /// The plug-in, and the one that the agent starts to release what it left.
        case filesystemAndItsSuccessor
    }

    struct Step {
        var name: String
        var victims: [Victim]
        /// Somebody may be quiet, and has not proven yet that it was: no snapshot comes of it.
        var isUnproven = false
        /// From here on the snapshot is made, whoever dies.
        var isDecided = false
    }

    /// In the order in which a saga comes to them.
    static let steps: [Step] = [
        Step(name: "plan.before", victims: [.agent]),
        Step(name: "plugin.filesystem.discover.before", victims: [.filesystem]),
        Step(name: "plugin.filesystem.discover.after", victims: [.filesystem]),
        Step(name: "plugin.postgresql.discover.before", victims: [.postgresql]),
        Step(name: "plugin.postgresql.discover.after", victims: [.postgresql, .agent]),
        Step(name: "preflight.before", victims: [.agent]),
        Step(name: "plugin.filesystem.preflight.before", victims: [.filesystem]),
        Step(name: "plugin.postgresql.preflight.after", victims: [.postgresql, .agent]),
        Step(name: "quiesce.application.before", victims: [.agent]),
        Step(name: "agent.hold.before.postgresql", victims: [.agent]),
        Step(name: "plugin.postgresql.quiesce.before", victims: [.postgresql, .agent]),
        Step(
            name: "plugin.postgresql.quiesce.after", victims: [.postgresql, .agent, .agentAndPlugins],
            isUnproven: true),
        Step(name: "agent.hold.after.postgresql", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "quiesce.fileSystem.before", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "agent.hold.before.filesystem", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "plugin.filesystem.quiesce.before", victims: [.filesystem, .agent], isUnproven: true),
        Step(
            name: "plugin.filesystem.freeze.before", victims: [.filesystem, .agent, .agentAndPlugins],
            isUnproven: true),
        Step(
            name: "plugin.filesystem.freeze.after", victims: [.filesystem, .postgresql, .agent, .agentAndPlugins],
            isUnproven: true),
        Step(name: "agent.hold.after.filesystem", victims: [.filesystem, .agent], isUnproven: true),
        Step(
            name: "cut.before",
            victims: [.filesystem, .filesystemAndItsSuccessor, .postgresql, .agent, .agentAndPlugins],
            isUnproven: true),
        Step(name: "cut.after", victims: [.filesystem, .postgresql, .agent, .agentAndPlugins], isUnproven: true),
        Step(name: "agent.release.before.filesystem", victims: [.filesystem, .postgresql, .agent], isUnproven: true),
        Step(name: "plugin.filesystem.unquiesce.before", victims: [.filesystem, .agent], isUnproven: true),
        Step(
            name: "plugin.filesystem.thaw.after", victims: [.filesystem, .agent, .agentAndPlugins], isUnproven: true),
        Step(name: "plugin.filesystem.unquiesce.after", victims: [.filesystem, .agent], isUnproven: true),
        Step(name: "agent.release.after.filesystem", victims: [.filesystem]),
        Step(name: "agent.release.after.filesystem", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "agent.release.before.postgresql", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "plugin.postgresql.unquiesce.before", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "plugin.postgresql.unquiesce.after", victims: [.postgresql, .agent], isUnproven: true),
        Step(name: "agent.release.after.postgresql", victims: [.postgresql]),
        Step(name: "evidence.before", victims: [.agent], isDecided: true),
        Step(name: "label.before", victims: [.agent], isDecided: true),
        Step(name: "label.after", victims: [.agent], isDecided: true),
    ]

    @Test("kill -9 of agent and plug-ins at each step leaves nothing quiet, no half group and no wrong label")
    func kills() throws {
        let stage = try KillStage()
        defer { stage.tearDown() }
        for step in Self.steps {
            for victim in step.victims { try stage.kill(victim, at: step) }
        }
        let good = try stage.node.json(
            SnapshotInfo.self, "snapshot", "create", "db", "wal", "--consistency", "application", "--name", "good")
        #expect(good.achievedConsistency == .application)
        try stage.expectFrozenCopies(of: "good")
        #expect(try stage.postgres.sql("SELECT count(*) FROM ledger") == "\(stage.acknowledged)")
        try stage.postgres.amcheck()
    }
}

/// What the kills happen on.
private final class KillStage {
    /// As in `QuietWindowTests`.
    private static let leaseSeconds = 10.0
    private static let marginSeconds = 20.0

    let steps: PauseDirectory
    let node: TestNode
    let host: ProtectedHost
    let postgres: TestPostgres
    private(set) var acknowledged = 0
    private let logMountPoint: String
    private var agent: TestAgent { host.agent }

    init() throws {
        steps = try PauseDirectory()
        node = try TestNode()
        node.extraEnvironment = steps.environment
        try node.start()
        host = try ProtectedHost(node: node, agentName: "host-a", volume: "db")
        host.agent.extraEnvironment = steps.environment
        try host.mount()
        logMountPoint = host.agent.folder.path + "/wal"
        try node.must("volume", "create", "wal", "--size", "1GiB")
        let device = try host.agent.attach("wal")
        try Shell.check(["mkfs.ext4", "-q", "-E", "nodiscard", device])
        try FileManager.default.createDirectory(atPath: logMountPoint, withIntermediateDirectories: true)
        try Shell.check(["mount", device, logMountPoint])
        postgres = try TestPostgres(mountPoint: host.mountPoint)
        try Shell.check(["install", "-d", "-m", "0700", "-o", "postgres", "-g", "postgres", logMountPoint + "/log"])
        try postgres.create("--waldir", logMountPoint + "/log")
        try postgres.start()
        try postgres.sql("CREATE TABLE ledger (n int)")
        // Whatever initdb left unwritten is not for the freeze to write.
        for mountPoint in mountPoints { try Shell.check(["sync", "-f", mountPoint]) }
        try host.agent.enroll()
        try host.agent.start()
    }

    func tearDown() {
        for step in PostgreSQLKillTests.steps { steps.release(step.name) }
        agent.killHard()
        for mountPoint in mountPoints where !acceptsWrites(mountPoint, withinSeconds: 5) {
            _ = try? Shell.run(["fsfreeze", "-u", mountPoint])
        }
        postgres.stop(mode: "immediate")
        _ = try? Shell.run(["umount", logMountPoint])
        agent.detach("wal")
        host.tearDown()
        _ = try? Shell.run(["umount", "-l", logMountPoint])
        node.stop()
        postgres.remove()
        steps.remove()
    }

    private var mountPoints: [String] { [host.mountPoint, logMountPoint] }

    // MARK: One kill

    func kill(_ victim: PostgreSQLKillTests.Victim, at step: PostgreSQLKillTests.Step) throws {
        let name = "\(step.name)-\(victim.rawValue)"
        try steps.arm(step.name)
        let taking = try Shell.start(
            [
                Components.bin + "/stillpoint", "snapshot", "create", "db", "wal", "--consistency", "application",
                "--lease", "\(Int(Self.leaseSeconds))", "--name", name,
            ], environment: ["STILLPOINT_RUN_DIR": node.runFolder], outputPath: output(name))
        let isReached = Shell.wait { steps.isReached(step.name) || !taking.isRunning } && steps.isReached(step.name)
        #expect(isReached, "\(name): \(said(name))")
        try kill(victim) { steps.release(step.name) }
        try expectEverythingRuns(name)
        #expect(Shell.wait { !taking.isRunning }, "\(name)")
        taking.killHard()
        try expectSettled(name)
        try expectHonest(name, step)
    }

    /// Kills while the step waits, lets it go on, and starts again what was killed.
    private func kill(_ victim: PostgreSQLKillTests.Victim, goOn: () -> Void) throws {
        switch victim {
        case .filesystem, .postgresql:
            signal(SIGKILL, try plugins(victim.rawValue))
            goOn()
        case .filesystemAndItsSuccessor:
            let recovery = "plugin.filesystem.recover.before"
            try steps.arm(recovery)
            signal(SIGKILL, try plugins("filesystem"))
            goOn()
            #expect(Shell.wait { steps.isReached(recovery) }, "no other plug-in was started: \(agent.log.suffix(1500))")
            signal(SIGKILL, try plugins("filesystem"))
            steps.release(recovery)
        case .agent:
            agent.killHard()
            goOn()
            // What it held is free before there is another agent.
            try expectEverythingRuns("without an agent")
            try agent.start()
        case .agentAndPlugins:
            let pids = try plugins("(filesystem|postgresql)")
            // Stopped first, so that it can do nothing about the agent's death.
            signal(SIGSTOP, pids)
            agent.killHard()
            goOn()
            try agent.start()
            signal(SIGKILL, pids)
        }
    }

    /// The processes of plug-ins that the agent started.
    private func plugins(_ pattern: String) throws -> [Int32] {
        let text = try Shell.run(["pgrep", "-P", "\(agent.pid)", "-f", "stillpoint-plugin-\(pattern)$"]).output
        let pids = text.split(separator: "\n").compactMap { Int32($0) }
        #expect(!pids.isEmpty, "\(pattern) does not run")
        return pids
    }

    private func signal(_ number: Int32, _ pids: [Int32]) { for pid in pids { Foundation.kill(pid, number) } }

    private func output(_ name: String) -> String { "\(node.folder.path)/\(name).out" }

    private func said(_ name: String) -> String {
        ((try? String(contentsOfFile: output(name), encoding: .utf8)) ?? "") + agent.log.suffix(1500)
    }

    // MARK: What must hold after it

    private func acceptsWrites(_ mountPoint: String, withinSeconds seconds: Double) -> Bool {
        let result = try? Shell.run(
            ["dd", "if=/dev/zero", "of=\(mountPoint)/probe", "bs=4096", "count=1", "conv=fsync"],
            timeoutSeconds: seconds)
        return result?.status == 0
    }

    private func expectEverythingRuns(_ name: String) throws {
        for mountPoint in mountPoints {
            #expect(
                acceptsWrites(mountPoint, withinSeconds: Self.leaseSeconds + Self.marginSeconds),
                "\(name): \(mountPoint)\n\(agent.log.suffix(1500))")
        }
        try postgres.sql("INSERT INTO ledger VALUES (1)", timeoutSeconds: Self.leaseSeconds + Self.marginSeconds)
        acknowledged += 1
    }

    private func expectSettled(_ name: String) throws {
        let isSettled = try Shell.wait {
            try node.json([JobInfo].self, "job", "list").allSatisfy { $0.state.isEnded }
        }
        #expect(isSettled, "\(name): a job goes on")
        let isIdle = try Shell.wait {
            let status = try Shell.check([
                Components.bin + "/stillpoint-agent", "status", "--run", agent.folder.path + "/run", "-o", "json",
            ])
            return try APIJSON.decoder().decode(AgentStatus.self, from: Data(status.utf8)).holds.isEmpty
        }
        #expect(isIdle, "\(name): the agent still holds something")
        // A session that was killed is gone when its server process notices.
        let isLetGo = try Shell.wait {
            try postgres.sql(
                """
                SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'stillpoint%' AND state <> 'idle'
                """) == "0"
        }
        #expect(isLetGo, "\(name)")
    }

    /// No snapshot, or one that is what its label says, of both volumes.
    private func expectHonest(_ name: String, _ step: PostgreSQLKillTests.Step) throws {
        let snapshots = try node.json([SnapshotInfo].self, "snapshot", "list", "db")
        #expect(try node.json([SnapshotInfo].self, "snapshot", "list", "wal").map(\.id) == snapshots.map(\.id))
        #expect(snapshots.allSatisfy { $0.name == name && $0.volumes.count == 2 }, "\(name): \(snapshots)")
        guard !snapshots.isEmpty else {
            #expect(!step.isDecided, "there is no \(name): \(said(name))")
            return
        }
        #expect(!step.isUnproven, "\(name) says too much: \(said(name))")
        let made = try node.json(SnapshotInfo.self, "snapshot", "show", name)
        #expect(made.achievedConsistency == .application, "\(name): \(made)")
        let members = made.evidence?.members ?? []
        #expect(members.count == 3, "\(name): \(members)")
        #expect(
            members.allSatisfy { $0.heldBeforeCut && $0.releasedAfterCut && $0.stillHeldAtRelease },
            "\(name): \(members)")
        try expectFrozenCopies(of: name)
        try node.must("snapshot", "delete", name)
    }

    func expectFrozenCopies(of name: String) throws {
        for volume in ["db", "wal"] {
            let device = try agent.attach("\(name)/\(volume)")
            #expect(try !Shell.check(["dumpe2fs", "-h", device]).contains("needs_recovery"), "\(name): \(volume)")
            agent.detach("\(name)/\(volume)")
        }
    }
}
