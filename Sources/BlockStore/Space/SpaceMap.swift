/// Which blocks are in use. The pool is divided into regions; each has a bitmap page on disk and serves data, or map
/// pages, or nothing yet. Guarded by the pool's lock.
///
/// Two bits a block. `durable` is what the checkpoint being built says: the block belongs to a tree. `busy` adds what
/// must not be handed out now: written since, or freed but still readable through the last checkpoint.
final class SpaceMap {
    enum Kind: UInt8 {
        case unused = 0
        case data = 1
        case metadata = 2
    }

    final class Bits {
        let words: Int
        // SAFETY: both hold `words` words for as long as the object lives; bits come from block numbers modulo a
        // region.
        let busy: UnsafeMutablePointer<UInt64>
        let durable: UnsafeMutablePointer<UInt64>
        /// Groups of which is known that the file has storage for them, a bit each. Nothing is wrong with one too few.
        var backedGroups: [UInt64]

        init(words: Int) {
            self.words = words
            backedGroups = .init(repeating: 0, count: (words * 64 / SpaceMap.groupBlocks + 63) / 64)
            busy = .allocate(capacity: words)
            durable = .allocate(capacity: words)
            busy.initialize(repeating: 0, count: words)
            durable.initialize(repeating: 0, count: words)
        }

        deinit {
            busy.deallocate()
            durable.deallocate()
        }
    }

    struct Region {
        var pointer = NodePointer.null
        var kind = Kind.unused
        var durableCount = 0
        var busyCount = 0
        var isDirty = false
        /// In memory for regions that are being written to, and for a bounded number of others.
        var bits: Bits?
        /// How a region without bits in memory differs from its page; nil where it does not.
        var difference: Difference?
        /// Its page cannot be read: all of its blocks count as used, but those that are known to be free.
        var isLost = false
        /// Blocks in use when no long run was found; it takes some that come free for another look.
        var busyWhenRunless = Int.max
    }

    /// With P what the page on disk says: durable = P − cleared, busy = P + taken.
    final class Difference {
        var cleared: [UInt16] = []
        var taken: [UInt16] = []

        var isEmpty: Bool { cleared.isEmpty && taken.isEmpty }
    }

    let regionBlocks: UInt64
    /// As many regions as the pool may have; `regions` holds those that were ever used.
    private(set) var regionLimit: Int
    private(set) var regions: [Region] = []
    private(set) var busyBlocks: UInt64 = 0
    /// Blocks of metadata regions that can be handed out.
    private(set) var metadataFree: UInt64 = 0
    /// Blocks that data can have: of data regions and of unused ones.
    private(set) var dataFree: UInt64
    var regionsInUse: Int { regions.count }
    private(set) var dirtyRegions: Set<Int> = []
    private var dataRegion = 0
    private var dataHint = 0
    /// Where large writes go: not among the blocks that came free one by one.
    private var runRegion = 0
    private var runHint = 0
    /// So many more allocations take what there is, long runs or not.
    private var allocationsWithoutRuns = 0
    private var heldGroups = 0
    private var metadataRegion = 0
    private var metadataHint = 0
    private let reusesBlocksFirst: Bool
    private let limitBytes: UInt64
    private let plantedBug: PlantedBug?
    /// Regions with bits in memory, the longest there first.
    private var loaded: [Int] = []
    private let load: (NodePointer) throws(PoolError) -> Page
    private var newlyLost: [NodePointer] = []
    /// A page was lost since the pool was opened, or last rebuilt.
    var hasLosses = false
    /// Of some regions not even the kind is known.
    private(set) var hasLostKinds = false

    init(
        totalBlocks: UInt64, regionBlocks: UInt64, options: PoolOptions,
        load: @escaping (NodePointer) throws(PoolError) -> Page
    ) {
        reusesBlocksFirst = options.reusesBlocksFirst
        limitBytes = options.spaceMapBytes
        plantedBug = options.plantedBug
        self.regionBlocks = regionBlocks
        regionLimit = Int(totalBlocks / regionBlocks)
        dataFree = totalBlocks / regionBlocks * regionBlocks
        self.load = load
    }

    // MARK: Regions

