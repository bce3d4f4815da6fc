import API
import Foundation
import NIOHTTP1
import SCSI
import Synchronization
import Testing

@testable import ISCSI
@testable import Node

@Suite("Sessions and discovery over the API")
struct SessionRouteTests {
    /// Enters a session of an initiator that is not really there.
    private func open(_ node: TestNode, _ iqn: String, dropped: Dropped) throws {
        let outcome = LoginOutcome(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.test:host", isid: 1), target: iqn, parameters: .init(),
            connectionID: 0, portalGroupTag: 1, user: nil, commandSN: 0, statusSN: 0)
        let counters = SessionCounters()
        counters.own.ended(.read, nanoseconds: 20_000)
        counters.own.read(4096)
        let control = SessionControl(
            drop: { reason in dropped.reasons.withLock { $0.append(reason) } }, requestLogout: { _ in },
            replace: { $0() })
        let registry = node.services.inventory.registry
        _ = try registry.open(outcome, address: "192.0.2.9:4711", counters: counters, control: control).get()
    }

    private final class Dropped: Sendable {
        let reasons = Mutex<[String]>([])
    }

    @Test("sessions are listed with what they did, in the metrics too, and dropped by their id")
    func sessions() async throws {
        try await TestNode.with { node in
            let none: [SessionInfo] = try await node.call(.GET, "/v1/sessions").decode()
            #expect(none.isEmpty)
            let request = VolumeCreateRequest(name: "db", sizeBytes: 1 << 20)
            let volume: VolumeInfo = try await node.call(.POST, "/v1/volumes", request).decode()
            let iqn = try #require(volume.exports.first?.iqn)
            _ = try await node.call(.POST, "/v1/targets/\(iqn)/allow", TargetAllowRequest(initiator: "any"))
            let dropped = Dropped()
            try open(node, iqn, dropped: dropped)
            let all: [SessionInfo] = try await node.call(.GET, "/v1/sessions").decode()
            let session = try #require(all.first)
            #expect(session.initiator == "iqn.2026-11.test:host" && session.target == iqn)
            #expect(session.address == "192.0.2.9:4711" && session.portalGroup == 1)
            #expect(session.commands == 1 && session.readBytes == 4096)
            #expect(session.reads.count == 1 && session.reads.p99Seconds == 32e-6 && session.writes.count == 0)
            let text = String(decoding: try await node.call(.GET, "/metrics").body, as: UTF8.self)
            let labels = "target=\"\(iqn)\",operation=\"read\""
            #expect(text.contains("stillpoint_target_command_seconds_bucket{\(labels),le=\"3.2e-05\"} 1\n"))
            #expect(text.contains("stillpoint_target_command_seconds_count{\(labels)} 1\n"))
            #expect(text.contains("stillpoint_volume_commands_total{volume=\"db\"} 0\n"))
            #expect(text.contains("stillpoint_session_read_bytes_total{target=\"\(iqn)\""))
            #expect(try await node.call(.DELETE, "/v1/sessions/\(session.id)").status == 204)
            #expect(dropped.reasons.withLock { $0 } == ["an administrator ended it"])
            for unknown in ["999999", "x"] {
                let answer = try await node.call(.DELETE, "/v1/sessions/\(unknown)")
                #expect(answer.status == 404 && answer.failure?.code == "sessionNotFound")
            }
        }
    }

    @Test("discovery rules are kept over a restart, their secrets sealed, and taken back by name")
    func discovery() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        let rule = TargetAllowRequest(
            initiator: "iqn.2026-11.test:host", chapUser: "finder", chapSecret: "looks-around-2026",
            mutualUser: "node", mutualSecret: "shows-itself-26")
        let allowed: DiscoveryInfo = try await node.call(.POST, "/v1/discovery/allow", rule).decode()
        #expect(allowed.access == [.init(initiator: "iqn.2026-11.test:host", chapUser: "finder", isMutual: true)])
        let short = TargetAllowRequest(initiator: "any", chapUser: "u", chapSecret: "short")
        #expect(try await node.call(.POST, "/v1/discovery/allow", short).status == 400)
        try await node.end()
        let catalog = try Data(contentsOf: URL(filePath: directory + "/data/catalog.sqlite"))
        #expect(catalog.range(of: Data("looks-around-2026".utf8)) == nil)

        let again = try await TestNode.start(directory)
        let kept: DiscoveryInfo = try await again.call(.GET, "/v1/discovery").decode()
        #expect(kept == allowed)
        let registry = again.services.inventory.registry
        if case .allowed(let credentials, let isOptional) = registry.authorize(
            initiator: "iqn.2026-11.test:host", target: nil)
        {
            #expect(credentials.map(\.user) == ["finder"] && credentials.first?.mutual?.user == "node" && !isOptional)
        } else {
            Issue.record("who has a rule is refused")
        }
        guard case .refused = registry.authorize(initiator: "iqn.2026-11.test:other", target: nil) else {
            Issue.record("who has no rule is let in")
            return
        }
        let deny = TargetDenyRequest(initiator: "iqn.2026-11.test:host")
        let denied: DiscoveryInfo = try await again.call(.POST, "/v1/discovery/deny", deny).decode()
        #expect(denied.access.isEmpty)
        #expect(try await again.call(.POST, "/v1/discovery/deny", deny).failure?.code == "ruleNotFound")
        try await again.end()
    }
}
