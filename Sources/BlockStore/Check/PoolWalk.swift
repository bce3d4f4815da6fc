internal import BlockIO

/// Walks over everything that a pool references, each of which proves what is in one stretch of it. The first walk also
/// proves what concerns no single block. Used with the pool's locks held.
struct PoolWalk: ~Copyable {
    private typealias Owner = OwnerTable.Owner

    private let core: PoolCore
    private let verifiesData: Bool
    private var owners: OwnerTable
    private let walks: PoolWalks
    /// Number of the walk, which is that of its stretch.
    private var number = 0
    private var isFirst: Bool { number == 0 }
    /// Map pages that were visited as a whole, by the walks before too.
    private let visited: VisitedPages
    /// Mapped blocks of each dataset, from the cursor on where it is being reclaimed.
    private var mappedIn: [UInt64: UInt64] = [:]
    private(set) var report = PoolCheckReport()
    /// Map pages that this walk looked at.
    private var pagesOfWalk: UInt64 = 0
    /// Something of a map cannot be read, so that not all that is in use can be known.
    private var hasLoss = false
    /// A page cannot be read, so that what it leads to is not known: nothing that seems to have no owner may be freed.
    private(set) var isBlind = false
    /// A map page was lost at some time.
    private var hasLosses: Bool { core.superblock.incompatibleFeatures & Format.featureLosses != 0 }
    private var lost: Range<UInt64>?
    private var wrongPages: Set<UInt64> = []
    /// Regions whose bitmap cannot be read; of pages above those the first one below.
    private var wrongBitmaps: [Int] = []

    /// - Throws: where there is no memory for the owners of a stretch.
    init(_ walks: PoolWalks, verifiesData: Bool) throws(PoolError) {
        core = walks.core
        self.walks = walks
        self.verifiesData = verifiesData
        visited = walks.visited
        owners = try OwnerTable(capacity: walks.stretch(0).count)
    }

    private mutating func begin(_ number: Int) {
        self.number = number
        owners.begin(walks.stretch(number))
        pagesOfWalk = 0
        mappedIn = [:]
        hasLoss = false
        isBlind = false
        lost = nil
        wrongPages = []
        wrongBitmaps = []
    }

    /// Proves what is in one stretch.
    mutating func run(_ number: Int) {
        begin(number)
        report.volumes = core.volumes.count
        report.snapshots = core.snapshots.count
        claimAll()
        checkDurable()
        checkOverlay()
        checkSpace()
        if verifiesData { verifyData() }
    }

    /// Everything that the checkpoint reaches.
    private mutating func claimAll() {
        let reserved = Format.journalBlock + core.superblock.journalBytes / UInt64(Format.blockBytes)
        for block in 0..<reserved { claim(block, Owner(kind: .reserved)) }
        // Deleted datasets last: the parts of them that are reclaimed already may be owned by others.
        for dataset in core.datasets.values.sorted(by: { ($0.role.rawValue, $0.number) < ($1.role.rawValue, $1.number) }
        ) {
            checkDataset(dataset)
        }
        checkSums()
        checkStreams()
        checkBitmapPages(core.superblock.allocationRoot, level: core.superblock.allocationLevel, index: 0)
    }

    /// Frees what nothing reaches in this stretch. Returns the number of blocks.
    mutating func rebuild(_ number: Int) throws(PoolError) -> UInt64 {
        begin(number)
        claimAll()
        guard !isBlind else { return 0 }
        var freed = 0
        for region in wrongBitmaps where region < core.space.regions.count { core.space.rewrite(region: region) }
        for region in regions {
            var kind: SpaceMap.Kind?
            let first = UInt64(region) * core.space.regionBlocks
            for block in first..<(first + core.space.regionBlocks) {
                switch owners[block].kind {
                case .none: continue
                case .data: kind = kind ?? .data
                case .map, .stream, .bitmap, .reserved: kind = .metadata
                }
            }
            freed += try core.space.rebuild(region: region, kind: kind) { owners.isOwned($0) }
        }
        return UInt64(freed)
    }

    private mutating func problem(_ text: String, _ kind: PoolProblemKind = .contradiction) {
        report.kinds.insert(kind)
        if report.problems.count < 100 { report.problems.append(text) }
    }

    /// Something that each walk meets is said once.
    private mutating func problemOnce(_ text: String, _ kind: PoolProblemKind = .contradiction) {
        if isFirst { problem(text, kind) }
    }