    /// Takes a region's state from the checkpoint.
    func restore(region index: Int, pointer: NodePointer, kind: Kind, count: Int) {
        extend(to: index)
        regions[index].pointer = pointer
        regions[index].durableCount = count
        regions[index].busyCount = count
        busyBlocks += UInt64(count)
        dataFree -= UInt64(count)
        setKind(kind, of: index)
    }

    /// The pool has grown.
    func raiseLimit(toRegions limit: Int) {
        guard limit > regionLimit else { return }
        dataFree += UInt64(limit - regionLimit) * regionBlocks
        regionLimit = limit
    }

    private func extend(to index: Int) {
        while regions.count <= index { regions.append(Region()) }
    }

    private func setKind(_ kind: Kind, of index: Int) {
        let free = regionBlocks - UInt64(regions[index].busyCount)
        if regions[index].kind == .metadata { metadataFree -= free } else { dataFree -= free }
        regions[index].kind = kind
        if kind == .metadata { metadataFree += free } else { dataFree += free }
    }

    /// Gives an entirely free region to map pages. The caller has backed it with storage.
    func dedicateToMetadata(region index: Int) {
        extend(to: index)
        precondition(regions[index].busyCount == 0 && regions[index].kind != .metadata)
        setKind(.metadata, of: index)
        markDirty(index)
    }

    /// A region that could serve map pages.
    func emptyRegion() -> Int? {
        if let unused = regions.firstIndex(where: { $0.kind != .metadata && $0.busyCount == 0 }) { return unused }
        return regionsInUse < regionLimit ? regionsInUse : nil
    }

    func setPointer(_ pointer: NodePointer, ofRegion index: Int) {
        regions[index].pointer = pointer
        regions[index].isLost = false
        regions[index].isDirty = false
        dirtyRegions.remove(index)
        guard let difference = regions[index].difference else { return }
        // The page says now what was cleared, which is still taken until it is released.
        difference.taken.append(contentsOf: difference.cleared)
        difference.cleared = []
        if difference.taken.isEmpty { regions[index].difference = nil }
    }

    private func markDirty(_ index: Int) {
        guard !regions[index].isDirty else { return }
        regions[index].isDirty = true
        dirtyRegions.insert(index)
    }

    /// Reads a region's bitmap where it is not in memory: under the lock, for a region that is going to be written to.
    func bits(ofRegion index: Int) throws(PoolError) -> Bits {
        if let bits = regions[index].bits { return bits }
        let words = Int(regionBlocks / 64)
        guard let saved = try savedPage(ofRegion: index) else { return lose(region: index) }
        let bits = Bits(words: words)
        let page = try applyDifference(ofRegion: index, to: saved)
        for word in 0..<words {
            bits.durable[word] = page.word(word * 8)
            bits.busy[word] = page.word(word * 8)
        }
        if let difference = regions[index].difference {
            for bit in difference.cleared { Self.set(bits.busy, Int(bit)) }
            for bit in difference.taken { Self.set(bits.busy, Int(bit)) }
        }
        regions[index].difference = nil
        regions[index].bits = bits
        // Not this one, which the caller is about to change.
        trim(most: 4)
        loaded.append(index)
        return bits
    }

    /// A region's bitmap as the checkpoint being built has it.
    func durablePage(ofRegion index: Int) throws(PoolError) -> Page {
        if regions[index].bits == nil, let saved = try savedPage(ofRegion: index) {
            return try applyDifference(ofRegion: index, to: saved)
        }
        let bits = try bits(ofRegion: index)
        let page = Page()
        for word in 0..<bits.words { page.setWord(word * 8, bits.durable[word]) }
        return page
    }

    /// What the last checkpoint says of a region, in a page of its own; nil when that cannot be read.
    private func savedPage(ofRegion index: Int) throws(PoolError) -> Page? {
        if regions[index].pointer.isNull { return regions[index].isLost ? nil : Page() }
        do throws(PoolError) {
            return Page(copying: try load(regions[index].pointer))
        } catch {
            // Not one place: the whole disk.
            if case .io = error { throw error }
            return nil
        }
    }

