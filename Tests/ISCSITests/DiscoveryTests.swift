import BlockIO
import SCSI
import Testing

@testable import ISCSI

@Suite("Authentication of discovery")
struct DiscoveryTests {
    private static let names = [
        ("InitiatorName", "iqn.2026-11.test:initiator"), ("SessionType", "Discovery"),
    ]

    private func credentials(_ user: String, mutual: Bool = false) throws -> CHAPCredentials {
        try CHAPCredentials(
            user: user, secret: Array("\(user)-2026-secret".utf8),
            mutual: mutual ? .init(user: "node", secret: Array("looking-glass-2".utf8)) : nil)
    }

    /// A target with CHAP of its own.
    private func registry() throws -> TargetRegistry {
        let registry = TargetRegistry()
        try registry.addTarget("iqn.2026-11.test:target")
        try registry.allow("iqn.2026-11.test:target", initiator: .any, chap: credentials("target-user"))
        return registry
    }

    private func login(_ registry: TargetRegistry) -> ScriptedLogin {
        var login = ScriptedLogin()
        login.machine = LoginMachine(limits: .init(), policy: registry, random: countingRandom())
        return login
    }

    /// - Returns: how the login as this user ends.
    private func authenticate(_ registry: TargetRegistry, as user: String, mutual: Bool = false) throws
        -> LoginMachine.Step
    {
        var login = login(registry)
        _ = login.send(Self.names + [("AuthMethod", "CHAP")], next: 1)
        guard case .respond(_, let text) = login.send([("CHAP_A", "7")]) else { return login.send([]) }
        let keys = try TextKeys(text)
        let identifier = try #require(keys["CHAP_I"].flatMap(TextValue.number))
        let challenge = try #require(keys["CHAP_C"].flatMap { TextValue.binary($0, limit: 64) })
        let response = CHAPAlgorithm.sha256.response(
            identifier: UInt8(identifier), secret: Array("\(user)-2026-secret".utf8), challenge: challenge)
        let own = mutual ? [("CHAP_I", "9"), ("CHAP_C", "0x" + String(repeating: "ab", count: 32))] : []
        return login.send([("CHAP_N", user), ("CHAP_R", TextValue.hexadecimal(response))] + own, next: 1)
    }

    @Test("without rules discovery is open, also to who skips the security stage, and a target's secret proves a name")
    func open() throws {
        let registry = try registry()
        var plain = login(registry)
        #expect(plain.send(Self.names + [("AuthMethod", "CHAP,None")], next: 1).keys?["AuthMethod"] == "None")
        var skipping = login(registry)
        skipping.stage = 1
        guard case .open(let outcome) = skipping.send(Self.names, next: 3) else {
            Issue.record("a discovery that skips the security stage is refused")
            return
        }
        #expect(outcome.target == nil)
        #expect(try authenticate(registry, as: "target-user").failure == nil)
    }

    @Test("the first rule shuts out all who have none, and a target's secret does not open discovery")
    func closed() throws {
        let registry = try registry()
        try registry.allowDiscovery(
            initiator: .named("iqn.2026-11.test:other"), chap: credentials("discovery-user"))
        var other = login(registry)
        let refused = other.send(Self.names + [("AuthMethod", "None")], next: 1).failure
        #expect(refused?.status == .authorizationFailure)
        #expect(refused?.message == "initiator iqn.2026-11.test:initiator is not allowed to discover targets")
        try registry.allowDiscovery(initiator: .any, chap: credentials("discovery-user"))
        var none = login(registry)
        #expect(none.send(Self.names + [("AuthMethod", "None")], next: 1).failure?.status == .authenticationFailure)
        var skipping = login(registry)
        skipping.stage = 1
        #expect(skipping.send(Self.names, next: 3).failure?.status == .authenticationFailure)
        #expect(try authenticate(registry, as: "target-user").failure?.status == .authenticationFailure)
        #expect(try authenticate(registry, as: "discovery-user").failure == nil)
        try registry.denyDiscovery(initiator: .any)
        try registry.denyDiscovery(initiator: .named("iqn.2026-11.test:other"))
        #expect(throws: TargetError.noSuchRule(iqn: "discovery", initiator: .any)) {
            try registry.denyDiscovery(initiator: .any)
        }
        var open = login(registry)
        #expect(open.send(Self.names + [("AuthMethod", "None")], next: 1).failure == nil)
    }

    @Test("discovery is authenticated in both directions where it has a secret for that")
    func mutual() throws {
        let registry = try registry()
        try registry.allowDiscovery(initiator: .any, chap: credentials("discovery-user", mutual: true))
        let end = try authenticate(registry, as: "discovery-user", mutual: true)
        #expect(end.keys?["CHAP_N"] == "node" && end.keys?["CHAP_R"]?.hasPrefix("0x") == true)
        try registry.allowDiscovery(initiator: .any, chap: credentials("discovery-user"))
        #expect(
            try authenticate(registry, as: "discovery-user", mutual: true).failure?.status == .authenticationFailure)
    }

    @Test("iscsi-ls has to prove itself where discovery has a rule", .enabled(if: RealInitiatorTests.hasLibiscsi))
    func realInitiator() async throws {
        let running = try await RunningServer()
        try running.registry.allowDiscovery(
            initiator: .any,
            chap: CHAPCredentials(
                user: "finder", secret: Array("looks-around-2026".utf8),
                mutual: .init(user: "node", secret: Array("shows-itself-26".utf8))))
        let portal = "127.0.0.1:\(running.port)"
        #expect(Program.run(["iscsi-ls", "iscsi://\(portal)"]).status != 0)
        #expect(Program.run(["iscsi-ls", "iscsi://alice%wonderland-2026@\(portal)"]).status != 0)
        let seen = Program.run(["iscsi-ls", "iscsi://finder%looks-around-2026@\(portal)"])
        #expect(seen.status == 0 && seen.output.contains(RunningServer.open), "\(seen.output)")
        let mutual = "?target_user=node&target_password=shows-itself-26"
        let both = Program.run(["iscsi-ls", "iscsi://finder%looks-around-2026@\(portal)/\(mutual)"])
        #expect(both.status == 0 && both.output.contains(RunningServer.open), "\(both.output)")
        try await running.stop()
    }
}
