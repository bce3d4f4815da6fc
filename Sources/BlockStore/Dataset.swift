/// A map on disk and how many blocks it maps.
struct MapRoot: Equatable, Sendable {
    var pointer = NodePointer.null
    var mappedBlocks: UInt64 = 0
}

/// One version of a volume's content: its head, or its part of a snapshot. Datasets form a tree; the parent is the
/// snapshot that was taken (or cloned, or reverted to) last before. Guarded by the pool's lock.
final class Dataset {
    enum Role: UInt8 {
        case head = 0
        case snapshot = 1
        /// Deleted; its blocks are being reclaimed.
        case doomed = 2
    }

    let number: UInt64
    /// The volume whose history it belongs to; another one's after a promotion.
    var volume: UInt32
    private(set) var parent: Dataset?
    private(set) var children: [Dataset] = []
    var role: Role
    /// The epoch that the cut closed. A head's is still open: `Format.maxEpoch`.
    var epoch: UInt64
    var sizeBytes: UInt64
    var root = MapRoot()
    /// Newest first.
    var layers: [Layer] = []
    /// A doomed dataset's logical blocks below this one are reclaimed.
    var cursor: UInt64 = 0

    init(number: UInt64, volume: UInt32, role: Role, epoch: UInt64, sizeBytes: UInt64) {
        self.number = number
        self.volume = volume
        self.role = role
        self.epoch = epoch
        self.sizeBytes = sizeBytes
    }

    func setParent(_ parent: Dataset?) {
        self.parent?.children.removeAll { $0 === self }
        self.parent = parent
        parent?.children.append(self)
    }

    /// What is shared with the parent was written in this epoch or before.
    var floorEpoch: UInt64 { parent?.epoch ?? 0 }
}

/// A volume; guarded by the pool's lock.
final class Volume {
    let number: UInt32
    let id: VolumeID
    let name: String
    let naa: NAA
    let createdAt: UInt64
    var clonedFrom: CloneOrigin?
    var head: Dataset
    var device: VolumeDevice?

    init(
        number: UInt32, id: VolumeID, name: String, naa: NAA, createdAt: UInt64, clonedFrom: CloneOrigin?, head: Dataset
    ) {
        self.number = number
        self.id = id
        self.name = name
        self.naa = naa
        self.createdAt = createdAt
        self.clonedFrom = clonedFrom
        self.head = head
    }
}

/// A snapshot of one or several volumes; guarded by the pool's lock.
final class Snapshot {
    struct Member {
        var volume: VolumeID
        var dataset: Dataset
    }

    let id: SnapshotID
    let name: String
    let createdAt: UInt64
    let kind: SnapshotKind
    let epoch: UInt64
    var members: [Member]
    var attributes: [UInt8]
    /// Where the attributes are on disk; null while they are only in the journal.
    var attributesRoot = NodePointer.null

    init(
        id: SnapshotID, name: String, createdAt: UInt64, kind: SnapshotKind, epoch: UInt64, members: [Member],
        attributes: [UInt8]
    ) {
        self.id = id
        self.name = name
        self.createdAt = createdAt
        self.kind = kind
        self.epoch = epoch
        self.members = members
        self.attributes = attributes
    }

    var record: SnapshotRecord {
        SnapshotRecord(
            id: id, name: name, createdAt: createdAt,
            members: members.map { SnapshotMember(volume: $0.volume, sizeBytes: $0.dataset.sizeBytes) },
            epoch: epoch, attributes: attributes, kind: kind)
    }
}
