internal import BlockIO
internal import Synchronization

/// Where a scrub goes on.
public struct ScrubPosition: Sendable, Equatable, Codable {
    /// Every dataset with a lower number has been read.
    public var dataset: UInt64
    /// The logical block of that dataset that comes next.
    public var block: UInt64

    public init(dataset: UInt64 = 0, block: UInt64 = 0) {
        self.dataset = dataset
        self.block = block
    }
}

/// What a scrub has done so far.
public struct ScrubReport: Sendable, Equatable {
    public var mapPages: UInt64 = 0
    public var dataBlocks: UInt64 = 0
    public var bytesRead: UInt64 = 0
    /// About how much there is to read in all, for a display of progress.
    public var expectedBytes: UInt64 = 0
    public var superblockCopies = 0
    /// Superblock copies that were wrong and were written anew.
    public var repairedSuperblocks = 0
    /// At most 256.
    public var damage: [DamageRecord] = []
    public var damageTotal: UInt64 = 0
    public var position = ScrubPosition()
    public var isFinished = false
}

/// Reads everything that a pool refers to, from the medium, while it is in use, and compares it with its checksums.
///
/// The caller paces it: each ``step(maxBytes:)`` reads a bounded amount. Every map page and block is read once however
/// many snapshots share it: what is not younger than a dataset's parent is read with the parent. What is written after
/// the beginning may or may not be read. Use from one thread at a time.
public final class Scrub: @unchecked Sendable {
    // SAFETY: every `var` is used by one thread at a time, as the type's contract says; the pool guards itself.
    private enum Phase {
        case superblocks, journal, allocation(Int), streams, maps
    }

    private let core: PoolCore
    private var phase = Phase.superblocks
    private var found = DamageLedger()
    private let isWhole: Bool
    /// Numbers of the datasets that are still to be read, the next one last.
    private var waiting: [UInt64] = []
    public private(set) var report = ScrubReport()

    /// Begins a scrub, or goes on with one that ended at `position`. Writes a checkpoint, so that what is in memory is
    /// read too.
    init(core: PoolCore, from position: ScrubPosition?) throws(PoolError) {
        self.core = core
        isWhole = position == nil
        if core.monitor.withLock({ core.refusal == nil }) { try core.maintain() }
        // Of the reserved blocks only the superblocks, and of the journal what counts, are read.
        report.expectedBytes = core.monitor.withLock {
            let blockBytes = UInt64(Format.blockBytes)
            let reserved = Format.journalBlock * blockBytes + core.superblock.journalBytes
            let used = core.space.busyBlocks * blockBytes + core.journalUsedBytes
            return used - min(used, reserved)
        }
        report.position = position ?? ScrubPosition()
    }

    /// Reads about `maxBytes` more; true while there is more to do.
    public func step(maxBytes: UInt64 = 8 << 20) throws(PoolError) -> Bool {
        guard !report.isFinished else { return false }
        if core.monitor.withLock({ core.isClosed }) { throw .closed }
        switch phase {
        case .superblocks:
            try checkSuperblocks()
            phase = .journal
        case .journal:
            try checkJournal()
            phase = .allocation(0)
        case .allocation(let region):
            phase = try checkAllocation(from: region).map { .allocation($0) } ?? .streams
        case .streams:
            try checkStreams()
            phase = .maps
        case .maps:
            if try !checkMaps(maxBytes: maxBytes) { finish() }
        }
        report.damage = found.records
        report.damageTotal = found.total
        return !report.isFinished
    }

    private func finish() {
        report.isFinished = true
        guard isWhole else { return }
        let found = found
        core.monitor.withLock { core.damage.replace(with: found) }
    }

    private func note(_ record: DamageRecord) {
        found.note(record)
        core.monitor.withLock { core.damage.note(record) }
        if record.kind == .data || record.kind == .map { core.checksumErrors.add(1, ordering: .relaxed) }
    }

    private func noteMetadata(_ kind: DamageRecord.Kind, block: UInt64, isRepaired: Bool = false) {
        note(
            DamageRecord(
                kind: kind, poolOffset: block * UInt64(Format.blockBytes), lengthBytes: UInt64(Format.blockBytes),
                isRepaired: isRepaired))
    }

    // MARK: Superblock, journal

