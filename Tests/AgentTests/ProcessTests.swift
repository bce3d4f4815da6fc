import API
import Foundation
import Testing

@testable import stillpoint_agent

/// The real executable with a real plug-in (the example in Python) in a directory on a tmpfs.
final class AgentProcess: Sendable {
    static let executable: String? = {
        let mine = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        let path = (mine as NSString).deletingLastPathComponent + "/stillpoint-agent"
        return FileManager.default.isExecutableFile(atPath: path) ? path : nil
    }()

    static let examples: String = {
        var url = URL(fileURLWithPath: #filePath)
        for _ in 0..<3 { url.deleteLastPathComponent() }
        return url.path + "/Examples/plugins"
    }()

    /// What these tests need of the machine.
    static var isPossible: Bool {
        executable != nil && HoldJournal.isInMemory("/dev/shm")
            && FileManager.default.isExecutableFile(atPath: "/usr/bin/python3")
            && FileManager.default.isExecutableFile(atPath: examples + "/stillpoint-plugin-pausefile")
    }

    let path: String

    init() throws {
        path = "/dev/shm/spa-" + String(UInt32.random(in: 0...UInt32.max), radix: 36)
        for directory in ["", "/app1", "/app2"] {
            try FileManager.default.createDirectory(
                atPath: path + directory, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        }
        try IdentityStore(directory: path + "/state").save(
            try TestAuthority().agent("web-1", nodeID: RunningAgent.nodeID))
        try Data(
            """
            listen: 127.0.0.1:0
            state: \(path)/state
            run: \(path)/run
            attachments: \(path)/attachments
            plugins: [\(Self.examples)]
            pluginConfiguration:
              pausefile:
                directories:
                  - {path: \(path)/app1, volumes: [db]}
                  - {path: \(path)/app2, volumes: [db, log]}
                  - {path: \(path)/missing, volumes: [db]}
            """.utf8
        ).write(to: URL(fileURLWithPath: path + "/agent.yaml"))
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func start() async throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: Self.executable!)
        process.arguments = ["serve", "--config", path + "/agent.yaml"]
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        _ = FileManager.default.createFile(atPath: path + "/log", contents: nil)
        process.standardError = FileHandle(forWritingAtPath: path + "/log")
        try process.run()
        let client = client()
        defer { client.shutdown() }
        let isUp = await eventually { (try? await client.status()) != nil || !process.isRunning }
        guard isUp, process.isRunning else {
            throw StartFailure(
                description: String(decoding: FileManager.default.contents(atPath: path + "/log")!, as: UTF8.self))
        }
        return process
    }

    func client() -> AgentClient { AgentClient(socketPath: path + "/run/agent.sock") }

    /// Resources whose application waits now.
    var paused: [String] {
        ["app1", "app2"].filter { FileManager.default.fileExists(atPath: "\(path)/\($0)/pause") }
    }

    func request(_ id: String = "h1", lease: Double = 60) -> HoldRequest {
        HoldRequest(
            holdID: id, sagaID: "s1", plugin: "pausefile",
            resources: ["app1", "app2"].map {
                ResourceInfo(plugin: "pausefile", layer: .application, id: "\(path)/\($0)", label: $0, volumes: ["db"])
            }, leaseSeconds: lease)
    }

    /// Process ids of the plug-ins that this agent runs.
    static func plugins(of agent: Process) -> [Int32] {
        let text = FileManager.default.contents(
            atPath: "/proc/\(agent.processIdentifier)/task/\(agent.processIdentifier)/children")
        // Its threads may have started them, so all threads' children count.
        let tasks =
            (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(agent.processIdentifier)/task")) ?? []
        let all = tasks.compactMap {
            FileManager.default.contents(atPath: "/proc/\(agent.processIdentifier)/task/\($0)/children")
        }
        return Set(
            (all + [text].compactMap(\.self)).flatMap { String(decoding: $0, as: UTF8.self).split(separator: " ") }
        )
        .compactMap { Int32($0) }
    }

    /// Runs a verb to its end.
    func run(_ arguments: [String]) async throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: Self.executable!)
        process.arguments = arguments
        let file = path + "/out-" + UUID().uuidString
        _ = FileManager.default.createFile(atPath: file, contents: nil)
        process.standardOutput = FileHandle(forWritingAtPath: file)
        process.standardError = FileHandle.nullDevice
        process.standardInput = FileHandle.nullDevice
        try process.run()
        await process.ended()
        let output = FileManager.default.contents(atPath: file) ?? Data()
        return (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }
}

extension Process {
    /// Waits without keeping a thread that other tests need.
    func ended() async { _ = await eventually { !isRunning } }
}

@Suite(
    "The agent as a process", .serialized,
    .enabled(if: AgentProcess.isPossible, "needs the executable, a tmpfs and python3"))
struct ProcessTests {
    let agent: AgentProcess

    init() throws { agent = try AgentProcess() }

    private func kill(_ process: Process) { Foundation.kill(process.processIdentifier, SIGKILL) }

