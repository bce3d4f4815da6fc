/// What a check remembers of the map pages that it visited: as much as its memory allows. What is forgotten is
/// visited again, which costs time and changes nothing.
///
/// Maps share pages, and the maps are walked once for each stretch of the pool. So it knows of a page how many blocks
/// are mapped below it, in which stretches anything of it lies, and in which walk it was visited last: a walk leaves
/// out what it has visited already and what has nothing in its stretch.
final class VisitedPages {
    struct Visit: Equatable {
        var mappedBlocks: UInt64 = 0
        /// Where the page itself and all below it lie: a bit for each stretch, or for each 64th part of the pool where
        /// there are more.
        var stretches: UInt64 = 0
        /// Number of the walk, from 0.
        var walk = 0
    }

    private struct Slot {
        /// 40 bits of block, 3 of level, 21 of the walk; 0 for none, since no page lies in block 0.
        var page: UInt64 = 0
        var mappedBlocks: UInt64 = 0
        var stretches: UInt64 = 0

        var block: UInt64 { page & 0xff_ffff_ffff }
        var level: UInt64 { page >> 40 & 7 }
    }

    static let bytesPerPage: UInt64 = 24
    private static let setWays = 8
    private static let walkLimit = 1 << 21

    private let setCount: Int
    private var slots: [Slot]
    /// Which way of a full set is next to go.
    private var hand = 0
    private let stretchCount: Int
    private let stretchBlocks: UInt64

    /// - Parameters:
    ///   - pages: The most that there can be.
    ///   - memoryBytes: What it may take; at least one set is kept.
    init(pages: UInt64, memoryBytes: UInt64, stretchBlocks: UInt64, stretchCount: Int) {
        let most = min(memoryBytes / Self.bytesPerPage, pages * 2) / UInt64(Self.setWays)
        var sets = 1
        while UInt64(sets * 2) <= most { sets *= 2 }
        setCount = sets
        slots = Array(repeating: Slot(), count: sets * Self.setWays)
        self.stretchBlocks = max(1, stretchBlocks)
        self.stretchCount = max(1, stretchCount)
    }

    /// The bit of the stretch that a block lies in.
    func stretch(of block: UInt64) -> UInt64 {
        let index = min(Int(block / stretchBlocks), stretchCount - 1)
        return 1 << UInt64(stretchCount <= 64 ? index : index * 64 / stretchCount)
    }

    private func places(of block: UInt64) -> Range<Int> {
        let mixed = (block ^ (block >> 17)) &* 0x9e37_79b9_7f4a_7c15
        let set = Int(truncatingIfNeeded: mixed >> 32) & (setCount - 1)
        return (set * Self.setWays)..<((set + 1) * Self.setWays)
    }

    subscript(block: UInt64) -> Visit? {
        for index in places(of: block) where slots[index].block == block {
            let slot = slots[index]
            return Visit(mappedBlocks: slot.mappedBlocks, stretches: slot.stretches, walk: Int(slot.page >> 43))
        }
        return nil
    }

    /// Pages of a higher level stand for more, and stay.
    func remember(_ block: UInt64, level: Int, _ visit: Visit) {
        precondition(visit.walk < Self.walkLimit)
        let slot = Slot(
            page: block | UInt64(level) << 40 | UInt64(visit.walk) << 43, mappedBlocks: visit.mappedBlocks,
            stretches: visit.stretches)
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
