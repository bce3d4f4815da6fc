import PluginKit

/// Finds out what a restore of one guest would have to do with, and changes nothing.
struct Survey {
    var call: RestoreCall
    var parameters: ResourceRestoreParameters
    var configuration: LibvirtConfiguration

    /// The hypervisor that has the guest, or had it.
    static func hypervisor(
        _ call: RestoreCall, _ configuration: LibvirtConfiguration
    ) throws(PluginFailure) -> (hypervisor: Hypervisor, guest: Guest?) {
        let kept = call.artifacts["uri"]
        var first: Hypervisor?
        // Where it was first; then anywhere.
        let uris = [kept].compactMap { $0 } + configuration.connections.filter { $0 != kept }
        var failure: PluginFailure?
        for uri in uris {
            do throws(PluginFailure) {
                let hypervisor = try Hypervisor.open(uri, configuration)
                if let guest = hypervisor.find(uuid: call.guest) { return (hypervisor, guest) }
                first = first ?? hypervisor
            } catch {
                failure = failure ?? error
            }
        }
        if let first { return (first, nil) }
        throw failure ?? PluginFailure(.badConfiguration, "No hypervisor is configured")
    }

    func run() throws(PluginFailure) -> RestoreSurvey {
        let (hypervisor, guest) = try Self.hypervisor(call, configuration)
        var warnings: [String] = []
        let text = try Self.definition(call, guest)
        let definition = try GuestDefinition(text)
        if let omitted = call.artifacts["omitted"] {
            warnings.append("Not kept with the snapshot: \(omitted.split(separator: "\n").joined(separator: ", "))")
        }
        let placer = DiskPlacer(
            DiscoverParameters(
                devices: parameters.devices, resources: parameters.resources.map(Self.plainFileSystem), config: nil,
                volumes: parameters.volumes),
            isLocal: hypervisor.isLocal, storagePath: { hypervisor.storagePath(pool: $0, volume: $1) })
        let disks = definition.disks.filter { $0.kind != .cdrom && $0.kind != .floppy }
            .map { Self.disk($0, placer, hypervisor) }
        var memory: RestoreSurvey.Memory?
        if let path = call.artifacts["memoryFile"] {
            if let place = Self.place(path, placer) {
                memory = RestoreSurvey.Memory(
                    volumes: place.fileSystem.volumes, relativePath: place.relativePath, path: path)
            } else {
                warnings.append("The file system that the memory image \(path) was on is not mounted here")
            }
        }
        let name = call.beside?.name ?? definition.name
        let namesake: Guest?
        do throws(LibvirtError) { namesake = try hypervisor.find(name: name) } catch {
            throw PluginFailure(.operatingSystem, "libvirt does not answer: \(error.message)")
        }
        let isTaken = namesake.map { call.beside != nil || $0.uuid != call.guest.lowercased() } ?? false
        if let guest, guest.hasSavedState {
            warnings.append("\(definition.name) has a saved state (virsh managedsave), which does not fit other disks")
        }
        return RestoreSurvey(
            name: definition.name, uuid: definition.uuid, uri: hypervisor.uri,
            state: guest.map { (try? $0.state().state.rawValue) ?? "other" } ?? "absent", nameIsTaken: isTaken,
            hasKeptDefinition: call.artifacts["domainXML"] != nil, disks: disks, memory: memory, warnings: warnings)
    }

    /// The agent has set apart the file systems beneath guests: to find what lies on them they are as any other.
    private static func plainFileSystem(_ resource: PluginResource) -> PluginResource {
        var resource = resource
        if resource.layer == .hostFileSystem { resource.layer = .fileSystem }
        return resource
    }

    /// The snapshot's definition, or where none was kept, the guest's own.
    static func definition(_ call: RestoreCall, _ guest: Guest?) throws(PluginFailure) -> String {
        if let kept = call.artifacts["domainXML"] { return kept }
        guard let guest else {
            throw PluginFailure(
                .unknownResource,
                "The guest \(call.guest) does not exist, and no definition was kept with the snapshot",
                hint: "Only a snapshot whose saga asked the agents keeps definitions; define the guest by hand first")
        }
        do throws(LibvirtError) {
            return try guest.definition(inactive: guest.isPersistent)
        } catch {
            throw PluginFailure(.operatingSystem, "The guest's definition cannot be read: \(error.message)")
        }
    }

    private static func disk(
        _ disk: GuestDisk, _ placer: DiskPlacer, _ hypervisor: Hypervisor
    ) -> RestoreSurvey.Disk {
        let placement = placer.place(disk)
        var found = RestoreSurvey.Disk(
            target: disk.target, way: nil, volumes: placement.volumes.sorted(), source: disk.source?.text ?? "",
            format: disk.format, isWhole: true, note: placement.outside)
        var path: String?
        switch disk.source {
        case .file(let file)?: path = file
        case .storagePool(let pool, let volume)?: path = hypervisor.storagePath(pool: pool, volume: volume)
        default: break
        }
        switch placement.way {
        case .iscsi: found.way = "network"
        case .block:
            found.way = "block"
            if case .block(let device)? = disk.source { found.isWhole = placer.isWhole(device) }
        case .file, nil:
            // An image that was deleted is nowhere; the directory that it lay in may be.
            guard hypervisor.isLocal, let path, let place = place(path, placer) else { return found }
            found.way = "file"
            found.volumes = place.fileSystem.volumes.sorted()
            found.fileSystem = place.fileSystem.id
            found.relativePath = place.relativePath
            found.path = path
            if placement.way == nil { found.note = "\(path) is gone" }
        }
        if disk.kind == .hostdev { found.isWhole = false }
        return found
    }

    private static func place(
        _ path: String, _ placer: DiskPlacer
    ) -> (fileSystem: PluginResource, relativePath: String)? {
        guard let slash = path.lastIndex(of: "/") else { return nil }
        let parent = slash == path.startIndex ? "/" : String(path[..<slash])
        let name = path[path.index(after: slash)...]
        guard let fileSystem = placer.fileSystem(of: parent), let resolved = resolvedPath(parent),
            let mount = MountTable.current().mount(containing: resolved)
        else { return nil }
        // Below the mount, and below what of the file system is mounted there.
        let below = resolved.dropFirst(mount.mountPoint == "/" ? 0 : mount.mountPoint.utf8.count)
        let root = mount.root == "/" ? "" : mount.root
        let relative = (root + below + "/" + name).drop { $0 == "/" }
        return (fileSystem, String(relative))
    }
}

extension DiskPlacer {
    /// False for partitions, logical volumes and whatever else is a part of a volume, or built on several.
    func isWhole(_ path: String) -> Bool {
        guard let number = BlockTopology.number(ofPath: path) else { return false }
        let topology = BlockTopology()
        let name = topology.name(number)
        if fileStatus("\(topology.sysfs)/class/block/\(name)/partition") != nil { return false }
        guard name.hasPrefix("dm-") else { return !name.hasPrefix("md") }
        return readText("\(topology.sysfs)/class/block/\(name)/dm/uuid")?.hasPrefix("mpath-") ?? false
    }
}
