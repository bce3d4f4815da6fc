// What the node says to an agent: HTTPS on TCP 11169, mutual TLS, JSON.
//
//   GET  /v1/status             AgentStatus
//   POST /v1/discover           DiscoverRequest  -> DiscoverResponse
//   POST /v1/preflight          PreflightRequest -> PreflightResponse
//   POST /v1/holds              HoldRequest      -> HoldResponse      quiesces one layer
//   POST /v1/holds/{id}/renew   RenewRequest     -> RenewResponse
//   POST /v1/holds/{id}/release                  -> ReleaseResponse   unquiesces
//   POST /v1/thaw               ThawRequest      -> ThawResponse      releases everything, or all holds of a saga
//   POST /v1/restore/prepare    RestoreRequest   -> RestoreResponse
//   POST /v1/restore/finish     RestoreRequest   -> RestoreResponse
//   POST /v1/identity/request                    -> IdentityRequest   a key of its own, and the request for it
//   POST /v1/identity/install   IdentityInstall  -> IdentityState     the certificate, shown from then on
//   POST /v1/identity/confirm   IdentityState    -> IdentityState     it has been seen: the one before is forgotten

/// The layers in the order in which they are quiesced; released in reverse.
public enum ProtectionLayer: String, Codable, Sendable, CaseIterable, Comparable {
    case application
    case fileSystem
    case machine
    /// A file system of the host with the disks of machines on it.
    case hostFileSystem

    public var order: Int {
        switch self {
        case .application: 0
        case .fileSystem: 1
        case .machine: 2
        case .hostFileSystem: 3
        }
    }

    public static func < (left: ProtectionLayer, right: ProtectionLayer) -> Bool { left.order < right.order }
}

public struct PluginInfo: Codable, Sendable, Equatable {
    public var name: String
    public var version: String
    public var layer: ProtectionLayer

    public init(name: String, version: String, layer: ProtectionLayer) {
        self.name = name
        self.version = version
        self.layer = layer
    }
}

public struct AgentStatus: Codable, Sendable, Equatable {
    public var name: String
    public var version: String
    public var nodeID: String
    public var plugins: [PluginInfo]
    /// Holds alive now.
    public var holds: [HoldStatus]
    public var uptimeSeconds: Double
    /// Another number than before says that a discovery may find something else than before. Nil from an agent that
    /// does not watch.
    public var changes: Int?
    /// Of the certificate that it shows now; nil from agents that cannot renew it.
    public var identity: IdentityState?

    public init(
        name: String, version: String, nodeID: String, plugins: [PluginInfo], holds: [HoldStatus],
        uptimeSeconds: Double, changes: Int? = nil, identity: IdentityState? = nil
    ) {
        self.changes = changes
        self.name = name
        self.version = version
        self.nodeID = nodeID
        self.plugins = plugins
        self.holds = holds
        self.uptimeSeconds = uptimeSeconds
        self.identity = identity
    }
}

public struct HoldStatus: Codable, Sendable, Equatable {
    public var holdID: String
    public var sagaID: String
    public var plugin: String
    public var resources: [String]
    public var remainingLeaseSeconds: Double

    public init(
        holdID: String, sagaID: String, plugin: String, resources: [String], remainingLeaseSeconds: Double
    ) {
        self.holdID = holdID
        self.sagaID = sagaID
        self.plugin = plugin
        self.resources = resources
        self.remainingLeaseSeconds = remainingLeaseSeconds
    }
}

/// A volume as an agent can recognise it among its block devices.
public struct VolumeReference: Codable, Sendable, Equatable {
    public var name: String
    /// 32 hexadecimal digits, lower case.
    public var naa: String
    /// The targets that the node exports it by: for initiators that the host's kernel knows nothing of, such as
    /// QEMU's own. Nil where they are not known.
    public var exports: [ExportReference]?
    /// The disks of the guest that the agent runs in which lie on this volume. Nil for an agent that runs in none.
    public var guestDisks: [GuestDiskReference]?

    public init(
        name: String, naa: String, exports: [ExportReference]? = nil, guestDisks: [GuestDiskReference]? = nil
    ) {
        self.guestDisks = guestDisks
        self.name = name
        self.naa = naa
        self.exports = exports
    }
}

/// A disk of a guest, by what the guest itself sees of it. One of `serial` and `wwn` is there.
public struct GuestDiskReference: Codable, Sendable, Hashable {
    /// UUID of the guest, lower case.
    public var guest: String
    /// How its definition calls it, e.g. `vda`; in the guest it may have another name.
    public var target: String
    public var serial: String?
    /// 16 hexadecimal digits, lower case.
    public var wwn: String?

