internal import BlockIO

/// What is wrong with a pool: what there is to do about it depends on that.
public enum PoolProblemKind: String, Sendable, CaseIterable {
    /// Data is not what was written.
    case data
    /// A page of a volume's map is not what was written, or was lost.
    case map
    /// A page of the allocation map is not what was written.
    case allocationMap
    /// Blocks are taken that nothing refers to.
    case ownerless
    /// A copy of the superblock is wrong.
    case superblock
    /// The catalog, attributes or the journal cannot be read.
    case catalog
    /// Structures are whole and say different things: no fault of the disk does that.
    case contradiction
}

/// What a check of a pool found.
public struct PoolCheckReport: Sendable, Equatable {
    /// What is wrong, in words; empty for a sound pool. At most a hundred.
    public var problems: [String] = []
    public var kinds: Set<PoolProblemKind> = []
    public var mapPages: UInt64 = 0
    public var dataBlocks: UInt64 = 0
    /// Data blocks whose content was read and compared with its checksum.
    public var verifiedBlocks: UInt64 = 0
    /// Blocks that are in use and have no owner because a map page that led to them was lost. They are never used
    /// again.
    public var setAsideBlocks: UInt64 = 0
    public var volumes = 0
    public var snapshots = 0

    public var isSound: Bool { problems.isEmpty }
}

/// Proves a pool's invariants: every reference leads to what was written, every block has exactly one owner or is free,
/// the bitmaps and the sums say the same.
///
/// Memory is bounded, however large the pool: the owners of one stretch of it are collected at a time, 16 bytes for
/// each of its blocks, and the maps are walked once for each stretch. A walk leaves out map pages below which nothing
/// lies in its stretch, as far as there is memory to know that.
public enum PoolChecker {
    /// What a check takes in all; the stretches are then of 72 GiB.
    public static let defaultMemoryBytes: UInt64 = 512 << 20
    /// Less is no good for anything.
    public static let leastMemoryBytes: UInt64 = 128 << 20

    /// How much of the memory the open pool gets, and how much what the check collects.
    private static func divide(_ memoryBytes: UInt64) -> (pool: UInt64, check: UInt64) {
        let pool = max(PoolOptions.leastMemoryBytes, memoryBytes / 4)
        return (pool, max(memoryBytes, 2 * pool) - pool)
    }

    /// Checks a pool that nobody has open, as recovery would find it. Changes nothing.
    ///
    /// - Parameters:
    ///   - memoryBytes: What the open pool and the check take together, at least ``leastMemoryBytes``. More means fewer
    ///     walks.
    ///   - progress: Called now and then, in the caller's thread.
    public static func check(
        path: String, verifiesData: Bool = true, memoryBytes: UInt64 = defaultMemoryBytes,
        progress: ((PoolCheckProgress) -> Void)? = nil
    ) throws(PoolError) -> PoolCheckReport {
        let memory = divide(memoryBytes)
        var options = PoolOptions()
        options.isReadOnly = true
        options.limitMemory(toBytes: memory.pool)
        // Opened for writing it would do so by itself.
        options.dropsSystemCache = true
        let pool = try Pool.open(path: path, options: options)
        var report = try run(pool, verifiesData: verifiesData, memoryBytes: memory.check, progress: progress)
        for copy in pool.superblockCopies() where !copy.isGood {
            let what = copy.generation.map { "holds generation \($0)" } ?? "holds nothing valid"
            report.kinds.insert(.superblock)
            report.problems.append("the copy of the superblock at \(copy.offset) \(what); others are whole")
        }
        try pool.close()
        return report
    }

    /// Frees what is in use and nothing reaches, and rebuilds what the allocation map lost, from the maps themselves.
    /// Nobody may have the pool open. Returns the number of blocks that came free; nil where a page of a map cannot be
    /// read, so that nobody knows what it leads to: then nothing changes.
    public static func repair(
        path: String, memoryBytes: UInt64 = defaultMemoryBytes
    ) throws(PoolError) -> UInt64? {
        let memory = divide(memoryBytes)
        var options = PoolOptions()
        options.limitMemory(toBytes: memory.pool)
        let pool = try Pool.open(path: path, options: options)
        let freed = try repair(pool, memoryBytes: memory.check)
        try pool.close()
        return freed
    }

