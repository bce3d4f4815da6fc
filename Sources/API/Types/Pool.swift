public import Foundation

/// `GET /v1/pool`: the pool that volumes and snapshots live in.
public struct PoolInfo: Codable, Sendable, Equatable {
    /// The file or block device.
    public var path: String
    /// How calls reach the disk: `pread` or `uring`.
    public var backend: String
    public var state: PoolStatus.State
    /// Why it is not healthy.
    public var failure: String?
    /// The most that data and map can occupy.
    public var sizeBytes: UInt64
    public var usedBytes: UInt64
    public var freeBytes: UInt64
    /// In percent of what is used and free together.
    public var usedPercent: Double
    /// Percent at which initiators are told that space runs out.
    public var softThresholdPercent: Int
    public var journalSizeBytes: UInt64
    public var journalUsedBytes: UInt64
    /// Checkpoints written since the pool was made.
    public var generation: UInt64
    public var epoch: UInt64
    public var superblockCopies: [SuperblockCopyInfo]
    public var memory: PoolMemoryInfo
    /// Freeing what was deleted.
    public var reclaim: ReclaimInfo
    /// The scrub that runs, or the last one.
    public var scrub: ScrubInfo?
    public var alerts: [PoolAlert]

    public init(
        path: String, backend: String, state: PoolStatus.State, failure: String?, sizeBytes: UInt64, usedBytes: UInt64,
        freeBytes: UInt64, usedPercent: Double, softThresholdPercent: Int, journalSizeBytes: UInt64,
        journalUsedBytes: UInt64, generation: UInt64, epoch: UInt64, superblockCopies: [SuperblockCopyInfo],
        memory: PoolMemoryInfo, reclaim: ReclaimInfo, scrub: ScrubInfo?, alerts: [PoolAlert]
    ) {
        self.path = path
        self.backend = backend
        self.state = state
        self.failure = failure
        self.sizeBytes = sizeBytes
        self.usedBytes = usedBytes
        self.freeBytes = freeBytes
        self.usedPercent = usedPercent
        self.softThresholdPercent = softThresholdPercent
        self.journalSizeBytes = journalSizeBytes
        self.journalUsedBytes = journalUsedBytes
        self.generation = generation
        self.epoch = epoch
        self.superblockCopies = superblockCopies
        self.memory = memory
        self.reclaim = reclaim
        self.scrub = scrub
        self.alerts = alerts
    }
}

/// One copy of the superblock. Two hold the newest generation, two the one before.
public struct SuperblockCopyInfo: Codable, Sendable, Equatable {
    public var offset: UInt64
    /// Nil where nothing valid is there.
    public var generation: UInt64?
    public var isGood: Bool

    public init(offset: UInt64, generation: UInt64?, isGood: Bool) {
        self.offset = offset
        self.generation = generation
        self.isGood = isGood
    }
}

/// What the pool holds in memory, in bytes.
public struct PoolMemoryInfo: Codable, Sendable, Equatable {
    /// What the pool may take for all that grows with its use: `pool.memory`, or what the process's limits leave.
    public var limitBytes: UInt64
    /// Mappings that are not in the map on disk yet.
    public var overlayBytes: UInt64
    public var cacheBytes: UInt64
    public var cacheLimitBytes: UInt64
    /// Bitmaps of the regions in use.
    public var bitmapBytes: UInt64

    public init(
        limitBytes: UInt64, overlayBytes: UInt64, cacheBytes: UInt64, cacheLimitBytes: UInt64, bitmapBytes: UInt64
    ) {
        self.limitBytes = limitBytes
        self.overlayBytes = overlayBytes
        self.cacheBytes = cacheBytes
        self.cacheLimitBytes = cacheLimitBytes
        self.bitmapBytes = bitmapBytes
    }
}

/// How far the pool is with freeing what deleted snapshots and volumes, and large unmapped ranges, held.
public struct ReclaimInfo: Codable, Sendable, Equatable {
    /// Deleted things whose blocks are not all free yet.
    public var pending: UInt64
    /// Those of them that several states stand on, as after a revert: what they hold comes free when all but one of
    /// those are deleted, too.
    public var waiting: UInt64
    /// Of those that do not wait: their sizes, and how much of that has been looked through.
    public var sizeBytes: UInt64
    public var doneBytes: UInt64
    /// Freed since the node was started.
    public var freedBytes: UInt64
    /// Free, and for a moment still counted as used.
    public var leavingBytes: UInt64

