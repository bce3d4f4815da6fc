/// Behind a session that receives: checks, and the records of a transfer's life.
extension PoolCore {
    func record(of receive: Receive) -> ReceiveRecord {
        var sizes: [UInt64] = []
        for member in receive.members { sizes.append(volumes[member.staging]?.head.sizeBytes ?? 0) }
        let before = sizes.prefix(Int(receive.position.member)).reduce(0, +)
        return ReceiveRecord(
            snapshot: receive.snapshot, name: receive.name, from: receive.from, volumes: receive.members.map(\.name),
            token: ResumeToken(snapshot: receive.snapshot, from: receive.from, position: receive.position),
            offsetBytes: before + receive.position.block * UInt64(Format.blockBytes), sizeBytes: sizes.reduce(0, +),
            isActive: receive.isActive)
    }

    // MARK: Begin

    /// Begins a transfer or takes up the one that broke; marks it as being received.
    func beginReceive(_ begin: StreamBegin, _ options: ReceiveOptions) throws(PoolError) -> Receive {
        for member in begin.members { try checkSize(member.sizeBytes) }
        if let name = options.snapshotName { try checkName(name) }
        if let name = options.volumeName {
            try checkName(name)
            guard begin.members.count == 1 else {
                throw .refusedStream("it is of \(begin.members.count) volumes, and one name was given")
            }
        }
        if let known = monitor.withLock({ receives[begin.snapshot] }) { return try takeUp(known, begin, options) }
        guard begin.start == StreamPosition() else {
            throw .refusedStream(
                "it goes on with a transfer of \(begin.name) that is not here; send it from its beginning")
        }
        let bases = try baseMembers(of: begin)
        let target = try withRoom { () throws(PoolError) in
            let seed = try receiveSeed(begin, options, bases)
            let target = try perform(.beginReceive(seed))
            receives[begin.snapshot]?.isActive = true
            return target
        }
        try commit(through: target)
        return try monitor.withLock { () throws(PoolError) in try receive(begin.snapshot) }
    }

    private func takeUp(
        _ known: Receive, _ begin: StreamBegin, _ options: ReceiveOptions
    ) throws(PoolError) -> Receive {
        try monitor.withLock { () throws(PoolError) in
            guard known.from == begin.from, known.members.count == begin.members.count else {
                throw .refusedStream(
                    "a transfer of \(known.name) from another snapshot has begun already; abort that or go on with it")
            }
            guard !known.isActive else { throw .refusedStream("snapshot \(known.name) is being received already") }
            let names = (options.snapshotName ?? known.name, options.volumeName ?? known.members[0].name)
            guard names == (known.name, known.members[0].name) else {
                throw .refusedStream("this transfer began under other names: \(known.name) of \(known.members[0].name)")
            }
            guard begin.start <= known.position else {
                let token = ResumeToken(snapshot: known.snapshot, from: known.from, position: known.position)
                throw .refusedStream("it begins behind what was received; resume it with \(token)")
            }
            known.isActive = true
            return known
        }
    }

    /// For each member the one of the older snapshot that it is sent as a difference to. A volume that is not what it
    /// was then is refused.
    private func baseMembers(of begin: StreamBegin) throws(PoolError) -> [Snapshot.Member?] {
        guard let from = begin.from else { return begin.members.map { _ in nil } }
        func find() throws(PoolError) -> [Snapshot.Member?] {
            guard let older = snapshots[from] else {
                throw .refusedStream(
                    "it is an increment of a snapshot \(from) that is not here; send the older one first")
            }
            var found: [Snapshot.Member?] = []
            for member in begin.members {
                guard let base = member.base else {
                    found.append(nil)
                    continue
                }
                guard older.members.indices.contains(Int(base)) else {
                    throw .refusedStream("snapshot \(older.name) has fewer volumes here than where it comes from")
                }
                found.append(older.members[Int(base)])
            }
            return found
        }
        return try settled {
            () throws(PoolError) in
            var all: [Dataset] = []
            for (base, described) in zip(try find(), begin.members) {
                guard let base else { continue }
                all.append(base.dataset)
                if !described.isClone { all.append(try volume(base.volume).head) }
            }
            return all
        } body: {
            () throws(PoolError) in
            let found = try find()
            for (base, described) in zip(found, begin.members) where !described.isClone {
                if let base { try checkUnchanged(base) }
            }
            return found
        }
    }

    /// Called with the lock held.
    private func checkUnchanged(_ base: Snapshot.Member) throws(PoolError) {
        let volume = try volume(base.volume)
        let head = volume.head
        let shared = Set(base.dataset.layers.map(\.number))
        let isEqual =
            head.sizeBytes == base.dataset.sizeBytes && head.root.pointer == base.dataset.root.pointer
            && head.layers.allSatisfy { $0.isEmpty || shared.contains($0.number) }
            && base.dataset.layers.allSatisfy { layer in
                layer.isEmpty || head.layers.contains { $0.number == layer.number }
            }
        guard isEqual else {
            throw .refusedStream(
                "volume \(volume.name) is not what it was in the snapshot that the increment is to; "
                    + "revert it to that snapshot first")
        }
    }

