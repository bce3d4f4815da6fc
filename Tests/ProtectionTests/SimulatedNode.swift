@testable import Protection

/// A process of the node: runs the saga or recovers from it, until it ends or is killed. What it believes dies with it.
final class SimulatedNode {
    private let world: SimulatedWorld
    private var isAlive = true
    private var saga: SnapshotSaga?
    private var recovery: SagaRecovery?
    private var wakeup: Int64?
    /// Killed right before or after this step, if it comes to it.
    private let crashPoint: (step: SagaStep, isAfter: Bool)?
    private var journalIsDead = false
    private(set) var isEnded = false
    var onDeath: () -> Void = {}

    init(world: SimulatedWorld, crashPoint: (step: SagaStep, isAfter: Bool)? = nil) {
        self.world = world
        self.crashPoint = crashPoint
    }

    private var now: MonotonicInstant { MonotonicInstant(nanoseconds: world.timeline.now) }

    func run() {
        saga = SnapshotSaga(plan: world.plan, limits: world.limits)
        feed(.start)
    }

    func recover() {
        guard var open = OpenSaga(records: world.journal) else {
            return finish(.failed(SagaFailure(.interrupted, "before its first record")))
        }
        if let outcome = open.outcome { return finish(outcome) }
        if world.defect == .recoveryLabelsWithoutEvidence, open.evidence == nil, open.mayHaveCut {
            open.evidence = Evidence(
                requested: open.plan.requested, policy: open.plan.policy, achieved: open.plan.requested, reasons: [],
                cut: CutFacts(epoch: 1, startedAt: 0, durationSeconds: 0), members: [])
        }
        recovery = SagaRecovery(saga: open, limits: world.limits)
        feed(recovery: .start)
    }

    private func finish(_ outcome: SnapshotSaga.Outcome) {
        isEnded = true
        world.isClosed = true
        if world.outcome == nil { world.outcome = outcome }
    }

    func kill() {
        guard isAlive else { return }
        isAlive = false
        world.note("node killed")
        onDeath()
    }

    /// Runs `body` later, unless the process is dead by then.
    private func later(_ delay: Int64, _ body: @escaping () -> Void) {
        world.timeline.after(delay) { [weak self] in
            guard let self, isAlive else { return }
            body()
        }
    }

    private func hit(_ step: SagaStep, isAfter: Bool) {
        if let crashPoint, crashPoint.step == step, crashPoint.isAfter == isAfter { kill() }
    }

    // MARK: The saga

    func feed(_ event: SnapshotSaga.Event) {
        guard isAlive, !isEnded, saga != nil else { return }
        world.note(event.trace)
        var actions = saga?.handle(event, at: now) ?? []
        plantAfter(event, &actions)
        for action in actions where isAlive { perform(action) }
        arm(saga?.nextWakeup) { [weak self] in self?.feed(.timer) }
    }

    private func arm(_ due: MonotonicInstant?, _ body: @escaping () -> Void) {
        guard let due, !isEnded, wakeup.map({ due.nanoseconds < $0 || $0 <= world.timeline.now }) ?? true else {
            return
        }
        wakeup = due.nanoseconds
        if due <= now, world.timeline.now > 0 { world.violate("asked to be woken in the past") }
        later(max(1000, due.nanoseconds - world.timeline.now)) { [weak self] in
            guard let self else { return }
            if wakeup == due.nanoseconds { wakeup = nil }
            body()
        }
    }

