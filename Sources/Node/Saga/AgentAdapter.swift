import API
import ISCSI

/// The enrolled agents as the sagas see them.
struct AgentAdapter: AgentCalling {
    let registry: AgentRegistry
    let targets: TargetRegistry

    func names() async throws -> [String] { try await registry.names() }

    func discover(_ agent: String, _ request: DiscoverRequest, timeoutSeconds: Double) async throws -> DiscoverResponse
    {
        var request = request
        request.volumes = targets.located(request.volumes)
        let answer = try await registry.client(agent).discover(request, timeoutSeconds: timeoutSeconds)
        registry.guestDisks.learn(answer, of: agent)
        return answer
    }

    var guestDisks: GuestDisks { registry.guestDisks }

    func preflight(
        _ agent: String, _ request: PreflightRequest, timeoutSeconds: Double
    ) async throws -> PreflightResponse {
        try await registry.client(agent).preflight(request, timeoutSeconds: timeoutSeconds)
    }

    func hold(_ agent: String, _ request: HoldRequest, timeoutSeconds: Double) async throws -> HoldResponse {
        try await registry.client(agent).hold(request, timeoutSeconds: timeoutSeconds)
    }

    func renew(
        _ agent: String, holdID: String, _ request: RenewRequest, timeoutSeconds: Double
    ) async throws -> RenewResponse {
        try await registry.client(agent).renew(
            holdID: holdID, leaseSeconds: request.leaseSeconds, timeoutSeconds: timeoutSeconds)
    }

    func release(_ agent: String, holdID: String, timeoutSeconds: Double) async throws -> ReleaseResponse {
        try await registry.client(agent).release(holdID: holdID, timeoutSeconds: timeoutSeconds)
    }

    func thaw(_ agent: String, _ request: ThawRequest, timeoutSeconds: Double) async throws -> ThawResponse {
        try await registry.client(agent).thaw(sagaID: request.sagaID, timeoutSeconds: timeoutSeconds)
    }

    func prepareRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse {
        var request = request
        request.volumes = targets.located(request.volumes)
        return try await registry.client(agent).prepareRestore(request, timeoutSeconds: timeoutSeconds)
    }

    func finishRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse {
        var request = request
        request.volumes = targets.located(request.volumes)
        return try await registry.client(agent).finishRestore(request, timeoutSeconds: timeoutSeconds)
    }
}
