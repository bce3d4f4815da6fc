@testable import Protection

/// How hostile a history is.
struct Faults {
    var messageLoss = 0.0
    var duplicates = 0.0
    /// Part of the messages that take long, up to the transit limit.
    var slowMessages = 0.0
    var slowQuiesce = 0.0
    var quiesceFailure = 0.0
    var holdLoss = 0.0
    var preflightRefusal = 0.0
    var slowJournal = 0.0
    var journalFailure = 0.0
    var slowCut = 0.0
    var cutFailure = 0.0
    var labelFailure = 0.0
    var agentCrashes = 0.0
    var partitions = 0.0
    var nodeCrash = 0.0
    var cancel = 0.0
}

/// A mistake planted between the machine and the world, to see whether the simulator notices.
enum PlantedDefect: String, CaseIterable {
    case cutBeforeAllHeld
    case ignoreStillHeld
    case leaseCountedFromAnswer
    case renewalCountedWithoutAnswer
    case keepHoldsOnFailure
    case actBeforeJournal
    case ignoreCutLimit
    case recoveryDoesNotThaw
    case recoveryKeepsPending
    case recoveryLabelsWithoutEvidence
    case silentAgentIgnored
}

struct Violation: Error, CustomStringConvertible {
    var description: String
}

/// The snapshot as the pool has it.
struct SimulatedSnapshot {
    /// Nil while pending.
    var label: Evidence?
    /// Members that were truly quiet at the instant of the cut.
    var quietAtCut: Set<MemberKey>
}

/// One history: a node that runs a saga and is killed, agents, a network, a pool; all of it decided by one seed.
final class SimulatedWorld {
    let timeline = VirtualTimeline()
    var random: SeededGenerator
    var faults: Faults
    let plan: SnapshotPlan
    let limits = SagaLimits()
    var agents: [String: SimulatedAgent] = [:]
    /// `[a, b)` during which no message to or from an agent passes.
    var partitions: [String: [(Int64, Int64)]] = [:]
    let defect: PlantedDefect?

    // The pool and the journal: they survive the node.
    var snapshot: SimulatedSnapshot?
    var journal: [SnapshotRecord] = []
    var violations: [String] = []
    var trace: UInt64 = 0xCBF2_9CE4_8422_2325
    var outcome: SnapshotSaga.Outcome?
    var isClosed = false
    var firstHoldAt: Int64?
    /// A journal that failed while it wrote a verdict may hold it or not: job and pool may then disagree, both
    /// honestly.
    var mayDisagree = false
    var refusedPlugins: [String: [String]] = [:]

    init(seed: UInt64, defect: PlantedDefect? = nil, faults: Faults? = nil) {
        random = SeededGenerator(seed: seed)
        self.defect = defect
        self.faults = Faults()
        let topology = Topology(&random)
        plan = topology.plan(&random)
        if let faults { self.faults = faults } else { drawFaults() }
        for (index, resources) in topology.resources.enumerated() {
            let name = "agent\(index)"
            let rate = Double.random(in: 0.995...1.005, using: &random)
            agents[name] = SimulatedAgent(name: name, world: self, clockRate: rate, resources: resources)
            if random.chance(self.faults.preflightRefusal) {
                refusedPlugins[name] = [random.chance(0.5) ? "database" : "filesystem"]
            }
        }
        drawAgentFaults()
    }

    private func drawFaults() {
        guard random.chance(0.85) else { return }
        let some: (inout SeededGenerator, Double) -> Double = {
            $0.chance(0.35) ? Double.random(in: 0...$1, using: &$0) : 0
        }
        faults.messageLoss = some(&random, 0.4)
        faults.duplicates = some(&random, 0.3)
        faults.slowMessages = some(&random, 0.3)
        faults.slowQuiesce = some(&random, 0.6)
        faults.quiesceFailure = some(&random, 0.3)
        faults.holdLoss = some(&random, 0.5)
        faults.preflightRefusal = some(&random, 0.3)
        faults.slowJournal = some(&random, 0.3)
        faults.journalFailure = some(&random, 0.1)
        faults.slowCut = some(&random, 0.6)
        faults.cutFailure = some(&random, 0.3)
        faults.labelFailure = some(&random, 0.3)
        faults.agentCrashes = some(&random, 0.8)
        faults.partitions = some(&random, 0.8)
        faults.nodeCrash = some(&random, 0.9)
        faults.cancel = some(&random, 0.5)
    }

    private func drawAgentFaults() {
        for agent in orderedAgents {
            if random.chance(faults.agentCrashes) {
                timeline.at(random.time(0...8000)) { agent.crash() }
            }
            if random.chance(faults.partitions) {
                let start = random.time(0...5000)
                partitions[agent.name] = [(start, start + random.time(100...25_000))]
            }
        }
    }

    var orderedAgents: [SimulatedAgent] { agents.sorted { $0.key < $1.key }.map(\.value) }

    func quiesceTime() -> Int64 {
        random.chance(faults.slowQuiesce) ? random.time(500...14_000) : random.time(1...400)
    }

    func note(_ text: String) {
        for byte in "\(timeline.now) \(text)".utf8 { trace = (trace ^ UInt64(byte)) &* 0x100_0000_01B3 }
    }

    func violate(_ text: String) {
        note("VIOLATION \(text)")
        violations.append(text)
    }

