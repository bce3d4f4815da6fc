import API
import Logging
import Protection

/// One snapshot saga: carries out what the machine asks for, and tells it what came of it.
final class SnapshotSagaRun: Sendable {
    private let plan: SnapshotPlan
    private let limits: SagaLimits
    private let effects: SagaEffects
    private let report: any SagaReporting
    private let loop: SagaLoop<SnapshotSaga.Event>
    private let logger: Logger
    private let round: DiscoveryRound

    init(plan: SnapshotPlan, limits: SagaLimits, effects: SagaEffects, report: any SagaReporting) {
        self.plan = plan
        self.limits = limits
        self.effects = effects
        self.report = report
        loop = SagaLoop(clock: effects.clock)
        round = DiscoveryRound(plan.agents.map(\.name))
        var logger = effects.logger
        logger[metadataKey: "saga"] = "\(plan.sagaID)"
        self.logger = logger
    }

    /// Returns when everything is released and the outcome is durable. Cancelling turns the saga back.
    func run() async -> (outcome: SnapshotSaga.Outcome, isClosed: Bool) {
        let task = Task { await untilEnded() }
        return await withTaskCancellationHandler {
            await task.value
        } onCancel: {
            loop.send(.cancelled)
        }
    }

    private func untilEnded() async -> (outcome: SnapshotSaga.Outcome, isClosed: Bool) {
        var machine = SnapshotSaga(plan: plan, limits: limits)
        var ended: (SnapshotSaga.Outcome, Bool)?
        loop.send(.start)
        await loop.run(timer: .timer) { event in
            note(event)
            for action in machine.handle(event, at: loop.now) {
                if case .end(let outcome, let isClosed) = action { ended = (outcome, isClosed) }
                await perform(action)
            }
            return ended == nil ? .wakeAt(machine.nextWakeup) : .ended
        }
        return ended ?? (.failed(SagaFailure(.interrupted, "The saga's loop ended")), false)
    }

    private func perform(_ action: SnapshotSaga.Action) async {
        switch action {
        case .record(let record): loop.send(await write(record))
        case .discover(let agent): loop.spawn { await self.discover(agent) }
        case .preflight(let agent, let resources): loop.spawn { await self.preflight(agent, resources) }
        case .hold(let order): loop.spawn { await self.hold(order) }
        case .renew(let holdID, let agent, let length): loop.spawn { await self.renew(holdID, agent, length) }
        case .cut(let notAfter): loop.spawn { await self.cut(notAfter) }
        case .release(let holdID, let agent): loop.spawn { await self.release(holdID, agent) }
        case .label(let evidence): loop.spawn { await self.label(evidence) }
        case .delete: loop.spawn { await self.delete() }
        case .stepBegan(let step, let detail): await report.stepBegan(step.rawValue, detail: detail)
        case .stepSucceeded(let step, let detail):
            await report.stepSucceeded(step.rawValue, detail: detail)
            await effects.crashPoint.hit("\(step.rawValue).after")
        case .stepFailed(let step, let detail):
            logger.warning("\(step.rawValue) failed: \(detail ?? "")")
            await report.stepFailed(step.rawValue, detail: detail)
        case .stepCompensated(let step, let detail): await report.stepCompensated(step.rawValue, detail: detail)
        case .end: await effects.crashPoint.hit("done.after")
        }
    }

    /// What would otherwise be seen only in its consequences.
    private func note(_ event: SnapshotSaga.Event) {
        switch event {
        case .renewFailed(let holdID, let reason, _): logger.warning("renewal of \(holdID): \(reason)")
        case .releaseFailed(let holdID, let reason, _): logger.warning("release of \(holdID): \(reason)")
        case .journalFailed(let reason): logger.error("journal: \(reason)")
        case .deleteFailed(let reason): logger.error("deleting the pending snapshot: \(reason)")
        case .cutTooLate: logger.warning("the cut came too late for the leases; they are renewed")
        default: break
        }
    }

    // MARK: Journal and pool

    private func write(_ record: SnapshotRecord) async -> SnapshotSaga.Event {
        do {
            try await effects.journal.append(try SagaJournalEntry(record, sagaID: plan.sagaID, jobID: report.jobID))
            await effects.crashPoint.hit("\(record.step.rawValue).before")
            return .recorded(sequence: record.sequence)
        } catch {
            return .journalFailed(reason: "\(error)")
        }
    }

