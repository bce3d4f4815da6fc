import API
import Foundation
import Logging
import PluginKit

/// What the agent can do, whoever asks: the node over TLS, or an administrator over the local socket.
struct AgentService: Sendable {
    let keeper: IdentityKeeper
    let catalog: PluginCatalog
    let discovery: Discovery
    let holds: HoldTable
    let restores: RestoreRunner
    let watcher: PluginWatcher
    let startedAt = ContinuousClock.now

    /// Volumes asked about in one call at most.
    private static let volumeLimit = 4_096

    init(configuration: AgentConfiguration, keeper: IdentityKeeper, launcher: any PluginLauncher, logger: Logger) {
        self.keeper = keeper
        let surroundings = Self.surroundings(configuration, launcher: launcher, logger: logger)
        catalog = surroundings.catalog
        discovery = Discovery(
            catalog: catalog, devices: DeviceResolver(attachments: configuration.attachments),
            protectedPaths: surroundings.protectedPaths, scratch: configuration.run, logger: logger)
        holds = HoldTable(surroundings: surroundings)
        watcher = PluginWatcher(catalog: catalog, logger: logger)
        restores = RestoreRunner(
            discovery: discovery, directory: configuration.run + "/restores", logger: logger)
    }

    static func surroundings(
        _ configuration: AgentConfiguration, launcher: any PluginLauncher, logger: Logger
    ) -> HoldSurroundings {
        let catalog = PluginCatalog(
            directories: configuration.plugins, configuration: configuration.pluginConfiguration, launcher: launcher,
            logger: logger)
        var paths = [configuration.run, configuration.state, configuration.attachments, "/proc/self/exe"]
            .map { URL(fileURLWithPath: $0).resolvingSymlinksInPath().path }
        paths += configuration.plugins
        return HoldSurroundings(
            catalog: catalog, journal: HoldJournal(directory: configuration.run), logger: logger,
            protectedPaths: paths.filter { FileManager.default.fileExists(atPath: $0) })
    }

    func status() async -> AgentStatus {
        let identity = keeper.identity
        return AgentStatus(
            name: identity.name, version: Release.version, nodeID: identity.nodeID,
            plugins: await catalog.plugins().map {
                PluginInfo(name: $0.name, version: $0.version, layer: ProtectionLayer($0.layer))
            },
            holds: await holds.status(), uptimeSeconds: startedAt.seconds(until: .now), changes: watcher.changes,
            identity: try? keeper.shown)
    }

    func discover(_ request: DiscoverRequest) async throws -> DiscoverResponse {
        guard request.volumes.count <= Self.volumeLimit else {
            throw APIFailure(
                status: 400, code: "tooManyVolumes", message: "At most \(Self.volumeLimit) volumes can be asked about")
        }
        return await discovery.discover(request)
    }

    /// Passes a step of a guest's restore to the plug-in that knows guests.
    func restoreGuest(_ request: GuestRestoreAgentRequest) async throws -> JSONValue {
        let isHolding = await holds.isHolding
        guard request.call.action == .survey || !isHolding else {
            throw APIFailure(
                status: 409, code: "held", message: "Something is held on this host: a restore cannot start now",
                hint: "Wait for the snapshot to end, or release it with: stillpoint-agent thaw --all")
        }
        return try await restores.restoreGuest(request)
    }

    func prepareRestore(_ request: RestoreRequest) async throws -> RestoreResponse {
        guard await !holds.isHolding else {
            throw APIFailure(
                status: 409, code: "held", message: "Something is held on this host: a restore cannot start now",
                hint: "Wait for the snapshot to end, or release it with: stillpoint-agent thaw --all")
        }
        return try await restores.prepare(request)
    }
}
