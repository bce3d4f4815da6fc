// Plan and preflight: nothing is touched yet, so everything that can be known beforehand fails here.
extension SnapshotSaga {
    mutating func discover(_ now: MonotonicInstant) {
        guard plan.requested > .crash else { return planned(now) }
        awaitedAgents = Set(plan.agents.map(\.name))
        for agent in plan.agents { actions.append(.discover(agent: agent.name)) }
        if awaitedAgents.isEmpty { planned(now) }
    }

    mutating func takePlanning(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .discovered(let agent, let resources, let warnings, let unseen, let machine):
            guard phase == .planning, awaitedAgents.remove(agent) != nil else { return }
            discovered[agent] = resources
            inside[agent] = machine
            for one in unseen { plan.take(one, of: agent, &unknown, &unknownApplications) }
            notes += warnings.map { "agent \(agent): \($0)" }
            if awaitedAgents.isEmpty { planned(now) }
        case .discoverFailed(let agent, let reason):
            guard phase == .planning, awaitedAgents.remove(agent) != nil else { return }
            silent[agent] = reason
            if awaitedAgents.isEmpty { planned(now) }
        case .preflighted(let agent, let all):
            guard phase == .preflight, awaitedAgents.remove(agent) != nil else { return }
            findings[agent] = all
            if awaitedAgents.isEmpty { preflightEnded(now) }
        case .preflightFailed(let agent, let reason):
            guard phase == .preflight, awaitedAgents.remove(agent) != nil else { return }
            unreachable[agent] = "agent \(agent) did not answer the preflight: \(reason)"
            if awaitedAgents.isEmpty { preflightEnded(now) }
        default: break
        }
    }

    private mutating func planned(_ now: MonotonicInstant) {
        for (agent, reason) in silent.sorted(by: { $0.key < $1.key }) {
            let (volumes, note) = plan.consequences(ofSilent: agent, reason, discovered)
            unknown.merge(volumes) { first, _ in first }
            if let note { notes.append(note) }
        }
        let group = ConsistencyGroup(
            volumes: plan.volumes, requested: plan.requested, discovered: discovered, unknown: unknown,
            unknownApplications: unknownApplications, inside: inside)
        self.group = group
        notes += group.warnings
        let shortfalls = group.shortfalls(usable: Set(group.members.map(\.key)))
        if plan.policy == .require, !shortfalls.isEmpty { return fail(unreachableLevel(shortfalls), now) }
        let found = group.members.map(\.text)
        succeed(.plan, sentence((found.isEmpty ? [] : ["to be quiet: \(found.joined(separator: ", "))"]) + notes))
        guard !group.members.isEmpty else { return ready(now) }
        phase = .preflight
        begin(.preflight)
        journal(.preflight, .preflight, then: .preflight, now)
    }

    private func unreachableLevel(_ shortfalls: [String]) -> SagaFailure {
        SagaFailure(
            .levelUnreachable,
            "No \(plan.requested.text)-consistent snapshot is possible: \(shortfalls.joined(separator: "; "))",
            hint: "Nothing was touched; remove the cause, or allow a lower consistency")
    }

    mutating func preflight(_ now: MonotonicInstant) {
        guard let group else { return }
        let byAgent = Dictionary(grouping: group.members, by: \.agent)
        awaitedAgents = Set(byAgent.keys)
        for (agent, members) in byAgent.sorted(by: { $0.key < $1.key }) {
            actions.append(.preflight(agent: agent, resources: members.map(\.resource)))
        }
    }

    private mutating func preflightEnded(_ now: MonotonicInstant) {
        guard let group else { return }
        let verdict = PreflightVerdict(
            group: group, findings: findings, unreachable: unreachable, history: plan.history)
        blocked = verdict.blocked
        if plan.policy == .require, let first = group.members.first(where: { blocked[$0.key] != nil }) {
            let reason = blocked[first.key] ?? ""
            return fail(
                SagaFailure(
                    .levelUnreachable, "\(first.text) cannot be brought to rest: \(reason)",
                    hint: "Nothing was touched; remove the cause, or allow a lower consistency"), now)
        }
        let estimate = verdict.estimate.longestSeconds
        var remarks = verdict.remarks
        remarks.insert("estimated quiet time \(Duration.text(seconds: estimate))", at: 0)
        if estimate > plan.lease.inSeconds {
            remarks.append("that is longer than the lease of \(plan.lease.text): it will have to be renewed")
        }
        succeed(.preflight, sentence(remarks))
        quiesceNext(after: nil, now)
    }

    func sentence(_ parts: [String]) -> String? { parts.isEmpty ? nil : parts.joined(separator: "; ") }
}
