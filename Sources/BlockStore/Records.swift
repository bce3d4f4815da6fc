public import BlockIO

/// A volume as the pool knows it.
public struct VolumeRecord: Sendable, Equatable {
    public var id: VolumeID
    public var name: String
    public var naa: NAA
    public var sizeBytes: UInt64
    /// Bytes that are mapped: exact at a checkpoint; between two of them an overwrite of an old block may count twice.
    public var mappedBytes: UInt64
    /// Unix time in nanoseconds.
    public var createdAt: UInt64
    /// Where a clone came from; nil for other volumes.
    public var clonedFrom: CloneOrigin?
}

/// The member of a snapshot that a clone was made of.
public struct CloneOrigin: Sendable, Equatable {
    public var snapshot: SnapshotID
    public var volume: VolumeID

    public init(snapshot: SnapshotID, volume: VolumeID) {
        self.snapshot = snapshot
        self.volume = volume
    }
}

/// A volume's part in a snapshot.
public struct SnapshotMember: Sendable, Equatable {
    public var volume: VolumeID
    public var sizeBytes: UInt64

    public init(volume: VolumeID, sizeBytes: UInt64) {
        self.volume = volume
        self.sizeBytes = sizeBytes
    }
}

/// Why a snapshot exists.
public enum SnapshotKind: UInt8, Sendable {
    case user = 0
    /// The state that a revert replaced.
    case beforeRevert = 1
}

/// A snapshot as the pool knows it.
public struct SnapshotRecord: Sendable, Equatable {
    public var id: SnapshotID
    public var name: String
    /// Unix time of the cut in nanoseconds.
    public var createdAt: UInt64
    public var members: [SnapshotMember]
    /// Blocks of the snapshot were written in this epoch or an earlier one.
    public var epoch: UInt64
    /// What the caller keeps with the snapshot: the evidence.
    public var attributes: [UInt8]
    public var kind: SnapshotKind
}

/// What the pool can do at the moment.
public enum PoolState: Sendable, Equatable {
    case healthy
    /// New writes are refused until space is freed; everything else works.
    case full
    /// The pool failed for good, or was opened read-only.
    case readOnly(reason: String)
}

/// How far the pool is with freeing what deleted snapshots and volumes, and large unmapped ranges, held.
public struct ReclaimProgress: Sendable, Equatable {
    /// Deleted things whose blocks are not all free yet.
    public var pending: UInt64 = 0
    /// Those of them that several states stand on, as after a revert: what they hold comes free when all but one of
    /// those states are deleted, too.
    public var waiting: UInt64 = 0
    /// Of those that do not wait: sizes, and how much of that has been looked through. Holes are passed in no time.
    public var sizeBytes: UInt64 = 0
    public var doneBytes: UInt64 = 0
    /// Freed since the pool was opened.
    public var freedBytes: UInt64 = 0
    /// Blocks that nothing refers to any more and that still count as used: for the moment until the last reader that
    /// may see them has left, and the file system has them back.
    public var leavingBytes: UInt64 = 0
}

/// A pool's size and counters at one moment. Counters start at zero when the pool is opened.
public struct PoolStatistics: Sendable, Equatable {
    /// The most that data and map can occupy.
    public var sizeBytes: UInt64 = 0
    /// Blocks that are in use or wait to be freed, including the pool's own metadata.
    public var usedBytes: UInt64 = 0
    /// What can still be written: limited by the pool's size and by the file system it lies on.
    public var freeBytes: UInt64 = 0
    public var state: PoolState = .healthy
    public var epoch: UInt64 = 0
    /// Mappings that are only in memory and in the journal.
    public var overlayEntries: UInt64 = 0
    public var journalUsedBytes: UInt64 = 0
    public var journalSizeBytes: UInt64 = 0
    public var checkpoints: UInt64 = 0
    public var commits: UInt64 = 0
    public var dataBytesWritten: UInt64 = 0
    public var metadataBytesWritten: UInt64 = 0
    public var journalBytesWritten: UInt64 = 0
    public var checksumErrors: UInt64 = 0
    public var reclaim = ReclaimProgress()
    /// Deleted snapshots and volumes whose blocks are not yet all freed.
    public var reclaimsPending: UInt64 { reclaim.pending }
    public var volatileLog = VolatileLogState.off(reason: "")
    /// Records that a killed process had acknowledged but not made durable, brought back when the pool was opened.
    public var recordsFromVolatileLog: UInt64 = 0
}

