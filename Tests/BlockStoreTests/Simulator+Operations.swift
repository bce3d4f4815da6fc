import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// What a history is made of: each operation on the pool, with what it does to the model.
extension Simulator {
    func pickRange(_ volume: VolumeID, aligned: Bool) -> Range<UInt64>? {
        let places = Self.places(sizeBytes: model.volumes[volume]!.sizeBytes)
        guard !places.isEmpty else { return nil }
        // Often the same blocks again.
        if aligned, let last = lastRange, last.volume == volume, generator.chance(interruption.repeatPercent),
            places.contains(where: { $0.lowerBound <= last.range.lowerBound && last.range.upperBound <= $0.upperBound })
        {
            return last.range
        }
        let place = places[Int(generator.below(UInt64(places.count)))]
        let unit: UInt64 = aligned ? 8 : 1
        let total = UInt64(place.count)
        let first = generator.below(total / unit) * unit
        let limit = min(total - first, aligned ? (generator.chance(15) ? 600 : 64) : 24)
        let count = max(unit, generator.below(limit + 1) / unit * unit)
        let range = (place.lowerBound + first)..<(place.lowerBound + first + min(count, total - first))
        if aligned { lastRange = (volume, range) }
        return range
    }

    func nextTag() -> UInt64 {
        tags += 1
        return tags << 40
    }

    func write(_ volume: VolumeID, mayBeDurable: Bool = true) throws {
        let isAligned = generator.chance(70) || interruption.repeatPercent > 25
        guard let range = pickRange(volume, aligned: isAligned) else { return }
        let tag = generator.chance(10) ? 0 : nextTag()
        // Zeros over zeros would make a new block that looks like the old one.
        if tag == 0, !range.contains(where: { model.volumes[volume]!.sectors[$0] != nil }) { return }
        let isDurable = mayBeDurable && generator.chance(syncsOften ? 60 : 10)
        writes += 1
        let serial = writes
        let bytes = Sector.run(range, tag: tag)
        let leaf = Self.leafSectors
        if range.lowerBound / leaf != (range.upperBound - 1) / leaf { coverage.note(.writeAcrossLeaves) }
        try attempt(
            "write \(volume.description.prefix(4)) \(range) \(tag >> 40) \(isDurable ? "durable" : "")",
            as: isDurable ? .durableWrite : tag == 0 ? .writeOfZeros : isAligned ? .write : .writeOfParts,
            isDurable: isDurable, isInterruptible: !isDurable,
            change: { $0.volumes[volume]!.write(range, tag: tag, serial: serial) },
            { pool in
                try pool.device(of: volume).write(
                    bytes, at: range.lowerBound * 512, durability: isDurable ? .durable : .cached)
            })
    }

    func unmap(_ volume: VolumeID) throws {
        if generator.chance(15) {
            let size = model.volumes[volume]!.sizeBytes
            return try attempt(
                "unmap all of \(volume.description.prefix(4))", as: .unmapOfAll, isDurable: false,
                change: { $0.volumes[volume]!.unmap(0..<(size / 512)) },
                { try $0.device(of: volume).unmap(at: 0, lengthBytes: size) })
        }
        guard let range = generator.chance(25) ? pickStretch(volume) : pickRange(volume, aligned: true) else { return }
        try attempt(
            "unmap \(volume.description.prefix(4)) \(range)", as: .unmap, isDurable: false,
            change: { $0.volumes[volume]!.unmap(range) },
            { try $0.device(of: volume).unmap(at: range.lowerBound * 512, lengthBytes: UInt64(range.count) * 512) })
    }

    func compareAndWrite(_ volume: VolumeID) throws {
        guard let range = pickRange(volume, aligned: false) else { return }
        let sectors = model.volumes[volume]!.sectors
        var expected: [UInt8] = []
        for sector in range {
            var bytes = [UInt8](repeating: 0, count: 512)
            bytes.withUnsafeMutableBytes { Sector.fill($0, tag: sectors[sector] ?? 0) }
            expected += bytes
        }
        let tag = nextTag()
        let replacement = Sector.run(range, tag: tag)
        writes += 1
        let serial = writes
        let spoils = generator.chance(30)
        // Often the very last byte.
        let spoilt = generator.chance(30) ? expected.count - 1 : Int(generator.below(UInt64(expected.count)))
        if spoils { expected[spoilt] ^= 0xff }
        try attempt(
            "compare and write \(volume.description.prefix(4)) \(range) \(tag >> 40) \(spoils ? "(differs)" : "")",
            as: spoils ? .miscompare : .compareAndWrite, isDurable: false,
            change: { if !spoils { $0.volumes[volume]!.write(range, tag: tag, serial: serial) } },
            { pool in
                do {
                    let device = try pool.device(of: volume)
                    try expected.withUnsafeBytes { old in
                        try replacement.withUnsafeBytes { new in
                            try device.compareAndWrite(
                                at: range.lowerBound * 512, expected: old, replacement: new, durability: .cached)
                        }
                    }
                    if spoils { throw self.fail("a comparison with other data succeeded") }
                } catch BlockError.miscompare where spoils {
                }
            })
    }

