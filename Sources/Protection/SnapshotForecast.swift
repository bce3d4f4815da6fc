/// What a snapshot saga would do, told beforehand from the same facts and by the same rules; nothing is touched.
public struct SnapshotForecast: Sendable, Equatable {
    public var group: ConsistencyGroup
    /// Members that cannot be brought to rest, with the reason.
    public var blocked: [MemberKey: String]
    /// The level that is reached if everything goes as found.
    public var attainable: ConsistencyLevel
    /// Why it is less than requested; one sentence for each volume that falls short.
    public var shortfalls: [String]
    /// What a person should know.
    public var remarks: [String]
    public var estimate: QuietEstimate
    /// Why the saga would fail before it touched anything; nil where it would go on.
    public var refusal: String?

    /// - Parameters:
    ///   - discovered: by agent.
    ///   - silent: agents that did not answer the discovery, with the reason.
    ///   - findings: by agent.
    ///   - unreachable: agents that did not answer the preflight, with the reason.
    public init(
        plan: SnapshotPlan, discovered: [String: [Resource]], warnings: [String], silent: [String: String],
        unseen: [String: [Unseen]] = [:], inside: [String: InsideMachine] = [:], findings: [String: [Finding]],
        unreachable: [String: String]
    ) {
        var unknown: [String: String] = [:]
        var unknownApplications: [String: String] = [:]
        var remarks = warnings
        for (agent, all) in unseen.sorted(by: { $0.key < $1.key }) {
            for one in all { plan.take(one, of: agent, &unknown, &unknownApplications) }
        }
        for (agent, reason) in silent.sorted(by: { $0.key < $1.key }) {
            let (volumes, note) = plan.consequences(ofSilent: agent, reason, discovered)
            unknown.merge(volumes) { first, _ in first }
            if let note { remarks.append(note) }
        }
        group = ConsistencyGroup(
            volumes: plan.volumes, requested: plan.requested, discovered: discovered, unknown: unknown,
            unknownApplications: unknownApplications, inside: inside)
        let verdict = PreflightVerdict(
            group: group, findings: findings, unreachable: unreachable, history: plan.history)
        blocked = verdict.blocked
        let usable = Set(group.members.map(\.key)).subtracting(blocked.keys)
        attainable = group.level(proven: usable)
        shortfalls = group.shortfalls(usable: usable)
        remarks += group.warnings + verdict.remarks
        estimate = verdict.estimate
        if estimate.longestSeconds > plan.lease.inSeconds {
            remarks.append("The estimate is longer than the lease of \(plan.lease.text): it will have to be renewed")
        }
        self.remarks = remarks
        if plan.policy == .require, !shortfalls.isEmpty {
            let causes = group.members.compactMap { member in
                blocked[member.key].map { "\(member.text) cannot be brought to rest: \($0)" }
            }
            refusal = (causes.isEmpty ? shortfalls : causes).joined(separator: "; ")
        } else if plan.policy == .require, let member = group.members.first(where: { verdict.blocked[$0.key] != nil }) {
            refusal = "\(member.text) cannot be brought to rest: \(verdict.blocked[member.key] ?? "")"
        }
    }
}

/// Something on an agent's host that could not be looked at, though the agent answered.
public struct Unseen: Codable, Sendable, Equatable {
    /// Nil where it is not known.
    public var layer: QuiesceLayer?
    /// What, why, and what to do about it.
    public var reason: String
    /// The volumes that it may lie on; nil means any.
    public var volumes: Set<String>?

    public init(layer: QuiesceLayer?, reason: String, volumes: Set<String>?) {
        self.layer = layer
        self.reason = reason
        self.volumes = volumes
    }
}

extension SnapshotPlan {
    /// What could not be looked at makes unknown what it may lie on; where it is an application, only those.
    func take(
        _ unseen: Unseen, of agent: String, _ unknown: inout [String: String],
        _ unknownApplications: inout [String: String]
    ) {
        let sentence = "agent \(agent) could not look at all of it: \(unseen.reason)"
        for volume in volumes where unseen.volumes?.contains(volume) ?? true {
            if unseen.layer != .application {
                unknown[volume] = unknown[volume] ?? sentence
            } else if requested == .application {
                unknownApplications[volume] = unknownApplications[volume] ?? sentence
            }
        }
    }

    /// An agent that does not answer makes unknown what it had when it last did; unless it runs in a machine that is
    /// off, as the machine's own host says.
    func consequences(
        ofSilent agent: String, _ reason: String, _ discovered: [String: [Resource]]
    ) -> (unknown: [String: String], note: String?) {
        let candidate = agents.first { $0.name == agent }
        let own = discovered.values.joined().first { $0.machine != nil && $0.machine == candidate?.machine }
        if let own, own.isOff == true { return ([:], "agent \(agent) does not answer: \(own.label) is off") }
        let known = candidate?.lastKnownVolumes
        let concerned = volumes.filter { known?.contains($0) ?? true }
        let note = "agent \(agent) does not answer (\(reason)); it had none of these volumes when it last did"
        let sentence = "agent \(agent), which may use it, does not answer: \(reason)"
        return (
            Dictionary(concerned.map { ($0, sentence) }) { first, _ in first }, concerned.isEmpty ? note : nil
        )
    }
}
