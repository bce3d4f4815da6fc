import Foundation
import GRDB
import Testing

@testable import Catalog

@Suite("Catalog")
struct CatalogTests {
    private let path: String

    init() throws {
        let directory = FileManager.default.temporaryDirectory.appending(path: "sp-catalog-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        path = directory.appending(path: "catalog.sqlite").path
    }

    private func cleanUp() {
        try? FileManager.default.removeItem(at: URL(fileURLWithPath: path).deletingLastPathComponent())
    }

    // MARK: Schema

    @Test("a new catalog has every migration, in order, and opening it again changes nothing")
    func migrationsAreApplied() async throws {
        defer { cleanUp() }
        let names = Catalog.migrations.map(\.name)
        #expect(Set(names).count == names.count)
        for _ in 0..<2 {
            let catalog = try Catalog(path: path)
            #expect(try await catalog.appliedMigrations() == names)
            try catalog.close()
        }
    }

    @Test("a catalog of an older release is brought up to date and keeps its records")
    func olderCatalogIsMigrated() async throws {
        defer { cleanUp() }
        let old = try Catalog(path: path, migrations: Catalog.targetMigrations)
        try await old.insertTarget(Self.target("iqn.2026-11.io.stillpoint:a"))
        try old.close()
        let catalog = try Catalog(path: path)
        #expect(try await catalog.targets().map(\.iqn) == ["iqn.2026-11.io.stillpoint:a"])
        #expect(try await catalog.agents().isEmpty)
        try catalog.close()
    }

    @Test("a catalog of a newer release is refused and left alone")
    func newerCatalogIsRefused() async throws {
        defer { cleanUp() }
        let next = CatalogMigration(name: "next.1.create") { database in
            try database.execute(sql: "CREATE TABLE next (id INTEGER PRIMARY KEY) STRICT")
        }
        let newer = try Catalog(path: path, migrations: Catalog.migrations + [next])
        try newer.close()
        #expect(throws: CatalogError.self) { try Catalog(path: path) }
        let again = try Catalog(path: path, migrations: Catalog.migrations + [next])
        #expect(try await again.appliedMigrations().last == "next.1.create")
        try again.close()
    }

    @Test("a migration that fails leaves the catalog as it was")
    func failedMigrationChangesNothing() async throws {
        defer { cleanUp() }
        try Catalog(path: path).close()
        let broken = CatalogMigration(name: "broken.1") { database in
            try database.execute(sql: "CREATE TABLE half (id INTEGER) STRICT")
            throw CatalogError("broken")
        }
        #expect(throws: CatalogError.self) { try Catalog(path: path, migrations: Catalog.migrations + [broken]) }
        let catalog = try Catalog(path: path)
        #expect(try await catalog.appliedMigrations() == Catalog.migrations.map(\.name))
        try catalog.close()
    }

    @Test("a file that is no catalog is refused with its name")
    func garbageIsRefused() throws {
        defer { cleanUp() }
        try Data(repeating: 0x5A, count: 8192).write(to: URL(fileURLWithPath: path))
        let error = #expect(throws: CatalogError.self) { try Catalog(path: path) }
        #expect(error?.description.contains(path) == true)
    }

    // MARK: Targets

    private static func target(_ iqn: String) -> ExportedTarget {
        ExportedTarget(
            iqn: iqn, purpose: .volume, createdAt: Date(timeIntervalSince1970: 1_800_000_000.123),
            luns: [ExportedLUN(lun: 0, volumeID: "v")],
            access: [AccessRule(initiator: "any", chapUser: "u", sealedSecret: Data([1, 2, 3]))])
    }

    @Test("a target comes back as it was stored")
    func targetsRoundTrip() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        let target = Self.target("iqn.2026-11.io.stillpoint:a")
        try await catalog.insertTarget(target)
        #expect(try await catalog.targets() == [target])
        try await catalog.setAccess(AccessRule(initiator: "any"), iqn: target.iqn)
        #expect(try await catalog.targets()[0].access == [AccessRule(initiator: "any")])
        try catalog.close()
    }

