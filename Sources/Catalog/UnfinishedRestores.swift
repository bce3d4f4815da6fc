public import Foundation
import GRDB

/// What an agent stopped for a revert and has not brought back yet.
public struct UnfinishedRestoreRow: Sendable, Equatable {
    public var restoreID: String
    public var agent: String
    /// JSON of what the agent is asked.
    public var request: String
    public var since: Date

    public init(restoreID: String, agent: String, request: String, since: Date) {
        self.restoreID = restoreID
        self.agent = agent
        self.request = request
        self.since = since
    }
}

extension Catalog {
    /// The oldest first.
    public func unfinishedRestores() async throws(CatalogError) -> [UnfinishedRestoreRow] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT * FROM unfinishedRestore ORDER BY since, restoreID, agent")
                .map { row in
                    UnfinishedRestoreRow(
                        restoreID: row["restoreID"], agent: row["agent"], request: row["request"],
                        since: Date(catalogMilliseconds: row["since"]))
                }
        }
    }

    /// Durable on return. One that is there already keeps its age.
    public func keepUnfinishedRestore(_ restore: UnfinishedRestoreRow) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO unfinishedRestore (restoreID, agent, request, since) VALUES (?, ?, ?, ?)
                    ON CONFLICT (restoreID, agent) DO UPDATE SET request = excluded.request
                    """,
                arguments: [
                    restore.restoreID, restore.agent, restore.request, restore.since.catalogMilliseconds,
                ])
        }
    }

    public func forgetUnfinishedRestore(restoreID: String, agent: String) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: "DELETE FROM unfinishedRestore WHERE restoreID = ? AND agent = ?", arguments: [restoreID, agent])
        }
    }
}
