import BlockIO
import Glibc
import Simulation
import Testing

@testable import BlockStore

@Suite("Scrub")
struct ScrubTests {
    static let volume = VolumeID("00000000-0000-4000-8000-000000000001")!

    /// A pool with 200 blocks of a volume, overwritten in part after a snapshot.
    static func makePool(_ disk: SimulatedDisk) throws -> (Pool, any BlockDevice, SnapshotID) {
        let pool = try Pool.create(on: disk, options: .small())
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 << 20)
        let device = try pool.device(of: volume)
        for block in 0..<UInt64(200) { try device.write(pattern(block), at: block * 40960) }
        let snapshot = SnapshotID.random()
        _ = try pool.createSnapshot(id: snapshot, name: "s", volumes: [volume], attributes: [1, 2, 3])
        for block in 0..<UInt64(50) { try device.write(pattern(block + 1000), at: block * 40960) }
        try device.flush()
        return (pool, device, snapshot)
    }

    static func run(_ scrub: Scrub) throws -> ScrubReport {
        while try scrub.step(maxBytes: 16 << 20) {}
        return scrub.report
    }

    /// Where a logical block of the volume lies in the pool.
    static func place(_ pool: Pool, _ block: UInt64) throws -> UInt64 {
        let head = try pool.core.volume(volume).head
        let page = try #require(try pool.core.leaf(root: head.root.pointer, block: block))
        return page[entry: Int(block % Format.leafEntries)].block
    }

    @Test("a scrub reads every data block, map page and superblock copy of a sound pool once and finds nothing")
    func soundPool() throws {
        let (pool, _, _) = try Self.makePool(SimulatedDisk(seed: 1))
        let report = try Self.run(try pool.scrub())
        #expect(report.isFinished)
        #expect(report.dataBlocks == 250)
        #expect(report.superblockCopies == 4)
        #expect(report.repairedSuperblocks == 0)
        #expect(report.damage == [])
        #expect(report.mapPages == PoolChecker.check(pool).mapPages)
        try pool.close()
    }

    @Test(
        "a rotten data block is found, named, a medium error for readers, and the pool's damage until it is overwritten"
    )
    func rottenData() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, device, snapshot) = try Self.makePool(disk)
        try pool.maintain()
        let physical = try Self.place(pool, 70 * 10)
        disk.rot(block: physical, bit: 77)
        let report = try Self.run(try pool.scrub())
        // The snapshot owns what the head has not overwritten.
        #expect(report.damage.count == 1)
        let found = try #require(report.damage.first)
        #expect(found.kind == .data && found.volume == "v" && found.snapshot == "s" && !found.isRepaired)
        #expect(found.poolOffset == physical * 4096 && found.volumeOffset == 70 * 40960)
        #expect(throws: BlockError.medium(offset: 70 * 40960)) { try device.read(4096, at: 70 * 40960) }
        let kept = try pool.device(of: snapshot, volume: Self.volume)
        #expect(throws: BlockError.medium(offset: 70 * 40960)) { try kept.read(4096, at: 70 * 40960) }
        #expect(try device.read(4096, at: 71 * 40960) == pattern(71))
        #expect(pool.damage().records.count == 1)
        #expect(pool.statistics.checksumErrors > 0)
        try device.write(pattern(5), at: 70 * 40960)
        try pool.deleteSnapshot(snapshot)
        while pool.statistics.reclaimsPending > 0 { try pool.maintain() }
        #expect(try Self.run(try pool.scrub()).damage == [])
        #expect(pool.damage().records == [])
        #expect(try device.read(4096, at: 70 * 40960) == pattern(5))
        try pool.close()
    }

    @Test("a wrong map page, bitmap page and catalog page are found")
    func rottenPages() throws {
        for kind in [DamageRecord.Kind.map, .metadata] {
            let disk = SimulatedDisk(seed: 1)
            let (pool, _, _) = try Self.makePool(disk)
            try pool.maintain()
            let core = pool.core
            let blocks =
                kind == .map
                ? [try core.volume(Self.volume).head.root.pointer.block]
                : [core.superblock.allocationRoot.block, core.superblock.catalogRoot.block]
            // The scrub begins with a checkpoint, which would write these pages anew.
            let scrub = try pool.scrub()
            let now =
                kind == .map
                ? [try core.volume(Self.volume).head.root.pointer.block]
                : [core.superblock.allocationRoot.block, core.superblock.catalogRoot.block]
            #expect(blocks.count == now.count)
            for block in now { disk.rot(block: block, bit: 9) }
            let report = try Self.run(scrub)
            #expect(Set(report.damage.map(\.poolOffset)) == Set(now.map { $0 * 4096 }))
            #expect(Set(report.damage.map(\.kind)) == [kind])
        }
    }

    @Test(
        "each copy of the superblock that is wrong is written anew from a right one, and the pool opens from it alone")
    func superblockCopies() throws {
        for copy in 0..<Format.superblockCopies {
            let disk = SimulatedDisk(seed: 1)
            let (pool, _, _) = try Self.makePool(disk)
            let scrub = try pool.scrub()
            disk.rot(block: UInt64(copy) * Format.superblockStride, bit: 1000)
            let report = try Self.run(scrub)
            #expect(report.repairedSuperblocks == 1)
            #expect(report.damage.map(\.kind) == [.superblock])
            #expect(report.damage.first?.isRepaired == true)
            #expect(try Self.run(try pool.scrub()).damage == [])
            // All other copies of its generation are lost after the repair.
            let image = disk.crashed()
            for other in 0..<Format.superblockCopies where other != copy && other % 2 == copy % 2 {
                image.rot(block: UInt64(other) * Format.superblockStride, bit: 2000)
            }
            let again = try Pool.open(on: image, options: .small())
            #expect(try again.device(of: Self.volume).read(4096, at: 40960) == pattern(1001))
            #expect(PoolChecker.check(again).isSound)
        }
    }

    @Test("a batch of the journal that a recovery would need is checked too")
    func rottenJournal() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, device, _) = try Self.makePool(disk)
        let scrub = try pool.scrub()
        let start = pool.core.journalEnd.position % pool.core.superblock.journalBytes / 4096
        try device.write(pattern(3), at: 0, durability: .durable)
        disk.rot(block: Format.journalBlock + start, bit: 900)
        let report = try Self.run(scrub)
        #expect(report.damage.map(\.kind) == [.journal])
        #expect(report.damage.first?.poolOffset == (Format.journalBlock + start) * 4096)
    }

    @Test("a scrub that was ended goes on where it was, and writers and cuts beside it never mislead it")
    func resumed() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, device, _) = try Self.makePool(disk)
        var position: ScrubPosition?
        var seen: UInt64 = 0
        var rounds = 0
        while rounds < 1000 {
            let scrub = try pool.scrub(from: position)
            var isMore = true
            for _ in 0..<8 where isMore { isMore = try scrub.step(maxBytes: 32 << 10) }
            #expect(scrub.report.damage == [])
            seen += scrub.report.dataBlocks
            position = scrub.report.position
            try device.write(pattern(UInt64(rounds)), at: UInt64(rounds % 200) * 40960)
            if rounds % 5 == 0 {
                _ = try pool.createSnapshot(
                    id: .random(), name: "r\(rounds)", volumes: [Self.volume], attributes: [])
            }
            rounds += 1
            if !isMore { break }
        }
        #expect(rounds < 1000)
        #expect(seen >= 250)
        try pool.close()
    }

    @Test("a scrub of a real file reads past the page cache what the medium holds")
    func realFile() throws {
        let scratch = ScratchDirectory()
        let pool = try Pool.create(path: scratch.file("pool"), options: .small())
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 64 << 20)
        let device = try pool.device(of: Self.volume)
        for block in 0..<UInt64(64) { try device.write(pattern(block), at: block * 8192) }
        try pool.maintain()
        let offset = off_t(try Self.place(pool, 20) * 4096)
        let file = open(scratch.file("pool"), O_RDWR)
        defer { close(file) }
        var wrong: UInt8 = 0x5a
        #expect(pwrite(file, &wrong, 1, offset + 100) == 1)
        let report = try Self.run(try pool.scrub())
        #expect(report.damage.map(\.volumeOffset) == [20 * 4096])
        try pool.close()
    }
}
