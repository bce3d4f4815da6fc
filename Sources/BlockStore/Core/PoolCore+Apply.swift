internal import BlockIO

/// What each structural record does. The same code runs when a call is made and when the journal is replayed. All
/// functions are called with the lock held, and with records that were validated (or come from the journal).
extension PoolCore {
    func apply(_ record: JournalRecord) throws(PoolError) {
        switch record {
        case .map(let volume, let block, let physical, let crcs):
            try replayMap(try volumeNumbered(volume), block: block, physical: physical, crcs: crcs)
        case .unmap(let volume, let block, let count):
            let volume = try volumeNumbered(volume)
            guard block <= block &+ count else { throw .damaged("a journal record unmaps an impossible range") }
            _ = applyUnmap(volume, block..<(block + count), isReplay: true)
        case .createVolume(let seed):
            applyCreate(seed, origin: nil, from: nil)
        case .resizeVolume(let number, let sizeBytes):
            applyResize(try volumeNumbered(number), sizeBytes: sizeBytes)
        case .deleteVolume(let number):
            applyDelete(try volumeNumbered(number))
        case .snapshot(let seed):
            try applySnapshot(seed)
        case .deleteSnapshot(let id):
            applyDelete(try snapshot(id))
        case .setAttributes(let id, let bytes):
            applyAttributes(try snapshot(id), bytes)
        case .clone(let seed, let origin):
            applyCreate(seed, origin: origin, from: try member(of: origin.snapshot, origin.volume))
        case .revert(let seed, let target):
            try applyRevert(seed, to: try snapshot(target))
        case .growPool(let totalBlocks):
            try applyGrow(totalBlocks)
        case .promote(let number):
            try applyPromote(try volumeNumbered(number))
        case .beginReceive(let seed):
            try applyBegin(seed)
        case .receivePosition(let id, let position):
            try applyPosition(id, position)
        case .finishReceive(let seed):
            try applyFinish(seed)
        case .abortReceive(let id):
            try applyAbort(id)
        }
    }

    func volumeNumbered(_ number: UInt32) throws(PoolError) -> Volume {
        guard let volume = volumes[number] else {
            throw .damaged("a journal record names volume \(number), which does not exist")
        }
        return volume
    }

    func volume(_ id: VolumeID) throws(PoolError) -> Volume {
        guard let number = volumeNumbers[id], let volume = volumes[number], !volume.isHidden else {
            throw .notFound("volume \(id)")
        }
        return volume
    }

    func snapshot(_ id: SnapshotID) throws(PoolError) -> Snapshot {
        guard let snapshot = snapshots[id] else { throw .notFound("snapshot \(id)") }
        return snapshot
    }

    func member(of id: SnapshotID, _ volume: VolumeID) throws(PoolError) -> Dataset {
        guard let member = try snapshot(id).members.first(where: { $0.volume == volume }) else {
            throw .notFound("volume \(volume) in snapshot \(id)")
        }
        return member.dataset
    }

    private func replayMap(
        _ volume: Volume, block: UInt64, physical: UInt64, crcs: [UInt32]
    ) throws(PoolError) {
        guard block + UInt64(crcs.count) <= volume.head.sizeBytes / UInt64(Format.blockBytes) else {
            throw .damaged("a journal record writes beyond the end of volume \(volume.name)")
        }
        changeTop(volume.head) { top in
            for (index, crc) in crcs.enumerated() {
                _ = top.insert(
                    RecentMapping(block: physical + UInt64(index), crc: crc), for: block + UInt64(index))
            }
        }
    }

    private func makeDataset(_ number: UInt64, volume: UInt32, role: Dataset.Role, sizeBytes: UInt64) -> Dataset {
        let dataset = Dataset(
            number: number, volume: volume, role: role, epoch: Format.maxEpoch, sizeBytes: sizeBytes,
            tables: tables)
        datasets[number] = dataset
        nextDataset = max(nextDataset, number + 1)
        return dataset
    }

    func applyCreate(_ seed: VolumeSeed, origin: CloneOrigin?, from source: Dataset?) {
        let head = makeDataset(seed.dataset, volume: seed.number, role: .head, sizeBytes: seed.sizeBytes)
        let volume = Volume(
            number: seed.number, id: seed.id, name: seed.name, naa: seed.naa, createdAt: seed.createdAt,
            clonedFrom: origin, head: head)
        if let source { stand(head, on: source) } else { pushLayer(head) }
        nextVolume = max(nextVolume, seed.number + 1)
        register(volume)
    }

