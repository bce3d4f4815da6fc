import Testing

@testable import Protection

/// A saga driven by hand: every record is durable at once, answers are given by the test.
private struct HandDriven {
    var saga: SnapshotSaga
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    var pending: [SnapshotSaga.Action] = []
    var records: [SnapshotRecord] = []

    init(policy: LevelPolicy = .require, agents: [String] = ["a", "b"]) {
        let plan = SnapshotPlan(
            sagaID: "saga", snapshotID: "id", snapshotName: "s1", volumes: ["va", "vb"], requested: .application,
            policy: policy, lease: .seconds(10),
            agents: agents.map { AgentCandidate(name: $0, lastKnownVolumes: nil) })
        saga = SnapshotSaga(plan: plan)
    }

    mutating func send(_ event: SnapshotSaga.Event) {
        var queue = [event]
        while !queue.isEmpty {
            for action in saga.handle(queue.removeFirst(), at: now) {
                if case .record(let record) = action {
                    records.append(record)
                    queue.append(.recorded(sequence: record.sequence))
                } else {
                    pending.append(action)
                }
            }
        }
    }

    mutating func pass(_ milliseconds: Int64) {
        let end = now + .milliseconds(milliseconds)
        while let wakeup = saga.nextWakeup, wakeup <= end {
            now = max(now, wakeup)
            send(.timer)
        }
        now = end
    }

    /// Both agents have a database on a file system.
    mutating func plan(unseen: [String: [Unseen]] = [:]) {
        send(.start)
        for agent in ["a", "b"] {
            let volume = "v\(agent)"
            let resources = [
                Resource(plugin: "db", layer: .application, id: "db", label: "database", volumes: [volume]),
                Resource(plugin: "fs", layer: .fileSystem, id: "fs", label: "files", volumes: [volume]),
            ]
            send(.discovered(agent: agent, resources: resources, warnings: [], unseen: unseen[agent] ?? []))
        }
        for agent in ["a", "b"] { send(.preflighted(agent: agent, findings: [])) }
    }

    mutating func holdAll() {
        for case .hold(let order) in take() {
            let seconds = Dictionary(uniqueKeysWithValues: order.members.map { ($0.resource.id, 0.1) })
            send(.held(holdID: order.holdID, quiesceSeconds: seconds))
        }
    }

    mutating func take() -> [SnapshotSaga.Action] {
        defer { pending = [] }
        return pending
    }

    /// Answers every release that is asked for, except of `silent`.
    mutating func releaseAll(quietSeconds: Double = 5, silent: String? = nil) -> [String] {
        var released: [String] = []
        for case .release(let holdID, let agent) in take() where agent != silent {
            released.append("\(agent) \(holdID)")
            guard let hold = saga.holds.first(where: { $0.order.holdID == holdID }) else { continue }
            let answers = hold.order.members.map {
                ReleaseAnswer(resource: $0.resource.id, stillHeld: true, quietSeconds: quietSeconds)
            }
            send(.released(holdID: holdID, answers: answers))
        }
        return released
    }

    var outcome: SnapshotSaga.Outcome? {
        for case .end(let outcome, _) in pending { return outcome }
        return nil
    }

    var cutIsAskedFor: Bool {
        pending.contains {
            if case .cut = $0 { return true }
            return false
        }
    }
}

private let facts = CutFacts(epoch: 7, startedAt: 0, durationSeconds: 0.01)

@Suite("The snapshot saga, step by step")
struct SnapshotSagaTests {
    @Test("the file systems are asked only when all databases are at rest, and the cut only after them")
    func order() {
        var run = HandDriven()
        run.plan()
        let databases = run.take().compactMap { if case .hold(let order) = $0 { order } else { nil } }
        #expect(databases.map(\.layer) == [.application, .application])
        run.send(.held(holdID: databases[0].holdID, quiesceSeconds: ["db": 0.1]))
        #expect(run.take().isEmpty)
        run.send(.held(holdID: databases[1].holdID, quiesceSeconds: ["db": 0.1]))
        #expect(!run.cutIsAskedFor)
        run.holdAll()
        #expect(run.cutIsAskedFor)
        run.send(.cutDone(facts))
        #expect(run.releaseAll().count == 2)
        #expect(run.releaseAll().count == 2)
        let labels = run.take().compactMap { if case .label(let evidence) = $0 { evidence } else { nil } }
        #expect(labels.count == 1)
        #expect(labels.first?.achieved == .application)
        run.send(.labelled)
        #expect(run.saga.isEnded)
    }

