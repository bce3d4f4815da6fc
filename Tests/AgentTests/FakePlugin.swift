import API
import Logging
import PluginKit
import Synchronization

@testable import stillpoint_agent

/// A plug-in in this process, whose behaviour and death a test decides.
final class FakePlugin: PluginLauncher {
    struct Script: Sendable {
        var quiesceError: PluginFailure?
        var isQuiesceStuck = false
        var isUnquiesceStuck = false
        var unquiesceError: PluginFailure?
        /// So many recoveries fail before one succeeds.
        var failingRecoveries = 0
        var isStillHeld = true
    }

    struct Record: Sendable {
        /// Resources at rest now, whoever put them there.
        var atRest: Set<String> = []
        var calls: [PluginMethod] = []
        var sessions: [FakeSession] = []
    }

    let script: Mutex<Script>
    let record = Mutex(Record())

    init(_ script: Script = Script()) { self.script = Mutex(script) }

    func launch(_ plugin: InstalledPlugin) async throws -> any PluginSession {
        let session = FakeSession(self)
        record.withLock { $0.sessions.append(session) }
        return session
    }

    func calls(_ method: PluginMethod) -> Int { record.withLock { $0.calls.filter { $0 == method }.count } }

    var atRest: Set<String> { record.withLock { $0.atRest } }

    /// The session that held last.
    var holder: FakeSession? { record.withLock { $0.sessions.last { $0.isHolder } } }
}

final class FakeSession: PluginSession {
    let events: AsyncStream<PluginEvent>
    private let continuation: AsyncStream<PluginEvent>.Continuation
    private let plugin: FakePlugin
    private let state = Mutex(State())

    private struct State {
        var held: [String] = []
        var isHolder = false
        var isDead = false
    }

    init(_ plugin: FakePlugin) {
        self.plugin = plugin
        (events, continuation) = AsyncStream.makeStream()
    }

    var isHolder: Bool { state.withLock { $0.isHolder } }

    /// As after `kill -9`: what it held stays at rest.
    func die() {
        state.withLock { $0.isDead = true }
        continuation.finish()
    }

    func say(_ event: PluginEvent) { continuation.yield(event) }

    func call<Parameters: Encodable & Sendable, Result: Decodable & Sendable>(
        _ method: PluginMethod, _ parameters: Parameters, as: Result.Type, timeoutSeconds: Double
    ) async throws -> Result {
        plugin.record.withLock { $0.calls.append(method) }
        let script = plugin.script.withLock { $0 }
        switch (method, parameters) {
        case (.describe, _):
            return try cast(DescribeResult(name: "fake", version: "1", layer: .application))
        case (.quiesce, let request as QuiesceParameters):
            if let error = script.quiesceError { throw error }
            rest(request.resources.map(\.id))
            if script.isQuiesceStuck { try await wait(timeoutSeconds) }
            return try cast(
                QuiesceResult(
                    holdID: request.holdID,
                    members: request.resources.map { .init(resource: $0.id, quiesceSeconds: 0.01) }))
        case (.renew, let request as RenewParameters):
            return try cast(RenewResult(holdID: request.holdID, remainingLeaseSeconds: request.leaseSeconds))
        case (.unquiesce, let request as UnquiesceParameters):
            if script.isUnquiesceStuck { try await wait(timeoutSeconds) }
            if state.withLock({ $0.isDead }) { throw PluginFailure(.pluginDied, "dead") }
            if let error = script.unquiesceError { throw error }
            let members = letGo().map {
                UnquiesceResult.Member(
                    resource: $0, stillHeld: script.isStillHeld, quietSeconds: 0.02, artifacts: ["lsn": "0/1"])
            }
            return try cast(UnquiesceResult(holdID: request.holdID, members: members))
        case (.recover, _): return try cast(recover())
        default: throw PluginFailure(.unknownMethod, method.rawValue)
        }
    }

    func end(graceSeconds: Double) async {
        if !state.withLock({ $0.isDead }) { _ = letGo() }
        continuation.finish()
    }

    func kill() async { die() }

    private func rest(_ ids: [String]) {
        state.withLock {
            $0.held = ids
            $0.isHolder = true
        }
        plugin.record.withLock { $0.atRest.formUnion(ids) }
    }

    private func letGo() -> [String] {
        let held = state.withLock { state in
            defer { state.held = [] }
            return state.held
        }
        plugin.record.withLock { $0.atRest.subtract(held) }
        return held
    }

    private func recover() -> RecoverResult {
        let fails = plugin.script.withLock { script in
            guard script.failingRecoveries > 0 else { return false }
            script.failingRecoveries -= 1
            return true
        }
        if fails { return RecoverResult(released: [], failures: ["not yet"]) }
        return plugin.record.withLock { record in
            defer { record.atRest = [] }
            return RecoverResult(released: record.atRest.sorted())
        }
    }

    private func wait(_ seconds: Double) async throws {
        let end = ContinuousClock.now + .seconds(seconds)
        while ContinuousClock.now < end {
            if state.withLock({ $0.isDead }) { throw PluginFailure(.pluginDied, "dead") }
            try await Task.sleep(for: .milliseconds(5))
        }
        throw PluginFailure(.timedOut, "no answer")
    }

    private func cast<Result>(_ value: Any) throws -> Result {
        guard let result = value as? Result else { throw PluginFailure(.badAnswer, "wrong type") }
        return result
    }
}

/// Keeps what is logged.
final class RecordedLog: LogHandler {
    private let lines = Mutex<[String]>([])

    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    var logLevel: Logger.Level {
        get { .trace }
        set {}
    }
    subscript(metadataKey _: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }

    func contains(_ text: String) -> Bool { lines.withLock { $0.contains { $0.contains(text) } } }

    func log(event: LogEvent) { lines.withLock { $0.append("\(event.message)") } }
}