    private func applyDifference(ofRegion index: Int, to page: Page) throws(PoolError) -> Page {
        guard let difference = regions[index].difference else { return page }
        for bit in difference.cleared {
            let word = page.word(Int(bit) / 64 * 8)
            let mask = UInt64(1) << UInt64(bit % 64)
            guard word & mask != 0 else {
                throw .damaged("block \(UInt64(index) * regionBlocks + UInt64(bit)) was freed twice")
            }
            page.setWord(Int(bit) / 64 * 8, word ^ mask)
        }
        return page
    }

    // MARK: Lost pages

    /// All blocks of a region count as used from now on, so that nothing is overwritten that somebody may refer to.
    /// What memory knows better stays: blocks that were taken since belong to no checkpoint, and those that were freed
    /// neither.
    @discardableResult
    private func lose(region index: Int) -> Bits {
        let bits = Bits(words: Int(regionBlocks / 64))
        for word in 0..<bits.words {
            bits.busy[word] = ~0
            bits.durable[word] = ~0
        }
        if let difference = regions[index].difference {
            for bit in difference.cleared + difference.taken { Self.clear(bits.durable, Int(bit)) }
        }
        regions[index].difference = nil
        regions[index].bits = bits
        regions[index].isLost = true
        regions[index].durableCount = (0..<bits.words).reduce(0) { $0 + bits.durable[$1].nonzeroBitCount }
        countBusy(index, by: Int(regionBlocks) - regions[index].busyCount)
        loaded.append(index)
        newlyLost.append(regions[index].pointer)
        hasLosses = true
        markDirty(index)
        return bits
    }

    /// Not even what kind a region has can be read.
    func restoreLost(region index: Int) {
        extend(to: index)
        setKind(.data, of: index)
        lose(region: index)
        hasLostKinds = true
    }

    /// The next checkpoint writes the region's page, and those above it, though nothing changes.
    func rewrite(region index: Int) { markDirty(index) }

    /// The pages that were lost since the last time.
    func takeNewlyLost() -> [NodePointer] {
        defer { newlyLost = [] }
        return newlyLost
    }

    /// Frees what nothing reaches, and gives a region whose kind was lost the one of what it holds. Nothing is lost
    /// afterwards.
    func rebuild(region index: Int, kind: Kind?, isReached: (UInt64) -> Bool) throws(PoolError) -> Int {
        let bits = try bits(ofRegion: index)
        let first = UInt64(index) * regionBlocks
        var freed = 0
        for bit in 0..<Int(regionBlocks) where Self.test(bits.durable, bit) && !isReached(first + UInt64(bit)) {
            Self.clear(bits.durable, bit)
            Self.clear(bits.busy, bit)
            freed += 1
        }
        regions[index].durableCount -= freed
        countBusy(index, by: -freed)
        if regions[index].isLost, let kind { setKind(kind, of: index) }
        regions[index].isLost = false
        if freed > 0 { markDirty(index) }
        return freed
    }

    // MARK: Memory

    /// Bytes of bitmaps in memory.
    var bitmapBytes: UInt64 { UInt64(loaded.count) * regionBlocks / 4 }

    /// Whether more bitmaps are in memory than there should be.
    var isOverLimit: Bool { bitmapBytes > limitBytes }

    /// Gives up bitmaps that say what their page says, but for a few blocks.
    func trim(most: Int) {
        var steps = min(most, loaded.count)
        while steps > 0, isOverLimit {
            steps -= 1
            let index = loaded.removeFirst()
            if !giveUpBits(ofRegion: index) { loaded.append(index) }
        }
    }

    private func hasBug(_ bug: PlantedBug) -> Bool {
        #if DEBUG
            return plantedBug == bug
        #else
            return false
        #endif
    }

    private func giveUpBits(ofRegion index: Int) -> Bool {
        let region = regions[index]
        guard let bits = region.bits, !region.isDirty, ![dataRegion, runRegion, metadataRegion].contains(index),
            region.busyCount - region.durableCount <= 1024
        else { return false }
        if region.busyCount > region.durableCount, !hasBug(.takenForgotten) {
            let difference = Difference()
            for word in 0..<bits.words {
                var taken = bits.busy[word] & ~bits.durable[word]
                while taken != 0 {
                    difference.taken.append(UInt16(word * 64 + taken.trailingZeroBitCount))
                    taken &= taken - 1
                }
            }
            regions[index].difference = difference
        }
        regions[index].bits = nil
        return true
    }

