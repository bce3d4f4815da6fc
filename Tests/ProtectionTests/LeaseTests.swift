import Testing

@testable import Protection

private func at(_ milliseconds: Int64) -> MonotonicInstant { MonotonicInstant(nanoseconds: milliseconds * 1_000_000) }

@Suite("Leases")
struct LeaseTests {
    private let lease = Lease(sentAt: at(0), length: .seconds(10), cap: .seconds(30), transit: .seconds(2))

    @Test("a lease may have ended a little before its length after the request was sent, whatever the clocks' rates")
    func earliest() {
        #expect(!lease.mayHaveEnded(at: at(9_899)))
        #expect(lease.mayHaveEnded(at: at(9_900)))
        #expect(lease.remaining(at: at(9_000)) == .milliseconds(900))
        #expect(lease.remaining(at: at(20_000)) == .zero)
    }

    @Test("a lease has surely ended only a transit and a little more than its length after the request")
    func latest() {
        #expect(!lease.hasSurelyEnded(at: at(12_099)))
        #expect(lease.hasSurelyEnded(at: at(12_100)))
    }

    @Test("a renewal counts from its sending, and only once it is granted; that it was sent postpones the sure end")
    func renewal() {
        var lease = lease
        lease.renewalSent(at: at(5_000), length: .seconds(10), transit: .seconds(2))
        #expect(lease.mayHaveEnded(at: at(9_900)))
        #expect(!lease.hasSurelyEnded(at: at(17_099)))
        lease.renewalGranted(sentAt: at(5_000), length: .seconds(10))
        #expect(!lease.mayHaveEnded(at: at(14_899)))
        #expect(lease.mayHaveEnded(at: at(14_900)))
    }

    @Test("a shorter renewal never shortens a lease")
    func shorter() {
        var lease = lease
        lease.renewalGranted(sentAt: at(1_000), length: .seconds(2))
        #expect(lease.earliestEnd == at(9_900))
    }

    @Test("nothing is renewed beyond the cap")
    func cap() {
        #expect(lease.renewalLength(at: at(5_000)) == .seconds(10))
        var late = lease
        late.renewalGranted(sentAt: at(18_000), length: .seconds(10))
        #expect(late.renewalLength(at: at(22_000)) == .seconds(8))
        late.renewalGranted(sentAt: at(22_000), length: .seconds(8))
        #expect(late.renewalLength(at: at(25_000)) == nil)
    }

    @Test("times are shown with three decimals")
    func text() {
        #expect(Duration.milliseconds(184).text == "0.184 s")
        #expect(Duration.text(seconds: 12.0005) == "12.001 s")
        #expect(Duration.text(seconds: -0.05) == "-0.050 s")
    }
}

@Suite("Levels of a group")
struct ConsistencyGroupTests {
    private func resource(_ layer: QuiesceLayer, _ id: String, _ volumes: [String]) -> Resource {
        let plugin =
            switch layer {
            case .application: "database"
            case .fileSystem: "filesystem"
            case .machine: "vm"
            case .hostFileSystem: "filesystem"
            }
        return Resource(plugin: plugin, layer: layer, id: id, label: id, volumes: volumes)
    }

    private func group(
        _ requested: ConsistencyLevel, _ resources: [Resource], volumes: [String] = ["a"],
        unknown: [String: String] = [:]
    ) -> ConsistencyGroup {
        ConsistencyGroup(volumes: volumes, requested: requested, discovered: ["host": resources], unknown: unknown)
    }

    private func all(_ group: ConsistencyGroup) -> Set<MemberKey> { Set(group.members.map(\.key)) }

    @Test("application needs an application, and everything on the volume proven")
    func application() {
        let both = group(
            .application, [resource(.application, "db", ["a"]), resource(.fileSystem, "fs", ["a"])])
        #expect(both.level(proven: all(both)) == .application)
        #expect(both.level(proven: all(both).filter { $0.resource == "db" }) == .crash)
        #expect(both.level(proven: all(both).filter { $0.resource == "fs" }) == .fileSystem)
        let noDatabase = group(.application, [resource(.fileSystem, "fs", ["a"])])
        #expect(noDatabase.level(proven: all(noDatabase)) == .fileSystem)
    }

    @Test("one of two applications that is not proven lowers the volume")
    func oneOfTwo() {
        let two = group(
            .application,
            [
                resource(.application, "db1", ["a"]), resource(.application, "db2", ["a"]),
                resource(.fileSystem, "fs", ["a"]),
            ])
        #expect(two.level(proven: all(two).filter { $0.resource != "db2" }) == .fileSystem)
    }

    @Test("a snapshot's level is the least of its volumes', and a bare volume is crash")
    func least() {
        let bare = group(
            .application, [resource(.application, "db", ["a"]), resource(.fileSystem, "fs", ["a"])],
            volumes: ["a", "b"])
        #expect(bare.level(of: "a", proven: all(bare)) == .application)
        #expect(bare.level(proven: all(bare)) == .crash)
        #expect(bare.shortfalls(usable: all(bare)).count == 1)
        #expect(bare.shortfalls(usable: all(bare))[0].contains("volume b"))
    }

