import API
import Catalog

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
        case is CancellationError:
            APIFailure(status: 503, code: "cancelled", message: "the work was cancelled as the node shuts down")
        default:
            APIFailure(status: 500, code: "internal", message: "unexpected failure: \(error)")
        }
    }
}
