internal import BlockIO

/// What a member of a snapshot holds, in 24 bytes that two pools can compare: the number of mapped blocks, and a sum
/// over the mapped leaves (stretches of 1 MiB) of the SipHash-2-4-128 of their place and of the CRC-32C of each block
/// or its absence.
///
/// Being a sum it follows from an older snapshot's by what differs, so that checking an increment costs what the
/// increment does. It tells apart what was transferred wrongly; it is no signature, as nothing without a key can be.
struct ContentDigest: Equatable, Sendable {
    var mappedBlocks: UInt64 = 0
    var low: UInt64 = 0
    var high: UInt64 = 0

    /// "Stillpointdigest" has no secret to keep: the key only separates this use from others.
    private static let key: (UInt64, UInt64) = (0x696f_706c_6c69_7453, 0x7473_6567_6964_746e)

    mutating func add(_ leaf: Page, index: UInt64) { apply(leaf, index, isAdded: true) }
    mutating func remove(_ leaf: Page, index: UInt64) { apply(leaf, index, isAdded: false) }

    private mutating func apply(_ leaf: Page, _ index: UInt64, isAdded: Bool) {
        let entries = Int(Format.leafEntries)
        let hash = withUnsafeTemporaryAllocation(byteCount: 8 + 8 * entries, alignment: 8) { raw in
            raw.storeBytes(of: index.littleEndian, as: UInt64.self)
            for entry in 0..<entries {
                let mapping = leaf[entry: entry]
                let word = mapping.isNull ? 0 : 1 << 32 | UInt64(mapping.crc)
                raw.storeBytes(of: word.littleEndian, toByteOffset: 8 + 8 * entry, as: UInt64.self)
                if !mapping.isNull { mappedBlocks = isAdded ? mappedBlocks &+ 1 : mappedBlocks &- 1 }
            }
            return PageDigest(of: UnsafeRawBufferPointer(raw), key: Self.key)
        }
        if isAdded {
            let (sum, carry) = low.addingReportingOverflow(hash.low)
            low = sum
            high = high &+ hash.high &+ (carry ? 1 : 0)
        } else {
            let (rest, borrow) = low.subtractingReportingOverflow(hash.low)
            low = rest
            high = high &- hash.high &- (borrow ? 1 : 0)
        }
    }
}

/// Turns the digest of one map into that of another by what differs.
struct DigestWalk {
    private let core: PoolCore
    private var cursor: UInt64 = 0
    private var budget = 0
    private(set) var isFinished = false
    private(set) var digest: ContentDigest

    init(core: PoolCore, base: ContentDigest) {
        self.core = core
        digest = base
    }

    mutating func step(_ old: NodePointer, _ new: NodePointer, budget: Int) throws(PoolError) {
        self.budget = budget
        isFinished = true
        try walk(old, new, level: Format.mapRootLevel, start: 0)
    }

    private mutating func walk(
        _ old: NodePointer, _ new: NodePointer, level: Int, start: UInt64
    ) throws(PoolError) {
        if old == new || start + MapSpan.blocks(level) <= cursor { return }
        guard budget > 0 else {
            isFinished = false
            cursor = max(cursor, start)
            return
        }
        budget -= 1
        let before = old.isNull ? nil : try core.loadPage(old)
        let after = new.isNull ? nil : try core.loadPage(new)
        if level == 0 {
            guard before?.hasLostEntries != true, after?.hasLostEntries != true else {
                throw .damaged("a part of the map was lost")
            }
            if let before { digest.remove(before, index: start / Format.leafEntries) }
            if let after { digest.add(after, index: start / Format.leafEntries) }
            return
        }
        for index in 0..<Int(Format.fanOut) {
            try walk(
                before?[child: index] ?? .null, after?[child: index] ?? .null, level: level - 1,
                start: start + UInt64(index) * MapSpan.blocks(level - 1))
            if !isFinished { return }
        }
    }
}

extension PoolCore {
    private static let digestLimit = 4096

    /// The digest of a dataset whose map is complete on disk. One of an older dataset that is known saves most of the
    /// walk. `check` throws, with the lock held, when one of the two is not to be looked at any more.
    func digest(
        of dataset: Dataset, base: Dataset?, check: () throws(PoolError) -> Void
    ) throws(PoolError) -> ContentDigest {
        let (known, ofBase) = monitor.withLock {
            (dataset.role == .head ? nil : digests[dataset.number], base.flatMap { digests[$0.number] })
        }
        if let known { return known }
        var walk = DigestWalk(core: self, base: ofBase ?? ContentDigest())
        while !walk.isFinished {
            monitor.lock()
            do throws(PoolError) {
                guard !isClosed else { throw .closed }
                try check()
            } catch {
                monitor.unlock()
                throw error
            }
            let old = ofBase == nil ? .null : base?.root.pointer ?? .null
            let new = dataset.root.pointer
            let phase = enterRead()
            monitor.unlock()
            defer { exitRead(phase) }
            try walk.step(old, new, budget: options.walkPagesPerStep)
        }
        let digest = walk.digest
        monitor.withLock { if dataset.role != .head { remember(digest, of: dataset.number) } }
        return digest
    }

    /// Called with the lock held.
    func remember(_ digest: ContentDigest, of dataset: UInt64) {
        if digests.count >= Self.digestLimit { digests = [:] }
        digests[dataset] = digest
    }
}
