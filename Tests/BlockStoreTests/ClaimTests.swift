import BlockIO
import Simulation
import Synchronization
import Testing

@testable import BlockStore

/// A part of a block is written while, between its read and its write, the whole volume becomes another.
@Suite("Parts of blocks, and what comes between")
struct ClaimTests {
    private let volume = VolumeID.random()
    private let sector = pattern(9, count: 512)

    private func makePool(_ disk: SimulatedDisk) throws -> (Pool, any BlockDevice) {
        let pool = try Pool.create(on: disk, options: .small())
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 1 * mib)
        return (pool, try pool.device(of: volume))
    }

    /// Writes the first sector of a block; `body` comes when the old block is read.
    private func write(
        _ device: any BlockDevice, at offset: UInt64, on disk: SimulatedDisk, between body: @escaping () throws -> Void
    ) throws {
        // SAFETY: the disk calls it in this thread, during the write.
        nonisolated(unsafe) let between = body
        let hasRun = Mutex(false)
        disk.setInterruption {
            if hasRun.withLock({ value in
                defer { value = true }; return value
            }) {
                return
            }
            #expect(throws: Never.self) { try between() }
        }
        try device.write(sector, at: offset)
        disk.setInterruption(nil)
        #expect(hasRun.withLock { $0 })
    }

    @Test("over a revert the rest of the block is what the volume was reverted to")
    func revert() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, device) = try makePool(disk)
        try device.write(pattern(1), at: 8192)
        let snapshot = try pool.createSnapshot(id: .random(), name: "s", volumes: [volume], attributes: [])
        try device.write(pattern(2), at: 8192)
        try write(device, at: 8192, on: disk) {
            _ = try pool.revert(
                volumes: [volume], to: snapshot.id, keepAs: .random(), keepName: "k", attributes: [])
        }
        #expect(try device.read(4096, at: 8192) == sector + pattern(1)[512...])
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("over a shrinking and growing the rest of the block is zeros")
    func resize() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, device) = try makePool(disk)
        let last = 1 * mib - 4096
        try device.write(pattern(1), at: last)
        try write(device, at: last, on: disk) {
            try pool.resizeVolume(volume, sizeBytes: last)
            try pool.resizeVolume(volume, sizeBytes: 1 * mib)
        }
        #expect(try device.read(4096, at: last) == sector + [UInt8](repeating: 0, count: 3584))
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("over an increment that is received the rest of the block is what was received")
    func receive() throws {
        let (source, original) = try makePool(SimulatedDisk(seed: 1))
        try original.write(pattern(1), at: 8192)
        let first = try source.createSnapshot(id: .random(), name: "first", volumes: [volume], attributes: []).id
        try original.write(pattern(2), at: 8192)
        let second = try source.createSnapshot(id: .random(), name: "second", volumes: [volume], attributes: []).id

        let disk = SimulatedDisk(seed: 2)
        let target = try Pool.create(on: disk, options: .small())
        func feed(_ id: SnapshotID, from: SnapshotID?) throws -> ReceiveSession {
            let sender = try source.send(id, from: from)
            let session = target.receive()
            while let piece = try sender.next() { try piece.withUnsafeBytes { try session.feed($0) } }
            return session
        }
        let made = try feed(first, from: nil).finish()
        let device = try target.device(of: made.members[0].volume)
        let session = try feed(second, from: first)
        try write(device, at: 8192, on: disk) { _ = try session.finish() }
        #expect(try device.read(4096, at: 8192) == sector + pattern(2)[512...])
        #expect(PoolChecker.check(target).problems == [])
        try target.close()
        try source.close()
    }
}
