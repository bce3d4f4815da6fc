/// A stretch of a volume in which two snapshots differ. Offsets and lengths are multiples of 4096.
public struct DiffExtent: Sendable, Equatable {
    public enum Kind: Sendable {
        /// Written since, even if with the same bytes: the newer snapshot has data there.
        case data
        /// Had data and has none any more: reads as zeros.
        case hole
    }

    public var offset: UInt64
    public var lengthBytes: UInt64
    public var kind: Kind

    public init(offset: UInt64, lengthBytes: UInt64, kind: Kind) {
        self.offset = offset
        self.lengthBytes = lengthBytes
        self.kind = kind
    }
}

extension Pool {
    /// What changed in a volume between two snapshots, exact to the block and including what became a hole. The order
    /// of the two does not matter; they need not be neighbours, and may lie on different branches after a revert or a
    /// clone, as long as they have a common history.
    ///
    /// - Parameters:
    ///   - from: The older snapshot; nil for "nothing", so that the answer is everything that is mapped.
    ///   - volume: A member of `to`.
    ///   - fromVolume: The member of `from`, where it is not `volume`: a clone against what it was cloned from.
    ///   - offset: Where to begin; a multiple of 4096. An interrupted reader goes on with ``SnapshotDiff/offset``.
    /// - Throws: ``PoolError/unrelated(_:)`` for members without a common history.
    public func diff(
        from: SnapshotID?, to: SnapshotID, volume: VolumeID, fromVolume: VolumeID? = nil, startingAt offset: UInt64 = 0
    ) throws(PoolError) -> SnapshotDiff {
        guard offset % UInt64(Format.blockBytes) == 0 else {
            throw .invalidArgument("\(offset) is no multiple of \(Format.blockBytes)")
        }
        return try core.diff(from: from, to: to, volume: volume, fromVolume: fromVolume, startingAt: offset)
    }
}

/// The differences between two snapshots, read a bounded piece at a time. Nothing is held between two calls but the
/// place, so it may be read slowly; a snapshot that is deleted meanwhile ends it with an error. Used by one thread at
/// a time.
public final class SnapshotDiff: @unchecked Sendable {
    // SAFETY: `walk` belongs to whoever reads; all else is constant, and the pool's objects are guarded by its lock.
    private let core: PoolCore
    private let old: Member?
    private let new: Member
    private var walk: DiffWalk
    /// Of the older snapshot's member; nil where there is none.
    public let fromSizeBytes: UInt64?
    public let toSizeBytes: UInt64

    struct Member {
        var snapshot: Snapshot
        var dataset: Dataset
    }

    init(core: PoolCore, old: Member?, new: Member, startingAt offset: UInt64) {
        self.core = core
        self.old = old
        self.new = new
        fromSizeBytes = old?.dataset.sizeBytes
        toSizeBytes = new.dataset.sizeBytes
        let blockBytes = UInt64(Format.blockBytes)
        walk = DiffWalk(
            core: core, from: offset / blockBytes, end: max(new.dataset.sizeBytes / blockBytes, offset / blockBytes))
    }

    /// Everything before this offset has been returned.
    public var offset: UInt64 { walk.cursor * UInt64(Format.blockBytes) }

    /// The next extents in ascending order, of which neighbours may be of one kind; nil at the end. It can be empty
    /// where much was looked at and nothing found. What lies beyond the end of the newer snapshot's member is left
    /// out: ``toSizeBytes`` says that it is gone.
    ///
    /// - Parameter limit: About how many extents to return; at most 256 more.
    public func next(limit: Int = 4096) throws(PoolError) -> [DiffExtent]? {
        guard walk.cursor < toSizeBytes / UInt64(Format.blockBytes) else { return nil }
        core.monitor.lock()
        let roots: (NodePointer, NodePointer)
        do throws(PoolError) {
            roots = (try old.map { member throws(PoolError) in try root(member) } ?? .null, try root(new))
        } catch {
            core.monitor.unlock()
            throw error
        }
        let phase = core.enterRead()
        core.monitor.unlock()
        defer { core.exitRead(phase) }
        try walk.step(roots.0, roots.1, budget: core.options.walkPagesPerStep, runLimit: max(1, limit))
        return walk.runs.map { run in
            DiffExtent(
                offset: run.blocks.lowerBound * UInt64(Format.blockBytes),
                lengthBytes: UInt64(run.blocks.count) * UInt64(Format.blockBytes), kind: run.isData ? .data : .hole)
        }
    }

    /// Called with the lock held.
    private func root(_ member: Member) throws(PoolError) -> NodePointer {
        guard !core.isClosed else { throw .closed }
        guard core.snapshots[member.snapshot.id] === member.snapshot else {
            throw .notFound("snapshot \(member.snapshot.name)")
        }
        return member.dataset.root.pointer
    }
}

extension PoolCore {
    func diff(
        from: SnapshotID?, to: SnapshotID, volume: VolumeID, fromVolume: VolumeID?, startingAt offset: UInt64
    ) throws(PoolError) -> SnapshotDiff {
        func members() throws(PoolError) -> (old: SnapshotDiff.Member?, new: SnapshotDiff.Member) {
            let new = SnapshotDiff.Member(snapshot: try snapshot(to), dataset: try member(of: to, volume))
            guard let from else { return (nil, new) }
            let older = try snapshot(from)
            if let fromVolume {
                return (SnapshotDiff.Member(snapshot: older, dataset: try member(of: from, fromVolume)), new)
            }
            let related = older.members.filter { ancestor(of: $0.dataset) === ancestor(of: new.dataset) }
            guard let match = related.first(where: { $0.volume == volume }) ?? related.first,
                match.volume == volume || related.count == 1
            else {
                throw .unrelated(
                    "snapshots \(older.name) and \(new.snapshot.name) have no common history of the volume")
            }
            return (SnapshotDiff.Member(snapshot: older, dataset: match.dataset), new)
        }
        return try settled {
            () throws(PoolError) in
            let members = try members()
            return [members.old?.dataset, members.new.dataset].compactMap { $0 }
        } body: {
            () throws(PoolError) in
            let (old, new) = try members()
            if let old, ancestor(of: old.dataset) !== ancestor(of: new.dataset) {
                throw .unrelated(
                    "snapshots \(old.snapshot.name) and \(new.snapshot.name) have no common history of the volume")
            }
            return SnapshotDiff(core: self, old: old, new: new, startingAt: offset)
        }
    }

    /// The oldest dataset of the tree that this one is in. Called with the lock held.
    func ancestor(of dataset: Dataset) -> Dataset {
        var current = dataset
        while let parent = current.parent { current = parent }
        return current
    }
}
