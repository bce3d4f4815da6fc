import BlockIO
import Simulation
import Testing

@testable import BlockStore

@Suite("Growing a pool")
struct GrowthTests {
    static let volume = VolumeID("00000000-0000-4000-8000-000000000001")!

    private func options(_ size: UInt64) -> PoolOptions {
        var options = PoolOptions.small()
        options.maxSizeBytes = size
        return options
    }

    /// Writes blocks from `first` on until the pool refuses one; returns the block that was refused.
    private func fill(_ device: any BlockDevice, from first: UInt64) throws -> UInt64 {
        for block in first..<100_000 {
            do {
                try device.write(pattern(block), at: block * 4096)
            } catch BlockError.noSpace {
                return block
            }
        }
        return 100_000
    }

    @Test("a full pool takes writes again at once when it grows, and keeps its size and data over a restart")
    func fullPoolGrows() throws {
        let disk = SimulatedDisk(seed: 1)
        var pool = try Pool.create(on: disk, options: options(8 << 20))
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 1 << 30)
        var device = try pool.device(of: Self.volume)
        let refused = try fill(device, from: 0)
        #expect(pool.statistics.state == .full)
        #expect(try pool.grow(to: 16 << 20) == 16 << 20)
        #expect(pool.statistics.state == .healthy)
        #expect(pool.statistics.sizeBytes == 16 << 20)
        let second = try fill(device, from: refused)
        #expect(second > refused + 1500)
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
        pool = try Pool.open(on: disk, options: options(8 << 20))
        #expect(pool.statistics.sizeBytes == 16 << 20)
        device = try pool.device(of: Self.volume)
        for block in stride(from: UInt64(0), to: second, by: 97) {
            #expect(try device.read(4096, at: block * 4096) == pattern(block))
        }
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("a growth is durable when it returns and is undone by no crash: before, the old size, after, the new one")
    func crashes() throws {
        for crashAt in 1...12 {
            let disk = SimulatedDisk(seed: UInt64(crashAt))
            let pool = try Pool.create(on: disk, options: options(16 << 20))
            _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 1 << 30)
            let device = try pool.device(of: Self.volume)
            for block in 0..<UInt64(100) { try device.write(pattern(block), at: block * 4096) }
            try device.flush()
            let begun = disk.callCount
            disk.setPlan { number, _ in number == begun + UInt64(crashAt) ? .powerLoss : nil }
            var isDurable = false
            do {
                try pool.grow(to: 64 << 20)
                isDurable = true
                try pool.maintain()
            } catch {}
            let again = try Pool.open(on: disk.crashed(), options: options(16 << 20))
            let size = again.statistics.sizeBytes
            #expect(size == 64 << 20 || (!isDurable && size == 16 << 20))
            let recovered = try again.device(of: Self.volume)
            for block in 0..<UInt64(100) {
                #expect(try recovered.read(4096, at: block * 4096) == pattern(block))
            }
            try again.maintain()
            #expect(PoolChecker.check(again).problems == [])
        }
    }

    @Test("the allocation map becomes taller when a pool outgrows it, over several levels at once")
    func tallerMap() throws {
        let disk = SimulatedDisk(seed: 3)
        var pool = try Pool.create(on: disk, options: options(64 << 20))
        let before = pool.core.superblock.allocationLevel
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 1 << 30)
        var device = try pool.device(of: Self.volume)
        for block in 0..<UInt64(500) { try device.write(pattern(block), at: block * 4096) }
        try pool.maintain()
        try pool.grow(to: 1 << 40)
        for block in 500..<UInt64(1000) { try device.write(pattern(block), at: block * 4096) }
        try pool.maintain()
        #expect(pool.core.superblock.allocationLevel == before + 2)
        #expect(PoolChecker.check(pool).problems == [])
        let image = disk.crashed()
        pool = try Pool.open(on: image, options: options(64 << 20))
        device = try pool.device(of: Self.volume)
        for block in 0..<UInt64(1000) { #expect(try device.read(4096, at: block * 4096) == pattern(block)) }
        try device.unmap(at: 0, lengthBytes: 1 << 20)
        try pool.maintain()
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("a pool of hundreds of regions that all change in one checkpoint finds each bitmap again")
    func manyRegions() throws {
        var options = PoolOptions.small()
        options.maxSizeBytes = 16 << 20
        options.leastRegionBlocks = 64
        options.spaceMapBytes = 0
        options.overlayEntries = 100_000
        let disk = SimulatedDisk(seed: 1)
        var pool = try Pool.create(on: disk, options: options)
        try pool.grow(to: 256 << 20)
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 256 << 20)
        let device = try pool.device(of: Self.volume)
        let piece = pattern(1, count: 1 << 20)
        for index in 0..<UInt64(64) { try device.write(piece, at: index << 20) }
        try pool.maintain()
        // From each region something goes, in one pass.
        try device.unmap(at: 0, lengthBytes: 64 << 20)
        #expect(pool.core.monitor.withLock { pool.core.space.regions.count } > 256)
        for _ in 0..<3 { try pool.maintain() }
        #expect(PoolChecker.check(pool, verifiesData: false).problems == [])
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        pool = try Pool.open(on: disk.crashed(), options: options)
        #expect(PoolChecker.check(pool, verifiesData: false).problems == [])
        try pool.close()
    }

    @Test("growing costs one journal record, whatever the pool holds")
    func oneRecord() throws {
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options(64 << 20))
        let before = pool.statistics
        try pool.grow(to: 1 << 40)
        let after = pool.statistics
        #expect(after.journalBytesWritten - before.journalBytesWritten == 4096)
        #expect(after.checkpoints == before.checkpoints)
        try pool.close()
    }

    @Test("a size that is no growth, or more than a pool made so small can have, is refused and changes nothing")
    func refusals() throws {
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options(64 << 20))
        let sizes: [UInt64] = [0, 32 << 20, 64 << 20, (64 << 20) + 4096, 1 << 50]
        for size in sizes { #expect(throws: PoolError.self) { try pool.grow(to: size) } }
        #expect(throws: PoolError.self) { try pool.grow() }
        #expect(pool.statistics.sizeBytes == 64 << 20)
        try pool.close()
        let device = try Pool.create(on: SimulatedDisk(seed: 1, fixedSizeBytes: 64 << 20), options: options(32 << 20))
        #expect(try device.grow() == 64 << 20)
        #expect(throws: PoolError.self) { try device.grow() }
        #expect(throws: PoolError.self) { try device.grow(to: 128 << 20) }
        try device.close()
    }
}
