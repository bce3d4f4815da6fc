/// A point on one machine's monotonic clock. Instants of different machines must never be compared: that is why all
/// evidence in this module stands on causal order and on durations.
public struct MonotonicInstant: Hashable, Comparable, Codable, Sendable {
    /// Since the clock's own zero.
    public var nanoseconds: Int64

    public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    public static func < (left: MonotonicInstant, right: MonotonicInstant) -> Bool {
        left.nanoseconds < right.nanoseconds
    }

    public static func + (instant: MonotonicInstant, duration: Duration) -> MonotonicInstant {
        MonotonicInstant(nanoseconds: instant.nanoseconds + duration.wholeNanoseconds)
    }

    public static func - (instant: MonotonicInstant, duration: Duration) -> MonotonicInstant {
        MonotonicInstant(nanoseconds: instant.nanoseconds - duration.wholeNanoseconds)
    }

    public static func - (left: MonotonicInstant, right: MonotonicInstant) -> Duration {
        .nanoseconds(left.nanoseconds - right.nanoseconds)
    }
}

extension Duration {
    /// Rounded towards zero.
    public var wholeNanoseconds: Int64 {
        components.seconds * 1_000_000_000 + components.attoseconds / 1_000_000_000
    }

    public var inSeconds: Double { Double(wholeNanoseconds) / 1e9 }

    /// For people: `0.184 s`.
    public var text: String { Self.text(seconds: inSeconds) }

    /// Three decimals, without Foundation.
    static func text(seconds: Double) -> String {
        guard seconds.isFinite, abs(seconds) < 1e12 else { return "\(seconds) s" }
        let milliseconds = Int64((abs(seconds) * 1000).rounded())
        let fraction = String(milliseconds % 1000)
        let zeros = String(repeating: "0", count: 3 - fraction.count)
        return "\(seconds < 0 ? "-" : "")\(milliseconds / 1000).\(zeros)\(fraction) s"
    }
}
