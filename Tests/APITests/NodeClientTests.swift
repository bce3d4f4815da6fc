import API
import Foundation
import Testing

@Suite("Node client")
struct NodeClientTests {
    static let volume = """
        {"id":"1","name":"db","sizeBytes":4096,"mappedBytes":0,"naa":"65a53500000000000000000000000001",\
        "createdAt":"2026-11-21T03:00:00.125Z",\
        "exports":[{"iqn":"iqn.2026-11.x:db","lun":0,"portals":["127.0.0.1:3260"]}],\
        "initiators":[],"snapshotCount":2}
        """

    private func job(_ state: String, steps: Int = 0) -> String {
        let steps = (0..<steps).map {
            #"{"name":"step \#($0)","state":"succeeded","startedAt":"2026-11-21T03:00:00.000Z","seconds":0.5}"#
        }
        return #"{"id":"j1","kind":"snapshot.create","subject":"db","state":"\#(state)","#
            + #""createdAt":"2026-11-21T03:00:00.000Z","steps":[\#(steps.joined(separator: ","))]}"#
    }

    @discardableResult
    private func with<Value>(
        token: String? = "secret", _ answer: @escaping @Sendable (StubServer.Request) -> StubServer.Answer,
        _ body: (NodeClient, StubServer) async throws -> Value
    ) async throws -> Value {
        let server = try await StubServer(answer)
        let client = try NodeClient(.init(url: try #require(URL(string: server.url)), token: token))
        let result: Result<Value, any Error>
        do { result = .success(try await body(client, server)) } catch { result = .failure(error) }
        await client.close()
        await server.close()
        return try result.get()
    }

    @Test("a request carries the token, and its answer is decoded with its dates")
    func get() async throws {
        try await with({ _ in .json(Self.volume) }) { client, server in
            let volume = try await client.volume("db")
            #expect(volume.name == "db")
            #expect(volume.exports.first?.portals == ["127.0.0.1:3260"])
            #expect(volume.createdAt.timeIntervalSince1970.truncatingRemainder(dividingBy: 1) == 0.125)
            #expect(
                server.requests == [
                    .init(method: "GET", uri: "/v1/volumes/db", authorization: "Bearer secret", body: "")
                ])
        }
    }

    @Test("names are percent-encoded, so that none leads to another route")
    func encoding() async throws {
        try await with({ _ in .json("[]") }) { client, server in
            _ = try await client.snapshots(of: "a&b=c")
            _ = try? await client.volume("../v1/agents")
            _ = try? await client.target("iqn.2026-11.x:a b")
            #expect(
                server.requests.map(\.uri) == [
                    "/v1/snapshots?volume=a%26b%3Dc", "/v1/volumes/..%2Fv1%2Fagents", "/v1/targets/iqn.2026-11.x:a%20b",
                ])
        }
    }

