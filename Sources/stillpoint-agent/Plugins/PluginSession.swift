import PluginKit

/// One running plug-in, as the rest of the agent sees it.
protocol PluginSession: Sendable {
    /// - Throws: `PluginFailure`; after a time-out the session's state is unknown and it must be ended.
    func call<Parameters: Encodable & Sendable, Result: Decodable & Sendable>(
        _ method: PluginMethod, _ parameters: Parameters, as: Result.Type, timeoutSeconds: Double
    ) async throws -> Result

    /// What the plug-in says by itself; ends when the process has ended.
    var events: AsyncStream<PluginEvent> { get }

    /// Closes the plug-in's input, so that it lets go of everything and ends; kills it if that takes too long.
    /// Returns when the process is gone.
    func end(graceSeconds: Double) async

    /// Kills it at once. Returns when the process is gone.
    func kill() async
}

/// Starts plug-ins; tests put their own here.
protocol PluginLauncher: Sendable {
    func launch(_ plugin: InstalledPlugin) async throws -> any PluginSession
}

/// A plug-in that is there and has said who it is.
struct InstalledPlugin: Sendable, Equatable {
    var name: String
    var version: String
    var layer: PluginLayer
    var path: String
    /// Its section of the agent's configuration.
    var config: JSONValue?
    /// It tells when something changed.
    var watches = false
}
