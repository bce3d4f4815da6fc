/// An error as it travels: what happened, to what, and what to do.
public struct PluginFailure: Error, Codable, Sendable, Equatable {
    /// A stable word for programs; docs/plugins.md lists them.
    public var code: Code
    /// One sentence: what happened, to what.
    public var message: String
    /// What to do next, where there is something to do.
    public var hint: String?

    public init(_ code: Code, _ message: String, hint: String? = nil) {
        self.code = code
        self.message = message
        self.hint = hint
    }

    /// An open list: a plug-in may use words of its own.
    public struct Code: RawRepresentable, Codable, Sendable, Hashable, ExpressibleByStringLiteral {
        public var rawValue: String

        public init(rawValue: String) { self.rawValue = rawValue }
        public init(stringLiteral value: String) { rawValue = value }

        public init(from decoder: any Decoder) throws {
            rawValue = try decoder.singleValueContainer().decode(String.self)
        }

        public func encode(to encoder: any Encoder) throws {
            var container = encoder.singleValueContainer()
            try container.encode(rawValue)
        }

        // Of the contract itself.
        public static let badRequest: Code = "badRequest"
        public static let lineTooLong: Code = "lineTooLong"
        public static let unknownMethod: Code = "unknownMethod"
        public static let notSupported: Code = "notSupported"
        public static let busy: Code = "busy"
        public static let unknownHold: Code = "unknownHold"
        public static let holdExists: Code = "holdExists"
        public static let holdReleased: Code = "holdReleased"
        public static let holdLost: Code = "holdLost"
        public static let notReleased: Code = "notReleased"
        public static let leaseEnded: Code = "leaseEnded"
        public static let cancelled: Code = "cancelled"
        public static let ending: Code = "ending"

        // Of quiescing and restoring.
        public static let badConfiguration: Code = "badConfiguration"
        public static let badState: Code = "badState"
        public static let unknownResource: Code = "unknownResource"
        public static let refused: Code = "refused"
        public static let alreadyFrozen: Code = "alreadyFrozen"
        public static let quiesceFailed: Code = "quiesceFailed"
        public static let timedOut: Code = "timedOut"
        public static let inUse: Code = "inUse"
        public static let restoreFailed: Code = "restoreFailed"
        public static let operatingSystem: Code = "operatingSystem"

        // Seen by the agent's side only.
        public static let spawnFailed: Code = "spawnFailed"
        public static let pluginDied: Code = "pluginDied"
        public static let badAnswer: Code = "badAnswer"
    }
}

extension PluginFailure: CustomStringConvertible {
    public var description: String { hint.map { "\(message). \($0)" } ?? message }
}
