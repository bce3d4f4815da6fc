import API
import Foundation
import Testing

/// Whom a test kills while a guest is held.
enum KVMVictim: String, CaseIterable {
    case plugin, agent, agentThenPlugin, libvirtd, node
}

extension KVMWorld {
    /// Kills while a step waits, lets the step go on, and starts again what was killed.
    func kill(_ victim: KVMVictim, _ guest: Guest, goOn: () -> Void) throws {
        switch victim {
        case .plugin:
            for pid in plugins { Foundation.kill(pid, SIGKILL) }
            goOn()
        case .agent:
            agent.killHard()
            goOn()
            #expect(guest.isRunningFreely(withinSeconds: 15), "the plug-in releases without the agent")
            try agent.start()
        case .agentThenPlugin:
            let pids = plugins
            // Stopped first, so that it can do nothing about the agent's death, nor the new agent anything about it.
            for pid in pids { Foundation.kill(pid, SIGSTOP) }
            agent.killHard()
            goOn()
            try agent.start()
            for pid in pids { Foundation.kill(pid, SIGKILL) }
        case .libvirtd:
            host.killDaemon()
            goOn()
            try host.restartDaemon()
        case .node:
            // The guest's disks are gone with the node, and a file system needs its disk to be thawed.
            node.killHard()
            goOn()
            try node.start()
        }
    }

    /// The processes of the plug-in that the agent started.
    private var plugins: [Int32] {
        let text = (try? Shell.run(["pgrep", "-P", "\(agent.pid)", "-f", "stillpoint-plugin-libvirt"]).output) ?? ""
        return text.split(separator: "\n").compactMap { Int32($0) }
    }

    /// No job goes on, and the agent holds nothing, or has soon asked again and found what a killed plug-in left.
    func expectSettled(_ name: String) throws {
        let isSettled = try Shell.wait(upToSeconds: 60) {
            try node.json([JobInfo].self, "job", "list").allSatisfy { $0.state.isEnded }
        }
        #expect(isSettled, "\(name): a job goes on")
        let holdsNothing = try Shell.wait(upToSeconds: 60) {
            let status = try Shell.check([
                Components.bin + "/stillpoint-agent", "status", "--run", agent.folder.path + "/run", "-o", "json",
            ])
            return try APIJSON.decoder().decode(AgentStatus.self, from: Data(status.utf8)).holds.isEmpty
        }
        #expect(holdsNothing, "\(name): a hold stays")
    }

    /// A volume with an ext4 on the host, for files of guests; its device.
    func mountShared(_ volume: String, at folder: String) throws -> String {
        try node.must("volume", "create", volume, "--size", "512MiB")
        let device = try agent.attach(volume)
        try Shell.check(["mkfs.ext4", "-q", "-E", "nodiscard", device])
        try host.run("mkdir", "-p", folder)
        try host.run("mount", device, folder)
        return device
    }

    /// Guests on it keep the device busy: they go first.
    func unmountShared(_ volume: String, at folder: String) {
        for guest in guests { guest.destroy() }
        _ = try? Shell.run(host.prefix + ["umount", folder])
        agent.detach(volume)
    }
}

/// Where processes under test look whether they are to wait at a step.
struct PauseDirectory {
    private let folder: TemporaryFolder

    init() throws { folder = try TemporaryFolder(prefix: "sp-pause") }

    var environment: [String: String] { ["STILLPOINT_PAUSE_DIRECTORY": folder.path] }

    func arm(_ step: String) throws { try "".write(toFile: path(step), atomically: true, encoding: .utf8) }

    func isReached(_ step: String) -> Bool { FileManager.default.fileExists(atPath: path(step) + ".reached") }

    func release(_ step: String) {
        try? FileManager.default.removeItem(atPath: path(step))
        try? FileManager.default.removeItem(atPath: path(step) + ".reached")
    }

    func remove() { folder.remove() }

    func path(_ step: String) -> String { "\(folder.path)/\(step)" }
}