    /// Notes an owner; false when the same owner was noted before, or the block is not in this stretch.
    @discardableResult
    private mutating func claim(_ block: UInt64, _ owner: Owner) -> Bool {
        guard owners.blocks.contains(block) else {
            if isFirst, block >= UInt64(core.space.regions.count) * core.space.regionBlocks {
                problem("block \(block), \(owner), lies beyond all regions in use")
            }
            return false
        }
        guard let other = owners.claim(block, owner) else { return true }
        if other != owner { problem("block \(block) is \(owner) and also \(other)") }
        if owner.kind != .data, owner.kind != .map { problem("block \(block) is referenced twice as \(owner)") }
        return false
    }

    // MARK: Maps

    private mutating func checkDataset(_ dataset: Dataset) {
        if let parent = dataset.parent {
            if core.datasets[parent.number] !== parent {
                problemOnce("dataset \(dataset.number) has a parent that is gone")
            }
            if parent.epoch >= dataset.epoch { problemOnce("dataset \(dataset.number) is not younger than its parent") }
        }
        let cursor = dataset.role == .doomed ? dataset.cursor : 0
        let found = visit(
            dataset.root.pointer, dataset, level: Format.mapRootLevel, start: 0, newest: dataset.epoch, cursor: cursor)
        sayLost(in: dataset)
        mappedIn[dataset.number] = found.mappedBlocks
    }

    /// In an order that does not change from run to run.
    private var datasets: [Dataset] { core.datasets.values.sorted { $0.number < $1.number } }

    /// A dataset's sum also has what was detached from its map and is not reclaimed yet.
    private mutating func checkSums() {
        guard !hasLoss, !hasLosses else { return }
        for dataset in datasets where dataset.role != .doomed || dataset.cursor == 0 {
            guard dataset.root.mappedBlocks != MapRoot.uncounted, var mapped = mappedIn[dataset.number] else {
                continue
            }
            for part in dataset.root.detached { mapped += mappedIn[part] ?? 0 }
            if mapped != dataset.root.mappedBlocks {
                problemOnce("dataset \(dataset.number) maps \(mapped) blocks and says \(dataset.root.mappedBlocks)")
            }
        }
    }

    /// Blocks of which a map says that it lost them; neighbours are one problem.
    private mutating func lose(_ block: UInt64, _ blocks: UInt64, in dataset: Dataset) {
        hasLoss = true
        if let range = lost, range.upperBound == block {
            lost = range.lowerBound..<(block + blocks)
        } else {
            sayLost(in: dataset)
            lost = block..<(block + blocks)
        }
    }

    private mutating func sayLost(in dataset: Dataset) {
        guard let range = lost else { return }
        lost = nil
        let place = bytes(of: range.lowerBound, UInt64(range.count), in: dataset)
        problemOnce("\(place): lost with a map page that was not what was written", .map)
    }

    /// Returns what lies below a page, from the cursor on.
    private mutating func visit(
        _ pointer: NodePointer, _ dataset: Dataset, level: Int, start: UInt64, newest: UInt64, cursor: UInt64
    ) -> VisitedPages.Visit {
        var found = VisitedPages.Visit(walk: number)
        guard !pointer.isNull else { return found }
        guard !pointer.isLost else {
            lose(start, MapSpan.blocks(level), in: dataset)
            return found
        }
        if pointer.birth > newest { problemOnce("map page \(pointer.block) is younger than what refers to it") }
        if claim(pointer.block, Owner(kind: .map, level: UInt64(level), logical: start, birth: pointer.birth)) {
            report.mapPages += 1
        }
        // Of a page that reclaim is in the middle of only the rest counts.
        if start >= cursor, let known = visited[pointer.block],
            known.walk == number || !visited.reaches(known.reach, stretch: number)
        {
            return known
        }
        pagesOfWalk += 1
        if pagesOfWalk % 4096 == 0 { walks.tell(.maps, number, pages: pagesOfWalk) }
        guard let page = try? core.loadPage(pointer) else {
            if wrongPages.insert(pointer.block).inserted {
                let place = bytes(of: start, MapSpan.blocks(level), in: dataset)
                problemOnce("map page \(pointer.block), which leads to \(place), is not what was written", .map)
            }
            hasLoss = true
            isBlind = true
            return found
        }
        _ = visited.note(pointer.block, in: &found.reach)
        if level == 0 {
            claimEntries(page, pointer, start, dataset, &found)
        } else {
            let span = Format.leafEntries << UInt64(7 * (level - 1))
            for index in 0..<Int(Format.fanOut) {
                let childStart = start + UInt64(index) * span
                if childStart + span <= cursor { continue }
                let below = visit(
                    page[child: index], dataset, level: level - 1, start: childStart, newest: pointer.birth,
                    cursor: cursor)
                found.mappedBlocks += below.mappedBlocks
                found.reach.formUnion(below.reach)
            }
        }
        if page.isZero { problemOnce("map page \(pointer.block) is empty") }
        if start >= cursor { visited.remember(pointer.block, level: level, found) }
        return found
    }

