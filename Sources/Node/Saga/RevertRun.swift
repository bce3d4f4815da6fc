import API
import Foundation
import Logging
import Protection
import Synchronization

/// One revert saga: carries out what the machine asks for, and tells it what came of it.
final class RevertRun: Sendable {
    /// Plug-ins may have to stop and start large applications.
    static let agentSeconds = 120.0
    static let discoverSeconds = 15.0

    private let plan: RevertPlan
    /// The volumes of the plan.
    private let volumes: [SagaVolume]
    /// Of the snapshot's members, by agent, then by `plugin/resource`.
    private let artifacts: [String: [String: [String: String]]]
    private let effects: SagaEffects
    private let report: any SagaReporting
    private let loop: SagaLoop<RevertSaga.Event>
    /// By agent: the iSCSI names under which its host has each volume as a block device, as `volume initiator`.
    private let reached = Mutex<[String: Set<String>]>([:])
    /// Those of the agents that have said that nothing uses the volumes any more.
    private let idle = Mutex<Set<String>>([])
    /// By agent: what it was asked to bring back and has not.
    private let unfinished = Mutex<[String: RestoreRequest]>([:])

    init(
        plan: RevertPlan, volumes: [SagaVolume], artifacts: [String: [String: [String: String]]],
        effects: SagaEffects, report: any SagaReporting
    ) {
        self.plan = plan
        self.volumes = volumes
        self.artifacts = artifacts
        self.effects = effects
        self.report = report
        loop = SagaLoop(clock: effects.clock)
    }

    /// Returns when what was stopped is brought back and the outcome is durable. Cancelling before the swap turns the
    /// saga back; after it, nothing does.
    func run() async -> (outcome: RevertSaga.Outcome, isClosed: Bool) {
        let task = Task { await untilEnded() }
        return await withTaskCancellationHandler {
            await task.value
        } onCancel: {
            loop.send(.cancelled)
        }
    }

    private func untilEnded() async -> (outcome: RevertSaga.Outcome, isClosed: Bool) {
        var machine = RevertSaga(plan: plan)
        var ended: (RevertSaga.Outcome, Bool)?
        loop.send(.start)
        await loop.run(timer: .timer) { event in
            for action in machine.handle(event, at: loop.now) {
                if case .end(let outcome, let isClosed) = action { ended = (outcome, isClosed) }
                await perform(action)
            }
            return ended == nil ? .wakeAt(machine.nextWakeup) : .ended
        }
        return ended ?? (.failed(SagaFailure(.interrupted, "The saga's loop ended")), false)
    }

    private func perform(_ action: RevertSaga.Action) async {
        switch action {
        case .record(let record): loop.send(await write(record))
        case .discover(let agent): loop.spawn { await self.discover(agent) }
        case .prepare(let agent): loop.spawn { await self.prepare(agent) }
        case .block:
            for volume in volumes { effects.guarding.blockLogins(naa: volume.naa) }
            loop.send(.blocked)
        case .checkSessions: loop.send(.sessions(sessions()))
        case .swap: loop.spawn { await self.swap() }
        case .raiseAttention:
            for volume in volumes { effects.guarding.deviceReverted(naa: volume.naa) }
            loop.send(.attentionRaised)
        case .unblock:
            for volume in volumes { effects.guarding.unblockLogins(naa: volume.naa) }
            loop.send(.unblocked)
        case .finish(let agent, let isReverted): loop.spawn { await self.finish(agent, isReverted) }
        case .stepBegan(let step, let detail): await report.stepBegan(step.rawValue, detail: detail)
        case .stepSucceeded(let step, let detail):
            await report.stepSucceeded(step.rawValue, detail: detail)
            await effects.crashPoint.hit("\(step.rawValue).after")
        case .stepFailed(let step, let detail): await report.stepFailed(step.rawValue, detail: detail)
        case .stepCompensated(let step, let detail): await report.stepCompensated(step.rawValue, detail: detail)
        case .end: await effects.crashPoint.hit("revert.done.after")
        }
    }