    public init(guest: String, target: String, serial: String?, wwn: String?) {
        self.guest = guest
        self.target = target
        self.serial = serial
        self.wwn = wwn
    }
}

/// A logical unit of a target.
public struct ExportReference: Codable, Sendable, Equatable {
    /// The target's iSCSI name.
    public var target: String
    public var lun: Int

    public init(target: String, lun: Int) {
        self.target = target
        self.lun = lun
    }
}

public struct DiscoverRequest: Codable, Sendable, Equatable {
    public var volumes: [VolumeReference]

    public init(volumes: [VolumeReference]) { self.volumes = volumes }
}

public struct DiscoverResponse: Codable, Sendable, Equatable {
    public var devices: [DeviceInfo]
    public var resources: [ResourceInfo]
    /// What a person should know.
    public var warnings: [String]
    /// What could not be looked at. Nil from an agent that does not tell.
    public var unseen: [UnseenInfo]?
    /// UUID of this machine as its firmware tells it, lower case: a guest has the one of its definition.
    public var machine: String?

    public init(
        devices: [DeviceInfo], resources: [ResourceInfo], warnings: [String], unseen: [UnseenInfo]? = nil,
        machine: String? = nil
    ) {
        self.unseen = unseen
        self.machine = machine
        self.devices = devices
        self.resources = resources
        self.warnings = warnings
    }
}

/// Something on a host that could not be looked at: what lies there on volumes is not known.
public struct UnseenInfo: Codable, Sendable, Equatable {
    /// Which volumes it may concern.
    public enum Scope: String, Codable, Sendable {
        /// `volumes`, and no others.
        case named
        /// `volumes`, and those that the host is known to use.
        case known
        /// The same; all there are, where nothing is known of the host.
        case any
    }

    public var plugin: String
    /// Nil where it is not known.
    public var layer: ProtectionLayer?
    /// What could not be looked at, why, and what to do about it.
    public var reason: String
    public var scope: Scope
    public var volumes: [String]

    public init(plugin: String, layer: ProtectionLayer?, reason: String, scope: Scope, volumes: [String] = []) {
        self.plugin = plugin
        self.layer = layer
        self.reason = reason
        self.scope = scope
        self.volumes = volumes
    }
}

/// A block device of the host that is one of our volumes.
public struct DeviceInfo: Codable, Sendable, Equatable {
    /// Name of the volume.
    public var volume: String
    public var naa: String
    /// E.g. `/dev/sdb`, `/dev/loop3`.
    public var path: String
    /// The iSCSI name under which this host reaches it; nil where it cannot be told.
    public var initiator: String?
    /// UUID of the guest that the agent runs in, where the device is a disk that the guest's host said lies on the
    /// volume: all of it, or in an image file.
    public var guest: String?

    public init(volume: String, naa: String, path: String, initiator: String? = nil, guest: String? = nil) {
        self.guest = guest
        self.volume = volume
        self.naa = naa
        self.path = path
        self.initiator = initiator
    }
}

/// Something that a plug-in can bring to rest.
public struct ResourceInfo: Codable, Sendable, Equatable {
    public var plugin: String
    public var layer: ProtectionLayer
    /// Unique within its plug-in on its host, and stable.
    public var id: String
    /// For people, e.g. `ext4 on /srv/db`.
    public var label: String
    /// Names of the volumes it lies on.
    public var volumes: [String]
    public var details: [String: String]
    /// What its quiesce makes of the data on its volumes, where its layer alone does not say: of a machine, for one.
    public var level: Consistency?

    public init(
        plugin: String, layer: ProtectionLayer, id: String, label: String, volumes: [String],
        details: [String: String] = [:], level: Consistency? = nil
    ) {
        self.level = level
        self.plugin = plugin
        self.layer = layer
        self.id = id
        self.label = label
        self.volumes = volumes
        self.details = details
    }
}

public struct PreflightRequest: Codable, Sendable, Equatable {
    public var resources: [ResourceInfo]

    public init(resources: [ResourceInfo]) { self.resources = resources }
}

public struct PreflightResponse: Codable, Sendable, Equatable {
    public var findings: [FindingInfo]

    public init(findings: [FindingInfo]) { self.findings = findings }
}

public struct FindingInfo: Codable, Sendable, Equatable {
    public enum Severity: String, Codable, Sendable { case note, warning, error }

