import CLinux
import Glibc
import PluginKit

/// Finds the mounted file systems that lie on the volumes' devices.
struct Discovery {
    var devices: [PluginDevice]
    var topology = BlockTopology()
    var mounts = MountTable.current()

    func run() -> DiscoverResult {
        var warnings: [String] = []
        /// What stands on the volumes, and on which of them.
        var volumes: [DeviceNumber: Set<String>] = [:]
        var own: Set<DeviceNumber> = []
        for device in devices {
            guard let number = BlockTopology.number(ofPath: device.path) else {
                warnings.append("\(device.path) of volume \(device.volume) is not a block device")
                continue
            }
            own.insert(number)
            for higher in topology.above(number) { volumes[higher, default: []].insert(device.volume) }
        }
        var resources: [PluginResource] = []
        for (superblock, entries) in Dictionary(grouping: mounts.entries, by: \.superblock) {
            let lower = lowerDevices(superblock, entries)
            let names = Set(lower.flatMap { volumes[$0] ?? [] })
            guard !names.isEmpty else { continue }
            guard let entry = Self.principal(entries.filter(isVisible)) else {
                warnings.append("the file system on \(names.sorted().joined(separator: ", ")) is mounted out of sight")
                continue
            }
            let outside = lower.flatMap { topology.leaves($0) }.filter { leaf in
                !own.contains(leaf) && !topology.leavesOf(own).contains(leaf)
            }
            resources.append(resource(entry, entries, lower, names, outside))
        }
        return DiscoverResult(resources: resources.sorted { $0.id < $1.id }, warnings: warnings)
    }

    /// The block devices a file system says it is on: one, or several of a btrfs.
    private func lowerDevices(_ superblock: DeviceNumber, _ entries: [MountEntry]) -> Set<DeviceNumber> {
        guard superblock.major == 0 else { return [superblock] }
        guard let entry = entries.first, entry.type == "btrfs",
            let number = BlockTopology.number(ofPath: entry.source)
        else { return [] }
        return topology.btrfs(number)?.devices ?? [number]
    }

    /// Not covered by another mount over it.
    private func isVisible(_ entry: MountEntry) -> Bool { mounts.mount(at: entry.mountPoint)?.id == entry.id }

    /// Of several mounts of one file system, the one that shows all of it; then the one with the shortest path.
    static func principal(_ entries: [MountEntry]) -> MountEntry? {
        entries.min {
            ($0.root != "/" ? 1 : 0, $0.mountPoint.utf8.count, $0.mountPoint)
                < ($1.root != "/" ? 1 : 0, $1.mountPoint.utf8.count, $1.mountPoint)
        }
    }

    private func resource(
        _ entry: MountEntry, _ entries: [MountEntry], _ lower: Set<DeviceNumber>, _ volumes: Set<String>,
        _ outside: [DeviceNumber]
    ) -> PluginResource {
        var details = [
            "device": entry.source, "fstype": entry.type, "superblock": "\(entry.superblock)",
            "options": (entry.options + entry.superOptions.filter { !entry.options.contains($0) })
                .joined(separator: ","),
        ]
        if let identity = FileSystemIdentity(path: entry.mountPoint) {
            details["fsid"] = identity.fsid
            details["uuid"] = identity.uuid ?? lower.first.flatMap { topology.btrfs($0)?.uuid }
        }
        if entry.isReadOnly { details["readOnly"] = "true" }
        let also = entries.filter { $0.id != entry.id }.map(\.mountPoint)
        if !also.isEmpty { details["alsoMountedAt"] = also.joined(separator: "\n") }
        if lower.count > 1 { details["devices"] = lower.map { topology.name($0) }.sorted().joined(separator: " ") }
        if !outside.isEmpty {
            details["otherDevices"] = Set(outside).map { topology.name($0) }.sorted().joined(separator: " ")
        }
        return PluginResource(
            id: entry.mountPoint, label: "\(entry.type) on \(entry.mountPoint)", layer: .fileSystem,
            volumes: volumes.sorted(), details: details)
    }
}

/// What tells a file system from another that got its number after it.
struct FileSystemIdentity {
    var fsid: String
    var uuid: String?

    init?(path: String) {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        self.init(descriptor: descriptor)
    }

    init?(descriptor: Int32) {
        var fsid: UInt64 = 0
        var type: UInt64 = 0
        guard clinux_filesystem_id(descriptor, &fsid, &type) == 0 else { return nil }
        let digits = String(fsid, radix: 16)
        self.fsid = String(repeating: "0", count: 16 - digits.count) + digits
        var bytes = [UInt8](repeating: 0, count: 16)
        guard clinux_filesystem_uuid(descriptor, &bytes) == 16 else { return }
        var text = ""
        for (index, byte) in bytes.enumerated() {
            if [4, 6, 8, 10].contains(index) { text += "-" }
            text += (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }
        uuid = text
    }
}
