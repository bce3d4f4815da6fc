import GRDB

/// The state that an administrator gave to a portal group while the node ran.
public struct PortalStateRow: Sendable, Equatable {
    public var group: UInt16
    /// The name of the state.
    public var access: String
    /// What the configuration said at that moment: when it says something else later, that is the newer word.
    public var configured: String

    public init(group: UInt16, access: String, configured: String) {
        self.group = group
        self.access = access
        self.configured = configured
    }
}

extension Catalog {
    static var portalMigrations: [CatalogMigration] {
        [
            CatalogMigration(name: "portals.1.states") { database in
                try database.create(table: "portalState") { table in
                    table.primaryKey("portalGroup", .integer)
                    table.column("access", .text).notNull()
                    table.column("configured", .text).notNull()
                }
            }
        ]
    }

    /// By number of the group.
    public func portalStates() async throws(CatalogError) -> [PortalStateRow] {
        try await read { database in
            try Row.fetchAll(database, sql: "SELECT * FROM portalState ORDER BY portalGroup").map { row in
                PortalStateRow(group: row["portalGroup"], access: row["access"], configured: row["configured"])
            }
        }
    }

    /// Replaces what was kept for the group; durable on return.
    public func keepPortalState(_ state: PortalStateRow) async throws(CatalogError) {
        try await write { database in
            try database.execute(
                sql: """
                    INSERT INTO portalState (portalGroup, access, configured) VALUES (?, ?, ?)
                    ON CONFLICT (portalGroup) DO UPDATE SET access = excluded.access, configured = excluded.configured
                    """, arguments: [Int(state.group), state.access, state.configured])
        }
    }

    /// What the configuration says counts again.
    public func forgetPortalState(group: UInt16) async throws(CatalogError) {
        try await write { database in
            try database.execute(sql: "DELETE FROM portalState WHERE portalGroup = ?", arguments: [Int(group)])
        }
    }
}
