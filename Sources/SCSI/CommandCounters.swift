import Synchronization

/// How long commands took, in buckets whose bounds double.
public struct LatencyHistogram: Sendable, Equatable {
    /// The upper bounds of all buckets but the last, in seconds: 16 µs, 32 µs, … 16.8 s.
    public static let upperBoundsSeconds = (4...24).map { Double(1 << $0) / 1e6 }

    /// One count for each bound, and one for what took longer than all of them.
    public internal(set) var counts = [UInt64](repeating: 0, count: bucketCount)
    public internal(set) var sumNanoseconds: UInt64 = 0

    static let bucketCount = 22

    public init() {}

    public var count: UInt64 { counts.reduce(0, &+) }

    static func bucket(nanoseconds: UInt64) -> Int {
        let microseconds = nanoseconds / 1000
        if microseconds < 16 { return 0 }
        return min(64 - microseconds.leadingZeroBitCount - 4, bucketCount - 1)
    }

    /// The time within which `share` (0...1) of the commands ended, rounded up to the bound of a bucket; nil without
    /// commands, infinite beyond the last bound.
    public func quantileSeconds(_ share: Double) -> Double? {
        let total = count
        guard total > 0 else { return nil }
        let wanted = max(1, UInt64((Double(total) * share).rounded(.up)))
        var seen: UInt64 = 0
        for (index, bucket) in counts.enumerated() {
            seen += bucket
            if seen >= wanted {
                return index < Self.upperBoundsSeconds.count ? Self.upperBoundsSeconds[index] : .infinity
            }
        }
        return .infinity
    }

    public static func += (left: inout LatencyHistogram, right: LatencyHistogram) {
        for index in left.counts.indices { left.counts[index] &+= right.counts[index] }
        left.sumNanoseconds &+= right.sumNanoseconds
    }
}

/// Commands that ended, and what they moved.
public struct CommandStatistics: Sendable, Equatable {
    public internal(set) var commands: UInt64 = 0
    /// Not ended with GOOD; unit attentions are no failures.
    public internal(set) var failedCommands: UInt64 = 0
    public internal(set) var bytesRead: UInt64 = 0
    public internal(set) var bytesWritten: UInt64 = 0
    public internal(set) var reads = LatencyHistogram()
    public internal(set) var writes = LatencyHistogram()
    /// Commands that neither read nor write blocks, SYNCHRONIZE CACHE and UNMAP among them.
    public internal(set) var others = LatencyHistogram()

    public init() {}

    public static func += (left: inout CommandStatistics, right: CommandStatistics) {
        left.commands &+= right.commands
        left.failedCommands &+= right.failedCommands
        left.bytesRead &+= right.bytesRead
        left.bytesWritten &+= right.bytesWritten
        left.reads += right.reads
        left.writes += right.writes
        left.others += right.others
    }
}

/// What is counted for one I_T nexus with a logical unit; written on one event loop, read from anywhere.
///
/// SAFETY: the pointer is a constant to `slotCount` initialized atomics that live as long as the object; indices are
/// constants below that, or sums of constants and a bucket below ``LatencyHistogram/bucketCount``.
public final class CommandCounters: @unchecked Sendable {
    public enum Kind: Int, Sendable { case read = 0, write, other }

    private static let failed = 0
    private static let bytesRead = 1
    private static let bytesWritten = 2
    private static let histograms = 3
    private static let histogramSlots = LatencyHistogram.bucketCount + 1
    private static let slotCount = histograms + 3 * histogramSlots

    private let slots = UnsafeMutablePointer<Atomic<UInt64>>.allocate(capacity: slotCount)

    public init() {
        for index in 0..<Self.slotCount { (slots + index).initialize(to: Atomic(0)) }
    }

    deinit {
        slots.deinitialize(count: Self.slotCount)
        slots.deallocate()
    }

    /// A command ended after so many nanoseconds.
    public func ended(_ kind: Kind, nanoseconds: UInt64) {
        let base = Self.histograms + kind.rawValue * Self.histogramSlots
        add(1, base + LatencyHistogram.bucket(nanoseconds: nanoseconds))
        add(nanoseconds, base + LatencyHistogram.bucketCount)
    }

    public func failed() { add(1, Self.failed) }
    public func read(_ bytes: Int) { add(UInt64(bytes), Self.bytesRead) }
    public func wrote(_ bytes: Int) { add(UInt64(bytes), Self.bytesWritten) }

    /// One writer only, so a load and a store do; they are cheaper than a locked addition.
    private func add(_ value: UInt64, _ index: Int) {
        let sum = slots[index].load(ordering: .relaxed) &+ value
        slots[index].store(sum, ordering: .relaxed)
    }

    private func histogram(_ kind: Kind) -> LatencyHistogram {
        let base = Self.histograms + kind.rawValue * Self.histogramSlots
        var result = LatencyHistogram()
        for index in 0..<LatencyHistogram.bucketCount {
            result.counts[index] = slots[base + index].load(ordering: .relaxed)
        }
        result.sumNanoseconds = slots[base + LatencyHistogram.bucketCount].load(ordering: .relaxed)
        return result
    }

    /// What stands there now. Counts that change meanwhile may be a few commands apart.
    public var statistics: CommandStatistics {
        var result = CommandStatistics()
        result.failedCommands = slots[Self.failed].load(ordering: .relaxed)
        result.bytesRead = slots[Self.bytesRead].load(ordering: .relaxed)
        result.bytesWritten = slots[Self.bytesWritten].load(ordering: .relaxed)
        result.reads = histogram(.read)
        result.writes = histogram(.write)
        result.others = histogram(.other)
        result.commands = result.reads.count &+ result.writes.count &+ result.others.count
        return result
    }
}