    /// Everything that is quiet now.
    var quiet: Set<MemberKey> {
        var keys: Set<MemberKey> = []
        for agent in agents.values {
            for resource in agent.resources where resource.isQuiet {
                keys.insert(Member(agent: agent.name, resource: resource.resource).key)
            }
        }
        return keys
    }

    // MARK: Network

    private func passes(_ agent: String) -> Bool {
        let cuts = partitions[agent] ?? []
        if cuts.contains(where: { $0.0 <= timeline.now && timeline.now < $0.1 }) { return false }
        return !random.chance(faults.messageLoss)
    }

    private func delay() -> Int64 {
        random.chance(faults.slowMessages) ? random.time(50...1900) : random.time(0.1...10)
    }

    /// One call: exactly one answer, at the latest after `timeout`.
    func call(
        _ name: String, _ request: SimulatedRequest, timeout: Duration, answer: @escaping (SimulatedReply) -> Void
    ) {
        var isAnswered = false
        let deliver: (SimulatedReply) -> Void = { reply in
            guard !isAnswered else { return }
            isAnswered = true
            answer(reply)
        }
        timeline.after(timeout.wholeNanoseconds) { deliver(.silence) }
        guard let agent = agents[name] else { return }
        for _ in 0..<(random.chance(faults.duplicates) ? 2 : 1) where passes(name) {
            timeline.after(delay()) { [self] in
                agent.receive(request) { [self] reply in
                    guard passes(name) else { return }
                    timeline.after(delay()) { deliver(reply) }
                }
            }
        }
    }

    // MARK: Truth

    /// The level that the snapshot truly has, worked out anew from what lay where and what was quiet.
    func trueLevel(quiet: Set<MemberKey>) -> ConsistencyLevel {
        let everything = agents.values.flatMap { agent in
            agent.resources.map { Member(agent: agent.name, resource: $0.resource) }
        }
        var level = plan.requested
        for volume in plan.volumes {
            let here = everything.filter { $0.resource.volumes.contains(volume) }
            let fileSystems = here.filter { [.fileSystem, .hostFileSystem].contains($0.resource.layer) }
            // What a machine makes of its disks, as long as it is quiet.
            let machines = here.compactMap { member in
                member.resource.layer == .machine
                    ? member.resource.level.map { quiet.contains(member.key) ? $0 : .crash } : nil
            }
            let hasDatabase = here.contains { $0.resource.layer == .application } || machines.contains(.application)
            let allQuiet = here.allSatisfy { quiet.contains($0.key) } && !machines.contains { $0 < .application }
            let frozen =
                fileSystems.count + machines.count > 0 && fileSystems.allSatisfy { quiet.contains($0.key) }
                && !machines.contains(.crash)
            let levelHere: ConsistencyLevel = hasDatabase && allQuiet ? .application : (frozen ? .fileSystem : .crash)
            level = min(level, levelHere)
        }
        return level
    }
}

/// Volumes, and what lies on them where.
struct Topology {
    var volumes: [String]
    /// By agent.
    var resources: [[Resource]]

    init(_ random: inout SeededGenerator) {
        let count = Int.random(in: 1...3, using: &random)
        volumes = (0..<count).map { "v\($0)" }
        resources = Array(repeating: [], count: Int.random(in: 1...3, using: &random))
        for (index, volume) in volumes.enumerated() {
            if random.chance(0.05) { continue }
            let agent = Int.random(in: 0..<resources.count, using: &random)
            resources[agent].append(
                Resource(
                    plugin: "filesystem", layer: .fileSystem, id: "fs\(index)", label: "fs\(index)", volumes: [volume]))
            if random.chance(0.85) {
                var lies = [volume]
                if random.chance(0.2), let other = volumes.randomElement(using: &random), other != volume {
                    lies.append(other)
                }
                resources[agent].append(
                    Resource(
                        plugin: "database", layer: .application, id: "db\(index)", label: "db\(index)", volumes: lies))
            }
            if random.chance(0.1) {
                // A disk that two hosts share.
                resources[(agent + 1) % resources.count].append(
                    Resource(
                        plugin: "database", layer: .application, id: "shared\(index)", label: "shared\(index)",
                        volumes: [volume]))
            }
            if random.chance(0.1) {
                resources[agent].append(
                    Resource(
                        plugin: "vm", layer: .machine, id: "vm\(index)", label: "vm\(index)", volumes: [volume],
                        level: [nil, .crash, .fileSystem, .application].randomElement(using: &random) ?? nil))
            }
            if random.chance(0.1) {
                resources[agent].append(
                    Resource(
                        plugin: "filesystem", layer: .hostFileSystem, id: "images\(index)", label: "images\(index)",
                        volumes: [volume]))
            }
        }
    }

    func plan(_ random: inout SeededGenerator) -> SnapshotPlan {
        let requested: ConsistencyLevel =
            random.chance(0.7) ? .application : (random.chance(0.7) ? .fileSystem : .crash)
        let candidates = resources.indices.map { index in
            let known = Set(resources[index].flatMap(\.volumes))
            return AgentCandidate(name: "agent\(index)", lastKnownVolumes: random.chance(0.7) ? known : nil)
        }
        return SnapshotPlan(
            sagaID: "saga", snapshotID: "snapshot", snapshotName: "s1", volumes: volumes, requested: requested,
            policy: random.chance(0.5) ? .require : .allowLower,
            lease: .milliseconds(Int.random(in: 2000...10_000, using: &random)), agents: candidates)
    }
}
