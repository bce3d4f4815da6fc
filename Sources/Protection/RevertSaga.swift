/// The revert saga as a pure state machine, like ``SnapshotSaga`` and with the same promises of the driver.
///
///     plan → prepare (driven only) → block logins → check sessions → swap → unit attention → unblock → finish → done
///
/// Logins are blocked before the sessions are looked at, so that nobody slips in between. What was stopped is brought
/// back whether the swap happened or not. The swap is one record of the pool that keeps what the volumes held.
public struct RevertSaga: Sendable {
    public enum Event: Sendable {
        case start
        case recorded(sequence: Int)
        case journalFailed(reason: String)
        /// `usesVolumes` when one of the volumes is a device of this host, or anything lies on it.
        case discovered(agent: String, usesVolumes: Bool)
        case discoverFailed(agent: String, reason: String)
        case prepared(agent: String, steps: [String])
        case prepareFailed(agent: String, reason: String)
        case blocked
        case sessions([VolumeSession])
        case swapped
        /// Nothing was swapped.
        case swapFailed(reason: String)
        case attentionRaised
        case unblocked
        case finished(agent: String, steps: [String])
        case finishFailed(agent: String, reason: String)
        case timer
        case cancelled
    }

    public enum Action: Sendable, Equatable {
        case record(RevertRecord)
        case discover(agent: String)
        case prepare(agent: String)
        case block
        case checkSessions
        case swap
        case raiseAttention
        case unblock
        /// `isReverted` tells whether artifacts of the snapshot apply.
        case finish(agent: String, isReverted: Bool)
        case stepBegan(RevertStep, detail: String?)
        case stepSucceeded(RevertStep, detail: String?)
        case stepFailed(RevertStep, detail: String?)
        case stepCompensated(RevertStep, detail: String?)
        case end(Outcome, isClosed: Bool)
    }

    public enum Outcome: Sendable, Equatable {
        /// One sentence for each thing done, in order, with what could not be brought back.
        case reverted(steps: [String])
        case failed(SagaFailure)
    }

    enum Phase: Sendable, Equatable {
        case idle, planning, preparing, blocking, checking, swapping, raising, unblocking, finishing, closing, ended
    }

    enum Continuation: Sendable { case discover, prepare, block, swap, finish, close }

    public let plan: RevertPlan
    /// How long a driven revert waits for sessions to end.
    public var sessionPatience: Duration = .seconds(10)
    /// How long it tries to have things brought back; a job of its own goes on after that.
    public var finishPatience: Duration = .seconds(60)
    public var retryInterval: Duration = .milliseconds(250)

    private var phase: Phase = .idle
    private var actions: [Action] = []
    private var sequence = 0
    private var awaitingRecord: [Int: Continuation] = [:]
    private var journalIsBroken = false
    private var awaited: Set<String> = []
    private var users: [String] = []
    private var isBlocked = false
    private var isSwapped = false
    private var giveUpAt: MonotonicInstant?
    private var checkAt: MonotonicInstant?
    private var finishAt: [String: MonotonicInstant] = [:]
    private var steps: [String] = []
    private var failure: SagaFailure?

    public init(plan: RevertPlan) { self.plan = plan }

    public var isEnded: Bool { phase == .ended }

    public mutating func handle(_ event: Event, at now: MonotonicInstant) -> [Action] {
        actions = []
        guard phase != .ended else { return [] }
        defer { actions = [] }
        take(event, now)
        if let at = checkAt, now >= at {
            checkAt = nil
            actions.append(.checkSessions)
        }
        for (agent, at) in finishAt.sorted(by: { $0.key < $1.key }) where now >= at {
            finishAt[agent] = nil
            actions.append(.finish(agent: agent, isReverted: isSwapped))
        }
        return actions
    }

    public var nextWakeup: MonotonicInstant? { ([checkAt].compactMap(\.self) + finishAt.values).min() }

