internal import BlockIO

/// What a check of a pool found.
public struct PoolCheckReport: Sendable, Equatable {
    /// What is wrong, in words; empty for a sound pool. At most a hundred.
    public var problems: [String] = []
    public var mapPages: UInt64 = 0
    public var dataBlocks: UInt64 = 0
    /// Data blocks whose content was read and compared with its checksum.
    public var verifiedBlocks: UInt64 = 0
    public var volumes = 0
    public var snapshots = 0

    public var isSound: Bool { problems.isEmpty }
}

/// Proves a pool's invariants: every reference leads to what was written, every block has exactly one owner or is free,
/// the bitmaps and the sums say the same. Keeps one entry per used block in memory.
public enum PoolChecker {
    /// Checks a pool that nobody has open, as recovery would find it. Changes nothing.
    public static func check(path: String, verifiesData: Bool = true) throws(PoolError) -> PoolCheckReport {
        var options = PoolOptions()
        options.isReadOnly = true
        let pool = try Pool.open(path: path, options: options)
        var report = check(pool, verifiesData: verifiesData)
        for copy in pool.superblockCopies() where !copy.isGood {
            let what = copy.generation.map { "holds generation \($0)" } ?? "holds nothing valid"
            report.problems.append(
                "the copy of the superblock at \(copy.offset) \(what); others are whole, and a scrub repairs it")
        }
        try pool.close()
        return report
    }

    /// Checks an open pool that nobody uses at the moment.
    public static func check(_ pool: Pool, verifiesData: Bool = true) -> PoolCheckReport {
        var walk = PoolWalk(core: pool.core, verifiesData: verifiesData)
        return walk.run()
    }
}

/// One walk over everything that a pool references.
struct PoolWalk {
    private enum Owner: Equatable {
        case reserved
        case data(block: UInt64, birth: UInt64, crc: UInt32)
        case map(level: Int, start: UInt64, birth: UInt64)
        case stream
        case bitmap
    }

    private let core: PoolCore
    private let verifiesData: Bool
    private var owners: [UInt64: Owner] = [:]
    /// Mapped blocks below a map page that was visited as a whole.
    private var mappedBelow: [UInt64: UInt64] = [:]
    private var report = PoolCheckReport()

    init(core: PoolCore, verifiesData: Bool) {
        self.core = core
        self.verifiesData = verifiesData
    }

    mutating func run() -> PoolCheckReport {
        core.maintenance.lock()
        core.monitor.lock()
        defer {
            core.monitor.unlock()
            core.maintenance.unlock()
        }
        report.volumes = core.volumes.count
        report.snapshots = core.snapshots.count
        let reserved = Format.journalBlock + core.superblock.journalBytes / UInt64(Format.blockBytes)
        for block in 0..<reserved { claim(block, .reserved) }
        // Deleted datasets last: the parts of them that are reclaimed already may be owned by others.
        for dataset in core.datasets.values.sorted(by: { ($0.role.rawValue, $0.number) < ($1.role.rawValue, $1.number) }
        ) {
            checkDataset(dataset)
        }
        checkStreams()
        checkBitmapPages(core.superblock.allocationRoot, level: core.superblock.allocationLevel)
        let durable = Set(owners.keys)
        checkOverlay()
        checkSpace(durable: durable)
        if verifiesData { verifyData() }
        return report
    }

    private mutating func problem(_ text: String) {
        if report.problems.count < 100 { report.problems.append(text) }
    }

    /// Notes an owner; false when the same owner was noted before.
    @discardableResult
    private mutating func claim(_ block: UInt64, _ owner: Owner) -> Bool {
        guard let other = owners[block] else {
            owners[block] = owner
            return true
        }
        if other != owner { problem("block \(block) is \(owner) and also \(other)") }
        switch owner {
        case .data, .map: break
        default: problem("block \(block) is referenced twice as \(owner)")
        }
        return false
    }

    // MARK: Maps

    private mutating func checkDataset(_ dataset: Dataset) {
        if let parent = dataset.parent {
            if core.datasets[parent.number] !== parent {
                problem("dataset \(dataset.number) has a parent that is gone")
            }
            if parent.epoch >= dataset.epoch { problem("dataset \(dataset.number) is not younger than its parent") }
        }
        let cursor = dataset.role == .doomed ? dataset.cursor : 0
        let mapped = visit(
            dataset.root.pointer, level: Format.mapRootLevel, start: 0, newest: dataset.epoch, cursor: cursor)
        if cursor == 0, mapped != dataset.root.mappedBlocks {
            problem("dataset \(dataset.number) maps \(mapped) blocks and says \(dataset.root.mappedBlocks)")
        }
    }

    /// Returns the number of mapped blocks.
    private mutating func visit(
        _ pointer: NodePointer, level: Int, start: UInt64, newest: UInt64, cursor: UInt64
    ) -> UInt64 {
        guard !pointer.isNull else { return 0 }
        if pointer.birth > newest { problem("map page \(pointer.block) is younger than what refers to it") }
        let isNew = claim(pointer.block, .map(level: level, start: start, birth: pointer.birth))
        if !isNew, let known = mappedBelow[pointer.block] { return known }
        guard let page = try? core.loadPage(pointer) else {
            problem("map page \(pointer.block) for logical blocks from \(start) is not what was written")
            return 0
        }
        if isNew { report.mapPages += 1 }
        var mapped: UInt64 = 0
        if level == 0 {
            for index in 0..<Int(Format.leafEntries) {
                let entry = page[entry: index]
                guard !entry.isNull else { continue }
                mapped += 1
                if entry.birth > pointer.birth { problem("block \(entry.block) is younger than its map page") }
                let owner = Owner.data(block: start + UInt64(index), birth: entry.birth, crc: entry.crc)
                if claim(entry.block, owner) { report.dataBlocks += 1 }
            }
        } else {
            let span = Format.leafEntries << UInt64(7 * (level - 1))
            for index in 0..<Int(Format.fanOut) {
                let childStart = start + UInt64(index) * span
                if childStart + span <= cursor { continue }
                mapped += visit(
                    page[child: index], level: level - 1, start: childStart, newest: pointer.birth, cursor: cursor)
            }
        }
        if page.isZero { problem("map page \(pointer.block) is empty") }
        if start >= cursor { mappedBelow[pointer.block] = mapped }
        return mapped
    }