    /// Called with the lock held.
    private func receiveSeed(
        _ begin: StreamBegin, _ options: ReceiveOptions, _ bases: [Snapshot.Member?]
    ) throws(PoolError) -> ReceiveSeed {
        guard receives[begin.snapshot] == nil else { throw .refusedStream("it is being received already") }
        let name = options.snapshotName ?? begin.name
        guard snapshots[begin.snapshot] == nil else {
            throw .refusedStream("snapshot \(begin.name) (\(begin.snapshot)) is here already")
        }
        guard tables.snapshotNames[name] == nil,
            !receives.values.contains(where: { $0.name == name })
        else { throw .exists("snapshot \(name)") }
        let surroundings = self.options.surroundings
        var members: [Receive.Member] = []
        var stagings: [ReceiveSeed.Staging] = []
        for (index, described) in begin.members.enumerated() {
            let base = bases[index]
            let receiver = described.isClone ? nil : base
            let target = try receiver.map { base throws(PoolError) in try volume(base.volume) }
            let volumeName = target?.name ?? options.volumeName ?? described.name
            if let target, let given = options.volumeName, given != target.name {
                throw .refusedStream("the increment belongs to volume \(target.name), not to \(given)")
            }
            let isTaken =
                tables.volumeNames[volumeName] != nil
                || receives.values.contains { $0.members.contains { $0.name == volumeName && $0.target == nil } }
                || members.contains { $0.name == volumeName }
            if target == nil, isTaken { throw .exists("volume \(volumeName)") }
            let number = nextVolume + UInt32(index)
            members.append(Receive.Member(staging: number, target: target?.id, name: volumeName))
            stagings.append(
                ReceiveSeed.Staging(
                    volume: VolumeSeed(
                        number: number, dataset: nextDataset + UInt64(index),
                        id: VolumeID(.random(from: surroundings)), name: "receive:\(begin.snapshot):\(index)",
                        naa: .random(from: surroundings), sizeBytes: described.sizeBytes,
                        createdAt: surroundings.now()),
                    base: base.flatMap { base in
                        begin.from.map { CloneOrigin(snapshot: $0, volume: base.volume) }
                    }))
        }
        let image = ReceiveImage(
            snapshot: begin.snapshot, from: begin.from, createdAt: begin.createdAt, kind: begin.kind, name: name,
            members: members)
        return ReceiveSeed(image: image, stagings: stagings)
    }

    // MARK: End

    /// The digest of a hidden volume's content.
    func digest(ofStaging volume: Volume) throws(PoolError) -> ContentDigest {
        func check() throws(PoolError) {
            guard volumes[volume.number] === volume else {
                throw .refusedStream("the transfer was aborted, or the pool closed")
            }
        }
        let (head, base) = try settled {
            () throws(PoolError) in
            try check()
            return [volume.head] + (volume.head.parent.map { [$0] } ?? [])
        } body: {
            () throws(PoolError) in
            (volume.head, volume.head.parent)
        }
        return try digest(of: head, base: base, check: check)
    }

    func finishReceive(
        _ receive: Receive, attributes: [UInt8], digests: [Int: ContentDigest]
    ) throws(PoolError) -> SnapshotRecord {
        let (target, record) = try withRoom { () throws(PoolError) in
            guard receives[receive.snapshot] === receive else {
                throw .refusedStream("the transfer was aborted, or the pool closed")
            }
            let seed = try finishSeed(receive, attributes)
            let target = try perform(.finishReceive(seed))
            let made = try snapshot(receive.snapshot)
            for (index, digest) in digests { remember(digest, of: made.members[index].dataset.number) }
            return (target, self.record(of: made))
        }
        try commit(through: target)
        wakeMaintenance()
        return record
    }

    /// Called with the lock held.
    private func finishSeed(_ receive: Receive, _ attributes: [UInt8]) throws(PoolError) -> SnapshotSeed {
        guard snapshots[receive.snapshot] == nil else { throw .exists("snapshot \(receive.snapshot)") }
        guard tables.snapshotNames[receive.name] == nil else {
            throw .exists("snapshot \(receive.name)")
        }
        guard epoch < Format.maxEpoch - 1 else { throw .unsupported("the pool has used up its epochs") }
        for member in receive.members {
            if member.target == nil {
                guard tables.volumeNames[member.name] == nil else {
                    throw .exists("volume \(member.name)")
                }
                continue
            }
            guard let origin = volumes[member.staging]?.clonedFrom,
                let base = try snapshot(origin.snapshot).members.first(where: { $0.volume == member.target })
            else { throw .refusedStream("the volume \(member.name) has no part in the older snapshot any more") }
            try checkUnchanged(base)
        }
        return SnapshotSeed(
            id: receive.snapshot, name: receive.name, createdAt: receive.createdAt, kind: receive.kind,
            members: receive.members.enumerated().map {
                SnapshotSeed.Member(volume: $1.staging, dataset: nextDataset + UInt64($0))
            }, attributes: attributes)
    }
}
