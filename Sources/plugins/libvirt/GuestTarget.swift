import Glibc
import PluginKit
import Synchronization

/// A guest that is to be brought to rest: found, and asked whether it can be.
final class GuestTarget: Sendable {
    let resource: String
    let label: String
    let uri: String
    let uuid: String
    let name: String
    /// Nil when it does not run: then its disks are at rest.
    let runID: Int?
    let own: LibvirtConfiguration.Guest
    /// The disks that lie on volumes, as the guest's definition names them.
    let disks: [String]
    /// All of its disks: none of them may be touched by a memory image.
    let allDisks: [String]
    let artifacts: [String: String]
    let memoryDirectory: String?
    private let configuration: LibvirtConfiguration
    private let connected: Mutex<Guest>
    private let watched = Mutex(Watched())

    /// What libvirt tells of the guest; kept until somebody wants to hear it.
    private struct Watched {
        var watch: LifecycleWatch?
        /// Which of the watches, one after another, it is.
        var number = 0
        var events: [LifecycleEvent] = []
        var onEvent: (@Sendable (LifecycleEvent) -> Void)?
    }

    private init(
        _ resource: PluginResource, _ guest: Guest, _ definition: GuestDefinition, _ own: LibvirtConfiguration.Guest,
        _ artifacts: [String: String], _ configuration: LibvirtConfiguration
    ) {
        self.resource = resource.id
        self.own = own
        self.artifacts = artifacts
        self.configuration = configuration
        label = resource.label
        uri = guest.hypervisor.uri
        uuid = definition.uuid
        name = definition.name
        runID = guest.runID
        disks = definition.disks.filter { $0.kind == .disk || $0.kind == .lun }.map(\.target)
            .filter { resource.details["disk.\($0)"] != nil }
        allDisks = definition.disks.filter { $0.kind != .hostdev && $0.source != nil }.map(\.target)
        memoryDirectory = resource.details["memoryFileSystem"] == nil ? nil : configuration.memoryDirectory
        connected = Mutex(guest)
    }

    /// Looks at the guest and changes nothing.
    ///
    /// - Parameter hypervisor: a connection, which several guests may share.
    static func find(
        _ resource: PluginResource, _ hypervisor: Hypervisor, _ configuration: LibvirtConfiguration
    ) throws(PluginFailure) -> GuestTarget {
        do {
            let guest = try hypervisor.guest(uuid: resource.id)
            let definition = try GuestDefinition(try guest.definition())
            let own = configuration.guest(name: definition.name, uuid: definition.uuid)
            let artifacts = try GuestArtifacts.collect(guest, definition, isLocal: hypervisor.isLocal)
            return GuestTarget(resource, guest, definition, own, artifacts, configuration)
        } catch let error as LibvirtError where error.isNoDomain {
            throw PluginFailure(
                .unknownResource, "There is no \(resource.label) at \(hypervisor.uri) any more",
                hint: "Was it deleted, or moved? Discover again")
        } catch {
            throw PluginFailure(.quiesceFailed, "\(resource.label) cannot be looked at: \(Discover.text(error))")
        }
    }

    /// Where the resource's guest is: as discovered.
    static func uri(_ resource: PluginResource) throws(PluginFailure) -> String {
        guard let uri = resource.details["uri"] else {
            throw PluginFailure(.unknownResource, "\(resource.id) is no guest that this plug-in found")
        }
        return uri
    }

    func record(_ step: GuestRecord.Step, _ action: GuestRecord.Action, memoryFile: String? = nil) -> GuestRecord {
        GuestRecord(
            step: step, action: action, uuid: uuid, name: name, uri: uri, runID: runID ?? -1, memoryFile: memoryFile)
    }

