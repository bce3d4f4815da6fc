import BlockIO
import Simulation
import Testing

@testable import BlockStore

@Suite("A full pool")
struct FullPoolTests {
    static let volume = VolumeID("00000000-0000-4000-8000-000000000001")!

    /// Writes single blocks far from each other, so that each needs map pages of its own, until one is refused.
    /// Returns the offsets that were written.
    @discardableResult
    static func fill(_ pool: Pool) throws -> [UInt64] {
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 << 40)
        let device = try pool.device(of: volume)
        var written: [UInt64] = []
        for index in 0..<UInt64(5000) {
            let offset = index &* 0x9e37_79b9_7f4a_7c15 % (64 << 40) / 4096 * 4096
            do {
                try device.write(pattern(index), at: offset)
                written.append(offset)
            } catch {
                return written
            }
        }
        return written
    }

    private func makePool(_ disk: SimulatedDisk) throws -> Pool {
        var options = PoolOptions.small()
        options.maxSizeBytes = 8 << 20
        return try Pool.create(on: disk, options: options)
    }

    @Test(
        "a full pool refuses writes only: flush, unmap, checkpoint and snapshot deletion work, and freed space is used")
    func fullPool() throws {
        let disk = SimulatedDisk(seed: 1)
        var pool = try makePool(disk)
        let written = try Self.fill(pool)
        #expect(written.count > 30)
        #expect(pool.statistics.state == .full)
        var device = try pool.device(of: Self.volume)
        #expect(throws: BlockError.noSpace) { try device.write(pattern(1), at: 1 << 40) }
        try device.flush()
        try pool.maintain()
        for (index, offset) in written.enumerated() {
            #expect(try device.read(4096, at: offset) == pattern(UInt64(index)))
        }
        for offset in written.prefix(written.count / 2) { try device.unmap(at: offset, lengthBytes: 4096) }
        try device.flush()
        try pool.maintain()
        try device.write(pattern(77), at: written[0])
        #expect(pool.statistics.state == .healthy)
        #expect(PoolChecker.check(pool).isSound)
        try pool.close()
        var options = PoolOptions.small()
        options.hasMaintenanceThread = false
        pool = try Pool.open(on: disk, options: options)
        device = try pool.device(of: Self.volume)
        #expect(try device.read(4096, at: written[0]) == pattern(77))
        #expect(try device.read(4096, at: written[1]) == [UInt8](repeating: 0, count: 4096))
        try pool.close()
    }

    @Test("data can fill a pool to the last block, and deleting a snapshot makes room again")
    func fillWithData() throws {
        let pool = try makePool(SimulatedDisk(seed: 1))
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 4 << 20)
        let device = try pool.device(of: Self.volume)
        var names = 0
        var ids: [SnapshotID] = []
        var refusal: BlockError?
        while refusal == nil, names < 100 {
            do {
                for block in 0..<200 {
                    try device.write(pattern(UInt64(names * 1000 + block)), at: UInt64(block) * 4096)
                }
            } catch let error as BlockError {
                refusal = error
                break
            }
            names += 1
            ids.append(.random())
            _ = try pool.createSnapshot(
                id: ids[ids.count - 1], name: "s\(names)", volumes: [Self.volume], attributes: [])
        }
        #expect(refusal == .noSpace)
        for id in ids { try pool.deleteSnapshot(id) }
        for block in 0..<200 { try device.write(pattern(UInt64(block)), at: UInt64(block) * 4096) }
        for block in 0..<200 { #expect(try device.read(4096, at: UInt64(block) * 4096) == pattern(UInt64(block))) }
        for _ in 0..<20 { try pool.maintain() }
        #expect(pool.statistics.reclaimsPending == 0)
        #expect(PoolChecker.check(pool).isSound)
        try pool.close()
    }

    @Test("a full file system under the pool refuses writes and nothing else, and the pool goes on when there is room")
    func fullFileSystem() throws {
        let disk = SimulatedDisk(seed: 1, capacityBytes: 5 << 20)
        let pool = try Pool.create(on: disk, options: .small())
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 64 << 20)
        let device = try pool.device(of: Self.volume)
        var count: UInt64 = 0
        #expect(throws: BlockError.noSpace) {
            while count < 10000 {
                try device.write(pattern(count), at: count * 4096)
                count += 1
            }
        }
        #expect(count > 100)
        try device.flush()
        let backed = disk.backedBlocks
        try device.unmap(at: 0, lengthBytes: 32 * 4096 * 2)
        try device.flush()
        try pool.maintain()
        #expect(disk.backedBlocks <= backed - 48)
        try device.write(pattern(5), at: 0)
        for block in 64..<count { #expect(try device.read(4096, at: block * 4096) == pattern(block)) }
        #expect(PoolChecker.check(pool).isSound)
        try pool.close()
    }

    @Test("unmapping returns the space of a real file to its file system")
    func holePunching() throws {
        let scratch = ScratchDirectory()
        let file = try HostFile(path: scratch.file("pool"), mode: .create)
        let pool = try Pool.create(on: file, options: .small())
        _ = try pool.createVolume(id: Self.volume, name: "v", sizeBytes: 64 << 20)
        let device = try pool.device(of: Self.volume)
        for index in 0..<16 { try device.write(pattern(UInt64(index), count: 1 << 20), at: UInt64(index) << 20) }
        try device.flush()
        try pool.maintain()
        let full = file.occupiedBytes
        try device.unmap(at: 0, lengthBytes: 16 << 20)
        try pool.maintain()
        #expect(file.occupiedBytes + (14 << 20) < full)
        #expect(try device.read(8192, at: 1 << 20) == [UInt8](repeating: 0, count: 8192))
        try pool.close()
    }
}