    private func difference(ofRegion index: Int) -> Difference {
        if let difference = regions[index].difference { return difference }
        let difference = Difference()
        regions[index].difference = difference
        return difference
    }

    // MARK: Handing out

    /// Looks for free blocks from the beginning again.
    func rewind() {
        dataRegion = 0
        dataHint = 0
        allocationsWithoutRuns = 4096
    }

    /// Up to `wanted` blocks in one run for data; nil when there is none.
    func allocateData(_ wanted: Int) throws(PoolError) -> Range<UInt64>? {
        guard dataFree > 0 else { return nil }
        if allocationsWithoutRuns > 0 {
            allocationsWithoutRuns -= 1
        } else if wanted >= Self.longRunBlocks {
            if reusesBlocksFirst {
                runRegion = 0
                runHint = 0
            }
            if let run = try allocateLongRun(wanted) { return run }
        }
        if reusesBlocksFirst { dataRegion = 0 }
        if let run = try takeRun(wanted, region: dataRegion, kind: .data, hint: &dataHint) { return run }
        while let next = nextDataRegion() {
            dataRegion = next
            dataHint = 0
            if let run = try takeRun(wanted, region: next, kind: .data, hint: &dataHint) { return run }
        }
        return nil
    }

    /// Of the next regions the emptiest, where it is half empty; otherwise a fresh one, for as long as the pool does
    /// not take half as much again as what is in use; otherwise the emptiest. What is half empty has free blocks in
    /// runs, and writes of single blocks reach the disk as runs.
    private func nextDataRegion() -> Int? {
        let full = Int(regionBlocks)
        var best: (index: Int, busyCount: Int)?
        for step in stride(from: 1, through: regionsInUse, by: 1) {
            let index = (dataRegion + step) % regionsInUse
            let region = regions[index]
            // Single blocks keep out of where runs are handed out.
            if region.kind != .metadata, index != runRegion, region.busyCount < best?.busyCount ?? full {
                best = (index, region.busyCount)
            }
            if step >= Self.regionsToCompare, best != nil { break }
        }
        let canBeFresh = regionsInUse < regionLimit
        guard let best else {
            let hasRoom = runRegion < regionsInUse && regions[runRegion].kind != .metadata
            if hasRoom, regions[runRegion].busyCount < full, !canBeFresh || allocationsWithoutRuns > 0 {
                return runRegion
            }
            return canBeFresh ? regionsInUse : nil
        }
        let isRoomy = regionsInUse * 2 > Int(3 * busyBlocks / regionBlocks) + 2 * Self.spareRegions
        if best.busyCount <= full / 2 || isRoomy || !canBeFresh || allocationsWithoutRuns > 0 { return best.index }
        return regionsInUse
    }

    private static let regionsToCompare = 256
    /// The pool may take so many more than any ratio says.
    private static let spareRegions = 8

    /// 32 KiB: from here on a request is not cut into pieces for the sake of single free blocks.
    private static let longRunBlocks = 8

    /// Up to `wanted` blocks, at least eight, or sixteen of a larger request; nil where only shorter runs are left, and
    /// a fresh region would make the pool take more than twice the room of what is in use.
    private func allocateLongRun(_ wanted: Int) throws(PoolError) -> Range<UInt64>? {
        // Few at a time, because others wait: what is passed over is not looked at again soon.
        for _ in 0..<4 {
            if let run = try takeLongRun(wanted) { return run }
            guard let next = nextRunRegion() else { break }
            runRegion = next
            runHint = 0
        }
        let isSparse = regionsInUse > Int(2 * busyBlocks / regionBlocks) + Self.spareRegions
        guard regionsInUse < regionLimit, !isSparse else { return nil }
        runRegion = regionsInUse
        runHint = 0
        return try takeLongRun(wanted)
    }

    private func takeLongRun(_ wanted: Int) throws(PoolError) -> Range<UInt64>? {
        extend(to: runRegion)
        let region = regions[runRegion]
        guard region.kind != .metadata, region.busyCount + Self.longRunBlocks <= Int(regionBlocks) else { return nil }
        let bits = try bits(ofRegion: runRegion)
        let hasSixteen = wanted >= 2 * Self.longRunBlocks
        let found = findLongRun(bits, hasSixteen, from: runHint) ?? findLongRun(bits, hasSixteen, from: 0)
        guard let first = found else {
            regions[runRegion].busyWhenRunless = region.busyCount
            return nil
        }
        return take(wanted, from: first, bits, region: runRegion, kind: .data, hint: &runHint)
    }

