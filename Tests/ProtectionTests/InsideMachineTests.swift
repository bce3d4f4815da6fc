import Testing

@testable import Protection

/// An agent inside of a machine that another agent's host brings to rest.
@Suite("Agents inside of machines")
struct InsideMachineTests {
    private static let machine = "0b1c2d3e-0000-4000-8000-000000000001"

    private static func guest(_ level: ConsistencyLevel?, volumes: [String] = ["v"], isOff: Bool? = nil) -> Resource {
        Resource(
            plugin: "libvirt", layer: .machine, id: machine, label: "guest web", volumes: volumes, level: level,
            machine: machine, isOff: isOff)
    }

    private static let files = Resource(
        plugin: "fs", layer: .fileSystem, id: "/srv", label: "ext4", volumes: ["v"])
    private static let database = Resource(
        plugin: "db", layer: .application, id: "db", label: "database", volumes: ["v"])

    private func group(
        _ guest: Resource, inside: [Resource], requested: ConsistencyLevel = .application,
        volumes: [String] = ["v"], recognised: Set<String> = ["v"], machine: String = machine
    ) -> ConsistencyGroup {
        ConsistencyGroup(
            volumes: volumes, requested: requested, discovered: ["host": [guest], "web": inside], unknown: [:],
            inside: ["web": InsideMachine(machine: machine, volumes: recognised)])
    }

    private func attainable(_ group: ConsistencyGroup) -> ConsistencyLevel {
        group.level(proven: Set(group.members.map(\.key)))
    }

    @Test("a machine that freezes its file systems does so for the agent inside, whose applications make the level")
    func frozenFromOutside() {
        let joined = group(Self.guest(.fileSystem), inside: [Self.database, Self.files])
        #expect(joined.members.map(\.resource.id) == ["db", Self.machine])
        #expect(joined.members.last?.resource.insideAgents == ["web"])
        #expect(attainable(joined) == .application)
        let lost = joined.level(
            proven: Set(joined.members.map(\.key)), levels: [joined.members[1].key: .crash])
        #expect(lost == .crash, "a fallback to a pause freezes nothing")
        #expect(joined.level(proven: [joined.members[0].key]) == .crash, "the machine was not proven")
        #expect(joined.level(proven: [joined.members[1].key]) == .fileSystem, "the database was not proven")
    }

    @Test("a machine that is only paused, or left running, is what the agent inside makes of it")
    func frozenFromInside() {
        for level in [ConsistencyLevel.crash, nil] {
            let joined = group(Self.guest(level), inside: [Self.database, Self.files])
            #expect(joined.members.map(\.resource.id) == ["db", "/srv", Self.machine])
            #expect(attainable(joined) == .application)
            #expect(attainable(group(Self.guest(level), inside: [])) == .crash)
            #expect(attainable(group(Self.guest(level), inside: [Self.files], requested: .fileSystem)) == .fileSystem)
        }
    }

    @Test("without an application inside a frozen machine is file-system-consistent, no more")
    func noApplication() {
        let joined = group(Self.guest(.fileSystem), inside: [Self.files])
        #expect(attainable(joined) == .fileSystem)
        #expect(joined.shortfalls(usable: Set(joined.members.map(\.key))).first?.contains("no application") == true)
    }

    @Test("an agent answers only for the disks that it recognises, and only inside of its own machine")
    func recognised() {
        let both = group(
            Self.guest(.fileSystem, volumes: ["v", "w"]), inside: [Self.database], volumes: ["v", "w"])
        let proven = Set(both.members.map(\.key))
        #expect(both.level(of: "v", proven: proven) == .application)
        #expect(both.level(of: "w", proven: proven) == .fileSystem)
        let elsewhere = group(Self.guest(.fileSystem), inside: [Self.database, Self.files], machine: "another")
        #expect(elsewhere.members.map(\.resource.id) == ["db", "/srv", Self.machine])
        #expect(attainable(elsewhere) == .fileSystem)
    }

