internal import Synchronization

/// Snapshots as callers see them: put together without the lock, since there may be many.
extension PoolCore {
    /// All snapshots, in no particular order.
    func snapshotRecords() -> [SnapshotRecord] {
        listings.add(1, ordering: .relaxed)
        let (entries, datasets, phase) = monitor.withLock { (tables.snapshots, tables.datasets, enterRead()) }
        // Attributes that are freed meanwhile stay readable.
        defer { exitRead(phase) }
        let sizes = Dictionary(uniqueKeysWithValues: datasets.elements.map { ($0.number, $0.sizeBytes) })
        return entries.elements.map { entry in
            record(of: entry) { sizes[$0] ?? 0 }
        }
    }

    /// Those that have a member of a volume, in no particular order; none of a volume that is not there.
    func snapshotRecords(of volume: VolumeID) -> [SnapshotRecord] {
        let (found, sizes, phase) = monitor.withLock {
            let found = (tables.snapshotsOfVolume[volume] ?? []).compactMap { snapshots[$0] }
            var sizes: [UInt64: UInt64] = [:]
            for member in found.flatMap(\.members) { sizes[member.dataset.number] = member.dataset.sizeBytes }
            return (found.map(\.entry), sizes, enterRead())
        }
        defer { exitRead(phase) }
        return found.map { entry in record(of: entry) { sizes[$0] ?? 0 } }
    }

    /// One snapshot, whatever the number of the others.
    func snapshotRecord(_ id: SnapshotID) throws(PoolError) -> SnapshotRecord {
        let (entry, sizes, phase) = try monitor.withLock { () throws(PoolError) in
            let snapshot = try snapshot(id)
            let sizes = snapshot.members.map { ($0.dataset.number, $0.dataset.sizeBytes) }
            return (snapshot.entry, Dictionary(uniqueKeysWithValues: sizes), enterRead())
        }
        defer { exitRead(phase) }
        return record(of: entry) { sizes[$0] ?? 0 }
    }

    /// One snapshot. Called with the lock held, for a snapshot that was just made.
    func record(of snapshot: Snapshot) -> SnapshotRecord {
        SnapshotRecord(
            id: snapshot.id, name: snapshot.name, createdAt: snapshot.createdAt,
            members: snapshot.members.map { SnapshotMember(volume: $0.volume, sizeBytes: $0.dataset.sizeBytes) },
            epoch: snapshot.epoch, attributes: snapshot.attributes ?? [], kind: snapshot.kind)
    }

    private func record(
        of entry: CatalogTables.SnapshotEntry, sizeOf: (UInt64) -> UInt64
    ) -> SnapshotRecord {
        let image = entry.image
        return SnapshotRecord(
            id: image.id, name: image.name, createdAt: image.createdAt,
            members: image.members.map { SnapshotMember(volume: $0.volume, sizeBytes: sizeOf($0.dataset)) },
            epoch: image.epoch, attributes: entry.attributes ?? readAttributes(image), kind: image.kind)
    }

    /// Attributes that cannot be read are none; the damage is counted.
    private func readAttributes(_ image: SnapshotImage) -> [UInt8] {
        do {
            return try readStream(image.attributesRoot, lengthBytes: image.attributeBytes)
        } catch {
            checksumErrors.add(1, ordering: .relaxed)
            return []
        }
    }
}
