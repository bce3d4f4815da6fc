public import Foundation
import GRDB

/// An iSCSI target that the node exports.
public struct ExportedTarget: Sendable, Equatable {
    public enum Purpose: String, Sendable {
        /// Made with a volume or a clone; its LUNs are writable volumes.
        case volume
        /// Made for one initiator to read one snapshot.
        case snapshotExport
    }

    public var iqn: String
    public var purpose: Purpose
    public var createdAt: Date
    public var luns: [ExportedLUN]
    public var access: [AccessRule]

    public init(
        iqn: String, purpose: Purpose, createdAt: Date, luns: [ExportedLUN] = [], access: [AccessRule] = []
    ) {
        self.iqn = iqn
        self.purpose = purpose
        self.createdAt = createdAt
        self.luns = luns
        self.access = access
    }
}

/// What lies behind a LUN. The ids are the pool's.
public struct ExportedLUN: Sendable, Equatable {
    /// 0 to 16383.
    public var lun: Int
    public var volumeID: String
    /// Set for a snapshot's member, which is read-only.
    public var snapshotID: String?
    /// The NAA identifier of a snapshot's member, 32 hexadecimal digits; a volume's is in the pool.
    public var naa: String?

    public init(lun: Int, volumeID: String, snapshotID: String? = nil, naa: String? = nil) {
        self.lun = lun
        self.volumeID = volumeID
        self.snapshotID = snapshotID
        self.naa = naa
    }
}

/// Who may log in. Secrets are sealed by the node before they come here.
public struct AccessRule: Sendable, Equatable {
    /// An initiator name, or `any`.
    public var initiator: String
    public var chapUser: String?
    public var sealedSecret: Data?
    public var mutualUser: String?
    public var sealedMutualSecret: Data?

    public init(
        initiator: String, chapUser: String? = nil, sealedSecret: Data? = nil, mutualUser: String? = nil,
        sealedMutualSecret: Data? = nil
    ) {
        self.initiator = initiator
        self.chapUser = chapUser
        self.sealedSecret = sealedSecret
        self.mutualUser = mutualUser
        self.sealedMutualSecret = sealedMutualSecret
    }
}

extension Catalog {
    static let targetMigrations = [
        CatalogMigration(name: "targets.1.create") { database in
            try database.execute(
                sql: """
                    CREATE TABLE target (
                        iqn TEXT PRIMARY KEY NOT NULL,
                        purpose TEXT NOT NULL,
                        createdAt INTEGER NOT NULL
                    ) STRICT;
                    CREATE TABLE lun (
                        iqn TEXT NOT NULL REFERENCES target (iqn) ON DELETE CASCADE,
                        lun INTEGER NOT NULL CHECK (lun BETWEEN 0 AND 16383),
                        volumeID TEXT NOT NULL,
                        snapshotID TEXT,
                        naa TEXT,
                        PRIMARY KEY (iqn, lun)
                    ) STRICT;
                    CREATE INDEX lunByVolume ON lun (volumeID);
                    CREATE TABLE access (
                        iqn TEXT NOT NULL REFERENCES target (iqn) ON DELETE CASCADE,
                        initiator TEXT NOT NULL,
                        chapUser TEXT,
                        sealedSecret BLOB,
                        mutualUser TEXT,
                        sealedMutualSecret BLOB,
                        PRIMARY KEY (iqn, initiator)
                    ) STRICT;
                    """)
        },
        CatalogMigration(name: "targets.2.discovery") { database in
            try database.execute(
                sql: """
                    CREATE TABLE discoveryAccess (
                        initiator TEXT PRIMARY KEY NOT NULL,
                        chapUser TEXT,
                        sealedSecret BLOB,
                        mutualUser TEXT,
                        sealedMutualSecret BLOB
                    ) STRICT;
                    """)
        },
    ]