    @Test("what lies on the volumes is found, held with proof, and released")
    func whole() async throws {
        let process = try await agent.start()
        defer { kill(process) }
        let client = agent.client()
        defer { client.shutdown() }
        #expect(try await client.status().plugins.map(\.name) == ["pausefile"])
        let found = try await client.discover(
            DiscoverRequest(volumes: [VolumeReference(name: "log", naa: String(repeating: "6", count: 32))]))
        #expect(found.resources.map(\.id) == ["\(agent.path)/app2"])
        #expect(try await client.preflight(PreflightRequest(resources: found.resources)).findings.isEmpty)
        _ = try await client.hold(agent.request())
        #expect(agent.paused == ["app1", "app2"])
        let members = try await client.release(holdID: "h1").members
        #expect(members.count == 2 && members.allSatisfy(\.stillHeld), "\(members)")
        #expect(agent.paused.isEmpty)
    }

    @Test("the end of the lease releases")
    func leaseEnd() async throws {
        let process = try await agent.start()
        defer { kill(process) }
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request(lease: 6))
        #expect(await eventually { agent.paused.isEmpty })
        #expect(try await client.release(holdID: "h1").members.allSatisfy { !$0.stillHeld })
    }

    @Test("kill -9 of a plug-in: it is recovered at once, and the hold is lost")
    func killPlugin() async throws {
        let process = try await agent.start()
        defer { kill(process) }
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request())
        let plugins = AgentProcess.plugins(of: process)
        // One that was asked something else may be ending still.
        #expect(plugins.count >= 1)
        for plugin in plugins { Foundation.kill(plugin, SIGKILL) }
        #expect(await eventually { agent.paused.isEmpty })
        #expect(try await client.release(holdID: "h1").members.allSatisfy { !$0.stillHeld })
        #expect(try await client.status().holds.isEmpty)
    }

    @Test("kill -9 of the agent: its plug-ins release by themselves")
    func killAgent() async throws {
        let process = try await agent.start()
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request())
        kill(process)
        #expect(await eventually { agent.paused.isEmpty })
    }

    @Test("kill -9 of agent and plug-in: a restarted agent releases before it serves")
    func killBoth() async throws {
        let process = try await agent.start()
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request())
        let plugins = AgentProcess.plugins(of: process)
        // Stopped first, so that it cannot release when the agent ends.
        for plugin in plugins { Foundation.kill(plugin, SIGSTOP) }
        kill(process)
        await process.ended()
        for plugin in plugins { Foundation.kill(plugin, SIGKILL) }
        #expect(agent.paused == ["app1", "app2"])
        let second = try await agent.start()
        defer { kill(second) }
        #expect(agent.paused.isEmpty)
        #expect(
            await #expect(throws: APIFailure.self) { try await client.release(holdID: "h1") }?.code == "holdNotFound")
    }

    @Test("thaw --all works without an agent")
    func thawWithoutAgent() async throws {
        let process = try await agent.start()
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request())
        let plugins = AgentProcess.plugins(of: process)
        for plugin in plugins { Foundation.kill(plugin, SIGSTOP) }
        kill(process)
        await process.ended()
        for plugin in plugins { Foundation.kill(plugin, SIGKILL) }
        let thaw = try await agent.run(["thaw", "--all", "-o", "json", "--config", agent.path + "/agent.yaml"])
        #expect(thaw.status == 0)
        let answer = try APIJSON.decoder().decode(ThawResponse.self, from: Data(thaw.output.utf8))
        #expect(answer.released.count == 2)
        #expect(agent.paused.isEmpty)
    }

    @Test("thaw --all asks the running agent, and is done when it returns")
    func thawWithAgent() async throws {
        let process = try await agent.start()
        defer { kill(process) }
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request())
        #expect(try await agent.run(["thaw", "--all", "--config", agent.path + "/agent.yaml"]).status == 0)
        #expect(agent.paused.isEmpty)
    }

    @Test("SIGTERM releases everything, then the agent ends well")
    func terminate() async throws {
        let process = try await agent.start()
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request())
        process.terminate()
        await process.ended()
        #expect(process.terminationStatus == 0)
        #expect(process.terminationReason == .exit)
        #expect(agent.paused.isEmpty)
    }

    @Test("a stopped plug-in is killed when the lease has ended, and recovered")
    func stoppedPlugin() async throws {
        let process = try await agent.start()
        defer { kill(process) }
        let client = agent.client()
        defer { client.shutdown() }
        _ = try await client.hold(agent.request(lease: 6))
        for plugin in AgentProcess.plugins(of: process) { Foundation.kill(plugin, SIGSTOP) }
        #expect(await eventually { agent.paused.isEmpty })
    }

    @Test("exit codes: 2 for wrong usage, 3 for an agent that is not there, 1 for what failed")
    func exitCodes() async throws {
        let configuration = ["--config", agent.path + "/agent.yaml"]
        #expect(try await agent.run(["status", "--nonsense"]).status == 2)
        #expect(try await agent.run(["thaw"] + configuration).status == 2)
        #expect(try await agent.run(["status"] + configuration).status == 3)
        #expect(try await agent.run(["configcheck"] + configuration).status == 0)
        #expect(try await agent.run(["configcheck", "--config", "/nonexistent"]).status == 1)
        #expect(
            try await agent.run(
                ["enroll", "--node", "http://127.0.0.1:1", "--token-file", "/nonexistent"] + configuration
            )
            .status == 1)
        #expect(
            try await agent.run(["serve", "--run", "/var/tmp/spa-none", "--config", agent.path + "/agent.yaml"]).status
                == 1)
        try? FileManager.default.removeItem(atPath: "/var/tmp/spa-none")
        #expect(try await agent.run(["--version"]).status == 0)
    }
}
