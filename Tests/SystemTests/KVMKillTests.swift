import API
import Foundation
import Testing

/// Nothing stays frozen or paused, whatever dies at whichever step of a snapshot.
///
/// Each step is a named point at which one process waits (`PausePoint`, `CrashPoint`): what dies, dies right there.
@Suite("Guests: kills", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMKillTests {
    /// In their order; those without a prefix are the node's.
    private static let freezeSteps = [
        "plugin.freeze.before", "plugin.freeze.after", "agent.hold.after", "cut.before", "cut.after",
        "agent.release.before", "plugin.release.before", "plugin.release.after", "agent.release.after",
        "evidence.before", "label.after",
    ]
    /// When the plug-in has released and ended: it, and libvirtd, have no part in these.
    private static let releasedSteps: Set = ["agent.release.after", "evidence.before", "label.after"]
    private static let suspendSteps = ["plugin.suspend.before", "plugin.suspend.after", "plugin.release.before"]
    /// What differs for a guest that is paused happens in the plug-in.
    private static let suspendVictims: [KVMVictim] = [.plugin, .agentThenPlugin, .libvirtd]
    /// From here on the snapshot is made, whoever dies.
    private static let decided: Set = ["evidence.before", "label.after"]
    /// Before these there is no cut: a node that dies leaves none.
    private static let uncut: Set = [
        "plugin.freeze.before", "plugin.freeze.after", "plugin.suspend.before", "plugin.suspend.after",
        "agent.hold.after", "cut.before",
    ]
    private static let leaseSeconds = 6

    @Test("a guest goes on within the lease, whoever is killed at whichever step, and no snapshot says too much")
    func kills() throws {
        let steps = try PauseDirectory()
        defer { steps.remove() }
        let world = try KVMWorld(
            configuration: "pluginConfiguration: {libvirt: {mode: agent}}\n", environment: steps.environment)
        defer { world.tearDown() }
        let guest = try world.guest("g1", volumes: ["a", "b"])
        try guest.boot()
        try world.startAgents()
        try guest.startWriter(["/mnt/a/n", "/mnt/b/n"], pauseMicroseconds: 20_000)
        for step in Self.freezeSteps {
            let victims = Self.releasedSteps.contains(step) ? [.agent, .node] : KVMVictim.allCases
            for victim in victims {
                try kill(victim, at: step, in: world, guest, steps, level: .fileSystem)
            }
            try expectNext(world, after: step, .fileSystem)
        }
        world.agent.stopProcess()
        world.agent.configuration = "pluginConfiguration: {libvirt: {mode: pause}}\n"
        try world.agent.start()
        for step in Self.suspendSteps {
            for victim in Self.suspendVictims {
                try kill(victim, at: step, in: world, guest, steps, level: .crash)
            }
            try expectNext(world, after: step, .crash)
        }
    }

    private func kill(
        _ victim: KVMVictim, at step: String, in world: KVMWorld, _ guest: Guest, _ steps: PauseDirectory,
        level: Consistency
    ) throws {
        let name = "\(step)-\(victim.rawValue)-\(level.rawValue)"
        try steps.arm(step)
        let taking = try take(world, name, level)
        let isReached = Shell.wait(upToSeconds: 60) { steps.isReached(step) || !taking.isRunning }
        #expect(isReached && steps.isReached(step), "\(name): \(said(world, name))")
        try world.kill(victim, guest) { steps.release(step) }
        #expect(guest.isRunningFreely(withinSeconds: Double(Self.leaseSeconds) + 15), "\(name)")
        #expect(try guest.writerGoesOn(), "\(name)")
        #expect(Shell.wait(upToSeconds: 60) { !taking.isRunning }, "\(name)")
        taking.killHard()
        try world.expectSettled(name)
        try expectHonest(world, name, level, step, victim)
    }

    private func expectNext(_ world: KVMWorld, after step: String, _ level: Consistency) throws {
        let next = try world.snapshot(["a", "b"], name: "after-\(step)-\(level.rawValue)", Self.wish(level))
        #expect(next.achievedConsistency == level, "after \(step)")
        #expect(next.evidence?.members.allSatisfy { $0.stillHeldAtRelease } == true, "after \(step)")
        let all = try world.node.json([SnapshotInfo].self, "snapshot", "list", "a").map(\.name)
        _ = try world.node.cli(["snapshot", "delete"] + all)
    }

    private static func wish(_ level: Consistency) -> [String] {
        // A pause proves no more than crash consistency; that it was held at the cut is in the evidence.
        ["--consistency", "file-system", "--lease", "\(leaseSeconds)"] + (level == .crash ? ["--allow-lower"] : [])
    }

    private func take(_ world: KVMWorld, _ name: String, _ level: Consistency) throws -> ChildProcess {
        let node = world.node
        return try Shell.start(
            [Components.bin + "/stillpoint", "snapshot", "create", "a", "b", "--name", name] + Self.wish(level),
            environment: ["STILLPOINT_RUN_DIR": node.runFolder], outputPath: "\(node.folder.path)/\(name).out",
            errorPath: "\(node.folder.path)/\(name).err")
    }

    private func said(_ world: KVMWorld, _ name: String) -> String {
        let path = "\(world.node.folder.path)/\(name).err"
        return ((try? String(contentsOfFile: path, encoding: .utf8)) ?? "") + world.agent.log.suffix(1500)
    }

    /// No snapshot, or one that is what its label says: of both disks, with the numbers up to one instant.
    private func expectHonest(
        _ world: KVMWorld, _ name: String, _ level: Consistency, _ step: String, _ victim: KVMVictim
    ) throws {
        guard try world.node.cli("snapshot", "show", name).status == 0 else {
            #expect(!Self.decided.contains(step), "there is no \(name)")
            return
        }
        #expect(!(victim == .node && Self.uncut.contains(step)), "\(name) was not cut")
        let made = try world.node.json(SnapshotInfo.self, "snapshot", "show", name)
        #expect(made.volumes.count == 2, "\(name)")
        #expect(made.achievedConsistency == level, "\(name)")
        if level != .crash {
            #expect(made.evidence?.members.allSatisfy { $0.stillHeldAtRelease } == true, "\(name)")
        }
        let numbers = try ["a", "b"].map { volume in
            let image = Ext4Image(path: try world.image(of: name, volume: volume))
            if level == .fileSystem { #expect(try !image.needsRecovery(), "\(name)") }
            try image.replayJournal()
            defer {
                try? FileManager.default.removeItem(atPath: image.path)
                _ = try? world.node.cli("clone", "delete", "look-\(name)-\(volume)")
            }
            return try image.numbers("/n")
        }
        #expect((0...1).contains(numbers[0].count - numbers[1].count), "\(name)")
        for numbers in numbers { #expect(numbers == Array(1...max(1, numbers.count)), "\(name)") }
    }
}
