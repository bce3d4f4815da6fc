import API
import BlockStore
import Catalog
import Foundation
import Glibc
import Hummingbird
import HummingbirdCore
import HummingbirdTLS
import ISCSI
import Logging
import NIOCore
import NIOPosix
import NIOSSL
import ServiceLifecycle
import Synchronization
import UnixSignals

/// A node from its start to its end: opens everything in order, runs the services, closes everything in reverse.
final class NodeProcess: Sendable {
    let services: NodeServices
    private let configuration: NodeConfiguration
    private let directory: DataDirectory
    private let token: AdministratorToken
    private let iscsi: ISCSIServer
    private let threads: NIOThreadPool
    private let logger: Logger
    private let recordFile = Mutex<RunDirectoryFile?>(nil)
    private let group = Mutex<ServiceGroup?>(nil)

    /// Threads for the pool's control operations and for closing.
    private static let threadCount = 4

    private init(
        services: NodeServices, configuration: NodeConfiguration, directory: DataDirectory, token: AdministratorToken,
        iscsi: ISCSIServer, threads: NIOThreadPool, logger: Logger
    ) {
        self.services = services
        self.configuration = configuration
        self.directory = directory
        self.token = token
        self.iscsi = iscsi
        self.threads = threads
        self.logger = logger
    }

    // MARK: Start

    /// Opens pool and catalog, brings them in line, and starts the iSCSI target.
    static func start(_ configuration: NodeConfiguration, logger base: Logger) async throws -> NodeProcess {
        let logger = base.atLevel(configuration.logLevel.level)
        let directory = try DataDirectory(configuration.dataDirectory)
        var undo: [@Sendable () async -> Void] = [{ directory.release() }]
        do {
            let identity = try NodeIdentity(pki: directory.pki, names: certificateNames(configuration))
            let token = try AdministratorToken(file: directory.tokenFile)
            let catalog = try Catalog(path: directory.catalog)
            undo.append { try? catalog.close() }
            let threads = NIOThreadPool(numberOfThreads: threadCount)
            threads.start()
            undo.append { try? await threads.shutdownGracefully() }
            let blocking = BlockingCalls(threads)
            let pool = try await blocking.run { try openPool(configuration, logger) }
            undo.append { _ = try? await blocking.run { try pool.close() } }
            let registry = TargetRegistry(
                reservationStore: CatalogReservations(catalog: catalog, logger: logger))
            let reservations = VolumeReservations()
            let inventory = Inventory(
                pool: pool, registry: registry, catalog: catalog, secrets: identity.secrets,
                reservations: reservations, blocking: blocking, configuredAccess: configuration.iscsiGroups,
                logger: logger)
            try await inventory.restorePortalGroups(Set([1] + configuration.iscsiPortals.map(\.group)))
            try await inventory.reconcile()
            let agents = AgentRegistry(catalog: catalog, identity: identity, logger: logger) {
                let volumes = try await inventory.volumeRecords()
                return registry.located(volumes.map { VolumeReference(name: $0.name, naa: $0.naa.description) })
            }
            let jobs = JobEngine(catalog: catalog, logger: logger)
            let addresses = ListeningAddresses()
            let iscsi = try await startTarget(configuration, inventory, addresses, logger)
            let sagas = Sagas(
                inventory: inventory, agents: agents, catalog: catalog, jobs: jobs, logger: logger)
            let services = NodeServices(
                identity: identity, inventory: inventory, agents: agents,
                watch: PoolWatch(
                    pool: pool, configuration: configuration, registry: registry, blocking: blocking, logger: logger),
                scrubbing: PoolScrubbing(
                    pool: pool, configuration: configuration, blocking: blocking, logger: logger),
                jobs: jobs, sagas: sagas,
                guests: GuestRestoreDriver(
                    inventory: inventory, registry: agents, sagas: sagas, jobs: jobs, dataDirectory: directory.path,
                    logger: logger),
                dataDirectory: directory.path, startedAt: .now, addresses: addresses)
            return NodeProcess(
                services: services, configuration: configuration, directory: directory, token: token, iscsi: iscsi,
                threads: threads, logger: logger)
        } catch {
            for step in undo.reversed() { await step() }
            throw error
        }
    }

