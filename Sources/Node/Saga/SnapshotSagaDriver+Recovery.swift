import API
import Logging
import Protection
import Synchronization

extension SnapshotSagaDriver {
    /// Ends what a former process left open: thaws on all involved agents, labels snapshots from journalled evidence,
    /// deletes pending ones. Returns when everything is clean, which takes a lease where an agent does not answer.
    /// Call it once, at start, before requests are let in; new sagas on the volumes concerned wait until it is done
    /// with them.
    ///
    /// The answer has an entry for each saga whose job may not know yet how it ended.
    func recoverAfterRestart() async -> [RecoveredSaga] {
        let entries: [SagaJournalEntry]
        do {
            entries = try await effects.journal.entries()
        } catch {
            effects.logger.error("the saga journal cannot be read; nothing is recovered: \(error)")
            return []
        }
        let groups = Dictionary(grouping: entries.filter { $0.kind == .snapshot }, by: \.sagaID)
        let own = running.withLock { $0 }
        var recovered: [RecoveredSaga] = []
        await withTaskGroup(of: RecoveredSaga?.self) { group in
            for (sagaID, entries) in groups where !own.contains(sagaID) {
                group.addTask { await self.recover(sagaID, entries) }
            }
            group.addTask {
                await self.deleteOrphans(known: Set(groups.keys))
                return nil
            }
            for await saga in group {
                if let saga { recovered.append(saga) }
            }
        }
        return recovered.sorted { $0.sagaID < $1.sagaID }
    }

    private func recover(_ sagaID: String, _ entries: [SagaJournalEntry]) async -> RecoveredSaga? {
        let jobID = entries.first?.jobID ?? ""
        do {
            let records = try entries.map { try $0.decoded(SnapshotRecord.self) }
            guard let saga = OpenSaga(records: records) else {
                ended.add(sagaID)
                return nil
            }
            if let outcome = saga.outcome {
                ended.add(sagaID)
                return RecoveredSaga(sagaID: sagaID, jobID: jobID, outcome: await self.outcome(outcome, saga.plan))
            }
            effects.logger.notice(
                "a saga was left open by a former process; recovering",
                metadata: ["saga": "\(sagaID)", "step": "\(entries.last?.step ?? "")"])
            let volumes = Set(saga.plan.volumes)
            try await effects.reservations.acquire(volumes)
            let run = SnapshotRecoveryRun(saga: saga, jobID: jobID, limits: limits, effects: effects)
            let (outcome, isClosed) = await run.run()
            await effects.reservations.release(volumes)
            if isClosed { ended.add(sagaID) }
            effects.logger.notice("recovered", metadata: ["saga": "\(sagaID)", "closed": "\(isClosed)"])
            return RecoveredSaga(sagaID: sagaID, jobID: jobID, outcome: await self.outcome(outcome, saga.plan))
        } catch {
            effects.logger.error("a saga cannot be recovered: \(error)", metadata: ["saga": "\(sagaID)"])
            return RecoveredSaga(sagaID: sagaID, jobID: jobID, outcome: .failed(.from(error)))
        }
    }

    private func outcome(_ outcome: SnapshotSaga.Outcome, _ plan: SnapshotPlan) async -> RecoveredSaga.Outcome {
        switch outcome {
        case .failed(let failure): return .failed(APIFailure(failure))
        case .labelled:
            let pool = effects.pool
            do {
                return .snapshot(try await effects.blocking.run { try pool.info(snapshot: plan.snapshotID) })
            } catch {
                return .failed(.from(error))
            }
        }
    }

    /// Pending snapshots that no saga of the journal owns: the journal was lost, or is an older copy.
    private func deleteOrphans(known: Set<String>) async {
        let pool = effects.pool
        do {
            let pending = try await effects.blocking.run {
                pool.snapshots().filter { SnapshotAttributes(bytes: $0.attributes)?.state == .pending }
            }
            for snapshot in pending {
                guard let sagaID = SnapshotAttributes(bytes: snapshot.attributes)?.sagaID else { continue }
                guard !known.contains(sagaID), !running.withLock({ $0.contains(sagaID) }) else { continue }
                effects.logger.warning("deleting a pending snapshot that no saga owns: \(snapshot.name)")
                try await effects.blocking.run { try pool.delete(snapshot: snapshot.id) }
            }
        } catch {
            effects.logger.error("pending snapshots without an owner could not be deleted: \(error)")
        }
    }
}

