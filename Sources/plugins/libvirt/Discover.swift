import Glibc
import PluginKit

/// Finds the guests whose disks lie on volumes.
struct Discover {
    var parameters: DiscoverParameters
    var configuration: LibvirtConfiguration

    /// A guest as a hypervisor has it, or as its definition lies in a file.
    struct Found: Sendable {
        var uri: String
        var definition: GuestDefinition
        /// `running`, `paused`, `off`, `other`; nil where libvirt does not answer.
        var state: Guest.State?
        /// Off, and not because it was shut down in order, as far as libvirt knows.
        var mayHaveCrashed = false
    }

    struct Answer: Sendable {
        var guests: [Found] = []
        var warnings: [String] = []
        var unseen: [PluginUnseen] = []
        /// Kept open for what is asked later.
        var hypervisor: Hypervisor?
    }

    func run() async -> DiscoverResult {
        let configuration = configuration
        let answers = await withTaskGroup(of: (Int, Answer).self) { group in
            for (index, uri) in configuration.connections.enumerated() {
                group.addTask { (index, await OwnThread.run { Self.ask(uri, configuration) }) }
            }
            return await group.reduce(into: [(Int, Answer)]()) { $0.append($1) }.sorted { $0.0 < $1.0 }.map(\.1)
        }
        var warnings = answers.flatMap(\.warnings)
        var resources: [String: PluginResource] = [:]
        for answer in answers {
            let placer = DiskPlacer(
                parameters, isLocal: answer.hypervisor?.isLocal ?? true,
                storagePath: { answer.hypervisor?.storagePath(pool: $0, volume: $1) })
            for guest in answer.guests {
                let own = configuration.guest(name: guest.definition.name, uuid: guest.definition.uuid)
                if own.ignore == true { continue }
                guard let resource = resource(guest, own, placer) else { continue }
                // A guest that moved is defined on two hosts, and runs on one.
                if resources[resource.id]?.details["state"] == "running" { continue }
                resources[resource.id] = resource
            }
        }
        let known = Set(answers.flatMap(\.guests).flatMap { [$0.definition.name, $0.definition.uuid] })
        for guest in configuration.guests ?? [] where guest.ignore != true {
            if !known.contains(guest.name) { warnings.append("there is no guest \(guest.name), which is configured") }
        }
        return DiscoverResult(
            resources: resources.values.sorted { $0.label < $1.label }, warnings: warnings,
            unseen: answers.flatMap(\.unseen))
    }

    /// All guests of one hypervisor; from its files where it does not answer.
    static func ask(_ uri: String, _ configuration: LibvirtConfiguration) -> Answer {
        var answer = Answer()
        // Asked first: that libvirt is not there would be found out only after all tries.
        if configuration.isDefault, LocalDaemon().isUnused, fromFiles(uri, configuration).isEmpty { return answer }
        do {
            let hypervisor = try Hypervisor.open(uri, configuration)
            answer.hypervisor = hypervisor
            for guest in try hypervisor.guests() {
                do {
                    let definition = try GuestDefinition(try guest.definition())
                    let state = try guest.state().state
                    let mayHaveCrashed = try state == .off && !guest.wasShutDown()
                    answer.guests.append(
                        Found(uri: uri, definition: definition, state: state, mayHaveCrashed: mayHaveCrashed))
                } catch {
                    // A guest that was undefined meanwhile is no guest.
                    if (error as? LibvirtError)?.isNoDomain == true { continue }
                    let reason = "guest \(guest.name) at \(uri) cannot be looked at: \(text(error))"
                    answer.warnings.append(reason)
                    answer.unseen.append(PluginUnseen(reason: reason))
                }
            }
        } catch {
            answer.hypervisor = nil
            answer.guests = fromFiles(uri, configuration)
            let files = answer.guests.isEmpty ? "" : "; \(answer.guests.count) guests are known from their files"
            answer.warnings = ["\(text(error))\(files)"]
            // A host without libvirt has none running; one that is told to ask a hypervisor may have any guests.
            if configuration.uris != nil, answer.guests.isEmpty {
                answer.unseen = [
                    PluginUnseen(
                        reason: "the guests at \(uri) are not known: \(text(error))",
                        hint: "Start its libvirt daemon, or remove it from `uris`")
                ]
            }
        }
        return answer
    }

