import API
import Foundation
import Testing

/// Nothing stays frozen, whatever dies while a guest is.
@Suite("Guests: kills", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMKillTests {
    enum Victim: String, CaseIterable {
        case plugin, agent, agentAndPlugin, libvirtd, node, nothing
    }

    /// The guest is quiet for hundredths of a second: a kill falls before, into or after that, and all must end well.
    @Test("a guest is thawed within the lease, whoever is killed during its snapshot")
    func kills() throws {
        let world = try KVMWorld(configuration: "pluginConfiguration: {libvirt: {mode: agent}}\n")
        defer { world.tearDown() }
        let guest = try world.guest("g1", volumes: ["data"])
        try guest.boot()
        try world.startAgents()
        try guest.startWriter(["/mnt/data/n"], pauseMicroseconds: 20_000)
        for victim in Victim.allCases {
            let name = "k-\(victim.rawValue)"
            let taking = try take(world, name)
            let hasBegun = Shell.wait(upToSeconds: 20) { guest.freezeStatus == "frozen" || !taking.isRunning }
            #expect(hasBegun, "\(victim): \(said(world, name))")
            try kill(victim, world, guest)
            #expect(guest.isRunningFreely(withinSeconds: 15), "\(victim)")
            #expect(try guest.writerGoesOn(), "\(victim)")
            #expect(Shell.wait(upToSeconds: 40) { !taking.isRunning }, "\(victim)")
            try expectHonest(world, name, mustExist: victim == .nothing)
        }
    }

    private func take(_ world: KVMWorld, _ name: String) throws -> ChildProcess {
        let node = world.node
        return try Shell.start(
            [
                Components.bin + "/stillpoint", "snapshot", "create", "data", "--name", name, "--consistency",
                "file-system", "--lease", "6",
            ], environment: ["STILLPOINT_RUN_DIR": node.runFolder], outputPath: "\(node.folder.path)/\(name).out",
            errorPath: "\(node.folder.path)/\(name).err")
    }

    private func said(_ world: KVMWorld, _ name: String) -> String {
        let path = "\(world.node.folder.path)/\(name).err"
        return ((try? String(contentsOfFile: path, encoding: .utf8)) ?? "") + world.agent.log.suffix(1500)
    }

    private func kill(_ victim: Victim, _ world: KVMWorld, _ guest: Guest) throws {
        switch victim {
        case .plugin: for pid in plugins(world) { Foundation.kill(pid, SIGKILL) }
        case .agent:
            world.agent.killHard()
            #expect(guest.isRunningFreely(withinSeconds: 10), "the plug-in releases without the agent")
            try world.agent.start()
        case .agentAndPlugin:
            let pids = plugins(world)
            // Stopped first, so that neither can do anything about the other's death.
            for pid in pids { Foundation.kill(pid, SIGSTOP) }
            world.agent.killHard()
            for pid in pids { Foundation.kill(pid, SIGKILL) }
            try world.agent.start()
        case .libvirtd:
            world.host.killDaemon()
            try world.host.restartDaemon()
        case .node:
            // The guest's disk is gone with the node, and a file system needs its disk to be thawed.
            world.node.killHard()
            Thread.sleep(forTimeInterval: 7)
            try world.node.start()
        case .nothing: break
        }
    }

    /// The processes of the plug-in that the agent started.
    private func plugins(_ world: KVMWorld) -> [Int32] {
        let text =
            (try? Shell.run(["pgrep", "-P", "\(world.agent.pid)", "-f", "stillpoint-plugin-libvirt"]).output) ?? ""
        return text.split(separator: "\n").compactMap { Int32($0) }
    }

    /// No snapshot, or one that is what its label says.
    private func expectHonest(_ world: KVMWorld, _ name: String, mustExist: Bool) throws {
        guard try world.node.cli("snapshot", "show", name).status == 0 else {
            #expect(!mustExist, "there is no \(name)")
            return
        }
        let made = try world.node.json(SnapshotInfo.self, "snapshot", "show", name)
        #expect(made.achievedConsistency == .fileSystem, "\(name)")
        #expect(try !Ext4Image(path: world.image(of: name, volume: "data")).needsRecovery(), "\(name)")
    }
}
