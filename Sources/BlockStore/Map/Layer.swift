/// The recent changes of one head between two cuts or checkpoints. Newer layers lie on older ones; below the oldest
/// is the map on disk. Only the top layer of a head changes, under the pool's lock; the others are frozen.
final class Layer {
    private static let shardCount = 64

    /// The shards keep each table's growth short: no writer waits while a million entries move.
    private struct Shard: ~Copyable {
        var table = MappingTable()
        var leaves = MappingTable()
    }

    let number: UInt64
    /// Birth epoch of everything in the layer.
    var epoch: UInt64
    /// The layer below, until a checkpoint has merged it.
    var below: Layer?
    /// The map on disk below this layer, once there is no layer below.
    var base: MapRoot
    /// The snapshot or head in whose time the layer was written; decides what its overwrites may free.
    var owner: Dataset
    // SAFETY: `shardCount` initialized elements for as long as the layer lives; `shard(of:)` is below that.
    private let shards = UnsafeMutablePointer<Shard>.allocate(capacity: shardCount)
    /// Unmapped ranges. An entry in a table is younger than a range that holds its block.
    private(set) var holes = RangeSet()
    private(set) var count = 0
    private(set) var leafCount: UInt64 = 0
    /// What the pool's sum of `pagesToMerge` holds for this layer.
    var accountedPages: UInt64 = 0

    init(number: UInt64, epoch: UInt64, below: Layer?, base: MapRoot, owner: Dataset) {
        self.number = number
        self.epoch = epoch
        self.below = below
        self.base = base
        self.owner = owner
        for index in 0..<Self.shardCount { (shards + index).initialize(to: Shard()) }
    }

    deinit {
        shards.deinitialize(count: Self.shardCount)
        shards.deallocate()
    }

    var isEmpty: Bool { count == 0 && holes.isEmpty }

    private static func shard(of block: UInt64) -> Int {
        let leaf = block / Format.leafEntries
        return Int(truncatingIfNeeded: (leaf &* 0x9e37_79b9_7f4a_7c15) >> 58)
    }

    /// What the layer says about a block; nil when it says nothing.
    func lookup(_ block: UInt64) -> RecentMapping? {
        if count > 0, let found = shards[Self.shard(of: block)].table[block] { return found }
        if !holes.isEmpty, holes.contains(block) { return RecentMapping(block: 0, crc: 0) }
        return nil
    }

    /// Returns the physical block that the layer had for this one, or 0.
    func insert(_ mapping: RecentMapping, for block: UInt64) -> UInt64 {
        let shard = Self.shard(of: block)
        if let old = shards[shard].table.insert(mapping, for: block) { return old.block }
        count += 1
        let leaf = block / Format.leafEntries
        if shards[shard].leaves.insert(RecentMapping(block: 1, crc: 0), for: leaf) == nil { leafCount += 1 }
        return 0
    }

    /// As `insert` for `crcs.count` blocks from `block` on, which lie one after the other from `physical` on;
    /// `replaced` gets the physical blocks that the layer had for them.
    func insert(
        run physical: UInt64, crcs: UnsafeBufferPointer<UInt32>, for block: UInt64, replaced: (UInt64) -> Void
    ) {
        var at = 0
        while at < crcs.count {
            let first = block + UInt64(at)
            let leaf = first / Format.leafEntries
            let end = min(crcs.count, at + Int(Format.leafEntries - first % Format.leafEntries))
            let shard = Self.shard(of: first)
            var added = 0
            while at < end {
                let mapping = RecentMapping(block: physical + UInt64(at), crc: crcs[at])
                if let old = shards[shard].table.insert(mapping, for: block + UInt64(at)) {
                    if old.block != 0 { replaced(old.block) }
                } else {
                    added += 1
                }
                at += 1
            }
            guard added > 0 else { continue }
            count += added
            if shards[shard].leaves.insert(RecentMapping(block: 1, crc: 0), for: leaf) == nil { leafCount += 1 }
        }
    }

    /// Unmaps a range; `freed` gets each physical block that the layer alone had.
    func unmap(_ range: Range<UInt64>, freed: (UInt64) -> Void) {
        if count > 0, range.count > count {
            // Fewer entries than blocks in the range: look at the entries.
            var inside: [UInt64] = []
            forEach { block, _ in if range.contains(block) { inside.append(block) } }
            for block in inside { drop(block, freed: freed) }
        } else if count > 0 {
            for block in range { drop(block, freed: freed) }
        }
        holes.insert(range)
    }

    private func drop(_ block: UInt64, freed: (UInt64) -> Void) {
        guard let old = shards[Self.shard(of: block)].table.remove(block) else { return }
        count -= 1
        if old.block != 0 { freed(old.block) }
    }

    func forEach(_ body: (UInt64, RecentMapping) -> Void) {
        for index in 0..<Self.shardCount { shards[index].table.forEach(body) }
    }

    /// All entries in the order of their logical blocks.
    func sortedEntries() -> [(block: UInt64, mapping: RecentMapping)] {
        var entries: [(block: UInt64, mapping: RecentMapping)] = []
        entries.reserveCapacity(count)
        forEach { entries.append(($0, $1)) }
        entries.sort { $0.block < $1.block }
        return entries
    }

    /// The most pages that merging this layer into its map can write.
    var pagesToMerge: UInt64 {
        let leaves = leafCount + UInt64(holes.ranges.count) * 2
        guard leaves > 0 else { return 0 }
        let volumeLeaves = owner.sizeBytes / (Format.leafEntries * UInt64(Format.blockBytes)) + 1
        var pages = leaves
        var span = volumeLeaves
        for _ in 0..<Format.mapRootLevel {
            span = span / Format.fanOut + 1
            // What the holes detach gets pages of its own on the way to it.
            pages += min(leaves, span) + min(UInt64(holes.ranges.count) * 2, span)
        }
        return pages
    }
}