    private static func startTarget(
        _ configuration: NodeConfiguration, _ inventory: Inventory, _ addresses: ListeningAddresses, _ logger: Logger
    ) async throws -> ISCSIServer {
        let server = ISCSIServer(
            registry: inventory.registry, group: MultiThreadedEventLoopGroup.singleton, logger: logger)
        let listen = configuration.iscsiListen
        let bound: SocketAddress
        do {
            let resolved = try SocketAddress.makeAddressResolvingHost(listen.host, port: listen.port)
            bound = try await server.start(
                host: resolved.ipAddress ?? listen.host, port: listen.port,
                advertised: configuration.iscsiAdvertise.map { [$0.description] } ?? [])
        } catch {
            throw ServeFailure("cannot listen for iSCSI on \(listen): \(reason(error))")
        }
        let address = ListenAddress(host: bound.ipAddress ?? listen.host, port: bound.port ?? listen.port)
        addresses.iscsi = address.description
        let reached = configuration.iscsiAdvertise.map { [$0] } ?? reachableAddresses(address)
        inventory.portalsByGroup[1] = reached.map(\.description)
        try await startPortals(configuration, inventory, server)
        return server
    }

    /// The portals beside the first one.
    private static func startPortals(
        _ configuration: NodeConfiguration, _ inventory: Inventory, _ server: ISCSIServer
    ) async throws {
        for portal in configuration.iscsiPortals {
            let listen = portal.address
            do {
                let resolved = try SocketAddress.makeAddressResolvingHost(listen.host, port: listen.port)
                let bound = try await server.start(
                    host: resolved.ipAddress ?? listen.host, port: listen.port, portalGroupTag: portal.group)
                let address = ListenAddress(host: bound.ipAddress ?? listen.host, port: bound.port ?? listen.port)
                inventory.portalsByGroup[portal.group, default: []] += reachableAddresses(address).map(\.description)
            } catch {
                await server.shutdown(graceSeconds: 0)
                throw ServeFailure("cannot listen for iSCSI on \(listen): \(reason(error))")
            }
        }
    }

    /// An address that initiators can use in place of "all addresses".
    private static func reachableAddresses(_ address: ListenAddress) -> [ListenAddress] {
        guard address.isWildcard else { return [address] }
        let wantsV6 = address.host == "::"
        let hosts = ((try? System.enumerateDevices()) ?? []).compactMap { device -> String? in
            guard let ip = device.address?.ipAddress, !ip.hasPrefix("127."), ip != "::1", !ip.hasPrefix("fe80:"),
                wantsV6 || !ip.contains(":")
            else { return nil }
            return ip
        }
        let found = Set(hosts).sorted().map { ListenAddress(host: $0, port: address.port) }
        return found.isEmpty ? [ListenAddress(host: wantsV6 ? "::1" : "127.0.0.1", port: address.port)] : found
    }

    private static func certificateNames(_ configuration: NodeConfiguration) -> Set<CertificateName> {
        var names = ["localhost", "127.0.0.1", "::1"] + configuration.apiNames
        names.append(ProcessInfo.processInfo.hostName)
        if configuration.apiListen.isWildcard {
            names += ((try? System.enumerateDevices()) ?? []).compactMap { $0.address?.ipAddress }
        } else {
            names.append(configuration.apiListen.host)
        }
        return Set(names.compactMap(CertificateName.init))
    }

    // MARK: Run

    /// Runs until a signal asks it to end. The sagas that a crash cut short are ended first; requests are taken from
    /// the moment their volumes are reserved.
    func run(endingOn signals: [UnixSignal] = [.sigterm, .sigint]) async throws {
        let recovery = Task { await recover() }
        await wait(for: recovery, atMostSeconds: Self.recoveryHeadStartSeconds)
        defer { recovery.cancel() }
        let api = try makeAPI()
        var settings = ServiceGroupConfiguration(
            services: [
                // Ended in reverse order.
                .init(service: TargetService(server: iscsi, graceSeconds: configuration.shutdownGraceSeconds)),
                .init(service: PollingService(agents: services.agents, seconds: configuration.agentPollSeconds)),
                .init(service: SweepingService(inventory: services.inventory, logger: logger)),
                .init(service: PoolWatchService(watch: services.watch, logger: logger)),
                .init(
                    service: ControlService(
                        api: api, jobs: services.jobs, graceSeconds: configuration.shutdownGraceSeconds)),
            ],
            gracefulShutdownSignals: signals, logger: logger)
        settings.maximumGracefulShutdownDuration = .seconds(2 * configuration.shutdownGraceSeconds + 10)
        let running = ServiceGroup(configuration: settings)
        group.withLock { $0 = running }
        do {
            try await running.run()
        } catch let error as IOError {
            throw ServeFailure("cannot listen for the API on \(configuration.apiListen): \(Self.reason(error))")
        } catch is CancellationError {
            logger.warning("shutdown took too long; what was left was cut off")
        }
        recovery.cancel()
        await wait(for: recovery, atMostSeconds: Self.recoveryEndSeconds)
    }