    private mutating func take(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .start:
            guard phase == .idle else { return }
            phase = .planning
            begin(.plan, "\(plan.volumes.joined(separator: ", ")) to \(plan.snapshotName)")
            journal(.plan, .plan(plan), then: .discover, now)
        case .recorded(let sequence):
            guard let continuation = awaitingRecord.removeValue(forKey: sequence) else { return }
            proceed(continuation, now)
        case .journalFailed(let reason): journalFailed(reason, now)
        case .discovered, .discoverFailed: takeDiscovery(event, now)
        case .prepared, .prepareFailed: takePrepare(event, now)
        case .blocked:
            guard phase == .blocking else { return }
            succeed(.block)
            if let failure { return turnBack(failure, now) }
            check(now)
        case .sessions(let sessions): takeSessions(sessions, now)
        case .swapped, .swapFailed: takeSwap(event, now)
        case .attentionRaised:
            guard phase == .raising else { return }
            succeed(.attention)
            unblock(now)
        case .unblocked:
            guard phase == .unblocking else { return }
            succeed(.unblock)
            finish(now)
        case .finished, .finishFailed: takeFinish(event, now)
        case .timer: break
        case .cancelled: cancel(now)
        }
    }

    // MARK: Journal

    private mutating func journal(
        _ step: RevertStep, _ body: RevertRecord.Body, then continuation: Continuation, _ now: MonotonicInstant
    ) {
        guard !journalIsBroken else { return proceed(continuation, now) }
        actions.append(.record(RevertRecord(sequence: sequence, step: step, body: body)))
        awaitingRecord[sequence] = continuation
        sequence += 1
    }

    private mutating func journalFailed(_ reason: String, _ now: MonotonicInstant) {
        guard !journalIsBroken else { return }
        journalIsBroken = true
        let waiting = awaitingRecord.sorted { $0.key < $1.key }.map(\.value)
        awaitingRecord = [:]
        if !isSwapped { fail(SagaFailure(.journalFailed, "The node's journal failed: \(reason)"), now) }
        for continuation in waiting { proceed(continuation, now) }
    }

    private mutating func proceed(_ continuation: Continuation, _ now: MonotonicInstant) {
        switch continuation {
        case .discover where failure == nil: discover(now)
        case .prepare where failure == nil:
            awaited = Set(users)
            for agent in users { actions.append(.prepare(agent: agent)) }
        case .block where failure == nil:
            isBlocked = true
            actions.append(.block)
        case .swap where failure == nil: actions.append(.swap)
        case .finish: sendFinish(now)
        case .close: end()
        case .discover, .prepare, .block, .swap: break
        }
    }

    // MARK: Plan and prepare

    private mutating func discover(_ now: MonotonicInstant) {
        guard plan.isDriven, !plan.agents.isEmpty else {
            succeed(.plan)
            return block(now)
        }
        awaited = Set(plan.agents.map(\.name))
        for agent in plan.agents { actions.append(.discover(agent: agent.name)) }
    }

    private mutating func takeDiscovery(_ event: Event, _ now: MonotonicInstant) {
        guard phase == .planning else { return }
        switch event {
        case .discovered(let agent, let usesVolumes):
            guard awaited.remove(agent) != nil else { return }
            if usesVolumes { users.append(agent) }
        case .discoverFailed(let agent, let reason):
            guard awaited.remove(agent) != nil else { return }
            let known = plan.agents.first { $0.name == agent }?.lastKnownVolumes
            if known.map({ !$0.isDisjoint(with: plan.volumes) }) ?? true {
                return fail(
                    SagaFailure(
                        .prepareFailed, "Agent \(agent), which may use the volumes, does not answer: \(reason)",
                        hint: "Bring the agent back, or detach the volumes by hand and revert without driving agents"),
                    now)
            }
        default: break
        }
        guard awaited.isEmpty, failure == nil else { return }
        users.sort()
        succeed(.plan, users.isEmpty ? nil : "in use on \(users.joined(separator: ", "))")
        guard !users.isEmpty else { return block(now) }
        phase = .preparing
        begin(.prepare, users.joined(separator: ", "))
        journal(.prepare, .prepare(users), then: .prepare, now)
    }

    private mutating func takePrepare(_ event: Event, _ now: MonotonicInstant) {
        guard phase == .preparing else { return }
        switch event {
        case .prepared(let agent, let done):
            guard awaited.remove(agent) != nil else { return }
            steps += done.map { "\(agent): \($0)" }
        case .prepareFailed(let agent, let reason):
            guard awaited.remove(agent) != nil else { return }
            // The others are waited for: what they stop has to be brought back.
            failure =
                failure
                ?? SagaFailure(
                    .prepareFailed, "Agent \(agent) could not free the volumes: \(reason)",
                    hint: "What was stopped is brought back; the volumes hold what they held")
        default: break
        }
        guard awaited.isEmpty else { return }
        if let failure {
            actions.append(.stepFailed(.prepare, detail: failure.message))
            return turnBack(failure, now)
        }
        succeed(.prepare, steps.joined(separator: "; "))
        block(now)
    }

    // MARK: Block, check, swap

    private mutating func block(_ now: MonotonicInstant) {
        phase = .blocking
        begin(.block)
        journal(.block, .block, then: .block, now)
    }

    private mutating func check(_ now: MonotonicInstant) {
        phase = .checking
        giveUpAt = now + (plan.isDriven ? sessionPatience : .zero)
        begin(.check)
        actions.append(.checkSessions)
    }

    private mutating func takeSessions(_ sessions: [VolumeSession], _ now: MonotonicInstant) {
        guard phase == .checking else { return }
        let inUse = sessions.filter { !$0.isIdle }
        if inUse.isEmpty {
            succeed(.check, sessions.isEmpty ? nil : "\(sessions.count) idle sessions stay")
            phase = .swapping
            begin(.swap)
            journal(.swap, .swap, then: .swap, now)
        } else if let giveUpAt, now < giveUpAt {
            checkAt = now + retryInterval
        } else {
            let who = inUse.map { "\($0.initiator) (\($0.address)) has a session to \($0.volume)" }
            fail(
                SagaFailure(
                    .volumeInUse, "The volumes are in use: \(who.joined(separator: "; "))",
                    hint: plan.isDriven
                        ? "Log these initiators out, then revert again"
                        : "Log these initiators out, or let the agents do it (--drive)"), now)
        }
    }

    private mutating func takeSwap(_ event: Event, _ now: MonotonicInstant) {
        guard phase == .swapping else { return }
        switch event {
        case .swapped:
            isSwapped = true
            failure = nil
            steps.append("\(plan.volumes.joined(separator: ", ")) reverted to \(plan.snapshotName)")
            steps.append("what was there before is kept as \(plan.keepName)")
            succeed(.swap, "kept as \(plan.keepName)")
            phase = .raising
            begin(.attention)
            actions.append(.raiseAttention)
        case .swapFailed(let reason):
            actions.append(.stepFailed(.swap, detail: reason))
            let failure = self.failure ?? SagaFailure(.revertFailed, "The volumes could not be reverted: \(reason)")
            turnBack(failure, now)
        default: break
        }
    }

    // MARK: Unblock, finish

    private mutating func unblock(_ now: MonotonicInstant) {
        guard isBlocked else { return finish(now) }
        phase = .unblocking
        begin(.unblock)
        actions.append(.unblock)
    }

    private mutating func finish(_ now: MonotonicInstant) {
        guard !users.isEmpty else { return close(now) }
        phase = .finishing
        giveUpAt = now + finishPatience
        begin(.finish, users.joined(separator: ", "))
        journal(.finish, .finish, then: .finish, now)
    }

    private mutating func sendFinish(_ now: MonotonicInstant) {
        awaited = Set(users)
        for agent in users { actions.append(.finish(agent: agent, isReverted: isSwapped)) }
    }

    private mutating func takeFinish(_ event: Event, _ now: MonotonicInstant) {
        guard phase == .finishing else { return }
        switch event {
        case .finished(let agent, let done):
            guard awaited.remove(agent) != nil else { return }
            steps += done.map { "\(agent): \($0)" }
        case .finishFailed(let agent, let reason):
            guard awaited.contains(agent) else { return }
            if let giveUpAt, now < giveUpAt {
                finishAt[agent] = now + retryInterval * 4
                return
            }
            awaited.remove(agent)
            steps.append(
                "agent \(agent) has not brought back what it had stopped: \(reason). "
                    + "A job keeps trying: see stillpoint job list"
            )
            actions.append(.stepFailed(.finish, detail: "agent \(agent): \(reason)"))
            return awaited.isEmpty ? close(now) : ()
        default: break
        }
        guard awaited.isEmpty else { return }
        succeed(.finish)
        close(now)
    }

    // MARK: Ending

    /// Before the swap everything is undone; after it, it is too late, and the rest goes its way.
    private mutating func cancel(_ now: MonotonicInstant) {
        switch phase {
        case .idle, .planning, .preparing, .blocking, .checking:
            fail(SagaFailure(.cancelled, "The revert to \(plan.snapshotName) was cancelled"), now)
        case .swapping, .raising, .unblocking, .finishing, .closing, .ended: break
        }
    }

    private mutating func fail(_ reason: SagaFailure, _ now: MonotonicInstant) {
        guard failure == nil else { return }
        failure = reason
        switch phase {
        case .idle, .planning:
            actions.append(.stepFailed(.plan, detail: reason.message))
            close(now)
        case .preparing: if awaited.isEmpty { turnBack(reason, now) }
        case .blocking: if !isBlocked { turnBack(reason, now) }
        case .checking:
            checkAt = nil
            actions.append(.stepFailed(.check, detail: reason.message))
            turnBack(reason, now)
        // The record before the swap failed: nothing was swapped.
        case .swapping: if awaitingRecord.isEmpty, journalIsBroken { turnBack(reason, now) }
        case .raising, .unblocking, .finishing, .closing, .ended: break
        }
    }

    private mutating func turnBack(_ reason: SagaFailure, _ now: MonotonicInstant) {
        failure = reason
        if isBlocked { unblock(now) } else { finish(now) }
        if !users.isEmpty { actions.append(.stepCompensated(.prepare, detail: "what was stopped is brought back")) }
    }

    private mutating func close(_ now: MonotonicInstant) {
        phase = .closing
        journal(.done, .done(isSwapped ? nil : failure), then: .close, now)
    }

    private mutating func end() {
        guard phase == .closing else { return }
        phase = .ended
        if isSwapped {
            actions.append(.end(.reverted(steps: steps), isClosed: !journalIsBroken))
        } else {
            let reason = failure ?? SagaFailure(.revertFailed, "The revert did not happen")
            actions.append(.end(.failed(reason), isClosed: !journalIsBroken))
        }
    }

    private mutating func begin(_ step: RevertStep, _ detail: String? = nil) {
        actions.append(.stepBegan(step, detail: detail))
    }

    private mutating func succeed(_ step: RevertStep, _ detail: String? = nil) {
        actions.append(.stepSucceeded(step, detail: detail))
    }
}
