import API
import Foundation
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Testing
import X509

@testable import stillpoint_agent

/// An agent in this process, on a free port, with an identity of a test authority.
struct RunningAgent {
    let authority: TestAuthority
    let directory: TemporaryDirectory
    let port: Int
    let configuration: AgentConfiguration
    private let stop: AsyncStream<String>.Continuation
    private let task: Task<Void, any Error>

    static let nodeID = "11111111-2222-3333-4444-555555555555"

    static func start(
        authority: TestAuthority, directory: TemporaryDirectory, plugins: [String] = [], port wanted: Int = 0
    ) async throws -> RunningAgent {
        var configuration = AgentConfiguration()
        configuration.listen = "127.0.0.1:\(wanted)"
        configuration.run = directory.path + "/run"
        configuration.state = directory.path + "/state"
        configuration.attachments = directory.path + "/attachments"
        configuration.allowRunOnDisk = true
        configuration.plugins = plugins
        let (signals, stop) = AsyncStream.makeStream(of: String.self)
        let (ports, ready) = AsyncStream.makeStream(of: Int.self)
        var server = AgentServer(
            configuration: configuration, identity: try authority.agent("web-1", nodeID: nodeID),
            logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        server.onReady = { ready.yield($0) }
        let task = Task { [server] in
            defer { ready.finish() }
            try await server.run(until: signals)
        }
        var port: Int?
        for await first in ports {
            port = first
            break
        }
        guard let port else {
            try await task.value
            throw StartFailure(description: "it did not start")
        }
        // It is ready when its port is; the socket may come a moment later.
        let socketPath = configuration.socketPath
        _ = await eventually { FileStatus(path: socketPath) != nil }
        return RunningAgent(
            authority: authority, directory: directory, port: port, configuration: configuration, stop: stop,
            task: task)
    }

    func client(_ tls: AgentTLS, name: String = "web-1") throws -> AgentClient {
        try AgentClient(address: "127.0.0.1:\(port)", agentName: name, tls: tls)
    }

    func nodeClient() throws -> AgentClient {
        try client(authority.client(uri: "urn:stillpoint:node:\(Self.nodeID)"))
    }

    func end() async throws {
        stop.yield("test")
        try await task.value
    }
}

@Suite("The agent's port")
struct ServerTests {
    let authority: TestAuthority
    let directory: TemporaryDirectory

    init() throws {
        authority = try TestAuthority()
        directory = try TemporaryDirectory()
    }

