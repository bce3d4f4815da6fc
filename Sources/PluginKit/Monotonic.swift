import Glibc

/// A moment on the clock that leases are kept on: CLOCK_BOOTTIME, which no one sets and which counts a suspended
/// machine's time too.
public struct MonotonicInstant: Sendable, Comparable, Hashable {
    public var nanoseconds: Int64

    public static var now: MonotonicInstant {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return MonotonicInstant(nanoseconds: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec))
    }

    public static func < (left: MonotonicInstant, right: MonotonicInstant) -> Bool {
        left.nanoseconds < right.nanoseconds
    }

    /// - Parameter seconds: finite, at most a year's worth either way.
    public func advanced(bySeconds seconds: Double) -> MonotonicInstant {
        MonotonicInstant(nanoseconds: nanoseconds + Int64(seconds * 1e9))
    }

    /// Negative when `other` is later.
    public func seconds(since other: MonotonicInstant) -> Double {
        Double(nanoseconds - other.nanoseconds) / 1e9
    }

    public var secondsFromNow: Double { seconds(since: .now) }
}