    private func nextRunRegion() -> Int? {
        let full = Int(regionBlocks)
        for step in 1...max(1, regionsInUse) {
            let index = (runRegion + step) % max(1, regionsInUse)
            let region = regions[index]
            guard region.kind != .metadata, index != dataRegion, region.busyCount <= full - full / 8 else {
                continue
            }
            if region.busyWhenRunless == .max || region.busyCount <= region.busyWhenRunless - full / 32 { return index }
        }
        return nil
    }

    /// Eight or sixteen free blocks of one word.
    private func findLongRun(_ bits: Bits, _ hasSixteen: Bool, from hint: Int) -> Int? {
        guard hint < bits.words * 64 else { return nil }
        var mask = ~UInt64(0) << UInt64(hint % 64)
        for word in (hint / 64)..<bits.words {
            var runs = ~bits.busy[word] & mask
            mask = ~0
            runs &= runs >> 1
            runs &= runs >> 2
            runs &= runs >> 4
            if hasSixteen { runs &= runs >> 8 }
            if runs != 0 { return word * 64 + runs.trailingZeroBitCount }
        }
        return nil
    }

    private func takeRun(
        _ wanted: Int, region: Int, kind: Kind, hint: inout Int
    ) throws(PoolError) -> Range<UInt64>? {
        extend(to: region)
        guard regions[region].busyCount < Int(regionBlocks) else { return nil }
        if kind == .data, regions[region].kind == .metadata { return nil }
        let bits = try bits(ofRegion: region)
        // What came free behind the hint lies in single blocks: data leaves it for the next time.
        guard let first = findFree(bits, from: hint) ?? (kind == .metadata ? findFree(bits, from: 0) : nil) else {
            return nil
        }
        return take(wanted, from: first, bits, region: region, kind: kind, hint: &hint)
    }

    private func take(
        _ wanted: Int, from first: Int, _ bits: Bits, region: Int, kind: Kind, hint: inout Int
    ) -> Range<UInt64> {
        var count = 1
        while count < wanted, first + count < Int(regionBlocks),
            !Self.test(bits.busy, first + count) || hasBug(.runNotLookedAt)
        { count += 1 }
        for bit in first..<(first + count) { Self.set(bits.busy, bit) }
        hint = reusesBlocksFirst ? 0 : first + count
        if regions[region].kind != kind { setKind(kind, of: region) }
        countBusy(region, by: count)
        let start = UInt64(region) * regionBlocks + UInt64(first)
        return start..<(start + UInt64(count))
    }

    private func findFree(_ bits: Bits, from hint: Int) -> Int? {
        guard hint < bits.words * 64 else { return nil }
        var word = hint / 64
        var free = ~bits.busy[word] & (~UInt64(0) << UInt64(hint % 64))
        while true {
            if free != 0 { return word * 64 + free.trailingZeroBitCount }
            word += 1
            guard word < bits.words else { return nil }
            free = ~bits.busy[word]
        }
    }

    /// One block for a map page; nil when the metadata regions are full.
    func allocateMetadata() throws(PoolError) -> UInt64? {
        guard metadataFree > 0 else { return nil }
        for step in 0..<regionsInUse {
            let index = (metadataRegion + step) % regionsInUse
            guard regions[index].kind == .metadata, regions[index].busyCount < Int(regionBlocks) else { continue }
            if index != metadataRegion {
                metadataRegion = index
                metadataHint = 0
            }
            if let run = try takeRun(1, region: index, kind: .metadata, hint: &metadataHint) { return run.lowerBound }
        }
        return nil
    }

    private func countBusy(_ region: Int, by change: Int) {
        regions[region].busyCount += change
        busyBlocks = UInt64(Int64(busyBlocks) + Int64(change))
        if regions[region].kind == .metadata {
            metadataFree = UInt64(Int64(metadataFree) - Int64(change))
        } else {
            dataFree = UInt64(Int64(dataFree) - Int64(change))
        }
    }