    static func text(_ error: any Error) -> String {
        (error as? LibvirtError)?.message ?? (error as? PluginFailure)?.message ?? "\(error)"
    }

    /// What is defined, whether or not it runs: QEMU goes on without libvirt's daemon.
    private static func fromFiles(_ uri: String, _ configuration: LibvirtConfiguration) -> [Found] {
        let isDefault = uri.hasPrefix("qemu:///system")
        let directory = configuration.configDirectory ?? (isDefault ? LibvirtConfiguration.defaultConfigDirectory : nil)
        guard Hypervisor.isLocal(uri), let directory else { return [] }
        return directoryEntries(directory).filter { $0.hasSuffix(".xml") }.sorted().compactMap { name in
            guard let text = readText("\(directory)/\(name)"), let definition = try? GuestDefinition(text) else {
                return nil
            }
            return Found(uri: uri, definition: definition, state: nil)
        }
    }

    /// Nil for a guest that has nothing on any volume.
    private func resource(
        _ guest: Found, _ own: LibvirtConfiguration.Guest, _ placer: DiskPlacer
    ) -> PluginResource? {
        let definition = guest.definition
        var volumes: Set<String> = []
        var fileSystems: Set<String> = []
        var details: [String: String] = [:]
        var guestDisks: [String] = []
        for disk in definition.disks {
            if disk.kind == .cdrom || disk.kind == .floppy {
                if let source = disk.source {
                    details["leftAlone.\(disk.target)"] = "\(disk.kind.rawValue): \(source.text)"
                }
                continue
            }
            let placement = placer.place(disk)
            volumes.formUnion(placement.volumes)
            fileSystems.formUnion(placement.fileSystems)
            if let way = placement.way {
                details["disk.\(disk.target)"] =
                    [way.rawValue, placement.volumes.sorted().joined(separator: ","), disk.source?.text ?? ""]
                    .joined(separator: " ")
            }
            // What a guest is given as it is, it knows by its own identifier.
            if disk.kind == .disk, !placement.volumes.isEmpty {
                let parts = [
                    disk.target, disk.serial ?? "", disk.wwn ?? "", placement.volumes.sorted().joined(separator: ","),
                ]
                guestDisks.append(parts.joined(separator: "\t"))
            }
            if let outside = placement.outside { details["leftAlone.\(disk.target)"] = outside }
        }
        guard !volumes.isEmpty else { return nil }
        let mode = own.mode ?? .agent
        if mode == .memory, let directory = configuration.memoryDirectory,
            let fileSystem = placer.fileSystem(of: directory)
        {
            volumes.formUnion(fileSystem.volumes)
            fileSystems.insert(fileSystem.id)
            details["memoryFileSystem"] = fileSystem.id
        }
        details["name"] = definition.name
        details["uuid"] = definition.uuid
        details["machine"] = definition.uuid
        details["guestDisks"] = guestDisks.joined(separator: "\n")
        details["uri"] = guest.uri
        details["state"] = guest.state?.rawValue ?? "unknown"
        details["mode"] = mode.rawValue
        details["guestAgent"] = definition.agent.rawValue
        details["insideAgent"] = own.insideAgent
        if !fileSystems.isEmpty { details["fileSystems"] = fileSystems.sorted().joined(separator: "\n") }
        return PluginResource(
            id: definition.uuid, label: "guest \(definition.name)", layer: .machine, volumes: volumes.sorted(),
            details: details, level: guest.mayHaveCrashed ? .crash : Self.level(definition, own))
    }

    /// What bringing it to rest makes of its disks.
    static func level(_ definition: GuestDefinition, _ own: LibvirtConfiguration.Guest) -> PluginLevel? {
        // What the agent inside of it finds decides.
        if own.insideAgent != nil { return nil }
        switch own.mode ?? .agent {
        // In Windows a freeze goes through VSS and its writers.
        case .agent: return own.level ?? (definition.isWindows ? .application : .fileSystem)
        case .pause, .memory, .none: return .crash
        }
    }
}
