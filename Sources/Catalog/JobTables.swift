public import Foundation
import GRDB

/// A job as it is kept: what queries need in columns, the rest as the API's JSON.
public struct JobRecord: Sendable, Equatable {
    public var id: String
    public var isEnded: Bool
    public var createdAt: Date
    /// `JobInfo` in JSON.
    public var document: Data

    public init(id: String, isEnded: Bool, createdAt: Date, document: Data) {
        self.id = id
        self.isEnded = isEnded
        self.createdAt = createdAt
        self.document = document
    }
}

extension Catalog {
    static let jobMigrations = [
        CatalogMigration(name: "jobs.1.create") { database in
            try database.execute(
                sql: """
                    CREATE TABLE job (
                        id TEXT PRIMARY KEY NOT NULL,
                        isEnded INTEGER NOT NULL,
                        createdAt INTEGER NOT NULL,
                        document BLOB NOT NULL
                    ) STRICT;
                    CREATE INDEX jobByTime ON job (createdAt);
                    """)
        }
    ]

    /// Adds a job or changes it. A job that has ended stays as it is, so that a late step cannot revive it.
    public func setJob(_ job: JobRecord) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO job (id, isEnded, createdAt, document) VALUES (?, ?, ?, ?)
                    ON CONFLICT (id) DO UPDATE SET isEnded = excluded.isEnded, document = excluded.document
                    WHERE NOT job.isEnded
                    """,
                arguments: [job.id, job.isEnded, job.createdAt.catalogMilliseconds, job.document])
        }
    }

    public func job(id: String) async throws(CatalogError) -> JobRecord? {
        try await read { database in
            try Row.fetchOne(database, sql: "SELECT * FROM job WHERE id = ?", arguments: [id])
                .map(JobRecord.init(row:))
        }
    }

    /// The newest first, at most `limit`.
    public func jobs(limit: Int) async throws(CatalogError) -> [JobRecord] {
        try await read { database in
            try Row.fetchAll(
                database, sql: "SELECT * FROM job ORDER BY createdAt DESC, rowid DESC LIMIT ?", arguments: [limit]
            ).map(JobRecord.init(row:))
        }
    }

    public func unendedJobs() async throws(CatalogError) -> [JobRecord] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT * FROM job WHERE NOT isEnded ORDER BY createdAt")
                .map(JobRecord.init(row:))
        }
    }

    /// Forgets the oldest ended jobs beyond `keep`.
    public func pruneJobs(keep: Int) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    DELETE FROM job WHERE isEnded AND (createdAt, rowid) <=
                        (SELECT createdAt, rowid FROM job ORDER BY createdAt DESC, rowid DESC LIMIT 1 OFFSET ?)
                    """,
                arguments: [keep])
        }
    }
}

extension JobRecord {
    fileprivate init(row: Row) {
        self.init(
            id: row["id"], isEnded: row["isEnded"], createdAt: Date(catalogMilliseconds: row["createdAt"]),
            document: row["document"])
    }
}