    private func perform(_ action: SnapshotSaga.Action) {
        switch action {
        case .record(let record): write(record) { [weak self] event in self?.feed(event) }
        case .discover(let agent): call(agent, .discover, world.limits.discoverTimeout)
        case .preflight(let agent, _):
            call(agent, .preflight(world.refusedPlugins[agent] ?? []), world.limits.preflightTimeout)
        case .hold(let order):
            requireRecord("hold \(order.holdID)") {
                if case .quiesce(let orders) = $0 { return orders.contains(order) }
                return false
            }
            world.firstHoldAt = world.firstHoldAt ?? world.timeline.now
            call(order.agent, .hold(order), order.lease)
        case .renew(let holdID, let agent, let length):
            call(agent, .renew(holdID, length), world.limits.renewTimeout)
        case .cut(let notAfter): cut(notAfter)
        case .release(let holdID, let agent):
            if world.defect == .keepHoldsOnFailure, saga?.failure != nil {
                later(1000) { [weak self] in self?.feed(.released(holdID: holdID, answers: [])) }
            } else {
                call(agent, .release(holdID), world.limits.releaseTimeout)
            }
        case .label(let evidence):
            label(evidence) { [weak self] failure in
                self?.feed(failure.map { .labelFailed(reason: $0) } ?? .labelled)
            }
        case .delete:
            delete { [weak self] failure in
                self?.feed(failure.map { .deleteFailed(reason: $0) } ?? .deleted)
            }
        case .stepSucceeded(let step, _): hit(step, isAfter: true)
        case .stepBegan, .stepFailed, .stepCompensated: break
        case .end(let outcome, let isClosed): end(outcome, isClosed)
        }
    }

    private func requireRecord(_ what: String, _ matches: (SnapshotRecord.Body) -> Bool) {
        if !world.journal.contains(where: { matches($0.body) }) {
            world.violate("\(what) was asked for before its record was durable")
        }
    }

    private func write(_ record: SnapshotRecord, _ answer: @escaping (SnapshotSaga.Event) -> Void) {
        let delay =
            world.random.chance(world.faults.slowJournal) ? world.random.time(100...9000) : world.random.time(0.1...5)
        if world.random.chance(world.faults.journalFailure) { journalIsDead = true; world.mayDisagree = true }
        if journalIsDead { return later(delay) { answer(.journalFailed(reason: "disk full")) } }
        if world.defect == .actBeforeJournal { later(1) { answer(.recorded(sequence: record.sequence)) } }
        later(delay) { [self] in
            world.journal.append(record)
            hit(record.step, isAfter: false)
            // Killed between the disk and the machine: the record stays.
            if isAlive, world.defect != .actBeforeJournal { answer(.recorded(sequence: record.sequence)) }
        }
    }

    private func call(_ agent: String, _ request: SimulatedRequest, _ timeout: Duration) {
        world.call(agent, request, timeout: timeout) { [weak self] reply in
            guard let self, isAlive, let event = event(agent, request, reply) else { return }
            feed(event)
        }
    }

    private func event(
        _ agent: String, _ request: SimulatedRequest, _ reply: SimulatedReply
    ) -> SnapshotSaga.Event? {
        switch (request, reply) {
        case (.discover, .discovered(let resources)):
            return .discovered(agent: agent, resources: resources, warnings: [])
        case (.discover, _):
            if world.defect == .silentAgentIgnored {
                return .discovered(agent: agent, resources: [], warnings: [])
            }
            return .discoverFailed(agent: agent, reason: "no answer")
        case (.preflight, .preflighted(let findings)): return .preflighted(agent: agent, findings: findings)
        case (.preflight, _): return .preflightFailed(agent: agent, reason: "no answer")
        case (.hold(let order), .held(let seconds)): return .held(holdID: order.holdID, quiesceSeconds: seconds)
        case (.hold(let order), .failed):
            return .holdFailed(holdID: order.holdID, reason: "refused", mayBeHeld: false)
        case (.hold(let order), _): return .holdFailed(holdID: order.holdID, reason: "no answer", mayBeHeld: true)
        case (.renew(let holdID, _), .renewed): return .renewed(holdID: holdID)
        case (.renew(let holdID, _), .unknown):
            return .renewFailed(holdID: holdID, reason: "unknown", isLost: true)
        case (.renew(let holdID, _), _):
            if world.defect == .renewalCountedWithoutAnswer { return .renewed(holdID: holdID) }
            return .renewFailed(holdID: holdID, reason: "no answer", isLost: false)
        case (.release(let holdID), .released(let answers)):
            return .released(holdID: holdID, answers: planted(answers))
        case (.release(let holdID), .unknown):
            return .releaseFailed(holdID: holdID, reason: "unknown", isUnknown: true)
        case (.release(let holdID), _):
            return .releaseFailed(holdID: holdID, reason: "no answer", isUnknown: false)
        case (.thaw, _): return nil
        }
    }