    private func write(_ record: RevertRecord) async -> RevertSaga.Event {
        do {
            // Before the saga is called done: what is left of it belongs to somebody from then on.
            if record.step == .done { try await keepUnfinished() }
            try await effects.journal.append(try SagaJournalEntry(record, sagaID: plan.sagaID, jobID: report.jobID))
            await effects.crashPoint.hit("\(record.step.rawValue).before")
            return .recorded(sequence: record.sequence)
        } catch {
            return .journalFailed(reason: "\(error)")
        }
    }

    private var references: [VolumeReference] { volumes.map { VolumeReference(name: $0.name, naa: $0.naa) } }

    private func discover(_ agent: String) async -> RevertSaga.Event {
        do {
            let answer = try await effects.agents.discover(
                agent, DiscoverRequest(volumes: references), timeoutSeconds: Self.discoverSeconds)
            let names = answer.devices.compactMap { device in device.initiator.map { "\(device.volume) \($0)" } }
            reached.withLock { $0[agent] = Set(names) }
            // Applications lie on what has a device. A hook may be for a volume that is used elsewhere.
            let holds = !answer.devices.isEmpty || answer.resources.contains { $0.layer != .application }
            return .discovered(agent: agent, usesVolumes: holds)
        } catch {
            return .discoverFailed(agent: agent, reason: AgentCallFailure(error).text)
        }
    }

    private func prepare(_ agent: String) async -> RevertSaga.Event {
        do {
            let answer = try await effects.agents.prepareRestore(
                agent, RestoreRequest(restoreID: plan.sagaID, volumes: references), timeoutSeconds: Self.agentSeconds)
            let names = reached.withLock { $0[agent] ?? [] }
            idle.withLock { $0.formUnion(names) }
            return .prepared(agent: agent, steps: answer.steps)
        } catch {
            return .prepareFailed(agent: agent, reason: AgentCallFailure(error).text)
        }
    }

    private func keepUnfinished() async throws {
        for (agent, request) in unfinished.withLock({ $0 }) {
            try await effects.journal.keep(UnfinishedRestore(agent: agent, request: request, since: .now))
        }
    }

    var hasUnfinished: Bool { unfinished.withLock { !$0.isEmpty } }

    private func finish(_ agent: String, _ isReverted: Bool) async -> RevertSaga.Event {
        let request = RestoreRequest(
            restoreID: plan.sagaID, volumes: references, artifacts: isReverted ? artifacts[agent] ?? [:] : [:])
        do {
            let answer = try await effects.agents.finishRestore(agent, request, timeoutSeconds: Self.agentSeconds)
            unfinished.withLock { $0[agent] = nil }
            return .finished(agent: agent, steps: answer.steps)
        } catch {
            unfinished.withLock { $0[agent] = request }
            return .finishFailed(agent: agent, reason: AgentCallFailure(error).text)
        }
    }

    private func sessions() -> [VolumeSession] {
        let idle = idle.withLock { $0 }
        return volumes.flatMap { volume in
            effects.guarding.sessions(naa: volume.naa).map { session in
                VolumeSession(
                    volume: volume.name, initiator: session.initiator, address: session.address,
                    isIdle: idle.contains("\(volume.name) \(session.initiator)"))
            }
        }
    }

    private func swap() async -> RevertSaga.Event {
        let (pool, plan) = (effects.pool, plan)
        do {
            try await effects.blocking.run {
                let attributes = SnapshotAttributes(
                    sagaID: plan.sagaID, state: .complete, requested: .crash, achieved: .crash, quietSeconds: 0,
                    evidence: nil)
                do {
                    try pool.revert(
                        volumes: plan.volumes, to: plan.snapshotID, keepID: plan.keepID, keepName: plan.keepName,
                        attributes: try attributes.bytes())
                } catch {
                    // An error that came after the record is none.
                    guard pool.snapshot(plan.keepID) != nil else { throw error }
                }
            }
            return .swapped
        } catch {
            return .swapFailed(reason: APIFailure.from(error).message)
        }
    }
}
