import BlockIO
import Simulation
import Synchronization
import Testing

@testable import BlockStore

@Suite("Wrong map pages")
struct MapDamageTests {
    private static let first = VolumeID("00000000-0000-4000-8000-000000000001")!
    private static let second = VolumeID("00000000-0000-4000-8000-000000000002")!
    private static let sizeBytes: UInt64 = 4 << 40
    /// Blocks under different pages of each level.
    private static let blocks: [UInt64] = [0, 3, 256, 40000, 6_000_000, 800_000_000]

    private static func range(level: Int, of block: UInt64) -> Range<UInt64> {
        let span = MapSpan.blocks(level)
        return (block / span * span)..<((block / span + 1) * span)
    }

    /// The page of a level on the way to a block.
    private static func page(_ pool: Pool, _ root: NodePointer, level: Int, block: UInt64) throws -> UInt64 {
        var pointer = root
        for above in stride(from: Format.mapRootLevel, to: level, by: -1) {
            let index = Int(block / MapSpan.blocks(above - 1)) % Int(Format.fanOut)
            pointer = try pool.core.loadPage(pointer)[child: index]
        }
        return pointer.block
    }

    /// Two volumes with the same places written, one snapshot of both, and all of it in a checkpoint.
    private static func makePool(_ disk: SimulatedDisk) throws -> (Pool, SnapshotID) {
        let pool = try Pool.create(on: disk, options: .small())
        for (id, name) in [(first, "a"), (second, "b")] {
            _ = try pool.createVolume(id: id, name: name, sizeBytes: sizeBytes)
            for block in blocks { try pool.device(of: id).write(pattern(block), at: block * 4096) }
        }
        let snapshot = try pool.createSnapshot(id: .random(), name: "s", volumes: [first, second], attributes: [])
        for id in [first, second] {
            for block in blocks { try pool.device(of: id).write(pattern(block + 1), at: (block + 1) * 4096) }
        }
        try pool.close()
        return (pool, snapshot.id)
    }

    /// What each of the blocks and its neighbours must be: right, or lost beneath a page.
    private static func check(
        _ device: any BlockDevice, lost: Range<UInt64>, except written: Set<UInt64> = [], hasSecond: Bool = true
    ) throws {
        for block in blocks.flatMap({ [$0, $0 + 1] }) where block != 4 || hasSecond {
            if lost.contains(block), !written.contains(block) {
                #expect(throws: BlockError.medium(offset: block * 4096)) { try device.read(4096, at: block * 4096) }
            } else if written.contains(block) {
                #expect(try device.read(4096, at: block * 4096) == pattern(block + 1000))
            } else {
                #expect(try device.read(4096, at: block * 4096) == pattern(block))
            }
        }
    }

    @Test(
        "a wrong map page is a medium error for what it maps and an alert; checkpoints and all other writes go on",
        arguments: 0...Format.mapRootLevel)
    func merge(_ level: Int) throws {
        var disk = SimulatedDisk(seed: 1)
        let (made, snapshot) = try Self.makePool(disk)
        let lost = Self.range(level: level, of: 0)
        var pool = try Pool.open(on: disk, options: .small())
        let root = try pool.core.volume(Self.first).head.root.pointer
        disk.rot(block: try Self.page(pool, root, level: level, block: 0), bit: 77)
        _ = made
        try pool.close()
        pool = try Pool.open(on: disk, options: .small())
        for round in 0..<3 {
            for id in [Self.first, Self.second] {
                try pool.device(of: id).write(pattern(1000), at: 0)
                try pool.device(of: id).write(pattern(1000 + 6_000_001), at: 6_000_001 * 4096)
                try pool.device(of: id).flush()
            }
            try pool.maintain()
            #expect(pool.statistics.state == .healthy)
            let written: Set<UInt64> = [0, 6_000_001]
            try Self.check(try pool.device(of: Self.first), lost: lost, except: written)
            try Self.check(try pool.device(of: Self.second), lost: 0..<0, except: written)
            // The snapshot was written before the page.
            try Self.checkSnapshot(pool, snapshot)
            #expect(pool.damage().records.contains { $0.kind == .map && $0.volume == "a" })
            #expect(!pool.damage().records.contains { $0.volume == "b" })
            if round == 0 {
                let scrub = try pool.scrub()
                while try scrub.step(maxBytes: 16 << 20) {}
                #expect(scrub.report.damage.contains { $0.kind == .map && $0.volume == "a" && $0.lengthBytes > 0 })
                #expect(!PoolChecker.check(pool).isSound)
            }
            if round == 1 {
                disk = disk.crashed()
                pool.core.monitor.withLock { pool.core.forgetObjects() }
            } else {
                try pool.close()
            }
            pool = try Pool.open(on: disk, options: .small())
        }
        try heal(pool, snapshot)
    }

