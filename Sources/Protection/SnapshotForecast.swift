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
        findings: [String: [Finding]], unreachable: [String: String]
    ) {
        var unknown: [String: String] = [:]
        var remarks = warnings
        for (agent, reason) in silent.sorted(by: { $0.key < $1.key }) {
            let (volumes, note) = plan.consequences(ofSilent: agent, reason)
            unknown.merge(volumes) { first, _ in first }
            if let note { remarks.append(note) }
        }
        group = ConsistencyGroup(
            volumes: plan.volumes, requested: plan.requested, discovered: discovered, unknown: unknown)
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

extension SnapshotPlan {
    /// An agent that does not answer makes unknown what it had when it last did.
    func consequences(ofSilent agent: String, _ reason: String) -> (unknown: [String: String], note: String?) {
        let known = agents.first { $0.name == agent }?.lastKnownVolumes
        let concerned = volumes.filter { known?.contains($0) ?? true }
        let note = "agent \(agent) does not answer (\(reason)); it had none of these volumes when it last did"
        let sentence = "agent \(agent), which may use it, does not answer: \(reason)"
        return (
            Dictionary(concerned.map { ($0, sentence) }) { first, _ in first }, concerned.isEmpty ? note : nil
        )
    }
}
