/// Why a saga failed: what happened, to what, and what to do.
public struct SagaFailure: Error, Codable, Sendable, Equatable {
    public enum Code: String, Codable, Sendable {
        /// The requested level cannot be reached; known before anything was touched.
        case levelUnreachable
        /// Something could not be brought to rest, or did not stay so.
        case quiesceFailed
        /// The snapshot was cut, but a member's quiet window is not proven.
        case notProven
        case cutFailed
        case labelFailed
        case journalFailed
        case cancelled
        /// The node was stopped in the middle; its recovery cleaned up.
        case interrupted
        case volumeInUse
        case prepareFailed
        case revertFailed
    }

    public var code: Code
    public var message: String
    public var hint: String?

    public init(_ code: Code, _ message: String, hint: String? = nil) {
        self.code = code
        self.message = message
        self.hint = hint
    }
}