    private mutating func claimEntries(
        _ page: Page, _ pointer: NodePointer, _ start: UInt64, _ dataset: Dataset,
        _ found: inout VisitedPages.Visit
    ) {
        // Blocks of one leaf mostly lie near each other.
        var near: Range<UInt64> = 0..<0
        for index in 0..<Int(Format.leafEntries) {
            let entry = page[entry: index]
            guard !entry.isNull else { continue }
            guard !entry.isLost else {
                lose(start + UInt64(index), 1, in: dataset)
                continue
            }
            found.mappedBlocks += 1
            if !near.contains(entry.block) { near = visited.note(entry.block, in: &found.reach) }
            if entry.birth > pointer.birth { problemOnce("block \(entry.block) is younger than its map page") }
            let owner = Owner(kind: .data, logical: start + UInt64(index), birth: entry.birth, crc: entry.crc)
            if claim(entry.block, owner) { report.dataBlocks += 1 }
        }
    }

    // MARK: Streams and bitmaps

    private mutating func checkStreams() {
        var streams: [(String, NodePointer, UInt64)] = [
            ("the catalog", core.superblock.catalogRoot, core.superblock.catalogBytes)
        ]
        for snapshot in core.snapshots.values.sorted(by: { ($0.epoch, $0.name) < ($1.epoch, $1.name) }) {
            streams.append(
                ("the attributes of \(snapshot.name)", snapshot.attributesRoot, snapshot.attributeBytes))
        }
        for stream in core.discardedStreams {
            streams.append(("discarded attributes", stream.root, stream.lengthBytes))
        }
        for (name, root, lengthBytes) in streams {
            var blocks: [UInt64] = []
            do throws(PoolError) {
                try MetadataWriter.forEachStreamPage(
                    root, lengthBytes: lengthBytes,
                    load: { pointer throws(PoolError) in try core.loadPage(pointer, as: "page") }
                ) { [isFirst] pointer, _ throws(PoolError) in
                    // What was proven once is not read for each stretch.
                    if isFirst { _ = try core.loadPage(pointer, as: "page") }
                    blocks.append(pointer.block)
                }
            } catch {
                problemOnce("\(name): \(error)", .catalog)
                isBlind = true
            }
            for block in blocks { claim(block, Owner(kind: .stream)) }
        }
    }

    private mutating func checkBitmapPages(_ pointer: NodePointer, level: Int, index: Int) {
        guard !pointer.isNull else { return }
        claim(pointer.block, Owner(kind: .bitmap))
        if level == 0, !isFirst { return }
        guard let page = try? core.loadPage(pointer) else {
            problemOnce("page \(pointer.block) of the allocation map is not what was written", .allocationMap)
            wrongBitmaps.append(index << (7 * level))
            return
        }
        guard level > 0 else { return }
        for child in 0..<Int(Format.fanOut) {
            checkBitmapPages(page[child: child], level: level - 1, index: index << 7 | child)
        }
    }

    // MARK: Overlay and space

    /// What is reached now is what the allocation map must say; layers come on top.
    private mutating func checkDurable() {
        for region in regions where !core.space.regions[region].isLost {
            guard let bits = try? core.space.bits(ofRegion: region) else { continue }
            if core.space.regions[region].isLost { continue }
            for bit in 0..<Int(core.space.regionBlocks) {
                let block = UInt64(region) * core.space.regionBlocks + UInt64(bit)
                let isDurable = bits.durable[bit / 64] >> UInt64(bit % 64) & 1 != 0
                if isDurable == owners.isOwned(block) || (isDurable && hasLosses) { continue }
                if isDurable {
                    problem("block \(block) is marked and has no owner", .ownerless)
                } else {
                    problem("block \(block) is owned and not marked")
                }
            }
        }
    }

    /// Those of this stretch.
    private var regions: Range<Int> {
        let size = core.space.regionBlocks
        return Int(owners.blocks.lowerBound / size)..<Int((owners.blocks.upperBound + size - 1) / size)
    }