    @Test("a target's name is taken once, and a refused one leaves no LUNs")
    func targetNamesAreUnique() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        var target = Self.target("iqn.2026-11.io.stillpoint:a")
        try await catalog.insertTarget(target)
        target.luns = [ExportedLUN(lun: 1, volumeID: "w")]
        let second = target
        await #expect(throws: CatalogError.self) { try await catalog.insertTarget(second) }
        #expect(try await catalog.targets()[0].luns == [ExportedLUN(lun: 0, volumeID: "v")])
        try catalog.close()
    }

    @Test("deleting a target deletes its LUNs and rules")
    func deletingATargetCascades() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        try await catalog.insertTarget(Self.target("iqn.2026-11.io.stillpoint:a"))
        try await catalog.deleteTarget(iqn: "iqn.2026-11.io.stillpoint:a")
        let rows = try await catalog.read { database in
            try Int.fetchOne(database, sql: "SELECT (SELECT count(*) FROM lun) + (SELECT count(*) FROM access)")
        }
        #expect(rows == 0)
        try catalog.close()
    }

    // MARK: Agents

    @Test("of many who use one token at once, one is accepted")
    func tokensWorkOnce() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        let now = Date.now
        try await catalog.insertAgentToken(
            AgentTokenRecord(hash: "h", agentName: "db1", expiresAt: now.addingTimeInterval(60)), now: now)
        let outcomes = try await withThrowingTaskGroup(of: TokenRedemption.self) { group in
            for _ in 0..<16 { group.addTask { try await catalog.redeemAgentToken(hash: "h", now: now) } }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(outcomes.count { $0 == .accepted(agentName: "db1") } == 1)
        #expect(outcomes.count { $0 == .used } == 15)
        try catalog.close()
    }

    @Test("a token is refused from the moment it expires")
    func tokensExpire() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        let now = Date.now
        try await catalog.insertAgentToken(
            AgentTokenRecord(hash: "h", agentName: "db1", expiresAt: now.addingTimeInterval(60)), now: now)
        let late = now.addingTimeInterval(60)
        #expect(try await catalog.redeemAgentToken(hash: "h", now: late) == .expired)
        #expect(try await catalog.redeemAgentToken(hash: "other", now: now) == .unknown)
        #expect(try await catalog.redeemAgentToken(hash: "h", now: now) == .accepted(agentName: "db1"))
        try catalog.close()
    }

    @Test("removing an agent makes its unused tokens worthless")
    func removedAgentsTokensAreGone() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        let now = Date.now
        try await catalog.setAgent(
            AgentRecord(
                name: "db1", address: "h:1", version: "1", enrolledAt: now, lastSeenAt: nil,
                certificateFingerprint: "f", certificateExpiresAt: now))
        try await catalog.insertAgentToken(
            AgentTokenRecord(hash: "h", agentName: "db1", expiresAt: now.addingTimeInterval(60)), now: now)
        #expect(try await catalog.deleteAgent(name: "db1"))
        #expect(try await catalog.redeemAgentToken(hash: "h", now: now) == .unknown)
        #expect(try await !catalog.deleteAgent(name: "db1"))
        try catalog.close()
    }

    // MARK: Jobs

    @Test("a job that has ended is not revived by a late step")
    func endedJobsStayEnded() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        let created = Date.now
        func record(_ text: String, ended: Bool) -> JobRecord {
            JobRecord(id: "j", isEnded: ended, createdAt: created, document: Data(text.utf8))
        }
        try await catalog.setJob(record("running", ended: false))
        #expect(try await catalog.unendedJobs().map(\.id) == ["j"])
        try await catalog.setJob(record("ended", ended: true))
        try await catalog.setJob(record("late step", ended: false))
        #expect(try await catalog.job(id: "j")?.document == Data("ended".utf8))
        #expect(try await catalog.unendedJobs().isEmpty)
        try catalog.close()
    }

    @Test("the oldest ended jobs are forgotten, running ones never")
    func jobsArePruned() async throws {
        defer { cleanUp() }
        let catalog = try Catalog(path: path)
        for index in 0..<10 {
            try await catalog.setJob(
                JobRecord(
                    id: "j\(index)", isEnded: index != 0, createdAt: Date(timeIntervalSince1970: Double(index)),
                    document: Data()))
        }
        try await catalog.pruneJobs(keep: 3)
        #expect(try await catalog.jobs(limit: 100).map(\.id) == ["j9", "j8", "j7", "j0"])
        try catalog.close()
    }
}
