public import Foundation
import GRDB

/// One record of a saga's journal. What it means, the node knows.
public struct SagaRecordRow: Sendable, Equatable {
    public var sagaID: String
    /// `snapshot` or `revert`.
    public var kind: String
    public var jobID: String
    /// From 0, without gaps.
    public var sequence: Int
    public var step: String
    public var compensation: String
    /// JSON.
    public var body: String
    public var writtenAt: Date

    public init(
        sagaID: String, kind: String, jobID: String, sequence: Int, step: String, compensation: String, body: String,
        writtenAt: Date
    ) {
        self.sagaID = sagaID
        self.kind = kind
        self.jobID = jobID
        self.sequence = sequence
        self.step = step
        self.compensation = compensation
        self.body = body
        self.writtenAt = writtenAt
    }
}

extension Catalog {
    static let sagaMigrations = [
        CatalogMigration(name: "saga.1.create") { database in
            try database.execute(
                sql: """
                    CREATE TABLE sagaRecord (
                        sagaID TEXT NOT NULL,
                        sequence INTEGER NOT NULL,
                        kind TEXT NOT NULL,
                        jobID TEXT NOT NULL,
                        step TEXT NOT NULL,
                        compensation TEXT NOT NULL,
                        body TEXT NOT NULL,
                        writtenAt INTEGER NOT NULL,
                        PRIMARY KEY (sagaID, sequence)
                    ) STRICT;
                    CREATE TABLE quiesceHistory (
                        member TEXT PRIMARY KEY NOT NULL,
                        seconds REAL NOT NULL
                    ) STRICT;
                    CREATE TABLE agentVolume (
                        agent TEXT NOT NULL,
                        volume TEXT NOT NULL,
                        PRIMARY KEY (agent, volume)
                    ) STRICT;
                    CREATE TABLE agentAnswer (
                        agent TEXT PRIMARY KEY NOT NULL
                    ) STRICT;
                    """)
        },
        CatalogMigration(name: "saga.2.unfinishedRestore") { database in
            try database.execute(
                sql: """
                    CREATE TABLE unfinishedRestore (
                        restoreID TEXT NOT NULL,
                        agent TEXT NOT NULL,
                        request TEXT NOT NULL,
                        since INTEGER NOT NULL,
                        PRIMARY KEY (restoreID, agent)
                    ) STRICT;
                    """)
        },
        CatalogMigration(name: "saga.3.agentMachine") { database in
            try database.execute(
                sql: "CREATE TABLE agentMachine (agent TEXT PRIMARY KEY, machine TEXT NOT NULL) STRICT;")
        },
    ]

    /// Adds a record; durable on return. A second record with the same number is refused.
    public func appendSagaRecord(_ record: SagaRecordRow) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO sagaRecord (sagaID, sequence, kind, jobID, step, compensation, body, writtenAt)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    record.sagaID, record.sequence, record.kind, record.jobID, record.step, record.compensation,
                    record.body, record.writtenAt.catalogMilliseconds,
                ])
        }
    }

    /// The records of all sagas that were not forgotten, each saga's in order.
    public func sagaRecords() async throws(CatalogError) -> [SagaRecordRow] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT * FROM sagaRecord ORDER BY sagaID, sequence").map { row in
                SagaRecordRow(
                    sagaID: row["sagaID"], kind: row["kind"], jobID: row["jobID"], sequence: row["sequence"],
                    step: row["step"], compensation: row["compensation"], body: row["body"],
                    writtenAt: Date(catalogMilliseconds: row["writtenAt"]))
            }
        }
    }

    public func forgetSaga(id: String) async throws(CatalogError) { try await forgetSagas(ids: [id]) }

    /// In one transaction.
    public func forgetSagas(ids: [String]) async throws(CatalogError) {
        try await write { database in
            for id in ids {
                try database.execute(sql: "DELETE FROM sagaRecord WHERE sagaID = ?", arguments: [id])
            }
        }
    }

    /// How long members took to come to rest, in seconds, smoothed over the last few times.
    public func quiesceHistory() async throws(CatalogError) -> [String: Double] {
        try await read { database in
            let rows = try Row.fetchAll(database, sql: "SELECT member, seconds FROM quiesceHistory")
            return Dictionary(uniqueKeysWithValues: rows.map { ($0["member"], $0["seconds"]) })
        }
    }

    public func addQuiesceHistory(_ seconds: [String: Double]) async throws(CatalogError) {
        try await write { database in
            for (member, value) in seconds {
                try database.execute(
                    sql: """
                        INSERT INTO quiesceHistory (member, seconds) VALUES (?, ?)
                        ON CONFLICT (member) DO UPDATE SET seconds = (seconds * 2 + excluded.seconds) / 3
                        """,
                    arguments: [member, value])
            }
        }
    }

    /// Names of the volumes that an agent had when it last answered; nil when it never did.
    public func knownVolumes(ofAgent agent: String) async throws(CatalogError) -> Set<String>? {
        try await read { database in
            let hasAnswered = try Bool.fetchOne(
                database, sql: "SELECT EXISTS (SELECT 1 FROM agentAnswer WHERE agent = ?)", arguments: [agent])
            guard hasAnswered == true else { return nil }
            return Set(
                try String.fetchAll(
                    database, sql: "SELECT volume FROM agentVolume WHERE agent = ?", arguments: [agent]))
        }
    }

    /// UUID of the machine that an agent runs on; nil where it never told.
    public func machine(ofAgent agent: String) async throws(CatalogError) -> String? {
        try await read { database in
            try String.fetchOne(
                database, sql: "SELECT machine FROM agentMachine WHERE agent = ?", arguments: [agent])
        }
    }

    public func setMachine(_ machine: String, ofAgent agent: String) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: "INSERT OR REPLACE INTO agentMachine (agent, machine) VALUES (?, ?)", arguments: [agent, machine])
        }
    }

    public func setKnownVolumes(_ volumes: Set<String>, ofAgent agent: String) async throws(CatalogError) {
        try await write { database in
            try database.execute(sql: "INSERT OR IGNORE INTO agentAnswer (agent) VALUES (?)", arguments: [agent])
            try database.execute(sql: "DELETE FROM agentVolume WHERE agent = ?", arguments: [agent])
            for volume in volumes {
                try database.execute(
                    sql: "INSERT INTO agentVolume (agent, volume) VALUES (?, ?)", arguments: [agent, volume])
            }
        }
    }
}
