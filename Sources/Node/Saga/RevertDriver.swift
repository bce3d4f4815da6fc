import API
import Foundation
import Logging
import Protection

/// Runs revert sagas, and their undo.
final class RevertDriver: Sendable {
    private let effects: SagaEffects
    private let ended = EndedSagas()

    init(effects: SagaEffects) { self.effects = effects }

    /// Puts volumes back to what a snapshot holds; `dryRun` says what would be done. Throws ``API/APIFailure``: then
    /// the volumes hold what they held before.
    func run(request: RevertRequest, report: any SagaReporting) async throws -> RevertResult {
        guard !request.volumes.isEmpty else { throw APIFailure.invalid("a revert needs at least one volume") }
        guard Set(request.volumes).count == request.volumes.count else {
            throw APIFailure.invalid("a volume is named twice")
        }
        let volumes = Set(request.volumes)
        try await effects.reservations.acquire(volumes)
        do {
            let result = try await runReserved(request, report)
            await effects.reservations.release(volumes)
            return result
        } catch {
            await effects.reservations.release(volumes)
            throw error
        }
    }

    private func runReserved(_ request: RevertRequest, _ report: any SagaReporting) async throws -> RevertResult {
        await ended.forgetOld(effects)
        let (volumes, snapshot) = try await resolve(request)
        let isDriven = request.drive ?? false
        let plan = RevertPlan(
            sagaID: UUID().uuidString.lowercased(), volumes: request.volumes, snapshotID: snapshot.id,
            snapshotName: snapshot.name, keepID: UUID().uuidString.lowercased(),
            keepName: try await unusedName(for: request.volumes[0]),
            isDriven: isDriven, agents: isDriven ? try await effects.candidates() : [])
        if request.dryRun ?? false { return await rehearse(plan, volumes) }
        try await refuseWhileUnfinished(volumes)
        let run = RevertRun(
            plan: plan, volumes: volumes, artifacts: Self.artifacts(of: snapshot, for: volumes), effects: effects,
            report: report)
        let (outcome, isClosed) = await run.run()
        if isClosed { ended.add(plan.sagaID) }
        if run.hasUnfinished { await effects.onUnfinishedRestore() }
        switch outcome {
        case .failed(let failure): throw APIFailure(failure)
        case .reverted(let steps): return Self.result(plan, steps)
        }
    }

    private static func result(_ plan: RevertPlan, _ steps: [String]) -> RevertResult {
        RevertResult(
            volumes: plan.volumes, revertedTo: plan.snapshotName, keptSnapshot: plan.keepID, steps: steps)
    }

    /// What a restore may need of the snapshot's members on these volumes: by agent, then by `plugin/resource`.
    private static func artifacts(
        of snapshot: SagaSnapshot, for volumes: [SagaVolume]
    ) -> [String: [String: [String: String]]] {
        let names = Set(volumes.map(\.name))
        var artifacts: [String: [String: [String: String]]] = [:]
        for member in SnapshotAttributes(bytes: snapshot.attributes)?.evidence?.members ?? [] {
            guard !member.artifacts.isEmpty, !names.isDisjoint(with: member.volumes) else { continue }
            artifacts[member.agent, default: [:]]["\(member.plugin)/\(member.resource)"] = member.artifacts
        }
        return artifacts
    }

    // MARK: Plan

    /// What is brought back later would be brought back on other data, with artifacts that do not belong to them.
    private func refuseWhileUnfinished(_ volumes: [SagaVolume]) async throws {
        let names = Set(volumes.map(\.name))
        let open = try await effects.journal.unfinishedRestores().first { !names.isDisjoint(with: $0.volumes) }
        guard let open else { return }
        throw APIFailure.conflict(
            "restoreUnfinished",
            "agent \(open.agent) has not yet brought back what it stopped for an earlier revert of "
                + open.volumes.joined(separator: ", "),
            hint: "stillpoint job list shows the job restore.finish; wait for it, or give it up: stillpoint job abandon"
        )
    }

    private static func isShown(_ snapshot: SagaSnapshot) -> Bool {
        SnapshotAttributes(bytes: snapshot.attributes)?.state != .pending
    }

    private func unusedName(for volume: String) async throws -> String {
        let (pool, clock) = (effects.pool, effects.clock)
        return try await effects.blocking.run {
            SnapshotNames.unused(
                for: volume, at: clock, mark: "before-revert-", isTaken: pool.hasSnapshot(named:))
        }
    }

