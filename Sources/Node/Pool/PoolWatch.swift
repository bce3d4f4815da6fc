import API
import BlockStore
import Foundation
import ISCSI
import Logging
import ServiceLifecycle
import Synchronization

/// Looks at the pool every second: tells initiators and the log when space runs out, and knows what somebody should
/// look at.
final class PoolWatch: Sendable {
    private struct State {
        var isAboveThreshold = false
        var damageTotal: UInt64 = 0
        var crossings: UInt64 = 0
    }

    /// The threshold is armed again when use has fallen this far below it.
    private static let hysteresisPercent = 2.0

    let pool: Pool
    let softThresholdPercent: Int
    let path: String
    private let registry: TargetRegistry
    private let blocking: BlockingCalls
    private let logger: Logger
    private let state = Mutex(State())

    init(
        pool: Pool, configuration: NodeConfiguration, registry: TargetRegistry, blocking: BlockingCalls, logger: Logger
    ) {
        self.pool = pool
        softThresholdPercent = configuration.poolSoftThresholdPercent
        path = configuration.effectivePoolPath
        self.registry = registry
        self.blocking = blocking
        self.logger = logger
    }

    /// How often initiators were told that space runs out.
    var crossings: UInt64 { state.withLock { $0.crossings } }

    static func usedPercent(_ statistics: PoolStatistics) -> Double {
        let all = statistics.usedBytes + statistics.freeBytes
        return all == 0 ? 100 : Double(statistics.usedBytes) * 100 / Double(all)
    }

    // MARK: Looking

    /// One look. Returns whether the threshold was crossed just now.
    @discardableResult
    func look() async throws -> Bool {
        let pool = pool
        let (statistics, damage) = try await blocking.run { (pool.statistics, pool.damage()) }
        noteDamage(damage.records, total: damage.total)
        guard noteUse(Self.usedPercent(statistics)) else { return false }
        logger.warning(
            "the pool's soft threshold is reached",
            metadata: [
                "used": "\(statistics.usedBytes)", "free": "\(statistics.freeBytes)",
                "percent": "\(softThresholdPercent)",
            ])
        let volumes = try await blocking.run { pool.volumes() }
        for volume in volumes { registry.deviceSoftThreshold(naa: volume.naa.description) }
        return true
    }

    /// Whether the threshold is crossed upwards.
    private func noteUse(_ percent: Double) -> Bool {
        let threshold = Double(softThresholdPercent)
        return state.withLock { state in
            let wasAbove = state.isAboveThreshold
            if percent >= threshold {
                state.isAboveThreshold = true
            } else if percent < threshold - Self.hysteresisPercent {
                state.isAboveThreshold = false
            }
            let isCrossed = state.isAboveThreshold && !wasAbove
            if isCrossed { state.crossings += 1 }
            return isCrossed
        }
    }

    private func noteDamage(_ records: [DamageRecord], total: UInt64) {
        let isNew = state.withLock { state in
            let isNew = total > state.damageTotal
            state.damageTotal = total
            return isNew
        }
        guard isNew, let last = records.last else { return }
        logger.error("the pool holds damage", metadata: ["found": "\(total)", "last": "\(last)"])
    }

    // MARK: Alerts

    /// What somebody should look at now, the worst first.
    func alerts(_ statistics: PoolStatistics, scrub: ScrubInfo?) -> [PoolAlert] {
        var alerts: [PoolAlert] = []
        switch statistics.state {
        case .healthy: break
        case .full:
            alerts.append(
                PoolAlert(
                    kind: "full", message: "the pool has no room for new writes",
                    hint: "Delete snapshots or volumes, unmap, or give it more room: stillpoint pool grow"))
        case .readOnly(let reason):
            alerts.append(
                PoolAlert(
                    kind: pool.isOpenedReadOnly ? "readOnly" : "failed", message: "the pool is read-only: \(reason)",
                    hint: "Copy what is needed away, see to the disk, stop the node and run: stillpoint pool check"))
        }
        if statistics.state == .healthy, Self.usedPercent(statistics) >= Double(softThresholdPercent) {
            alerts.append(
                PoolAlert(
                    kind: "softThreshold",
                    message: "\(Int(Self.usedPercent(statistics))) % of the pool are used; the threshold is "
                        + "\(softThresholdPercent) %",
                    hint: "Delete snapshots or volumes, unmap, or give it more room: stillpoint pool grow"))
        }
        return alerts + damageAlerts(scrub)
    }

    private func damageAlerts(_ scrub: ScrubInfo?) -> [PoolAlert] {
        let (records, _) = pool.damage()
        var alerts: [PoolAlert] = []
        var texts = records.filter { !$0.isRepaired }.map(\.description)
        // What the last scrub found outlives a restart.
        if records.isEmpty, let scrub { texts = scrub.damage.filter { !$0.hasSuffix("(repaired)") } }
        if let first = texts.first {
            alerts.append(
                PoolAlert(
                    kind: "damage",
                    message: texts.count == 1 ? first : "\(first), and \(texts.count - 1) more",
                    hint: "Reads of it fail; restore it from a snapshot or backup, see to the disk, and run: "
                        + "stillpoint pool scrub"))
        }
        if let repaired = scrub?.repairedSuperblocks, repaired > 0 {
            alerts.append(
                PoolAlert(
                    kind: "superblockRepaired", message: "the last scrub repaired \(repaired) copies of the superblock",
                    hint: "See to the disk; the next scrub that finds nothing takes this away"))
        }
        return alerts
    }
}

/// Looks every second, until the node ends.
struct PoolWatchService: Service {
    let watch: PoolWatch
    let logger: Logger

    private static let everySeconds = 1.0

    func run() async throws {
        await cancelWhenGracefulShutdown {
            while !Task.isCancelled {
                do {
                    try await watch.look()
                } catch {
                    logger.warning("the pool could not be looked at", metadata: ["error": "\(error)"])
                }
                try? await Task.sleep(for: .seconds(Self.everySeconds))
            }
        }
    }
}
