/// What a journal says of a snapshot saga.
public struct OpenSaga: Sendable, Equatable {
    public var plan: SnapshotPlan
    /// Every hold that may have been asked for.
    public var holds: [HoldOrder]
    /// A pending snapshot may exist.
    public var mayHaveCut: Bool
    /// What the label has to say; nil where the saga had not come so far, or had turned back.
    public var evidence: Evidence?
    /// Why the saga had turned back by itself; nil where it was interrupted on its way.
    public var failure: SagaFailure?
    /// How it ended; nil while there is something to do.
    public var outcome: SnapshotSaga.Outcome?
    public var nextSequence: Int

    /// Reads the records of one saga, in order. Nil without a plan: then nothing was touched.
    public init?(records: [SnapshotRecord]) {
        guard case .plan(let plan)? = records.first?.body else { return nil }
        self.plan = plan
        holds = []
        mayHaveCut = false
        nextSequence = (records.last?.sequence ?? 0) + 1
        for record in records {
            switch record.body {
            case .plan, .preflight, .unquiesce, .label: break
            case .quiesce(let orders): holds += orders
            case .cut: mayHaveCut = true
            case .evidence(let evidence): self.evidence = evidence
            case .delete(let failure):
                evidence = nil
                self.failure = failure
            case .done(let failure?): outcome = .failed(failure)
            case .done(nil): outcome = evidence.map { .labelled($0) }
            }
        }
    }

    /// Agents that may be holding something for the saga.
    public var agents: [String] { Set(holds.map(\.agent)).sorted() }
}

/// Ends a saga that a former process left open. Pure, like ``SnapshotSaga``, with the same promises of the driver.
///
/// Two things go on side by side: every involved agent is told to thaw the saga until it answers or its lease has
/// surely ended; and the snapshot is labelled where evidence had been journalled, else deleted. A cut without evidence
/// is worth nothing that could be named honestly: the quiet windows it lay in can no longer be proven.
public struct SagaRecovery: Sendable {
    public enum Event: Sendable {
        case start
        case thawed(agent: String, released: [String])
        case thawFailed(agent: String, reason: String)
        case labelled
        /// `isGone` when there is no such snapshot.
        case labelFailed(reason: String, isGone: Bool)
        case deleted
        case deleteFailed(reason: String)
        case recorded(sequence: Int)
        case journalFailed(reason: String)
        case timer
    }

    public enum Action: Sendable, Equatable {
        case thaw(agent: String)
        case label(Evidence)
        case delete
        case record(SnapshotRecord)
        case end(SnapshotSaga.Outcome, isClosed: Bool)
    }

    private enum Disposition: Sendable, Equatable { case open, labelling, deleting, labelled, gone, leftOpen }

    public let saga: OpenSaga
    public let limits: SagaLimits
    private var thawing: Set<String> = []
    private var retryAt: [String: MonotonicInstant] = [:]
    private var giveUpAt: MonotonicInstant?
    private var disposition: Disposition = .open
    private var attempts = 0
    private var retryDispositionAt: MonotonicInstant?
    private var isClosing = false
    public private(set) var isEnded = false
    private var actions: [Action] = []

    public init(saga: OpenSaga, limits: SagaLimits = SagaLimits()) {
        self.saga = saga
        self.limits = limits
    }

    public mutating func handle(_ event: Event, at now: MonotonicInstant) -> [Action] {
        actions = []
        guard !isEnded else { return [] }
        defer { actions = [] }
        take(event, now)
        tend(now)
        closeIfClean()
        return actions
    }

    public var nextWakeup: MonotonicInstant? {
        ([retryDispositionAt].compactMap(\.self) + retryAt.values).min()
    }

    private mutating func take(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .start: start(now)
        case .thawed(let agent, _):
            thawing.remove(agent)
            retryAt[agent] = nil
        case .thawFailed(let agent, _):
            guard thawing.contains(agent) else { return }
            if let giveUpAt, now >= giveUpAt {
                thawing.remove(agent)
            } else {
                retryAt[agent] = now + limits.retryInterval
            }
        case .labelled: disposition = .labelled
        case .labelFailed(_, let isGone):
            guard !isGone else {
                disposition = .gone
                return
            }
            dispositionFailed(now)
        case .deleted: disposition = .gone
        case .deleteFailed: dispositionFailed(now)
        case .recorded:
            if isClosing { end(isClosed: true) }
        case .journalFailed:
            if isClosing { end(isClosed: false) }
        case .timer: break
        }
    }

    private mutating func start(_ now: MonotonicInstant) {
        guard disposition == .open else { return }
        // The former process is dead: no request of its can be sent after now, only taken.
        let longest = saga.holds.map { Lease.longest($0.lease) }.max() ?? .zero
        giveUpAt = now + limits.transit + longest
        thawing = Set(saga.agents)
        for agent in saga.agents { actions.append(.thaw(agent: agent)) }
        if let evidence = saga.evidence {
            disposition = .labelling
            actions.append(.label(evidence))
        } else if saga.mayHaveCut {
            disposition = .deleting
            actions.append(.delete)
        } else {
            disposition = .gone
        }
    }

    private mutating func dispositionFailed(_ now: MonotonicInstant) {
        attempts += 1
        if attempts < limits.deleteAttempts {
            retryDispositionAt = now + limits.retryInterval
        } else {
            disposition = .leftOpen
        }
    }

    private mutating func tend(_ now: MonotonicInstant) {
        for (agent, at) in retryAt.sorted(by: { $0.key < $1.key }) where now >= at {
            retryAt[agent] = nil
            actions.append(.thaw(agent: agent))
        }
        if let at = retryDispositionAt, now >= at {
            retryDispositionAt = nil
            if disposition == .labelling, let evidence = saga.evidence { actions.append(.label(evidence)) }
            if disposition == .deleting { actions.append(.delete) }
        }
    }

    private mutating func closeIfClean() {
        guard !isClosing, !isEnded, thawing.isEmpty else { return }
        switch disposition {
        case .open, .labelling, .deleting: return
        case .leftOpen: end(isClosed: false)
        case .labelled, .gone:
            isClosing = true
            let body: SnapshotRecord.Body = .done(disposition == .labelled ? nil : interrupted)
            actions.append(.record(SnapshotRecord(sequence: saga.nextSequence, step: .done, body: body)))
        }
    }

    private var interrupted: SagaFailure {
        saga.failure
            ?? SagaFailure(
                .interrupted, "The node was stopped while it took the snapshot \(saga.plan.snapshotName)",
                hint: "Everything was released and nothing is left of it; take it again")
    }

    private mutating func end(isClosed: Bool) {
        isEnded = true
        if disposition == .labelled, let evidence = saga.evidence {
            actions.append(.end(.labelled(evidence), isClosed: isClosed))
        } else {
            actions.append(.end(.failed(interrupted), isClosed: isClosed))
        }
    }
}