    /// The same for an open pool that nobody uses at the moment.
    static func repair(_ pool: Pool, memoryBytes: UInt64 = defaultMemoryBytes) throws(PoolError) -> UInt64? {
        let core = pool.core
        // What was freed a moment ago must have left its lists, and nothing may be half way into the maps.
        try core.maintain()
        return try core.rebuildSpace(memoryBytes: memoryBytes)
    }

    /// Checks an open pool that nobody uses at the moment.
    public static func check(
        _ pool: Pool, verifiesData: Bool = true, memoryBytes: UInt64 = defaultMemoryBytes
    ) -> PoolCheckReport {
        do {
            return try run(pool, verifiesData: verifiesData, memoryBytes: memoryBytes, progress: nil)
        } catch {
            var report = PoolCheckReport()
            report.problems = ["nothing was checked: \(error)"]
            return report
        }
    }

    private static func run(
        _ pool: Pool, verifiesData: Bool, memoryBytes: UInt64, progress: ((PoolCheckProgress) -> Void)?
    ) throws(PoolError) -> PoolCheckReport {
        let core = pool.core
        core.maintenance.lock()
        core.monitor.lock()
        defer {
            core.monitor.unlock()
            core.maintenance.unlock()
        }
        let walks = try PoolWalks(core, memoryBytes: memoryBytes)
        walks.progress = progress
        var walk = try PoolWalk(walks, verifiesData: verifiesData)
        for number in 0..<walks.count {
            walks.tell(.maps, number, pages: 0)
            walk.run(number)
        }
        return walk.report
    }
}

/// How far a check is.
public struct PoolCheckProgress: Sendable, Equatable {
    public enum Stage: String, Sendable {
        /// The maps are walked.
        case maps
        /// Data is read and compared with its checksums.
        case data
    }

    public var stage: Stage
    /// The stretch that is being proven, from 1.
    public var stretch: Int
    public var stretchCount: Int
    /// Of the whole, from 0 to 100.
    public var percent: Double
}

/// The stretches of a pool that are walked one after the other, and what their walks share.
final class PoolWalks {
    let core: PoolCore
    let visited: VisitedPages
    let count: Int
    var progress: ((PoolCheckProgress) -> Void)?
    private let stretchBlocks: UInt64
    private let endBlock: UInt64
    /// Map pages of the pool, at most.
    private let pages: UInt64

    /// Three quarters of the memory are for owners, the rest for what is remembered of map pages.
    ///
    /// - Throws: where it cannot be had.
    init(_ core: PoolCore, memoryBytes: UInt64) throws(PoolError) {
        self.core = core
        let region = core.space.regionBlocks
        stretchBlocks = max(region, memoryBytes / 4 * 3 / OwnerTable.bytesPerBlock / region * region)
        endBlock = UInt64(core.space.regions.count) * region
        count = max(1, Int((endBlock + stretchBlocks - 1) / stretchBlocks))
        pages = core.space.regions.reduce(0) { $0 + ($1.kind == .metadata ? UInt64($1.busyCount) : 0) }
        visited = try VisitedPages(
            pages: pages, memoryBytes: memoryBytes / 4, stretchBlocks: stretchBlocks, stretchCount: count)
    }

    func stretch(_ number: Int) -> Range<UInt64> {
        let start = UInt64(number) * stretchBlocks
        return start..<max(start, min(start + stretchBlocks, endBlock))
    }

    /// A guess: of a walk the maps are a fifth and reading the data is the rest.
    func tell(_ stage: PoolCheckProgress.Stage, _ number: Int, pages walked: UInt64 = 0, at block: UInt64 = 0) {
        guard let progress else { return }
        let blocks = stretch(number)
        let part =
            switch stage {
            case .maps: 0.2 * min(1, Double(walked * UInt64(count)) / Double(max(1, pages)))
            case .data: 0.2 + 0.8 * Double(block - blocks.lowerBound) / Double(max(1, blocks.count))
            }
        progress(
            PoolCheckProgress(
                stage: stage, stretch: number + 1, stretchCount: count,
                percent: 100 * (Double(number) + part) / Double(count)))
    }
}