    /// Each copy must hold this generation or the one before, by its turn. A wrong one is written anew from what is
    /// known to be right; a right one is never touched.
    private func checkSuperblocks() throws(PoolError) {
        core.maintenance.lock()
        defer { core.maintenance.unlock() }
        let (current, canWrite) = core.monitor.withLock { (core.superblock, core.refusal == nil) }
        var before: [UInt8]?
        var wrong: [Int] = []
        for copy in 0..<Format.superblockCopies {
            report.superblockCopies += 1
            report.bytesRead += UInt64(Format.blockBytes)
            let isCurrent = copy % 2 == Int(current.generation % 2)
            let bytes = try? PoolCore.readBlock(core.file, at: PoolCore.place(ofCopy: copy), uncached: true)
            let read = bytes.flatMap { try? Superblock.decode($0) }
            if let read, isCurrent ? read == current : read.isBefore(current) {
                if !isCurrent { before = bytes }
            } else {
                wrong.append(copy)
            }
        }
        for copy in wrong {
            let isCurrent = copy % 2 == Int(current.generation % 2)
            let bytes = isCurrent ? current.encoded() : before ?? current.encoded()
            if canWrite {
                do {
                    try bytes.withRawBytes { raw throws(StorageError) in
                        try core.file.write(at: PoolCore.place(ofCopy: copy), from: raw)
                    }
                } catch {
                    throw .io(operation: "repairing a copy of the superblock", errno: error.errno)
                }
                try sync()
                report.repairedSuperblocks += 1
            }
            noteMetadata(
                .superblock, block: PoolCore.place(ofCopy: copy) / UInt64(Format.blockBytes), isRepaired: canWrite)
        }
    }

    /// A failed sync fails the pool, whoever asked for it.
    private func sync() throws(PoolError) {
        do {
            try core.syncFile("syncing a repaired superblock")
        } catch {
            core.monitor.withLock { core.fail("\(error)") }
            throw error
        }
    }

    /// The batches that a recovery would read now. No checkpoint moves the beginning meanwhile.
    private func checkJournal() throws(PoolError) {
        core.maintenance.lock()
        defer { core.maintenance.unlock() }
        var (point, end) = core.monitor.withLock { (core.superblock.journalStart, core.journalEnd) }
        while point.sequence < end.sequence {
            guard let (_, batch, crc) = try core.readBatch(at: point, uncached: true) else {
                let place = point.position % core.superblock.journalBytes / UInt64(Format.blockBytes)
                return noteMetadata(.journal, block: Format.journalBlock + place)
            }
            point.position += UInt64(batch.count)
            point.sequence += 1
            point.chain = crc
            report.bytesRead += UInt64(batch.count)
        }
    }

    // MARK: Pages

    /// A page as it is on the medium; nil, and noted by the caller, when it is not what was written.
    private func page(_ pointer: NodePointer) -> Page? {
        let page = Page(isAligned: true)
        report.bytesRead += UInt64(Format.blockBytes)
        // What was wrong once may be right the second time: a cable, a controller.
        for _ in 0..<2 {
            do {
                try core.file.readUncached(at: pointer.block * UInt64(Format.blockBytes), into: page.mutableBytes)
                if PageDigest(of: page.bytes, key: core.digestKey) == pointer.digest { return page }
            } catch {
                continue
            }
        }
        return nil
    }

    /// Up to 128 bitmap pages and those above them. Returns the next region, or nil at the end.
    private func checkAllocation(from region: Int) throws(PoolError) -> Int? {
        let (root, level, regions, phase) = core.monitor.withLock {
            (core.superblock.allocationRoot, core.superblock.allocationLevel, core.space.regionsInUse, core.enterRead())
        }
        defer { core.exitRead(phase) }
        visitAllocation(root, level: level, index: 0, wanted: region..<(region + 128))
        return region + 128 < regions ? region + 128 : nil
    }

    private func visitAllocation(_ pointer: NodePointer, level: Int, index: Int, wanted: Range<Int>) {
        guard !pointer.isNull else { return }
        let first = index << (7 * level)
        guard (first..<(first + 1 << (7 * level))).overlaps(wanted) else { return }
        guard let page = page(pointer) else { return noteMetadata(.metadata, block: pointer.block) }
        guard level > 0 else { return }
        for child in 0..<Int(Format.fanOut) {
            visitAllocation(page[child: child], level: level - 1, index: index << 7 | child, wanted: wanted)
        }
    }

