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
            scrub: scrub, alerts: watch.alerts(statistics, scrub: scrub))
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
///   - clearsFailure: Lets the next start open a pool for writing that had failed, if it is sound.
/// - Throws: ``ServeFailure`` where a node has it open, or there is none.
public func checkPool(
    _ configuration: NodeConfiguration, path: String? = nil, verifiesData: Bool, repairs: Bool = false,
    clearsFailure: Bool
) throws -> PoolCheckInfo {
    let path = path ?? configuration.effectivePoolPath
    do {
        var repaired: UInt64?
        if repairs {
            repaired = try PoolChecker.repair(path: path)
            if repaired == nil {
                throw ServeFailure(
                    "nothing was repaired: a page of a map in \(path) cannot be read, and what it leads to is not "
                        + "known. `stillpoint pool check` says which; overwrite or delete what lies there, then "
                        + "try again"
                )
            }
        }
        let report = try PoolChecker.check(path: path, verifiesData: verifiesData)
        if clearsFailure, report.isSound { PoolFailureMark.remove(configuration.dataDirectory) }
        return PoolCheckInfo(
            path: path, isSound: report.isSound, problems: report.problems, volumes: report.volumes,
            snapshots: report.snapshots, mapPages: report.mapPages, dataBlocks: report.dataBlocks,
            verifiedBlocks: report.verifiedBlocks, setAsideBlocks: report.setAsideBlocks, repairedBlocks: repaired)
    } catch let error as PoolError {
        switch error {
        case .inUse:
            throw ServeFailure("a node has the pool \(path) open; stop it first, or scrub it while it runs")
        case .damaged, .notAPool, .unsupported:
            return PoolCheckInfo(path: path, isSound: false, problems: [error.description])
        default: throw ServeFailure("the pool \(path) cannot be checked: \(error.description)")
        }
    }
}