    // MARK: Groups

    /// 64 KiB: what is punched out at a time, and backed with storage at a time.
    static let groupBlocks = 16

    /// More of them would be begun by many writers at once, and a flush would write the zeros behind them.
    private static let groupsToHold = 2

    /// Takes the rest of a group whose first blocks were just handed out, where the whole of it was free and may have
    /// no storage: for the time of the write, which gives it all some. Nil where there is nothing to be gained.
    func holdGroup(behind run: Range<UInt64>) -> Range<UInt64>? {
        let count = UInt64(Self.groupBlocks)
        // Near the end of the room nobody is to miss what others hold.
        guard heldGroups < Self.groupsToHold, run.lowerBound % count == 0, run.count < Self.longRunBlocks,
            dataFree > 1024
        else { return nil }
        let region = Int(run.lowerBound / regionBlocks)
        guard let bits = regions[region].bits else { return nil }
        let bit = Int(run.lowerBound % regionBlocks)
        let group = bit / Self.groupBlocks
        guard bits.backedGroups[group / 64] >> UInt64(group % 64) & 1 == 0 else { return nil }
        let rest = (bit + run.count)..<(bit + Self.groupBlocks)
        guard rest.allSatisfy({ !Self.test(bits.busy, $0) }) else { return nil }
        bits.backedGroups[group / 64] |= 1 << UInt64(group % 64)
        for bit in rest { Self.set(bits.busy, bit) }
        countBusy(region, by: rest.count)
        heldGroups += 1
        return run.upperBound..<(run.lowerBound + count)
    }

    /// Gives back what was held: the next small writes go there.
    func releaseHeld(_ rest: Range<UInt64>) throws(PoolError) {
        heldGroups -= 1
        try release(rest)
        let (region, bit) = try place(rest.lowerBound)
        if region == dataRegion { dataHint = min(dataHint, bit) }
    }

    // MARK: Single blocks

    private static func test(_ words: UnsafeMutablePointer<UInt64>, _ bit: Int) -> Bool {
        words[bit / 64] >> UInt64(bit % 64) & 1 != 0
    }

    private static func set(_ words: UnsafeMutablePointer<UInt64>, _ bit: Int) {
        words[bit / 64] |= 1 << UInt64(bit % 64)
    }

    private static func clear(_ words: UnsafeMutablePointer<UInt64>, _ bit: Int) {
        words[bit / 64] &= ~(1 << UInt64(bit % 64))
    }

    private func place(_ block: UInt64) throws(PoolError) -> (region: Int, bit: Int) {
        let region = Int(block / regionBlocks)
        guard region < regionLimit else { throw .damaged("block \(block) lies beyond the end of the pool") }
        extend(to: region)
        return (region, Int(block % regionBlocks))
    }

    /// Makes a block available again.
    func release(_ block: UInt64) throws(PoolError) {
        let (region, bit) = try place(block)
        if regions[region].bits == nil, let difference = regions[region].difference,
            let index = difference.taken.lastIndex(of: UInt16(bit))
        {
            difference.taken.swapAt(index, difference.taken.count - 1)
            difference.taken.removeLast()
            if difference.isEmpty { regions[region].difference = nil }
            countBusy(region, by: -1)
            return
        }
        let bits = try bits(ofRegion: region)
        guard Self.test(bits.busy, bit), !Self.test(bits.durable, bit) else {
            throw .damaged("block \(block) was freed twice")
        }
        Self.clear(bits.busy, bit)
        countBusy(region, by: -1)
    }

    /// The same for blocks of one run.
    func release(_ run: Range<UInt64>) throws(PoolError) {
        let (region, bit) = try place(run.lowerBound)
        guard run.count > 1, bit + run.count <= Int(regionBlocks), let bits = regions[region].bits else {
            for block in run { try release(block) }
            return
        }
        for index in bit..<(bit + run.count) {
            guard Self.test(bits.busy, index), !Self.test(bits.durable, index) else {
                throw .damaged("block \(run.lowerBound + UInt64(index - bit)) was freed twice")
            }
            Self.clear(bits.busy, index)
        }
        countBusy(region, by: -run.count)
    }

