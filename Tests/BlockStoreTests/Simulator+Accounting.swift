import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// What a pool says of itself, against the model and the disk.
extension Simulator {
    /// Sums and counters when nothing waits for anything.
    func checkAccounting() throws {
        setPlan(nil)
        log.append("accounts")
        guard try settle(), let pool else { return }
        for volume in pool.volumes() {
            let expected = UInt64(model.volumes[volume.id]!.blocks.count) * 4096
            guard volume.mappedBytes == expected else {
                throw fail("volume \(volume.name) has \(expected) bytes mapped and says \(volume.mappedBytes)")
            }
            let free = pool.core.monitor.withLock { pool.core.space.dataFree } * 4096
            guard try pool.device(of: volume.id).usage() == DeviceUsage(usedBytes: expected, availableBytes: free)
            else {
                throw fail("the device of volume \(volume.name) says something else")
            }
        }
        guard !pool.core.monitor.withLock({ pool.core.hasFreesPending }) else {
            throw fail("nobody reads or writes, and freed blocks do not come back")
        }
        try checkInvariants()
        // A disk that is full can take a part of a write that is then given up.
        guard options.faults == .crashesOnly, !isTight else { return }
        let statistics = pool.statistics
        let said = statistics.dataBytesWritten + statistics.metadataBytesWritten + statistics.journalBytesWritten
        guard said == disk.bytesWritten else {
            throw fail("\(disk.bytesWritten) bytes were written and the counters say \(said)")
        }
    }

    /// The invariants hold at any moment, not only after a crash.
    func checkInvariants() throws {
        guard let pool else { return }
        var report = PoolCheckReport()
        withoutPlan { report = PoolChecker.check(pool, verifiesData: false) }
        guard report.isSound else { throw fail("the checker says \(report.problems)") }
    }

    /// Which blocks are mapped, of each volume and of a snapshot.
    func checkProvisioning(_ pool: Pool) throws {
        for (id, content) in Self.sorted(model.volumes) { try checkProvisioning(try pool.device(of: id), content) }
        guard let id = pickSnapshot(), let (volume, content) = Self.sorted(model.snapshots[id]!.members).first
        else { return }
        try checkProvisioning(try pool.device(of: id, volume: volume), content)
    }

    private static func sorted<Content>(_ volumes: [VolumeID: Content]) -> [(key: VolumeID, value: Content)] {
        volumes.sorted { $0.key.description < $1.key.description }
    }

    private func checkProvisioning(_ device: any BlockDevice, _ content: VolumeModel) throws {
        for place in Self.places(sizeBytes: content.sizeBytes) {
            // Up to the end of the volume, where that is near.
            let isLast = content.sizeBytes - place.upperBound * 512 < 1 << 20
            let end = isLast ? content.sizeBytes : place.upperBound * 512
            var at = (place.lowerBound + generator.below(UInt64(place.count))) * 512
            while at < end {
                let run = try device.provisioning(at: at, maxLengthBytes: isLast ? 1 << 40 : end - at)
                guard run.lengthBytes > 0, run.lengthBytes <= end - at else {
                    throw fail("of \(end - at) bytes \(run.lengthBytes) are said to be mapped or not")
                }
                for block in (at / 4096)...((at + run.lengthBytes - 1) / 4096)
                where (content.blocks[block] != nil) != run.isMapped {
                    throw fail("block \(block) is said to be \(run.isMapped ? "" : "not ")mapped")
                }
                at += run.lengthBytes
            }
        }
    }

    // MARK: Operations

    /// Whole blocks from one place to another, which often covers leaves, and pages above them, just so or but for a
    /// block.
    func pickStretch(_ volume: VolumeID) -> Range<UInt64>? {
        let places = Self.places(sizeBytes: model.volumes[volume]!.sizeBytes)
        guard !places.isEmpty else { return nil }
        func pick() -> UInt64 {
            let place = places[Int(generator.below(UInt64(places.count)))]
            // The middle of most places is a border.
            let middle = (place.lowerBound + place.upperBound) / 2
            let border = (middle + 1024) / 2048 * 2048
            let steps: [UInt64] = [0, 8, 16]
            if generator.chance(60), border > 0, place.contains(border) {
                return border + 8 - steps[Int(generator.below(3))]
            }
            return (place.lowerBound + generator.below(UInt64(place.count))) / 8 * 8
        }
        let (first, second) = (pick(), pick())
        return first == second ? nil : min(first, second)..<max(first, second)
    }

    /// An unmap of parts of blocks: the first and the last block keep the rest, and all of it is one change.
    func unmapParts(_ volume: VolumeID) throws {
        guard let range = pickRange(volume, aligned: false),
            range.contains(where: { model.volumes[volume]!.sectors[$0] != nil })
        else { return }
        writes += 1
        let serial = writes
        try attempt(
            "unmap parts \(volume.description.prefix(4)) \(range)", as: .unmapOfParts, isDurable: false,
            change: { $0.volumes[volume]!.write(range, tag: 0, serial: serial) },
            { pool in
                try pool.device(of: volume).unmap(
                    at: range.lowerBound * 512, lengthBytes: UInt64(range.count) * 512)
            })
    }

    /// One sector's content everywhere in a range.
    func writeSame(_ volume: VolumeID) throws {
        guard let pool, let picked = pickRange(volume, aligned: generator.chance(50)) else { return }
        let most = try pool.device(of: volume).writeSameBytes / UInt64(Sector.bytes)
        let range = picked.lowerBound..<min(picked.upperBound, picked.lowerBound + most)
        let tag = generator.chance(20) ? 0 : nextTag() | Sector.anywhere
        if tag == 0, !range.contains(where: { model.volumes[volume]!.sectors[$0] != nil }) { return }
        let isDurable = generator.chance(20)
        writes += 1
        let serial = writes
        var bytes = [UInt8](repeating: 0, count: Sector.bytes)
        bytes.withUnsafeMutableBytes { Sector.fill($0, tag: tag) }
        try attempt(
            "write same \(volume.description.prefix(4)) \(range) \(tag >> 40) \(isDurable ? "durable" : "")",
            as: .writeSame, isDurable: isDurable, isInterruptible: !isDurable,
            change: { $0.volumes[volume]!.fill(range, tag: tag, serial: serial) },
            { pool in
                try pool.device(of: volume).writeSame(
                    at: range.lowerBound * 512, lengthBytes: UInt64(range.count) * 512, block: bytes,
                    durability: isDurable ? .durable : .cached)
            })
    }

    /// The same bytes once more: new blocks, which look like the old ones.
    func rewrite(_ volume: VolumeID) throws {
        guard let range = pickRange(volume, aligned: true), let pool, !isDamaged else { return }
        setPlan(nil)
        let bytes = try pool.device(of: volume).read(range.count * 512, at: range.lowerBound * 512)
        writes += 1
        let serial = writes
        try attempt(
            "rewrite \(volume.description.prefix(4)) \(range)", isDurable: true,
            change: { model in
                for block in (range.lowerBound / 8)..<(range.upperBound / 8)
                where model.volumes[volume]!.blocks[block] != nil {
                    model.volumes[volume]!.blocks[block] = serial
                }
            },
            { try $0.device(of: volume).write(bytes, at: range.lowerBound * 512, durability: .durable) })
    }
}
