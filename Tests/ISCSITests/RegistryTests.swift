import BlockIO
import SCSI
import Testing

@testable import ISCSI

@Suite("Target registry")
struct RegistryTests {
    private let iqn = "iqn.2026-11.test:target"

    private func identity(_ digit: Int) throws -> LogicalUnitIdentity {
        try LogicalUnitIdentity(naa: "6589cfc000000000000000000000000\(digit)", serial: "S\(digit)")
    }

    private func outcome(isid: UInt64 = 1, name: String = "iqn.2026-11.test:initiator") -> LoginOutcome {
        LoginOutcome(
            initiatorPort: InitiatorPort(name: name, isid: isid), target: iqn, parameters: .init(), connectionID: 0,
            user: nil, commandSN: 0, statusSN: 0)
    }

    /// - Returns: the sessions that are replaced.
    @discardableResult
    private func open(
        _ registry: TargetRegistry, isid: UInt64 = 1, drops: Drops = Drops()
    ) -> Result<[UInt64], LoginFailure> {
        let control = SessionControl(
            drop: { drops.reasons.append($0) }, requestLogout: { _ in }, replace: { completion in completion() })
        return registry.open(
            outcome(isid: isid), address: "[::1]:1", counters: SessionCounters(), control: control
        ).map { $0.replaced.map(\.id) }
    }

    /// SAFETY: used on the test's own thread only.
    private final class Drops: @unchecked Sendable {
        var reasons: [String] = []
    }

