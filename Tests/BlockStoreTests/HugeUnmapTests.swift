import BlockIO
import Testing

@testable import BlockStore

@Suite("Unmapping much at once")
struct HugeUnmapTests {
    private let volume = VolumeID("00000000-0000-4000-8000-000000000001")!
    private static let sizeBytes: UInt64 = 64 << 30
    /// Stretches of 64 MiB each, under different pages of each level.
    private static let starts: [UInt64] = [0, 96 << 20, 20 << 30]
    private static let stretch: UInt64 = 64 << 20
    private static let pagesPerPass = 24
    /// What one pass may free: what reclaim looked at, and what it wrote itself.
    private static let bound = (pagesPerPass + 1) * 257 + 64

    private static func options(inlineFrees: Int) -> PoolOptions {
        var options = PoolOptions.small()
        options.maxSizeBytes = 1 << 30
        options.reclaimPagesPerPass = pagesPerPass
        options.inlineFrees = inlineFrees
        return options
    }

    private func makePool(_ path: String, inlineFrees: Int = 256) throws -> (Pool, any BlockDevice) {
        let pool = try Pool.create(path: path, options: Self.options(inlineFrees: inlineFrees))
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: Self.sizeBytes)
        let device = try pool.device(of: volume)
        let bytes = pattern(7, count: 1 << 20)
        for start in Self.starts {
            for at in stride(from: start, to: start + Self.stretch, by: 1 << 20) { try device.write(bytes, at: at) }
        }
        try pool.maintain()
        return (pool, device)
    }

    private static func mapped(_ pool: Pool) -> UInt64 { pool.volumes()[0].mappedBytes }

    @Test(
        "a huge mapped range is gone at once and freed in bounded steps, which a crash, cuts and writers do not disturb"
    )
    func steps() throws {
        let scratch = ScratchDirectory()
        var (pool, device) = try makePool(scratch.file("pool"))
        let full = pool.statistics.usedBytes
        try device.unmap(at: 0, lengthBytes: Self.sizeBytes)
        #expect(try device.read(4096, at: 20 << 30) == [UInt8](repeating: 0, count: 4096))
        var passes = 0
        repeat {
            try pool.maintain()
            let passFreed = pool.core.monitor.withLock { pool.core.lastPassFreed }
            #expect(passFreed <= Self.bound)
            passes += 1
            #expect(try device.read(4096, at: 4096) == [UInt8](repeating: 0, count: 4096))
            if passes == 2 {
                try device.write(pattern(9), at: 96 << 20)
                _ = try pool.createSnapshot(id: .random(), name: "s", volumes: [volume], attributes: [])
                try device.write(pattern(10), at: (96 << 20) + 4096)
                #expect(PoolChecker.check(pool, verifiesData: false).problems == [])
            }
            if passes == 4 {
                // The process ends without a word; the steps go on where they were.
                try device.flush()
                pool.core.monitor.withLock { pool.core.forgetObjects() }
                pool.core.file.close()
                pool = try Pool.open(path: scratch.file("pool"), options: Self.options(inlineFrees: 256))
                device = try pool.device(of: volume)
                #expect(pool.core.tables.doomed.values.contains { $0.cursor > 0 })
                #expect(PoolChecker.check(pool, verifiesData: false).problems == [])
            }
        } while pool.statistics.reclaimsPending > 0
        // What the last step freed is given back when its checkpoint is durable.
        try pool.maintain()
        try pool.maintain()
        #expect(passes > 6)
        #expect(full - pool.statistics.usedBytes >= 190 << 20)
        #expect(Self.mapped(pool) == 8192)
        #expect(try device.read(8192, at: 96 << 20) == pattern(9) + pattern(10))
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("many unmapped ranges that are small each are freed in bounded steps too", arguments: [0, 1024])
    func manyRanges(_ inlineFrees: Int) throws {
        let scratch = ScratchDirectory()
        let (pool, device) = try makePool(scratch.file("pool"), inlineFrees: inlineFrees)
        for start in Self.starts {
            // Whole leaves and halves of them.
            for at in stride(from: start, to: start + Self.stretch, by: 4 << 20) {
                try device.unmap(at: at, lengthBytes: (5 << 20) / 2)
            }
        }
        var freed: [Int] = []
        repeat {
            try pool.maintain()
            freed.append(pool.core.monitor.withLock { pool.core.lastPassFreed })
            #expect(PoolChecker.check(pool, verifiesData: false).problems == [])
        } while pool.statistics.reclaimsPending > 0
        // The halves are read and freed where they are.
        #expect(freed.allSatisfy { $0 <= Self.bound + inlineFrees + 256 + 48 * 128 })
        #expect(Self.mapped(pool) == 3 * (Self.stretch - 16 * (5 << 20) / 2))
        #expect(try device.read(4096, at: 5 << 19) == Array(pattern(7, count: 1 << 20)[(1 << 19)..<((1 << 19) + 4096)]))
        try pool.close()
    }

    @Test("what a snapshot keeps stays, and is freed when the snapshot goes while the range is still being counted")
    func kept() throws {
        let scratch = ScratchDirectory()
        let (pool, device) = try makePool(scratch.file("pool"))
        let snapshot = try pool.createSnapshot(id: .random(), name: "s", volumes: [volume], attributes: [])
        try device.write(pattern(8, count: 1 << 20), at: 0)
        try pool.maintain()
        try device.unmap(at: 0, lengthBytes: Self.sizeBytes)
        try pool.maintain()
        let kept = try pool.device(of: snapshot.id, volume: volume)
        #expect(try kept.read(4096, at: 20 << 30) == Array(pattern(7, count: 4096)))
        #expect(PoolChecker.check(pool, verifiesData: false).problems == [])
        try pool.deleteSnapshot(snapshot.id)
        while pool.statistics.reclaimsPending > 0 {
            try pool.maintain()
            #expect(pool.core.monitor.withLock { pool.core.lastPassFreed } <= Self.bound)
        }
        #expect(Self.mapped(pool) == 0)
        let report = PoolChecker.check(pool)
        #expect(report.problems == [])
        #expect(report.dataBlocks == 0)
        try pool.close()
    }
}