    @Test("what could not be looked at refuses the level, with its reason, or lowers it where that is allowed")
    func unseen() {
        for policy in [LevelPolicy.require, .allowLower] {
            for layer in [QuiesceLayer.application, .machine] {
                var run = HandDriven(policy: policy)
                run.plan(unseen: ["a": [Unseen(layer: layer, reason: "no answer; wait", volumes: ["va", "vz"])]])
                if policy == .require {
                    guard case .failed(let failure)? = run.outcome else {
                        Issue.record("it went on")
                        continue
                    }
                    #expect(failure.code == .levelUnreachable && failure.message.contains("no answer; wait"))
                    #expect(!failure.message.contains("vb"))
                    continue
                }
                for _ in 1...2 { run.holdAll() }
                run.send(.cutDone(facts))
                for _ in 1...2 { _ = run.releaseAll() }
                let evidence = run.take().compactMap { if case .label(let evidence) = $0 { evidence } else { nil } }
                #expect(evidence.map(\.achieved) == [layer == .application ? .fileSystem : .crash])
                #expect(evidence.first?.reasons.first?.contains("no answer; wait") == true)
            }
        }
    }

    @Test("an agent lost at release does not keep the others quiet, and its member is not proven")
    func lostAtRelease() {
        var run = HandDriven(policy: .allowLower)
        run.plan()
        run.holdAll()
        run.holdAll()
        run.send(.cutDone(facts))
        #expect(run.releaseAll(silent: "b").count == 1)
        // The database of `a` waits a moment for the file system of `b`, no longer.
        #expect(run.releaseAll(silent: "b").isEmpty)
        run.pass(600)
        #expect(run.releaseAll(silent: "b").count == 1)
        #expect(!run.saga.isEnded)
        for _ in 0..<60 where !run.saga.isEnded {
            for hold in run.saga.holds where hold.isReleasing {
                run.send(.releaseFailed(holdID: hold.order.holdID, reason: "no answer", isUnknown: false))
            }
            run.pass(300)
            if let evidence = run.saga.evidence {
                #expect(evidence.members.filter(\.isProven).map(\.member.agent) == ["a", "a"])
                #expect(evidence.achieved == .crash)
                run.send(.labelled)
            }
        }
        #expect(run.saga.isEnded)
    }

    @Test("a lease that runs down before the cut is renewed, and the cut waits for the answer")
    func renewal() {
        var run = HandDriven()
        run.plan()
        run.holdAll()
        let slow = run.take()
        run.pass(8_000)
        let renewals = run.take().compactMap { if case .renew(let id, _, _) = $0 { id } else { nil } }
        #expect(renewals.count == 2)
        for case .hold(let order) in slow { run.send(.held(holdID: order.holdID, quiesceSeconds: ["fs": 1])) }
        #expect(!run.cutIsAskedFor)
        for case .renew(let id, _, _) in run.take() { run.send(.renewed(holdID: id)) }
        for id in renewals { run.send(.renewed(holdID: id)) }
        #expect(run.cutIsAskedFor)
    }

    @Test("without an answer to its renewals a lease is given up, and a required snapshot fails before the cut")
    func notRenewed() {
        var run = HandDriven()
        run.plan()
        run.holdAll()
        run.pass(9_950)
        #expect(run.saga.failure?.code == .quiesceFailed)
        #expect(!run.records.contains { $0.step == .cut })
    }

    @Test("a hold shorter than the node's own measurement was taken anew, and proves nothing")
    func takenAnew() {
        var run = HandDriven(policy: .allowLower)
        run.plan()
        run.holdAll()
        run.holdAll()
        run.pass(2_000)
        run.send(.cutDone(facts))
        _ = run.releaseAll(quietSeconds: 1.5)
        _ = run.releaseAll(quietSeconds: 5)
        let evidence = run.saga.evidence
        #expect(evidence?.achieved == .crash)
        #expect(
            evidence?.members.filter { $0.member.resource.layer == .fileSystem }.allSatisfy { !$0.isProven } == true)
        #expect(evidence?.reasons.contains { $0.contains("lost and taken again") } == true)
    }

    @Test("an agent's answer that leaves out a member is not taken as held")
    func incompleteAnswer() {
        var run = HandDriven()
        run.plan()
        for case .hold(let order) in run.take() { run.send(.held(holdID: order.holdID, quiesceSeconds: [:])) }
        #expect(run.saga.failure?.code == .quiesceFailed)
    }

    @Test("a journal that fails while things are held releases them without records and leaves no snapshot")
    func journalFails() {
        var run = HandDriven()
        run.plan()
        run.holdAll()
        run.holdAll()
        run.send(.journalFailed(reason: "disk full"))
        run.send(.cutDone(facts))
        #expect(run.releaseAll().count == 2)
        #expect(run.releaseAll().count == 2)
        #expect(run.take().contains(.delete))
        run.send(.deleted)
        #expect(run.saga.isEnded)
    }

    @Test("what the journal has right after the cut was asked for tells recovery to thaw everybody and to delete")
    func journalTells() throws {
        var run = HandDriven()
        run.plan()
        run.holdAll()
        run.holdAll()
        let open = try #require(OpenSaga(records: run.records))
        #expect(open.agents == ["a", "b"])
        #expect(open.mayHaveCut)
        #expect(open.evidence == nil)
        var recovery = SagaRecovery(saga: open)
        let actions = recovery.handle(.start, at: run.now)
        #expect(actions == [.thaw(agent: "a"), .thaw(agent: "b"), .delete])
    }
}
