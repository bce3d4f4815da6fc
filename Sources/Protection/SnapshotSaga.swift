/// The snapshot saga as a pure state machine: events in, actions out, no clock and no I/O of its own.
///
///     plan → preflight → quiesce (layer by layer) → cut → unquiesce (in reverse) → evidence → label → done
///
/// Rules that hold in every history:
///
///  1. Before an effect is asked for, its record is durable: ``Action/record(_:)`` goes out alone, and what it
///     announces follows ``Event/recorded(sequence:)``.
///  2. The cut is asked for only while no hold's lease can have ended (``Lease/earliestEnd``), and with a limit after
///     which it must not begin.
///  3. Whatever may be held is released until the agent answers or the lease has surely ended
///     (``Lease/latestEnd``); ``Action/end(_:isClosed:)`` comes after that.
///  4. A snapshot is labelled with what the release answers prove, or deleted.
///
/// The driver promises: every effect is answered by exactly one event (a call that times out is a failure); actions
/// are carried out in order; ``nextWakeup`` is honoured with ``Event/timer``.
public struct SnapshotSaga: Sendable {
    public enum Event: Sendable {
        case start
        case recorded(sequence: Int)
        case journalFailed(reason: String)
        case discovered(
            agent: String, resources: [Resource], warnings: [String], unseen: [Unseen] = [],
            inside: InsideMachine? = nil)
        case discoverFailed(agent: String, reason: String)
        case preflighted(agent: String, findings: [Finding])
        case preflightFailed(agent: String, reason: String)
        /// Time to come to rest by resource, in seconds; a resource that is missing is not held.
        case held(holdID: String, quiesceSeconds: [String: Double])
        /// `mayBeHeld` unless the agent itself said that nothing is held.
        case holdFailed(holdID: String, reason: String, mayBeHeld: Bool)
        case renewed(holdID: String)
        /// `isLost` when the agent said that it has no such hold.
        case renewFailed(holdID: String, reason: String, isLost: Bool)
        case cutDone(CutFacts)
        /// The limit had passed; nothing was cut.
        case cutTooLate
        /// Whether something was cut is not known.
        case cutFailed(reason: String)
        case released(holdID: String, answers: [ReleaseAnswer])
        /// `isUnknown` when the agent said that it has no such hold.
        case releaseFailed(holdID: String, reason: String, isUnknown: Bool)
        case labelled
        case labelFailed(reason: String)
        case deleted
        case deleteFailed(reason: String)
        case timer
        case cancelled
    }

    public enum Action: Sendable, Equatable {
        case record(SnapshotRecord)
        case discover(agent: String)
        case preflight(agent: String, resources: [Resource])
        case hold(HoldOrder)
        case renew(holdID: String, agent: String, length: Duration)
        /// One cut over all volumes of the plan. After `notAfter` it must not begin any more: `cutTooLate`.
        case cut(notAfter: MonotonicInstant?)
        case release(holdID: String, agent: String)
        case label(Evidence)
        case delete
        /// For the job.
        case stepBegan(SagaStep, detail: String?)
        case stepSucceeded(SagaStep, detail: String?)
        case stepFailed(SagaStep, detail: String?)
        case stepCompensated(SagaStep, detail: String?)
        /// The last action. `isClosed` when no record is left that recovery would have to look at.
        case end(Outcome, isClosed: Bool)
    }

    public enum Outcome: Sendable, Equatable {
        case labelled(Evidence)
        case failed(SagaFailure)
    }

    enum Phase: Sendable, Equatable {
        case idle, planning, preflight
        case quiescing(QuiesceLayer)
        /// All layers are done; waits until every lease has enough left.
        case readying
        case recordingCut, cutting, releasing, deciding, labelling, deleting, closing, ended
    }

    /// What a record announces, done when it is durable.
    enum Continuation: Sendable {
        case discover, preflight, hold(QuiesceLayer), cut, release([String]), label, writeLabel, delete, close
    }

    public let plan: SnapshotPlan
    public let limits: SagaLimits

    var phase: Phase = .idle
    var actions: [Action] = []
    var sequence = 0
    var awaitingRecord: [Int: Continuation] = [:]
    var journalIsBroken = false

    var awaitedAgents: Set<String> = []
    var discovered: [String: [Resource]] = [:]
    var unknown: [String: String] = [:]
    var unknownApplications: [String: String] = [:]
    var inside: [String: InsideMachine] = [:]
    /// Agents that did not answer, with the reason.
    var silent: [String: String] = [:]
    var notes: [String] = []
    var group: ConsistencyGroup?
    var findings: [String: [Finding]] = [:]
    var unreachable: [String: String] = [:]
    var blocked: [MemberKey: String] = [:]

    var holds: [Hold] = []
    var releasingSince: MonotonicInstant?
    /// The layers above on other agents are not waited for any longer.
    var patienceIsOver = false
    var openUnquiesce: [QuiesceLayer] = []
    var cutIsOrdered = false
    var cutFacts: CutFacts?
    var evidence: Evidence?
    var failure: SagaFailure?
    var deleteAttempts = 0
    var retryDeleteAt: MonotonicInstant?
    var outcome: Outcome?

    public init(plan: SnapshotPlan, limits: SagaLimits = SagaLimits()) {
        self.plan = plan
        self.limits = limits
    }

    public var isEnded: Bool { phase == .ended }

    /// Takes one event and says what to do, in order. `now` never goes back.
    public mutating func handle(_ event: Event, at now: MonotonicInstant) -> [Action] {
        actions = []
        guard phase != .ended else { return [] }
        take(event, now)
        tend(now)
        defer { actions = [] }
        return actions
    }

