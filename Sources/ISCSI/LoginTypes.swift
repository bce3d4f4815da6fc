import SCSI

/// Why a login ends without a session: what the initiator is told, and what the log says.
struct LoginFailure: Error, Equatable {
    /// Status-Class and Status-Detail (RFC 7143 11.13.5).
    enum Status: UInt16 {
        case initiatorError = 0x0200
        case authenticationFailure = 0x0201
        case authorizationFailure = 0x0202
        case notFound = 0x0203
        case unsupportedVersion = 0x0205
        case tooManyConnections = 0x0206
        case missingParameter = 0x0207
        case unsupportedSessionType = 0x0209
        case sessionDoesNotExist = 0x020A
        case invalidDuringLogin = 0x020B
        case targetError = 0x0300
        case serviceUnavailable = 0x0301
        case outOfResources = 0x0302
    }
    var status: Status
    /// A sentence an administrator understands.
    var message: String
}

/// What the registry says of an initiator that wants to log in.
enum LoginAuthorization {
    /// - Parameters:
    ///   - credentials: not empty when the initiator has to prove itself with one of them.
    ///   - isOptional: without a proof it may go on too, as long as it does not insist on one.
    case allowed(credentials: [CHAPCredentials], isOptional: Bool = false)
    case refused(LoginFailure)
}

/// What the login machine asks about names; answered by ``TargetRegistry``, and by tests.
protocol LoginPolicy: Sendable {
    /// - Parameter target: nil for a discovery session.
    func authorize(initiator: String, target: String?) -> LoginAuthorization
}

/// A finished login.
struct LoginOutcome: Equatable {
    var initiatorPort: InitiatorPort
    /// Nil for a discovery session.
    var target: String?
    var parameters: SessionParameters
    var connectionID: UInt16
    /// Of the portal that the connection came in through.
    var portalGroupTag: UInt16 = 1
    /// The CHAP name, when there was one.
    var user: String?
    /// The first CmdSN of the full-feature phase.
    var commandSN: UInt32
    /// The StatSN of the first response of the full-feature phase.
    var statusSN: UInt32
}

/// iSCSI names (RFC 7143 4.2.7).
enum ISCSIName {
    static let byteLimit = 223

    /// The name in lower case, or nil when it is none.
    static func normalized(_ name: String) -> String? {
        guard (5...byteLimit).contains(name.utf8.count) else { return nil }
        let lower = String(
            decoding: name.utf8.map { (0x41...0x5A).contains($0) ? $0 + 0x20 : $0 }, as: UTF8.self)
        guard lower.hasPrefix("iqn.") || lower.hasPrefix("eui.") || lower.hasPrefix("naa."),
            lower.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7F && $0 != UInt8(ascii: ",") })
        else { return nil }
        return lower
    }
}

/// Text from a peer as it may appear in a log line: shortened, without control characters.
func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars.prefix(256) {
        result.unicodeScalars.append(scalar.value < 0x20 || (0x7F...0x9F).contains(scalar.value) ? "?" : scalar)
    }
    return result
}
