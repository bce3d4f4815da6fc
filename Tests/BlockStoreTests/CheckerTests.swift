import BlockIO
import Simulation
import Testing

@testable import BlockStore

@Suite("The checker")
struct CheckerTests {
    /// A sound pool with data, snapshots, attributes of several pages, and changes that only the journal has.
    private func makePool(_ disk: SimulatedDisk) throws -> (Pool, any BlockDevice) {
        let (pool, device, _) = try ScrubTests.makePool(disk)
        _ = try pool.createSnapshot(
            id: .random(), name: "t", volumes: [ScrubTests.volume], attributes: [UInt8](repeating: 7, count: 20000))
        try pool.maintain()
        for block in 0..<UInt64(30) { try device.write(pattern(block + 2000), at: block * 40960) }
        return (pool, device)
    }

    /// The same in one stretch and in as many as the pool has regions.
    private func check(_ pool: Pool) -> PoolCheckReport {
        let whole = PoolChecker.check(pool)
        var pieces = PoolChecker.check(pool, memoryBytes: 0)
        #expect(Set(whole.problems) == Set(pieces.problems))
        #expect(whole.problems.count == pieces.problems.count)
        pieces.problems = whole.problems
        #expect(whole == pieces)
        return whole
    }

    @Test("with memory for one region at a time a sound pool is found sound, and everything in it is counted once")
    func sound() throws {
        let (pool, _) = try makePool(SimulatedDisk(seed: 1))
        #expect(pool.core.space.regions.count > 1)
        let report = check(pool)
        #expect(report.problems == [])
        #expect(report.dataBlocks == 250)
        #expect(report.verifiedBlocks == 280)
        try pool.close()
    }

    @Test("with memory for one region at a time the same is wrong as with memory for all")
    func wrong() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, _) = try makePool(disk)
        let core = pool.core
        let head = try core.volume(ScrubTests.volume).head
        let shared = try ScrubTests.place(pool, 60 * 10)
        // A block with two owners, one that is taken for nothing, one that is in use and free, a wrong sum, rot.
        core.monitor.withLock {
            core.changeTop(head) { _ = $0.insert(RecentMapping(block: shared, crc: 1), for: 9_000) }
        }
        _ = try core.space.allocateData(1)
        try core.space.clearDurable(try ScrubTests.place(pool, 61 * 10))
        try core.space.release(try ScrubTests.place(pool, 61 * 10))
        head.root.mappedBlocks += 1
        disk.rot(block: try ScrubTests.place(pool, 62 * 10), bit: 4)
        let problems = check(pool).problems
        for part in [
            "and also", "taken and has no use", "in use and not taken", "owned and not marked", "and says",
            "is not what was written",
        ] {
            #expect(problems.contains { $0.contains(part) }, "\(part): \(problems)")
        }
    }

    @Test("what is wrong is named by volume, snapshot and offset, once for all that share it, with its kind")
    func words() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, _) = try makePool(disk)
        #expect(check(pool).kinds == [])
        disk.rot(block: try ScrubTests.place(pool, 62 * 10), bit: 4)
        var report = check(pool)
        #expect(report.kinds == [.data])
        #expect(report.problems.count == 1)
        let place = "4096 bytes at \(62 * 10 * 4096) of volume v, snapshot s of volume v, snapshot t of volume v"
        #expect(report.problems[0].contains(place), "\(report.problems)")
        try pool.maintain()
        let root = try pool.core.volume(ScrubTests.volume).head.root.pointer
        try pool.close()
        disk.rot(block: root.block, bit: 9)
        let again = try Pool.open(on: disk, options: .small())
        report = check(again)
        #expect(report.kinds.contains(.map) && !report.kinds.contains(.superblock))
        let page = report.problems.filter { $0.hasPrefix("map page \(root.block), which leads to ") }
        #expect(page.count == 1 && page[0].contains("\(64 << 20) bytes at 0 of volume v"), "\(report.problems)")
    }

    @Test("an owner is the same after it was packed into its 16 bytes")
    func packing() {
        let owner = OwnerTable.Owner(
            kind: .data, level: 0, logical: (1 << 34) - 1, birth: Format.maxEpoch, crc: 0xdead_beef)
        let page = OwnerTable.Owner(kind: .map, level: 4, logical: 1 << 33, birth: 77)
        var table = OwnerTable(100..<102)
        table.markLeaving(100)
        #expect(table.claim(100, owner) == nil)
        #expect(table.claim(101, page) == nil)
        #expect(table[100] == owner)
        #expect(table[101] == page)
        #expect(table.isLeaving(100) && !table.isLeaving(101))
        #expect(table.claim(100, page) == owner)
    }
}
