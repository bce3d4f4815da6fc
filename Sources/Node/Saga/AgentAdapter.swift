import API

/// The enrolled agents as the sagas see them.
struct AgentAdapter: AgentCalling {
    let registry: AgentRegistry

    func names() async throws -> [String] { try await registry.names() }

    func host(of agent: String) async -> String? {
        (try? await registry.address(agent)).flatMap(\.self).flatMap { HostAddress.host(of: $0) }
    }

    func discover(_ agent: String, _ request: DiscoverRequest, timeoutSeconds: Double) async throws -> DiscoverResponse
    {
        try await registry.client(agent).discover(request, timeoutSeconds: timeoutSeconds)
    }

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
        try await registry.client(agent).prepareRestore(request, timeoutSeconds: timeoutSeconds)
    }

    func finishRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse {
        try await registry.client(agent).finishRestore(request, timeoutSeconds: timeoutSeconds)
    }
}

/// The host part of `HOST:PORT`, and whether two of them are one machine.
enum HostAddress {
    /// Without brackets; nil where there is no port.
    static func host(of address: String) -> String? {
        guard let colon = address.lastIndex(of: ":") else { return nil }
        let host = address[..<colon].drop { $0 == "[" }
        return String(host.last == "]" ? host.dropLast() : host).lowercased()
    }

    /// The names and addresses of the machine itself are all one.
    static func isLoopback(_ host: String) -> Bool {
        host == "localhost" || host == "::1" || host.hasPrefix("127.") || host.hasPrefix("::ffff:127.")
    }

    static func isSame(_ left: String, _ right: String) -> Bool {
        left == right || "::ffff:\(left)" == right || "::ffff:\(right)" == left
            || (isLoopback(left) && isLoopback(right))
    }
}