    @Test("an error of the node arrives with code, message, hint and status")
    func failure() async throws {
        let text = #"{"code":"volumeInUse","message":"volume db is in use","hint":"log out"}"#
        try await with({ _ in .json(text, status: 409) }) { client, _ in
            await #expect(
                throws: APIFailure(status: 409, code: "volumeInUse", message: "volume db is in use", hint: "log out")
            ) { try await client.volume("db") }
        }
    }

    @Test("an answer that is none of this API is an error of its own, not a node that is away")
    func foreign() async throws {
        try await with({ $0.uri == "/v1/volumes" ? .json("<html>") : .json("<html>", status: 502) }) { client, _ in
            await #expect(throws: UnexpectedAnswer.self) { try await client.volumes() }
            let failure = await #expect(throws: APIFailure.self) { try await client.status() }
            #expect(failure?.code == "http502")
        }
    }

    @Test("a node that does not listen, and one that hangs up, cannot be reached")
    func unreachable() async throws {
        let server = try await StubServer { _ in .init(chunks: [], hangsUp: true) }
        let url = try #require(URL(string: server.url))
        let client = try NodeClient(.init(url: url))
        await #expect(throws: NodeUnreachable.self) { try await client.health() }
        await server.close()
        let error = await #expect(throws: NodeUnreachable.self) { try await client.health() }
        #expect(error?.address == url.absoluteString)
        await client.close()
    }

    @Test("an address that is no http URL is refused before anything is sent")
    func badAddress() throws {
        for text in ["ftp://host", "host:80", "http://"] {
            guard let url = URL(string: text) else { continue }
            #expect(throws: InvalidNodeSettings.self) { try NodeClient(.init(url: url)) }
        }
        let url = try #require(URL(string: "https://host"))
        #expect(throws: InvalidNodeSettings.self) {
            try NodeClient(
                .init(url: url, authorityPEM: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"))
        }
    }

    @Test("a deletion without a body succeeds; one that is a job hands it out")
    func deletions() async throws {
        let accepted = job("running")
        try await with({ $0.uri.contains("big") ? .json(accepted, status: 202) : .nothing }) { client, server in
            #expect(try await client.deleteVolume("db", withSnapshots: true) == nil)
            #expect(try await client.deleteSnapshot("big")?.id == "j1")
            try await client.removeAgent("host")
            #expect(server.requests.map(\.method) == ["DELETE", "DELETE", "DELETE"])
            #expect(server.requests.first?.uri == "/v1/volumes/db?withSnapshots=true")
        }
    }

    @Test("a revert answers with its job, or with what it would do")
    func reverts() async throws {
        let accepted = job("running")
        let dry = #"{"volumes":["db"],"revertedTo":"s1","steps":["one"]}"#
        try await with({ $0.body.contains("dryRun") ? .json(dry) : .json(accepted, status: 202) }) { client, _ in
            guard case .accepted(let job) = try await client.revert(.init(volumes: ["db"], snapshot: "s1")),
                case .done(let result) = try await client.revert(.init(volumes: ["db"], snapshot: "s1", dryRun: true))
            else {
                Issue.record("neither a job nor a result")
                return
            }
            #expect(job.id == "j1")
            #expect(result.steps == ["one"])
        }
    }

    @Test("a job is followed over the event stream to its end")
    func jobEvents() async throws {
        let running = job("running", steps: 1)
        let ended = job("succeeded", steps: 2)
        // Cut in the middle of an event, as a network may do it.
        let stream = ": hello\n\nevent: job\ndata: \(running)\n\nevent: job\ndata: \(ended)\n\n"
        let middle = stream.index(stream.startIndex, offsetBy: 40)
        let chunks = [String(stream[..<middle]), String(stream[middle...])]
        try await with({ _ in .init(contentType: "text/event-stream", chunks: chunks) }) { client, _ in
            var seen: [Int] = []
            let start = try APIJSON.decoder().decode(JobInfo.self, from: Data(self.job("running").utf8))
            let job = try await client.wait(forJob: start) { seen.append($0.steps.count) }
            #expect(job.state == .succeeded)
            #expect(seen == [0, 1, 2])
        }
    }

    @Test("a job whose event stream breaks off is polled to its end")
    func polling() async throws {
        let ended = job("failed", steps: 1)
        try await with({ request in
            request.uri.hasSuffix("/events")
                ? .init(contentType: "text/event-stream", chunks: ["data: {\"id\"", ":"]) : .json(ended)
        }) { client, _ in
            let start = try APIJSON.decoder().decode(JobInfo.self, from: Data(self.job("running").utf8))
            #expect(try await client.wait(forJob: start).state == .failed)
        }
    }

    @Test("a job of a node that stays away ends the wait with that node being unreachable")
    func lost() async throws {
        let start = try APIJSON.decoder().decode(JobInfo.self, from: Data(job("running").utf8))
        try await with({ _ in .init(chunks: [], hangsUp: true) }) { client, _ in
            await #expect(throws: NodeUnreachable.self) {
                try await client.wait(forJob: start, patienceSeconds: 0.3)
            }
        }
    }
}
