import Glibc
import PluginKit

/// The way in which a disk of a guest gets to a volume.
enum DiskWay: String, Sendable {
    /// QEMU's own iSCSI initiator.
    case iscsi
    /// A block device of the host, or what is built on it.
    case block
    /// An image file on a file system on the volume.
    case file
}

/// Where one disk of a guest lies.
struct DiskPlacement: Sendable, Equatable {
    var target: String
    var way: DiskWay?
    var volumes: Set<String> = []
    /// Ids of the file systems that image files lie on.
    var fileSystems: Set<String> = []
    /// The image and what it stands on, where it is one.
    var files: [String] = []
    /// Why the disk, or a part of it, is on no volume of ours.
    var outside: String?
}

/// Finds the volumes that disks lie on.
struct DiskPlacer {
    /// The node's exports by target and LUN.
    private var exports: [String: String] = [:]
    private var devices: [DeviceNumber: Set<String>] = [:]
    private var own: Set<DeviceNumber> = []
    private let fileSystems: [PluginResource]
    private let topology: BlockTopology
    private let mounts: MountTable
    /// A remote host's files and devices cannot be looked at from here.
    private let isLocal: Bool
    private let storagePath: (_ pool: String, _ volume: String) -> String?

    init(
        _ parameters: DiscoverParameters, isLocal: Bool, topology: BlockTopology = BlockTopology(),
        mounts: MountTable = .current(), storagePath: @escaping (String, String) -> String? = { _, _ in nil }
    ) {
        for volume in parameters.volumes ?? [] {
            for export in volume.exports { exports["\(export.target.lowercased())/\(export.lun)"] = volume.name }
        }
        for device in parameters.devices {
            guard let number = BlockTopology.number(ofPath: device.path) else { continue }
            own.insert(number)
            // From above and from below: a volume may itself be a path of a multipath device.
            for leaf in topology.leaves(number) { devices[leaf, default: []].insert(device.volume) }
        }
        fileSystems = parameters.resources.filter { $0.layer == .fileSystem }
        self.topology = topology
        self.mounts = mounts
        self.isLocal = isLocal
        self.storagePath = storagePath
    }

    func place(_ disk: GuestDisk) -> DiskPlacement {
        var placement = DiskPlacement(target: disk.target)
        guard let source = disk.source else {
            placement.outside = "it is empty"
            return placement
        }
        var chain = [source]
        if let backing = disk.backing {
            chain += backing
        } else if case .file(let path) = source, let format = disk.format, format != "raw", isLocal {
            // Without a format libvirt takes it for raw, and so must we: a guest writes what it likes into a raw image.
            switch BackingChain.read(path) {
            case .success(let lower): chain += lower
            case .failure(let failure): placement.outside = failure.message
            }
        }
        for (index, part) in chain.enumerated() {
            let found = place(part, &placement)
            if placement.way == nil { placement.way = found }
            // What a chain's lower images hold is as much the guest's data as the uppermost one.
            if found == nil, placement.outside == nil {
                placement.outside = "\(index == 0 ? "" : "its backing image ")\(part.text) is on no volume"
            }
        }
        return placement
    }

    private func place(_ source: DiskSource, _ placement: inout DiskPlacement) -> DiskWay? {
        switch source {
        case .iscsi(let target, let lun):
            guard let volume = exports["\(target)/\(lun)"] else { return nil }
            placement.volumes.insert(volume)
            return .iscsi
        case .block(let path): return isLocal ? block(BlockTopology.number(ofPath: path), path, &placement) : nil
        case .file(let path): return isLocal ? file(path, &placement) : nil
        case .storagePool(let pool, let volume):
            guard isLocal, let path = storagePath(pool, volume) else { return nil }
            return BlockTopology.number(ofPath: path) != nil
                ? place(.block(path: path), &placement) : place(.file(path: path), &placement)
        case .other(let text) where text.hasPrefix("scsi_device/") && isLocal:
            let base = "\(topology.sysfs)/class/\(text)/device/block"
            guard let name = directoryEntries(base).first else { return nil }
            return block(BlockTopology.number(ofPath: "/dev/\(name)"), name, &placement)
        case .network, .other: return nil
        }
    }

    private func block(_ number: DeviceNumber?, _ path: String, _ placement: inout DiskPlacement) -> DiskWay? {
        guard let number else { return nil }
        let leaves = topology.leaves(number)
        let volumes = leaves.reduce(into: Set<String>()) { $0.formUnion(devices[$1] ?? []) }
        guard !volumes.isEmpty else { return nil }
        placement.volumes.formUnion(volumes)
        let others = leaves.filter { devices[$0] == nil }
        if !others.isEmpty {
            let names = others.map { topology.name($0) }.sorted().joined(separator: ", ")
            placement.outside = "\(path) stands also on \(names), which is no volume"
        }
        return .block
    }

    private func file(_ path: String, _ placement: inout DiskPlacement) -> DiskWay? {
        guard let resolved = resolvedPath(path), let mount = mounts.mount(containing: resolved) else { return nil }
        guard let fileSystem = fileSystems.first(where: { isOf($0, mount) }) else { return nil }
        placement.volumes.formUnion(fileSystem.volumes)
        placement.fileSystems.insert(fileSystem.id)
        placement.files.append(resolved)
        if let others = fileSystem.details["otherDevices"] {
            placement.outside = "\(fileSystem.id) stands also on \(others), which is no volume"
        }
        return .file
    }

    /// The resource is named after one of the mounts of its file system; the path may go through another.
    private func isOf(_ resource: PluginResource, _ mount: MountEntry) -> Bool {
        resource.id == mount.mountPoint || resource.details["superblock"] == "\(mount.superblock)"
    }

    /// The file system and the volumes that a directory lies on.
    func fileSystem(of directory: String) -> PluginResource? {
        guard let resolved = resolvedPath(directory), let mount = mounts.mount(containing: resolved) else { return nil }
        return fileSystems.first { isOf($0, mount) }
    }
}