    @Test("for fileSystem, only file systems are members")
    func fileSystem() {
        let files = group(.fileSystem, [resource(.application, "db", ["a"]), resource(.fileSystem, "fs", ["a"])])
        #expect(files.members.map(\.resource.id) == ["fs"])
        #expect(files.level(proven: all(files)) == .fileSystem)
    }

    private func machine(_ id: String, _ level: ConsistencyLevel?) -> Resource {
        Resource(plugin: "vm", layer: .machine, id: id, label: id, volumes: ["a"], level: level)
    }

    @Test("a volume is no better than what its machines make of their disks")
    func machines() {
        let frozen = group(.fileSystem, [machine("g1", .fileSystem), machine("g2", .application)])
        #expect(frozen.level(proven: all(frozen)) == .fileSystem)
        #expect(frozen.level(proven: all(frozen).filter { $0.resource == "g1" }) == .crash)
        let lowered = Dictionary(uniqueKeysWithValues: all(frozen).map { ($0, ConsistencyLevel.crash) })
        #expect(frozen.level(proven: all(frozen), levels: lowered) == .crash)
        let paused = group(.application, [machine("g1", .crash), resource(.application, "db", ["a"])])
        #expect(paused.level(proven: all(paused)) == .crash)
        #expect(paused.shortfalls(usable: all(paused))[0].contains("only made crash-consistent"))
        let hooked = group(.application, [machine("g1", .application), resource(.hostFileSystem, "fs", ["a"])])
        #expect(hooked.level(proven: all(hooked)) == .application)
        #expect(hooked.level(proven: all(hooked).filter { $0.resource == "g1" }) == .crash)
        // What an agent inside of it says decides about a machine that says nothing itself.
        let inside = group(.application, [machine("g1", nil), resource(.application, "db", ["a"])])
        #expect(inside.level(proven: all(inside)) == .application)
        #expect(inside.level(proven: all(inside).filter { $0.resource == "db" }) == .crash)
    }

    @Test("a host's file system comes to rest after the machines on it, and is released before them")
    func order() {
        let layers = QuiesceLayer.allCases
        #expect(layers == layers.sorted())
        #expect(layers.last == .hostFileSystem)
        let files = group(.fileSystem, [machine("g1", .fileSystem), resource(.hostFileSystem, "fs", ["a"])])
        #expect(files.members.map(\.resource.id) == ["g1", "fs"])
    }

    @Test("a volume on which nobody could look is crash, whatever else is proven")
    func unknown() {
        let silent = group(
            .application, [resource(.application, "db", ["a"]), resource(.fileSystem, "fs", ["a"])],
            unknown: ["a": "agent other does not answer"])
        #expect(silent.level(proven: all(silent)) == .crash)
        #expect(silent.shortfalls(usable: all(silent))[0].contains("agent other"))
    }

    @Test(
        "what lies also on volumes outside of the group proves nothing, whoever held it, and the shortfall names them")
    func outside() {
        let spread = group(.application, [resource(.application, "db", ["a", "z"])])
        #expect(spread.warnings.count == 1)
        #expect(spread.warnings[0].contains("z"))
        #expect(spread.level(proven: all(spread)) == .crash)
        #expect(spread.shortfalls(usable: all(spread)).first?.contains("add it to the group") == true)
        let files = group(.fileSystem, [resource(.fileSystem, "fs", ["a", "z"])])
        #expect(files.level(proven: all(files)) == .crash)
        let database = group(
            .application, [resource(.application, "db", ["a", "z"]), resource(.fileSystem, "fs", ["a"])])
        #expect(database.level(proven: all(database)) == .fileSystem)
        #expect(group(.application, [resource(.application, "db", ["z"])]).members.isEmpty)
    }

    @Test("an error of a preflight blocks the resource it names, or all of its plug-in; a warning blocks nothing")
    func preflight() {
        let both = group(
            .application, [resource(.application, "db", ["a"]), resource(.fileSystem, "fs", ["a"])])
        let findings = [
            Finding(severity: .error, plugin: "filesystem", resource: nil, message: "it holds the agent"),
            Finding(severity: .warning, plugin: "database", resource: "db", message: "a backup is running"),
        ]
        let verdict = PreflightVerdict(group: both, findings: ["host": findings], unreachable: [:], history: [:])
        #expect(verdict.blocked.keys.map(\.resource) == ["fs"])
        #expect(verdict.remarks.count == 2)
        let lost = PreflightVerdict(group: both, findings: [:], unreachable: ["host": "gone"], history: [:])
        #expect(lost.blocked.count == 2)
    }

    @Test("the estimate adds the slowest of each layer")
    func estimate() {
        let both = group(
            .application,
            [
                resource(.application, "db1", ["a"]), resource(.application, "db2", ["a"]),
                resource(.fileSystem, "fs", ["a"]),
            ])
        let history = ["host/database/db1": 1.0, "host/database/db2": 3.0, "host/filesystem/fs": 0.5]
        let estimate = QuietEstimate(members: both.members, history: history)
        #expect(estimate.isFromHistory)
        #expect(abs(estimate.longestSeconds - 3.6) < 1e-9)
        #expect(QuietEstimate(members: [], history: [:]).longestSeconds == 0)
        #expect(!QuietEstimate(members: both.members, history: [:]).isFromHistory)
    }
}
