internal import BlockIO
internal import Synchronization

/// Records that wait to be appended to the journal as one batch.
final class PendingRecords {
    var writer = ByteWriter()
    /// Number of the last record in it.
    var lastRecord: UInt64
    /// How much of it is in the volatile log.
    var notedBytes = 0
    /// Where the journal ends after this batch; set by the thread that appended it.
    var end: JournalPoint?

    init(lastRecord: UInt64, buffer: [UInt8] = []) {
        self.lastRecord = lastRecord
        writer.bytes = buffer
    }
}

/// Blocks that no layer refers to any more, while the records that said so are not durable.
struct Retired {
    /// Soon used again.
    var overwritten: [UInt64] = []
    /// Goes back to the file system.
    var unmapped: [UInt64] = []

    var isEmpty: Bool { overwritten.isEmpty && unmapped.isEmpty }

    mutating func append(_ block: UInt64, isUnmapped: Bool) {
        if isUnmapped { unmapped.append(block) } else { overwritten.append(block) }
    }
}

/// Blocks in pieces of an array each: handing many on costs nothing.
struct BlockLists {
    private(set) var lists: [[UInt64]] = []

    var isEmpty: Bool { lists.isEmpty }
    var all: [UInt64] { lists.flatMap { $0 } }
    var count: Int { lists.reduce(0) { $0 + $1.count } }

    mutating func append(_ list: [UInt64]) { if !list.isEmpty { lists.append(list) } }
    mutating func append(_ other: BlockLists) { lists.append(contentsOf: other.lists) }

    /// Takes blocks from the end that follow each other on the disk, at most `most`; nil when there are none.
    mutating func popRun(most: Int) -> Range<UInt64>? {
        guard var list = lists.popLast(), let last = list.popLast() else { return nil }
        var run = last..<(last + 1)
        while run.count < most, let next = list.last, next + 1 == run.lowerBound {
            run = next..<run.upperBound
            list.removeLast()
        }
        if !list.isEmpty { lists.append(list) }
        return run
    }
}

/// Where data was written that nobody asked the disk for yet: a few spans, since allocation goes along the disk.
struct UnsyncedSpans {
    private static let mostSpans = 8
    /// 16 MiB: what lies nearer belongs to one span.
    private static let gapBlocks: UInt64 = 4096
    let dueBlocks: Int
    private var spans: [Range<UInt64>] = []
    private var blocks = 0

    init(dueBlocks: Int) { self.dueBlocks = dueBlocks }

    var isDue: Bool { blocks >= dueBlocks }

    mutating func append(_ run: Range<UInt64>) {
        blocks += run.count
        // By index: a loop over the elements would hold the array, and the change copy it.
        for index in spans.indices {
            let span = spans[index]
            guard run.lowerBound <= span.upperBound + Self.gapBlocks,
                span.lowerBound <= run.upperBound + Self.gapBlocks
            else { continue }
            spans[index] = min(span.lowerBound, run.lowerBound)..<max(span.upperBound, run.upperBound)
            return
        }
        // What is left out, the next sync finds.
        if spans.count < Self.mostSpans { spans.append(run) }
    }

    mutating func take() -> [Range<UInt64>] {
        defer { self = UnsyncedSpans(dueBlocks: dueBlocks) }
        return spans
    }
}

/// A read-modify-write under way: whatever changes its blocks meanwhile marks it, and it starts over.
final class Claim {
    let volume: UInt32
    let blocks: [Range<UInt64>]
    var isBroken = false

    init(volume: UInt32, blocks: [Range<UInt64>]) {
        self.volume = volume
        self.blocks = blocks
    }
}

/// All state of an open pool. The data path, the control calls and the maintenance pass are in extensions.
///
/// One lock guards everything here except what says otherwise. A cut is atomic over all volumes because every change of
/// a map happens under it: a write acknowledged before another begins has entered its layer before the other does.
final class PoolCore: @unchecked Sendable {
    // SAFETY: every `var` is read and written with `monitor` locked, unless its comment names another rule.
    let file: any StorageFile
    let options: PoolOptions
    let monitor = Monitor()
    let cache: PageCache
    let digestKey: (UInt64, UInt64)
    /// Held during a maintenance pass, so that there is one at a time.
    let maintenance = Monitor()

