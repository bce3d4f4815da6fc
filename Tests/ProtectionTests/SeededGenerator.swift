/// SplitMix64: small, fast, and the same on every machine.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 0x1234_5678_9ABC_DEF1 }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    mutating func chance(_ probability: Double) -> Bool { Double.random(in: 0..<1, using: &self) < probability }

    /// Nanoseconds.
    mutating func time(_ milliseconds: ClosedRange<Double>) -> Int64 {
        Int64(Double.random(in: milliseconds, using: &self) * 1e6)
    }
}

/// Virtual time: closures in the order of their time, and of their making where the times are equal.
final class VirtualTimeline {
    private struct Entry {
        var time: Int64
        var order: Int
        var body: () -> Void

        static func < (left: Entry, right: Entry) -> Bool { (left.time, left.order) < (right.time, right.order) }
    }

    private(set) var now: Int64 = 0
    private var heap: [Entry] = []
    private var count = 0

    func at(_ time: Int64, _ body: @escaping () -> Void) {
        count += 1
        heap.append(Entry(time: max(time, now), order: count, body: body))
        var child = heap.count - 1
        while child > 0, heap[child] < heap[(child - 1) / 2] {
            heap.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    func after(_ delay: Int64, _ body: @escaping () -> Void) { at(now + delay, body) }

    /// Runs until nothing is left, `limit` is reached, or `isDone`.
    func run(until limit: Int64, isDone: () -> Bool = { false }) {
        while let first = heap.first, first.time <= limit, !isDone() {
            now = first.time
            let last = heap.removeLast()
            if !heap.isEmpty {
                heap[0] = last
                siftDown()
            }
            first.body()
        }
        if !isDone() { now = max(now, limit) }
    }

    private func siftDown() {
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < heap.count && heap[child] < heap[least] {
                least = child
            }
            if least == parent { return }
            heap.swapAt(parent, least)
            parent = least
        }
    }
}
