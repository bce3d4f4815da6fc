internal import BlockIO

/// Room that something takes.
public struct SpaceUse: Sendable, Equatable {
    /// Blocks of data.
    public var dataBytes: UInt64
    /// Pages of the maps that lead to them.
    public var mapBytes: UInt64

    public init(dataBytes: UInt64 = 0, mapBytes: UInt64 = 0) {
        self.dataBytes = dataBytes
        self.mapBytes = mapBytes
    }

    public var totalBytes: UInt64 { dataBytes + mapBytes }
}

/// What a set of snapshots and volumes holds. Both numbers count everything that nobody outside of the set has.
public struct SpaceAnswer: Sendable, Equatable {
    /// What only the set refers to.
    public var exclusive = SpaceUse()
    /// What deleting the set gives back without anything else being deleted. It is less than ``exclusive`` where a
    /// snapshot of the set has several successors, as after a revert: what it alone holds comes back when at most one
    /// of those is left. It is more where the set is the last but one successor of something deleted before.
    public var freed = SpaceUse()
    /// Pages of the snapshots' attributes. They are nobody else's, and come back with the snapshots.
    public var attributeBytes: UInt64 = 0
    /// ``exclusive`` with the attributes.
    public var exclusiveBytes: UInt64 { exclusive.totalBytes + attributeBytes }
    /// ``freed`` with the attributes.
    public var freedBytes: UInt64 { freed.totalBytes + attributeBytes }
}

extension Pool {
    /// What the given snapshots, and the heads of the given volumes, hold alone, and what deleting all of them would
    /// give back: exact, as of a checkpoint that the call makes if one is needed. A volume stands for its head, without
    /// its snapshots.
    ///
    /// Costs O(what differs between the set's members and their neighbours), looking at a bounded number of pages at a
    /// time; nobody waits for it. What is overwritten while it is being counted may be counted either way.
    ///
    /// - Parameter isCancelled: Asked between two steps; true ends the call with ``PoolError/cancelled``.
    public func space(
        of snapshots: [SnapshotID], volumes: [VolumeID] = [], isCancelled: () -> Bool = { false }
    ) throws(PoolError) -> SpaceAnswer {
        try SpaceQuery(core: core, snapshots: snapshots, volumes: volumes).run(isCancelled)
    }
}

/// Results of walks that cannot have changed: a snapshot's map never does, and its neighbours are named by their roots.
/// Guarded by the pool's lock.
struct SpaceCache {
    struct Key: Hashable {
        var dataset: UInt64
        var floorEpoch: UInt64
        /// Of the dataset's own root and of its successors': equal digests, equal maps.
        var roots: [PageDigest]
        var range: Range<UInt64>
    }

    static let limit = 32768
    private var entries: [Key: SpaceUse] = [:]

    subscript(key: Key) -> SpaceUse? {
        get { entries[key] }
        set {
            // Entries of datasets that are gone are never asked for again; starting over is cheap and rare.
            if entries.count >= Self.limit { entries = [:] }
            entries[key] = newValue
        }
    }
}

/// One question about space.
struct SpaceQuery {
    /// How often the question is put again when what it is about changes.
    private static let attempts = 32

    private let core: PoolCore
    private let snapshots: [SnapshotID]
    private let volumes: [VolumeID]

    init(core: PoolCore, snapshots: [SnapshotID], volumes: [VolumeID]) {
        self.core = core
        self.snapshots = snapshots
        self.volumes = volumes
    }

    func run(_ isCancelled: () -> Bool) throws(PoolError) -> SpaceAnswer {
        for _ in 0..<Self.attempts {
            let plan = try core.settled {
                () throws(PoolError) in
                SpacePlan.family(of: try selected())
            } body: {
                () throws(PoolError) in
                SpacePlan(chosen: try selected())
            }
            if let answer = try evaluate(plan, isCancelled) { return answer }
        }
        throw .changing("the snapshots")
    }

    /// The datasets that are asked about. Called with the lock held.
    private func selected() throws(PoolError) -> [Dataset] {
        var chosen: [UInt64: Dataset] = [:]
        for id in snapshots {
            for member in try core.snapshot(id).members { chosen[member.dataset.number] = member.dataset }
        }
        for id in volumes {
            let head = try core.volume(id).head
            chosen[head.number] = head
        }
        return chosen.values.sorted { $0.number < $1.number }
    }