    public init(
        pending: UInt64 = 0, waiting: UInt64 = 0, sizeBytes: UInt64 = 0, doneBytes: UInt64 = 0, freedBytes: UInt64 = 0,
        leavingBytes: UInt64 = 0
    ) {
        self.pending = pending
        self.waiting = waiting
        self.sizeBytes = sizeBytes
        self.doneBytes = doneBytes
        self.freedBytes = freedBytes
        self.leavingBytes = leavingBytes
    }
}

/// Something about the pool that somebody should look at.
public struct PoolAlert: Codable, Sendable, Equatable {
    /// `failed`, `readOnly`, `full`, `softThreshold`, `damage`, `superblockRepaired`.
    public var kind: String
    /// What happened, to what.
    public var message: String
    /// What to do next.
    public var hint: String

    public init(kind: String, message: String, hint: String) {
        self.kind = kind
        self.message = message
        self.hint = hint
    }
}

/// A scrub: everything that the pool refers to is read and compared with its checksums.
public struct ScrubInfo: Codable, Sendable, Equatable {
    public enum State: String, Codable, Sendable {
        case running, finished
        /// Ended before its end, by somebody or by the node's; the next one goes on from there.
        case cancelled
    }

    public var state: State
    public var startedAt: Date
    public var endedAt: Date?
    public var bytesRead: UInt64
    /// About how much there is in all.
    public var expectedBytes: UInt64
    public var dataBlocks: UInt64
    public var mapPages: UInt64
    public var superblockCopies: Int
    /// Copies of the superblock that were wrong and were written anew.
    public var repairedSuperblocks: Int
    /// Wrong blocks and pages.
    public var damageCount: UInt64
    /// The first of them, in words; at most 256.
    public var damage: [String]

    public init(
        state: State, startedAt: Date, endedAt: Date? = nil, bytesRead: UInt64 = 0, expectedBytes: UInt64 = 0,
        dataBlocks: UInt64 = 0, mapPages: UInt64 = 0, superblockCopies: Int = 0, repairedSuperblocks: Int = 0,
        damageCount: UInt64 = 0, damage: [String] = []
    ) {
        self.state = state
        self.startedAt = startedAt
        self.endedAt = endedAt
        self.bytesRead = bytesRead
        self.expectedBytes = expectedBytes
        self.dataBlocks = dataBlocks
        self.mapPages = mapPages
        self.superblockCopies = superblockCopies
        self.repairedSuperblocks = repairedSuperblocks
        self.damageCount = damageCount
        self.damage = damage
    }
}

public struct ScrubRequest: Codable, Sendable, Equatable {
    /// The most to read in a second; by default what the configuration says.
    public var bytesPerSecond: UInt64?
    /// Begin anew where a scrub was cancelled.
    public var restart: Bool?

    public init(bytesPerSecond: UInt64? = nil, restart: Bool? = nil) {
        self.bytesPerSecond = bytesPerSecond
        self.restart = restart
    }
}

public struct PoolGrowRequest: Codable, Sendable, Equatable {
    /// For a file the most that it may occupy from now on. For a block device that was enlarged, nil takes all of it.
    public var sizeBytes: UInt64?

    public init(sizeBytes: UInt64? = nil) { self.sizeBytes = sizeBytes }
}

/// What an offline check of a pool found.
public struct PoolCheckInfo: Codable, Sendable, Equatable {
    public var path: String
    public var isSound: Bool
    /// In words; at most a hundred.
    public var problems: [String]
    /// What to do about them.
    public var advice: [String]
    public var volumes: Int
    public var snapshots: Int
    public var mapPages: UInt64
    public var dataBlocks: UInt64
    /// Data blocks whose content was compared with its checksum.
    public var verifiedBlocks: UInt64
    /// Blocks in use that have no owner, because a page that led to them was lost. A repair frees them.
    public var setAsideBlocks: UInt64?
    /// Blocks that a repair freed; nil where none was asked for.
    public var repairedBlocks: UInt64?

    public init(
        path: String, isSound: Bool, problems: [String], advice: [String] = [], volumes: Int = 0, snapshots: Int = 0,
        mapPages: UInt64 = 0,
        dataBlocks: UInt64 = 0, verifiedBlocks: UInt64 = 0, setAsideBlocks: UInt64? = nil,
        repairedBlocks: UInt64? = nil
    ) {
        self.path = path
        self.isSound = isSound
        self.problems = problems
        self.advice = advice
        self.volumes = volumes
        self.snapshots = snapshots
        self.mapPages = mapPages
        self.dataBlocks = dataBlocks
        self.verifiedBlocks = verifiedBlocks
        self.setAsideBlocks = setAsideBlocks
        self.repairedBlocks = repairedBlocks
    }
}