    private mutating func checkOverlay() {
        var seen: Set<UInt64> = []
        var entries = 0
        var pages: UInt64 = 0
        for dataset in datasets {
            for layer in dataset.layers where seen.insert(layer.number).inserted {
                entries += layer.count
                pages += layer.accountedPages
                if isFirst { checkReserve(of: layer) }
                var found: [(UInt64, RecentMapping)] = []
                layer.forEach { if $1.block != 0 { found.append(($0, $1)) } }
                for (block, mapping) in found {
                    let owner = Owner(kind: .data, logical: block, birth: layer.epoch, crc: mapping.crc)
                    if !claim(mapping.block, owner), owners.blocks.contains(mapping.block) {
                        problem("block \(mapping.block) is in two layers")
                    }
                }
            }
        }
        if entries != core.overlayEntries {
            problemOnce("the layers hold \(entries) entries, not \(core.overlayEntries)")
        }
        if pages != core.pagesToMerge { problemOnce("the layers need \(pages) pages, not \(core.pagesToMerge)") }
    }

    /// A checkpoint must find room for every page on the way to what a layer changes.
    private mutating func checkReserve(of layer: Layer) {
        var changed: Set<UInt64> = []
        layer.forEach { block, _ in changed.insert(block / Format.leafEntries) }
        var needed = changed.count
        for _ in 0..<Format.mapRootLevel {
            changed = Set(changed.map { $0 / Format.fanOut })
            needed += changed.count
        }
        if needed > layer.accountedPages {
            problem("layer \(layer.number) changes \(needed) pages and has room for \(layer.accountedPages)")
        }
    }

    private mutating func checkSpace() {
        var lists = [core.retired, core.retiring].flatMap { [$0.overwritten, $0.unmapped] }
        for list in [
            core.unlinkedNow, core.unlinkedBefore, core.releasable, core.punchable, core.unlinkedToPunchNow,
            core.unlinkedToPunchBefore,
        ] { lists += list.lists }
        let blocks = owners.blocks
        for list in lists {
            for block in list where blocks.contains(block) {
                let isOwned = owners.isOwned(block)
                if isOwned { problem("block \(block) is in use and about to be freed") }
                owners.markLeaving(block)
            }
        }
        for region in regions {
            guard let bits = try? core.space.bits(ofRegion: region) else {
                problem("the bitmap of region \(region) is not what was written", .allocationMap)
                continue
            }
            // That its page is wrong has been said; what is free there nobody knows.
            if core.space.regions[region].isLost { continue }
            checkRegion(region, bits)
        }
        if isFirst { checkTotals() }
    }

    private mutating func checkTotals() {
        let space = core.space
        var busy: UInt64 = 0
        var metadataFree: UInt64 = 0
        var dataFree = UInt64(space.regionLimit - space.regions.count) * space.regionBlocks
        for region in space.regions {
            let free = space.regionBlocks - UInt64(region.busyCount)
            busy += UInt64(region.busyCount)
            if region.kind == .metadata { metadataFree += free } else { dataFree += free }
        }
        if busy != space.busyBlocks { problem("\(busy) blocks are in use, not \(space.busyBlocks)") }
        if dataFree != space.dataFree || metadataFree != space.metadataFree {
            problem(
                "\(dataFree) blocks are free for data and \(metadataFree) for pages, not \(space.dataFree) and "
                    + "\(space.metadataFree)")
        }
    }

    /// The pool's own pages lie in regions that are allocated and never punched, and data does not.
    private func isAtHome(_ kind: OwnerTable.Kind, in region: SpaceMap.Region) -> Bool {
        switch kind {
        case .none: true
        case .data: region.kind == .data
        case .reserved, .map, .stream, .bitmap: region.kind == .metadata
        }
    }

    private mutating func checkRegion(_ region: Int, _ bits: SpaceMap.Bits) {
        var busyCount = 0
        var durableCount = 0
        for bit in 0..<Int(core.space.regionBlocks) {
            let block = UInt64(region) * core.space.regionBlocks + UInt64(bit)
            let isBusy = bits.busy[bit / 64] >> UInt64(bit % 64) & 1 != 0
            let isDurable = bits.durable[bit / 64] >> UInt64(bit % 64) & 1 != 0
            if isBusy { busyCount += 1 }
            if isDurable { durableCount += 1 }
            let mustBeBusy = owners.isOwned(block) || owners.isLeaving(block)
            if !hasLosses, !isAtHome(owners[block].kind, in: core.space.regions[region]) {
                problem("block \(block), \(owners[block]), lies in a region for \(core.space.regions[region].kind)")
            }
            if hasLosses, isDurable, isBusy, !mustBeBusy {
                report.setAsideBlocks += 1
            } else if isBusy != mustBeBusy {
                if isBusy {
                    problem("block \(block) is taken and has no use", .ownerless)
                } else {
                    problem("block \(block) is in use and not taken")
                }
            }
        }
        let state = core.space.regions[region]
        if busyCount != state.busyCount || durableCount != state.durableCount {
            problem(
                "region \(region) counts \(state.busyCount)/\(state.durableCount), not \(busyCount)/\(durableCount)")
        }
    }