    private static func checkSnapshot(_ pool: Pool, _ snapshot: SnapshotID) throws {
        for id in [first, second] {
            let kept = try pool.device(of: snapshot, volume: id)
            for block in blocks where block != 3 + 1 {
                #expect(try kept.read(4096, at: block * 4096) == pattern(block))
            }
        }
    }

    /// What is unmapped or written again is no loss any more, and what else the pool had is given back.
    private func heal(_ pool: Pool, _ snapshot: SnapshotID) throws {
        let device = try pool.device(of: Self.first)
        try device.unmap(at: 0, lengthBytes: Self.sizeBytes)
        repeat { try pool.maintain() } while pool.statistics.reclaimsPending > 0
        #expect(try device.read(8192, at: 0) == [UInt8](repeating: 0, count: 8192))
        try pool.deleteSnapshot(snapshot)
        while pool.statistics.reclaimsPending > 0 { try pool.maintain() }
        let scrub = try pool.scrub()
        while try scrub.step(maxBytes: 16 << 20) {}
        #expect(scrub.report.damage == [])
        #expect(pool.damage().records == [])
        let report = PoolChecker.check(pool)
        #expect(report.problems == [])
        #expect(report.setAsideBlocks > 0)
        try pool.close()
    }

    @Test(
        "a deleted snapshot beside a wrong map page is reclaimed, but for what only that page tells",
        arguments: [true, false])
    func reclaim(_ isOfSnapshot: Bool) throws {
        let disk = SimulatedDisk(seed: 1)
        let (_, snapshot) = try Self.makePool(disk)
        var pool = try Pool.open(on: disk, options: .small())
        let core = pool.core
        let head = try core.volume(Self.first).head
        let root = isOfSnapshot ? try core.member(of: snapshot, Self.first).root.pointer : head.root.pointer
        let page = try Self.page(pool, root, level: 1, block: 0)
        try pool.close()
        disk.rot(block: page, bit: 5)
        pool = try Pool.open(on: disk, options: .small())
        try pool.deleteSnapshot(snapshot)
        while pool.statistics.reclaimsPending > 0 { try pool.maintain() }
        #expect(pool.statistics.state == .healthy)
        let lost = isOfSnapshot ? 0..<0 : Self.range(level: 1, of: 0)
        try Self.check(try pool.device(of: Self.first), lost: lost)
        try Self.check(try pool.device(of: Self.second), lost: 0..<0)
        let problems = PoolChecker.check(pool).problems.filter { !$0.contains("is not what was written") }
        #expect(problems == [])
        try pool.close()
    }

    private final class Counter: Sendable {
        private let value = Atomic<Int>(0)
        func next() -> Int { value.add(1, ordering: .relaxed).newValue }
    }

    @Test("a disk that cannot read anything fails the pool, and nothing is given up as lost")
    func brokenDisk() throws {
        let disk = SimulatedDisk(seed: 1)
        var pool = try Pool.create(on: disk, options: .small())
        _ = try pool.createVolume(id: Self.first, name: "a", sizeBytes: 1 << 30)
        for leaf in 0..<UInt64(100) { try pool.device(of: Self.first).write(pattern(leaf), at: leaf << 20) }
        try pool.close()
        pool = try Pool.open(on: disk, options: .small())
        let broken = try pool.device(of: Self.first)
        for leaf in 0..<UInt64(100) { try broken.write(pattern(leaf + 1), at: leaf << 20 | 4096) }
        disk.setPlan { _, call in if case .read = call { .fail(errno: 5) } else { nil } }
        #expect(throws: PoolError.self) { try pool.maintain() }
        #expect(broken.isReadOnly)
        disk.setPlan(nil)
        let after = try Pool.open(on: disk.handedOver(), options: .small())
        for leaf in 0..<UInt64(100) {
            #expect(try after.device(of: Self.first).read(4096, at: leaf << 20) == pattern(leaf))
        }
        #expect(PoolChecker.check(after).isSound)
    }