    private func resolve(
        _ request: RevertRequest
    ) async throws -> (volumes: [SagaVolume], snapshot: SagaSnapshot) {
        let pool = effects.pool
        let volumes = try await effects.blocking.run {
            try request.volumes.map { name in
                guard let volume = pool.volume(named: name) else { throw APIFailure.unknown("volume", name) }
                return volume
            }
        }
        let group = Set(request.volumes)
        if request.undo ?? false {
            guard request.snapshot == nil else {
                throw APIFailure.invalid("an undo goes to what was there before the last revert; name no snapshot")
            }
            let kept = try await effects.blocking.run {
                pool.snapshots(of: request.volumes[0])
                    .filter { $0.isBeforeRevert && group.isSubset(of: $0.volumes) && Self.isShown($0) }
            }
            guard let newest = kept.max(by: { $0.createdAt < $1.createdAt }) else {
                throw APIFailure.conflict(
                    "nothingToUndo", "no revert of \(request.volumes.joined(separator: ", ")) is kept",
                    hint: "stillpoint snapshot list VOLUME shows what there is to go back to")
            }
            return (volumes, newest)
        }
        guard let wanted = request.snapshot else { throw APIFailure.invalid("say which snapshot to revert to") }
        let found = try await effects.blocking.run { pool.snapshot(wanted) }
        guard let snapshot = found, Self.isShown(snapshot) else {
            throw APIFailure.unknown("snapshot", wanted)
        }
        if let outside = request.volumes.first(where: { !snapshot.volumes.contains($0) }) {
            throw APIFailure(
                status: 409, code: "notAMember",
                message: "the snapshot \"\(snapshot.name)\" has no \"\(outside)\" in it",
                hint: "Its members are \(snapshot.volumes.joined(separator: ", "))")
        }
        return (volumes, snapshot)
    }

    /// What would be done, and what stands in its way.
    private func rehearse(_ plan: RevertPlan, _ volumes: [SagaVolume]) async -> RevertResult {
        var steps: [String] = []
        let references = volumes.map { VolumeReference(name: $0.name, naa: $0.naa) }
        for agent in plan.agents {
            do {
                let answer = try await effects.agents.discover(
                    agent.name, DiscoverRequest(volumes: references), timeoutSeconds: RevertRun.discoverSeconds)
                // Found from the bottom up, and stopped from the top down.
                for resource in answer.resources.reversed() {
                    steps.append("would stop \(resource.label) on agent \(agent.name), and bring it back after")
                }
            } catch {
                steps.append("agent \(agent.name) does not answer: \(AgentCallFailure(error).text)")
            }
        }
        for volume in volumes {
            for session in effects.guarding.sessions(naa: volume.naa) {
                let what = plan.isDriven ? "would wait for its end" : "would refuse"
                steps.append("\(session.initiator) (\(session.address)) has a session to \(volume.name): \(what)")
            }
        }
        let verb = plan.volumes.count == 1 ? "holds" : "hold"
        steps.append("would keep what \(plan.volumes.joined(separator: ", ")) \(verb) now as \(plan.keepName)")
        steps.append("would revert \(plan.volumes.joined(separator: ", ")) to \(plan.snapshotName)")
        return RevertResult(volumes: plan.volumes, revertedTo: plan.snapshotName, keptSnapshot: nil, steps: steps)
    }

    // MARK: Recovery

    /// Ends what a former process left open: brings back what was stopped, whether the swap had happened or not. The
    /// answer has an entry for each saga whose job may not know yet how it ended.
    func recoverAfterRestart() async -> [RecoveredSaga] {
        let entries: [SagaJournalEntry]
        do {
            entries = try await effects.journal.entries()
        } catch {
            effects.logger.error("the saga journal cannot be read; nothing is recovered: \(error)")
            return []
        }
        let groups = Dictionary(grouping: entries.filter { $0.kind == .revert }, by: \.sagaID)
        return await withTaskGroup(of: RecoveredSaga?.self, returning: [RecoveredSaga].self) { group in
            for (sagaID, entries) in groups { group.addTask { await self.recover(sagaID, entries) } }
            var recovered: [RecoveredSaga] = []
            for await saga in group {
                if let saga { recovered.append(saga) }
            }
            return recovered.sorted { $0.sagaID < $1.sagaID }
        }
    }

