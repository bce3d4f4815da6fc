internal import BlockIO

/// A volume as a block device. The object stays the same over resizes and reverts.
final class VolumeDevice: BlockDevice, @unchecked Sendable {
    // SAFETY: both are constants; the volume's own state is guarded by the pool's lock.
    private let core: PoolCore
    private let volume: Volume

    init(core: PoolCore, volume: Volume) {
        self.core = core
        self.volume = volume
    }

    var sizeBytes: UInt64 { core.monitor.withLock { volume.head.sizeBytes } }
    var geometry: BlockGeometry { BlockGeometry() }
    var isReadOnly: Bool { core.monitor.withLock { core.refusal != nil } }
    /// A write enters the map under one lock, and its records are in one batch of the journal, which recovery takes
    /// whole or not at all. Longer ones do, too; a peer needs no more.
    var atomicWriteBytes: Int { 128 << 10 }

    var writeSameBytes: UInt64 { core.volumeWriteSameBytes }

    func usage() -> DeviceUsage? {
        core.monitor.withLock {
            DeviceUsage(
                usedBytes: core.record(of: volume).mappedBytes,
                availableBytes: core.space.dataFree * UInt64(Format.blockBytes))
        }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError) {
        try core.read(.volume(volume), at: offset, into: buffer)
    }

    func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability
    ) throws(BlockError) {
        try core.write(volume, at: offset, from: buffer, durability: durability)
    }

    func flush() throws(BlockError) { try core.flush(volume) }

    func unmap(at offset: UInt64, lengthBytes: UInt64) throws(BlockError) {
        try core.unmap(volume, at: offset, lengthBytes: lengthBytes)
    }

    func writeSame(
        at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError) {
        try core.writeSame(volume, at: offset, lengthBytes: lengthBytes, block: block, durability: durability)
    }

    func compareAndWrite(
        at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError) {
        try core.compareAndWrite(
            volume, at: offset, expected: expected, replacement: replacement, durability: durability)
    }

    func provisioning(at offset: UInt64, maxLengthBytes: UInt64) throws(BlockError) -> ProvisionedRun {
        try core.provisioning(.volume(volume), at: offset, maxLengthBytes: maxLengthBytes)
    }
}

/// A member of a snapshot as a read-only block device.
final class SnapshotDevice: BlockDevice, @unchecked Sendable {
    // SAFETY: all are constants; the objects' own state is guarded by the pool's lock.
    private let core: PoolCore
    private let snapshot: Snapshot
    private let dataset: Dataset
    let sizeBytes: UInt64

    init(core: PoolCore, snapshot: Snapshot, dataset: Dataset) {
        self.core = core
        self.snapshot = snapshot
        self.dataset = dataset
        sizeBytes = dataset.sizeBytes
    }

    var geometry: BlockGeometry { BlockGeometry() }
    var isReadOnly: Bool { true }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError) {
        try core.read(.member(snapshot, dataset), at: offset, into: buffer)
    }

    func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability
    ) throws(BlockError) { throw .readOnly }

    func flush() throws(BlockError) {}

    func unmap(at offset: UInt64, lengthBytes: UInt64) throws(BlockError) { throw .readOnly }

    func writeSame(
        at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError) { throw .readOnly }

    func compareAndWrite(
        at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError) { throw .readOnly }

    func provisioning(at offset: UInt64, maxLengthBytes: UInt64) throws(BlockError) -> ProvisionedRun {
        try core.provisioning(.member(snapshot, dataset), at: offset, maxLengthBytes: maxLengthBytes)
    }
}
