import API
import AsyncHTTPClient
import Foundation
import Logging
import NIOCore
import NIOHTTP1
import Testing

@testable import Node

/// A node with real pool, catalog, target and API on loopback, in a directory of its own.
final class TestNode: Sendable {
    let directory: String
    let process: NodeProcess
    let token: String
    let api: String
    private let running: Task<Void, any Error>

    var services: NodeServices { process.services }

    private init(directory: String, process: NodeProcess, running: Task<Void, any Error>) throws {
        self.directory = directory
        self.process = process
        self.running = running
        api = "http://" + process.services.addresses.api
        token = try String(contentsOfFile: directory + "/data/admin-token", encoding: .utf8)
            .trimmingCharacters(in: .whitespacesAndNewlines)
    }

    static func newDirectory() -> String {
        FileManager.default.temporaryDirectory.appending(path: "sp-node-\(UUID().uuidString.prefix(8))").path
    }

    static func configuration(_ directory: String) -> NodeConfiguration {
        var configuration = NodeConfiguration(environment: [:])
        configuration.dataDirectory = directory + "/data"
        configuration.apiListen = ListenAddress(host: "127.0.0.1", port: 0)
        configuration.iscsiListen = ListenAddress(host: "127.0.0.1", port: 0)
        configuration.runDirectory = directory + "/run"
        configuration.poolMaximumBytes = 1 << 30
        configuration.logLevel = .critical
        configuration.shutdownGraceSeconds = 60
        return configuration
    }

    static func start(
        _ directory: String, configure: (inout NodeConfiguration) -> Void = { _ in }
    ) async throws -> TestNode {
        var configuration = configuration(directory)
        configure(&configuration)
        let process = try await NodeProcess.start(configuration, logger: Logger(label: "test"))
        let running = Task { try await process.run(endingOn: []) }
        let deadline = ContinuousClock.now + .seconds(120)
        while process.services.addresses.api.isEmpty, ContinuousClock.now < deadline {
            try await Task.sleep(for: .milliseconds(10))
        }
        return try TestNode(directory: directory, process: process, running: running)
    }

    /// As SIGTERM would.
    func end() async throws {
        await process.end()
        try await running.value
        await process.stop()
    }

    /// Runs `body` against a new node, and removes everything after.
    static func with<Value>(_ body: (TestNode) async throws -> Value) async throws -> Value {
        let directory = newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await start(directory)
        do {
            let value = try await body(node)
            try await node.end()
            return value
        } catch {
            try? await node.end()
            throw error
        }
    }

    // MARK: Requests

    struct Answer: Sendable {
        var status: Int
        var headers: HTTPHeaders
        var body: Data

        func decode<Value: Decodable>(_ type: Value.Type = Value.self) throws -> Value {
            try APIJSON.decoder().decode(type, from: body)
        }

        var failure: APIFailure? { try? APIJSON.decoder().decode(APIFailure.self, from: body) }
    }

    func call(
        _ method: HTTPMethod, _ path: String, _ body: (any Encodable & Sendable)? = nil, raw: Data? = nil,
        authorization: String? = "right"
    ) async throws -> Answer {
        var request = HTTPClientRequest(url: api + path)
        request.method = method
        if let authorization {
            request.headers.add(
                name: "Authorization", value: authorization == "right" ? "Bearer \(token)" : authorization)
        }
        if let bytes = try raw ?? body.map({ try APIJSON.encoder().encode($0) }) {
            request.body = .bytes(ByteBuffer(bytes: bytes))
        }
        let response = try await HTTPClient.shared.execute(request, timeout: .seconds(60))
        let bytes = try await response.body.collect(upTo: 16 << 20)
        return Answer(
            status: Int(response.status.code), headers: response.headers, body: Data(bytes.readableBytesView))
    }

    /// Waits for a job that a route answered with.
    func ended(_ answer: Answer) async throws -> JobInfo {
        try #require(answer.status == 202, "\(String(decoding: answer.body, as: UTF8.self))")
        var job = try answer.decode(JobInfo.self)
        let deadline = ContinuousClock.now + .seconds(120)
        while !job.state.isEnded, ContinuousClock.now < deadline {
            try await Task.sleep(for: .milliseconds(10))
            job = try await call(.GET, "/v1/jobs/\(job.id)").decode()
        }
        return job
    }
}

/// Files of the repository.
enum Documents {
    static func file(_ path: String) -> URL {
        URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: path)
    }
}
