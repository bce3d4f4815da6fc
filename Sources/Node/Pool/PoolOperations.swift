public import API
import BlockStore
import Foundation
import Logging

extension NodeServices {
    func poolInfo() async throws -> PoolInfo {
        let pool = inventory.pool
        let (statistics, copies, memory) = try await inventory.blocking.run {
            (pool.statistics, pool.superblockCopies(), pool.memory)
        }
        let status = Inventory.status(statistics)
        let scrub = scrubbing.info
        return PoolInfo(
            path: watch.path, backend: pool.backend, state: status.state, failure: status.failure,
            sizeBytes: statistics.sizeBytes, usedBytes: statistics.usedBytes, freeBytes: statistics.freeBytes,
            usedPercent: (PoolWatch.usedPercent(statistics) * 10).rounded() / 10,
            softThresholdPercent: watch.softThresholdPercent, journalSizeBytes: statistics.journalSizeBytes,
            journalUsedBytes: statistics.journalUsedBytes, generation: pool.generation, epoch: statistics.epoch,
            superblockCopies: copies.map {
                SuperblockCopyInfo(offset: $0.offset, generation: $0.generation, isGood: $0.isGood)
            },
            memory: PoolMemoryInfo(
                limitBytes: memory.limitBytes, overlayBytes: memory.overlayBytes, cacheBytes: memory.cacheBytes,
                cacheLimitBytes: memory.cacheLimitBytes, bitmapBytes: memory.bitmapBytes),
            reclaim: Self.reclaim(statistics.reclaim), scrub: scrub, alerts: watch.alerts(statistics, scrub: scrub))
    }

    private static func reclaim(_ progress: ReclaimProgress) -> ReclaimInfo {
        ReclaimInfo(
            pending: progress.pending, waiting: progress.waiting, sizeBytes: progress.sizeBytes,
            doneBytes: progress.doneBytes, freedBytes: progress.freedBytes, leavingBytes: progress.leavingBytes)
    }

    func growPool(_ request: PoolGrowRequest) async throws -> PoolInfo {
        let pool = inventory.pool
        let size = try await inventory.blocking.run { try pool.grow(to: request.sizeBytes) }
        inventory.logger.notice("pool grown", metadata: ["bytes": "\(size)"])
        try await watch.look()
        return try await poolInfo()
    }
}

/// Checks the pool of a data directory that no node serves: every checksum, every tree, one owner for every block.
///
/// - Parameters:
///   - path: The pool's file or device; nil for what the configuration says.
///   - verifiesData: Whether data blocks are read, too, and not the maps alone.
///   - repairs: Rebuilds the allocation map from the maps first, which frees what was set aside.
///   - memoryBytes: What it may take in all; nil for half a GiB. More means fewer walks over the maps.
///   - clearsFailure: Lets the next start open a pool for writing that had failed, if it is sound.
///   - progress: Called often, with how far it is.
/// - Throws: ``ServeFailure`` where a node has it open, or there is none.
public func checkPool(
    _ configuration: NodeConfiguration, path: String? = nil, verifiesData: Bool, repairs: Bool = false,
    memoryBytes: UInt64? = nil, clearsFailure: Bool, progress: ((String) -> Void)? = nil
) throws -> PoolCheckInfo {
    let path = path ?? configuration.effectivePoolPath
    let memoryBytes = memoryBytes ?? PoolChecker.defaultMemoryBytes
    do {
        var repaired: UInt64?
        if repairs {
            repaired = try PoolChecker.repair(path: path, memoryBytes: memoryBytes)
            if repaired == nil {
                throw ServeFailure(
                    "nothing was repaired: a page of a map in \(path) cannot be read, and what it leads to is not "
                        + "known. `stillpoint pool check` says which; overwrite or delete what lies there, then "
                        + "try again"
                )
            }
        }
        let report = try PoolChecker.check(
            path: path, verifiesData: verifiesData, memoryBytes: memoryBytes,
            progress: progress.map { tell in { tell(progressText($0)) } })
        if clearsFailure, report.isSound { PoolFailureMark.remove(configuration.dataDirectory) }
        return PoolCheckInfo(
            path: path, isSound: report.isSound, problems: report.problems, advice: advice(report.kinds),
            volumes: report.volumes, snapshots: report.snapshots, mapPages: report.mapPages,
            dataBlocks: report.dataBlocks,
            verifiedBlocks: report.verifiedBlocks, setAsideBlocks: report.setAsideBlocks, repairedBlocks: repaired)
    } catch let error as PoolError {
        switch error {
        case .inUse:
            throw ServeFailure("a node has the pool \(path) open; stop it first, or scrub it while it runs")
        case .damaged:
            return PoolCheckInfo(
                path: path, isSound: false, problems: [error.description], advice: [advice(.catalog)])
        case .notAPool, .unsupported:
            return PoolCheckInfo(path: path, isSound: false, problems: [error.description])
        default: throw ServeFailure("the pool \(path) cannot be checked: \(error.description)")
        }
    }
}

private func progressText(_ progress: PoolCheckProgress) -> String {
    let stage =
        switch progress.stage {
        case .maps: "walking the maps"
        case .data: "reading the data"
        }
    return "\(Int(progress.percent)) %, \(stage) of part \(progress.stretch) of \(progress.stretchCount)"
}

/// The memory that a check can be given, in bytes: what it needs at least, and what the machine has.
public let poolCheckMemoryRange: ClosedRange<UInt64> = {
    PoolChecker.leastMemoryBytes...max(PoolChecker.leastMemoryBytes, ProcessInfo.processInfo.physicalMemory)
}()

/// What to do about each kind of problem that a check found.
private func advice(_ kinds: Set<PoolProblemKind>) -> [String] {
    PoolProblemKind.allCases.filter(kinds.contains).map(advice)
}

private func advice(_ kind: PoolProblemKind) -> String {
    switch kind {
    case .data:
        "Wrong data: reads of those places fail, all others work. Restore them from a snapshot that does not have the "
            + "block, or from a backup, or overwrite them; see to the disk"
    case .map:
        "Wrong map pages: what they lead to cannot be read, everything else can. Overwrite, unmap or delete it; "
            + "see to the disk"
    case .allocationMap:
        "Wrong allocation map: nothing stored is lost. stillpoint pool check --repair makes it anew from the volumes' "
            + "maps"
    case .ownerless: "Blocks without an owner: stillpoint pool check --repair frees them"
    case .superblock:
        "Wrong copies of the superblock: start the node and run stillpoint pool scrub, which writes them anew"
    case .catalog:
        "A pool that cannot be read as a whole: copy its file or device away before anything else is tried, and "
            + "restore from a replica or a backup where its node does not even open it read-only"
    case .contradiction:
        "Structures that contradict each other: no fault of a disk does that. Write nothing to the pool, keep a copy "
            + "of it, read what can be read, and report it"
    }
}
