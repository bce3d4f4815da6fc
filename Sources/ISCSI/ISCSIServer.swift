public import Logging
public import NIOCore
import NIOPosix
import SCSI
import Synchronization

/// The target's portals: listens, logs initiators in, and serves the registry's logical units.
public final class ISCSIServer: Sendable {
    private let context: ServerContext
    private let group: any EventLoopGroup
    private let logger: Logger
    private let listeners = Mutex<[any Channel]>([])

    public init(registry: TargetRegistry, group: any EventLoopGroup, logger: Logger) {
        context = ServerContext(registry: registry)
        self.group = group
        self.logger = logger
    }

    /// Listens; may be called once per portal. Port 0 lets the system choose.
    /// - Parameters:
    ///   - portalGroupTag: the group that the portal belongs to; it must be known to the registry.
    ///   - advertised: `host:port` addresses that SendTargets gives instead of the portal's own; for servers behind
    ///     address translation.
    /// - Returns: the bound address.
    /// - Throws: NIO's error when the address cannot be bound.
    public func start(
        host: String, port: Int, portalGroupTag: UInt16 = 1, advertised: [String] = []
    ) async throws -> SocketAddress {
        context.startThreads()
        let context = context
        let logger = logger
        let limits = context.registry.limits
        let channel = try await ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 256)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                guard context.connectionBeganLogin() else {
                    logger.warning("iSCSI connection refused: \(limits.connectionsInLogin) logins are under way")
                    return channel.close()
                }
                return channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(
                        ConnectionHandler(server: context, portalGroupTag: portalGroupTag, logger: logger))
                }
            }
            .childChannelOption(.socketOption(.tcp_nodelay), value: 1)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 256 << 10))
            .childChannelOption(
                .writeBufferWaterMark,
                value: .init(low: limits.pendingOutputBytes / 4, high: limits.pendingOutputBytes)
            )
            .bind(host: host, port: port).get()
        listeners.withLock { $0.append(channel) }
        guard let address = channel.localAddress else { throw ChannelError.unknownLocalAddress }
        context.add(
            Portal(
                host: address.ipAddress ?? host, port: address.port ?? port, groupTag: portalGroupTag,
                advertised: advertised))
        logger.info("iSCSI target listens on \(address), portal group \(portalGroupTag)")
        return address
    }

    /// Stops listening, asks every session to log out (Async message), lets outstanding commands finish, and closes
    /// what is left after `graceSeconds`.
    public func shutdown(graceSeconds: Int64 = 5) async {
        let channels = listeners.withLock { listeners in
            defer { listeners = [] }
            return listeners
        }
        for channel in channels { try? await channel.close() }
        let seconds = UInt16(clamping: graceSeconds)
        for session in context.registry.liveSessions() { session.control.requestLogout(seconds) }
        let deadline = NIODeadline.now() + .seconds(graceSeconds)
        while !context.registry.liveSessions().isEmpty && NIODeadline.now() < deadline {
            try? await Task.sleep(for: .milliseconds(20))
        }
        for session in context.registry.liveSessions() {
            await withCheckedContinuation { continuation in
                session.control.replace { continuation.resume() }
            }
        }
        await context.stopThreads()
    }
}

/// What the connections of a server share.
final class ServerContext: Sendable {
    let registry: TargetRegistry
    private let knownPortals = Mutex<[Portal]>([])
    private let threads: NIOThreadPool
    private let inLogin = Atomic<Int>(0)
    /// Sessions in the full-feature phase.
    let sessionCount = SessionCount()
    private let sessionsByLoop = Mutex<[ObjectIdentifier: SessionCount]>([:])

    /// Flushes wait for the disk, so there are more of these threads than processors.
    private static let threadCount = 8

    init(registry: TargetRegistry) {
        self.registry = registry
        threads = NIOThreadPool(numberOfThreads: Self.threadCount)
    }

    var portals: [Portal] { knownPortals.withLock { $0 } }

    func add(_ portal: Portal) { knownPortals.withLock { $0.append(portal) } }

    /// How many sessions there are on one event loop.
    func sessions(on loop: any EventLoop) -> SessionCount {
        sessionsByLoop.withLock { known in
            if let found = known[ObjectIdentifier(loop)] { return found }
            let made = SessionCount()
            known[ObjectIdentifier(loop)] = made
            return made
        }
    }

    func startThreads() { threads.start() }

    func stopThreads() async { try? await threads.shutdownGracefully() }

    /// False when too many connections are in login.
    func connectionBeganLogin() -> Bool {
        let count = inLogin.wrappingAdd(1, ordering: .relaxed).newValue
        if count <= registry.limits.connectionsInLogin { return true }
        inLogin.wrappingSubtract(1, ordering: .relaxed)
        return false
    }

    func connectionLeftLogin() { inLogin.wrappingSubtract(1, ordering: .relaxed) }

    /// Runs an operation step by step; between steps others have their turn.
    func run(
        _ operation: BlockingOperation, _ activity: CommandActivity,
        completion: @escaping @Sendable (CommandEnd) -> Void
    ) {
        threads.submit { state in
            guard state == .active else { return completion(.busy) }
            var operation = operation
            if let end = activity.unit.step(&operation, activity: activity) {
                completion(end)
            } else {
                self.run(operation, activity, completion: completion)
            }
        }
    }
}
