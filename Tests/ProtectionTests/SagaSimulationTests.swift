import Foundation
import Testing

@testable import Protection

/// One history from its seed: what was violated, and a hash of everything that happened.
struct History {
    var violations: [String]
    var trace: UInt64
    var outcome: SnapshotSaga.Outcome?
    var snapshot: SimulatedSnapshot?

    init(
        seed: UInt64, defect: PlantedDefect? = nil, faults: Faults? = nil,
        crashPoint: (step: SagaStep, isAfter: Bool)? = nil
    ) {
        let world = SimulatedWorld(seed: seed, defect: defect, faults: faults)
        Self.live(world, crashPoint: crashPoint)
        violations = world.violations
        trace = world.trace
        outcome = world.outcome
        snapshot = world.snapshot
    }

    private static func live(_ world: SimulatedWorld, crashPoint: (step: SagaStep, isAfter: Bool)?) {
        var node = SimulatedNode(world: world, crashPoint: crashPoint ?? draw(world))
        var isDead = false
        node.onDeath = { isDead = true }
        if crashPoint == nil, world.random.chance(world.faults.nodeCrash) {
            let doomed = node
            world.timeline.at(world.random.time(0...6000)) { doomed.kill() }
        }
        if world.random.chance(world.faults.cancel) {
            let running = node
            world.timeline.at(world.random.time(0...3000)) { running.feed(.cancelled) }
        }
        node.run()
        world.timeline.run(until: seconds(200)) { isDead || node.isEnded }
        if !isDead, !node.isEnded { world.violate("the saga did not end") }

        // Restarts, until one is not killed and closes the journal; the last one meets no faults.
        for attempt in 0..<4 where isDead || !world.isClosed {
            isDead = false
            if attempt == 3 { calm(world) }
            node.onDeath = {}
            let next = SimulatedNode(world: world)
            next.onDeath = { isDead = true }
            let start = world.timeline.now + world.random.time(1...3000)
            world.timeline.at(start) { next.recover() }
            if world.random.chance(world.faults.nodeCrash) {
                world.timeline.at(start + world.random.time(0...2000)) { next.kill() }
            }
            node = next
            world.timeline.run(until: start + seconds(200)) { isDead || next.isEnded }
            if !isDead, !next.isEnded { world.violate("recovery did not end") }
        }
        check(world)
    }

    private static func seconds(_ count: Int64) -> Int64 { count * 1_000_000_000 }

    private static func draw(_ world: SimulatedWorld) -> (step: SagaStep, isAfter: Bool)? {
        guard world.random.chance(world.faults.nodeCrash) else { return nil }
        guard let step = SagaStep.allCases.randomElement(using: &world.random) else { return nil }
        return (step, world.random.chance(0.5))
    }

    private static func calm(_ world: SimulatedWorld) {
        world.faults = Faults()
        world.partitions = [:]
    }

    /// What must be true when nothing is left to do.
    private static func check(_ world: SimulatedWorld) {
        if !world.isClosed { world.violate("the journal is still open") }
        if let snapshot = world.snapshot, snapshot.label == nil { world.violate("a pending snapshot is left") }
        switch world.outcome {
        case .labelled(let evidence):
            if world.snapshot?.label != evidence { world.violate("the saga succeeded without its snapshot") }
        case .failed:
            if world.snapshot?.label != nil, world.defect == nil, !world.mayDisagree {
                world.violate("the saga failed, but its snapshot is there")
            }
        case nil: world.violate("no outcome")
        }
        // Nobody is quiet, now or later: whatever was still under way ends with its lease.
        if !world.quiet.isEmpty { world.violate("something is quiet after the end") }
        world.timeline.run(until: world.timeline.now + seconds(60))
        if !world.quiet.isEmpty { world.violate("something is quiet long after the end") }
    }
}

@Suite("The snapshot saga in a hostile world")
struct SagaSimulationTests {
    /// More of them for a long search: STILLPOINT_HISTORIES=1000000.
    static let histories = ProcessInfo.processInfo.environment["STILLPOINT_HISTORIES"].flatMap { Int($0) } ?? 6000

    @Test("no history ends with a false label, a leftover, or anyone kept quiet")
    func hostileHistories() {
        var labelled = 0
        var failed = 0
        for seed in 0..<UInt64(Self.histories) {
            let history = History(seed: seed)
            if !history.violations.isEmpty {
                Issue.record("seed \(seed): \(history.violations.joined(separator: "; "))")
                return
            }
            if case .labelled = history.outcome { labelled += 1 } else { failed += 1 }
        }
        // A simulator in which nothing ever succeeds, or nothing ever fails, would prove little.
        #expect(labelled > Self.histories / 10)
        #expect(failed > Self.histories / 10)
    }

    @Test("a history is the same every time for the same seed")
    func deterministic() {
        for seed in 0..<UInt64(100) {
            #expect(History(seed: seed).trace == History(seed: seed).trace, "seed \(seed)")
        }
    }

    @Test(
        "killed right before or after any step, a restart leaves a finished snapshot or nothing",
        arguments: SagaStep.allCases)
    func killedAtEachStep(_ step: SagaStep) {
        for isAfter in [false, true] {
            for seed in 0..<UInt64(100) {
                let history = History(seed: seed, faults: Faults(), crashPoint: (step, isAfter))
                let place = "seed \(seed), \(isAfter ? "after" : "before") \(step.rawValue)"
                #expect(history.violations.isEmpty, "\(place): \(history.violations)")
            }
        }
    }

    @Test("the simulator notices a planted defect", arguments: PlantedDefect.allCases)
    func bites(_ defect: PlantedDefect) {
        let noticed = (0..<UInt64(Self.histories)).first { !History(seed: $0, defect: defect).violations.isEmpty }
        if noticed != nil { return }
        Issue.record("\(defect.rawValue) went unnoticed in \(Self.histories) histories")
    }
}
