/// What a page of a volume's map covers, in logical blocks.
enum MapSpan {
    static func blocks(_ level: Int) -> UInt64 { Format.leafEntries << UInt64(7 * level) }
}

/// Counts what one map has alone: blocks and pages born after `floorEpoch` that none of the successors has at the same
/// place. It is reclaim's walk without the freeing, so that an answer is what a deletion will do. A reference that a
/// successor has too, or that is not younger than the floor, ends the descent.
struct ExclusiveWalk {
    private let core: PoolCore
    private let floorEpoch: UInt64
    /// Logical blocks that are looked at. A page that reaches beyond the end is left to who looks at the rest.
    private let range: Range<UInt64>
    private(set) var cursor: UInt64
    private(set) var isFinished = true
    private(set) var dataBlocks: UInt64 = 0
    private(set) var mapPages: UInt64 = 0
    private var budget = 0

    init(core: PoolCore, floorEpoch: UInt64, range: Range<UInt64>) {
        self.core = core
        self.floorEpoch = floorEpoch
        self.range = range
        cursor = range.lowerBound
    }

    /// Looks at no more than `budget` pages, from where the last step ended.
    mutating func step(_ root: NodePointer, successors: [NodePointer], budget: Int) throws(PoolError) {
        self.budget = budget
        isFinished = true
        let successors = core.hasBug(.spaceIgnoresSuccessor) ? [] : successors
        try walk(root, successors, level: Format.mapRootLevel, start: 0)
    }

    private mutating func walk(
        _ pointer: NodePointer, _ successors: [NodePointer], level: Int, start: UInt64
    ) throws(PoolError) {
        if pointer.isNull || pointer.isLost || pointer.birth <= floorEpoch || successors.contains(pointer) { return }
        let end = start + MapSpan.blocks(level)
        if end <= cursor || start >= range.upperBound { return }
        guard budget > 0 else {
            isFinished = false
            cursor = max(cursor, start)
            return
        }
        budget -= 1
        // As reclaim: what cannot be read gives nothing back, and neither does what stands beside it.
        guard let page = try? core.tryLoading(pointer).get() else { return }
        var others: [Page] = []
        for successor in successors where !successor.isNull && !successor.isLost {
            guard let other = try? core.tryLoading(successor).get() else { return }
            others.append(other)
        }
        if level == 0 {
            for index in 0..<Int(Format.leafEntries) {
                let entry = page[entry: index]
                if entry.isNull || entry.isLost || entry.birth <= floorEpoch { continue }
                if others.contains(where: { $0[entry: index].block == entry.block }) { continue }
                dataBlocks += 1
            }
        } else {
            for index in 0..<Int(Format.fanOut) {
                let childStart = start + UInt64(index) * MapSpan.blocks(level - 1)
                try walk(page[child: index], others.map { $0[child: index] }, level: level - 1, start: childStart)
                if !isFinished { return }
            }
        }
        if end <= range.upperBound || range.upperBound == .max { mapPages += 1 }
    }
}

/// Finds the logical blocks at which two maps differ, in ascending order: both are walked in lock step, and equal
/// references end the descent. Holes are found by what is missing, never by an epoch.
struct DiffWalk {
    struct Run: Equatable {
        var blocks: Range<UInt64>
        /// Mapped in the newer map; else it was mapped in the older one and is not any more.
        var isData: Bool
    }

    private let core: PoolCore
    /// Blocks from here on are not looked at.
    private let end: UInt64
    private(set) var cursor: UInt64
    private(set) var isFinished = true
    private(set) var runs: [Run] = []
    private var budget = 0
    private var runLimit = 0

    init(core: PoolCore, from cursor: UInt64, end: UInt64) {
        self.core = core
        self.cursor = cursor
        self.end = end
    }

    /// Looks at no more than `budget` pages of each map, from where the last step ended, and stops at the first leaf
    /// after `runLimit` runs.
    mutating func step(_ old: NodePointer, _ new: NodePointer, budget: Int, runLimit: Int) throws(PoolError) {
        self.budget = budget
        self.runLimit = runLimit
        runs = []
        isFinished = true
        try walk(old, new, level: Format.mapRootLevel, start: 0)
        if isFinished { cursor = end }
    }

    private mutating func walk(
        _ old: NodePointer, _ new: NodePointer, level: Int, start: UInt64
    ) throws(PoolError) {
        if old == new { return }
        if core.hasBug(.diffForgetsHoles), new.isNull { return }
        let stop = start + MapSpan.blocks(level)
        if stop <= cursor || start >= end { return }
        guard budget > 0, runs.count < runLimit else {
            isFinished = false
            cursor = max(cursor, start)
            return
        }
        budget -= 1
        let before = old.isNull ? nil : try core.loadPage(old)
        let after = new.isNull ? nil : try core.loadPage(new)
        if level == 0 {
            for index in 0..<Int(Format.leafEntries) where start + UInt64(index) < end {
                let was = before?[entry: index] ?? .null
                let isNow = after?[entry: index] ?? .null
                if was.block == isNow.block, !was.isLost || was == isNow { continue }
                guard !isNow.isLost else {
                    throw .damaged("what logical block \(start + UInt64(index)) holds was lost")
                }
                append(start + UInt64(index), isData: !isNow.isNull)
            }
            return
        }
        for index in 0..<Int(Format.fanOut) {
            let childStart = start + UInt64(index) * MapSpan.blocks(level - 1)
            try walk(
                before?[child: index] ?? .null, after?[child: index] ?? .null, level: level - 1, start: childStart)
            if !isFinished { return }
        }
    }

    private mutating func append(_ block: UInt64, isData: Bool) {
        if block < cursor { return }
        if let last = runs.last, last.isData == isData, last.blocks.upperBound == block {
            runs[runs.count - 1].blocks = last.blocks.lowerBound..<(block + 1)
        } else {
            runs.append(Run(blocks: block..<(block + 1), isData: isData))
        }
    }
}