    // MARK: Streams and bitmaps

    private mutating func checkStreams() {
        var streams: [(String, NodePointer, UInt64)] = [
            ("the catalog", core.superblock.catalogRoot, core.superblock.catalogBytes)
        ]
        for snapshot in core.snapshots.values {
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
                    load: { pointer throws(PoolError) in try core.loadPage(pointer) }
                ) { pointer, _ throws(PoolError) in
                    _ = try core.loadPage(pointer)
                    blocks.append(pointer.block)
                }
            } catch {
                problem("\(name): \(error)")
            }
            for block in blocks { claim(block, .stream) }
        }
    }

    private mutating func checkBitmapPages(_ pointer: NodePointer, level: Int) {
        guard !pointer.isNull else { return }
        claim(pointer.block, .bitmap)
        guard let page = try? core.loadPage(pointer) else {
            problem("page \(pointer.block) of the allocation map is not what was written")
            return
        }
        guard level > 0 else { return }
        for index in 0..<Int(Format.fanOut) { checkBitmapPages(page[child: index], level: level - 1) }
    }

    // MARK: Overlay and space

    private mutating func checkOverlay() {
        var seen: Set<UInt64> = []
        var entries = 0
        var pages: UInt64 = 0
        for dataset in core.datasets.values {
            for layer in dataset.layers where seen.insert(layer.number).inserted {
                entries += layer.count
                pages += layer.accountedPages
                var found: [(UInt64, RecentMapping)] = []
                layer.forEach { if $1.block != 0 { found.append(($0, $1)) } }
                for (block, mapping) in found {
                    let owner = Owner.data(block: block, birth: layer.epoch, crc: mapping.crc)
                    if !claim(mapping.block, owner) { problem("block \(mapping.block) is in two layers") }
                }
            }
        }
        if entries != core.overlayEntries { problem("the layers hold \(entries) entries, not \(core.overlayEntries)") }
        if pages != core.pagesToMerge { problem("the layers need \(pages) pages, not \(core.pagesToMerge)") }
    }

    private mutating func checkSpace(durable: Set<UInt64>) {
        var leaving: Set<UInt64> = []
        for retired in [core.retired, core.retiring] {
            leaving.formUnion(retired.overwritten)
            leaving.formUnion(retired.unmapped)
        }
        for list in [
            core.unlinkedNow, core.unlinkedBefore, core.releasable, core.punchable, core.unlinkedToPunchNow,
            core.unlinkedToPunchBefore,
        ] { leaving.formUnion(list.all) }
        for block in leaving where owners[block] != nil { problem("block \(block) is in use and about to be freed") }
        var busyTotal: UInt64 = 0
        for region in core.space.regions.indices {
            guard let bits = try? core.space.bits(ofRegion: region) else {
                problem("the bitmap of region \(region) is not what was written")
                continue
            }
            checkRegion(region, bits, durable: durable, leaving: leaving)
            busyTotal += UInt64(core.space.regions[region].busyCount)
        }
        if busyTotal != core.space.busyBlocks {
            problem("\(busyTotal) blocks are in use, not \(core.space.busyBlocks)")
        }
        let end = UInt64(core.space.regions.count) * core.space.regionBlocks
        for block in owners.keys where block >= end { problem("block \(block) lies beyond all regions in use") }
    }

    private mutating func checkRegion(_ region: Int, _ bits: SpaceMap.Bits, durable: Set<UInt64>, leaving: Set<UInt64>)
    {
        var busyCount = 0
        var durableCount = 0
        for bit in 0..<Int(core.space.regionBlocks) {
            let block = UInt64(region) * core.space.regionBlocks + UInt64(bit)
            let isBusy = bits.busy[bit / 64] >> UInt64(bit % 64) & 1 != 0
            let isDurable = bits.durable[bit / 64] >> UInt64(bit % 64) & 1 != 0
            if isBusy { busyCount += 1 }
            if isDurable { durableCount += 1 }
            if isDurable != durable.contains(block) {
                problem("block \(block) is \(isDurable ? "marked and has no owner" : "owned and not marked")")
            }
            let mustBeBusy = owners[block] != nil || leaving.contains(block)
            if isBusy != mustBeBusy {
                problem("block \(block) is \(isBusy ? "taken and has no use" : "in use and not taken")")
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
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Format.blockBytes, alignment: Format.blockBytes)
        defer { buffer.deallocate() }
        for (block, owner) in owners.sorted(by: { $0.key < $1.key }) {
            guard case .data(let logical, _, let crc) = owner else { continue }
            do {
                try core.file.read(at: block * UInt64(Format.blockBytes), into: buffer)
                report.verifiedBlocks += 1
                if CRC32C.checksum(UnsafeRawBufferPointer(buffer)) != crc {
                    problem("block \(block), logical block \(logical), is not what was written")
                }
            } catch {
                problem("block \(block) cannot be read: errno \(error.errno)")
            }
        }
    }
}