    // MARK: Data

    private mutating func verifyData() {
        let most: UInt64 = 256
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(most) * Format.blockBytes, alignment: Format.blockBytes)
        defer { buffer.deallocate() }
        var block = owners.blocks.lowerBound
        var untold: UInt64 = 0
        while block < owners.blocks.upperBound {
            guard owners[block].kind == .data else {
                block += 1
                continue
            }
            var run = block..<(block + 1)
            while run.count < most, run.upperBound < owners.blocks.upperBound, owners[run.upperBound].kind == .data {
                run = run.lowerBound..<(run.upperBound + 1)
            }
            verify(run, buffer)
            block = run.upperBound
            untold += UInt64(run.count)
            if untold >= 16384 {
                walks.tell(.data, number, at: block)
                untold = 0
            }
        }
    }

    /// Blocks of data that lie one after the other, read at once; one by one where that fails.
    private mutating func verify(_ run: Range<UInt64>, _ buffer: UnsafeMutableRawBufferPointer) {
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<(run.count * Format.blockBytes)])
        do {
            try core.file.read(at: run.lowerBound * UInt64(Format.blockBytes), into: part)
        } catch {
            guard run.count == 1 else {
                for block in run { verify(block..<(block + 1), buffer) }
                return
            }
            let reason = PoolError.io(operation: "reading it", errno: error.errno)
            return problem("\(places(of: run.lowerBound, owners[run.lowerBound].logical)): \(reason)", .data)
        }
        for (index, block) in run.enumerated() {
            let owner = owners[block]
            let bytes = part[(index * Format.blockBytes)..<((index + 1) * Format.blockBytes)]
            report.verifiedBlocks += 1
            if CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes)) != owner.crc {
                problem("\(places(of: block, owner.logical)), is not what was written", .data)
            }
        }
    }

    // MARK: Places in words

    /// Blocks of a dataset, by what people know it as.
    private func bytes(of start: UInt64, _ count: UInt64, in dataset: Dataset) -> String {
        let blockBytes = UInt64(Format.blockBytes)
        let size = dataset.sizeBytes / blockBytes
        let count = min(count, size > start ? size - start : count)
        return "\(count * blockBytes) bytes at \(start * blockBytes) of \(name(of: dataset))"
    }

    private func name(of dataset: Dataset) -> String {
        let volume = core.name(ofVolume: dataset).map { "volume \($0)" } ?? "a deleted volume"
        switch dataset.role {
        case .head: return volume
        case .snapshot: return "snapshot \(core.name(ofSnapshot: dataset) ?? "?") of \(volume)"
        case .doomed: return "a deleted snapshot of \(volume)"
        }
    }

    /// A data block, and all that have it: heads first, three of them by name.
    private func places(of block: UInt64, _ logical: UInt64) -> String {
        let holders = core.datasets.values.sorted { ($0.role.rawValue, $0.number) < ($1.role.rawValue, $1.number) }
            .filter { holds($0, block, at: logical) }
        let names = holders.prefix(3).map { name(of: $0) }.joined(separator: ", ")
        let rest = holders.count > 3 ? " and \(holders.count - 3) more" : ""
        let offset = logical * UInt64(Format.blockBytes)
        return "block \(block), \(Format.blockBytes) bytes at \(offset) of \(names)\(rest)"
    }

    private func holds(_ dataset: Dataset, _ block: UInt64, at logical: UInt64) -> Bool {
        for layer in dataset.layers {
            if let recent = layer.lookup(logical) { return recent.block == block }
        }
        // Before its cursor a map that is being reclaimed has no pages any more: others are at their places.
        if dataset.role == .doomed, logical < dataset.cursor { return false }
        guard let leaf = try? core.leaf(root: dataset.root.pointer, block: logical) else { return false }
        return leaf[entry: Int(logical % Format.leafEntries)].block == block
    }
}
