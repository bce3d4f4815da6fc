import Foundation
import NIOCore
import NIOHTTP1

extension NodeClient {
    public func sessions() async throws -> [SessionInfo] { try await get("/v1/sessions") }

    /// Ends a session. Its initiator may log in again unless it is denied.
    public func dropSession(_ id: UInt64) async throws { _ = try await send(.DELETE, "/v1/sessions/\(id)") }

    public func discovery() async throws -> DiscoveryInfo { try await get("/v1/discovery") }

    public func allowDiscovery(_ request: TargetAllowRequest) async throws -> DiscoveryInfo {
        let path = "/v1/discovery/allow"
        return try decode(try await send(.POST, path, body: try APIJSON.encoder().encode(request)), path: path)
    }

    public func denyDiscovery(_ initiator: String) async throws -> DiscoveryInfo {
        let path = "/v1/discovery/deny"
        let body = try APIJSON.encoder().encode(TargetDenyRequest(initiator: initiator))
        return try decode(try await send(.POST, path, body: body), path: path)
    }
}
