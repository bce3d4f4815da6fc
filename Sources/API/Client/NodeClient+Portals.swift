extension NodeClient {
    public func portalGroups() async throws -> [PortalGroupInfo] { try await get("/v1/portal-groups") }

    public func setPortalGroup(_ group: Int, _ access: PortalAccess) async throws -> PortalGroupInfo {
        try await post("/v1/portal-groups/\(group)", PortalGroupRequest(access: access))
    }
}
