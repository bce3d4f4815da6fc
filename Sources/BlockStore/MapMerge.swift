/// What overwrites may free: blocks born after `ahead` belong to this branch alone. Where the parent is a deleted
/// snapshot that is being reclaimed, blocks before its cursor are already accounted to this branch from `behind` on.
struct OwnershipFloor {
    var ahead: UInt64
    var behind: UInt64
    /// Logical block at which the parent's reclaim stands.
    var cursor: UInt64

    init(parent: Dataset?) {
        ahead = parent?.epoch ?? 0
        behind = ahead
        cursor = 0
        if let parent, parent.role == .doomed, parent.cursor > 0 {
            behind = parent.floorEpoch
            cursor = parent.cursor
        }
    }

    func owns(_ entry: LeafEntry, at block: UInt64) -> Bool {
        entry.birth > (block < cursor ? behind : ahead)
    }

    /// A page that reaches beyond the cursor is still the parent's business.
    func ownsPage(_ pointer: NodePointer, endingAt end: UInt64) -> Bool {
        pointer.birth > (end <= cursor ? behind : ahead)
    }
}

/// Merges one frozen layer into the map below it: copies the pages on the way to each change, and frees what the
/// branch alone had. One pass in the order of logical blocks, with one path of pages in memory.
struct MapMerge {
    private let writer: MetadataWriter
    private let epoch: UInt64
    private let floor: OwnershipFloor
    private let entries: [(block: UInt64, mapping: RecentMapping)]
    private let holes: [Range<UInt64>]
    private var mapped: Int64 = 0
    private var next = 0

    init(writer: MetadataWriter, layer: Layer, floor: OwnershipFloor) {
        self.writer = writer
        epoch = layer.epoch
        self.floor = floor
        entries = layer.sortedEntries()
        holes = layer.holes.ranges
    }

    mutating func run(onto base: MapRoot) throws(PoolError) -> MapRoot {
        let pointer = try merge(base.pointer, level: Format.mapRootLevel, start: 0)
        return MapRoot(pointer: pointer, mappedBlocks: UInt64(Int64(base.mappedBlocks) + mapped))
    }

    private static func span(_ level: Int) -> UInt64 { Format.leafEntries << UInt64(7 * level) }

    private func firstHole(endingAfter block: UInt64) -> Int {
        var low = 0
        var high = holes.count
        while low < high {
            let middle = (low + high) / 2
            if holes[middle].upperBound > block { high = middle } else { low = middle + 1 }
        }
        return low
    }

    private func touchesHole(_ range: Range<UInt64>) -> Bool {
        let index = firstHole(endingAfter: range.lowerBound)
        return index < holes.count && holes[index].lowerBound < range.upperBound
    }

    private mutating func merge(_ pointer: NodePointer, level: Int, start: UInt64) throws(PoolError) -> NodePointer {
        let range = start..<(start + Self.span(level))
        let hasEntries = next < entries.count && entries[next].block < range.upperBound
        let hasHole = !pointer.isNull && touchesHole(range)
        guard hasEntries || hasHole else { return pointer }
        if level == 0 { return try mergeLeaf(pointer, range) }
        let old = pointer.isNull ? nil : try writer.load(pointer)
        let page = old.map { Page(copying: $0) } ?? Page()
        var hasChanged = false
        for index in 0..<Int(Format.fanOut) {
            let childStart = start + UInt64(index) * Self.span(level - 1)
            let before = page[child: index]
            let after = try merge(before, level: level - 1, start: childStart)
            if after != before {
                page[child: index] = after
                hasChanged = true
            }
        }
        return try finish(page, replacing: pointer, hasChanged: hasChanged, end: range.upperBound)
    }

    private mutating func mergeLeaf(_ pointer: NodePointer, _ range: Range<UInt64>) throws(PoolError) -> NodePointer {
        let old = pointer.isNull ? nil : try writer.load(pointer)
        let page = old.map { Page(copying: $0) } ?? Page()
        var hasChanged = false
        var freed: [UInt64] = []
        var overwritten: [UInt64] = []
        var placed: [UInt64] = []
        func drop(_ block: UInt64, isOverwritten: Bool) {
            let index = Int(block - range.lowerBound)
            let entry = page[entry: index]
            guard !entry.isNull else { return }
            if floor.owns(entry, at: block) {
                if isOverwritten { overwritten.append(entry.block) } else { freed.append(entry.block) }
            }
            page[entry: index] = .null
            mapped -= 1
            hasChanged = true
        }
        if !pointer.isNull {
            var hole = firstHole(endingAfter: range.lowerBound)
            while hole < holes.count, holes[hole].lowerBound < range.upperBound {
                for block in holes[hole].clamped(to: range) { drop(block, isOverwritten: false) }
                hole += 1
            }
        }
        while next < entries.count, entries[next].block < range.upperBound {
            let (block, mapping) = entries[next]
            drop(block, isOverwritten: mapping.block != 0)
            if mapping.block != 0 {
                page[entry: Int(block - range.lowerBound)] = LeafEntry(
                    block: mapping.block, birth: epoch, crc: mapping.crc)
                placed.append(mapping.block)
                mapped += 1
                hasChanged = true
            }
            next += 1
        }
        try writer.markDurable(placed)
        try writer.free(freed, overwritten: overwritten)
        return try finish(page, replacing: pointer, hasChanged: hasChanged, end: range.upperBound)
    }

    private func finish(
        _ page: Page, replacing old: NodePointer, hasChanged: Bool, end: UInt64
    ) throws(PoolError) -> NodePointer {
        guard hasChanged else { return old }
        if !old.isNull, floor.ownsPage(old, endingAt: end) { try writer.free(old.block) }
        return page.isZero ? .null : try writer.write(page, birth: epoch)
    }
}
