import AsyncHTTPClient
import Foundation
import NIOCore
import NIOFoundationCompat
import NIOHTTP1

// The node itself, agents and jobs.

extension NodeClient {
    /// Needs no token. A node that is not healthy answers with its checks, too.
    public func health() async throws -> HealthInfo { try await get("/health") }

    public func status() async throws -> NodeStatus { try await get("/v1/status") }

    // MARK: Agents

    public func createAgentToken(_ request: AgentTokenRequest) async throws -> AgentToken {
        try await post("/v1/agents/tokens", request)
    }

    public func agents() async throws -> [AgentInfo] { try await get("/v1/agents") }

    public func agent(_ name: String) async throws -> AgentInfo { try await get("/v1/agents/\(segment(name))") }

    public func removeAgent(_ name: String) async throws { _ = try await delete("/v1/agents/\(segment(name))") }

    // MARK: Guests

    public func guests() async throws -> [GuestInfo] { try await get("/v1/guests") }

    public func guest(_ nameOrUUID: String) async throws -> GuestInfo {
        try await get("/v1/guests/\(segment(nameOrUUID))")
    }

    public func restoreGuests(_ request: GuestRestoreRequest) async throws -> JobInfo {
        try await post("/v1/guests/restores", request)
    }

    // MARK: Jobs

    public func jobs() async throws -> [JobInfo] { try await get("/v1/jobs") }

    public func job(_ id: String) async throws -> JobInfo { try await get("/v1/jobs/\(segment(id))") }

    /// Gives up a job of the kind `restore.finish`; answers the job, which is about to end.
    public func abandonJob(_ id: String) async throws -> JobInfo {
        try decode(try await send(.POST, "/v1/jobs/\(segment(id))/abandon"), path: "/v1/jobs/\(id)/abandon")
    }

    /// The job's states as the node sends them (server-sent events), ending after the last one.
    public func events(ofJob id: String) -> AsyncThrowingStream<JobInfo, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    let response = try await stream("/v1/jobs/\(segment(id))/events")
                    var parser = ServerSentEventParser()
                    for try await chunk in response.body {
                        for event in parser.consume(chunk.readableBytesView) {
                            guard let job = try? APIJSON.decoder().decode(JobInfo.self, from: Data(event.data.utf8))
                            else { continue }
                            continuation.yield(job)
                            if job.state.isEnded {
                                continuation.finish()
                                return
                            }
                        }
                    }
                    continuation.finish()
                } catch let error as APIFailure {
                    continuation.finish(throwing: error)
                } catch {
                    continuation.finish(throwing: unreachable(error))
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    /// Waits until a job has ended, over the event stream, and by polling where the stream breaks off.
    ///
    /// - Parameters:
    ///   - patienceSeconds: how long the node may be unreachable in between, e.g. while it restarts; a job that it lost
    ///     by
    ///     that is ended by its recovery.
    ///   - onChange: called with every new state of the job.
    /// - Returns: the job in state `succeeded` or `failed`.
    public func wait(
        forJob job: JobInfo, patienceSeconds: Double = 15, onChange: (JobInfo) -> Void = { _ in }
    ) async throws -> JobInfo {
        var latest = job
        onChange(latest)
        if latest.state.isEnded { return latest }
        do {
            for try await next in events(ofJob: job.id) where next != latest {
                latest = next
                onChange(latest)
                if latest.state.isEnded { return latest }
            }
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            // Polling below finds out whether the node is gone or only the stream.
        }
        let clock = ContinuousClock()
        var lastAnswer = clock.now
        while !latest.state.isEnded {
            do {
                let next = try await self.job(job.id)
                lastAnswer = clock.now
                if next != latest {
                    latest = next
                    onChange(latest)
                }
                if latest.state.isEnded { break }
            } catch let error as NodeUnreachable {
                if clock.now - lastAnswer > .seconds(patienceSeconds) { throw error }
            }
            try await Task.sleep(for: .milliseconds(200))
        }
        return latest
    }

    // MARK: Paths

    /// The job in an answer with status 202; nil for any other answer.
    func job(in answer: Answer) -> JobInfo? {
        guard answer.status == 202 else { return nil }
        return try? APIJSON.decoder().decode(JobInfo.self, from: Data(buffer: answer.body))
    }

    /// One path segment, percent-encoded.
    func segment(_ text: String) -> String { encode(text) }

    func queryValue(_ text: String) -> String { encode(text) }

    private func encode(_ text: String) -> String {
        // Only the characters that RFC 3986 never reserves, and `:`, so that an IQN stays readable in logs.
        var allowed = CharacterSet(charactersIn: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
        allowed.insert(charactersIn: "-._~:")
        return text.addingPercentEncoding(withAllowedCharacters: allowed) ?? text
    }
}
