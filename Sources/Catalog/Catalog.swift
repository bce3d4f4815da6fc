import Foundation
import GRDB

/// The control plane's records in SQLite: targets and who may reach them, agents, jobs, the saga's journal.
///
/// What a volume or a snapshot *is*, the pool knows; the catalog only refers to them by id. Every write is durable
/// when its call returns (WAL with `synchronous=FULL`). Methods may be called from any task; SQLite's work runs on a
/// queue of its own.
public final class Catalog: Sendable {
    private let queue: DatabaseQueue

    /// Opens, or creates, the catalog at `path` and brings it to the newest schema.
    ///
    /// - Throws: ``CatalogError`` when the file is no catalog, is damaged, or was written by a newer release.
    public convenience init(path: String) throws(CatalogError) {
        try self.init(path: path, migrations: Catalog.migrations)
    }

    init(path: String, migrations: [CatalogMigration]) throws(CatalogError) {
        do {
            var configuration = Configuration()
            configuration.label = "io.stillpoint.catalog"
            configuration.busyMode = .timeout(5)
            configuration.prepareDatabase { database in
                try database.execute(sql: "PRAGMA journal_mode = WAL")
                try database.execute(sql: "PRAGMA synchronous = FULL")
                try database.execute(sql: "PRAGMA foreign_keys = ON")
            }
            queue = try DatabaseQueue(path: path, configuration: configuration)
            try Catalog.migrate(queue, migrations)
        } catch let error as CatalogError {
            throw error
        } catch {
            throw CatalogError("cannot open the catalog \(path): \(error)")
        }
    }

    /// The order is the order of application; an entry that has been released is never changed. A family of tables
    /// is one file with its array of migrations, its records and the methods on them.
    static var migrations: [CatalogMigration] {
        targetMigrations + agentMigrations + jobMigrations + sagaMigrations + reservationMigrations + portalMigrations
    }

    private static func migrate(_ queue: DatabaseQueue, _ migrations: [CatalogMigration]) throws {
        var migrator = DatabaseMigrator()
        for migration in migrations {
            migrator.registerMigration(migration.name, migrate: migration.apply)
        }
        if try queue.read(migrator.hasBeenSuperseded) {
            throw CatalogError("the catalog was written by a newer release of Stillpoint; use that release")
        }
        try migrator.migrate(queue)
    }

    /// Names of the migrations that the file has.
    public func appliedMigrations() async throws(CatalogError) -> [String] {
        try await read { database in
            try String.fetchAll(database, sql: "SELECT identifier FROM grdb_migrations ORDER BY rowid")
        }
    }

    /// Runs `body` in a transaction, which is durable when this returns, and which changed nothing when it throws.
    func write<Value: Sendable>(
        _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(CatalogError) -> Value {
        do {
            return try await queue.write(body)
        } catch let error as CatalogError {
            throw error
        } catch {
            throw CatalogError("the catalog refused a change: \(error)")
        }
    }

    /// ``write(_:)`` for threads that may wait.
    func writeBlocking<Value>(_ body: (Database) throws -> Value) throws(CatalogError) -> Value {
        do {
            return try queue.write(body)
        } catch let error as CatalogError {
            throw error
        } catch {
            throw CatalogError("the catalog refused a change: \(error)")
        }
    }

    func read<Value: Sendable>(
        _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(CatalogError) -> Value {
        do {
            return try await queue.read(body)
        } catch let error as CatalogError {
            throw error
        } catch {
            throw CatalogError("the catalog cannot be read: \(error)")
        }
    }

    /// Checkpoints the log and closes the file.
    public func close() throws(CatalogError) {
        do {
            try queue.close()
        } catch {
            throw CatalogError("cannot close the catalog: \(error)")
        }
    }
}

/// One step of the schema. Each family of tables contributes an array of them to ``Catalog/migrations``.
struct CatalogMigration: Sendable {
    /// Unique and for ever; `family.number.what`.
    var name: String
    var apply: @Sendable (Database) throws -> Void
}

/// Why the catalog failed, for people.
public struct CatalogError: Error, Equatable, CustomStringConvertible {
    public var description: String

    init(_ description: String) { self.description = description }
}

/// Dates are stored as whole milliseconds since 1970, in UTC: comparable, and the API's precision.
extension Date {
    var catalogMilliseconds: Int64 { Int64((timeIntervalSince1970 * 1000).rounded()) }

    init(catalogMilliseconds: Int64) { self.init(timeIntervalSince1970: Double(catalogMilliseconds) / 1000) }
}
