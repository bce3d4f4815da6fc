import Foundation

/// A node, a host of virtual machines, and the agent on that host.
final class GuestWorld {
    let node: TestNode
    let agent: TestAgent
    let host: KVMHost

    /// - Parameter environment: of node and agent.
    init(agentConfiguration: String = "", environment: [String: String] = [:]) throws {
        node = try TestNode()
        node.extraEnvironment = environment
        try node.start()
        agent = try TestAgent(name: "kvm", node: node)
        // After the agent's tmpfs is mounted: the host's namespace has a copy of it.
        host = try KVMHost()
        try host.start()
        agent.prefix = host.prefix
        agent.extraEnvironment = environment
        agent.configuration = agentConfiguration.replacing("HOST", with: host.folder.path)
        try agent.enroll()
    }

    func stop() {
        agent.stop()
        host.stop()
        node.stop()
    }

    /// A volume as a mounted file system of the host; its mount point.
    func mountVolume(_ name: String, sizeText: String) throws -> String {
        try node.must("volume", "create", name, "--size", sizeText)
        let text = try host.run(
            "env", "STILLPOINT_RUN_DIR=\(agent.attachFolder)", "STILLPOINT_API=\(node.api)",
            "STILLPOINT_TOKEN_FILE=\(node.tokenFile)", Components.bin + "/stillpoint", "volume", "attach", name)
        let device = text.trimmingCharacters(in: .whitespacesAndNewlines)
        let mountPoint = "\(host.folder.path)/\(name)"
        try FileManager.default.createDirectory(atPath: mountPoint, withIntermediateDirectories: true)
        try host.run("mkfs.ext4", "-q", "-E", "nodiscard", device)
        try host.run("mount", device, mountPoint)
        return mountPoint
    }

    func unmountVolume(_ name: String) {
        _ = try? host.run("umount", "-l", "\(host.folder.path)/\(name)")
        _ = try? host.run(
            "env", "STILLPOINT_RUN_DIR=\(agent.attachFolder)", "STILLPOINT_API=\(node.api)",
            "STILLPOINT_TOKEN_FILE=\(node.tokenFile)", Components.bin + "/stillpoint", "volume", "detach", name)
    }

    func definition(_ name: String) throws -> String { try host.virsh("dumpxml", "--inactive", name) }

    func mark(_ guest: Guest, _ text: String) throws {
        try guest.shell("echo \(text) > /mnt/data/marker; sync")
    }

    func marker(_ guest: Guest) throws -> String {
        try guest.shell("cat /mnt/data/marker").trimmingCharacters(in: .whitespacesAndNewlines)
    }
}