    private mutating func take(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .start:
            guard phase == .idle else { return }
            phase = .planning
            begin(.plan, "\(plan.requested.text)-consistent snapshot of \(plan.volumes.joined(separator: ", "))")
            journal(.plan, .plan(plan), then: .discover, now)
        case .recorded(let sequence):
            guard let continuation = awaitingRecord.removeValue(forKey: sequence) else { return }
            proceed(continuation, now)
        case .journalFailed(let reason): journalFailed(reason, now)
        case .discovered, .discoverFailed, .preflighted, .preflightFailed: takePlanning(event, now)
        case .held, .holdFailed, .renewed, .renewFailed: takeHold(event, now)
        case .cutDone, .cutTooLate, .cutFailed: takeCut(event, now)
        case .released, .releaseFailed: takeRelease(event, now)
        case .labelled, .labelFailed, .deleted, .deleteFailed: takeEnding(event, now)
        case .timer: break
        case .cancelled: cancel(now)
        }
    }

    /// What time alone brings about: renewals, leases that ran out, retries, the next release.
    private mutating func tend(_ now: MonotonicInstant) {
        tendLeases(now)
        if phase == .readying { cutIfReady(now) }
        retryReleases(now)
        if phase == .releasing { releaseNext(now) }
        if phase == .deleting, let at = retryDeleteAt, now >= at {
            retryDeleteAt = nil
            actions.append(.delete)
        }
    }

    /// When ``Event/timer`` is due; nil while only answers are awaited.
    public var nextWakeup: MonotonicInstant? {
        var candidates = holds.compactMap(wakeup)
        if phase == .deleting, let retryDeleteAt { candidates.append(retryDeleteAt) }
        if phase == .releasing, let releasingSince, !patienceIsOver, holds.contains(where: { !$0.releaseIsOrdered }) {
            candidates.append(releasingSince + limits.releasePatience)
        }
        return candidates.min()
    }

    // MARK: Journal

    mutating func journal(
        _ step: SagaStep, _ body: SnapshotRecord.Body, then continuation: Continuation, _ now: MonotonicInstant
    ) {
        guard !journalIsBroken else { return proceed(continuation, now) }
        actions.append(.record(SnapshotRecord(sequence: sequence, step: step, body: body)))
        awaitingRecord[sequence] = continuation
        sequence += 1
    }

    /// Nothing new is begun without a journal; what was begun is undone without it, as recovery would.
    private mutating func journalFailed(_ reason: String, _ now: MonotonicInstant) {
        guard !journalIsBroken else { return }
        journalIsBroken = true
        let waiting = awaitingRecord.sorted { $0.key < $1.key }.map(\.value)
        awaitingRecord = [:]
        if phase != .closing, phase != .ended {
            fail(SagaFailure(.journalFailed, "The node's journal failed: \(reason)"), now)
        }
        for continuation in waiting { proceed(continuation, now) }
    }

    private mutating func proceed(_ continuation: Continuation, _ now: MonotonicInstant) {
        switch continuation {
        case .discover where failure == nil: discover(now)
        case .preflight where failure == nil: preflight(now)
        case .hold(let layer) where failure == nil: requestHolds(layer, now)
        case .cut where failure == nil: cutIfStillReady(now)
        case .label where failure == nil: announceLabel(now)
        case .writeLabel where failure == nil:
            if let evidence { actions.append(.label(evidence)) }
        case .release(let holdIDs): sendReleases(holdIDs, now)
        case .delete: actions.append(.delete)
        case .close: end()
        case .discover, .preflight, .hold, .cut, .label, .writeLabel: break
        }
    }

    // MARK: Failing

    /// Turns the saga back. What is held is released, what may have been cut is deleted.
    mutating func fail(_ reason: SagaFailure, _ now: MonotonicInstant) {
        guard failure == nil else { return }
        failure = reason
        failOpenStep(reason)
        switch phase {
        case .idle, .planning, .preflight: close(.failed(reason), now)
        case .quiescing, .readying, .recordingCut: startReleasing(now)
        case .deciding, .labelling: startDeleting(now)
        case .cutting, .releasing, .deleting, .closing, .ended: break
        }
    }

    private mutating func failOpenStep(_ reason: SagaFailure) {
        switch phase {
        case .planning: actions.append(.stepFailed(.plan, detail: reason.message))
        case .preflight: actions.append(.stepFailed(.preflight, detail: reason.message))
        case .quiescing(let layer): actions.append(.stepFailed(.quiesce(layer), detail: reason.message))
        case .readying, .recordingCut: actions.append(.stepFailed(.cut, detail: reason.message))
        case .deciding: actions.append(.stepFailed(.evidence, detail: reason.message))
        case .labelling: actions.append(.stepFailed(.label, detail: reason.message))
        case .idle, .cutting, .releasing, .deleting, .closing, .ended: break
        }
    }

    private mutating func cancel(_ now: MonotonicInstant) {
        switch phase {
        case .deciding, .labelling, .deleting, .closing, .ended: return
        default: fail(SagaFailure(.cancelled, "The snapshot \(plan.snapshotName) was cancelled"), now)
        }
    }

    mutating func begin(_ step: SagaStep, _ detail: String? = nil) {
        actions.append(.stepBegan(step, detail: detail))
    }

    mutating func succeed(_ step: SagaStep, _ detail: String? = nil) {
        actions.append(.stepSucceeded(step, detail: detail))
    }
}