    /// In one of several ways.
    func makeDurable(_ volume: VolumeID) throws {
        if isInterrupted, generator.chance(45) { return try commitUnderLoad(volume) }
        switch generator.below(20) {
        case 0..<2:
            // Much that is to be synced, part of it on its way already.
            for _ in 0..<3 where pool != nil { try write(volume, mayBeDurable: false) }
            if writesBackEarly { pool?.core.writeBackEarly() }
            try flushIntoPowerLoss(volume)
        case 2..<4: try checkpoint(volume)
        default: try flush(volume)
        }
    }

    /// The power fails where the batch is written and perhaps on the disk, and nothing makes up for data that is not.
    func flushIntoPowerLoss(_ volume: VolumeID) throws {
        let at = disk.callCount + 1 + generator.below(3)
        setPlan { call, _ in call >= at ? .powerLoss : nil }
        losesPower = true
        try attempt("flush", as: .flush, isDurable: true, change: { _ in }, { try $0.device(of: volume).flush() })
    }

    func flush(_ volume: VolumeID) throws {
        if isInterrupted { planToDieInCommit() }
        let before = interruption.count
        try attempt(
            "flush", as: .flush, isDurable: true, isInterruptible: true, change: { _ in },
            { try $0.device(of: volume).flush() })
        guard interruption.count > before, !interruption.isRunning, pool != nil else { return }
        // What came between must not count as flushed.
        switch generator.below(3) {
        case 0:
            let at = disk.callCount + 1 + generator.below(3)
            setPlan { call, _ in call >= at ? .powerLoss : nil }
            try attempt("flush", as: .flush, isDurable: true, change: { _ in }, { try $0.device(of: volume).flush() })
        case 1:
            for _ in 0..<3 where pool != nil { try write(volume, mayBeDurable: false) }
            if pool != nil { crash("after a flush") }
        default: break
        }
    }