    /// Ends ``run(endingOn:)`` as a signal would.
    func end() async { await group.withLock { $0 }?.triggerGracefulShutdown() }

    private func recover() async {
        do {
            for saga in await services.sagas.recoverAfterRestart() {
                logger.notice("saga recovered", metadata: ["saga": "\(saga.sagaID)", "job": "\(saga.jobID)"])
                let outcome: Result<JobResult?, APIFailure> =
                    switch saga.outcome {
                    case .snapshot(let snapshot): .success(JobResult(snapshot: snapshot))
                    case .reverted(let result): .success(JobResult(revert: result))
                    case .failed(let failure): .failure(failure)
                    }
                try await services.jobs.endInterrupted(saga.jobID, outcome)
            }
            try await services.jobs.failInterrupted()
            await services.sagas.backlog.resume()
        } catch {
            logger.error("interrupted jobs could not be ended", metadata: ["error": "\(error)"])
        }
        await services.guests.recoverAfterRestart()
    }

    /// Recovery talks to agents, which may be away; the node does not wait for them for ever.
    private func wait(for recovery: Task<Void, Never>, atMostSeconds: Double) async {
        let (ends, continuation) = AsyncStream.makeStream(of: Void.self)
        let timer = Task {
            try? await Task.sleep(for: .seconds(atMostSeconds))
            continuation.finish()
        }
        // Not a task group: that would wait for the slower of the two.
        Task {
            await recovery.value
            continuation.finish()
        }
        for await _ in ends {}
        timer.cancel()
    }

    private static let recoveryHeadStartSeconds = 3.0
    /// What a cancelled recovery gets to let go of the catalog.
    private static let recoveryEndSeconds = 5.0

    private func makeAPI() throws -> some Service {
        let adapter = HTTPAdapter(table: RouteTable(services), token: token)
        let http = HTTP1Channel.Configuration(
            idleTimeout: .seconds(APILimits.idleSeconds),
            httpDecoderConfiguration: .init(
                maxHeaderFieldSize: APILimits.headerFieldBytes, maxHeaderListSize: APILimits.headerListBytes,
                maxHeaderFieldCount: APILimits.headerFields))
        var builder = HTTPServerBuilder.http1(configuration: http)
        if configuration.usesTLS { builder = try .tls(builder, tlsConfiguration: try serverTLS()) }
        return Application(
            router: adapter.router(), server: builder,
            configuration: ApplicationConfiguration(
                address: .hostname(configuration.apiListen.host, port: configuration.apiListen.port),
                serverName: "Stillpoint",
                availableConnectionsDelegate: .maximum(APILimits.connections, logger: logger)),
            onServerRunning: { [self] channel in announce(channel) }, logger: logger)
    }

    private func serverTLS() throws -> TLSConfiguration {
        do {
            let certificate = configuration.apiCertificateFile ?? services.identity.certificateFile
            let key = configuration.apiKeyFile ?? services.identity.keyFile
            var chain = try NIOSSLCertificate.fromPEMFile(certificate)
            if configuration.apiCertificateFile == nil {
                // An agent that enrols knows the authority by its fingerprint only: it must see it.
                chain += try NIOSSLCertificate.fromPEMFile(services.identity.authorityFile)
            }
            var tls = TLSConfiguration.makeServerConfiguration(
                certificateChain: chain.map { .certificate($0) },
                privateKey: .privateKey(try NIOSSLPrivateKey(file: key, format: .pem)))
            tls.minimumTLSVersion = .tlsv12
            return tls
        } catch {
            throw ServeFailure("the API's certificate or key cannot be used: \(error)")
        }
    }

