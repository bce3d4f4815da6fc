/// The seam of the data plane: what the store stands on, and what a volume is.
///
/// Offsets and lengths are bytes and multiples of ``BlockGeometry/logicalBlockBytes``. A call that returns has taken
/// effect for every later call on any thread; it is *durable* only after ``flush()`` or with
/// ``WriteDurability/durable``. Calls on overlapping ranges are atomic per 4 KiB block. All calls may block the
/// calling thread; only ``flush()`` and durable writes wait for the disk's cache by contract.
public protocol BlockDevice: AnyObject, Sendable {
    /// The size in bytes at this moment; it changes when the device is resized or reverted.
    var sizeBytes: UInt64 { get }

    /// Sizes that initiators are told.
    var geometry: BlockGeometry { get }

    /// True for a snapshot, and for a device that failed and was opened read-only.
    var isReadOnly: Bool { get }

    /// Reads `buffer.count` bytes from `offset`. Unmapped blocks read as zeros. A block whose checksum does not match
    /// throws ``BlockError/medium(offset:)`` and is never returned as data.
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError)

    /// Writes `buffer` at `offset`.
    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability) throws(BlockError)

    /// Returns when every write that had returned before this call is durable (SBC-3 SYNCHRONIZE CACHE). Blocks; call
    /// it on a thread that may wait.
    func flush() throws(BlockError)

    /// Deallocates, as one change; a later read gives zeros (SBC-3 UNMAP with LBPRZ=1).
    func unmap(at offset: UInt64, lengthBytes: UInt64) throws(BlockError)

    /// Fills a range with repetitions of `block` (one logical block), as one change: every other call, a snapshot, and
    /// the next start after a power loss find all of it or nothing (SBC-3 WRITE SAME). A length above
    /// ``writeSameBytes`` throws ``BlockError/misaligned(offset:lengthBytes:)``.
    func writeSame(
        at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError)

    /// The most bytes that one ``writeSame(at:lengthBytes:block:durability:)`` fills.
    var writeSameBytes: UInt64 { get }

    /// Compares `expected` with what is at `offset` and, when equal, writes `replacement` there, atomically against
    /// every other call on the range. Throws ``BlockError/miscompare(offset:)`` with the first differing byte, counted
    /// from the beginning of the device.
    func compareAndWrite(
        at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError)

    /// The most bytes that one ``write(at:from:durability:)`` changes as a whole: every other call finds all of it or
    /// nothing, and so does the next start after a power loss (SBC-4 WRITE ATOMIC). By default one physical block.
    var atomicWriteBytes: Int { get }

    /// What the device takes up, and what is left to it; nil where nobody counts.
    func usage() -> DeviceUsage?

    /// Whether the run of blocks that begins at `offset` is mapped, and how long it is, at most `maxLengthBytes`
    /// (SBC-3 GET LBA STATUS).
    func provisioning(at offset: UInt64, maxLengthBytes: UInt64) throws(BlockError) -> ProvisionedRun
}

extension BlockDevice {
    public var atomicWriteBytes: Int { geometry.physicalBlockBytes }
    public var writeSameBytes: UInt64 { 16 << 20 }
    public func usage() -> DeviceUsage? { nil }
}

/// How much storage stands behind a thin device, in bytes.
public struct DeviceUsage: Sendable, Equatable {
    /// Allocated to this device; blocks that it shares with its snapshots are counted.
    public var usedBytes: UInt64
    /// Left in the pool, for all of its devices.
    public var availableBytes: UInt64

    public init(usedBytes: UInt64, availableBytes: UInt64) {
        self.usedBytes = usedBytes
        self.availableBytes = availableBytes
    }
}

/// What a write promises when it returns.
public enum WriteDurability: Sendable {
    /// In the device's volatile cache; durable after the next flush.
    case cached
    /// Durable on return (SBC-3 FUA).
    case durable
}

/// Block sizes of a device, in bytes.
public struct BlockGeometry: Sendable, Equatable {
    /// The unit of addressing: 512 for "512e" devices.
    public var logicalBlockBytes: Int
    /// The unit that is written without read-modify-write: 4096.
    public var physicalBlockBytes: Int

    public init(logicalBlockBytes: Int = 512, physicalBlockBytes: Int = 4096) {
        self.logicalBlockBytes = logicalBlockBytes
        self.physicalBlockBytes = physicalBlockBytes
    }
}

/// A run of blocks that are all mapped or all unmapped.
public struct ProvisionedRun: Sendable, Equatable {
    public var lengthBytes: UInt64
    public var isMapped: Bool

    public init(lengthBytes: UInt64, isMapped: Bool) {
        self.lengthBytes = lengthBytes
        self.isMapped = isMapped
    }
}
