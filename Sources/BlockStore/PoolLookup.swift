/// Single objects of a pool. Each is found at once, whatever else the pool holds.
extension Pool {
    public func volume(_ id: VolumeID) throws(PoolError) -> VolumeRecord {
        try core.monitor.withLock { () throws(PoolError) in core.record(of: try core.volume(id)) }
    }

    /// Nil where no volume has this name.
    public func volume(named name: String) -> VolumeRecord? {
        core.monitor.withLock {
            guard let number = core.tables.volumeNames[name], let volume = core.volumes[number], !volume.isHidden
            else { return nil }
            return core.record(of: volume)
        }
    }

    /// One snapshot that is not being deleted.
    public func snapshot(_ id: SnapshotID) throws(PoolError) -> SnapshotRecord { try core.snapshotRecord(id) }

    /// The snapshot that has this name; nil where none has.
    public func snapshotID(named name: String) -> SnapshotID? {
        core.monitor.withLock { core.tables.snapshotNames[name] }
    }

    public func hasSnapshot(named name: String) -> Bool { snapshotID(named: name) != nil }

    /// Whether a snapshot is there, and not being deleted.
    public func hasSnapshot(_ id: SnapshotID) -> Bool { core.monitor.withLock { core.snapshots[id] != nil } }

    /// How many snapshots there are, or how many have a member of a volume.
    public func snapshotCount(of volume: VolumeID? = nil) -> Int {
        core.monitor.withLock {
            volume.map { core.tables.snapshotsOfVolume[$0]?.count ?? 0 } ?? core.snapshots.count
        }
    }

    /// The snapshots that have a member of a volume, oldest first. Costs what they are, not what the pool has.
    public func snapshots(of volume: VolumeID) -> [SnapshotRecord] {
        core.snapshotRecords(of: volume).sorted { ($0.epoch, $0.name) < ($1.epoch, $1.name) }
    }

    /// The volumes that were cloned from a snapshot, ordered by name.
    public func clones(of snapshot: SnapshotID) -> [VolumeRecord] {
        core.monitor.withLock {
            (core.tables.clonesOfSnapshot[snapshot] ?? []).compactMap { core.volumes[$0] }
                .filter { !$0.isHidden }.map { core.record(of: $0) }
        }.sorted { $0.name < $1.name }
    }
}
