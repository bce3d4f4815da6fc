import BlockIO
import Simulation
import Testing

@testable import BlockStore

@Suite("Wrong pages of the allocation map")
struct AllocationMapDamageTests {
    private static let id = VolumeID("00000000-0000-4000-8000-000000000001")!
    private static let count: UInt64 = 600

    private static func options() -> PoolOptions {
        var options = PoolOptions.small()
        // A page that rots is not hidden by the cache.
        options.cacheBytes = 0
        return options
    }

    /// Pages above the bitmaps: the only one of a small pool, the root of a pool with two levels of them, and the one
    /// below that.
    enum Parent: CaseIterable {
        case only, root, below

        func block(_ pool: Pool) throws -> UInt64 {
            let root = pool.core.superblock.allocationRoot
            #expect(pool.core.superblock.allocationLevel == (self == .only ? 1 : 2))
            return try self == .below ? pool.core.loadPage(root)[child: 0].block : root.block
        }
    }

    private static func makePool(_ disk: SimulatedDisk, _ parent: Parent = .only) throws {
        var options = options()
        if parent != .only { options.maxSizeBytes = 32 << 30 }
        let pool = try Pool.create(on: disk, options: options)
        _ = try pool.createVolume(id: id, name: "v", sizeBytes: 1 << 30)
        for block in 0..<count { try pool.device(of: id).write(pattern(block), at: block * 4096) }
        _ = try pool.createSnapshot(id: .random(), name: "s", volumes: [id], attributes: [])
        for block in 0..<50 as Range<UInt64> { try pool.device(of: id).write(pattern(block + 1000), at: block * 4096) }
        try pool.close()
    }

    private static func checkContent(_ pool: Pool, written: Range<UInt64>) throws {
        for block in 0..<count {
            let tag = written.contains(block) ? block + 2000 : block < 50 ? block + 1000 : block
            #expect(try pool.device(of: id).read(4096, at: block * 4096) == pattern(tag))
        }
    }

    private static func bitmap(_ pool: Pool, _ kind: SpaceMap.Kind) -> UInt64 {
        pool.core.space.regions.last { $0.kind == kind && !$0.pointer.isNull }!.pointer.block
    }

    @Test(
        "blocks that a lost page spoke of count as used; everything goes on, an alert says so, and a repair finds them",
        arguments: [SpaceMap.Kind.data, .metadata])
    func lostBitmap(_ kind: SpaceMap.Kind) throws {
        var disk = SimulatedDisk(seed: 1)
        try Self.makePool(disk)
        disk = disk.handedOver()
        var pool = try Pool.open(on: disk, options: Self.options())
        disk.rot(block: Self.bitmap(pool, kind), bit: 1000)
        for round in 0..<3 {
            for block in 0..<20 as Range<UInt64> {
                try pool.device(of: Self.id).write(pattern(block + 2000), at: block * 4096)
            }
            for snapshot in pool.snapshots() where round == 1 { try pool.deleteSnapshot(snapshot.id) }
            try pool.maintain()
            #expect(pool.statistics.state == .healthy)
        }
        #expect(pool.damage().records.contains { $0.kind == .metadata })
        try Self.checkContent(pool, written: 0..<20)
        // A crash in between finds the same.
        try pool.device(of: Self.id).write(pattern(2020), at: 20 * 4096, durability: .durable)
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        pool = try Pool.open(on: disk.crashed(), options: Self.options())
        try Self.checkContent(pool, written: 0..<21)
        var report = PoolChecker.check(pool)
        #expect(report.problems == [])
        #expect(report.setAsideBlocks > 0)
        let used = pool.statistics.usedBytes
        #expect(try PoolChecker.repair(pool) == report.setAsideBlocks)
        #expect(pool.statistics.usedBytes < used)
        try pool.maintain()
        report = PoolChecker.check(pool)
        #expect(report.problems == [] && report.setAsideBlocks == 0)
        try pool.close()
    }

    @Test(
        "a page above the bitmaps that is lost while the pool is open is written anew, on each level",
        arguments: Parent.allCases)
    func lostParent(_ parent: Parent) throws {
        let disk = SimulatedDisk(seed: 2)
        try Self.makePool(disk, parent)
        let now = disk.handedOver()
        let pool = try Pool.open(on: now, options: Self.options())
        now.rot(block: try parent.block(pool), bit: 5)
        try pool.device(of: Self.id).write(pattern(2000), at: 0)
        try pool.maintain()
        #expect(pool.statistics.state == .healthy)
        try pool.close()
        let again = try Pool.open(on: now.handedOver(), options: Self.options())
        try Self.checkContent(again, written: 0..<1)
        #expect(PoolChecker.check(again).problems == [])
        try again.close()
    }

    @Test(
        "a pool whose allocation map cannot be found opens with one that is made from its maps, writes of a crash too",
        arguments: [Parent.only, .below])
    func lostRoot(_ parent: Parent) throws {
        let disk = SimulatedDisk(seed: 3)
        try Self.makePool(disk, parent)
        let now = disk.handedOver()
        var pool = try Pool.open(on: now, options: Self.options())
        let used = pool.statistics.usedBytes
        for block in 0..<30 as Range<UInt64> {
            try pool.device(of: Self.id).write(pattern(block + 2000), at: block * 4096)
        }
        try pool.device(of: Self.id).flush()
        let root = try parent.block(pool)
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        let crashed = now.crashed()
        crashed.rot(block: root, bit: 5)
        pool = try Pool.open(on: crashed, options: Self.options())
        try Self.checkContent(pool, written: 0..<30)
        #expect(PoolChecker.check(pool).problems.allSatisfy { $0.contains("allocation map") })
        #expect(pool.statistics.usedBytes < used + 64 * 4096)
        try pool.maintain()
        #expect(PoolChecker.check(pool).problems == [])
        for block in 0..<Self.count { try pool.device(of: Self.id).write(pattern(block + 2000), at: block * 4096) }
        try pool.close()
        let again = try Pool.open(on: crashed.handedOver(), options: Self.options())
        try Self.checkContent(again, written: 0..<Self.count)
        #expect(PoolChecker.check(again).problems == [])
        try again.close()
    }

    @Test("where a map page cannot be read either, a repair frees nothing")
    func blind() throws {
        let disk = SimulatedDisk(seed: 4)
        try Self.makePool(disk)
        let pool = try Pool.open(on: disk.handedOver(), options: Self.options())
        try pool.maintain()
        let now = pool.core.file as! SimulatedDisk
        now.rot(block: try pool.core.member(of: pool.snapshots()[0].id, Self.id).root.pointer.block, bit: 9)
        #expect(try PoolChecker.repair(pool) == nil)
        try pool.close()
    }
}