    // MARK: The pool

    private func cut(_ notAfter: MonotonicInstant?) {
        requireRecord("the cut") { $0 == .cut }
        later(world.random.chance(world.faults.slowCut) ? world.random.time(0...4000) : 1000) { [self] in
            if let notAfter, now > notAfter, world.defect != .ignoreCutLimit { return feed(.cutTooLate) }
            checkLeases()
            let began = world.timeline.now
            let duration =
                world.random.chance(world.faults.slowCut) ? world.random.time(10...6000) : world.random.time(1...30)
            let fails = world.random.chance(world.faults.cutFailure)
            let instant = Int64.random(in: 0...duration, using: &world.random)
            let isCut = !fails || world.random.chance(0.5)
            later(instant) { [self] in
                let quiet = world.quiet
                guard isCut else { return }
                later((duration - instant) / 2) { [self] in
                    world.snapshot = SimulatedSnapshot(label: nil, quietAtCut: quiet)
                }
            }
            later(duration) { [self] in
                let seconds = Double(world.timeline.now - began) / 1e9
                let facts = CutFacts(epoch: 1, startedAt: began, durationSeconds: seconds)
                feed(fails ? .cutFailed(reason: "full") : .cutDone(facts))
            }
        }
    }

    /// The cut begins: no lease that the saga counts on may have ended.
    private func checkLeases() {
        for hold in saga?.holds ?? [] where hold.wasHeldAtCut {
            let there = world.agents[hold.order.agent]?.holds[hold.order.holdID]
            if there?.hasLapsed == true { world.violate("the cut began after the lease of \(hold.order.holdID)") }
        }
    }

    private func label(_ evidence: Evidence, _ answer: @escaping (String?) -> Void) {
        later(world.random.time(1...20)) { [self] in
            if world.random.chance(world.faults.labelFailure) { return answer("full") }
            guard let quiet = world.snapshot?.quietAtCut else { return answer("gone") }
            world.snapshot?.label = evidence
            world.note("label \(evidence.achieved)")
            let truth = world.trueLevel(quiet: quiet)
            if evidence.achieved > truth {
                world.violate("labelled \(evidence.achieved.rawValue), but it is \(truth.rawValue)-consistent")
            }
            for proof in evidence.members where proof.isProven && !quiet.contains(proof.member.key) {
                world.violate("\(proof.member.key) is called proven, but was not quiet at the cut")
            }
            if evidence.policy == .require, evidence.achieved < evidence.requested {
                world.violate("labelled less than what was required")
            }
            later(world.random.time(0...5)) { answer(nil) }
        }
    }

    private func delete(_ answer: @escaping (String?) -> Void) {
        later(world.random.time(1...20)) { [self] in
            if world.random.chance(world.faults.labelFailure) { return answer("busy") }
            if world.snapshot?.label != nil, world.outcome != nil { world.violate("a finished snapshot was deleted") }
            world.snapshot = nil
            answer(nil)
        }
    }

    private func end(_ outcome: SnapshotSaga.Outcome, _ isClosed: Bool) {
        isEnded = true
        if case .labelled(let evidence) = outcome { world.note(evidence.achieved.rawValue) }
        if case .failed(let failure) = outcome { world.note(failure.message) }
        if world.outcome == nil { world.outcome = outcome }
        world.isClosed = isClosed
        let still = world.quiet
        if !still.isEmpty { world.violate("the saga ended, but \(still.map(\.description).sorted()) is still quiet") }
        hit(.done, isAfter: true)
    }

    // MARK: Recovery

    private func feed(recovery event: SagaRecovery.Event) {
        guard isAlive, !isEnded, recovery != nil else { return }
        world.note("recovery")
        let actions = recovery?.handle(event, at: now) ?? []
        for action in actions where isAlive { perform(action) }
        arm(recovery?.nextWakeup) { [weak self] in self?.feed(recovery: .timer) }
    }

