import API
import Foundation

/// A file system on a volume of ours, mounted on this machine, with an agent that protects it.
final class ProtectedHost {
    let node: TestNode
    let agent: TestAgent
    let volume: String
    let mountPoint: String
    private(set) var device = ""

    init(node: TestNode, agentName: String, volume: String, sizeText: String = "1GiB") throws {
        self.node = node
        self.volume = volume
        agent = try TestAgent(name: agentName, node: node)
        mountPoint = agent.folder.path + "/mnt"
        try FileManager.default.createDirectory(atPath: mountPoint, withIntermediateDirectories: true)
        try node.must("volume", "create", volume, "--size", sizeText)
    }

    func mount(format: Bool = true) throws {
        device = try agent.attach(volume)
        if format { try Shell.check(["mkfs.ext4", "-q", "-E", "nodiscard", device]) }
        try Shell.check(["mount", device, mountPoint])
    }

    func unmount() {
        _ = try? Shell.run(["umount", mountPoint])
        agent.detach(volume)
    }

    /// A write and fsync that come back within `seconds`: the file system is not frozen.
    func acceptsWrites(withinSeconds seconds: Double) -> Bool {
        let result = try? Shell.run(
            ["dd", "if=/dev/zero", "of=\(mountPoint)/probe", "bs=4096", "count=1", "conv=fsync"],
            timeoutSeconds: seconds)
        return result?.status == 0
    }

    /// Whatever the test did, nothing stays frozen, mounted or attached.
    func tearDown() {
        agent.stop()
        if !acceptsWrites(withinSeconds: 3) { _ = try? Shell.run(["fsfreeze", "-u", mountPoint]) }
        unmount()
        _ = try? Shell.run(["umount", "-l", mountPoint])
    }
}

extension TestNode {
    /// No snapshot may claim more than `level`; a test that expects none gives nil.
    func achievedLevels(volume: String) throws -> [Consistency] {
        try json([SnapshotInfo].self, "snapshot", "list", volume).map(\.achievedConsistency)
    }
}
