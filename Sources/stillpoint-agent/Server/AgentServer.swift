import API
import CLinux
import Foundation
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import SwiftASN1
import Synchronization
import X509

/// Why the agent does not start, in a sentence.
struct StartFailure: Error, CustomStringConvertible {
    var description: String
}

/// The run directory, on a tmpfs and in the hands of one agent only.
final class RunDirectory: Sendable {
    let path: String
    private let lockDescriptor: Int32

    /// Creates what is missing and locks it.
    init(_ path: String, allowsDisk: Bool) throws {
        self.path = path
        do {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw StartFailure(description: "The run directory \(path) cannot be made: \(reasonText(error))")
        }
        guard let status = FileStatus(path: path), status.isOurs, status.isTrusted else {
            throw StartFailure(description: "The run directory \(path) must be ours, and writable for nobody else")
        }
        guard allowsDisk || HoldJournal.isInMemory(path) else {
            throw StartFailure(
                description: "The run directory \(path) is on a disk, which could be frozen together with what is "
                    + "noted in it. Use a tmpfs such as /run, or say allowRunOnDisk if you must")
        }
        let descriptor = open(path + "/agent.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw StartFailure(description: "\(path)/agent.lock: \(String(cString: strerror(errno)))")
        }
        guard clinux_file_lock(descriptor, 1) == 0 else {
            close(descriptor)
            throw StartFailure(description: "Another agent is running with the run directory \(path)")
        }
        lockDescriptor = descriptor
    }

    deinit { close(lockDescriptor) }
}

/// The agent as a service: recovers, listens, and releases everything before it ends.
struct AgentServer: Sendable {
    /// Authenticated connections at most: one node and its administrators need few.
    static let connectionLimit = 512
    /// For holds to be released at the end.
    static let stopSeconds = 20.0

    let configuration: AgentConfiguration
    let identity: AgentIdentity
    let logger: Logger
    var onReady: @Sendable (_ port: Int) -> Void = { _ in }

    /// Runs until `stop` yields or ends, or the task is cancelled.
    func run(until stop: AsyncStream<String>) async throws {
        umask(0o077)
        signal(SIGPIPE, SIG_IGN)
        let directory = try RunDirectory(configuration.run, allowsDisk: configuration.allowRunOnDisk)
        let keeper = try IdentityKeeper(identity, store: IdentityStore(directory: configuration.state))
        let service = AgentService(
            configuration: configuration, keeper: keeper, launcher: PluginProcessLauncher(logger: logger),
            logger: logger)
        try HoldJournal(directory: directory.path).prepare()
        try await recover(service)
        warnOfExpiry()

        let router = Routes.router(service, logger: logger)
        let tls = try tlsApplication(router, keeper)
        let local = localApplication(router)
        let failure: (any Error)? = await withTaskGroup(of: Outcome.self) { group in
            group.addTask { await Self.outcome("the TLS port") { try await tls.run() } }
            group.addTask { await Self.outcome("the local socket") { try await local.run() } }
            group.addTask {
                await service.watcher.run()
                return .stopped("nobody watches any more")
            }
            group.addTask {
                for await reason in stop { return .stopped(reason) }
                return .stopped("nobody is left to say stop")
            }
            let first = await group.next()
            await releaseEverything(service)
            group.cancelAll()
            await group.waitForAll()
            if case .failed(let error) = first { return error }
            return nil
        }
        unlink(configuration.socketPath)
        DroppingLog.shared.flush(atMostSeconds: 1)
        withExtendedLifetime(directory) {}
        if let failure { throw failure }
    }

    private enum Outcome: Sendable {
        case stopped(String)
        case failed(StartFailure)
    }

    private static func outcome(_ what: String, _ body: () async throws -> Void) async -> Outcome {
        do {
            try await body()
            return .stopped("\(what) was closed")
        } catch is CancellationError {
            return .stopped("cancelled")
        } catch {
            return .failed(StartFailure(description: "The agent cannot listen on \(what): \(error)"))
        }
    }

    /// First of all: whatever a dead agent left at rest.
    private func recover(_ service: AgentService) async throws {
        let result = await service.holds.recoverLeftovers()
        for released in result.released { logger.notice("released what an earlier agent had left held: \(released)") }
        guard !result.failures.isEmpty else { return }
        for failure in result.failures { logger.error("left held by an earlier agent: \(failure)") }
        Task { await service.holds.keepRecoveringLeftovers() }
    }

    private func warnOfExpiry() {
        guard let end = try? identity.certificate().notValidAfter else { return }
        let days = Int(end.timeIntervalSinceNow / 86_400)
        if days < 30 {
            logger.warning(
                "the agent's certificate ends in \(days) days; can the node, which renews it, reach this agent?")
        }
    }

    private func releaseEverything(_ service: AgentService) async {
        logger.info("stopping: releasing everything that is held")
        let result = await service.holds.stop()
        for failure in result.failures { logger.error("not released at the end: \(failure)") }
    }

    private func tlsApplication(
        _ router: Router<BasicRequestContext>, _ keeper: IdentityKeeper
    ) throws -> some ApplicationProtocol {
        let identity = identity
        let address = try ListenAddress(configuration.listen)
        let logger = logger
        let onReady = onReady
        return Application(
            router: router,
            server: HTTPServerBuilder { responder in
                try MutualTLSChannel(
                    base: HTTP1Channel(responder: responder, configuration: Self.channelConfiguration),
                    keeper: keeper)
            },
            configuration: ApplicationConfiguration(
                address: .hostname(address.host, port: address.port), serverName: nil,
                availableConnectionsDelegate: MaximumAvailableConnections(Self.connectionLimit, logger: logger)),
            onServerRunning: { channel in
                let port = channel.localAddress?.port ?? address.port
                logger.notice(
                    "listening", metadata: ["address": "\(address.host):\(port)", "name": "\(identity.name)"])
                onReady(port)
            },
            logger: quiet)
    }

    private func localApplication(_ router: Router<BasicRequestContext>) -> some ApplicationProtocol {
        Application(
            router: router,
            server: HTTPServerBuilder { responder in
                HTTP1Channel(responder: responder, configuration: Self.channelConfiguration)
            },
            configuration: ApplicationConfiguration(
                address: .unixDomainSocket(path: configuration.socketPath), serverName: nil,
                availableConnectionsDelegate: MaximumAvailableConnections(64, logger: logger)),
            logger: quiet)
    }

    private static var channelConfiguration: HTTP1Channel.Configuration {
        HTTP1Channel.Configuration(
            idleTimeout: .seconds(60),
            httpDecoderConfiguration: .init(
                maxHeaderFieldSize: 16 << 10, maxHeaderListSize: 32 << 10, maxHeaderFieldCount: 64))
    }

    /// The web framework's own chatter is not an administrator's business.
    private var quiet: Logger {
        var logger = logger
        logger.logLevel = max(logger.logLevel, .warning)
        return logger
    }
}