    private func recover(_ sagaID: String, _ entries: [SagaJournalEntry]) async -> RecoveredSaga? {
        let jobID = entries.first?.jobID ?? ""
        do {
            let records = try entries.map { try $0.decoded(RevertRecord.self) }
            guard let saga = OpenRevert(records: records) else {
                ended.add(sagaID)
                return nil
            }
            let pool = effects.pool
            let (volumes, snapshots) = try await effects.blocking.run { (pool.volumes(), pool.snapshots()) }
            // The swap is one record: what it kept is there, or nothing has happened.
            let isSwapped = snapshots.contains { $0.id == saga.plan.keepID }
            if !saga.isDone {
                let reserved = Set(saga.plan.volumes)
                try await effects.reservations.acquire(reserved)
                let own = volumes.filter { reserved.contains($0.name) }
                let target = isSwapped ? snapshots.first { $0.id == saga.plan.snapshotID } : nil
                let left = await finish(saga, own, target.map { Self.artifacts(of: $0, for: own) } ?? [:])
                await effects.reservations.release(reserved)
                for restore in left { try await effects.journal.keep(restore) }
                try await close(saga, isSwapped: isSwapped, jobID: jobID)
                if !left.isEmpty { await effects.onUnfinishedRestore() }
            }
            ended.add(sagaID)
            let outcome: RecoveredSaga.Outcome =
                isSwapped
                ? .reverted(Self.result(saga.plan, ["the node was stopped meanwhile; its recovery ended the revert"]))
                : .failed(APIFailure(saga.failure ?? Self.interrupted(saga.plan)))
            return RecoveredSaga(sagaID: sagaID, jobID: jobID, outcome: outcome)
        } catch {
            effects.logger.error("a revert cannot be recovered: \(error)", metadata: ["saga": "\(sagaID)"])
            return RecoveredSaga(sagaID: sagaID, jobID: jobID, outcome: .failed(.from(error)))
        }
    }

    private static func interrupted(_ plan: RevertPlan) -> SagaFailure {
        SagaFailure(
            .interrupted, "The node was stopped before it reverted \(plan.volumes.joined(separator: ", "))",
            hint: "The volumes hold what they held, and what was stopped is brought back; revert again")
    }

    private func close(_ saga: OpenRevert, isSwapped: Bool, jobID: String) async throws {
        let record = RevertRecord(
            sequence: saga.nextSequence, step: .done, body: .done(isSwapped ? nil : Self.interrupted(saga.plan)))
        try await effects.journal.append(
            try SagaJournalEntry(record, sagaID: saga.plan.sagaID, jobID: jobID))
    }

    /// Most agents answer at once. For the others a job goes on, and the volumes are not kept from others by it.
    private static let finishSeconds: Int64 = 10
    private static let retryNanoseconds: Int64 = 1_000_000_000

    /// Has everything brought back; answers what was not.
    private func finish(
        _ saga: OpenRevert, _ volumes: [SagaVolume], _ artifacts: [String: [String: [String: String]]]
    ) async -> [UnfinishedRestore] {
        let references = volumes.map { VolumeReference(name: $0.name, naa: $0.naa) }
        let giveUpAt = effects.clock.monotonicNanoseconds() + Self.finishSeconds * 1_000_000_000
        var left: [UnfinishedRestore] = []
        for agent in saga.preparedAgents {
            let request = RestoreRequest(
                restoreID: saga.plan.sagaID, volumes: references, artifacts: artifacts[agent] ?? [:])
            while true {
                do {
                    _ = try await effects.agents.finishRestore(
                        agent, request, timeoutSeconds: RevertRun.agentSeconds)
                    break
                } catch {
                    effects.logger.warning("agent \(agent) could not bring back what it stopped: \(error)")
                    let now = effects.clock.monotonicNanoseconds()
                    guard now < giveUpAt, await pause(from: now) else {
                        left.append(UnfinishedRestore(agent: agent, request: request, since: .now))
                        break
                    }
                }
            }
        }
        return left
    }

    /// - Returns: false where the task was cancelled.
    private func pause(from now: Int64) async -> Bool {
        do {
            try await effects.clock.sleep(until: now + Self.retryNanoseconds)
            return true
        } catch {
            return false
        }
    }
}
