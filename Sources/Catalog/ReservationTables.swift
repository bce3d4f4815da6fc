public import Foundation
import GRDB

/// Persistent reservations of volumes that are to outlive a power loss (APTPL). The record is the target's own.
extension Catalog {
    static var reservationMigrations: [CatalogMigration] {
        [
            CatalogMigration(name: "reservations.1.records") { database in
                try database.create(table: "reservationRecord") { table in
                    table.primaryKey("naa", .text)
                    table.column("record", .blob).notNull()
                }
            }
        ]
    }

    /// Keeps the record of a device, or forgets it; durable when this returns. Blocks the thread: not for tasks.
    public func saveReservations(_ record: Data?, naa: String) throws(CatalogError) {
        try writeBlocking { database in
            guard let record else {
                try database.execute(sql: "DELETE FROM reservationRecord WHERE naa = ?", arguments: [naa])
                return
            }
            try database.execute(
                sql: "INSERT INTO reservationRecord (naa, record) VALUES (?, ?) "
                    + "ON CONFLICT (naa) DO UPDATE SET record = excluded.record",
                arguments: [naa, record])
        }
    }

    /// The record of a device. Blocks the thread.
    public func reservations(naa: String) throws(CatalogError) -> Data? {
        try writeBlocking { database in
            try Data.fetchOne(
                database, sql: "SELECT record FROM reservationRecord WHERE naa = ?", arguments: [naa])
        }
    }

    /// Forgets the records of devices that are gone: all but these.
    public func keepReservations(onlyOf devices: Set<String>) async throws(CatalogError) {
        try await write { database in
            let known = try String.fetchAll(database, sql: "SELECT naa FROM reservationRecord")
            for naa in known where !devices.contains(naa) {
                try database.execute(sql: "DELETE FROM reservationRecord WHERE naa = ?", arguments: [naa])
            }
        }
    }
}
