import API
import Foundation
import Logging
import Protection
import Synchronization

/// Runs snapshot sagas: the pure machine of `Protection` against the pool, the agents and the journal.
final class SnapshotSagaDriver: Sendable {
    let effects: SagaEffects
    let limits: SagaLimits
    /// Sagas of this process that are not over: their pending snapshots have an owner.
    let running = Mutex<Set<String>>([])
    let ended = EndedSagas()

    init(effects: SagaEffects, limits: SagaLimits = SagaLimits()) {
        self.effects = effects
        self.limits = limits
    }

    static let leaseSecondsRange = 2.0...60.0
    static let defaultLeaseSeconds = 10.0

    /// Takes a snapshot of one or several volumes in one cut. Throws ``API/APIFailure``; then nothing is left behind.
    /// Cancelling the task cancels the saga until its evidence is weighed.
    func run(request: SnapshotCreateRequest, report: any SagaReporting) async throws -> SnapshotInfo {
        try Self.check(request)
        let volumes = Set(request.volumes)
        try await effects.reservations.acquire(volumes)
        do {
            let info = try await runReserved(request, report)
            await effects.reservations.release(volumes)
            return info
        } catch {
            await effects.reservations.release(volumes)
            throw error
        }
    }

    private func runReserved(_ request: SnapshotCreateRequest, _ report: any SagaReporting) async throws -> SnapshotInfo
    {
        await ended.forgetOld(effects)
        let plan = try await plan(request)
        _ = running.withLock { $0.insert(plan.sagaID) }
        defer { _ = running.withLock { $0.remove(plan.sagaID) } }
        let run = SnapshotSagaRun(plan: plan, limits: limits, effects: effects, report: report)
        let (outcome, isClosed) = await run.run()
        if isClosed { ended.add(plan.sagaID) }
        switch outcome {
        case .failed(let failure): throw APIFailure(failure)
        case .labelled(let evidence):
            await remember(evidence)
            let pool = effects.pool
            return try await effects.blocking.run { try pool.info(snapshot: plan.snapshotID) }
        }
    }

    /// For the estimates of later sagas; a loss here is none.
    private func remember(_ evidence: Evidence) async {
        let seconds = evidence.members.filter(\.isProven).map { ($0.member.key.description, $0.quiesceSeconds) }
        guard !seconds.isEmpty else { return }
        do {
            try await effects.journal.rememberQuiesce(Dictionary(seconds) { first, _ in first })
        } catch {
            effects.logger.warning("the quiet times could not be remembered: \(error)")
        }
    }

    // MARK: Plan

    static func check(_ request: SnapshotCreateRequest) throws {
        guard !request.volumes.isEmpty else { throw APIFailure.invalid("a snapshot needs at least one volume") }
        guard Set(request.volumes).count == request.volumes.count else {
            throw APIFailure.invalid("a volume is named twice")
        }
        if let lease = request.leaseSeconds, !leaseSecondsRange.contains(lease) {
            throw APIFailure.invalid("leaseSeconds must be from 2 to 60, not \(lease)")
        }
    }

    func plan(_ request: SnapshotCreateRequest) async throws -> SnapshotPlan {
        let pool = effects.pool
        let clock = effects.clock
        let name = try await effects.blocking.run { () throws -> String in
            for name in request.volumes where pool.volume(named: name) == nil {
                throw APIFailure.unknown("volume", name)
            }
            if let name = request.name, pool.hasSnapshot(named: name) {
                throw APIFailure.conflict(
                    "nameTaken", "there is a snapshot \"\(name)\" already", hint: "Choose another name")
            }
            return request.name
                ?? SnapshotNames.unused(for: request.volumes[0], at: clock, isTaken: pool.hasSnapshot(named:))
        }
        let requested = ConsistencyLevel(request.consistency ?? .crash)
        return SnapshotPlan(
            sagaID: UUID().uuidString.lowercased(), snapshotID: UUID().uuidString.lowercased(), snapshotName: name,
            volumes: request.volumes, requested: requested, policy: LevelPolicy(request.policy ?? .require),
            lease: .seconds(request.leaseSeconds ?? Self.defaultLeaseSeconds),
            agents: requested > .crash ? try await effects.candidates() : [],
            history: requested > .crash ? try await effects.journal.quiesceHistory() : [:])
    }
}

extension SagaEffects {
    /// All enrolled agents, with what they had when they last answered.
    func candidates() async throws -> [AgentCandidate] {
        var candidates: [AgentCandidate] = []
        for name in try await agents.names().sorted() {
            candidates.append(
                AgentCandidate(
                    name: name, lastKnownVolumes: try await journal.lastKnownVolumes(ofAgent: name),
                    machine: try await journal.machine(ofAgent: name)))
        }
        return candidates
    }
}

/// Names that snapshots get where the request has none.
enum SnapshotNames {
    /// `VOLUME@2026-11-21T03:20:15Z`, with a number where that is taken. At most 128 bytes.
    static func unused(
        for volume: String, at clock: any SagaClock, mark: String = "", isTaken: (String) -> Bool
    ) -> String {
        let seconds = Double(clock.unixNanoseconds() / 1_000_000_000)
        let time = Date(timeIntervalSince1970: seconds).formatted(.iso8601)
        let base = "\(volume.prefix(80))@\(mark)\(time)"
        guard isTaken(base) else { return base }
        var number = 2
        while isTaken("\(base).\(number)") { number += 1 }
        return "\(base).\(number)"
    }
}

/// Sagas that have ended in this process and whose records are still kept: a job's end may not be durable yet, and
/// until it is, a restart has to be able to tell how its saga ended.
final class EndedSagas: Sendable {
    private static let keptSeconds: Int64 = 10
    /// Each time is a durable change of the catalog that a snapshot waits for.
    private static let forgottenTogether = 32
    private static let mostKeptSeconds: Int64 = 600
    private let sagas = Mutex<[(id: String, at: Int64)]>([])

    func add(_ id: String) { sagas.withLock { $0.append((id, Self.now)) } }

    func forgetOld(_ effects: SagaEffects) async {
        let old = sagas.withLock { sagas -> [String] in
            let now = Self.now
            let old = sagas.filter { $0.at < now - Self.keptSeconds }
            let isLongAgo = old.contains { $0.at < now - Self.mostKeptSeconds }
            guard old.count >= Self.forgottenTogether || isLongAgo else { return [] }
            sagas.removeAll { $0.at < now - Self.keptSeconds }
            return old.map(\.id)
        }
        guard !old.isEmpty else { return }
        do {
            try await effects.journal.forget(sagaIDs: old)
        } catch {
            effects.logger.warning("the journal of \(old.count) sagas could not be cleared: \(error)")
        }
    }

    private static var now: Int64 { Int64(Date.now.timeIntervalSince1970) }
}
