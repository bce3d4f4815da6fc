// What the node says to an agent to restore one guest, and to the plug-in `libvirt` behind it:
//
//   POST /v1/guests/restore   GuestRestoreAgentRequest -> GuestSurvey (action survey), GuestRestoreAnswer (all others)
//
// The plug-in's side of these types is in Sources/plugins/libvirt/RestoreMessages.swift.

/// A step with the node's volumes, so that the agent knows what the guest's disks lie on.
public struct GuestRestoreAgentRequest: Codable, Sendable, Equatable {
    public var call: GuestRestoreCall
    public var volumes: [VolumeReference]

    public init(call: GuestRestoreCall, volumes: [VolumeReference]) {
        self.call = call
        self.volumes = volumes
    }
}

/// One step of the restore of one guest.
public struct GuestRestoreCall: Codable, Sendable, Equatable {
    public enum Action: String, Codable, Sendable {
        /// Looks, and changes nothing.
        case survey
        /// Shuts the guest down, and says how it was before.
        case stop
        /// Brings files and definition back, and starts the guest. What fails half way is taken back.
        case apply
        /// Ends a step that is under way, and turns off what an unfinished restore has started.
        case halt
        /// Takes an `apply` back, and brings back what `stop` found.
        case undo
    }

    public var action: Action
    public var restoreID: String
    /// The guest's UUID at the time of the snapshot.
    public var guest: String
    /// As they were kept with the snapshot.
    public var artifacts: [String: String]
    public var beside: GuestIdentity?
    /// By the disk's target (`vda`).
    public var disks: [String: GuestDiskRestore]?
    public var sources: [GuestRestoreSource]?
    public var memory: GuestMemorySource?
    public var start: Bool?
    /// What `stop` and `apply` answered.
    public var state: [String: String]?

    public init(action: Action, restoreID: String, guest: String, artifacts: [String: String]) {
        self.action = action
        self.restoreID = restoreID
        self.guest = guest
        self.artifacts = artifacts
    }
}

/// Of a guest that is restored beside the original.
public struct GuestIdentity: Codable, Sendable, Equatable {
    public var name: String
    public var uuid: String

    public init(name: String, uuid: String) {
        self.name = name
        self.uuid = uuid
    }
}

/// What happens to one disk.
public struct GuestDiskRestore: Codable, Sendable, Equatable {
    /// `keep` (its volume was reverted), `attach` (a clone over iSCSI), `copy` (a file out of a source).
    public var way: String
    public var export: GuestExport?
    public var source: String?
    public var path: String?
    public var destination: String?

    public init(
        way: String, export: GuestExport? = nil, source: String? = nil, path: String? = nil,
        destination: String? = nil
    ) {
        self.way = way
        self.export = export
        self.source = source
        self.path = path
        self.destination = destination
    }
}

/// A clone with a file system that is read on the host for as long as an `apply` takes.
public struct GuestRestoreSource: Codable, Sendable, Equatable {
    public var name: String
    public var export: GuestExport

    public init(name: String, export: GuestExport) {
        self.name = name
        self.export = export
    }
}

/// Where a clone is reached, and with which credentials.
public struct GuestExport: Codable, Sendable, Equatable {
    /// `HOST:PORT`
    public var portal: String
    public var iqn: String
    public var lun: Int
    public var initiator: String
    public var user: String?
    public var secret: String?

    public init(
        portal: String, iqn: String, lun: Int, initiator: String, user: String? = nil, secret: String? = nil
    ) {
        self.portal = portal
        self.iqn = iqn
        self.lun = lun
        self.initiator = initiator
        self.user = user
        self.secret = secret
    }
}

/// The memory image of a guest, in a source's file system.
public struct GuestMemorySource: Codable, Sendable, Equatable {
    public var source: String
    public var path: String

    public init(source: String, path: String) {
        self.source = source
        self.path = path
    }
}

/// What an agent found of a guest that is to be restored.
public struct GuestSurvey: Codable, Sendable, Equatable {
    public struct Disk: Codable, Sendable, Equatable {
        public var target: String
        /// `network`, `block`, `file`; nil for what lies on no volume.
        public var way: String?
        public var volumes: [String]
        public var source: String
        public var format: String?
        /// For `file`: the mount point, the path within the file system, and the whole path.
        public var fileSystem: String?
        public var relativePath: String?
        public var path: String?
        /// The device is a whole volume, not a part of one or built on several.
        public var isWhole: Bool
        public var note: String?
    }

    public struct Memory: Codable, Sendable, Equatable {
        public var volumes: [String]
        public var relativePath: String
        public var path: String
    }

    public var name: String
    public var uuid: String
    public var uri: String
    /// `running`, `paused`, `off`, `absent`, `other`.
    public var state: String
    public var nameIsTaken: Bool
    public var hasKeptDefinition: Bool
    public var disks: [Disk]
    public var memory: Memory?
    public var warnings: [String]
}

public struct GuestRestoreAnswer: Codable, Sendable, Equatable {
    /// One sentence for each thing done.
    public var steps: [String]
    public var state: [String: String]

    public init(steps: [String], state: [String: String]) {
        self.steps = steps
        self.state = state
    }
}