    @Test("the agent's own node is served, over one connection after another and at the same time")
    func ownNode() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let client = try agent.nodeClient()
        let status = try await client.status()
        #expect(status.name == "web-1")
        #expect(status.nodeID == RunningAgent.nodeID)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<16 {
                group.addTask {
                    let holds = try await client.status().holds
                    #expect(holds.isEmpty)
                }
            }
            try await group.waitForAll()
        }
        client.shutdown()
        try await agent.end()
    }

    @Test("whoever is not the agent's own node is refused in the handshake")
    func strangers() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let node = "urn:stillpoint:node:\(RunningAgent.nodeID)"
        let other = try TestAuthority(name: "test authority")
        let strangers: [(String, AgentTLS)] = [
            ("another authority of the same name", try other.client(uri: node, trusting: authority)),
            ("another node of the authority", try authority.client(uri: "urn:stillpoint:node:other")),
            ("an agent of the authority", try authority.client(uri: "urn:stillpoint:agent:web-1")),
            ("no name", try authority.client(uri: nil)),
            ("an expired certificate", try authority.client(uri: node, notAfter: .now - 60)),
            ("a certificate for servers only", try authority.client(uri: node, usages: [.serverAuth])),
        ]
        for (who, tls) in strangers {
            let client = try agent.client(tls)
            let failure = await #expect(throws: APIFailure.self, "\(who)") { try await client.status() }
            let isRefusal = failure.map { ["agentRefused", "agentDisconnected"].contains($0.code) } ?? false
            #expect(isRefusal, "\(who): \(String(describing: failure))")
            client.shutdown()
        }
        let client = try agent.nodeClient()
        #expect(try await client.status().name == "web-1")
        client.shutdown()
        try await agent.end()
    }

    @Test("the client talks only to the agent it means")
    func wrongAgent() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let tls = try authority.client(uri: "urn:stillpoint:node:\(RunningAgent.nodeID)")
        let misnamed = try agent.client(tls, name: "web-2")
        #expect(await #expect(throws: APIFailure.self) { try await misnamed.status() }?.code == "agentIdentity")
        let stranger = try TestAuthority(name: "stranger")
        let distrusting = try agent.client(
            authority.client(uri: "urn:stillpoint:node:\(RunningAgent.nodeID)", trusting: stranger))
        #expect(await #expect(throws: APIFailure.self) { try await distrusting.status() }?.code == "agentIdentity")
        try await agent.end()
    }

    @Test("plain HTTP, garbage and silence on the port harm nobody")
    func garbage() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        var channels: [any Channel] = []
        var generator = SystemRandomNumberGenerator()
        for round in 0..<300 {
            let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                .connect(host: "127.0.0.1", port: agent.port).get()
            channels.append(channel)
            switch round % 3 {
            case 0:
                channel.writeAndFlush(ByteBuffer(string: "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"), promise: nil)
            case 1:
                let bytes = (0..<2_000).map { _ in UInt8.random(in: 0...255, using: &generator) }
                // A TLS record head, so that it gets further.
                channel.writeAndFlush(ByteBuffer(bytes: [0x16, 0x03, 0x01, 0x07, 0xCB, 0x01] + bytes), promise: nil)
            default: break
            }
        }
        let client = try agent.nodeClient()
        #expect(try await client.status().name == "web-1")
        for channel in channels { channel.close(promise: nil) }
        #expect(try await client.status().name == "web-1")
        client.shutdown()
        try await agent.end()
    }

    @Test("a client whose agent was restarted finds the new one")
    func restart() async throws {
        let first = try await RunningAgent.start(authority: authority, directory: directory)
        let client = try first.nodeClient()
        _ = try await client.status()
        try await first.end()
        #expect(await #expect(throws: APIFailure.self) { try await client.status() }?.code == "agentUnreachable")
        let second = try await RunningAgent.start(authority: authority, directory: directory, port: first.port)
        #expect(try await client.status().name == "web-1")
        try await second.end()
        let third = try await RunningAgent.start(authority: authority, directory: directory, port: first.port)
        // Its kept connection was to the second one.
        #expect(try await client.status().name == "web-1")
        client.shutdown()
        try await third.end()
    }

    @Test("bad requests get an explanation, and unknown routes a 404")
    func badRequests() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let client = try agent.nodeClient()
        let hold = HoldRequest(
            holdID: "h", sagaID: "s", plugin: "nosuch",
            resources: [ResourceInfo(plugin: "nosuch", layer: .application, id: "a", label: "a", volumes: [])],
            leaseSeconds: 5)
        #expect(await #expect(throws: APIFailure.self) { try await client.hold(hold) }?.code == "pluginNotFound")
        #expect(
            await #expect(throws: APIFailure.self) { try await client.release(holdID: "h") }?.code == "holdNotFound")
        let traversal = await #expect(throws: APIFailure.self) { try await client.release(holdID: "../../x") }
        #expect(traversal?.status == 400 || traversal?.status == 404)
        let link = try await HTTPLink.open(
            .unixSocket(path: agent.configuration.socketPath), security: nil, deadline: .now() + .seconds(60))
        for (method, path, body, status) in [
            ("GET", "/nothing", nil, 404), ("POST", "/v1/holds", "{", 400), ("POST", "/v1/holds", "[]", 400),
            ("POST", "/v1/thaw", "", 400),
        ] as [(String, String, String?, Int)] {
            let answer = try await link.exchange(
                HTTPCall(method: method, path: path, body: body.map { Array($0.utf8) }),
                deadline: .now() + .seconds(60))
            #expect(answer.status == status, "\(method) \(path)")
            #expect(throws: Never.self) { try APIJSON.decoder().decode(APIFailure.self, from: Data(answer.body)) }
        }
        link.close()
        client.shutdown()
        try await agent.end()
    }

    @Test("a request body beyond the limit is refused, and the agent stays well")
    func largeBody() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let client = try agent.nodeClient()
        let huge = ThawRequest(sagaID: String(repeating: "x", count: 6 << 20))
        let path = agent.configuration.socketPath
        let local = AgentClient(socketPath: path)
        await #expect(throws: APIFailure.self) { try await local.thaw(sagaID: huge.sagaID) }
        #expect(try await client.status().name == "web-1")
        local.shutdown()
        client.shutdown()
        try await agent.end()
    }

    @Test("the local socket is for its owner only, and goes with the agent")
    func localSocket() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let path = agent.configuration.socketPath
        #expect(FileStatus(path: path).map { $0.mode & 0o077 } == 0)
        #expect(FileStatus(path: agent.configuration.run).map { $0.mode & 0o077 } == 0)
        let client = AgentClient(socketPath: path)
        #expect(try await client.status().name == "web-1")
        client.shutdown()
        try await agent.end()
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("a second agent with the same run directory does not start")
    func twice() async throws {
        let agent = try await RunningAgent.start(authority: authority, directory: directory)
        let failure = await #expect(throws: StartFailure.self) {
            _ = try await RunningAgent.start(authority: authority, directory: directory)
        }
        #expect(failure?.description.contains("Another agent") == true)
        try await agent.end()
    }
}
