@testable import Protection

/// What a resource really does, whatever anybody believes.
final class SimulatedResource {
    let resource: Resource
    private(set) var quietSince: Int64?
    /// The hold that keeps it quiet.
    private(set) var holdID: String?

    init(_ resource: Resource) { self.resource = resource }

    var isQuiet: Bool { quietSince != nil }

    func quiesce(_ holdID: String, at now: Int64) {
        quietSince = now
        self.holdID = holdID
    }

    /// Answers for how long it was quiet.
    func unquiesce(_ holdID: String, at now: Int64) -> Int64 {
        guard self.holdID == holdID, let since = quietSince else { return 0 }
        quietSince = nil
        self.holdID = nil
        return now - since
    }
}

/// An agent that keeps its side of the contract: it counts leases on its own clock, from the moment it takes a
/// request; releases by itself when they end; never takes a hold twice; and says at release what it knows.
final class SimulatedAgent {
    enum HoldState { case quiescing, held, ended }

    final class AgentHold {
        let order: HoldOrder
        var state: HoldState = .quiescing
        var leaseEnd: Int64
        var isLost = false
        var hasLapsed = false
        var quiesceSeconds: [String: Double] = [:]
        var answers: [ReleaseAnswer]?
        var waiting: [(SimulatedReply) -> Void] = []

        init(order: HoldOrder, leaseEnd: Int64) {
            self.order = order
            self.leaseEnd = leaseEnd
        }
    }

    let name: String
    let world: SimulatedWorld
    /// How much faster its clock runs than the node's.
    let clockRate: Double
    var resources: [SimulatedResource]
    var isAlive = true
    /// Forgets, in a restart, which holds it has seen; the contract forbids that.
    var isForgetful = false
    var holds: [String: AgentHold] = [:]
    /// Survives a restart: the journal on tmpfs.
    var seenHolds: Set<String> = []
    var thawedSagas: Set<String> = []
    private var incarnation = 0

    init(name: String, world: SimulatedWorld, clockRate: Double, resources: [Resource]) {
        self.name = name
        self.world = world
        self.clockRate = clockRate
        self.resources = resources.map(SimulatedResource.init)
    }

    /// A duration on this agent's clock, in true time.
    private func trueTime(_ duration: Duration) -> Int64 { Int64(Double(duration.wholeNanoseconds) / clockRate) }

    private func measured(_ trueNanoseconds: Int64) -> Double { Double(trueNanoseconds) * clockRate / 1e9 }

    func receive(_ request: SimulatedRequest, reply: @escaping (SimulatedReply) -> Void) {
        guard isAlive else { return }
        switch request {
        case .discover: reply(.discovered(resources.map(\.resource)))
        case .preflight(let refused):
            reply(.preflighted(refused.map { Finding(severity: .error, plugin: $0, resource: nil, message: "no") }))
        case .hold(let order): hold(order, reply)
        case .renew(let holdID, let length):
            guard let hold = holds[holdID], hold.state == .held, !hold.isLost else { return reply(.unknown) }
            hold.leaseEnd = max(hold.leaseEnd, world.timeline.now + trueTime(length))
            watchLease(hold)
            reply(.renewed)
        case .release(let holdID): release(holdID, reply)
        case .thaw(let sagaID):
            thawedSagas.insert(sagaID)
            for hold in orderedHolds { end(hold) }
            reply(.thawed)
        }
    }

    private var orderedHolds: [AgentHold] { holds.sorted { $0.key < $1.key }.map(\.value) }