    @Test("wrong names, duplicates and unknown things are refused with an error that names them")
    func refusals() throws {
        let registry = TargetRegistry()
        #expect(throws: TargetError.invalidName("disk1")) { try registry.addTarget("disk1") }
        #expect(throws: TargetError.invalidName("iqn.2026-11.test:a b")) {
            try registry.addTarget("iqn.2026-11.test:a b")
        }
        try registry.addTarget(iqn)
        #expect(throws: TargetError.targetExists(iqn: iqn)) { try registry.addTarget("iqn.2026-11.TEST:Target") }
        let device = MemoryDevice(sizeBytes: 1 << 20)
        try registry.addLUN(iqn, lun: 0, device: device, identity: identity(1))
        #expect(throws: TargetError.lunInUse(iqn: iqn, lun: 0)) {
            try registry.addLUN(iqn, lun: 0, device: device, identity: identity(2))
        }
        #expect(throws: TargetError.identityInUse(naa: try identity(1).naa)) {
            try registry.addLUN(iqn, lun: 1, device: MemoryDevice(sizeBytes: 1 << 20), identity: identity(1))
        }
        #expect(throws: TargetError.invalidLUN(-1)) {
            try registry.addLUN(iqn, lun: -1, device: device, identity: identity(2))
        }
        #expect(throws: TargetError.noSuchLUN(iqn: iqn, lun: 5)) { try registry.removeLUN(iqn, lun: 5) }
        #expect(throws: TargetError.noSuchRule(iqn: iqn, initiator: .any)) {
            try registry.deny(iqn, initiator: .any)
        }
        #expect(registry.targets().map(\.luns.count) == [1])
    }

    @Test("the same volume in two targets is one logical unit: a reservation through one holds through the other")
    func sharedUnit() throws {
        let registry = TargetRegistry()
        let device = MemoryDevice(sizeBytes: 1 << 20)
        for name in [iqn, "iqn.2026-11.test:second"] {
            try registry.addTarget(name)
            try registry.addLUN(name, lun: 3, device: device, identity: identity(1))
        }
        let port = InitiatorPort(name: "iqn.2026-11.test:i", isid: 1)
        let nexuses = [iqn, "iqn.2026-11.test:second"].map { name in
            TargetDirectory(registry: registry, iqn: name, saysPowerOn: false).attach(lun: 3, initiatorPort: port)
        }
        let first = try #require(nexuses[0])
        let second = try #require(nexuses[1])
        #expect(first.unit === second.unit)
        _ = first.unit.begin(CommandBlock([0x16, 0, 0, 0, 0, 0]), nexus: first)
        guard
            case .end(.reservationConflict) = second.unit.begin(
                CommandBlock(CDB.read(lba: 0, blocks: 1)), nexus: second
            ).disposition
        else {
            Issue.record("the other path got through")
            return
        }
    }

    @Test("while a volume is blocked nobody new reaches it, and the session list names who does")
    func revertGuard() throws {
        let registry = TargetRegistry()
        try registry.addTarget(iqn)
        try registry.addLUN(iqn, lun: 0, device: MemoryDevice(sizeBytes: 1 << 20), identity: identity(1))
        try registry.allow(iqn, initiator: .any)
        let naa = try identity(1).naa
        _ = try open(registry).get()
        #expect(registry.sessions(naa: naa).map(\.initiator) == ["iqn.2026-11.test:initiator"])
        #expect(registry.sessions(naa: naa.uppercased()).count == 1)
        registry.blockLogins(naa: naa)
        guard case .failure(let failure) = open(registry, isid: 2) else {
            Issue.record("a login got through")
            return
        }
        #expect(failure.status == .serviceUnavailable)
        #expect(throws: TargetError.blocked(naa: naa)) {
            try registry.addTarget("iqn.2026-11.test:side")
            try registry.addLUN(
                "iqn.2026-11.test:side", lun: 0, device: MemoryDevice(sizeBytes: 1 << 20), identity: identity(1))
        }
        registry.unblockLogins(naa: naa)
        _ = try open(registry, isid: 2).get()
        #expect(registry.sessions().count == 2)
    }

    @Test("a second login with the same name and ISID replaces the first session, another ISID does not")
    func reinstatement() throws {
        let registry = TargetRegistry()
        try registry.addTarget(iqn)
        try registry.allow(iqn, initiator: .any)
        #expect(try open(registry).get().isEmpty)
        #expect(try open(registry, isid: 2).get().isEmpty)
        let replaced = try open(registry).get()
        #expect(replaced.count == 1)
        // It stays in the list until it has let go of its devices.
        #expect(registry.sessions().count == 3)
        for live in registry.liveSessions() where replaced.contains(live.id) { registry.closed(live) }
        #expect(registry.sessions().count == 2)
    }

    @Test("a rule for a name goes before the rule for any; taking it back ends the sessions that stood on it")
    func rules() throws {
        let registry = TargetRegistry()
        try registry.addTarget(iqn)
        let chap = try CHAPCredentials(user: "u", secret: Array("wonderland-2026".utf8))
        try registry.allow(iqn, initiator: .any, chap: chap)
        try registry.allow(iqn, initiator: .named("iqn.2026-11.test:INITIATOR"))
        guard
            case .allowed(let credentials, _) = registry.authorize(
                initiator: "iqn.2026-11.test:initiator", target: iqn), credentials.isEmpty,
            case .allowed(let others, _) = registry.authorize(initiator: "iqn.2026-11.test:x", target: iqn),
            others == [chap]
        else {
            Issue.record("wrong rule")
            return
        }
        let drops = Drops()
        _ = try open(registry, drops: drops).get()
        try registry.deny(iqn, initiator: .any)
        #expect(drops.reasons.isEmpty)
        try registry.deny(iqn, initiator: .named("iqn.2026-11.test:initiator"))
        #expect(drops.reasons.count == 1)
        #expect(registry.metrics()[0].loginsAccepted == 1)
    }

    @Test("each portal group is a port of each target, its relative identifier the same after every restart")
    func portalGroups() throws {
        func ports() throws -> [TargetPort] {
            let registry = TargetRegistry()
            try registry.setPortalGroup(2, access: .activeNonOptimized)
            try registry.addTarget(iqn)
            try registry.addLUN(iqn, lun: 0, device: MemoryDevice(sizeBytes: 1 << 20), identity: identity(1))
            return try ([1, 2] as [UInt16]).map { tag in
                let directory = TargetDirectory(registry: registry, iqn: iqn, portalGroupTag: tag, saysPowerOn: false)
                return try #require(
                    directory.attach(lun: 0, initiatorPort: InitiatorPort(name: "iqn.2026-11.test:i", isid: 1))
                ).targetPort
            }
        }
        let first = try ports()
        #expect(first.map(\.groupTag) == [1, 2])
        #expect(first[0].relativeIdentifier != first[1].relativeIdentifier)
        #expect(try ports().map(\.relativeIdentifier) == first.map(\.relativeIdentifier))
    }

    @Test("the state of a portal group goes to every volume and is an attention on every path")
    func groupStates() throws {
        let registry = TargetRegistry()
        try registry.setPortalGroup(2, access: .standby)
        try registry.addTarget(iqn)
        try registry.addLUN(iqn, lun: 0, device: MemoryDevice(sizeBytes: 1 << 20), identity: identity(1))
        let nexuses = try ([1, 2] as [UInt16]).map { tag in
            let directory = TargetDirectory(registry: registry, iqn: iqn, portalGroupTag: tag, saysPowerOn: false)
            return try #require(directory.attach(lun: 0, initiatorPort: InitiatorPort(name: "iqn.a:i", isid: 1)))
        }
        func sense(_ nexus: LogicalUnitNexus) -> AdditionalSense? {
            let started = nexus.unit.begin(CommandBlock([0, 0, 0, 0, 0, 0]), nexus: nexus)
            guard case .end(.sense(let sense)) = started.disposition else { return nil }
            return sense.additional
        }
        func expect(_ first: AdditionalSense?, _ second: AdditionalSense?) {
            #expect(nexuses.map(sense) == [first, second])
        }
        expect(nil, .portInStandby)
        try registry.setPortalGroup(2, access: .activeOptimized)
        try registry.setPortalGroup(1, access: .unavailable)
        #expect(registry.portalGroups().map(\.access) == [.unavailable, .activeOptimized])
        expect(.accessStateChanged, .accessStateChanged)
        expect(.portUnavailable, nil)
    }

    @Test(
        "SendTargets names every portal with its group: its own address, the one that is advertised, or the one reached"
    )
    func discovery() throws {
        let registry = TargetRegistry()
        try registry.addTarget(iqn)
        try registry.allow(iqn, initiator: .any)
        let portals = [
            Portal(host: "0.0.0.0", port: 3260, groupTag: 1), Portal(host: "198.51.100.7", port: 3261, groupTag: 2),
            Portal(host: "fe80::1", port: 3262, groupTag: 3),
            Portal(host: "10.0.0.1", port: 3260, groupTag: 4, advertised: ["nas.example:3260"]),
        ]
        let found = TargetDirectory(registry: registry, iqn: "", portals: portals).discover(
            initiator: "iqn.2026-11.test:i", name: nil, localAddress: "192.0.2.1:3260")
        #expect(
            found.map(\.addresses) == [
                ["192.0.2.1:3260,1", "198.51.100.7:3261,2", "[fe80::1]:3262,3", "nas.example:3260,4"]
            ])
    }
}
