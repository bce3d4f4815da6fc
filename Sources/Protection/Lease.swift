/// The clock arithmetic of one hold's lease, as the node must see it.
///
/// The agent counts the lease on its own monotonic clock from the moment it takes the request. The node knows only
/// when it *sent* the request, which is earlier, and when it got the answer, which is later. So there are two ends:
///
///  - ``earliestEnd``: counted from the sending of the last request that was answered. Before it the hold cannot have
///    ended by its lease. A cut must not begin after it.
///  - ``latestEnd``: counted from the last request sent at all, plus the time a request may travel. After it the agent
///    cannot be holding any more. Recovery and retries may stop there.
///
/// Both make allowance for clocks that run at different rates.
public struct Lease: Sendable, Equatable {
    /// How much faster or slower another machine's clock may run, as a part of the time measured. NTP slews by at most
    /// 0.05 %; this is twenty times that.
    public static let clockRateTolerance = 0.01

    /// What the agent was told, at the first request.
    public let length: Duration
    /// Nothing is renewed beyond this instant, however long the saga takes.
    public let capEnd: MonotonicInstant
    public private(set) var earliestEnd: MonotonicInstant
    public private(set) var latestEnd: MonotonicInstant

    /// - Parameters:
    ///   - cap: from `sentAt`; at least `length`.
    ///   - transit: the longest time from sending a request until the agent takes it.
    public init(sentAt: MonotonicInstant, length: Duration, cap: Duration, transit: Duration) {
        self.length = length
        capEnd = sentAt + max(cap, length)
        earliestEnd = sentAt + Self.shortest(length)
        latestEnd = sentAt + transit + Self.longest(length)
    }

    public func mayHaveEnded(at now: MonotonicInstant) -> Bool { now >= earliestEnd }

    public func hasSurelyEnded(at now: MonotonicInstant) -> Bool { now >= latestEnd }

    /// What is left until the lease could end; never negative.
    public func remaining(at now: MonotonicInstant) -> Duration { max(.zero, earliestEnd - now) }

    /// How long a renewal may be that is sent now; nil when the cap leaves less than one would gain by it.
    public func renewalLength(at now: MonotonicInstant) -> Duration? {
        let renewal = min(length, capEnd - now)
        guard now + Self.shortest(renewal) > earliestEnd + .milliseconds(100) else { return nil }
        return renewal
    }

    /// A renewal goes out. Whether it arrives is not known: only the latest end moves.
    public mutating func renewalSent(at sentAt: MonotonicInstant, length: Duration, transit: Duration) {
        latestEnd = max(latestEnd, sentAt + transit + Self.longest(length))
    }

    /// The renewal sent at `sentAt` was granted.
    public mutating func renewalGranted(sentAt: MonotonicInstant, length: Duration) {
        earliestEnd = max(earliestEnd, sentAt + Self.shortest(length))
    }

    /// The least that `length` on another machine's clock can be on this one's.
    static func shortest(_ length: Duration) -> Duration { length * (1 - clockRateTolerance) }

    /// The most that `length` on another machine's clock can be on this one's.
    static func longest(_ length: Duration) -> Duration { length * (1 + clockRateTolerance) }
}
