/// The body of every answer that is not a success: what happened, to what, and what to do next.
public struct APIFailure: Error, Codable, Sendable, Equatable {
    /// A stable word for programs, e.g. `volumeInUse`. The list is in docs/api.md.
    public var code: String
    /// One sentence: what happened, to what.
    public var message: String
    /// What to do next, where there is something to do.
    public var hint: String?
    /// The HTTP status that goes with it; not part of the body.
    public var status: Int = 500

    private enum CodingKeys: String, CodingKey { case code, message, hint }

    public init(status: Int, code: String, message: String, hint: String? = nil) {
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
    }
}

extension APIFailure: CustomStringConvertible {
    public var description: String { hint.map { "\(message). \($0)" } ?? message }
}
