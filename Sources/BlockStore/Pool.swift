public import BlockIO

/// A redirect-on-write pool: thin volumes, their snapshots and clones, in one file or block device.
///
/// All calls are thread-safe and synchronous; those that change something are durable on return. docs/format.md says
/// what is on the disk.
public final class Pool: Sendable {
    let core: PoolCore

    init(core: PoolCore) { self.core = core }

    /// Makes a pool in a new regular file (sparse, growing) or on a block device, and opens it.
    public static func create(path: String, options: PoolOptions = .init()) throws(PoolError) -> Pool {
        try create(on: try hostFile(path, .create, options), options: options)
    }

    /// Opens a pool and recovers what was durable. A second opener gets ``PoolError/inUse(path:)``.
    public static func open(path: String, options: PoolOptions = .init()) throws(PoolError) -> Pool {
        try open(
            on: try hostFile(path, options.isReadOnly ? .readOnly : .readWrite, options), path: path, options: options)
    }

    private static func hostFile(
        _ path: String, _ mode: HostFile.Mode, _ options: PoolOptions
    ) throws(PoolError) -> HostFile {
        do {
            let file = try HostFile(path: path, mode: mode, backend: options.backend)
            if options.dropsSystemCache { file.dropCache() }
            return file
        } catch {
            switch error.errno {
            case 11: throw .inUse(path: path)
            case 17: throw .exists(path)
            case 2: throw .notFound("file \(path)")
            default: throw .io(operation: "opening \(path)", errno: error.errno)
            }
        }
    }

    /// Makes a pool on any storage. The pool closes `file` when it is closed or cannot be made.
    public static func create(on file: any StorageFile, options: PoolOptions = .init()) throws(PoolError) -> Pool {
        do {
            return Pool(core: try PoolCore.create(file: file, options: options))
        } catch {
            file.close()
            throw error
        }
    }

    /// Opens the pool on any storage. The pool closes `file` when it is closed or cannot be opened.
    public static func open(
        on file: any StorageFile, path: String = "storage", options: PoolOptions = .init()
    ) throws(PoolError) -> Pool {
        do {
            return Pool(core: try PoolCore.open(file: file, path: path, options: options))
        } catch {
            file.close()
            throw error
        }
    }

    /// Writes a checkpoint and closes the file. Devices of the pool answer ``BlockError/removed`` afterwards.
    public func close() throws(PoolError) { try core.close() }

    /// Size, use, state and counters at this moment.
    public var statistics: PoolStatistics { core.currentStatistics() }

    /// Does one checkpoint, with a bounded part of the reclaim that is due. Needed where the pool has no maintenance
    /// thread; allowed anywhere.
    public func maintain() throws(PoolError) { try core.maintain() }

    // MARK: Everything

    /// All volumes, ordered by name.
    public func volumes() -> [VolumeRecord] {
        core.monitor.withLock { core.volumes.values.filter { !$0.isHidden }.map { core.record(of: $0) } }.sorted {
            $0.name < $1.name
        }
    }

    /// All snapshots that are not being deleted, oldest first.
    public func snapshots() -> [SnapshotRecord] {
        core.snapshotRecords().sorted { ($0.epoch, $0.name) < ($1.epoch, $1.name) }
    }

    // MARK: Changes

    /// Makes a thin volume of `sizeBytes` (a multiple of 4096, at most 64 TiB).
    public func createVolume(id: VolumeID, name: String, sizeBytes: UInt64) throws(PoolError) -> VolumeRecord {
        try core.checkName(name)
        try core.checkSize(sizeBytes)
        let target = try core.withRoom { () throws(PoolError) in
            try core.checkNewVolume(id, name)
            let seed = core.volumeSeed(id: id, name: name, sizeBytes: sizeBytes)
            return try core.perform(.createVolume(seed))
        }
        try core.commit(through: target)
        return try core.monitor.withLock { () throws(PoolError) in core.record(of: try core.volume(id)) }
    }

    /// Grows or shrinks a volume; what lies beyond a smaller size is unmapped.
    public func resizeVolume(_ id: VolumeID, sizeBytes: UInt64) throws(PoolError) {
        try core.checkSize(sizeBytes)
        let target = try core.withRoom { () throws(PoolError) in
            try core.perform(.resizeVolume(volume: try core.volume(id).number, sizeBytes: sizeBytes))
        }
        try core.commit(through: target)
    }

