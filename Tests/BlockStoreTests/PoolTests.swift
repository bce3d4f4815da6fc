import BlockIO
import BlockStore
import Testing

@Suite("The pool")
struct PoolTests {
    let scratch = ScratchDirectory()
    let volume = VolumeID.random()

    private func makePool(_ options: PoolOptions = .small()) throws -> Pool {
        try Pool.create(path: scratch.file("pool"), options: options)
    }

    private func reopen(_ options: PoolOptions = .small()) throws -> Pool {
        try Pool.open(path: scratch.file("pool"), options: options)
    }

    @Test("what was written is read back, before and after a checkpoint and a reopening")
    func roundTrip() throws {
        var pool = try makePool()
        _ = try pool.createVolume(id: volume, name: "a", sizeBytes: 10 * mib)
        var device = try pool.device(of: volume)
        #expect(try device.read(8192, at: 4096) == [UInt8](repeating: 0, count: 8192))
        try device.write(pattern(1, count: 12288), at: 8192)
        #expect(try device.read(12288, at: 8192) == pattern(1, count: 12288))
        try pool.maintain()
        #expect(try device.read(12288, at: 8192) == pattern(1, count: 12288))
        try device.write(pattern(2), at: 12288)
        try pool.close()
        #expect(throws: BlockError.removed) { try device.read(4096, at: 0) }
        pool = try reopen()
        device = try pool.device(of: volume)
        #expect(try device.read(4096, at: 12288) == pattern(2))
        #expect(try device.read(4096, at: 8192) == Array(pattern(1, count: 12288)[..<4096]))
        #expect(try device.read(4096, at: 0) == [UInt8](repeating: 0, count: 4096))
        try pool.close()
    }

    @Test("writes of 512 bytes change just these, across block borders too")
    func subBlockWrites() throws {
        let pool = try makePool()
        _ = try pool.createVolume(id: volume, name: "a", sizeBytes: 1 * mib)
        let device = try pool.device(of: volume)
        var model = [UInt8](repeating: 0, count: 64 << 10)
        for (index, (offset, count)) in [(512, 512), (3584, 1024), (4096, 4096), (7680, 9216), (0, 512)].enumerated() {
            let bytes = pattern(UInt64(index + 1), count: count)
            try device.write(bytes, at: UInt64(offset))
            model.replaceSubrange(offset..<(offset + count), with: bytes)
            #expect(try device.read(model.count, at: 0) == model)
        }
        #expect(throws: BlockError.misaligned(offset: 100, lengthBytes: 512)) {
            try device.write(pattern(1, count: 512), at: 100)
        }
        try pool.close()
    }

    @Test("a snapshot keeps what was there, the volume goes on, and a revert brings it back and can be undone")
    func snapshotAndRevert() throws {
        var pool = try makePool()
        _ = try pool.createVolume(id: volume, name: "a", sizeBytes: 10 * mib)
        var device = try pool.device(of: volume)
        try device.write(pattern(1), at: 0)
        let first = SnapshotID.random()
        let record = try pool.createSnapshot(id: first, name: "s1", volumes: [volume], attributes: [1, 2, 3])
        #expect(record.attributes == [1, 2, 3])
        try device.write(pattern(2), at: 0)
        try device.write(pattern(3), at: 4096)
        for _ in 0..<2 {
            let old = try pool.device(of: first, volume: volume)
            #expect(try old.read(8192, at: 0) == pattern(1) + [UInt8](repeating: 0, count: 4096))
            #expect(throws: BlockError.readOnly) { try old.write(pattern(9), at: 0) }
            try pool.maintain()
        }
        let kept = SnapshotID.random()
        _ = try pool.revert(volumes: [volume], to: first, keepAs: kept, keepName: "before", attributes: [])
        #expect(try device.read(4096, at: 0) == pattern(1))
        #expect(try pool.device(of: kept, volume: volume).read(8192, at: 0) == pattern(2) + pattern(3))
        try device.write(pattern(4), at: 8192)
        try pool.close()
        pool = try reopen()
        device = try pool.device(of: volume)
        #expect(try device.read(4096, at: 8192) == pattern(4))
        #expect(pool.snapshots().map(\.name) == ["s1", "before"])
        #expect(pool.snapshots()[0].attributes == [1, 2, 3])
        #expect(pool.snapshots()[1].kind == .beforeRevert)
        _ = try pool.revert(volumes: [volume], to: kept, keepAs: .random(), keepName: "undone", attributes: [])
        #expect(try device.read(12288, at: 0) == pattern(2) + pattern(3) + [UInt8](repeating: 0, count: 4096))
        try pool.close()
    }

    @Test("deleting everything gives every block back")
    func reclaim() throws {
        let pool = try makePool()
        try pool.maintain()
        let empty = pool.statistics.usedBytes
        _ = try pool.createVolume(id: volume, name: "a", sizeBytes: 10 * mib)
        let device = try pool.device(of: volume)
        var snapshots: [SnapshotID] = []
        for round in 0..<4 {
            for block in 0..<100 {
                try device.write(pattern(UInt64(round * 1000 + block)), at: UInt64(block * (round + 1)) * 4096)
            }
            snapshots.append(.random())
            _ = try pool.createSnapshot(id: snapshots[round], name: "s\(round)", volumes: [volume], attributes: [])
            if round % 2 == 0 { try pool.maintain() }
        }
        #expect(throws: PoolError.hasSnapshots(["s0", "s1", "s2", "s3"])) { try pool.deleteVolume(volume) }
        for index in [1, 0, 3, 2] {
            try pool.deleteSnapshot(snapshots[index])
            try device.write(pattern(7), at: 4096 * 50)
            try pool.maintain()
        }
        #expect(try device.read(4096, at: 4096 * 50) == pattern(7))
        try pool.deleteVolume(volume)
        for _ in 0..<8 { try pool.maintain() }
        #expect(pool.statistics.reclaimsPending == 0)
        #expect(pool.statistics.usedBytes == empty)
        try pool.close()
    }

    @Test("a second opener is refused")
    func secondOpener() throws {
        let pool = try makePool()
        #expect(throws: PoolError.inUse(path: scratch.file("pool"))) { try reopen() }
        try pool.close()
        try reopen().close()
    }
}
