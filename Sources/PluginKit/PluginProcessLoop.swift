import Synchronization

/// The one thread that does a plug-in process's input and output.
final class PluginProcessLoop: Sendable {
    let processID: Int32

    private init(processID: Int32) { self.processID = processID }

    static func start(_ options: PluginProcess.Options) throws(PluginFailure) -> PluginProcessLoop {
        throw PluginFailure(.spawnFailed, "Not yet")
    }

    var exit: PluginExit? { nil }

    func ask(
        timeoutSeconds: Double, _ encode: (Int) throws(PluginFailure) -> [UInt8]
    ) async throws(PluginFailure) -> [UInt8] {
        _ = try encode(0)
        throw PluginFailure(.pluginDied, "Not yet")
    }

    func closeInput() {}
    func waitForExit() async -> PluginExit { .exited(code: 0) }
    func end(graceSeconds: Double) async -> PluginExit { .exited(code: 0) }
    func signalGroup(_ signal: Int32) {}
}