    /// Who may discover targets; nobody listed means anybody.
    public func discoveryAccess() async throws(CatalogError) -> [AccessRule] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT * FROM discoveryAccess ORDER BY initiator")
                .map(AccessRule.init(row:))
        }
    }

    /// Adds a rule, or replaces the one for the same initiator.
    public func setDiscoveryAccess(_ rule: AccessRule) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT OR REPLACE INTO discoveryAccess
                        (initiator, chapUser, sealedSecret, mutualUser, sealedMutualSecret)
                    VALUES (?, ?, ?, ?, ?)
                    """,
                arguments: [
                    rule.initiator, rule.chapUser, rule.sealedSecret, rule.mutualUser, rule.sealedMutualSecret,
                ])
        }
    }

    /// - Returns: false where there was no such rule.
    public func deleteDiscoveryAccess(initiator: String) async throws(CatalogError) -> Bool {
        try await write { database in
            try database.execute(sql: "DELETE FROM discoveryAccess WHERE initiator = ?", arguments: [initiator])
            return database.changesCount > 0
        }
    }

    /// All targets, by name, with their LUNs and rules.
    public func targets() async throws(CatalogError) -> [ExportedTarget] {
        try await read { database in
            let luns = try Dictionary(
                grouping: Row.fetchAll(database, sql: "SELECT * FROM lun ORDER BY iqn, lun")
            ) { $0["iqn"] as String }
            let access = try Dictionary(
                grouping: Row.fetchAll(database, sql: "SELECT * FROM access ORDER BY iqn, initiator")
            ) { $0["iqn"] as String }
            return try Row.fetchAll(database, sql: "SELECT * FROM target ORDER BY iqn").map { row in
                try ExportedTarget(row, luns: luns[row["iqn"]] ?? [], access: access[row["iqn"]] ?? [])
            }
        }
    }

    /// - Throws: ``CatalogError`` also where the name is taken.
    public func insertTarget(_ target: ExportedTarget) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: "INSERT INTO target (iqn, purpose, createdAt) VALUES (?, ?, ?)",
                arguments: [target.iqn, target.purpose.rawValue, target.createdAt.catalogMilliseconds])
            for lun in target.luns { try lun.insert(into: database, iqn: target.iqn) }
            for rule in target.access { try rule.upsert(into: database, iqn: target.iqn) }
        }
    }

    /// Removes a target with its LUNs and rules; nothing happens where there is none.
    public func deleteTarget(iqn: String) async throws(CatalogError) {
        try await write { database in
            try database.execute(sql: "DELETE FROM target WHERE iqn = ?", arguments: [iqn])
        }
    }

    public func deleteLUN(iqn: String, lun: Int) async throws(CatalogError) {
        try await write { database in
            try database.execute(sql: "DELETE FROM lun WHERE iqn = ? AND lun = ?", arguments: [iqn, lun])
        }
    }

    /// Adds a rule, or replaces the one for the same initiator.
    public func setAccess(_ rule: AccessRule, iqn: String) async throws(CatalogError) {
        try await write { database in try rule.upsert(into: database, iqn: iqn) }
    }

    /// - Returns: false where there was no such rule.
    public func deleteAccess(iqn: String, initiator: String) async throws(CatalogError) -> Bool {
        try await write { database in
            try database.execute(
                sql: "DELETE FROM access WHERE iqn = ? AND initiator = ?", arguments: [iqn, initiator])
            return database.changesCount > 0
        }
    }
}

extension ExportedTarget {
    fileprivate init(_ row: Row, luns: [Row], access: [Row]) throws {
        guard let purpose = Purpose(rawValue: row["purpose"]) else {
            throw CatalogError("the target \(row["iqn"] as String) has an unknown purpose")
        }
        self.init(
            iqn: row["iqn"], purpose: purpose, createdAt: Date(catalogMilliseconds: row["createdAt"]),
            luns: luns.map(ExportedLUN.init(row:)), access: access.map(AccessRule.init(row:)))
    }
}

extension ExportedLUN {
    fileprivate init(row: Row) {
        self.init(lun: row["lun"], volumeID: row["volumeID"], snapshotID: row["snapshotID"], naa: row["naa"])
    }

    fileprivate func insert(into database: Database, iqn: String) throws {
        try database.execute(
            sql: "INSERT INTO lun (iqn, lun, volumeID, snapshotID, naa) VALUES (?, ?, ?, ?, ?)",
            arguments: [iqn, lun, volumeID, snapshotID, naa])
    }
}

extension AccessRule {
    fileprivate init(row: Row) {
        self.init(
            initiator: row["initiator"], chapUser: row["chapUser"], sealedSecret: row["sealedSecret"],
            mutualUser: row["mutualUser"], sealedMutualSecret: row["sealedMutualSecret"])
    }

    fileprivate func upsert(into database: Database, iqn: String) throws {
        try database.execute(
            sql: """
                INSERT OR REPLACE INTO access
                    (iqn, initiator, chapUser, sealedSecret, mutualUser, sealedMutualSecret)
                VALUES (?, ?, ?, ?, ?, ?)
                """,
            arguments: [iqn, initiator, chapUser, sealedSecret, mutualUser, sealedMutualSecret])
    }
}
