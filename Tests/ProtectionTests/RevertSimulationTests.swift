import Testing

@testable import Protection

/// One history of a revert: agents that stop and start things, logins that come at any time, a journal that may fail,
/// a node that is killed.
private struct RevertHistory {
    private var random: SeededGenerator
    private var saga: RevertSaga
    private var now = MonotonicInstant(nanoseconds: 1)
    private var events: [(at: MonotonicInstant, event: RevertSaga.Event)] = []
    private var journal: [RevertRecord] = []
    private var journalIsDead = false
    private var stopped: Set<String> = []
    private var isBlocked = false
    private var isSwapped = false
    private var sessionEnds: MonotonicInstant?
    private var isKilled = false
    private let killAfter: Int?
    private let failure: Double
    private(set) var outcome: RevertSaga.Outcome?
    private(set) var violations: [String] = []

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        let isDriven = random.chance(0.7)
        let agents = (0..<Int.random(in: 0...3, using: &random)).map { "agent\($0)" }
        saga = RevertSaga(
            plan: RevertPlan(
                sagaID: "r", volumes: ["v"], snapshotID: "s", snapshotName: "s", keepID: "k", keepName: "k",
                isDriven: isDriven, agents: agents.map { AgentCandidate(name: $0, lastKnownVolumes: nil) }))
        failure = random.chance(0.5) ? Double.random(in: 0...0.3, using: &random) : 0
        killAfter = random.chance(0.4) ? Int.random(in: 0...25, using: &random) : nil
        if random.chance(0.4) { sessionEnds = now + .milliseconds(Int.random(in: 0...20_000, using: &random)) }
        let cancelAt = random.chance(0.3) ? random.time(0...3000) : nil
        run(cancelAt)
        check()
    }

    private mutating func run(_ cancelAt: Int64?) {
        events = [(now, .start)]
        if let cancelAt { events.append((MonotonicInstant(nanoseconds: cancelAt), .cancelled)) }
        for count in 0..<2000 where !saga.isEnded && !isKilled {
            if count == killAfter { isKilled = true }
            var next = events.indices.min { events[$0].at < events[$1].at }
            if let wakeup = saga.nextWakeup, next.map({ wakeup < events[$0].at }) ?? true {
                events.append((wakeup, .timer))
                next = events.count - 1
            }
            guard let next else {
                violations.append("nothing is awaited, and the saga has not ended")
                return
            }
            let (at, event) = events.remove(at: next)
            now = max(now, at)
            for action in saga.handle(event, at: now) where !isKilled { perform(action) }
        }
    }

    private mutating func perform(_ action: RevertSaga.Action) {
        let fails = random.chance(failure)
        let at = now + .nanoseconds(random.time(0.1...800))
        switch action {
        case .record(let record):
            if fails { journalIsDead = true }
            if !journalIsDead { journal.append(record) }
            events.append((at, journalIsDead ? .journalFailed(reason: "x") : .recorded(sequence: record.sequence)))
        case .discover(let agent):
            let uses = random.chance(0.7)
            events.append(
                (at, fails ? .discoverFailed(agent: agent, reason: "x") : .discovered(agent: agent, usesVolumes: uses)))
        case .prepare(let agent):
            require("prepare") { if case .prepare(let agents) = $0 { agents.contains(agent) } else { false } }
            stopped.insert(agent)
            events.append(
                (at, fails ? .prepareFailed(agent: agent, reason: "x") : .prepared(agent: agent, steps: [])))
        case .block:
            isBlocked = true
            events.append((at, .blocked))
        case .checkSessions: events.append((now, .sessions(sessions)))
        case .swap:
            require("swap") { $0 == .swap }
            if !isBlocked { violations.append("swapped while logins were let in") }
            if !sessions.isEmpty { violations.append("swapped under a session") }
            if !fails { isSwapped = true }
            events.append((at, fails ? .swapFailed(reason: "x") : .swapped))
        case .raiseAttention: events.append((at, .attentionRaised))
        case .unblock:
            isBlocked = false
            events.append((at, .unblocked))
        case .finish(let agent, let isReverted):
            if isReverted != isSwapped { violations.append("finish was told the wrong state") }
            if !fails { stopped.remove(agent) }
            events.append((at, fails ? .finishFailed(agent: agent, reason: "x") : .finished(agent: agent, steps: [])))
        case .stepBegan, .stepSucceeded, .stepFailed, .stepCompensated: break
        case .end(let outcome, _): self.outcome = outcome
        }
    }

    /// New sessions cannot come once logins are blocked; an old one goes when it goes.
    private var sessions: [VolumeSession] {
        guard let sessionEnds, now < sessionEnds else { return [] }
        return [VolumeSession(volume: "v", initiator: "iqn.x", address: "192.0.2.1:1", isIdle: false)]
    }

    private mutating func require(_ what: String, _ matches: (RevertRecord.Body) -> Bool) {
        if !journal.contains(where: { matches($0.body) }) { violations.append("\(what) without its record") }
    }

    private mutating func check() {
        if isKilled, outcome == nil {
            // What recovery will read: everybody who may have been stopped is named, and the swap is announced.
            let open = OpenRevert(records: journal)
            if !stopped.isSubset(of: open?.preparedAgents ?? []) { violations.append("recovery would forget an agent") }
            if isSwapped, open?.mayHaveSwapped != true { violations.append("recovery would not look for the swap") }
            return
        }
        switch outcome {
        case .reverted: if !isSwapped { violations.append("it says reverted, but it is not") }
        case .failed: if isSwapped { violations.append("it says failed, but it is reverted") }
        case nil: violations.append("it did not end")
        }
        if isBlocked { violations.append("logins stay blocked") }
        if !stopped.isEmpty, failure == 0 { violations.append("\(stopped.sorted()) were not brought back") }
    }

    var isReverted: Bool { isSwapped }
}

@Suite("The revert saga in a hostile world")
struct RevertSimulationTests {
    @Test("no history ends with a swap under a session, logins blocked, a wrong answer, or an agent forgotten")
    func hostileHistories() {
        var reverted = 0
        for seed in 0..<UInt64(5000) {
            let history = RevertHistory(seed: seed)
            if !history.violations.isEmpty {
                Issue.record("seed \(seed): \(history.violations.joined(separator: "; "))")
                return
            }
            if history.isReverted { reverted += 1 }
        }
        #expect(reverted > 500)
        #expect(reverted < 4500)
    }
}