    /// Nil when something changed meanwhile that the plan depends on.
    private func evaluate(_ plan: SpacePlan, _ isCancelled: () -> Bool) throws(PoolError) -> SpaceAnswer? {
        var sums: [Int64] = [0, 0, 0, 0]
        for term in plan.terms {
            guard let use = try measure(term, isCancelled) else { return nil }
            sums[0] += Int64(use.dataBytes) * term.exclusiveFactor
            sums[1] += Int64(use.mapBytes) * term.exclusiveFactor
            sums[2] += Int64(use.dataBytes) * term.freedFactor
            sums[3] += Int64(use.mapBytes) * term.freedFactor
        }
        // Below zero only by what was overwritten while the parts of a difference were counted.
        let counts = sums.map { UInt64(max(0, $0)) }
        return SpaceAnswer(
            exclusive: SpaceUse(dataBytes: counts[0], mapBytes: counts[1]),
            freed: SpaceUse(dataBytes: counts[2], mapBytes: counts[3]),
            attributeBytes: try core.monitor.withLock { () throws(PoolError) in try attributeBytes() })
    }

    /// Called with the lock held.
    private func attributeBytes() throws(PoolError) -> UInt64 {
        var pages = 0
        for id in Set(snapshots) {
            let snapshot = try core.snapshot(id)
            // Those of a new snapshot are not on the disk yet.
            guard !snapshot.attributesRoot.isNull else { continue }
            pages += MetadataWriter.streamPages(snapshot.attributeBytes)
        }
        return UInt64(pages * Format.blockBytes)
    }

    private func measure(_ term: SpacePlan.Term, _ isCancelled: () -> Bool) throws(PoolError) -> SpaceUse? {
        var walk = ExclusiveWalk(core: core, floorEpoch: term.floorEpoch, range: term.range)
        var key: SpaceCache.Key?
        while true {
            if isCancelled() { throw .cancelled }
            core.monitor.lock()
            guard !core.isClosed else {
                core.monitor.unlock()
                throw .closed
            }
            guard let (root, successors) = term.roots(in: core) else {
                core.monitor.unlock()
                return nil
            }
            let now = SpaceCache.Key(
                dataset: term.dataset, floorEpoch: term.floorEpoch,
                roots: [root.digest] + successors.map(\.digest), range: term.range)
            if walk.cursor == term.range.lowerBound, key == nil {
                key = now
                if let known = core.spaceCache[now] {
                    core.monitor.unlock()
                    return known
                }
            } else if key != now {
                key = nil
            }
            let phase = core.enterRead()
            core.monitor.unlock()
            defer { core.exitRead(phase) }
            try walk.step(root, successors: successors, budget: core.options.walkPagesPerStep)
            if walk.isFinished { break }
        }
        let blockBytes = UInt64(Format.blockBytes)
        let use = SpaceUse(dataBytes: walk.dataBlocks * blockBytes, mapBytes: walk.mapPages * blockBytes)
        if let key { core.monitor.withLock { core.spaceCache[key] = use } }
        return use
    }
}

extension PoolCore {
    /// Runs `body` with the lock held when the maps on disk have everything that the datasets of `select` held when the
    /// call began; a snapshot's map is then complete for good. Makes a checkpoint where they have not.
    func settled<R>(
        _ select: () throws(PoolError) -> [Dataset], body: () throws(PoolError) -> R
    ) throws(PoolError) -> R {
        monitor.lock()
        defer { monitor.unlock() }
        guard !isClosed else { throw .closed }
        var awaited: Set<UInt64>?
        for _ in 0..<16 {
            var layers: Set<UInt64> = []
            var mustWait = false
            for dataset in try select() {
                for layer in dataset.layers where !layer.isEmpty {
                    layers.insert(layer.number)
                    // Heads go on getting new layers: only those of the beginning are waited for.
                    if dataset.role != .head || awaited?.contains(layer.number) ?? true { mustWait = true }
                }
            }
            if !mustWait { return try body() }
            if awaited == nil { awaited = layers }
            if let refusal { throw refusal }
            try awaitPass()
        }
        throw .changing("the snapshots")
    }
}
