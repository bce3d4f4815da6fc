import Foundation
import Logging
import PluginKit
import Synchronization

/// Starts plug-ins as child processes.
struct PluginProcessLauncher: PluginLauncher {
    var logger: Logger

    func launch(_ plugin: InstalledPlugin) async throws -> any PluginSession {
        try PluginProcessSession(plugin, logger: logger)
    }
}

/// A plug-in in a child process.
final class PluginProcessSession: PluginSession {
    /// What a killed process may take to be gone. One that waits in the kernel for a frozen disk cannot be waited for.
    private static let killSeconds = 5.0
    /// Events that wait to be looked at, at most; the newest are kept.
    private static let eventLimit = 256

    let events: AsyncStream<PluginEvent>
    private let process: PluginProcess

    init(_ plugin: InstalledPlugin, logger: Logger) throws {
        let (events, continuation) = AsyncStream.makeStream(
            of: PluginEvent.self, bufferingPolicy: .bufferingNewest(Self.eventLimit))
        var logger = logger
        logger[metadataKey: "plugin"] = "\(plugin.name)"
        var options = PluginProcess.Options(executable: plugin.path)
        options.onEvent = { [logger] event in
            // Log lines do not queue with what matters.
            if event.event == .log {
                let level = event.level.flatMap(Logger.Level.init(rawValue:)) ?? .info
                logger.log(level: level, "\(event.message ?? "")")
            } else {
                continuation.yield(event)
            }
        }
        options.onLog = { [logger] line in logger.info("\(line)") }
        options.onExit = { _ in continuation.finish() }
        self.events = events
        process = try PluginProcess.start(options)
    }

    func call<Parameters: Encodable & Sendable, Result: Decodable & Sendable>(
        _ method: PluginMethod, _ parameters: Parameters, as: Result.Type, timeoutSeconds: Double
    ) async throws -> Result {
        try await process.call(method, parameters, returning: Result.self, timeoutSeconds: timeoutSeconds)
    }

    func end(graceSeconds: Double) async {
        process.closeInput()
        if await isGone(withinSeconds: graceSeconds) { return }
        await kill()
    }

    func kill() async {
        if process.exit == nil { process.kill() }
        _ = await isGone(withinSeconds: Self.killSeconds)
    }

    private func isGone(withinSeconds seconds: Double) async -> Bool {
        let process = process
        return await withCheckedContinuation { continuation in
            let first = FirstAnswer(continuation)
            Task {
                _ = await process.waitForExit()
                first.give(true)
            }
            Task {
                try? await Task.sleep(for: .seconds(seconds))
                first.give(false)
            }
        }
    }
}

/// Lets the first of several answer and drops the rest.
private final class FirstAnswer: Sendable {
    private let continuation: Mutex<CheckedContinuation<Bool, Never>?>

    init(_ continuation: CheckedContinuation<Bool, Never>) { self.continuation = Mutex(continuation) }

    func give(_ answer: Bool) {
        continuation.withLock { waiting in
            defer { waiting = nil }
            return waiting
        }?.resume(returning: answer)
    }
}