    private func checkStreams() throws(PoolError) {
        let catalog = core.monitor.withLock {
            (core.superblock.catalogRoot, core.superblock.catalogBytes, core.enterRead())
        }
        visitStream(catalog.0, lengthBytes: catalog.1)
        core.exitRead(catalog.2)
        let snapshots = core.monitor.withLock { core.snapshots.values.map { (id: $0.id, epoch: $0.epoch) } }
        for (id, _) in snapshots.sorted(by: { $0.epoch < $1.epoch }) {
            let (root, lengthBytes, phase) = core.monitor.withLock {
                let snapshot = core.snapshots[id]
                return (
                    snapshot?.attributesRoot ?? .null, snapshot?.attributeBytes ?? 0, core.enterRead()
                )
            }
            visitStream(root, lengthBytes: lengthBytes)
            core.exitRead(phase)
        }
    }

    private func visitStream(_ root: NodePointer, lengthBytes: UInt64) {
        func visit(_ pointer: NodePointer, _ level: Int) {
            guard !pointer.isNull else { return }
            guard let page = page(pointer) else { return noteMetadata(.metadata, block: pointer.block) }
            guard level > 0 else { return }
            for child in 0..<Int(Format.fanOut) { visit(page[child: child], level - 1) }
        }
        visit(root, MetadataWriter.streamLevel(pages: MetadataWriter.pageCount(lengthBytes)))
    }

    // MARK: Maps and data

    /// One dataset's map from the position on, until the budget is used. False when all datasets are done.
    private func checkMaps(maxBytes: UInt64) throws(PoolError) -> Bool {
        let position = report.position
        if waiting.last.map({ $0 < position.dataset }) ?? true {
            // From the highest down: those that come next are at the end. Cuts may have added some meanwhile.
            waiting = core.monitor.withLock { core.datasets.keys.filter { $0 >= position.dataset } }.sorted(by: >)
        }
        guard let number = waiting.last else { return false }
        let begun = core.monitor.withLock { () -> (Dataset, NodePointer, UInt64, Int)? in
            guard let dataset = core.datasets[number], dataset.role != .doomed else { return nil }
            return (dataset, dataset.root.pointer, Self.floor(of: dataset), core.enterRead())
        }
        guard let (dataset, root, floor, phase) = begun else {
            waiting.removeLast()
            report.position = ScrubPosition(dataset: number + 1)
            return true
        }
        defer { core.exitRead(phase) }
        var walk = ScrubWalk(
            floorEpoch: floor, cursor: number == position.dataset ? position.block : 0, budgetBytes: maxBytes)
        walk.visit(root, level: Format.mapRootLevel, start: 0) { page($0) }
        report.mapPages += walk.pages
        for range in walk.damage { note(damage(.map, range, of: dataset)) }
        verify(walk.entries, of: dataset)
        if walk.isFinished { waiting.removeLast() }
        report.position =
            walk.isFinished
            ? ScrubPosition(dataset: number + 1) : ScrubPosition(dataset: number, block: walk.cursor)
        return true
    }

    private func damage(_ kind: DamageRecord.Kind, _ range: ScrubWalk.Wrong, of dataset: Dataset) -> DamageRecord {
        let (volume, snapshot) = core.monitor.withLock {
            (
                core.name(ofVolume: dataset),
                core.name(ofSnapshot: dataset)
            )
        }
        let blockBytes = UInt64(Format.blockBytes)
        let size = dataset.sizeBytes / blockBytes
        let blocks = min(range.blocks, size > range.block ? size - range.block : 0)
        return DamageRecord(
            kind: kind, poolOffset: range.physical * blockBytes, volume: volume, snapshot: snapshot,
            volumeOffset: range.block * blockBytes, lengthBytes: blocks * blockBytes, isRepaired: false)
    }

    /// What is not younger than the nearest ancestor that stays is read there. A doomed ancestor is not read at all.
    private static func floor(of dataset: Dataset) -> UInt64 {
        var ancestor = dataset.parent
        while let other = ancestor, other.role == .doomed { ancestor = other.parent }
        return ancestor?.epoch ?? 0
    }