    /// Calls libvirt; over a new connection where the old one broke, as libvirt's daemon may be started again while
    /// guests run on.
    func call<Value>(
        until deadline: MonotonicInstant, _ body: (Guest) throws(LibvirtError) -> Value
    ) throws(LibvirtError) -> Value {
        while true {
            let guest = connected.withLock { $0 }
            do throws(LibvirtError) {
                return try body(guest)
            } catch {
                guard error.isOfConnection, deadline > .now else { throw error }
                usleep(50_000)
                reconnect()
            }
        }
    }

    private func reconnect() {
        var once = configuration
        once.retryCount = 1
        guard let hypervisor = try? Hypervisor.open(uri, once), let guest = try? hypervisor.guest(uuid: uuid) else {
            return
        }
        connected.withLock { $0 = guest }
        if watched.withLock({ $0.watch != nil }) { startWatching() }
    }

    /// Whether the guest is the one, in the same run, that was found.
    func isSameRun(until deadline: MonotonicInstant) throws(LibvirtError) -> Bool {
        try call(until: deadline) { guest throws(LibvirtError) in
            // The identifier of the handle is that of its look-up: ask anew.
            try guest.hypervisor.guest(uuid: uuid).runID == runID
        }
    }

    /// Before it comes to rest: then it is quiet for one call of libvirt less. Called again, it forgets what happened.
    func startWatching() {
        let number = watched.withLock { watched in
            watched.number += 1
            watched.events = []
            return watched.number
        }
        let watch = LifecycleWatch(connected.withLock { $0 }) { [weak self] event in self?.tell(event, number) }
        let former = watched.withLock { watched in
            defer { watched.watch = watch }
            return watched.watch
        }
        former?.stop()
    }

    private func tell(_ event: LifecycleEvent, _ number: Int) {
        let onEvent: (@Sendable (LifecycleEvent) -> Void)? = watched.withLock { watched in
            guard number == watched.number else { return nil }
            if watched.onEvent == nil { watched.events.append(event) }
            return watched.onEvent
        }
        onEvent?(event)
    }

    /// - Parameter onEvent: called with all that happened since `startWatching`, and with what happens from now on.
    func watch(_ onEvent: @escaping @Sendable (LifecycleEvent) -> Void) {
        let events = watched.withLock { watched in
            watched.onEvent = onEvent
            defer { watched.events = [] }
            return watched.events
        }
        for event in events { onEvent(event) }
    }

    func stopWatching() {
        let watch = watched.withLock { watched in
            defer { watched.watch = nil }
            return watched.watch
        }
        watch?.stop()
    }
}

/// Connections for a round: libvirt's daemon works on five requests of one connection at a time, so that many guests on
/// one connection would wait for each other while they are quiet.
enum ConnectionPool {
    static let guestsPerConnection = 4

    static func open(
        _ resources: [PluginResource], _ configuration: LibvirtConfiguration, lease: HoldLease
    ) async throws(PluginFailure) -> [(resource: PluginResource, hypervisor: Hypervisor)] {
        var groups: [(uri: String, resources: [PluginResource])] = []
        for resource in resources {
            let uri = try GuestTarget.uri(resource)
            let open = groups.lastIndex { $0.uri == uri && $0.resources.count < guestsPerConnection }
            if let open {
                groups[open].resources.append(resource)
            } else {
                groups.append((uri, [resource]))
            }
        }
        typealias Opened = Result<(PluginResource, Hypervisor), PluginFailure>
        let opened = await withTaskGroup(of: [Opened].self) { tasks in
            for group in groups {
                tasks.addTask {
                    await OwnThread.run {
                        do throws(PluginFailure) {
                            let hypervisor = try Hypervisor.open(group.uri, configuration) { lease.isWanted }
                            return group.resources.map { .success(($0, hypervisor)) }
                        } catch {
                            return [.failure(error)]
                        }
                    }
                }
            }
            return await tasks.reduce(into: [Opened]()) { $0 += $1 }
        }
        var pairs: [(resource: PluginResource, hypervisor: Hypervisor)] = []
        for result in opened { pairs.append(try result.get()) }
        return pairs
    }
}