    /// The last durable superblock.
    var superblock: Superblock
    /// The pool's size now; the superblock's is that of the last checkpoint.
    var totalBlocks: UInt64
    var epoch: UInt64
    var nextDataset: UInt64
    var nextVolume: UInt32
    var nextLayer: UInt64 = 1
    var volumes: [UInt32: Volume] = [:]
    var volumeNumbers: [VolumeID: UInt32] = [:]
    var snapshots: [SnapshotID: Snapshot] = [:]
    var datasets: [UInt64: Dataset] = [:]
    let tables = CatalogTables()
    let space: SpaceMap

    // The journal.
    var pending = PendingRecords(lastRecord: 0)
    var sealed: [PendingRecords] = []
    /// The empty buffer of a batch that is durable, for the next one: none has to grow while writers wait.
    var spareRecords: [UInt8] = []
    var lastRecord: UInt64 = 0
    var committedRecord: UInt64 = 0
    var isCommitting = false
    var hasUnsyncedData = false
    var unsynced: UnsyncedSpans
    var journalEnd: JournalPoint
    var sealedBytes = 0
    /// Batches with records that are sealed or being written: they come before the one that is being gathered.
    var batchesAhead: UInt64 = 0

    // The volatile log.
    var volatileLog: VolatileLog?
    var volatileLogProblem = "no directory was given for it"
    /// The last record that the log lacks; until it is durable nothing is acknowledged. 0 when there is none.
    let unnotedThrough = Atomic<UInt64>(0)

    // Blocks on their way to being free.
    /// Overwritten before any checkpoint saw them: free once the overwriting record is durable.
    var retired = Retired()
    /// Those whose records are being committed.
    var retiring = Retired()
    /// Blocks unlinked since the last flip of the read phase; those before it wait for readers of the old phase.
    var unlinkedNow = BlockLists()
    var unlinkedBefore = BlockLists()
    /// Past all readers: can be handed out again.
    var releasable = BlockLists()
    /// Unmapped, or freed by a checkpoint, and past all readers: may be punched out and handed out again.
    var punchable = BlockLists()
    var unlinkedToPunchNow = BlockLists()
    var unlinkedToPunchBefore = BlockLists()
    var readPhase = 0
    /// Readers under way by phase; entered under the lock, left without it.
    let evenReaders = Atomic<Int>(0)
    let oddReaders = Atomic<Int>(0)

    // The overlay.
    var overlayEntries = 0
    var pagesToMerge: UInt64 = 0
    var hasUnmappedSinceCheckpoint = false
    var claims: [Claim] = []
    var spaceCache = SpaceCache()
    /// By dataset; only of maps that do not change any more.
    var digests: [UInt64: ContentDigest] = [:]
    var receives: [SnapshotID: Receive] = [:]
    /// Attribute streams of deleted snapshots and replaced attributes.
    var discardedStreams: [(root: NodePointer, lengthBytes: UInt64)] = []
    var attributeBytesToWrite: UInt64 = 0

    // State.
    var failure: String?
    /// What came back from the disk wrong.
    var damage = DamageLedger()
    var isClosed = false
    var isFull = false
    var isCheckpointRequested = false
    var isClosing = false
    var isMaintaining = false
    var passesFinished: UInt64 = 0
    var lastPassFreed = 0
    var statistics = PoolStatistics()
    var worker: WorkerThread?
    /// The worker waits for something to do.
    var isWorkerIdle = false
    let checksumErrors = Atomic<UInt64>(0)
    let dataBytesWritten = Atomic<UInt64>(0)
    /// How often all snapshots were listed: what concerns one never does that.
    let listings = Atomic<Int>(0)

    init(file: any StorageFile, options: PoolOptions, superblock: Superblock) {
        self.file = file
        self.options = options
        self.superblock = superblock
        totalBlocks = superblock.totalBlocks
        let cache = PageCache(limitBytes: options.cacheBytes)
        let key = superblock.digestKey
        self.cache = cache
        digestKey = key
        unsynced = UnsyncedSpans(dueBlocks: options.earlyWritebackBlocks)
        epoch = superblock.epoch
        nextDataset = superblock.nextDataset
        nextVolume = superblock.nextVolume
        journalEnd = superblock.journalStart
        space = SpaceMap(
            totalBlocks: superblock.totalBlocks, regionBlocks: superblock.regionBlocks, options: options
        ) { pointer throws(PoolError) in
            try PoolCore.loadBitmap(pointer, file: file, cache: cache, key: key)
        }
    }