    /// Reads data in the order of the disk, in runs of up to 1 MiB.
    private func verify(_ entries: [ScrubEntry], of dataset: Dataset) {
        let entries = entries.sorted { $0.entry.block < $1.entry.block }
        let most = 256
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: most * Format.blockBytes, alignment: Format.blockBytes)
        defer { buffer.deallocate() }
        var first = 0
        while first < entries.count {
            var count = 1
            while count < most, first + count < entries.count,
                entries[first + count].entry.block == entries[first].entry.block + UInt64(count)
            { count += 1 }
            let bytes = UnsafeMutableRawBufferPointer(rebasing: buffer[..<(count * Format.blockBytes)])
            let start = entries[first].entry.block * UInt64(Format.blockBytes)
            let isRead = (try? core.file.readUncached(at: start, into: bytes)) != nil
            for index in 0..<count {
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: bytes[(index * Format.blockBytes)..<((index + 1) * Format.blockBytes)])
                check(entries[first + index], part, isRead: isRead, of: dataset)
            }
            first += count
        }
        report.dataBlocks += UInt64(entries.count)
        report.bytesRead += UInt64(entries.count * Format.blockBytes)
    }

    private func check(
        _ entry: ScrubEntry, _ bytes: UnsafeMutableRawBufferPointer, isRead: Bool, of dataset: Dataset
    ) {
        if isRead, CRC32C.checksum(UnsafeRawBufferPointer(bytes)) == entry.entry.crc { return }
        let offset = entry.entry.block * UInt64(Format.blockBytes)
        if (try? core.file.readUncached(at: offset, into: bytes)) != nil,
            CRC32C.checksum(UnsafeRawBufferPointer(bytes)) == entry.entry.crc
        {
            return
        }
        note(damage(.data, .init(physical: entry.entry.block, block: entry.block, blocks: 1), of: dataset))
    }
}

extension Pool {
    /// A scrub from the beginning, or from where another one ended.
    public func scrub(from position: ScrubPosition? = nil) throws(PoolError) -> Scrub {
        try Scrub(core: core, from: position)
    }
}

/// A mapped block that is to be read.
struct ScrubEntry {
    var block: UInt64
    var entry: LeafEntry
}

/// A bounded walk over what one dataset has beyond its parent.
struct ScrubWalk {
    /// A page or block that is not what was written, and the logical blocks that it concerns.
    struct Wrong {
        var physical: UInt64
        var block: UInt64
        var blocks: UInt64
    }

    let floorEpoch: UInt64
    /// Logical block at which the next walk goes on.
    private(set) var cursor: UInt64
    private var budgetBytes: UInt64
    private(set) var entries: [ScrubEntry] = []
    private(set) var pages: UInt64 = 0
    private(set) var damage: [Wrong] = []
    private(set) var isFinished = true

    init(floorEpoch: UInt64, cursor: UInt64, budgetBytes: UInt64) {
        self.floorEpoch = floorEpoch
        self.cursor = cursor
        self.budgetBytes = budgetBytes
    }

    private mutating func noteLost(_ block: UInt64, _ blocks: UInt64) {
        if let last = damage.last, last.physical == 0, last.block + last.blocks == block {
            damage[damage.count - 1].blocks += blocks
        } else {
            damage.append(Wrong(physical: 0, block: block, blocks: blocks))
        }
    }

    mutating func visit(_ pointer: NodePointer, level: Int, start: UInt64, load: (NodePointer) -> Page?) {
        if pointer.isNull || (pointer.birth <= floorEpoch && !pointer.isLost) { return }
        guard budgetBytes > 0 else {
            isFinished = false
            cursor = max(cursor, start)
            return
        }
        budgetBytes -= min(budgetBytes, UInt64(Format.blockBytes))
        if pointer.isLost { return noteLost(start, MapSpan.blocks(level)) }
        pages += 1
        guard let page = load(pointer) else {
            let blocks = Format.leafEntries << UInt64(7 * level)
            return damage.append(Wrong(physical: pointer.block, block: start, blocks: blocks))
        }
        if level == 0 {
            for index in 0..<Int(Format.leafEntries) {
                let entry = page[entry: index]
                if entry.isLost {
                    noteLost(start + UInt64(index), 1)
                    continue
                }
                if entry.isNull || entry.birth <= floorEpoch { continue }
                entries.append(ScrubEntry(block: start + UInt64(index), entry: entry))
                budgetBytes -= min(budgetBytes, UInt64(Format.blockBytes))
            }
            return
        }
        let span = Format.leafEntries << UInt64(7 * (level - 1))
        for index in 0..<Int(Format.fanOut) {
            let childStart = start + UInt64(index) * span
            if childStart + span <= cursor { continue }
            visit(page[child: index], level: level - 1, start: childStart, load: load)
            if !isFinished { return }
        }
    }
}
