public import BlockIO

/// A redirect-on-write pool: thin volumes, their snapshots and clones, in one file or block device.
///
/// All calls are thread-safe and synchronous; those that change something are durable on return. docs/format.md says
/// what is on the disk.
public final class Pool: Sendable {
    /// Makes a pool in a new regular file (sparse, growing) or on a block device, and opens it.
    public static func create(path: String, options: PoolOptions = .init()) throws(PoolError) -> Pool {
        throw .unsupported("not yet")
    }

    /// Opens a pool and recovers what was durable. A second opener gets ``PoolError/inUse(path:)``.
    public static func open(path: String, options: PoolOptions = .init()) throws(PoolError) -> Pool {
        throw .unsupported("not yet")
    }

    init() {}

    /// Writes a checkpoint and closes the file. Devices of the pool answer ``BlockError/removed`` afterwards.
    public func close() throws(PoolError) {}

    public var statistics: PoolStatistics { PoolStatistics() }

    /// All volumes, ordered by name.
    public func volumes() -> [VolumeRecord] { [] }

    /// All snapshots that are not being deleted, oldest first.
    public func snapshots() -> [SnapshotRecord] { [] }

    /// Makes a thin volume of `sizeBytes` (a multiple of 4096, at most 64 TiB).
    public func createVolume(id: VolumeID, name: String, sizeBytes: UInt64) throws(PoolError) -> VolumeRecord {
        throw .unsupported("not yet")
    }

    /// Grows or shrinks a volume; what lies beyond a smaller size is unmapped.
    public func resizeVolume(_ id: VolumeID, sizeBytes: UInt64) throws(PoolError) {}

    /// Deletes a volume. Refused while it has snapshots.
    public func deleteVolume(_ id: VolumeID) throws(PoolError) {}

    /// The volume's device: the same object for as long as the volume exists.
    public func device(of volume: VolumeID) throws(PoolError) -> any BlockDevice { throw .unsupported("not yet") }

    /// A read-only device over a member of a snapshot.
    public func device(of snapshot: SnapshotID, volume: VolumeID) throws(PoolError) -> any BlockDevice {
        throw .unsupported("not yet")
    }

    /// Takes one snapshot of all `volumes`: exactly the writes acknowledged before one instant, durable on return.
    public func createSnapshot(
        id: SnapshotID, name: String, volumes: [VolumeID], attributes: [UInt8]
    ) throws(PoolError) -> SnapshotRecord {
        throw .unsupported("not yet")
    }

    /// Replaces the caller's bytes of a snapshot (at most 1 MiB).
    public func setAttributes(of snapshot: SnapshotID, _ bytes: [UInt8]) throws(PoolError) {}

    /// Deletes a snapshot; its space is reclaimed in the background. Refused while clones stand on it.
    public func deleteSnapshot(_ id: SnapshotID) throws(PoolError) {}

    /// Makes a writable volume of a snapshot's member, with an identity of its own.
    public func clone(
        snapshot: SnapshotID, volume: VolumeID, newID: VolumeID, name: String
    ) throws(PoolError) -> VolumeRecord {
        throw .unsupported("not yet")
    }

    /// Makes `volumes` what they were in the snapshot, and keeps what they are now as another snapshot of kind
    /// ``SnapshotKind/beforeRevert``. One record: all or none.
    public func revert(
        volumes: [VolumeID], to snapshot: SnapshotID, keepAs: SnapshotID, keepName: String, attributes: [UInt8]
    ) throws(PoolError) -> SnapshotRecord {
        throw .unsupported("not yet")
    }
}
