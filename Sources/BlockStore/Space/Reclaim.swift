/// One bounded step of freeing what a deleted dataset alone has: walks its map beside its successor's in lock step.
///
/// With P the parent, D the dataset and N its only successor: a block of D is free when it was born after P's epoch and
/// N has another one, or none, at its place. A reference equal in both, or not younger than P, ends the descent.
///
/// D may be what a hole detached from a map. It has no successor, it may stand beside P's own reclaim, and until its
/// blocks are counted the walk also looks at what is P's.
struct ReclaimStep {
    private let writer: MetadataWriter
    private let dataset: UInt64
    private let floor: OwnershipFloor
    private let counts: Bool
    /// Pages that may still be looked at.
    private var budget: Int
    /// Logical block at which the next step goes on.
    private(set) var cursor: UInt64
    private(set) var isFinished = true
    private(set) var mappedBlocks: UInt64 = 0
    /// Blocks and pages that the step freed.
    private(set) var freedBlocks: UInt64 = 0

    init(
        writer: MetadataWriter, dataset: UInt64, floor: OwnershipFloor, cursor: UInt64, budget: Int, counts: Bool
    ) {
        self.writer = writer
        self.dataset = dataset
        self.floor = floor
        self.cursor = cursor
        self.budget = budget
        self.counts = counts
    }

    /// Returns the budget that is left.
    mutating func run(_ root: NodePointer, successor: NodePointer) throws(PoolError) -> Int {
        try walk(root, successor, level: Format.mapRootLevel, start: 0)
        return budget
    }

    private mutating func walk(
        _ pointer: NodePointer, _ successor: NodePointer, level: Int, start: UInt64
    ) throws(PoolError) {
        if pointer.isNull || pointer.isLost || pointer == successor { return }
        let end = start + MapSpan.blocks(level)
        if !counts, !floor.mayOwn(pointer, from: start) { return }
        // Stopping here leaves everything before `start` done and everything from it on untouched.
        guard budget > 0 else {
            isFinished = false
            // On the way back down to the cursor, `start` lies before it.
            cursor = max(cursor, start)
            return
        }
        budget -= 1
        // Where one of the two cannot be read nobody knows what is free: all of it is set aside.
        guard let page = try writer.loadWhole(pointer, level: level, start: start, of: dataset) else { return }
        var other: Page?
        if !successor.isNull, !successor.isLost {
            other = try writer.loadWhole(successor, level: level, start: start, of: dataset)
            if other == nil, !writer.hasBug(.lostSuccessorIsEmpty) { return }
        }
        if level == 0 { return try freeLeaf(page, pointer, other, start) }
        let span = MapSpan.blocks(level - 1)
        for index in 0..<Int(Format.fanOut) {
            let childStart = start + UInt64(index) * span
            if childStart + span <= cursor { continue }
            try walk(page[child: index], other?[child: index] ?? .null, level: level - 1, start: childStart)
            if !isFinished { return }
        }
        guard floor.ownsPage(pointer, endingAt: end) else { return }
        try writer.free(pointer.block)
        freedBlocks += 1
    }

    private mutating func freeLeaf(
        _ page: Page, _ pointer: NodePointer, _ other: Page?, _ start: UInt64
    ) throws(PoolError) {
        var freed: [UInt64] = []
        for index in 0..<Int(Format.leafEntries) {
            let entry = page[entry: index]
            if entry.isNull || entry.isLost { continue }
            mappedBlocks += 1
            if !floor.owns(entry, at: start + UInt64(index)) || other?[entry: index].block == entry.block { continue }
            freed.append(entry.block)
        }
        if floor.ownsPage(pointer, endingAt: start + Format.leafEntries) { freed.append(pointer.block) }
        try writer.free(freed)
        freedBlocks += UInt64(freed.count)
    }
}
