import Foundation
import Logging
import PluginKit
import Synchronization

/// Keeps a process of each plug-in that can tell when something changed, and counts what they tell.
///
/// A discovery always looks anew, so nothing here can make it wrong. The count says to whoever remembers the last one
/// that it is time for another.
final class PluginWatcher: Sendable {
    private static let callSeconds = 30.0
    /// Between looks for plug-ins that are not watched yet: new ones, and those that ended.
    private static let lookSeconds = 15.0

    private struct State {
        var changes = 0
        var watched: Set<String> = []
    }

    private let catalog: PluginCatalog
    private let logger: Logger
    private let state: Mutex<State>

    init(catalog: PluginCatalog, logger: Logger) {
        self.catalog = catalog
        self.logger = logger
        // An agent that was started anew may know nothing of what changed meanwhile.
        state = Mutex(State(changes: Int(Date.now.timeIntervalSince1970) & 0xFFFF_FFFF))
    }

    var changes: Int { state.withLock { $0.changes } }

    /// Until it is cancelled.
    func run() async {
        await withDiscardingTaskGroup { group in
            while !Task.isCancelled {
                for plugin in await catalog.plugins() where plugin.watches {
                    guard state.withLock({ $0.watched.insert(plugin.name).inserted }) else { continue }
                    group.addTask {
                        await self.watch(plugin)
                        self.state.withLock { _ = $0.watched.remove(plugin.name) }
                    }
                }
                try? await Task.sleep(for: .seconds(Self.lookSeconds))
            }
        }
    }

    /// As long as the plug-in lives.
    private func watch(_ plugin: InstalledPlugin) async {
        guard let session = try? await catalog.launch(plugin) else { return }
        do {
            _ = try await session.call(
                .watch, WatchParameters(config: plugin.config), as: NoParameters.self, timeoutSeconds: Self.callSeconds)
            note(plugin, "it is watched")
            for await event in session.events where event.event == .changed {
                note(plugin, event.reason ?? "something changed")
            }
        } catch {
            logger.info("plug-in \(plugin.name) does not watch: \(error)")
        }
        await session.end(graceSeconds: 1)
    }

    private func note(_ plugin: InstalledPlugin, _ reason: String) {
        state.withLock { $0.changes += 1 }
        logger.debug("plug-in \(plugin.name): \(reason)")
    }
}
