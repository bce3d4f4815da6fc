extension Pool {
    /// Makes a clone the owner of the snapshots that it was cloned from: the one at its origin and all older ones
    /// become members of the clone, and the volume they belonged to becomes a clone of it. Nothing is copied and no
    /// content changes; the former owner can then be deleted. One record.
    ///
    /// - Returns: The clone, and the snapshots that changed hands, oldest first.
    /// - Throws: ``PoolError/notAClone(_:)`` for a volume that stands on no snapshot of another.
    public func promote(_ volume: VolumeID) throws(PoolError) -> (volume: VolumeRecord, snapshots: [SnapshotID]) {
        let (target, moved) = try core.withRoom { () throws(PoolError) in
            let clone = try core.volume(volume)
            let moved = try core.promotion(of: clone).snapshots
            return (try core.perform(.promote(volume: clone.number)), moved)
        }
        try core.commit(through: target)
        let record = try core.monitor.withLock { () throws(PoolError) in core.record(of: try core.volume(volume)) }
        return (record, moved)
    }
}

extension PoolCore {
    /// What a promotion changes.
    struct Promotion {
        var former: Volume
        /// The datasets that change hands, newest first.
        var datasets: [Dataset]
        /// Their snapshots, oldest first.
        var snapshots: [SnapshotID]
    }

    /// Called with the lock held.
    func promotion(of clone: Volume) throws(PoolError) -> Promotion {
        // Deleted datasets count for nothing: when the journal is replayed they may be gone already.
        var current = clone.head.parent
        while let dataset = current, dataset.volume == clone.number || dataset.role == .doomed {
            current = dataset.parent
        }
        guard clone.clonedFrom != nil, let origin = current, let former = volumes[origin.volume] else {
            throw .notAClone(clone.name)
        }
        var chain: [Dataset] = []
        while let dataset = current, dataset.volume == former.number || dataset.role == .doomed {
            if dataset.volume == former.number { chain.append(dataset) }
            if hasBug(.promoteForgetsOlder) { break }
            current = dataset.parent
        }
        let moved = Set(chain.compactMap { tables.snapshotOfDataset[$0.number] })
            .compactMap { snapshots[$0] }.sorted { $0.epoch < $1.epoch }
        for snapshot in moved where snapshot.members.contains(where: { $0.volume == clone.id }) {
            throw .invalidArgument("snapshot \(snapshot.name) already has \(clone.name) as a member")
        }
        return Promotion(former: former, datasets: chain, snapshots: moved.map(\.id))
    }

    func applyPromote(_ clone: Volume) throws(PoolError) {
        let promotion = try promotion(of: clone)
        let former = promotion.former
        let numbers = Set(promotion.datasets.map(\.number))
        for dataset in promotion.datasets { dataset.volume = clone.number }
        let moved = Set(promotion.snapshots)
        for id in promotion.snapshots {
            guard let snapshot = snapshots[id] else { continue }
            for index in snapshot.members.indices where numbers.contains(snapshot.members[index].dataset.number) {
                snapshot.members[index].volume = clone.id
            }
        }
        for volume in volumes.values {
            guard let origin = volume.clonedFrom, origin.volume == former.id, moved.contains(origin.snapshot) else {
                continue
            }
            volume.clonedFrom = CloneOrigin(snapshot: origin.snapshot, volume: clone.id)
        }
        // The former owner's own origin, if it had one, is now the clone's.
        clone.clonedFrom = former.clonedFrom
        former.clonedFrom = origin(of: former)
    }

    /// The nearest snapshot of another volume below a head that still exists.
    private func origin(of volume: Volume) -> CloneOrigin? {
        var current = volume.head.parent
        while let dataset = current {
            if dataset.volume != volume.number, dataset.role == .snapshot, let owner = volumes[dataset.volume],
                let snapshot = tables.snapshotOfDataset[dataset.number]
            {
                return CloneOrigin(snapshot: snapshot, volume: owner.id)
            }
            current = dataset.parent
        }
        return nil
    }
}