    // MARK: Pages

    /// - Parameter what: A word for the page, where it is wrong.
    static func loadPage(
        _ pointer: NodePointer, file: any StorageFile, cache: PageCache, key: (UInt64, UInt64), uncached: Bool = false,
        as what: String = "map page"
    ) throws(PoolError) -> Page {
        guard !pointer.isLost else { throw .damaged("a \(what) was lost") }
        guard pointer.block < Format.lostBlock else { throw .damaged("block \(pointer.block) lies in no pool") }
        if let page = cache[pointer.block] { return page }
        let page = Page(isAligned: uncached)
        let offset = pointer.block * UInt64(Format.blockBytes)
        do {
            if uncached {
                try file.readUncached(at: offset, into: page.mutableBytes)
            } else {
                try file.read(at: offset, into: page.mutableBytes)
            }
        } catch {
            throw .io(operation: "reading \(what) \(pointer.block)", errno: error.errno)
        }
        guard PageDigest(of: page.bytes, key: key) == pointer.digest else {
            throw .damaged("\(what) \(pointer.block) is not what was written")
        }
        cache.insert(page, at: pointer.block)
        return page
    }

    /// A page of the allocation map; an I/O error only where the disk answers nothing else either.
    static func loadBitmap(
        _ pointer: NodePointer, file: any StorageFile, cache: PageCache, key: (UInt64, UInt64)
    ) throws(PoolError) -> Page {
        // Again past the system's cache, before it is believed.
        for attempt in 0..<2 {
            if let page = try? loadPage(pointer, file: file, cache: cache, key: key, uncached: attempt > 0) {
                return page
            }
        }
        do throws(PoolError) {
            return try loadPage(pointer, file: file, cache: cache, key: key, uncached: true)
        } catch {
            let canRead = (0..<Format.superblockCopies).contains {
                (try? readBlock(file, at: place(ofCopy: $0), uncached: true)) != nil
            }
            if case .io = error, canRead { throw .damaged("block \(pointer.block) cannot be read") }
            throw error
        }
    }

    func loadPage(
        _ pointer: NodePointer, uncached: Bool = false, as what: String = "map page"
    ) throws(PoolError) -> Page {
        try Self.loadPage(pointer, file: file, cache: cache, key: digestKey, uncached: uncached, as: what)
    }

    /// The leaf that maps `block`, or nil where nothing is mapped.
    func leaf(root: NodePointer, block: UInt64) throws(PoolError) -> Page? {
        var pointer = root
        let leaf = block / Format.leafEntries
        var level = Format.mapRootLevel
        while level > 0 {
            if pointer.isNull { return nil }
            let page = try loadPage(pointer)
            pointer = page[child: Int(leaf >> UInt64(7 * (level - 1))) & 127]
            level -= 1
        }
        return pointer.isNull ? nil : try loadPage(pointer)
    }

    // MARK: State

    /// The pool failed: nothing is written any more.
    func fail(_ reason: String) {
        if failure == nil {
            failure = reason
            options.onFailure?(reason)
        }
        monitor.broadcast()
    }

    /// Why changes are refused; nil when they are not.
    var refusal: PoolError? {
        if isClosed { return .closed }
        if let failure { return .readOnly(failure) }
        if options.isReadOnly { return .readOnly(readOnlyReason) }
        return nil
    }

    var readOnlyReason: String { options.readOnlyReason ?? "it was opened read-only" }

    // MARK: Readers and freed blocks

    func enterRead() -> Int {
        let phase = readPhase
        if phase == 0 {
            evenReaders.add(1, ordering: .relaxed)
        } else {
            oddReaders.add(1, ordering: .relaxed)
        }
        return phase
    }

    func exitRead(_ phase: Int) {
        if phase == 0 {
            evenReaders.subtract(1, ordering: .releasing)
        } else {
            oddReaders.subtract(1, ordering: .releasing)
        }
    }