    /// Deletes a volume; its space is reclaimed in the background. Refused while it has snapshots.
    public func deleteVolume(_ id: VolumeID) throws(PoolError) {
        let target = try core.monitor.withLock { () throws(PoolError) in
            let volume = try core.volume(id)
            let holders = (core.tables.snapshotsOfVolume[id] ?? []).compactMap { core.snapshots[$0] }
            guard holders.isEmpty else { throw .hasSnapshots(holders.map(\.name).sorted()) }
            return try core.perform(.deleteVolume(volume: volume.number))
        }
        try core.commit(through: target)
        core.wakeMaintenance()
    }

    /// The volume's device: the same object for as long as the volume exists.
    public func device(of volume: VolumeID) throws(PoolError) -> any BlockDevice {
        try core.monitor.withLock { () throws(PoolError) in
            guard !core.isClosed, let device = try core.volume(volume).device else { throw .closed }
            return device
        }
    }

    /// A read-only device over a member of a snapshot.
    public func device(of snapshot: SnapshotID, volume: VolumeID) throws(PoolError) -> any BlockDevice {
        try core.monitor.withLock { () throws(PoolError) in
            guard !core.isClosed else { throw .closed }
            let dataset = try core.member(of: snapshot, volume)
            return SnapshotDevice(core: core, snapshot: try core.snapshot(snapshot), dataset: dataset)
        }
    }

    /// Takes one snapshot of all `volumes`: exactly the writes acknowledged before one instant, durable on return.
    ///
    /// The instant is when the epoch turns, under the lock that every write enters its mapping under; nobody waits for
    /// the disk there. The group commit that follows makes the record and all data from before it durable.
    public func createSnapshot(
        id: SnapshotID, name: String, volumes: [VolumeID], attributes: [UInt8]
    ) throws(PoolError) -> SnapshotRecord {
        try core.checkName(name)
        try core.checkAttributes(attributes)
        let (target, record) = try core.withRoom { () throws(PoolError) in
            let seed = try core.snapshotSeed(
                id: id, name: name, volumes: volumes, kind: .user, attributes: attributes)
            let target = try core.perform(.snapshot(seed))
            return (target, core.record(of: try core.snapshot(id)))
        }
        try core.commit(through: target)
        return record
    }

    /// Replaces the caller's bytes of a snapshot (at most 1 MiB).
    public func setAttributes(of snapshot: SnapshotID, _ bytes: [UInt8]) throws(PoolError) {
        try core.checkAttributes(bytes)
        let target = try core.withRoom { () throws(PoolError) in
            _ = try core.snapshot(snapshot)
            return try core.perform(.setAttributes(snapshot, bytes))
        }
        try core.commit(through: target)
    }

    /// Deletes a snapshot; its space is reclaimed in the background. Refused while clones stand on it.
    public func deleteSnapshot(_ id: SnapshotID) throws(PoolError) {
        let target = try core.monitor.withLock { () throws(PoolError) in
            let clones = core.clones(of: try core.snapshot(id))
            guard clones.isEmpty else { throw .hasClones(clones) }
            return try core.perform(.deleteSnapshot(id))
        }
        try core.commit(through: target)
        core.wakeMaintenance()
    }

    /// Makes a writable volume of a snapshot's member, with an identity of its own.
    public func clone(
        snapshot: SnapshotID, volume: VolumeID, newID: VolumeID, name: String
    ) throws(PoolError) -> VolumeRecord {
        try core.checkName(name)
        let target = try core.withRoom { () throws(PoolError) in
            try core.checkNewVolume(newID, name)
            let source = try core.member(of: snapshot, volume)
            let seed = core.volumeSeed(id: newID, name: name, sizeBytes: source.sizeBytes)
            return try core.perform(.clone(seed, origin: CloneOrigin(snapshot: snapshot, volume: volume)))
        }
        try core.commit(through: target)
        return try core.monitor.withLock { () throws(PoolError) in core.record(of: try core.volume(newID)) }
    }

    /// Makes `volumes` what they were in the snapshot, and keeps what they are now as another snapshot of kind
    /// ``SnapshotKind/beforeRevert``. One record: all or none. Returns the kept snapshot.
    public func revert(
        volumes: [VolumeID], to snapshot: SnapshotID, keepAs: SnapshotID, keepName: String, attributes: [UInt8]
    ) throws(PoolError) -> SnapshotRecord {
        try core.checkName(keepName)
        try core.checkAttributes(attributes)
        let (target, record) = try core.withRoom { () throws(PoolError) in
            for volume in volumes { _ = try core.member(of: snapshot, volume) }
            let seed = try core.snapshotSeed(
                id: keepAs, name: keepName, volumes: volumes, kind: .beforeRevert, attributes: attributes)
            let target = try core.perform(.revert(seed, target: snapshot))
            return (target, core.record(of: try core.snapshot(keepAs)))
        }
        try core.commit(through: target)
        return record
    }
}