/// Sizes and limits of a pool. Those marked *create* are fixed when the pool is made.
public struct PoolOptions: Sendable {
    /// *Create*: the most bytes that the pool may occupy. A regular file grows towards it, sparse.
    public var maxSizeBytes: UInt64 = 64 << 40
    /// *Create*: bytes of the journal, a multiple of 4096, at least 128 KiB.
    public var journalBytes: UInt64 = 64 << 20
    /// Bytes of map pages that are kept in memory.
    public var cacheBytes: UInt64 = 256 << 20
    /// Recent mappings in memory at which a checkpoint begins; writers wait at twice as many.
    public var overlayEntries: Int = 1 << 20
    /// Open without writing anything; every write is refused.
    public var isReadOnly = false
    /// What to say where a change is refused because of ``isReadOnly``.
    public var readOnlyReason: String?
    /// Whether written blocks of 4 KiB that hold zeros only become unmapped ones and take no room.
    public var detectsZeros = true
    /// How calls reach the disk, where the pool opens the file itself.
    public var backend = StorageBackend.automatic
    /// Whether a thread of the pool's own does checkpoints and reclaim, or the caller through ``Pool/maintain()``.
    public var hasMaintenanceThread = true
    /// A directory on tmpfs, of this user alone, for the log that lets acknowledged but unflushed changes survive
    /// the end of the process (see ``VolatileLogDirectory``); nil for none.
    public var volatileLogDirectory: String?

    /// What ``limitMemory(toBytes:)`` was told last.
    public private(set) var memoryBytes: UInt64 = 768 << 20
    /// Called once, when the pool fails, before anybody who waits hears of it: what it keeps is kept even if the
    /// process is killed right after. It runs with the pool's lock held and must not call the pool.
    public var onFailure: (@Sendable (_ reason: String) -> Void)?
    /// Let go of what the system has in its cache of the file first, so that what is read is what the disk has. After a
    /// failed sync the two may differ: the system then takes what it could not write for written.
    public var dropsSystemCache = false

    /// Bytes of snapshots' attributes that are kept in memory; more are read from the disk when they are asked for.
    var attributeCacheBytes: UInt64 = 32 << 20
    /// Bytes of bitmaps of the pool's regions that are kept in memory; a region that is being changed is always there.
    var spaceMapBytes: UInt64 = 64 << 20
    /// Map pages that one maintenance pass looks at for reclaim.
    var reclaimPagesPerPass = 8192
    /// Unmapped leaves that are freed with the checkpoint, in blocks; more are left to reclaim.
    var inlineFrees = 1 << 16
    /// So much data, in blocks, the worker has written out before anybody asks for a sync: 2 MiB.
    var earlyWritebackBlocks = 512
    /// Map pages that one step of a diff, of a question about space or of a content digest looks at: how long freed
    /// blocks may have to wait for this reader.
    var walkPagesPerStep = 512
    /// *Create*: the fewest blocks that a region has, a multiple of 64; the superblock's 256 but for tests.
    var leastRegionBlocks: UInt64 = 256
    /// Hand out the lowest free block first, or the lowest long run, so that freed ones come back at once: for tests.
    var reusesBlocksFirst = false
    /// In place of the directory: for tests.
    var volatileLogStorage: (any VolatileLogStorage)?
    /// The clock and the random numbers, others for tests.
    var surroundings = Surroundings()
    /// Switched on by tests only.
    var plantedBug: PlantedBug?

    public init() {}

    /// The least that ``limitMemory(toBytes:)`` divides.
    public static let leastMemoryBytes: UInt64 = 64 << 20

    /// Divides `bytes` (at least 64 MiB; the options begin with 768 MiB) among what grows with the use of a pool: a
    /// third for map pages; a little more than a third for recent mappings, of which one takes up to 200 bytes in the
    /// worst case, counted twice because writers go on while a checkpoint merges; a twelfth for bitmaps; a
    /// twenty-fourth for snapshots' attributes. What is left is for buffers. Besides that a snapshot takes about 1 KiB,
    /// and every 128 MiB of a pool about 100 bytes.
    public mutating func limitMemory(toBytes bytes: UInt64) {
        let bytes = max(bytes, Self.leastMemoryBytes)
        memoryBytes = bytes
        cacheBytes = bytes / 3
        overlayEntries = Int(bytes / 768)
        spaceMapBytes = bytes / 12
        attributeCacheBytes = bytes / 24
    }
}
