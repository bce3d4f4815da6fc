/// What a set of snapshots holds, blocks of data, of maps and of the evidence together. Exact as of the question.
public struct SpaceInfo: Codable, Sendable, Equatable {
    /// What nothing outside of the set refers to.
    public var exclusiveBytes: UInt64
    /// What deleting the set, and nothing else, gives back to the pool. Less than `exclusiveBytes` where several
    /// successors stand on a snapshot, as after a revert: the rest comes back when at most one of them is left.
    public var freedBytes: UInt64

    public init(exclusiveBytes: UInt64, freedBytes: UInt64) {
        self.exclusiveBytes = exclusiveBytes
        self.freedBytes = freedBytes
    }
}

/// `POST /v1/space`: what would deleting all of these free?
public struct SpaceRequest: Codable, Sendable, Equatable {
    /// Ids or names.
    public var snapshots: [String]
    /// Names of volumes; each stands for its head, without its snapshots.
    public var volumes: [String]?

    public init(snapshots: [String], volumes: [String]? = nil) {
        self.snapshots = snapshots
        self.volumes = volumes
    }
}

/// What a volume holds; only in the answer for one volume.
public struct VolumeSpaceInfo: Codable, Sendable, Equatable {
    /// What the volume's head alone refers to: written since its last snapshot.
    public var headBytes: UInt64
    /// What deleting all snapshots that the volume is a member of would free, the volume kept.
    public var snapshotBytes: UInt64
    /// What deleting the volume and all those snapshots would free.
    public var totalBytes: UInt64

    public init(headBytes: UInt64, snapshotBytes: UInt64, totalBytes: UInt64) {
        self.headBytes = headBytes
        self.snapshotBytes = snapshotBytes
        self.totalBytes = totalBytes
    }
}

/// What a promotion did.
public struct PromoteResult: Codable, Sendable, Equatable {
    /// The volume that was a clone.
    public var volume: VolumeInfo
    /// Names of the snapshots that are its own now, oldest first.
    public var snapshots: [String]
    /// Name of the volume that owned them, and is a clone now.
    public var formerOwner: String

    public init(volume: VolumeInfo, snapshots: [String], formerOwner: String) {
        self.volume = volume
        self.snapshots = snapshots
        self.formerOwner = formerOwner
    }
}
