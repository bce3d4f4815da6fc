import API
import Catalog
import Foundation
import ISCSI
import Logging
import SCSI

extension Inventory {
    // MARK: Sessions

    /// All sessions, oldest first, those for discovery included.
    func sessions() -> [SessionInfo] { registry.sessions().map(SessionInfo.init) }

    /// Tells the initiator and ends its session. It may log in again unless its rule is taken back.
    func dropSession(_ text: String) throws {
        guard let id = UInt64(text), registry.dropSession(id: id) else { throw APIFailure.unknown("session", text) }
        logger.notice("session dropped", metadata: ["session": "\(id)"])
    }

    // MARK: Discovery

    private static let discoveryContext = "discovery"

    func discovery() async throws -> DiscoveryInfo {
        DiscoveryInfo(
            access: try await catalog.discoveryAccess().map { rule in
                AccessInfo(initiator: rule.initiator, chapUser: rule.chapUser, isMutual: rule.mutualUser != nil)
            })
    }

    /// Lets an initiator discover targets, with credentials that are none of a target's. The first rule shuts out all
    /// who have none.
    func allowDiscovery(_ request: TargetAllowRequest) async throws -> DiscoveryInfo {
        let initiator = try Self.initiatorName(request.initiator)
        let chap = try Self.credentials(request)
        return try await exclusively {
            let rule = try sealedRule(
                request, initiator: initiator, context: Self.sealContext(Self.discoveryContext, initiator))
            // Recorded first: after a crash in between discovery is closed, not open.
            try await catalog.setDiscoveryAccess(rule)
            try registry.allowDiscovery(initiator: Self.registryRule(initiator), chap: chap)
            logger.notice(
                "discovery allowed", metadata: ["initiator": "\(initiator)", "chap": "\(chap != nil)"])
            return try await discovery()
        }
    }

    func denyDiscovery(_ request: TargetDenyRequest) async throws -> DiscoveryInfo {
        let initiator = try Self.initiatorName(request.initiator)
        return try await exclusively {
            guard try await catalog.deleteDiscoveryAccess(initiator: initiator) else {
                throw APIFailure(
                    status: 404, code: "ruleNotFound", message: "discovery has no rule for \(initiator)",
                    hint: "stillpoint discovery show lists its rules")
            }
            try? registry.denyDiscovery(initiator: Self.registryRule(initiator))
            logger.notice("discovery denied", metadata: ["initiator": "\(initiator)"])
            return try await discovery()
        }
    }

    /// Gives the recorded rules to the iSCSI target. One whose secret does not open keeps its initiator out.
    func serveDiscoveryRules() async throws {
        for rule in try await catalog.discoveryAccess() {
            let who = Self.registryRule(rule.initiator)
            do {
                let context = Self.sealContext(Self.discoveryContext, rule.initiator)
                try registry.allowDiscovery(initiator: who, chap: try opened(rule, context: context))
            } catch {
                logger.error(
                    "a discovery rule stays closed",
                    metadata: ["initiator": "\(rule.initiator)", "reason": "\(error)"])
                try registry.closeDiscovery()
            }
        }
    }
}

extension SessionInfo {
    init(_ record: SessionRecord) {
        let statistics = record.statistics
        self.init(
            id: record.id, target: record.iqn, initiator: record.initiator, address: record.address,
            tsih: Int(record.tsih), portalGroup: Int(record.portalGroupTag),
            connectedAt: Date(poolNanoseconds: UInt64(max(0, record.connectedAt))), commands: statistics.commands,
            failedCommands: statistics.failedCommands, readBytes: statistics.bytesRead,
            writtenBytes: statistics.bytesWritten, reads: LatencyInfo(statistics.reads),
            writes: LatencyInfo(statistics.writes))
    }
}

extension LatencyInfo {
    init(_ histogram: LatencyHistogram) {
        let count = histogram.count
        let longest = LatencyHistogram.upperBoundsSeconds.last ?? 0
        self.init(
            count: count, meanSeconds: count == 0 ? 0 : Double(histogram.sumNanoseconds) / 1e9 / Double(count),
            medianSeconds: min(histogram.quantileSeconds(0.5) ?? 0, longest),
            p99Seconds: min(histogram.quantileSeconds(0.99) ?? 0, longest))
    }
}
