import BlockIO
import BlockStore
import Glibc
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
        for snapshot in pool.snapshots() {
            #expect(try pool.snapshot(snapshot.id) == snapshot)
            #expect(pool.hasSnapshot(named: snapshot.name))
        }
        #expect(!pool.hasSnapshot(named: "s2"))
        #expect(throws: PoolError.self) { try pool.snapshot(.random()) }
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

    @Test("bad arguments are refused with their reason and change nothing")
    func badArguments() throws {
        let pool = try makePool()
        _ = try pool.createVolume(id: volume, name: "a", sizeBytes: mib)
        #expect(throws: PoolError.exists("volume a")) {
            try pool.createVolume(id: .random(), name: "a", sizeBytes: mib)
        }
        #expect(throws: PoolError.exists("volume \(volume)")) {
            try pool.createVolume(id: volume, name: "b", sizeBytes: mib)
        }
        for name in ["", "a b", "ä", String(repeating: "x", count: 129)] {
            #expect(throws: PoolError.invalidName(name)) {
                try pool.createVolume(id: .random(), name: name, sizeBytes: mib)
            }
        }
        for size in [0, 5000, (64 << 40) + 4096] as [UInt64] {
            #expect(throws: PoolError.invalidSize(size)) {
                try pool.createVolume(id: .random(), name: "c", sizeBytes: size)
            }
        }
        #expect(throws: PoolError.invalidArgument("a snapshot needs at least one volume")) {
            try pool.createSnapshot(id: .random(), name: "s", volumes: [], attributes: [])
        }
        let other = VolumeID.random()
        #expect(throws: PoolError.notFound("volume \(other)")) {
            try pool.createSnapshot(id: .random(), name: "s", volumes: [volume, other], attributes: [])
        }
        let device = try pool.device(of: volume)
        #expect(throws: BlockError.outOfRange(offset: mib, lengthBytes: 4096, sizeBytes: mib)) {
            try device.read(4096, at: mib)
        }
        #expect(pool.volumes().count == 1)
        #expect(pool.snapshots().isEmpty)
        try pool.close()
    }

    @Test("a snapshot with clones is protected, a clone is a volume of its own, and both go in the right order")
    func clones() throws {
        let pool = try makePool()
        _ = try pool.createVolume(id: volume, name: "a", sizeBytes: mib)
        let device = try pool.device(of: volume)
        try device.write(pattern(1), at: 0)
        let snapshot = SnapshotID.random()
        _ = try pool.createSnapshot(id: snapshot, name: "s", volumes: [volume], attributes: [])
        let clone = VolumeID.random()
        let record = try pool.clone(snapshot: snapshot, volume: volume, newID: clone, name: "c")
        #expect(record.clonedFrom == CloneOrigin(snapshot: snapshot, volume: volume))
        #expect(record.naa != pool.volumes()[0].naa)
        let cloned = try pool.device(of: clone)
        try cloned.write(pattern(2), at: 4096)
        try device.write(pattern(3), at: 0)
        #expect(try cloned.read(8192, at: 0) == pattern(1) + pattern(2))
        #expect(throws: PoolError.hasClones(["c"])) { try pool.deleteSnapshot(snapshot) }
        let second = SnapshotID.random()
        _ = try pool.createSnapshot(id: second, name: "sc", volumes: [clone], attributes: [])
        _ = try pool.clone(snapshot: second, volume: clone, newID: .random(), name: "cc")
        #expect(throws: PoolError.hasClones(["cc"])) { try pool.deleteSnapshot(second) }
        let last = try #require(pool.volumes().first { $0.name == "cc" })
        #expect(try pool.device(of: last.id).read(8192, at: 0) == pattern(1) + pattern(2))
        try pool.deleteVolume(last.id)
        try pool.deleteSnapshot(second)
        try pool.deleteVolume(clone)
        try pool.deleteSnapshot(snapshot)
        for _ in 0..<6 { try pool.maintain() }
        #expect(pool.statistics.reclaimsPending == 0)
        #expect(PoolChecker.check(pool).problems == [])
        #expect(try device.read(4096, at: 0) == pattern(3))
        try pool.close()
    }

    @Test("a truncated or foreign file gives a clear error")
    func truncated() throws {
        try makePool().close()
        let path = scratch.file("pool")
        truncate(path, 300 << 10)
        #expect(throws: PoolError.damaged("\(path) is cut off: it ends within the journal")) { try reopen() }
        truncate(path, 4)
        #expect(throws: PoolError.notAPool(path: path)) { try reopen() }
        #expect(throws: PoolError.notFound("file \(path)2")) { try Pool.open(path: path + "2") }
        #expect(throws: PoolError.exists(path)) { try makePool() }
    }
}
