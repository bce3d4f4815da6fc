import BlockIO
import Logging
import NIOCore
import NIOPosix
import SCSI
import Testing

@testable import ISCSI

@Suite("Portals and portal groups")
struct PortalTests {
    private static let iqn = "iqn.2026-11.test:paths"

    private func registry() throws -> TargetRegistry {
        let registry = TargetRegistry()
        try registry.addTarget(Self.iqn)
        try registry.addLUN(
            Self.iqn, lun: 0, device: MemoryDevice(sizeBytes: 1 << 20),
            identity: LogicalUnitIdentity(naa: "6589cfc0000000000000000000000001", serial: "P"))
        try registry.allow(Self.iqn, initiator: .any)
        return registry
    }

    @Test("what a portal on all addresses is called depends on who asks")
    func wildcards() {
        let wildcard = Portal(host: "0.0.0.0", port: 3260, groupTag: 2)
        #expect(wildcard.addresses(localAddress: "192.0.2.7:860") == ["192.0.2.7:3260,2"])
        #expect(wildcard.addresses(localAddress: "[2001:db8::7]:860").isEmpty)
    }

    @Test("the login names the group it came through, and the same ISID in another group is another session")
    func sessionsOfGroups() throws {
        let registry = try registry()
        let control = SessionControl(drop: { _ in }, requestLogout: { _ in }, replace: { $0() })
        func open(_ tag: UInt16) throws -> (session: LiveSession, replaced: [LiveSession]) {
            let outcome = LoginOutcome(
                initiatorPort: InitiatorPort(name: "iqn.2026-11.test:i", isid: 1), target: Self.iqn,
                parameters: .init(), connectionID: 0, portalGroupTag: tag, user: nil, commandSN: 0, statusSN: 0)
            return try registry.open(
                outcome, address: "a", counters: SessionCounters(), control: control
            ).get()
        }
        #expect(try open(1).replaced.isEmpty)
        #expect(try open(2).replaced.isEmpty)
        #expect(try open(2).replaced.map(\.portalGroupTag) == [2])
        #expect(registry.sessions().map(\.portalGroupTag) == [1, 2, 2])
    }

    @Test("two portals over IPv4 and IPv6 serve the same target", .enabled(if: RealInitiatorTests.hasLibiscsi))
    func realInitiator() async throws {
        let registry = try registry()
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        var logger = Logger(label: "iscsi")
        logger.logLevel = .critical
        try registry.setPortalGroup(2, access: .activeOptimized)
        let server = ISCSIServer(registry: registry, group: group, logger: logger)
        let first = try await server.start(host: "127.0.0.1", port: 0)
        let second = try await server.start(host: "::1", port: 0, portalGroupTag: 2)
        let portals = ["127.0.0.1:\(first.port ?? 0)", "[::1]:\(second.port ?? 0)"]
        for portal in portals {
            let list = Program.run(["iscsi-ls", "iscsi://\(portal)"])
            #expect(list.output.contains("Portal:\(portals[0]),1"), "\(list.output)")
            #expect(list.output.contains("Portal:\(portals[1]),2"), "\(list.output)")
            #expect(Program.run(["iscsi-inq", "iscsi://\(portal)/\(Self.iqn)/0"]).output.contains("STILLPNT"))
        }
        await server.shutdown(graceSeconds: 1)
        try await group.shutdownGracefully()
    }
}
