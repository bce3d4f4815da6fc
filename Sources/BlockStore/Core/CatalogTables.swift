/// Values in numbered slots. A copy costs one reference; the first change after it copies a short list of chunks and
/// the one chunk that changes. So a checkpoint takes what it needs of 10,000 datasets while writers wait for
/// microseconds.
struct SlotTable<Element> {
    private static var chunkSlots: Int { 64 }
    private var chunks: [[Element?]] = []
    private var freeSlots: [Int] = []

    /// Returns the slot.
    mutating func insert(_ element: Element) -> Int {
        if freeSlots.isEmpty {
            let first = chunks.count * Self.chunkSlots
            chunks.append(Array(repeating: nil, count: Self.chunkSlots))
            freeSlots = Array((first..<(first + Self.chunkSlots)).reversed())
        }
        let slot = freeSlots.removeLast()
        self[slot] = element
        return slot
    }

    mutating func remove(_ slot: Int) {
        self[slot] = nil
        freeSlots.append(slot)
    }

    subscript(slot: Int) -> Element? {
        get { chunks[slot / Self.chunkSlots][slot % Self.chunkSlots] }
        set { chunks[slot / Self.chunkSlots][slot % Self.chunkSlots] = newValue }
    }

    /// All values, in no particular order.
    var elements: [Element] { chunks.flatMap { $0.compactMap { $0 } } }
}

/// What the catalog of the next checkpoint will say about each dataset, volume and snapshot. The objects keep their
/// entries up to date, so that nobody has to visit all of them at once. Guarded by the pool's lock.
final class CatalogTables {
    struct SnapshotEntry {
        var image: SnapshotImage
        /// Nil while they are only on the disk.
        var attributes: [UInt8]?
    }

    var datasets = SlotTable<DatasetImage>()
    var volumes = SlotTable<VolumeImage>()
    var snapshots = SlotTable<SnapshotEntry>()

    /// Datasets with layers: heads, and what was cut from them since the last checkpoint.
    var layered: [UInt64: Dataset] = [:]
    var doomed: [UInt64: Dataset] = [:]
    var volumeNames: [String: UInt32] = [:]
    var snapshotNames: [String: SnapshotID] = [:]
    /// The snapshots that have a member of the volume.
    private(set) var snapshotsOfVolume: [VolumeID: Set<SnapshotID>] = [:]
    /// The snapshot that a dataset is a member of.
    private(set) var snapshotOfDataset: [UInt64: SnapshotID] = [:]
    /// The volumes that were cloned from the snapshot, by number.
    private(set) var clonesOfSnapshot: [SnapshotID: Set<UInt32>] = [:]
    /// Snapshots whose attributes are in the journal only.
    var unwritten: [SnapshotID: Snapshot] = [:]
    /// Bytes of attributes in memory.
    var attributeBytes: UInt64 = 0

    func insert(_ members: [Snapshot.Member], of snapshot: SnapshotID) {
        for member in members {
            snapshotsOfVolume[member.volume, default: []].insert(snapshot)
            snapshotOfDataset[member.dataset.number] = snapshot
        }
    }

    func remove(_ members: [Snapshot.Member], of snapshot: SnapshotID) {
        for member in members {
            snapshotsOfVolume[member.volume]?.remove(snapshot)
            if snapshotsOfVolume[member.volume]?.isEmpty ?? false { snapshotsOfVolume[member.volume] = nil }
            snapshotOfDataset[member.dataset.number] = nil
        }
    }

    func insert(clone volume: UInt32, of origin: CloneOrigin?) {
        if let origin { clonesOfSnapshot[origin.snapshot, default: []].insert(volume) }
    }

    func remove(clone volume: UInt32, of origin: CloneOrigin?) {
        guard let origin else { return }
        clonesOfSnapshot[origin.snapshot]?.remove(volume)
        if clonesOfSnapshot[origin.snapshot]?.isEmpty ?? false { clonesOfSnapshot[origin.snapshot] = nil }
    }
}