    public var severity: Severity
    public var plugin: String
    public var resource: String?
    public var message: String
    public var hint: String?

    public init(severity: Severity, plugin: String, resource: String?, message: String, hint: String? = nil) {
        self.severity = severity
        self.plugin = plugin
        self.resource = resource
        self.message = message
        self.hint = hint
    }
}

/// Brings resources of one plug-in to rest. Idempotent by `holdID`.
public struct HoldRequest: Codable, Sendable, Equatable {
    public var holdID: String
    public var sagaID: String
    public var plugin: String
    public var resources: [ResourceInfo]
    /// From the moment the agent takes the request, on its own monotonic clock; then it releases by itself.
    public var leaseSeconds: Double
    /// True where the snapshot's policy allows a lower level: a plug-in may then hold a resource in a lesser way.
    public var allowsLower: Bool?

    public init(
        holdID: String, sagaID: String, plugin: String, resources: [ResourceInfo], leaseSeconds: Double,
        allowsLower: Bool? = nil
    ) {
        self.allowsLower = allowsLower
        self.holdID = holdID
        self.sagaID = sagaID
        self.plugin = plugin
        self.resources = resources
        self.leaseSeconds = leaseSeconds
    }
}

/// All members are held, or the request failed and none is.
public struct HoldResponse: Codable, Sendable, Equatable {
    public var holdID: String
    public var members: [HeldMember]
    public var remainingLeaseSeconds: Double

    public init(holdID: String, members: [HeldMember], remainingLeaseSeconds: Double) {
        self.holdID = holdID
        self.members = members
        self.remainingLeaseSeconds = remainingLeaseSeconds
    }
}

public struct HeldMember: Codable, Sendable, Equatable {
    public var resource: String
    public var quiesceSeconds: Double

    public init(resource: String, quiesceSeconds: Double) {
        self.resource = resource
        self.quiesceSeconds = quiesceSeconds
    }
}

public struct RenewRequest: Codable, Sendable, Equatable {
    public var leaseSeconds: Double

    public init(leaseSeconds: Double) { self.leaseSeconds = leaseSeconds }
}

public struct RenewResponse: Codable, Sendable, Equatable {
    public var remainingLeaseSeconds: Double

    public init(remainingLeaseSeconds: Double) { self.remainingLeaseSeconds = remainingLeaseSeconds }
}

public struct ReleaseResponse: Codable, Sendable, Equatable {
    public var holdID: String
    public var members: [ReleasedMember]

    public init(holdID: String, members: [ReleasedMember]) {
        self.holdID = holdID
        self.members = members
    }
}

public struct ReleasedMember: Codable, Sendable, Equatable {
    public var resource: String
    /// The hold was never lost until this release, as the plug-in proved it.
    public var stillHeld: Bool
    /// From quiesced to released, on the agent's monotonic clock.
    public var quietSeconds: Double
    public var failure: String?
    public var artifacts: [String: String]
    /// What the quiesce made of the data, where that is less than the resource's `level`.
    public var level: Consistency?

    public init(
        resource: String, stillHeld: Bool, quietSeconds: Double, failure: String?, artifacts: [String: String],
        level: Consistency? = nil
    ) {
        self.level = level
        self.resource = resource
        self.stillHeld = stillHeld
        self.quietSeconds = quietSeconds
        self.failure = failure
        self.artifacts = artifacts
    }
}

public struct ThawRequest: Codable, Sendable, Equatable {
    /// Nil releases everything.
    public var sagaID: String?

    public init(sagaID: String? = nil) { self.sagaID = sagaID }
}

public struct ThawResponse: Codable, Sendable, Equatable {
    /// Resources that were held and are released now.
    public var released: [String]
    public var failures: [String]

    public init(released: [String], failures: [String]) {
        self.released = released
        self.failures = failures
    }
}

/// Stops and detaches (prepare), or re-attaches and starts (finish), what lies on the volumes.
public struct RestoreRequest: Codable, Sendable, Equatable {
    public var restoreID: String
    public var volumes: [VolumeReference]
    /// Artifacts of the snapshot's members, by `plugin/resource`, for finish.
    public var artifacts: [String: [String: String]]

    public init(restoreID: String, volumes: [VolumeReference], artifacts: [String: [String: String]] = [:]) {
        self.restoreID = restoreID
        self.volumes = volumes
        self.artifacts = artifacts
    }
}

public struct RestoreResponse: Codable, Sendable, Equatable {
    /// One sentence for each thing done.
    public var steps: [String]

    public init(steps: [String]) { self.steps = steps }
}
