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

    init(ahead: UInt64, behind: UInt64, cursor: UInt64) {
        self.ahead = ahead
        self.behind = behind
        self.cursor = cursor
    }

    func owns(_ entry: LeafEntry, at block: UInt64) -> Bool {
        entry.birth > (block < cursor ? behind : ahead)
    }

    /// Whether anything below a page that begins at `start` may be this branch's.
    func mayOwn(_ pointer: NodePointer, from start: UInt64) -> Bool {
        pointer.birth > (start < cursor ? behind : ahead)
    }

    /// A page that reaches beyond the cursor is still the parent's business.
    func ownsPage(_ pointer: NodePointer, endingAt end: UInt64) -> Bool {
        pointer.birth > (end <= cursor ? behind : ahead)
    }
}

/// Merges one frozen layer into the map below it: copies the pages on the way to each change, and frees what the
/// branch alone had. One pass in the order of logical blocks, with one path of pages in memory.
///
/// What a hole covers whole is not walked: it is *detached*, which costs one reference, and becomes the map of a
/// deleted dataset of its own beside this one. Reclaim frees that step by step.
struct MapMerge {
    private struct Merged {
        var page: NodePointer
        /// What was detached below, at its place.
        var detached = NodePointer.null
    }

    private let writer: MetadataWriter
    private let epoch: UInt64
    private let floor: OwnershipFloor
    private let dataset: UInt64
    /// Nothing is mapped from here on.
    private let endBlock: UInt64
    private let inlineFrees: Int
    private let entries: [(block: UInt64, mapping: RecentMapping)]
    private let holes: [Range<UInt64>]
    private var mapped: Int64 = 0
    private var next = 0

    init(writer: MetadataWriter, layer: Layer, floor: OwnershipFloor) {
        self.writer = writer
        epoch = layer.epoch
        self.floor = floor
        (dataset, endBlock) = writer.extent(of: layer)
        inlineFrees = writer.inlineFrees
        entries = layer.sortedEntries()
        holes = layer.holes.ranges
    }

    /// Returns the new map, and the root of what was detached from it.
    mutating func run(onto base: MapRoot) throws(PoolError) -> (root: MapRoot, detached: NodePointer) {
        let merged = try merge(base.pointer, level: Format.mapRootLevel, start: 0)
        var root = base
        root.pointer = merged.page
        // How many blocks a lost page mapped is not known: they go on being counted.
        root.mappedBlocks = UInt64(max(0, Int64(base.mappedBlocks) + mapped))
        if merged.page.isNull, merged.detached.isNull, root.detached.isEmpty { root.mappedBlocks = 0 }
        return (root, merged.detached)
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

    /// Whether one hole covers all that can be mapped in a range.
    private func isCovered(_ range: Range<UInt64>) -> Bool {
        let index = firstHole(endingAfter: range.lowerBound)
        guard index < holes.count, holes[index].lowerBound <= range.lowerBound else { return false }
        return holes[index].upperBound >= min(range.upperBound, endBlock)
    }

    /// A page in place of one that cannot be read: it says of everything that it is lost.
    private func lostPage(_ pointer: NodePointer, level: Int, _ range: Range<UInt64>) -> Page {
        let page = Page()
        if level == 0 {
            for block in range.clamped(to: 0..<endBlock) {
                page[entry: Int(block - range.lowerBound)] = .lost(with: pointer.digest)
            }
        } else {
            for index in 0..<Int(Format.fanOut)
            where range.lowerBound + UInt64(index) * Self.span(level - 1) < endBlock {
                page[child: index] = .lost(with: pointer.digest)
            }
        }
        return page
    }

    private mutating func merge(_ pointer: NodePointer, level: Int, start: UInt64) throws(PoolError) -> Merged {
        let range = start..<(start + Self.span(level))
        let hasEntries = next < entries.count && entries[next].block < range.upperBound
        let hasHole = !pointer.isNull && touchesHole(range)
        guard hasEntries || hasHole else { return Merged(page: pointer) }
        // Single leaves are freed at once while they are few.
        if hasHole, level > 0 || writer.freed.count >= inlineFrees, isCovered(range) {
            let rest = try merge(.null, level: level, start: start)
            return Merged(page: rest.page, detached: pointer.isLost ? .null : pointer)
        }
        let old = pointer.isNull ? nil : try writer.loadWhole(pointer, level: level, start: start, of: dataset)
        let isLost = old == nil && !pointer.isNull
        // Where everything goes there is nothing to be lost.
        if isLost, hasHole, isCovered(range) { return try merge(.null, level: level, start: start) }
        let page =
            old.map { Page(copying: $0) }
            ?? (isLost && !writer.hasBug(.lostPageIsEmpty) ? lostPage(pointer, level: level, range) : Page())
        if level == 0 { return Merged(page: try mergeLeaf(page, replacing: pointer, isLost: isLost, range)) }
        var hasChanged = false
        var detached: Page?
        for index in 0..<Int(Format.fanOut) {
            let childStart = start + UInt64(index) * Self.span(level - 1)
            let before = page[child: index]
            let after = try merge(before, level: level - 1, start: childStart)
            if after.page != before {
                page[child: index] = after.page
                hasChanged = true
            }
            if !after.detached.isNull {
                if detached == nil { detached = Page() }
                detached?[child: index] = after.detached
            }
        }
        let whole = try finish(
            page, replacing: pointer, isLost: isLost, hasChanged: hasChanged, end: range.upperBound)
        guard let detached else { return Merged(page: whole) }
        return Merged(page: whole, detached: try writer.write(detached, birth: epoch))
    }

    private mutating func mergeLeaf(
        _ page: Page, replacing pointer: NodePointer, isLost: Bool, _ range: Range<UInt64>
    ) throws(PoolError) -> NodePointer {
        var hasChanged = false
        var freed: [UInt64] = []
        var overwritten: [UInt64] = []
        var placed: [UInt64] = []
        func drop(_ block: UInt64, isOverwritten: Bool) {
            let index = Int(block - range.lowerBound)
            let entry = page[entry: index]
            guard !entry.isNull else { return }
            guard !entry.isLost else {
                page[entry: index] = .null
                hasChanged = true
                return
            }
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
        return try finish(
            page, replacing: pointer, isLost: isLost, hasChanged: hasChanged, end: range.upperBound)
    }

    private func finish(
        _ page: Page, replacing old: NodePointer, isLost: Bool, hasChanged: Bool, end: UInt64
    ) throws(PoolError) -> NodePointer {
        guard hasChanged else { return old }
        // A page that cannot be read is set aside, like everything that only it leads to.
        if !old.isNull, !isLost, floor.ownsPage(old, endingAt: end) { try writer.free(old.block) }
        return page.isZero ? .null : try writer.write(page, birth: epoch)
    }
}
