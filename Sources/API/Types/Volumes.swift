public import Foundation

/// A block device in the pool.
public struct VolumeInfo: Codable, Sendable, Equatable {
    public var id: String
    public var name: String
    public var sizeBytes: UInt64
    /// Bytes that the volume's head maps, shared with snapshots or not.
    public var mappedBytes: UInt64
    /// The NAA identifier that initiators see (SPC-4 7.8.6.6), 32 hexadecimal digits. A revert keeps it; a clone has
    /// its own.
    public var naa: String
    public var createdAt: Date
    public var exports: [ExportInfo]
    /// The snapshot it was cloned from; nil for a volume that is not a clone.
    public var cloneOf: String?
    /// Initiators with a session that reaches this volume now.
    public var initiators: [String]
    public var snapshotCount: Int
    /// Only in the answer for one volume, and not where the pool is read-only.
    public var space: VolumeSpaceInfo?
    /// What agents find on it: guests, file systems, applications. Only in the answer for one volume.
    public var uses: [VolumeUse]?

    public init(
        id: String, name: String, sizeBytes: UInt64, mappedBytes: UInt64, naa: String, createdAt: Date,
        exports: [ExportInfo], cloneOf: String?, initiators: [String], snapshotCount: Int,
        space: VolumeSpaceInfo? = nil
    ) {
        self.id = id
        self.name = name
        self.sizeBytes = sizeBytes
        self.mappedBytes = mappedBytes
        self.naa = naa
        self.createdAt = createdAt
        self.exports = exports
        self.cloneOf = cloneOf
        self.initiators = initiators
        self.snapshotCount = snapshotCount
        self.space = space
    }
}

/// Where a volume is reachable: the LUN it has inside a target.
public struct ExportInfo: Codable, Sendable, Equatable {
    public var iqn: String
    public var lun: Int
    /// `HOST:PORT` of the portals of this target.
    public var portals: [String]

    public init(iqn: String, lun: Int, portals: [String]) {
        self.iqn = iqn
        self.lun = lun
        self.portals = portals
    }
}

public struct VolumeCreateRequest: Codable, Sendable, Equatable {
    public var name: String
    /// A multiple of 4096, from 4 KiB to 64 TiB.
    public var sizeBytes: UInt64
    /// Also make a target of its own with the volume as LUN 0. Default true.
    public var export: Bool?

    public init(name: String, sizeBytes: UInt64, export: Bool? = nil) {
        self.name = name
        self.sizeBytes = sizeBytes
        self.export = export
    }
}

public struct VolumeResizeRequest: Codable, Sendable, Equatable {
    /// Larger than now; shrinking is refused.
    public var sizeBytes: UInt64

    public init(sizeBytes: UInt64) { self.sizeBytes = sizeBytes }
}

/// Puts volumes back to what a snapshot holds. The heads before it are kept as a snapshot of kind `beforeRevert`.
public struct RevertRequest: Codable, Sendable, Equatable {
    /// Names of volumes; all of them must be members of the snapshot.
    public var volumes: [String]
    /// Id or name of the snapshot; nil with `undo`.
    public var snapshot: String?
    /// Revert to the newest `beforeRevert` snapshot of the volumes.
    public var undo: Bool?
    /// Ask the agents to stop what uses the volumes before, and to bring it back after.
    public var drive: Bool?
    /// Say what would be done and do nothing.
    public var dryRun: Bool?

    public init(
        volumes: [String], snapshot: String?, undo: Bool? = nil, drive: Bool? = nil, dryRun: Bool? = nil
    ) {
        self.volumes = volumes
        self.snapshot = snapshot
        self.undo = undo
        self.drive = drive
        self.dryRun = dryRun
    }
}

/// What a revert did (or, with `dryRun`, would do).
public struct RevertResult: Codable, Sendable, Equatable {
    public var volumes: [String]
    public var revertedTo: String
    /// Id of the snapshot that keeps what was there before; revert to it to undo.
    public var keptSnapshot: String?
    /// One sentence per step, in order.
    public var steps: [String]

    public init(volumes: [String], revertedTo: String, keptSnapshot: String?, steps: [String]) {
        self.volumes = volumes
        self.revertedTo = revertedTo
        self.keptSnapshot = keptSnapshot
        self.steps = steps
    }
}

public struct CloneRequest: Codable, Sendable, Equatable {
    /// Id or name of the snapshot.
    public var snapshot: String
    /// The member volume to clone; may be nil where the snapshot has one member.
    public var volume: String?
    /// The new volume's name.
    public var name: String
    public var export: Bool?

    public init(snapshot: String, volume: String? = nil, name: String, export: Bool? = nil) {
        self.snapshot = snapshot
        self.volume = volume
        self.name = name
        self.export = export
    }
}

/// Something on a host that lies on a volume, as the last look at its agent found it.
public struct VolumeUse: Codable, Sendable, Equatable {
    public var agent: String
    public var plugin: String
    public var layer: ProtectionLayer
    /// The resource's id within its agent and plug-in.
    public var resource: String
    public var label: String
    /// E.g. `running`, where the plug-in says it.
    public var state: String?

    public init(
        agent: String, plugin: String, layer: ProtectionLayer, resource: String, label: String, state: String?
    ) {
        self.agent = agent
        self.plugin = plugin
        self.layer = layer
        self.resource = resource
        self.label = label
        self.state = state
    }
}
