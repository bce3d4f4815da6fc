import API
import BlockStore
import Catalog
import ISCSI

// The failures that several routes share. docs/api.md lists every code.

extension APIFailure {
    static let shuttingDown = APIFailure(
        status: 503, code: "shuttingDown", message: "the node is shutting down", hint: "Try again when it is back")

    static func unknown(_ noun: String, _ name: String) -> APIFailure {
        APIFailure(
            status: 404, code: "\(noun)NotFound", message: "there is no \(noun) \"\(name)\"",
            hint: "stillpoint \(noun) list shows those that there are")
    }

    static func invalid(_ message: String, hint: String? = nil) -> APIFailure {
        APIFailure(status: 400, code: "invalidRequest", message: message, hint: hint)
    }

    static func conflict(_ code: String, _ message: String, hint: String? = nil) -> APIFailure {
        APIFailure(status: 409, code: code, message: message, hint: hint)
    }

    /// Any error as the failure that a client is told.
    static func from(_ error: any Error) -> APIFailure {
        switch error {
        case let failure as APIFailure: failure
        case let error as CatalogError:
            APIFailure(
                status: 500, code: "catalogFailed", message: error.description,
                hint: "See whether the data directory's disk is full or failing")
        case let error as PoolError: from(error)
        case let error as TargetError:
            APIFailure(status: 409, code: "targetRefused", message: "the iSCSI target refused it: \(sentence(error))")
        case is CancellationError:
            APIFailure(status: 503, code: "cancelled", message: "the work was cancelled as the node shuts down")
        default:
            APIFailure(status: 500, code: "internal", message: "unexpected failure: \(error)")
        }
    }

    private static func sentence(_ error: TargetError) -> String {
        switch error {
        case .noSuchTarget(let iqn): "there is no target \(iqn)"
        case .targetExists(let iqn): "there is a target \(iqn) already"
        case .invalidName(let name): "\(name) is no iSCSI name"
        case .noSuchLUN(let iqn, let lun): "\(iqn) has no LUN \(lun)"
        case .lunInUse(let iqn, let lun): "\(iqn) has a LUN \(lun) already"
        case .invalidLUN(let lun): "\(lun) is no LUN that a target can have"
        case .identityInUse(let naa): "the identity \(naa) is in use already"
        case .blocked(let naa): "the device \(naa) is being reverted"
        case .noSuchRule(let iqn, _): "\(iqn) has no such rule"
        case .reservationsUnreadable(let naa, let reason):
            "the persistent reservations of \(naa) cannot be read, so nobody knows who may write: \(reason)"
        case .limit(let what): "its limit is reached: \(what)"
        }
    }

    private static func from(_ error: PoolError) -> APIFailure {
        let (status, code, hint): (Int, String, String?) =
            switch error {
            case .notFound: (404, "notFound", nil)
            case .exists: (409, "nameTaken", "Choose another name")
            case .invalidName: (400, "invalidName", nil)
            case .invalidSize: (400, "invalidSize", nil)
            case .invalidArgument: (400, "invalidRequest", nil)
            case .hasSnapshots: (409, "volumeHasSnapshots", "Delete them first")
            case .hasClones: (409, "snapshotHasClones", "Delete the clones first")
            case .notAClone: (404, "cloneNotFound", nil)
            case .unrelated:
                (409, "snapshotsUnrelated", "Related are the snapshots of one volume, of its clones and of its origin")
            case .badStream: (400, "badStream", "Send it again; stillpoint receive list shows where to resume")
            case .unsupportedStream: (400, "streamVersion", "Update this node, or send from an older one")
            case .refusedStream: (409, "streamRefused", nil)
            case .changing: (409, "changing", "Try again")
            case .cancelled: (503, "cancelled", nil)
            case .noSpace: (507, "poolFull", "Delete snapshots or volumes, or give the pool more room")
            case .readOnly:
                (
                    503, "poolReadOnly",
                    "What is there can be read; see to the disk, stop the node, and run: "
                        + "stillpoint pool check --clear-failure"
                )
            case .inUse, .notAPool, .unsupported, .damaged, .closed, .io: (500, "poolFailed", nil)
            }
        return APIFailure(status: status, code: code, message: error.description, hint: hint)
    }
}
