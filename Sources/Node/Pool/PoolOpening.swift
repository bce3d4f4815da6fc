import API
import BlockIO
import BlockStore
import Foundation
import Glibc
import Logging

extension NodeProcess {
    /// Opens the pool, or makes it at the first start. A pool that failed, or whose content a recovery cannot trust, is
    /// opened read-only: what is there can be read and copied away.
    static func openPool(_ configuration: NodeConfiguration, _ logger: Logger) throws -> Pool {
        let path = configuration.effectivePoolPath
        var options = PoolOptions()
        if let maximum = configuration.poolMaximumBytes { options.maxSizeBytes = maximum }
        let memory = try PoolMemoryChoice(configured: configuration.poolMemoryBytes, limits: ProcessMemoryLimit.all())
        options.limitMemory(toBytes: memory.bytes)
        if let reason = memory.reason { logger.notice("the pool gets less memory", metadata: ["reason": "\(reason)"]) }
        options.backend = StorageBackend(rawValue: configuration.poolIO.rawValue) ?? .automatic
        options.detectsZeros = configuration.poolDetectsZeros
        options.volatileLogDirectory = volatileLogDirectory(configuration, logger)
        if let mark = PoolFailureMark.read(configuration.dataDirectory) {
            options.isReadOnly = true
            options.readOnlyReason = mark.sentence
            logger.critical("the pool is opened read-only", metadata: ["reason": "\(mark.sentence)"])
        }
        let directory = configuration.dataDirectory
        options.onFailure = { reason in keepFailure(reason, directory, logger) }
        let pool = try openOrMake(path, options, logger)
        logger.notice("pool opened", metadata: ["path": "\(path)", "io": "\(pool.backend)"])
        report(pool.statistics, options, logger)
        return pool
    }

    /// Before any initiator hears of it: a node that is killed right after must not write on at its next start.
    private static func keepFailure(_ reason: String, _ dataDirectory: String, _ logger: Logger) {
        logger.critical("the pool has failed and is read-only from now on", metadata: ["reason": "\(reason)"])
        do {
            try PoolFailureMark(reason: reason, failedAt: .now).write(dataDirectory)
        } catch {
            logger.error("the pool's failure could not be kept for the next start", metadata: ["error": "\(error)"])
        }
    }

    private static func openOrMake(_ path: String, _ options: PoolOptions, _ logger: Logger) throws -> Pool {
        if let reason = HostFile.refusal(of: options.backend) {
            throw ServeFailure(
                "pool.io is \(options.backend.rawValue), and this system allows no io_uring (\(reason)). "
                    + "With auto the node takes it where it can be had, and else pread")
        }
        if try mustMake(path) {
            let pool = try Pool.create(path: path, options: options)
            logger.notice("pool made", metadata: ["path": "\(path)"])
            return pool
        }
        let opened: Result<Pool, PoolError> = Result { () throws(PoolError) in
            try Pool.open(path: path, options: options)
        }
        guard case .failure(.damaged(let text)) = opened, !options.isReadOnly else { return try opened.get() }
        var readOnly = options
        readOnly.isReadOnly = true
        readOnly.readOnlyReason = "it is damaged: \(text)"
        guard let pool = try? Pool.open(path: path, options: readOnly) else { throw PoolError.damaged(text) }
        logger.critical("the pool is opened read-only", metadata: ["reason": "\(text)"])
        return pool
    }

    private static func report(_ statistics: PoolStatistics, _ options: PoolOptions, _ logger: Logger) {
        if statistics.recordsFromVolatileLog > 0 {
            logger.notice(
                "writes that a killed node had answered and not flushed were brought back",
                metadata: ["records": "\(statistics.recordsFromVolatileLog)"])
        }
        if options.volatileLogDirectory != nil, case .off(let reason) = statistics.volatileLog {
            logger.warning("writes that are not flushed will not survive a kill", metadata: ["reason": "\(reason)"])
        }
    }

    /// Where what is answered but not flushed outlives this process: the run directory if it is on tmpfs, else
    /// /dev/shm.
    private static func volatileLogDirectory(_ configuration: NodeConfiguration, _ logger: Logger) -> String? {
        let candidates =
            (configuration.runDirectory.map { ["\($0)/volatile-log"] } ?? []) + ["/dev/shm/stillpoint-\(geteuid())"]
        let (path, problems) = VolatileLogDirectory.firstUsable(of: candidates)
        if path == nil {
            logger.warning(
                "writes that are not flushed will not survive a kill",
                metadata: ["reason": "\(problems.joined(separator: "; "))"])
        }
        return path
    }

    /// Whether there is no pool yet: no file, or a block device that holds nothing but zeros at its beginning. A device
    /// with anything else is refused, never overwritten.
    private static func mustMake(_ path: String) throws -> Bool {
        guard FileManager.default.fileExists(atPath: path) else { return true }
        // The link's own type does not matter: /dev/disk/by-id has links.
        let real = URL(filePath: path).resolvingSymlinksInPath().path
        let type = try FileManager.default.attributesOfItem(atPath: real)[.type] as? FileAttributeType
        guard type == .typeBlockSpecial else { return false }
        guard let file = FileHandle(forReadingAtPath: path) else {
            throw PoolError.io(operation: "opening \(path)", errno: errno)
        }
        defer { try? file.close() }
        let head = try file.read(upToCount: 1 << 20) ?? Data()
        return head.allSatisfy { $0 == 0 }
    }
}