/// The recovery of one snapshot saga.
private final class SnapshotRecoveryRun: Sendable {
    private let saga: OpenSaga
    private let jobID: String
    private let limits: SagaLimits
    private let effects: SagaEffects
    private let loop: SagaLoop<SagaRecovery.Event>

    init(saga: OpenSaga, jobID: String, limits: SagaLimits, effects: SagaEffects) {
        self.saga = saga
        self.jobID = jobID
        self.limits = limits
        self.effects = effects
        loop = SagaLoop(clock: effects.clock)
    }

    func run() async -> (outcome: SnapshotSaga.Outcome, isClosed: Bool) {
        await Task { await untilEnded() }.value
    }

    private func untilEnded() async -> (outcome: SnapshotSaga.Outcome, isClosed: Bool) {
        var machine = SagaRecovery(saga: saga, limits: limits)
        var ended: (SnapshotSaga.Outcome, Bool)?
        loop.send(.start)
        await loop.run(timer: .timer) { event in
            if case .thawFailed(let agent, let reason) = event {
                effects.logger.warning("agent \(agent) was not reached for a thaw: \(reason)")
            }
            for action in machine.handle(event, at: loop.now) {
                if case .end(let outcome, let isClosed) = action { ended = (outcome, isClosed) }
                await perform(action)
            }
            return ended == nil ? .wakeAt(machine.nextWakeup) : .ended
        }
        return ended ?? (.failed(SagaFailure(.interrupted, "The recovery's loop ended")), false)
    }

    private func perform(_ action: SagaRecovery.Action) async {
        switch action {
        case .thaw(let agent): loop.spawn { await self.thaw(agent) }
        case .label(let evidence): loop.spawn { await self.label(evidence) }
        case .delete: loop.spawn { await self.delete() }
        case .record(let record):
            do {
                try await effects.journal.append(
                    try SagaJournalEntry(record, sagaID: saga.plan.sagaID, jobID: jobID))
                loop.send(.recorded(sequence: record.sequence))
            } catch {
                loop.send(.journalFailed(reason: "\(error)"))
            }
        case .end: break
        }
    }

    private func thaw(_ agent: String) async -> SagaRecovery.Event {
        do {
            let answer = try await effects.agents.thaw(
                agent, ThawRequest(sagaID: saga.plan.sagaID), timeoutSeconds: limits.releaseTimeout.inSeconds)
            guard answer.failures.isEmpty else {
                return .thawFailed(agent: agent, reason: answer.failures.joined(separator: "; "))
            }
            return .thawed(agent: agent, released: answer.released)
        } catch let failure as APIFailure where failure.code == "agentNotFound" {
            // It was removed: nobody can be asked any more, and its lease ends by itself.
            return .thawed(agent: agent, released: [])
        } catch {
            return .thawFailed(agent: agent, reason: AgentCallFailure(error).text)
        }
    }

    private func label(_ evidence: Evidence) async -> SagaRecovery.Event {
        let (pool, plan) = (effects.pool, saga.plan)
        do {
            let attributes = try SnapshotAttributes.complete(plan, evidence).bytes()
            let isThere = try await effects.blocking.run {
                guard pool.snapshot(plan.snapshotID) != nil else { return false }
                try pool.setAttributes(snapshot: plan.snapshotID, attributes)
                return true
            }
            return isThere ? .labelled : .labelFailed(reason: "the snapshot is gone", isGone: true)
        } catch {
            return .labelFailed(reason: APIFailure.from(error).message, isGone: false)
        }
    }

    private func delete() async -> SagaRecovery.Event {
        let (pool, plan) = (effects.pool, saga.plan)
        do {
            try await effects.blocking.run { try pool.delete(snapshot: plan.snapshotID) }
            return .deleted
        } catch {
            return .deleteFailed(reason: APIFailure.from(error).message)
        }
    }
}