    /// Everything listens: tells people, scripts, and the CLI.
    private func announce(_ channel: any Channel) {
        let port = channel.localAddress?.port ?? configuration.apiListen.port
        let address = ListenAddress(host: configuration.apiListen.host, port: port)
        let scheme = configuration.usesTLS ? "https" : "http"
        let own = address.isWildcard ? ListenAddress(host: "127.0.0.1", port: port) : address
        if let runDirectory = configuration.runDirectory {
            do {
                let usesOwnAuthority = configuration.usesTLS && configuration.apiCertificateFile == nil
                let record = NodeRecord(
                    api: "\(scheme)://\(own)", tokenFile: directory.tokenFile,
                    authorityFile: usesOwnAuthority ? services.identity.authorityFile : nil, pid: getpid())
                let file = try RunDirectoryFile(record, port: port, directory: runDirectory)
                recordFile.withLock { $0 = file }
            } catch {
                logger.warning("the CLI will not find this node by itself", metadata: ["reason": "\(error)"])
            }
        }
        // After the record: who sees the address may look for the record.
        services.addresses.api = address.description
        let lines = "api \(scheme)://\(address)\niscsi \(services.addresses.iscsi)\n"
        try? FileHandle.standardOutput.write(contentsOf: Data(lines.utf8))
        logger.notice(
            "serving",
            metadata: [
                "api": "\(scheme)://\(address)", "iscsi": "\(services.addresses.iscsi)", "data": "\(directory.path)",
            ])
    }

    // MARK: End

    /// Closes everything. Called once, after ``run()`` or where the start went wrong.
    func stop() async {
        recordFile.withLock { $0?.remove() }
        // Both have ended already where the services ran.
        await services.jobs.shutdown(graceSeconds: 0)
        await iscsi.shutdown(graceSeconds: 1)
        services.agents.shutdown()
        let pool = services.inventory.pool
        do {
            try await services.inventory.blocking.run { try pool.close() }
        } catch {
            logger.error("the pool was not closed cleanly", metadata: ["error": "\(error)"])
        }
        do {
            try services.inventory.catalog.close()
        } catch {
            logger.error("the catalog was not closed cleanly", metadata: ["error": "\(error)"])
        }
        try? await threads.shutdownGracefully()
        directory.release()
        logger.notice("ended")
    }

    private static func reason(_ error: any Error) -> String {
        if let error = error as? IOError { return String(cString: strerror(error.errnoCode)) }
        return String(describing: error)
    }
}

// MARK: Services

/// The API and the jobs, which end together: an event stream ends with its job.
private struct ControlService<API: Service>: Service {
    let api: API
    let jobs: JobEngine
    let graceSeconds: Int

    func run() async throws {
        let jobs = jobs
        let graceSeconds = Double(graceSeconds)
        try await withGracefulShutdownHandler {
            try await api.run()
        } onGracefulShutdown: {
            Task { await jobs.shutdown(graceSeconds: graceSeconds) }
        }
        await jobs.shutdown(graceSeconds: graceSeconds)
    }
}

/// The iSCSI target, which listens already.
private struct TargetService: Service {
    let server: ISCSIServer
    let graceSeconds: Int

    func run() async throws {
        try? await gracefulShutdown()
        await server.shutdown(graceSeconds: Int64(graceSeconds))
    }
}

private struct PollingService: Service {
    let agents: AgentRegistry
    let seconds: Int

    func run() async throws {
        await cancelWhenGracefulShutdown { await agents.poll(everySeconds: seconds) }
    }
}

/// Removes exports of snapshots that are not used any more.
private struct SweepingService: Service {
    let inventory: Inventory
    let logger: Logger

    private static let everySeconds = 60.0

    func run() async throws {
        let startedAt = Date.now
        await cancelWhenGracefulShutdown {
            while !Task.isCancelled {
                try? await Task.sleep(for: .seconds(Self.everySeconds))
                if Task.isCancelled { return }
                do {
                    try await inventory.removeIdleExports(startedAt: startedAt)
                } catch {
                    logger.warning("unused exports could not be removed", metadata: ["error": "\(error)"])
                }
            }
        }
    }
}

extension Logger {
    fileprivate func atLevel(_ level: Level) -> Logger {
        var logger = self
        logger.logLevel = level
        return logger
    }
}

extension NodeConfiguration.LogLevel {
    var level: Logger.Level {
        switch self {
        case .trace: .trace
        case .debug: .debug
        case .info: .info
        case .notice: .notice
        case .warning: .warning
        case .error: .error
        case .critical: .critical
        }
    }
}
