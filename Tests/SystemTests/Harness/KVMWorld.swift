import API
import Foundation

/// A node, a host of virtual machines with an agent on it, and guests with volumes: everything real but the processor.
final class KVMWorld {
    let node: TestNode
    private(set) var hosts: [KVMHost] = []
    private(set) var agents: [TestAgent] = []
    private(set) var guests: [Guest] = []

    var host: KVMHost { hosts[0] }
    var agent: TestAgent { agents[0] }

    /// - Parameters:
    ///   - configuration: of each agent.
    ///   - environment: of node and agents.
    init(hosts count: Int = 1, configuration: String = "", environment: [String: String] = [:]) throws {
        node = try TestNode()
        node.extraEnvironment = environment
        try node.start()
        for index in 0..<count {
            // Before the host's mount namespace: the agent's tmpfs has to be in it.
            let agent = try TestAgent(name: "kvm\(index + 1)", node: node)
            agents.append(agent)
            let host = try KVMHost()
            hosts.append(host)
            try host.start()
            agent.prefix = host.prefix
            agent.configuration = configuration
            agent.extraEnvironment = environment
        }
    }

    func startAgents() throws {
        for agent in agents {
            try agent.enroll()
            try agent.start()
        }
    }

    /// A guest with a volume of its own for each name, mounted in it on `/mnt/NAME`.
    func guest(_ name: String, volumes: [String], on host: KVMHost? = nil) throws -> Guest {
        let host = host ?? self.host
        let guest = Guest(host: host, name: name)
        for (index, volume) in volumes.enumerated() {
            let letter = String(UnicodeScalar(UInt8(97 + index)))
            guest.disks.append(
                try node.guestDisk(
                    volume: volume, target: "vd\(letter)", initiator: guest.initiator, host: host))
        }
        guests.append(guest)
        return guest
    }

    func tearDown() {
        for agent in agents { agent.killHard() }
        for host in hosts { host.stop() }
        for agent in agents { agent.stop() }
        node.stop()
    }

    // MARK: Snapshots

    func snapshot(_ volumes: [String], name: String, _ more: String...) throws -> SnapshotInfo {
        try snapshot(volumes, name: name, more)
    }

    func snapshot(_ volumes: [String], name: String, _ more: [String]) throws -> SnapshotInfo {
        let result = try node.cli(["snapshot", "create"] + volumes + ["--name", name, "-o", "json"] + more)
        guard result.status == 0 else { throw CommandFailed(description: "\(result)\n\(agent.log.suffix(3000))") }
        return try node.json(SnapshotInfo.self, "snapshot", "show", name)
    }

    /// One volume of a snapshot as an image file.
    func image(of snapshot: String, volume: String) throws -> String {
        let clone = "look-\(snapshot)-\(volume)"
        try node.must("clone", "create", snapshot, "--volume", volume, "--name", clone)
        let info = try node.json(VolumeInfo.self, "volume", "show", clone)
        let export: ExportInfo
        if let first = info.exports.first {
            export = first
        } else {
            throw CommandFailed(description: "\(clone) has no export")
        }
        try node.must("target", "allow", export.iqn, "--initiator", "iqn.2026-11.test:look")
        let path = "\(node.folder.path)/\(clone).img"
        try Shell.check([
            "qemu-img", "convert", "-O", "raw", "--image-opts",
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=\(node.iscsi),file.target=\(export.iqn),"
                + "file.lun=\(export.lun),file.initiator-name=iqn.2026-11.test:look", path,
        ])
        return path
    }
}

/// What an ext4 image says when nobody mounts it.
struct Ext4Image {
    let path: String

    /// Set in every copy that was taken of a mounted file system that was not frozen.
    func needsRecovery() throws -> Bool {
        try Shell.check(["dumpe2fs", "-h", path]).contains("needs_recovery")
    }

    /// As the file system is before its journal is replayed; nil when it is not there.
    func file(_ name: String) throws -> String? {
        let result = try Shell.run(["debugfs", "-R", "cat \(name)", path])
        return result.errors.contains("not found") ? nil : result.output
    }

    /// Like a host that mounts it.
    func replayJournal() throws {
        let result = try Shell.run(["e2fsck", "-p", path])
        guard result.status <= 1 else { throw CommandFailed(description: "\(result)") }
    }

    /// What the writer (scripts/guest/writer.c) had written.
    func numbers(_ name: String) throws -> [Int] {
        try (file(name) ?? "").split(separator: "\n").compactMap { Int($0) }
    }
}

extension Guest {
    /// What the guest agent says: `thawed` or `frozen`; nil where it does not answer.
    var freezeStatus: String? {
        let request = #"{"execute":"guest-fsfreeze-status"}"#
        guard let answer = try? host.virshResult("qemu-agent-command", name, request), answer.status == 0,
            let object = try? JSONSerialization.jsonObject(with: Data(answer.output.utf8)) as? [String: Any]
        else { return nil }
        return object["return"] as? String
    }

    /// Neither frozen nor suspended, within `seconds`.
    func isRunningFreely(withinSeconds seconds: Double) -> Bool {
        Shell.wait(upToSeconds: seconds) { state == "running" && freezeStatus == "thawed" }
    }

    /// The writer goes on.
    func writerGoesOn() throws -> Bool {
        let before = try written()
        return Shell.wait { ((try? written()) ?? 0) > before }
    }
}