    @Test("a map page that could not be read once is read again and nothing is lost")
    func readAgain() throws {
        let disk = SimulatedDisk(seed: 1)
        let (_, _) = try Self.makePool(disk)
        var pool = try Pool.open(on: disk, options: .small())
        let root = try pool.core.volume(Self.first).head.root.pointer
        let leaf = try Self.page(pool, root, level: 0, block: 0)
        try pool.close()
        pool = try Pool.open(on: disk, options: .small())
        let device = try pool.device(of: Self.first)
        let failures = Counter()
        disk.setPlan { _, call in call == .read(block: leaf) && failures.next() == 1 ? .fail(errno: 5) : nil }
        try device.write(pattern(1000), at: 0)
        try pool.maintain()
        #expect(pool.damage().records == [])
        try Self.check(device, lost: 0..<0, except: [0])
        try pool.close()
    }

    @Test("a diff or stream over what is lost fails and never calls it a hole")
    func diff() throws {
        let disk = SimulatedDisk(seed: 1)
        let (_, snapshot) = try Self.makePool(disk)
        var pool = try Pool.open(on: disk, options: .small())
        let root = try pool.core.volume(Self.first).head.root.pointer
        let leaf = try Self.page(pool, root, level: 0, block: 0)
        try pool.close()
        disk.rot(block: leaf, bit: 5)
        pool = try Pool.open(on: disk, options: .small())
        try pool.device(of: Self.first).write(pattern(9), at: 0)
        let newer = try pool.createSnapshot(id: .random(), name: "n", volumes: [Self.first], attributes: [])
        try pool.maintain()
        try pool.device(of: Self.first).write(pattern(10), at: 5 * 4096)
        let newest = try pool.createSnapshot(id: .random(), name: "o", volumes: [Self.first], attributes: [])
        try pool.maintain()
        var walk = DiffWalk(core: pool.core, from: 0, end: 1024)
        let roots = try [snapshot, newer.id, newest.id].map { try pool.core.member(of: $0, Self.first).root.pointer }
        #expect(throws: PoolError.self) { try walk.step(roots[0], roots[1], budget: 512, runLimit: 512) }
        #expect(throws: PoolError.self) { try walk.step(.null, roots[1], budget: 512, runLimit: 512) }
        // What both lost is the same; what was written since is known again.
        try walk.step(roots[1], roots[2], budget: 512, runLimit: 512)
        #expect(walk.runs == [DiffWalk.Run(blocks: 5..<6, isData: true)])
        try pool.close()
    }

    @Test("what two snapshots lost with different pages is not the same: a diff between them fails", arguments: 0...1)
    func diffOfLosses(_ level: Int) throws {
        let disk = SimulatedDisk(seed: 1)
        var pool = try Pool.create(on: disk, options: .small())
        _ = try pool.createVolume(id: Self.first, name: "a", sizeBytes: Self.sizeBytes)
        var roots: [NodePointer] = []
        for round in 0..<UInt64(2) {
            // A whole page of the level, made anew.
            let device = try pool.device(of: Self.first)
            try device.unmap(at: 0, lengthBytes: MapSpan.blocks(level) * 4096)
            for block in [0, 3, 256 + 3] as [UInt64] { try device.write(pattern(round + 1), at: block * 4096) }
            try pool.maintain()
            let root = try pool.core.volume(Self.first).head.root.pointer
            let page = try Self.page(pool, root, level: level, block: 0)
            try pool.close()
            disk.rot(block: page, bit: 5)
            pool = try Pool.open(on: disk, options: .small())
            // A checkpoint notes what is lost.
            try pool.device(of: Self.first).write(pattern(9), at: 0)
            let snapshot = try pool.createSnapshot(
                id: .random(), name: "s\(round)", volumes: [Self.first], attributes: [])
            try pool.maintain()
            roots.append(try pool.core.member(of: snapshot.id, Self.first).root.pointer)
        }
        var walk = DiffWalk(core: pool.core, from: 0, end: 1024)
        #expect(throws: PoolError.self) { try walk.step(roots[0], roots[1], budget: 512, runLimit: 512) }
        try pool.close()
    }

    @Test(
        "whatever is written, cut and deleted while map pages rot, a read is right, or a medium error below one",
        arguments: 1...8 as ClosedRange<UInt64>)
    func histories(_ seed: UInt64) throws {
        var history = MapRotHistory(seed: seed)
        try history.run()
    }
}