    /// A saga whose records are durable at once, up to the holds of the last layer.
    private func held(_ level: ConsistencyLevel) -> (SnapshotSaga, MonotonicInstant) {
        let plan = SnapshotPlan(
            sagaID: "saga", snapshotID: "id", snapshotName: "s", volumes: ["v"], requested: .application,
            policy: .require, lease: .seconds(10),
            agents: ["host", "web"].map { AgentCandidate(name: $0, lastKnownVolumes: nil) })
        var saga = SnapshotSaga(plan: plan)
        var now = MonotonicInstant(nanoseconds: 1_000_000_000)
        _ = send(&saga, .start, now)
        _ = send(&saga, .discovered(agent: "host", resources: [Self.guest(level)], warnings: []), now)
        _ = send(
            &saga,
            .discovered(
                agent: "web", resources: [Self.database], warnings: [],
                inside: InsideMachine(machine: Self.machine, volumes: ["v"])), now)
        _ = send(&saga, .preflighted(agent: "host", findings: []), now)
        var actions = send(&saga, .preflighted(agent: "web", findings: []), now)
        for _ in 1...2 {
            now = now + .seconds(1)
            for case .hold(let order) in actions {
                let seconds = Dictionary(uniqueKeysWithValues: order.members.map { ($0.resource.id, 0.1) })
                actions = send(&saga, .held(holdID: order.holdID, quiesceSeconds: seconds), now)
            }
        }
        return (saga, now)
    }

    private func send(
        _ saga: inout SnapshotSaga, _ event: SnapshotSaga.Event, _ now: MonotonicInstant
    ) -> [SnapshotSaga.Action] {
        var queue = [event]
        var actions: [SnapshotSaga.Action] = []
        while !queue.isEmpty {
            for action in saga.handle(queue.removeFirst(), at: now) {
                if case .record(let record) = action {
                    queue.append(.recorded(sequence: record.sequence))
                } else {
                    actions.append(action)
                }
            }
        }
        return actions
    }

    private func release(
        _ saga: inout SnapshotSaga, _ actions: [SnapshotSaga.Action], quiet: Double, _ now: MonotonicInstant
    ) -> [SnapshotSaga.Action] {
        var next: [SnapshotSaga.Action] = []
        for case .release(let holdID, _) in actions {
            guard let hold = saga.holds.first(where: { $0.order.holdID == holdID }) else { continue }
            let answers = hold.order.members.map {
                ReleaseAnswer(resource: $0.resource.id, stillHeld: true, quietSeconds: quiet)
            }
            next += send(&saga, .released(holdID: holdID, answers: answers), now)
        }
        return next
    }

    @Test("the agent inside is released after the machine around it, however long that takes")
    func releaseOrder() {
        var (saga, now) = held(.fileSystem)
        let facts = CutFacts(epoch: 1, startedAt: 0, durationSeconds: 0.01)
        var actions = send(&saga, .cutDone(facts), now)
        #expect(actions.compactMap { if case .release(_, let agent) = $0 { agent } else { nil } } == ["host"])
        now = now + .seconds(2)
        #expect(!send(&saga, .timer, now).contains { if case .release = $0 { true } else { false } })
        actions = release(&saga, actions, quiet: 2, now)
        #expect(actions.compactMap { if case .release(_, let agent) = $0 { agent } else { nil } } == ["web"])
    }

    @Test("a clock that stood still with its machine proves its hold; one that was only slow does not")
    func stoppedClock() {
        for (level, outcome) in [(ConsistencyLevel.crash, true), (.fileSystem, false)] {
            var (saga, now) = held(level)
            let facts = CutFacts(epoch: 1, startedAt: 0, durationSeconds: 0.01)
            var actions = send(&saga, .cutDone(facts), now)
            now = now + .seconds(3)
            actions = release(&saga, actions, quiet: 3, now)
            // Held for a second before the machine was asked to stop; four seconds in all.
            actions = release(&saga, actions, quiet: 1, now)
            #expect(actions.contains { if case .label = $0 { true } else { false } } == outcome, "\(level)")
        }
    }

    @Test("an agent in a machine that is off says nothing, and nothing is missing")
    func off() {
        let candidate = AgentCandidate(name: "web", lastKnownVolumes: ["v"], machine: Self.machine)
        let plan = SnapshotPlan(
            sagaID: "saga", snapshotID: "id", snapshotName: "s", volumes: ["v"], requested: .fileSystem,
            policy: .require, lease: .seconds(10), agents: [candidate])
        for isOff in [true, false] {
            let discovered = ["host": [Self.guest(.fileSystem, isOff: isOff)]]
            let forecast = SnapshotForecast(
                plan: plan, discovered: discovered, warnings: [], silent: ["web": "no answer"], findings: [:],
                unreachable: [:])
            #expect((forecast.refusal == nil) == isOff)
        }
    }
}
