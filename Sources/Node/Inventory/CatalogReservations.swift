import Catalog
import Foundation
import Logging
import SCSI

/// Keeps persistent reservations with APTPL in the catalog: a PERSISTENT RESERVE OUT is answered when it is durable
/// there, and a restarted node, also one that was killed, knows who may write.
struct CatalogReservations: ReservationStore {
    let catalog: Catalog
    let logger: Logger

    func save(_ record: [UInt8]?, naa: String) throws(ReservationStoreError) {
        do throws(CatalogError) {
            try catalog.saveReservations(record.map { Data($0) }, naa: naa)
        } catch {
            logger.error(
                "a persistent reservation could not be kept and was refused",
                metadata: ["device": "\(naa)", "reason": "\(error)"])
            throw ReservationStoreError(error.description)
        }
    }

    func load(naa: String) throws(ReservationStoreError) -> [UInt8]? {
        do throws(CatalogError) {
            return try catalog.reservations(naa: naa).map { Array($0) }
        } catch {
            throw ReservationStoreError(error.description)
        }
    }
}

extension Inventory {
    /// A device that is gone for ever takes its reservations with it.
    func forgetReservations(of naa: String) async throws {
        let catalog = catalog
        try await blocking.run { try catalog.saveReservations(nil, naa: naa) }
    }
}
