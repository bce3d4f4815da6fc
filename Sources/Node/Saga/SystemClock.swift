import Foundation

/// The machine's clocks.
struct SystemClock: SagaClock {
    /// The zero of ``monotonicNanoseconds()``: when the process first asked.
    private static let zero = ContinuousClock.now

    func monotonicNanoseconds() -> Int64 {
        let elapsed = Self.zero.duration(to: .now).components
        return elapsed.seconds * 1_000_000_000 + elapsed.attoseconds / 1_000_000_000
    }

    func unixNanoseconds() -> Int64 { Int64(Date.now.timeIntervalSince1970 * 1e9) }

    func sleep(until deadline: Int64) async throws {
        try await ContinuousClock().sleep(until: Self.zero.advanced(by: .nanoseconds(deadline)))
    }
}
