import API
import Protection

extension SnapshotSagaDriver {
    /// What ``run(request:report:)`` would do with this request now: agents are asked what lies on the volumes and what
    /// stands in the way. Nothing is quiesced, cut or journalled.
    func preview(_ request: SnapshotCreateRequest) async throws -> SnapshotPreview {
        try Self.check(request)
        let plan = try await plan(request)
        let round = DiscoveryRound(plan.agents.map(\.name))
        let found = await gather(from: plan.agents.map(\.name)) { [effects, limits] agent in
            try await effects.resources(
                of: agent, in: round, timeoutSeconds: limits.discoverTimeout.inSeconds, isRemembered: false)
        }
        let inside = found.answers.compactMapValues(\.inside)
        let resources = found.answers.mapValues(\.resources)
        let warnings = found.answers.sorted { $0.key < $1.key }
            .flatMap { agent, answer in answer.warnings.map { "agent \(agent): \($0)" } }
        let group = ConsistencyGroup(
            volumes: plan.volumes, requested: plan.requested, discovered: resources, unknown: [:], inside: inside)
        let members = Dictionary(grouping: group.members, by: \.agent)
        let checked = await gather(from: members.keys.sorted()) { [effects, limits] agent in
            try await effects.findings(
                of: agent, (members[agent] ?? []).map(\.resource),
                timeoutSeconds: limits.preflightTimeout.inSeconds)
        }
        let forecast = SnapshotForecast(
            plan: plan, discovered: resources, warnings: warnings, silent: found.failures,
            unseen: found.answers.mapValues(\.unseen), inside: inside, findings: checked.answers,
            unreachable: checked.failures.reduce(into: [:]) { reasons, failure in
                reasons[failure.key] = "agent \(failure.key) did not answer the preflight: \(failure.value)"
            })
        return SnapshotPreview(plan, forecast)
    }

    /// Asks all agents at once.
    private func gather<Answer: Sendable>(
        from agents: [String], _ ask: @escaping @Sendable (String) async throws -> Answer
    ) async -> (answers: [String: Answer], failures: [String: String]) {
        await withTaskGroup(of: (String, Result<Answer, any Error>).self) { group in
            for agent in agents {
                group.addTask {
                    do { return (agent, .success(try await ask(agent))) } catch { return (agent, .failure(error)) }
                }
            }
            var answers: [String: Answer] = [:]
            var failures: [String: String] = [:]
            for await (agent, result) in group {
                switch result {
                case .success(let answer): answers[agent] = answer
                case .failure(let error): failures[agent] = AgentCallFailure(error).text
                }
            }
            return (answers, failures)
        }
    }
}

/// What an agent found on the pool's volumes.
struct AgentFinding: Sendable {
    var resources: [Resource]
    var warnings: [String]
    var unseen: [Unseen]
    /// Where it runs in a guest that another agent's host has.
    var inside: InsideMachine?
}

extension SagaEffects {
    /// What an agent finds on the pool's volumes, when all agents of the round were asked. One inside of a guest is
    /// asked again where its host tells another thing of the guest's disks than it did before.
    ///
    /// - Parameter isRemembered: which volumes it has is kept in the catalog, for the day when it does not answer.
    func resources(
        of agent: String, in round: DiscoveryRound, timeoutSeconds: Double, isRemembered: Bool
    ) async throws -> AgentFinding {
        let pool = pool
        // All volumes, not only the group's: what lies partly outside of the group is worth a warning.
        let volumes: [VolumeReference]
        let asked: [VolumeReference]
        var answer: DiscoverResponse
        do {
            volumes = try await blocking.run { pool.volumes() }.map { VolumeReference(name: $0.name, naa: $0.naa) }
            asked = agents.guestDisks.located(volumes, for: agent)
            answer = try await agents.discover(agent, DiscoverRequest(volumes: asked), timeoutSeconds: timeoutSeconds)
        } catch {
            await round.answered(agent)
            throw error
        }
        await round.answered(agent)
        let known = agents.guestDisks.located(volumes, for: agent)
        if known != asked {
            answer = try await agents.discover(agent, DiscoverRequest(volumes: known), timeoutSeconds: timeoutSeconds)
        }
        let before = try await journal.lastKnownVolumes(ofAgent: agent)
        if isRemembered { try await remember(answer, of: agent, before) }
        return finding(agent, answer, before)
    }

    private func remember(_ answer: DiscoverResponse, of agent: String, _ known: Set<String>?) async throws {
        let seen = Set(answer.devices.map(\.volume) + answer.resources.flatMap(\.volumes))
        if (answer.unseen ?? []).isEmpty {
            try await journal.rememberVolumes(seen, ofAgent: agent)
        } else if let known {
            // What cannot be looked at now is not gone.
            try await journal.rememberVolumes(seen.union(known), ofAgent: agent)
        }
        if let machine = answer.machine, try await journal.machine(ofAgent: agent) != machine {
            try await journal.rememberMachine(machine, ofAgent: agent)
        }
    }

    private func finding(_ agent: String, _ answer: DiscoverResponse, _ known: Set<String>?) -> AgentFinding {
        let seen = Set(answer.devices.map(\.volume) + answer.resources.flatMap(\.volumes))
        let unseen = answer.unseen ?? []
        let isInside = !agents.guestDisks.disks(around: agent).isEmpty
        return AgentFinding(
            resources: answer.resources.map(Resource.init), warnings: answer.warnings,
            unseen: (unseen + agents.guestDisks.unrecognisable(around: agent)).map { one in
                let named = Set(one.volumes)
                let volumes: Set<String>? =
                    switch one.scope {
                    case .named: named
                    case .known: named.union(seen).union(known ?? [])
                    case .any: known.map { named.union(seen).union($0) }
                    }
                return Unseen(layer: one.layer.map(QuiesceLayer.init), reason: one.reason, volumes: volumes)
            },
            inside: isInside
                ? answer.machine.map { InsideMachine(machine: $0, volumes: Set(answer.devices.map(\.volume))) } : nil)
    }

    /// What an agent's plug-ins say beforehand about bringing these to rest.
    func findings(of agent: String, _ resources: [Resource], timeoutSeconds: Double) async throws -> [Finding] {
        let request = PreflightRequest(resources: resources.map(\.info))
        return try await agents.preflight(agent, request, timeoutSeconds: timeoutSeconds).findings.map(Finding.init)
    }
}

extension SnapshotPreview {
    init(_ plan: SnapshotPlan, _ forecast: SnapshotForecast) {
        self.init(
            name: plan.snapshotName, volumes: plan.volumes, requestedConsistency: plan.requested.consistency,
            policy: plan.policy.consistencyPolicy, attainableConsistency: forecast.attainable.consistency,
            refusal: forecast.refusal, reasons: forecast.shortfalls,
            members: forecast.group.members.map { member in
                PreviewMember(
                    agent: member.agent, plugin: member.resource.plugin, layer: member.resource.layer.protectionLayer,
                    resource: member.resource.id, label: member.resource.label, volumes: member.resource.volumes,
                    blockedBy: forecast.blocked[member.key], quiesceSeconds: plan.history[member.key.description])
            },
            remarks: forecast.remarks, estimatedQuietSeconds: forecast.estimate.longestSeconds,
            isEstimateFromHistory: forecast.estimate.isFromHistory)
    }
}
