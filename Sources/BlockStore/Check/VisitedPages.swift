internal import Glibc

/// What a check remembers of the map pages that it visited: as much as its memory allows. What is forgotten is
/// visited again, which costs time and changes nothing.
///
/// Maps share pages, and the maps are walked once for each stretch of the pool. So it knows of a page how many blocks
/// are mapped below it, in which stretches anything of it lies, and in which walk it was visited last: a walk leaves
/// out what it has visited already and what has nothing in its stretch.
final class VisitedPages {
    struct Visit: Equatable {
        var mappedBlocks: UInt64 = 0
        /// Where the page itself and all below it lie.
        var reach = Reach()
        /// Number of the walk, from 0.
        var walk = 0
    }

    /// In which stretches something lies: from the first to the last of them, and a bit for each, or for each 64th part
    /// of the pool where there are more. What was written in one go has few; what was written at random has most.
    struct Reach: Equatable {
        fileprivate var mask: UInt64 = 0
        fileprivate var first = UInt32.max
        fileprivate var last: UInt32 = 0

        mutating func formUnion(_ other: Reach) {
            mask |= other.mask
            first = min(first, other.first)
            last = max(last, other.last)
        }
    }

    private struct Slot {
        /// 40 bits of block, 3 of level, 21 of the walk; 0 for none, since no page lies in block 0.
        var page: UInt64 = 0
        var mappedBlocks: UInt64 = 0
        var reach = Reach()

        var block: UInt64 { page & 0xff_ffff_ffff }
        var level: UInt64 { page >> 40 & 7 }
    }

    static let bytesPerPage: UInt64 = 32
    private static let setWays = 8
    private static let walkLimit = 1 << 21

    private let setCount: Int
    // SAFETY: `setCount * setWays` slots, all zeros in the beginning, reached through `places(of:)` only.
    private let slots: UnsafeMutablePointer<Slot>
    /// Which way of a full set is next to go.
    private var hand = 0
    private let stretchCount: Int
    private let stretchBlocks: UInt64

    /// - Parameters:
    ///   - pages: The most that there can be.
    ///   - memoryBytes: What it may take; at least one set is kept.
    /// - Throws: where the memory cannot be had.
    init(pages: UInt64, memoryBytes: UInt64, stretchBlocks: UInt64, stretchCount: Int) throws(PoolError) {
        let most = min(memoryBytes / Self.bytesPerPage, pages * 2) / UInt64(Self.setWays)
        var sets = 1
        while UInt64(sets * 2) <= most { sets *= 2 }
        setCount = sets
        slots = try reserveZeros(sets * Self.setWays, of: Slot.self)
        self.stretchBlocks = max(1, stretchBlocks)
        self.stretchCount = max(1, stretchCount)
    }

    deinit { free(slots) }

    private func bit(ofStretch number: Int) -> UInt64 {
        1 << UInt64(stretchCount <= 64 ? number : number * 64 / stretchCount)
    }

    /// Notes that a block is reached, and returns the stretch that it lies in.
    func note(_ block: UInt64, in reach: inout Reach) -> Range<UInt64> {
        let number = min(Int(block / stretchBlocks), stretchCount - 1)
        reach.mask |= bit(ofStretch: number)
        reach.first = min(reach.first, UInt32(number))
        reach.last = max(reach.last, UInt32(number))
        let start = UInt64(number) * stretchBlocks
        return start..<(start + stretchBlocks)
    }

    /// Whether anything lies in a stretch, as far as is known.
    func reaches(_ reach: Reach, stretch number: Int) -> Bool {
        reach.mask & bit(ofStretch: number) != 0 && reach.first <= number && number <= reach.last
    }

    private func places(of block: UInt64) -> Range<Int> {
        let mixed = (block ^ (block >> 17)) &* 0x9e37_79b9_7f4a_7c15
        let set = Int(truncatingIfNeeded: mixed >> 32) & (setCount - 1)
        return (set * Self.setWays)..<((set + 1) * Self.setWays)
    }

    subscript(block: UInt64) -> Visit? {
        for index in places(of: block) where slots[index].block == block {
            let slot = slots[index]
            return Visit(mappedBlocks: slot.mappedBlocks, reach: slot.reach, walk: Int(slot.page >> 43))
        }
        return nil
    }

    /// Pages of a higher level stand for more, and stay.
    func remember(_ block: UInt64, level: Int, _ visit: Visit) {
        precondition(visit.walk < Self.walkLimit)
        let slot = Slot(
            page: block | UInt64(level) << 40 | UInt64(visit.walk) << 43, mappedBlocks: visit.mappedBlocks,
            reach: visit.reach)
        let places = places(of: block)
        for index in places where slots[index].block == block || slots[index].page == 0 {
            slots[index] = slot
            return
        }
        hand = (hand + 1) % Self.setWays
        var victim = places.lowerBound + hand
        for index in places where slots[index].level < slots[victim].level { victim = index }
        if slots[victim].level <= slot.level { slots[victim] = slot }
    }
}

/// Memory that is zeros and becomes real where it is touched.
///
/// - Throws: where the system has no so many addresses.
func reserveZeros<Element>(_ count: Int, of type: Element.Type) throws(PoolError) -> UnsafeMutablePointer<Element> {
    let (bytes, overflows) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
    guard !overflows, let memory = calloc(max(1, bytes), 1) else {
        throw .io(operation: "reserving \(bytes >> 20) MiB of memory for the check", errno: ENOMEM)
    }
    // SAFETY: so many bytes, aligned as malloc aligns, bound once; the caller frees them.
    return memory.bindMemory(to: Element.self, capacity: max(1, count))
}
