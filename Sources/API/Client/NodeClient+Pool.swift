// The pool.

extension NodeClient {
    public func pool() async throws -> PoolInfo { try await get("/v1/pool") }

    /// The job; its result is a ``ScrubInfo``.
    public func scrubPool(_ request: ScrubRequest) async throws -> JobInfo { try await post("/v1/pool/scrub", request) }

    public func cancelScrub() async throws { _ = try await delete("/v1/pool/scrub") }

    public func growPool(_ request: PoolGrowRequest) async throws -> PoolInfo {
        try await post("/v1/pool/grow", request)
    }
}
