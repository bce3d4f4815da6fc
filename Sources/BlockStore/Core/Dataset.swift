/// A map on disk and how many blocks it maps.
struct MapRoot: Equatable, Sendable {
    /// Instead of a number where nobody needs one.
    static let uncounted = UInt64.max

    var pointer = NodePointer.null
    /// Also counts what the datasets of `detached` have.
    var mappedBlocks: UInt64 = 0
    /// Numbers of the datasets that hold what was unmapped from this map at one stroke, until their blocks are counted.
    var detached: [UInt64] = []

    /// Takes off what was counted of a detached part.
    mutating func settle(_ counts: [UInt64: DetachedCount]) {
        guard !detached.isEmpty, mappedBlocks != Self.uncounted else { return }
        for number in detached { mappedBlocks -= min(mappedBlocks, counts[number]?.blocks ?? 0) }
        detached.removeAll { counts[$0]?.isFinished ?? false }
    }
}

/// How many mapped blocks a step of reclaim met in a detached part of a map, and whether that was the rest.
struct DetachedCount {
    var blocks: UInt64
    var isFinished: Bool
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
    var volume: UInt32 { didSet { store() } }
    private(set) var parent: Dataset?
    private(set) var children: [Dataset] = []
    var role: Role { didSet { roleChanged() } }
    /// The epoch that the cut closed. A head's is still open: `Format.maxEpoch`.
    var epoch: UInt64 { didSet { store() } }
    var sizeBytes: UInt64 { didSet { store() } }
    var root = MapRoot() { didSet { store() } }
    /// Newest first.
    var layers: [Layer] = [] { didSet { tables.layered[number] = layers.isEmpty ? nil : self } }
    /// A doomed dataset's logical blocks below this one are reclaimed.
    var cursor: UInt64 = 0 { didSet { store() } }
    private let tables: CatalogTables
    private var slot = 0

    init(number: UInt64, volume: UInt32, role: Role, epoch: UInt64, sizeBytes: UInt64, tables: CatalogTables) {
        self.number = number
        self.volume = volume
        self.role = role
        self.epoch = epoch
        self.sizeBytes = sizeBytes
        self.tables = tables
        slot = tables.datasets.insert(image)
        roleChanged()
    }

    var image: DatasetImage {
        DatasetImage(
            number: number, volume: volume, parent: parent?.number ?? 0, role: role, epoch: epoch, sizeBytes: sizeBytes,
            cursor: cursor, root: root)
    }

    private func store() { tables.datasets[slot] = image }

    private func roleChanged() {
        tables.doomed[number] = role == .doomed ? self : nil
        store()
    }

    /// The dataset is gone.
    func leaveTables() {
        layers = []
        tables.doomed[number] = nil
        tables.datasets.remove(slot)
    }

    func setParent(_ parent: Dataset?) {
        self.parent?.children.removeAll { $0 === self }
        self.parent = parent
        parent?.children.append(self)
        store()
    }

    /// What is shared with the parent was written in this epoch or before.
    var floorEpoch: UInt64 { parent?.epoch ?? 0 }
}

/// A volume; guarded by the pool's lock.
final class Volume {
    let number: UInt32
    let id: VolumeID
    private(set) var name: String
    let naa: NAA
    let createdAt: UInt64
    var clonedFrom: CloneOrigin? {
        didSet {
            tables?.remove(clone: number, of: oldValue)
            tables?.insert(clone: number, of: clonedFrom)
            store()
        }
    }
    var head: Dataset { didSet { store() } }
    var device: VolumeDevice?
    /// Holds what is being received; nobody but the session that receives sees it.
    var isHidden = false
    private var tables: CatalogTables?
    private var slot = 0

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

    private func store() { tables?.volumes[slot] = image }

    /// A hidden volume gets the name that it will be seen under.
    func rename(_ name: String) {
        tables?.volumeNames[self.name] = nil
        self.name = name
        tables?.volumeNames[name] = number
        store()
    }

    private var image: VolumeImage {
        VolumeImage(
            number: number, head: head.number, id: id, naa: naa, createdAt: createdAt, clonedFrom: clonedFrom,
            name: name)
    }

    func enter(_ tables: CatalogTables) {
        self.tables = tables
        slot = tables.volumes.insert(image)
        tables.volumeNames[name] = number
        tables.insert(clone: number, of: clonedFrom)
    }

    func leaveTables() {
        tables?.volumes.remove(slot)
        tables?.volumeNames[name] = nil
        tables?.remove(clone: number, of: clonedFrom)
        tables = nil
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
    var members: [Member] {
        didSet {
            tables?.remove(oldValue, of: id)
            tables?.insert(members, of: id)
            store()
        }
    }
    /// Nil while they are only on the disk.
    private(set) var attributes: [UInt8]?
    private(set) var attributeBytes: UInt64
    /// Where the attributes are on disk; null while they are only in the journal.
    private(set) var attributesRoot: NodePointer
    /// Changes with the attributes.
    private(set) var attributesVersion: UInt64 = 0
    private var tables: CatalogTables?
    private var slot = 0

    init(
        id: SnapshotID, name: String, createdAt: UInt64, kind: SnapshotKind, epoch: UInt64, members: [Member],
        attributes: [UInt8]?, attributeBytes: UInt64, attributesRoot: NodePointer
    ) {
        self.id = id
        self.name = name
        self.createdAt = createdAt
        self.kind = kind
        self.epoch = epoch
        self.members = members
        self.attributes = attributes
        self.attributeBytes = attributeBytes
        self.attributesRoot = attributesRoot
    }

    var entry: CatalogTables.SnapshotEntry {
        CatalogTables.SnapshotEntry(
            image: SnapshotImage(
                id: id, kind: kind, epoch: epoch, createdAt: createdAt, name: name,
                members: members.map { .init(volume: $0.volume, dataset: $0.dataset.number) },
                attributesRoot: attributesRoot, attributeBytes: attributeBytes),
            attributes: attributes)
    }

    private func store() { tables?.snapshots[slot] = entry }

    func enter(_ tables: CatalogTables) {
        self.tables = tables
        slot = tables.snapshots.insert(entry)
        tables.snapshotNames[name] = id
        tables.insert(members, of: id)
        tables.attributeBytes += UInt64(attributes?.count ?? 0)
        if isUnwritten { tables.unwritten[id] = self }
    }

    func leaveTables() {
        tables?.snapshots.remove(slot)
        tables?.snapshotNames[name] = nil
        tables?.remove(members, of: id)
        tables?.attributeBytes -= UInt64(attributes?.count ?? 0)
        tables?.unwritten[id] = nil
        tables = nil
    }

    private var isUnwritten: Bool { attributesRoot.isNull && attributeBytes > 0 }

    // MARK: Attributes

    func setAttributes(_ bytes: [UInt8]) {
        tables?.attributeBytes += UInt64(bytes.count)
        tables?.attributeBytes -= UInt64(attributes?.count ?? 0)
        attributes = bytes
        attributeBytes = UInt64(bytes.count)
        attributesRoot = .null
        attributesVersion += 1
        tables?.unwritten[id] = isUnwritten ? self : nil
        store()
    }

    /// A checkpoint has put them there.
    func attributesWritten(to root: NodePointer) {
        attributesRoot = root
        tables?.unwritten[id] = nil
        store()
    }

    /// From now on they are read from the disk when they are asked for.
    func forgetAttributes() {
        guard !attributesRoot.isNull, let bytes = attributes else { return }
        tables?.attributeBytes -= UInt64(bytes.count)
        attributes = nil
        store()
    }
}