    func register(_ volume: Volume) {
        volumes[volume.number] = volume
        volumeNumbers[volume.id] = volume.number
        volume.enter(tables)
        volume.device = VolumeDevice(core: self, volume: volume)
    }

    /// Makes a head's content that of a snapshot's member.
    func stand(_ head: Dataset, on source: Dataset) {
        head.setParent(source)
        head.sizeBytes = source.sizeBytes
        head.root = source.root
        head.layers = source.layers
        pushLayer(head)
    }

    func applyResize(_ volume: Volume, sizeBytes: UInt64) {
        let blockBytes = UInt64(Format.blockBytes)
        let old = volume.head.sizeBytes / blockBytes
        let new = sizeBytes / blockBytes
        if new < old {
            breakClaims(volume.number, new..<old, except: nil)
            // What is cut off comes back as zeros when the volume grows again. The layer's blocks go at the merge.
            if volume.head.layers[0].count > 0 { pushLayer(volume.head) }
            changeTop(volume.head) { top in top.unmap(new..<old) { _ in } }
            hasUnmappedSinceCheckpoint = true
        }
        changeTop(volume.head) { _ in volume.head.sizeBytes = sizeBytes }
    }

    func applyDelete(_ volume: Volume) {
        volume.device = nil
        volumes[volume.number] = nil
        volumeNumbers[volume.id] = nil
        volume.leaveTables()
        volume.head.role = .doomed
        isCheckpointRequested = true
    }

    /// The cut: O(members).
    func applySnapshot(_ seed: SnapshotSeed) throws(PoolError) {
        let closed = epoch
        epoch += 1
        var members: [Snapshot.Member] = []
        for member in seed.members {
            let volume = try volumeNumbered(member.volume)
            let head = volume.head
            let kept = makeDataset(
                member.dataset, volume: volume.number, role: .snapshot, sizeBytes: head.sizeBytes)
            kept.epoch = closed
            kept.root = head.root
            kept.setParent(head.parent)
            head.setParent(kept)
            let top = head.layers[0]
            for layer in head.layers where layer.owner === head && !(layer === top && top.isEmpty) {
                layer.owner = kept
            }
            if top.isEmpty {
                kept.layers = Array(head.layers.dropFirst())
                top.epoch = epoch
            } else {
                kept.layers = head.layers
                if !hasBug(.writesPassTheCut) { pushLayer(head) }
            }
            if head.layers.count > 16 { isCheckpointRequested = true }
            members.append(Snapshot.Member(volume: volume.id, dataset: kept))
        }
        register(
            Snapshot(
                id: seed.id, name: seed.name, createdAt: seed.createdAt, kind: seed.kind, epoch: closed,
                members: members, attributes: seed.attributes, attributeBytes: UInt64(seed.attributes.count),
                attributesRoot: .null))
        attributeBytesToWrite += UInt64(seed.attributes.count)
    }

    func register(_ snapshot: Snapshot) {
        snapshots[snapshot.id] = snapshot
        snapshot.enter(tables)
    }

    private func applyRevert(_ seed: SnapshotSeed, to target: Snapshot) throws(PoolError) {
        try applySnapshot(seed)
        for member in seed.members {
            let volume = try volumeNumbered(member.volume)
            guard let source = target.members.first(where: { $0.volume == volume.id })?.dataset else {
                throw .damaged("volume \(volume.name) was reverted to a snapshot that does not hold it")
            }
            breakClaims(volume.number, 0..<(.max), except: nil)
            // The head's own layer is empty here: the cut has just put what it had under the kept dataset.
            let parent = volume.head.parent
            stand(volume.head, on: source)
            if hasBug(.revertKeepsParent) { volume.head.setParent(parent) }
        }
    }

    private func applyDelete(_ snapshot: Snapshot) {
        discardAttributes(of: snapshot)
        snapshots[snapshot.id] = nil
        snapshot.leaveTables()
        for member in snapshot.members { member.dataset.role = .doomed }
        isCheckpointRequested = true
    }

    private func applyAttributes(_ snapshot: Snapshot, _ bytes: [UInt8]) {
        discardAttributes(of: snapshot)
        snapshot.setAttributes(bytes)
        attributeBytesToWrite += UInt64(bytes.count)
    }

    private func discardAttributes(of snapshot: Snapshot) {
        guard !snapshot.attributesRoot.isNull else { return }
        discardedStreams.append((snapshot.attributesRoot, snapshot.attributeBytes))
    }
}