    /// Marks a block that a recovered mapping uses.
    func occupy(_ block: UInt64) throws(PoolError) {
        let (region, bit) = try place(block)
        let bits = try bits(ofRegion: region)
        if regions[region].isLost, Self.test(bits.durable, bit) {
            // A mapping that no checkpoint has seen: it is taken, and belongs to none.
            Self.clear(bits.durable, bit)
            regions[region].durableCount -= 1
            return
        }
        guard !Self.test(bits.busy, bit) else { throw .damaged("block \(block) has two owners") }
        Self.set(bits.busy, bit)
        if regions[region].kind == .unused { setKind(.data, of: region) }
        countBusy(region, by: 1)
    }

    /// The block belongs to the checkpoint being built.
    func markDurable(_ block: UInt64) throws(PoolError) {
        let (region, bit) = try place(block)
        let bits = try bits(ofRegion: region)
        guard Self.test(bits.busy, bit), !Self.test(bits.durable, bit) else {
            throw .damaged("block \(block) was put into use twice")
        }
        Self.set(bits.durable, bit)
        regions[region].durableCount += 1
        markDirty(region)
    }

    /// The block does not belong to the checkpoint being built any more; it stays busy until that one is durable.
    func clearDurable(_ block: UInt64) throws(PoolError) {
        let (region, bit) = try place(block)
        if regions[region].bits == nil {
            // Whether the page has it is seen when the page is written.
            difference(ofRegion: region).cleared.append(UInt16(bit))
        } else {
            let bits = try bits(ofRegion: region)
            guard Self.test(bits.durable, bit) else { throw .damaged("block \(block) was freed twice") }
            Self.clear(bits.durable, bit)
        }
        regions[region].durableCount -= 1
        markDirty(region)
    }

    /// Reserves the superblocks and the journal of a new pool; what is left of their regions is for map pages.
    func reserveForPool(_ count: UInt64) throws(PoolError) {
        for block in 0..<count {
            try occupy(block)
            try markDurable(block)
        }
        for region in 0...Int((count - 1) / regionBlocks) { setKind(.metadata, of: region) }
    }

    /// Decides which of the sorted, freed `blocks` can be punched out with their neighbours, in groups of 64 KiB. The
    /// free blocks of such a group are taken meanwhile, so that nobody writes there. Returns the ranges to punch and
    /// all blocks to release afterwards.
    func planPunches(_ blocks: [UInt64]) throws(PoolError) -> (punches: [Range<UInt64>], releases: [UInt64]) {
        let groupBlocks = UInt64(Self.groupBlocks)
        var punches: [Range<UInt64>] = []
        var releases = blocks
        var at = 0
        while at < blocks.count {
            let start = blocks[at] / groupBlocks * groupBlocks
            var end = at
            while end < blocks.count, blocks[end] < start + groupBlocks { end += 1 }
            defer { at = end }
            let (region, bit) = try place(start)
            guard regions[region].kind == .data else { continue }
            // For one block here and there in a large pool nobody reads bitmaps.
            guard regions[region].bits != nil || end - at >= Int(groupBlocks) / 4 else { continue }
            let bits = try bits(ofRegion: region)
            let free = (bit..<(bit + Int(groupBlocks))).filter { !Self.test(bits.busy, $0) }
            guard free.count + (end - at) == Int(groupBlocks) else { continue }
            for bit in free {
                Self.set(bits.busy, bit)
                releases.append(UInt64(region) * regionBlocks + UInt64(bit))
            }
            countBusy(region, by: free.count)
            let group = bit / Self.groupBlocks
            bits.backedGroups[group / 64] &= ~(1 << UInt64(group % 64))
            if let last = punches.last, last.upperBound == start {
                punches[punches.count - 1] = last.lowerBound..<(start + groupBlocks)
            } else {
                punches.append(start..<(start + groupBlocks))
            }
        }
        return (punches, releases)
    }

    func isBusy(_ block: UInt64) throws(PoolError) -> Bool {
        let (region, bit) = try place(block)
        return Self.test(try bits(ofRegion: region).busy, bit)
    }

    func isDurable(_ block: UInt64) throws(PoolError) -> Bool {
        let (region, bit) = try place(block)
        return Self.test(try bits(ofRegion: region).durable, bit)
    }
}
