public import Foundation
import GRDB

/// An enrolled agent.
public struct AgentRecord: Sendable, Equatable {
    public var name: String
    /// `HOST:PORT`.
    public var address: String
    public var version: String
    public var enrolledAt: Date
    public var lastSeenAt: Date?
    /// SHA-256 of its certificate (DER), hexadecimal.
    public var certificateFingerprint: String
    public var certificateExpiresAt: Date

    public init(
        name: String, address: String, version: String, enrolledAt: Date, lastSeenAt: Date?,
        certificateFingerprint: String, certificateExpiresAt: Date
    ) {
        self.name = name
        self.address = address
        self.version = version
        self.enrolledAt = enrolledAt
        self.lastSeenAt = lastSeenAt
        self.certificateFingerprint = certificateFingerprint
        self.certificateExpiresAt = certificateExpiresAt
    }
}

/// A one-time token; only its hash is kept.
public struct AgentTokenRecord: Sendable, Equatable {
    /// SHA-256 of the secret, hexadecimal.
    public var hash: String
    public var agentName: String
    public var expiresAt: Date
    public var usedAt: Date?

    public init(hash: String, agentName: String, expiresAt: Date, usedAt: Date? = nil) {
        self.hash = hash
        self.agentName = agentName
        self.expiresAt = expiresAt
        self.usedAt = usedAt
    }
}

/// What became of an attempt to use a token.
public enum TokenRedemption: Sendable, Equatable {
    /// It was good, and is used up now.
    case accepted(agentName: String)
    case unknown
    case used
    case expired
}

extension Catalog {
    static let agentMigrations = [
        CatalogMigration(name: "agents.1.create") { database in
            try database.execute(
                sql: """
                    CREATE TABLE agent (
                        name TEXT PRIMARY KEY NOT NULL,
                        address TEXT NOT NULL,
                        version TEXT NOT NULL,
                        enrolledAt INTEGER NOT NULL,
                        lastSeenAt INTEGER,
                        certificateFingerprint TEXT NOT NULL,
                        certificateExpiresAt INTEGER NOT NULL
                    ) STRICT;
                    CREATE TABLE agentToken (
                        hash TEXT PRIMARY KEY NOT NULL,
                        agentName TEXT NOT NULL,
                        expiresAt INTEGER NOT NULL,
                        usedAt INTEGER
                    ) STRICT;
                    """)
        }
    ]

    public func agents() async throws(CatalogError) -> [AgentRecord] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT * FROM agent ORDER BY name").map(AgentRecord.init(row:))
        }
    }

    public func agent(named name: String) async throws(CatalogError) -> AgentRecord? {
        try await read { database in
            try Row.fetchOne(database, sql: "SELECT * FROM agent WHERE name = ?", arguments: [name])
                .map(AgentRecord.init(row:))
        }
    }

    /// Adds an agent, or replaces the one of the same name (it was enrolled again).
    public func setAgent(_ agent: AgentRecord) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT OR REPLACE INTO agent
                        (name, address, version, enrolledAt, lastSeenAt, certificateFingerprint, certificateExpiresAt)
                    VALUES (?, ?, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    agent.name, agent.address, agent.version, agent.enrolledAt.catalogMilliseconds,
                    agent.lastSeenAt?.catalogMilliseconds, agent.certificateFingerprint,
                    agent.certificateExpiresAt.catalogMilliseconds,
                ])
        }
    }

    /// Notes that the agent answered; nothing happens where it was removed meanwhile.
    public func noteAgentSeen(name: String, at date: Date, version: String) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: "UPDATE agent SET lastSeenAt = ?, version = ? WHERE name = ?",
                arguments: [date.catalogMilliseconds, version, name])
        }
    }

    /// Notes the certificate that an agent shows now; nothing happens where it was removed meanwhile.
    public func noteAgentCertificate(
        name: String, fingerprint: String, expiresAt: Date
    ) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: "UPDATE agent SET certificateFingerprint = ?, certificateExpiresAt = ? WHERE name = ?",
                arguments: [fingerprint, expiresAt.catalogMilliseconds, name])
        }
    }

    /// Removes an agent and every token for its name.
    ///
    /// - Returns: false where there was no such agent.
    public func deleteAgent(name: String) async throws(CatalogError) -> Bool {
        try await write { database in
            try database.execute(sql: "DELETE FROM agentToken WHERE agentName = ?", arguments: [name])
            try database.execute(sql: "DELETE FROM agent WHERE name = ?", arguments: [name])
            return database.changesCount > 0
        }
    }

    /// Keeps a token, and forgets those that ended more than a day before `now`.
    public func insertAgentToken(_ token: AgentTokenRecord, now: Date) async throws(CatalogError) {
        let oldest = now.addingTimeInterval(-86_400).catalogMilliseconds
        try await write { database in
            try database.execute(sql: "DELETE FROM agentToken WHERE expiresAt < ?", arguments: [oldest])
            try database.execute(
                sql: "INSERT INTO agentToken (hash, agentName, expiresAt, usedAt) VALUES (?, ?, ?, NULL)",
                arguments: [token.hash, token.agentName, token.expiresAt.catalogMilliseconds])
        }
    }

    /// Uses a token up, in one transaction: of two callers with the same token one is accepted.
    public func redeemAgentToken(hash: String, now: Date) async throws(CatalogError) -> TokenRedemption {
        try await write { database in
            guard
                let row = try Row.fetchOne(
                    database, sql: "SELECT * FROM agentToken WHERE hash = ?", arguments: [hash])
            else { return .unknown }
            if (row["usedAt"] as Int64?) != nil { return .used }
            if (row["expiresAt"] as Int64) <= now.catalogMilliseconds { return .expired }
            try database.execute(
                sql: "UPDATE agentToken SET usedAt = ? WHERE hash = ?", arguments: [now.catalogMilliseconds, hash])
            return .accepted(agentName: row["agentName"])
        }
    }
}

extension AgentRecord {
    fileprivate init(row: Row) {
        self.init(
            name: row["name"], address: row["address"], version: row["version"],
            enrolledAt: Date(catalogMilliseconds: row["enrolledAt"]),
            lastSeenAt: (row["lastSeenAt"] as Int64?).map(Date.init(catalogMilliseconds:)),
            certificateFingerprint: row["certificateFingerprint"],
            certificateExpiresAt: Date(catalogMilliseconds: row["certificateExpiresAt"]))
    }
}