    private func hasReaders(_ phase: Int) -> Bool {
        (phase == 0 ? evenReaders.load(ordering: .acquiring) : oddReaders.load(ordering: .acquiring)) > 0
    }

    func awaitReaders() {
        while hasReaders(0) || hasReaders(1) { yieldThread() }
    }

    /// Lets go of blocks whose last readers have left. A block unlinked before a flip of the phase can only be seen by
    /// readers of the phase before.
    func advanceFrees() {
        for _ in 0..<2 {
            if hasReaders(1 - readPhase), !hasBug(.readersNotAwaited) { return }
            releasable.append(unlinkedBefore)
            punchable.append(unlinkedToPunchBefore)
            unlinkedBefore = unlinkedNow
            unlinkedToPunchBefore = unlinkedToPunchNow
            unlinkedNow = BlockLists()
            unlinkedToPunchNow = BlockLists()
            readPhase = 1 - readPhase
            if unlinkedBefore.isEmpty && unlinkedToPunchBefore.isEmpty { return }
        }
    }

    /// Makes up to `most` blocks available again: few at a time, because writers wait meanwhile.
    func releaseSome(most: Int) throws(PoolError) {
        var left = most
        while left > 0, let run = releasable.popRun(most: left) {
            try space.release(run)
            left -= run.count
        }
    }

    /// Blocks that only wait for a commit, a reader or a maintenance pass.
    var hasFreesPending: Bool {
        !retired.isEmpty || !retiring.isEmpty || !releasable.isEmpty || !unlinkedNow.isEmpty || !unlinkedBefore.isEmpty
            || hasPunchesPending
    }

    /// Those of them that the underlying file system gets back; no writer's use of them brings that about.
    var hasPunchesPending: Bool {
        !punchable.isEmpty || !unlinkedToPunchNow.isEmpty || !unlinkedToPunchBefore.isEmpty
    }

    /// How many they are.
    var leavingBlocks: Int {
        let single = [retired, retiring].reduce(0) { $0 + $1.overwritten.count + $1.unmapped.count }
        return [releasable, unlinkedNow, unlinkedBefore, punchable, unlinkedToPunchNow, unlinkedToPunchBefore]
            .reduce(single) { $0 + $1.count }
    }

    // MARK: Layers

    func makeLayer(owner: Dataset, below: Layer?, base: MapRoot) -> Layer {
        defer { nextLayer += 1 }
        return Layer(number: nextLayer, epoch: epoch, below: below, base: base, owner: owner)
    }

    /// Puts an empty layer on top of a head.
    func pushLayer(_ head: Dataset) {
        head.layers.insert(makeLayer(owner: head, below: head.layers.first, base: head.root), at: 0)
    }

    /// Runs `body` on a head's top layer and keeps the pool's sums right.
    func changeTop(_ head: Dataset, _ body: (Layer) -> Void) {
        let top = head.layers[0]
        let entries = top.count
        body(top)
        overlayEntries += top.count - entries
        let pages = top.pagesToMerge
        pagesToMerge = pagesToMerge + pages - top.accountedPages
        top.accountedPages = pages
    }

    /// Pages that the next checkpoint writes besides the maps of volumes.
    var overheadPages: UInt64 {
        let bitmaps = UInt64(space.regionsInUse) + UInt64(space.regionsInUse) / 64 + 8
        let catalog = superblock.catalogBytes / UInt64(Format.blockBytes)
        let attributes = attributeBytesToWrite / UInt64(Format.blockBytes) + UInt64(snapshots.count) / 64
        return bitmaps + catalog + catalog / 8 + attributes + 16
    }

    /// Whether a checkpoint that also merges `morePages` would find room.
    func hasMetadataRoom(for morePages: UInt64) -> Bool {
        pagesToMerge + overheadPages + morePages <= space.metadataFree || hasBug(.noReserve)
    }

    func breakClaims(_ volume: UInt32, _ blocks: Range<UInt64>, except own: Claim?) {
        for claim in claims where claim !== own && claim.volume == volume {
            if claim.blocks.contains(where: { $0.overlaps(blocks) }) { claim.isBroken = true }
        }
    }
}