    private func hold(_ order: HoldOrder, _ reply: @escaping (SimulatedReply) -> Void) {
        if let known = holds[order.holdID] {
            switch known.state {
            case .quiescing: known.waiting.append(reply)
            case .held where known.isLost:
                // "Failed" says that nothing is held.
                end(known)
                reply(.failed)
            case .held: reply(.held(known.quiesceSeconds))
            case .ended: reply(.failed)
            }
            return
        }
        guard !seenHolds.contains(order.holdID), !thawedSagas.contains(world.plan.sagaID) else { return reply(.failed) }
        seenHolds.insert(order.holdID)
        let hold = AgentHold(order: order, leaseEnd: world.timeline.now + trueTime(order.lease))
        holds[order.holdID] = hold
        hold.waiting.append(reply)
        watchLease(hold)
        let duration = world.quiesceTime()
        let fails = world.random.chance(world.faults.quiesceFailure)
        let incarnation = incarnation
        world.timeline.after(duration) { [self] in
            guard self.incarnation == incarnation, hold.state == .quiescing else { return }
            guard !fails else { return end(hold) }
            hold.state = .held
            for resource in mine(hold) {
                resource.quiesce(order.holdID, at: world.timeline.now)
                hold.quiesceSeconds[resource.resource.id] = measured(duration)
            }
            for answer in hold.waiting { answer(.held(hold.quiesceSeconds)) }
            hold.waiting = []
            mayLose(hold)
        }
    }

    private func mine(_ hold: AgentHold) -> [SimulatedResource] {
        let ids = Set(hold.order.members.map(\.resource.id))
        return resources.filter { $0.resource.plugin == hold.order.plugin && ids.contains($0.resource.id) }
    }

    /// A plug-in may lose what it holds: a connection breaks, somebody thaws by hand.
    private func mayLose(_ hold: AgentHold) {
        guard world.random.chance(world.faults.holdLoss) else { return }
        world.timeline.after(world.random.time(1...3000)) { [self] in
            guard hold.state == .held, let first = mine(hold).first else { return }
            hold.isLost = true
            _ = first.unquiesce(hold.order.holdID, at: world.timeline.now)
        }
    }

    private func watchLease(_ hold: AgentHold) {
        let end = hold.leaseEnd
        world.timeline.at(end) { [self] in
            guard hold.leaseEnd <= end, hold.state != .ended else { return }
            hold.hasLapsed = true
            self.end(hold)
        }
    }

    /// Lets go of everything without having been asked for the release.
    private func end(_ hold: AgentHold) {
        guard hold.state != .ended else { return }
        hold.state = .ended
        for resource in mine(hold) { _ = resource.unquiesce(hold.order.holdID, at: world.timeline.now) }
        for answer in hold.waiting { answer(.failed) }
        hold.waiting = []
    }

    private func release(_ holdID: String, _ reply: @escaping (SimulatedReply) -> Void) {
        guard let hold = holds[holdID] else {
            seenHolds.insert(holdID)
            return reply(.unknown)
        }
        if let answers = hold.answers { return reply(.released(answers)) }
        guard hold.state == .held else {
            end(hold)
            return reply(.unknown)
        }
        let answers = mine(hold).map { resource in
            let quiet = resource.unquiesce(holdID, at: world.timeline.now)
            return ReleaseAnswer(
                resource: resource.resource.id, stillHeld: quiet > 0 && !hold.isLost, quietSeconds: measured(quiet))
        }
        hold.answers = answers
        end(hold)
        world.timeline.after(world.random.time(0.1...30)) { reply(.released(answers)) }
    }

    /// `kill -9`: the plug-ins see the end of their input and let go.
    func crash() {
        isAlive = false
        incarnation += 1
        for hold in orderedHolds {
            hold.waiting = []
            end(hold)
        }
        holds = [:]
        if isForgetful { seenHolds = [] }
        world.timeline.after(world.random.time(1...800)) { self.isAlive = true }
    }
}

enum SimulatedRequest {
    case discover
    /// Plug-ins that refuse.
    case preflight([String])
    case hold(HoldOrder)
    case renew(String, Duration)
    case release(String)
    case thaw(String)
}

enum SimulatedReply {
    case discovered([Resource])
    case preflighted([Finding])
    case held([String: Double])
    case renewed
    case released([ReleaseAnswer])
    case thawed
    /// The agent says that it holds nothing.
    case failed
    case unknown
    /// No answer in time.
    case silence
}