    /// Identifiers follow from the seed too, so that a history can be replayed.
    func newID() -> String {
        let digits = Array(
            String(generator.next() | 1 << 63, radix: 16) + String(generator.next() | 1 << 63, radix: 16))
        return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(digits[$0]) }.joined(separator: "-")
    }

    func newObjectID() -> ObjectID { ObjectID(high: generator.next(), low: generator.next()) }

    func newName(_ prefix: String) -> String {
        // The name of something that was deleted may come again.
        if names > 0, generator.chance(20), let pool, replica == nil {
            let name = "\(prefix)\(1 + generator.below(UInt64(names)))"
            if !pool.hasSnapshot(named: name), !pool.volumes().contains(where: { $0.name == name }) { return name }
        }
        names += 1
        return "\(prefix)\(names)"
    }

    func createVolume() throws {
        guard model.volumes.count < 4 else { return }
        let id = VolumeID(newID())!
        let sizes: [UInt64] = [2 << 20, 200 << 20, 1 << 40, 64 << 40]
        let size = sizes[Int(generator.below(4))]
        let name = newName("v")
        try attempt(
            "create \(id.description.prefix(4)) \(name)", as: .createVolume, isDurable: true,
            change: { $0.create(id, sizeBytes: size) },
            { _ = try $0.createVolume(id: id, name: name, sizeBytes: size) })
    }

    func deleteVolume(_ volume: VolumeID) throws {
        guard !model.snapshots.values.contains(where: { $0.members[volume] != nil }) else {
            #expect(throws: PoolError.self) { try pool!.deleteVolume(volume) }
            return coverage.note(.refusedDeletion)
        }
        try attempt(
            "delete volume \(volume.description.prefix(4))", as: .deleteVolume, isDurable: true,
            change: { $0.delete(volume) },
            { try $0.deleteVolume(volume) })
    }

    func resize(_ volume: VolumeID) throws {
        // Some end within a place that is used, in the middle of a leaf.
        let sizes: [UInt64] = [
            2 << 20, 129 << 20, 200 << 20, 64 << 40, 20 << 12, 258 << 12, (128 << 20) - (3 << 12),
            (128 << 20) + (1 << 12),
        ]
        let size = sizes[Int(generator.below(generator.chance(50) ? 4 : 8))]
        try attempt(
            "resize \(volume.description.prefix(4)) to \(size)", as: .resize, isDurable: true,
            change: { $0.volumes[volume]!.resize(size) },
            { try $0.resizeVolume(volume, sizeBytes: size) })
    }

    func snapshot(_ volumes: [VolumeID]) throws {
        guard model.snapshots.count < snapshotLimit else { return }
        let members = volumes.filter { _ in generator.chance(60) }
        guard !members.isEmpty else { return }
        let id = SnapshotID(newID())!
        let name = newName("s")
        let attributes = [UInt8](repeating: UInt8(truncatingIfNeeded: names), count: Int(generator.below(6000)))
        planToDieInCommit()
        try attempt(
            "snapshot \(id.description.prefix(4)) \(name) of \(members.count)",
            as: model.snapshots.count > 12 ? .manySnapshots : members.count > 1 ? .groupSnapshot : .snapshot,
            isDurable: true,
            change: { $0.snapshot(members, as: id, name: name, attributes: attributes, kind: .user) },
            { _ = try $0.createSnapshot(id: id, name: name, volumes: members, attributes: attributes) })
    }

    func pickSnapshot() -> SnapshotID? {
        let all = model.snapshots.keys.sorted { $0.description < $1.description }
        return all.isEmpty ? nil : all[Int(generator.below(UInt64(all.count)))]
    }

    /// Often with a crash soon after it, when what it freed is used again and nothing was synced since.
    func checkpoint(_ volume: VolumeID) throws {
        if generator.chance(40) { planToDieAtSuperblock() }
        try maintain()
        guard pool != nil, generator.chance(50) else { return }
        for _ in 0...generator.below(4) where pool != nil { try write(volume, mayBeDurable: generator.chance(30)) }
        losesPower = generator.chance(60)
        if pool != nil { crash("after a checkpoint") }
    }

    /// The power fails where a superblock is written and not synced yet.
    private func planToDieAtSuperblock() {
        // SAFETY: the disk asks in the one thread that there is.
        nonisolated(unsafe) var isWritten = false
        setPlan { _, call in
            if case .write(let block) = call, block < Format.journalBlock { isWritten = true }
            return isWritten && call == .sync ? .powerLoss : nil
        }
        losesPower = true
    }

    func maintain() throws {
        try attempt(
            "maintain", as: .checkpoint, isDurable: true, isInterruptible: true, change: { _ in },
            { pool in
                pool.core.writeBackEarly()
                try pool.maintain()
            })
    }

    /// Often the one that a head stands on, with writes between the steps of its reclaim.
    func deleteSnapshot() throws {
        let large = model.volumes.filter { $0.value.sizeBytes > 150 << 20 }.keys
        if model.snapshots.count < snapshotLimit, generator.chance(12),
            let volume = large.min(by: { $0.description < $1.description })
        {
            return try reclaimUnderWrites(volume)
        }
        var chosen = pickSnapshot()
        let heads = model.heads.keys.sorted { $0.description < $1.description }.filter {
            model.heads[$0]!.parent != nil
        }
        var volume: VolumeID?
        if !heads.isEmpty, generator.chance(50) {
            volume = heads[Int(generator.below(UInt64(heads.count)))]
            chosen = model.heads[volume!]!.parent!.snapshot
        }
        guard let chosen else { return }
        let former = model.snapshots[chosen]!.members
        try delete(chosen)
        guard generator.chance(50) else { return }
        for _ in 0...generator.below(3) {
            let volumes = model.volumes.keys.sorted { $0.description < $1.description }
            guard pool != nil, !volumes.isEmpty else { return }
            try maintain()
            let target = volume ?? volumes[Int(generator.below(UInt64(volumes.count)))]
            for _ in 0..<3 where pool != nil && model.volumes[target] != nil {
                try generator.chance(50) ? write(target) : overwrite(target, sharedWith: former[target])
            }
        }
    }

    /// A block that the volume still shares with what was deleted.
    private func overwrite(_ volume: VolumeID, sharedWith former: VolumeModel?) throws {
        let blocks = model.volumes[volume]!.blocks
        let shared = (former?.blocks ?? [:]).filter { blocks[$0.key] == $0.value }.keys.sorted()
        guard !shared.isEmpty else { return try write(volume) }
        let block = shared[Int(generator.below(UInt64(shared.count)))]
        try write(volume, over: (block * 8)..<(block * 8 + 8))
    }

    private func write(_ volume: VolumeID, over range: Range<UInt64>) throws {
        lastRange = (volume, range)
        interruption.repeatPercent = 100
        defer { interruption.repeatPercent = 25 }
        try write(volume, mayBeDurable: false)
    }

    /// A snapshot of which the volume changes a little in every leaf, so that reclaim has to stop in each; meanwhile
    /// the volume overwrites what it still shares with it, before and behind the place where reclaim is.
    private func reclaimUnderWrites(_ volume: VolumeID) throws {
        let id = SnapshotID(newID())!
        let ranges = Self.places(sizeBytes: model.volumes[volume]!.sizeBytes).map { place in
            let first = (place.lowerBound + generator.below(UInt64(place.count) - 63)) / 8 * 8
            return max(first, place.lowerBound)..<(max(first, place.lowerBound) + 56)
        }
        for range in ranges where pool != nil { try write(volume, over: range) }
        guard pool != nil else { return }
        // Only now: what came between may have taken a name.
        let name = newName("s")
        try attempt(
            "snapshot \(id.description.prefix(4)) \(name)", as: .snapshot, isDurable: true,
            change: { $0.snapshot([volume], as: id, name: name, attributes: [], kind: .user) },
            { _ = try $0.createSnapshot(id: id, name: name, volumes: [volume], attributes: []) })
        for range in ranges where pool != nil {
            try write(volume, over: range.lowerBound..<(range.lowerBound + 8))
        }
        guard pool != nil, let former = model.snapshots[id]?.members[volume] else { return }
        try maintain()
        guard pool != nil, model.snapshots[id] != nil, model.volumes[volume] != nil else { return }
        try delete(id)
        for _ in 0..<(3 + generator.below(4)) {
            if pool != nil { try maintain() }
            for _ in 0..<2 where pool != nil && model.volumes[volume] != nil {
                try overwrite(volume, sharedWith: former)
            }
        }
    }

    func delete(_ id: SnapshotID) throws {
        guard !model.origins.values.contains(id) else {
            #expect(throws: PoolError.self) { try pool!.deleteSnapshot(id) }
            return coverage.note(.refusedDeletion)
        }
        try attempt(
            "delete snapshot \(id.description.prefix(4))", as: .deleteSnapshot, isDurable: true,
            change: { $0.delete(id) },
            { try $0.deleteSnapshot(id) })
    }

    func setAttributes() throws {
        guard let id = pickSnapshot() else { return }
        let attributes = [UInt8](repeating: UInt8(truncatingIfNeeded: tags), count: Int(generator.below(7000)))
        planToDieInCommit()
        try attempt(
            "set attributes of \(id.description.prefix(4))", as: .attributes, isDurable: true,
            change: { $0.snapshots[id]!.attributes = attributes },
            { try $0.setAttributes(of: id, attributes) })
    }

    func clone() throws {
        guard model.volumes.count < (hasDeepClones ? 9 : 5), let snapshot = pickSnapshot() else { return }
        let members = model.snapshots[snapshot]!.members.keys.sorted { $0.description < $1.description }
        // Of a clone where there is one, so that they stand on each other.
        let source = members.first { hasDeepClones && model.origins[$0] != nil } ?? members[0]
        let id = VolumeID(newID())!
        let name = newName("c")
        try attempt(
            "clone \(snapshot.description.prefix(4)) as \(id.description.prefix(4))",
            as: model.origins[source] == nil ? .clone : .cloneOfClone, isDurable: true,
            change: { $0.clone(snapshot, source, as: id) },
            { _ = try $0.clone(snapshot: snapshot, volume: source, newID: id, name: name) })
    }

    func revert() throws {
        guard model.snapshots.count < snapshotLimit + 2, let snapshot = pickSnapshot() else { return }
        let members = model.snapshots[snapshot]!.members
        let volumes = members.keys.filter { model.volumes[$0] != nil }.sorted { $0.description < $1.description }
        guard !volumes.isEmpty else { return }
        let kept = SnapshotID(newID())!
        let name = newName("k")
        try attempt(
            "revert to \(snapshot.description.prefix(4)) keeping \(kept.description.prefix(4))",
            as: model.snapshots[snapshot]!.kind == .beforeRevert ? .undoOfRevert : .revert, isDurable: true,
            change: { model in
                model.snapshot(volumes, as: kept, name: name, attributes: [], kind: .beforeRevert)
                model.revert(volumes, to: snapshot)
            },
            { _ = try $0.revert(volumes: volumes, to: snapshot, keepAs: kept, keepName: name, attributes: []) })
    }

    /// What was acknowledged before a close ended is there, whether it was flushed or not.
    func reopen() throws {
        try attempt(
            "close", as: .close, isDurable: true, isInterruptible: true, change: { _ in }, { try $0.close() })
        guard pool != nil else { return }
        history = [model]
        setPlan(nil)
        pool = nil
        try recover()
    }
}
