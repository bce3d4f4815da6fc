import API
import Protection

extension SnapshotSagaDriver {
    /// What ``run(request:report:)`` would do with this request now: agents are asked what lies on the volumes and what
    /// stands in the way. Nothing is quiesced, cut or journalled.
    func preview(_ request: SnapshotCreateRequest) async throws -> SnapshotPreview {
        try Self.check(request)
        let plan = try await plan(request)
        let found = await gather(from: plan.agents.map(\.name)) { [effects, limits] agent in
            try await effects.resources(
                of: agent, timeoutSeconds: limits.discoverTimeout.inSeconds, isRemembered: false)
        }
        let resources = found.answers.mapValues(\.resources)
        let warnings = found.answers.sorted { $0.key < $1.key }
            .flatMap { agent, answer in answer.warnings.map { "agent \(agent): \($0)" } }
        let group = ConsistencyGroup(
            volumes: plan.volumes, requested: plan.requested, discovered: resources, unknown: [:])
        let members = Dictionary(grouping: group.members, by: \.agent)
        let checked = await gather(from: members.keys.sorted()) { [effects, limits] agent in
            try await effects.findings(
                of: agent, (members[agent] ?? []).map(\.resource),
                timeoutSeconds: limits.preflightTimeout.inSeconds)
        }
        let forecast = SnapshotForecast(
            plan: plan, discovered: resources, warnings: warnings, silent: found.failures, findings: checked.answers,
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

extension SagaEffects {
    /// What an agent finds on the pool's volumes.
    /// - Parameter isRemembered: which volumes it has is kept in the catalog, for the day when it does not answer.
    func resources(
        of agent: String, timeoutSeconds: Double, isRemembered: Bool
    ) async throws -> (resources: [Resource], warnings: [String]) {
        let pool = pool
        // All volumes, not only the group's: what lies partly outside of the group is worth a warning.
        let volumes = try await blocking.run { pool.volumes() }
        let request = DiscoverRequest(volumes: volumes.map { VolumeReference(name: $0.name, naa: $0.naa) })
        let answer = try await agents.discover(agent, request, timeoutSeconds: timeoutSeconds)
        let seen = Set(answer.devices.map(\.volume) + answer.resources.flatMap(\.volumes))
        if isRemembered { try await journal.rememberVolumes(seen, ofAgent: agent) }
        return (answer.resources.map(Resource.init), answer.warnings)
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