    private func perform(_ action: SagaRecovery.Action) {
        switch action {
        case .record(let record):
            write(record) { [weak self] event in
                if case .recorded(let sequence) = event { self?.feed(recovery: .recorded(sequence: sequence)) }
                if case .journalFailed(let reason) = event { self?.feed(recovery: .journalFailed(reason: reason)) }
            }
        case .thaw(let agent):
            if world.defect == .recoveryDoesNotThaw {
                return later(1000) { [weak self] in self?.feed(recovery: .thawed(agent: agent, released: [])) }
            }
            world.call(agent, .thaw(world.plan.sagaID), timeout: world.limits.releaseTimeout) { [weak self] reply in
                if case .thawed = reply {
                    self?.feed(recovery: .thawed(agent: agent, released: []))
                } else {
                    self?.feed(recovery: .thawFailed(agent: agent, reason: "no answer"))
                }
            }
        case .label(let evidence):
            label(evidence) { [weak self] failure in
                self?.feed(recovery: failure.map { .labelFailed(reason: $0, isGone: $0 == "gone") } ?? .labelled)
            }
        case .delete:
            if world.defect == .recoveryKeepsPending {
                return later(1000) { [weak self] in self?.feed(recovery: .deleted) }
            }
            delete { [weak self] failure in
                self?.feed(recovery: failure.map { .deleteFailed(reason: $0) } ?? .deleted)
            }
        case .end(let outcome, let isClosed): end(outcome, isClosed)
        }
    }

    // MARK: Planted defects

    private func plantAfter(_ event: SnapshotSaga.Event, _ actions: inout [SnapshotSaga.Action]) {
        switch (world.defect, event) {
        case (.cutBeforeAllHeld, .recorded):
            for case .hold(let order) in actions {
                let seconds = Dictionary(uniqueKeysWithValues: order.members.map { ($0.resource.id, 0.0) })
                actions += saga?.handle(.held(holdID: order.holdID, quiesceSeconds: seconds), at: now) ?? []
            }
        case (.leaseCountedFromAnswer, .held(let holdID, _)):
            guard let index = saga?.index(holdID) else { return }
            saga?.holds[index].lease = Lease(
                sentAt: now, length: world.plan.lease, cap: world.limits.holdCap, transit: world.limits.transit)
            if saga?.holds[index].state == .unsettled, saga?.failure == nil { saga?.holds[index].state = .held }
        default: break
        }
    }

    private func planted(_ answers: [ReleaseAnswer]) -> [ReleaseAnswer] {
        guard world.defect == .ignoreStillHeld else { return answers }
        return answers.map { ReleaseAnswer(resource: $0.resource, stillHeld: true, quietSeconds: 1e6) }
    }
}

extension SnapshotSaga.Event {
    /// Cheap, and in the same order every time.
    fileprivate var trace: String {
        switch self {
        case .start: "start"
        case .recorded(let sequence): "recorded \(sequence)"
        case .journalFailed: "journalFailed"
        case .discovered(let agent, _, _, _, _): "discovered \(agent)"
        case .discoverFailed(let agent, _): "discoverFailed \(agent)"
        case .preflighted(let agent, _): "preflighted \(agent)"
        case .preflightFailed(let agent, _): "preflightFailed \(agent)"
        case .held(let holdID, _): "held \(holdID)"
        case .holdFailed(let holdID, _, let mayBeHeld): "holdFailed \(holdID) \(mayBeHeld)"
        case .renewed(let holdID): "renewed \(holdID)"
        case .renewFailed(let holdID, _, let isLost): "renewFailed \(holdID) \(isLost)"
        case .cutDone: "cutDone"
        case .cutTooLate: "cutTooLate"
        case .cutFailed: "cutFailed"
        case .released(let holdID, let answers): "released \(holdID) \(answers.map(\.stillHeld))"
        case .releaseFailed(let holdID, _, let isUnknown): "releaseFailed \(holdID) \(isUnknown)"
        case .labelled: "labelled"
        case .labelFailed: "labelFailed"
        case .deleted: "deleted"
        case .deleteFailed: "deleteFailed"
        case .timer: "timer"
        case .cancelled: "cancelled"
        }
    }
}
