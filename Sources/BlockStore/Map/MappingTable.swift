/// What recent writes did to one block of a volume.
struct RecentMapping: Equatable, Sendable {
    /// Zero means unmapped.
    var block: UInt64
    var crc: UInt32
}

/// An open-addressing hash table from logical block to mapping: 16 bytes a slot, at most 70 % full, no removal
/// markers. Keys have 35 bits (a 64 TiB volume has 2^34 blocks), blocks 40 bits.
struct MappingTable: ~Copyable {
    // SAFETY: allocated by `grow` with `mask + 1` slots, reached through masked indices only, freed by its only owner.
    private var slots: UnsafeMutablePointer<(UInt64, UInt64)>?
    private var mask = 0
    private(set) var count = 0

    deinit { slots?.deallocate() }

    /// Four blocks that follow each other have their places in one cache line: large writes and reads touch few.
    private static func hash(_ key: UInt64) -> Int {
        let group = key >> 2
        return Int(truncatingIfNeeded: ((group ^ (group >> 21)) &* 0x9e37_79b9_7f4a_7c15) >> 24) << 2 | Int(key & 3)
    }

    private static func pack(_ key: UInt64, _ value: RecentMapping) -> (UInt64, UInt64) {
        ((key + 1) | value.block << 35, value.block >> 29 | UInt64(value.crc) << 32)
    }

    private static func key(_ slot: (UInt64, UInt64)) -> UInt64 { slot.0 & 0x7_ffff_ffff }

    private static func value(_ slot: (UInt64, UInt64)) -> RecentMapping {
        RecentMapping(
            block: slot.0 >> 35 | (slot.1 & 0x7ff) << 29, crc: UInt32(truncatingIfNeeded: slot.1 >> 32))
    }

    subscript(key: UInt64) -> RecentMapping? {
        guard let slots else { return nil }
        var index = Self.hash(key) & mask
        while true {
            let stored = Self.key(slots[index])
            if stored == 0 { return nil }
            if stored == key + 1 { return Self.value(slots[index]) }
            index = (index + 1) & mask
        }
    }

    /// Returns what was there.
    mutating func insert(_ value: RecentMapping, for key: UInt64) -> RecentMapping? {
        if (count + 1) * 10 > (mask + 1) * 7 || slots == nil { grow() }
        let slots = slots!
        var index = Self.hash(key) & mask
        while true {
            let stored = Self.key(slots[index])
            if stored == 0 {
                slots[index] = Self.pack(key, value)
                count += 1
                return nil
            }
            if stored == key + 1 {
                let old = Self.value(slots[index])
                slots[index] = Self.pack(key, value)
                return old
            }
            index = (index + 1) & mask
        }
    }

    /// Returns what was there.
    mutating func remove(_ key: UInt64) -> RecentMapping? {
        guard let slots else { return nil }
        var index = Self.hash(key) & mask
        while true {
            let stored = Self.key(slots[index])
            if stored == 0 { return nil }
            if stored == key + 1 { break }
            index = (index + 1) & mask
        }
        let old = Self.value(slots[index])
        // Moves later members of the chain back, so that no marker is needed.
        var hole = index
        var next = (index + 1) & mask
        while Self.key(slots[next]) != 0 {
            let home = Self.hash(Self.key(slots[next]) - 1) & mask
            if (next &- home) & mask >= (next &- hole) & mask {
                slots[hole] = slots[next]
                hole = next
            }
            next = (next + 1) & mask
        }
        slots[hole] = (0, 0)
        count -= 1
        return old
    }

    func forEach(_ body: (UInt64, RecentMapping) -> Void) {
        guard let slots else { return }
        for index in 0...mask where Self.key(slots[index]) != 0 {
            body(Self.key(slots[index]) - 1, Self.value(slots[index]))
        }
    }

    private mutating func grow() {
        let oldSlots = slots
        let oldCapacity = slots == nil ? 0 : mask + 1
        let capacity = max(16, oldCapacity * 2)
        let fresh = UnsafeMutableRawPointer.allocate(byteCount: capacity * 16, alignment: 64)
            .bindMemory(to: (UInt64, UInt64).self, capacity: capacity)
        fresh.initialize(repeating: (0, 0), count: capacity)
        mask = capacity - 1
        slots = fresh
        guard let oldSlots else { return }
        for index in 0..<oldCapacity where Self.key(oldSlots[index]) != 0 {
            var place = Self.hash(Self.key(oldSlots[index]) - 1) & mask
            while Self.key(fresh[place]) != 0 { place = (place + 1) & mask }
            fresh[place] = oldSlots[index]
        }
        oldSlots.deallocate()
    }
}

/// Disjoint, sorted ranges of logical blocks.
struct RangeSet: Sendable {
    private(set) var ranges: [Range<UInt64>] = []

    var isEmpty: Bool { ranges.isEmpty }

    /// Index of the first range that ends after `block`.
    private func firstIndex(endingAfter block: UInt64) -> Int {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].upperBound > block { high = middle } else { low = middle + 1 }
        }
        return low
    }

    func contains(_ block: UInt64) -> Bool {
        let index = firstIndex(endingAfter: block)
        return index < ranges.count && ranges[index].lowerBound <= block
    }

    mutating func insert(_ range: Range<UInt64>) {
        guard !range.isEmpty else { return }
        var first = firstIndex(endingAfter: range.lowerBound)
        if first > 0, ranges[first - 1].upperBound == range.lowerBound { first -= 1 }
        var last = first
        var merged = range
        while last < ranges.count, ranges[last].lowerBound <= range.upperBound {
            merged =
                min(merged.lowerBound, ranges[last].lowerBound)..<max(merged.upperBound, ranges[last].upperBound)
            last += 1
        }
        ranges.replaceSubrange(first..<last, with: CollectionOfOne(merged))
    }
}
