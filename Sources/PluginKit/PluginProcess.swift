/// A plug-in that runs as a child process of the agent.
///
/// The child has a process group of its own, inherits standard input, output and error and nothing else, and ends by
/// itself (releasing what it holds) when its standard input closes: also when the agent dies.
public final class PluginProcess: Sendable {
    public struct Options: Sendable {
        public var executable: String
        public var arguments: [String] = []
        /// The whole environment of the child.
        /// Without Swift's backtraces by default: a plug-in that crashes is to be dead at once, so that what it held is
        /// recovered, not after a debugger has looked at it.
        public var environment: [String: String] = Command.cleanEnvironment.merging(
            ["SWIFT_BACKTRACE": "enable=no"]
        ) { $1 }.merging(PausePoint.environment) { $1 }
        public var maximumLineBytes = PluginContract.maximumLineBytes
        /// Called on the process's I/O thread: must not block.
        public var onEvent: @Sendable (PluginEvent) -> Void = { _ in }
        /// A line the plug-in wrote on standard error. Called on the I/O thread: must not block.
        public var onLog: @Sendable (String) -> Void = { _ in }
        /// Called once, on the I/O thread, after every unanswered call has failed with `pluginDied`.
        public var onExit: @Sendable (PluginExit) -> Void = { _ in }

        public init(executable: String) { self.executable = executable }
    }

    private let loop: PluginProcessLoop

    private init(loop: PluginProcessLoop) { self.loop = loop }

    /// Starts the plug-in. It has said nothing yet: call `describe` to see that it speaks the contract.
    ///
    /// - Throws: `spawnFailed`.
    public static func start(_ options: Options) throws(PluginFailure) -> PluginProcess {
        PluginProcess(loop: try PluginProcessLoop.start(options))
    }

    public var processID: Int32 { loop.processID }

    /// Nil while it runs.
    public var exit: PluginExit? { loop.exit }

    /// Asks, and waits for the answer.
    ///
    /// - Throws: the plug-in's own error; `timedOut`, `pluginDied`, `badAnswer`, `busy`. A call that timed out is
    ///   forgotten, its late answer is dropped; whether the plug-in did the work is unknown.
    public func call<Parameters: Encodable & Sendable, Answer: Decodable & Sendable>(
        _ method: PluginMethod, _ parameters: Parameters, returning: Answer.Type = Answer.self, timeoutSeconds: Double
    ) async throws(PluginFailure) -> Answer {
        let line = try await loop.ask(timeoutSeconds: timeoutSeconds) { id throws(PluginFailure) in
            try PluginJSON.encode(PluginRequest(id: id, method: method.rawValue, params: parameters))
        }
        let answer: PluginAnswer<Answer>
        do {
            answer = try PluginJSON.decode(PluginAnswer<Answer>.self, from: line)
        } catch {
            throw PluginFailure(.badAnswer, "The plug-in's answer to \(method.rawValue) is not understood: \(error)")
        }
        if let failure = answer.error { throw failure }
        guard let result = answer.result else {
            throw PluginFailure(.badAnswer, "The plug-in's answer to \(method.rawValue) has neither result nor error")
        }
        return result
    }

    public func describe(timeoutSeconds: Double = 5) async throws(PluginFailure) -> DescribeResult {
        try await call(.describe, NoParameters(), timeoutSeconds: timeoutSeconds)
    }

    public func discover(
        _ parameters: DiscoverParameters, timeoutSeconds: Double = 30
    ) async throws(PluginFailure) -> DiscoverResult {
        try await call(.discover, parameters, timeoutSeconds: timeoutSeconds)
    }

    public func preflight(
        _ parameters: PreflightParameters, timeoutSeconds: Double = 30
    ) async throws(PluginFailure) -> PreflightResult {
        try await call(.preflight, parameters, timeoutSeconds: timeoutSeconds)
    }

    /// Waits for no longer than the lease and a little: after it the plug-in has released by itself.
    public func quiesce(_ parameters: QuiesceParameters) async throws(PluginFailure) -> QuiesceResult {
        try await call(.quiesce, parameters, timeoutSeconds: parameters.leaseSeconds + 2)
    }

    public func renew(
        _ parameters: RenewParameters, timeoutSeconds: Double = 5
    ) async throws(PluginFailure) -> RenewResult {
        try await call(.renew, parameters, timeoutSeconds: timeoutSeconds)
    }

    public func unquiesce(
        _ parameters: UnquiesceParameters, timeoutSeconds: Double = 60
    ) async throws(PluginFailure) -> UnquiesceResult {
        try await call(.unquiesce, parameters, timeoutSeconds: timeoutSeconds)
    }

    public func recover(
        _ parameters: RecoverParameters, timeoutSeconds: Double = 60
    ) async throws(PluginFailure) -> RecoverResult {
        try await call(.recover, parameters, timeoutSeconds: timeoutSeconds)
    }

    public func prepareRestore(
        _ parameters: RestoreParameters, timeoutSeconds: Double = 300
    ) async throws(PluginFailure) -> RestoreResult {
        try await call(.prepareRestore, parameters, timeoutSeconds: timeoutSeconds)
    }

    public func finishRestore(
        _ parameters: RestoreParameters, timeoutSeconds: Double = 3600
    ) async throws(PluginFailure) -> RestoreResult {
        try await call(.finishRestore, parameters, timeoutSeconds: timeoutSeconds)
    }

    /// Closes the plug-in's standard input: it releases everything and ends.
    public func closeInput() { loop.closeInput() }

    /// Returns when the process has ended and is reaped; at once if it already has.
    public func waitForExit() async -> PluginExit { await loop.waitForExit() }

    /// Closes standard input, waits for the end, and after the grace sends SIGTERM, then SIGKILL, to its process group.
    ///
    /// A process inside a system call that cannot be interrupted (a freeze that waits for a hung device) ends only when
    /// the kernel gives it back: a caller with something else to do does not wait for this.
    @discardableResult
    public func end(graceSeconds: Double = 10) async -> PluginExit {
        await loop.end(graceSeconds: graceSeconds)
    }

    /// SIGKILL to the process group. What it held stays held until another one's `recover`.
    public func kill() { loop.signalGroup(9) }
}

/// How a plug-in's process ended.
public enum PluginExit: Sendable, Equatable {
    case exited(code: Int32)
    case signalled(signal: Int32)
}

extension PluginExit: CustomStringConvertible {
    public var description: String {
        switch self {
        case .exited(let code): "exited with \(code)"
        case .signalled(let signal): "was ended by signal \(signal)"
        }
    }
}