    private func cut(_ notAfter: MonotonicInstant?) async -> SnapshotSaga.Event {
        let (pool, clock, plan) = (effects.pool, effects.clock, plan)
        do {
            let attributes = try SnapshotAttributes.pending(plan).bytes()
            return try await effects.blocking.run {
                let began = clock.monotonicNanoseconds()
                // The thread may have been waited for: this is the last look before the cut.
                if let notAfter, began > notAfter.nanoseconds { return .cutTooLate }
                let startedAt = clock.unixNanoseconds()
                do {
                    let epoch = try pool.cut(
                        id: plan.snapshotID, name: plan.snapshotName, volumes: plan.volumes, attributes: attributes)
                    let seconds = Double(clock.monotonicNanoseconds() - began) / 1e9
                    return .cutDone(CutFacts(epoch: epoch, startedAt: startedAt, durationSeconds: seconds))
                } catch {
                    return .cutFailed(reason: APIFailure.from(error).message)
                }
            }
        } catch {
            return .cutFailed(reason: APIFailure.from(error).message)
        }
    }

    private func label(_ evidence: Evidence) async -> SnapshotSaga.Event {
        let (pool, plan) = (effects.pool, plan)
        do {
            let attributes = try SnapshotAttributes.complete(plan, evidence).bytes()
            try await effects.blocking.run { try pool.setAttributes(snapshot: plan.snapshotID, attributes) }
            return .labelled
        } catch {
            return .labelFailed(reason: APIFailure.from(error).message)
        }
    }

    private func delete() async -> SnapshotSaga.Event {
        let (pool, plan) = (effects.pool, plan)
        do {
            try await effects.blocking.run { try pool.delete(snapshot: plan.snapshotID) }
            return .deleted
        } catch {
            return .deleteFailed(reason: APIFailure.from(error).message)
        }
    }

    // MARK: Agents

    private func discover(_ agent: String) async -> SnapshotSaga.Event {
        do {
            let found = try await effects.resources(
                of: agent, in: round, timeoutSeconds: limits.discoverTimeout.inSeconds, isRemembered: true)
            return .discovered(
                agent: agent, resources: found.resources, warnings: found.warnings, unseen: found.unseen,
                inside: found.inside)
        } catch {
            return .discoverFailed(agent: agent, reason: AgentCallFailure(error).text)
        }
    }

    private func preflight(_ agent: String, _ resources: [Resource]) async -> SnapshotSaga.Event {
        do {
            let findings = try await effects.findings(
                of: agent, resources, timeoutSeconds: limits.preflightTimeout.inSeconds)
            return .preflighted(agent: agent, findings: findings)
        } catch {
            return .preflightFailed(agent: agent, reason: AgentCallFailure(error).text)
        }
    }

    private func hold(_ order: HoldOrder) async -> SnapshotSaga.Event {
        do {
            let answer = try await effects.agents.hold(
                order.agent, order.request(sagaID: plan.sagaID, policy: plan.policy),
                timeoutSeconds: order.lease.inSeconds)
            guard answer.remainingLeaseSeconds > 0 else {
                return .holdFailed(holdID: order.holdID, reason: "its lease has ended", mayBeHeld: true)
            }
            let seconds = Dictionary(answer.members.map { ($0.resource, $0.quiesceSeconds) }) { first, _ in first }
            return .held(holdID: order.holdID, quiesceSeconds: seconds)
        } catch {
            let failure = AgentCallFailure(error)
            return .holdFailed(holdID: order.holdID, reason: failure.text, mayBeHeld: !failure.isRefusal)
        }
    }

    private func renew(_ holdID: String, _ agent: String, _ length: Duration) async -> SnapshotSaga.Event {
        do {
            _ = try await effects.agents.renew(
                agent, holdID: holdID, RenewRequest(leaseSeconds: length.inSeconds),
                timeoutSeconds: limits.renewTimeout.inSeconds)
            return .renewed(holdID: holdID)
        } catch {
            let failure = AgentCallFailure(error)
            return .renewFailed(holdID: holdID, reason: failure.text, isLost: failure.isUnknown)
        }
    }

    private func release(_ holdID: String, _ agent: String) async -> SnapshotSaga.Event {
        do {
            let answer = try await effects.agents.release(
                agent, holdID: holdID, timeoutSeconds: limits.releaseTimeout.inSeconds)
            return .released(holdID: holdID, answers: answer.members.map(ReleaseAnswer.init))
        } catch {
            let failure = AgentCallFailure(error)
            return .releaseFailed(holdID: holdID, reason: failure.text, isUnknown: failure.isUnknown)
        }
    }
}
