import Logging
import PluginKit

/// Starts a plug-in just to release what a dead one left.
enum Recovery {
    static func run(
        _ plugin: InstalledPlugin, stateDirectory: String, catalog: PluginCatalog, timeoutSeconds: Double,
        logger: Logger
    ) async -> RecoverResult {
        let session: any PluginSession
        do {
            session = try await catalog.launch(plugin)
        } catch {
            return RecoverResult(released: [], failures: ["plug-in \(plugin.name) cannot be started: \(error)"])
        }
        do {
            let result = try await session.call(
                .recover, RecoverParameters(stateDirectory: stateDirectory, config: plugin.config),
                as: RecoverResult.self, timeoutSeconds: timeoutSeconds)
            await session.end(graceSeconds: 2)
            if !result.released.isEmpty { logger.notice("recovered", metadata: ["released": "\(result.released)"]) }
            for failure in result.failures { logger.error("not recovered: \(failure)") }
            return result
        } catch {
            await session.kill()
            logger.error("plug-in \(plugin.name) could not recover: \(error)")
            return RecoverResult(released: [], failures: ["plug-in \(plugin.name) could not recover: \(error)"])
        }
    }
}
