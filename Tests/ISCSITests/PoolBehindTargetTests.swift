import BlockIO
import BlockStore
import Foundation
import SCSI
import Simulation
import Synchronization
import TestInitiator
import Testing

@testable import ISCSI

/// What initiators see of a pool in trouble: a real pool on a simulated disk, behind a session.
@Suite("A pool behind the target")
struct PoolBehindTargetTests {
    private let volume = VolumeID("00000000-0000-4000-8000-000000000001")!
    private let data = [UInt8](repeating: 7, count: 4096)

    private func peer(_ disk: SimulatedDisk, maxSizeBytes: UInt64 = 64 << 20) throws -> (ScriptedSession, Pool) {
        var options = PoolOptions()
        options.maxSizeBytes = maxSizeBytes
        options.journalBytes = 1 << 20
        options.cacheBytes = 4 << 20
        options.hasMaintenanceThread = false
        let pool = try Pool.create(on: disk, options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 << 20)
        let peer = try ScriptedSession(device: try pool.device(of: volume))
        _ = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80))
        return (peer, pool)
    }

    /// The sense of a write of 4 KiB at a multiple of 4 KiB; empty for GOOD.
    private func write(_ peer: ScriptedSession, _ block: Int) -> [UInt8] {
        let lba = block * 8
        let cdb: [UInt8] = [0x2A, 0, 0, UInt8(lba >> 16), UInt8(lba >> 8 & 255), UInt8(lba & 255), 0, 0, 8, 0]
        return peer.exchange(peer.command(cdb, flags: 0xA0, expected: 4096, data: data))[0].sense
    }

    private func read(_ peer: ScriptedSession, _ block: Int) -> (sense: [UInt8], data: [UInt8]) {
        let lba = block * 8
        let cdb: [UInt8] = [0x28, 0, 0, UInt8(lba >> 16), UInt8(lba >> 8 & 255), UInt8(lba & 255), 0, 0, 8, 0]
        let answers = peer.exchange(peer.command(cdb, flags: 0xC0, expected: 4096))
        return (
            answers.last?.sense ?? [], answers.filter { $0.header.opcode == .dataIn }.flatMap(\.data)
        )
    }

    @Test("after a failed sync the flush fails, writes get DATA PROTECT, and reads go on")
    func failedSync() throws {
        let disk = SimulatedDisk(seed: 1)
        let (peer, pool) = try peer(disk)
        #expect(write(peer, 0) == [])
        disk.setPlan { _, call in call == .sync ? .fail(errno: 5) : nil }
        let flush = peer.exchange(peer.command(CDB.synchronizeCache, flags: 0x80))[0]
        #expect(flush.status == 2)
        #expect(flush.sense.first == 4, "HARDWARE ERROR, not \(flush.sense)")
        disk.setPlan(nil)
        for _ in 0..<2 {
            #expect(write(peer, 1) == [7, 0x27, 0])
            #expect(peer.exchange(peer.command(CDB.synchronizeCache, flags: 0x80))[0].status == 2)
            #expect(read(peer, 0).data == data)
        }
        guard case .readOnly(let reason) = pool.statistics.state else {
            Issue.record("the pool goes on writing")
            return
        }
        #expect(reason.contains("syncing"))
    }

    @Test("a full pool is DATA PROTECT, space allocation failed; UNMAP and flush work, and then writes again")
    func full() throws {
        let (peer, pool) = try peer(SimulatedDisk(seed: 1), maxSizeBytes: 8 << 20)
        var blocks = 0
        while blocks < 4000, write(peer, blocks) == [] { blocks += 1 }
        #expect(blocks > 100 && blocks < 4000)
        #expect(write(peer, blocks) == [7, 0x27, 7])
        #expect(pool.statistics.state == .full)
        #expect(peer.exchange(peer.command(CDB.synchronizeCache, flags: 0x80))[0].status == 0)
        #expect(read(peer, 3).data == data)
        // UNMAP of the first 64 blocks.
        let list: [UInt8] =
            [0, 22, 0, 16, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 0, 0] + [0, 0, 2, 0] + [0, 0, 0, 0]
        let unmap: [UInt8] = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]
        #expect(peer.exchange(peer.command(unmap, flags: 0xA0, expected: 24, data: list))[0].status == 0)
        #expect(peer.exchange(peer.command(CDB.synchronizeCache, flags: 0x80))[0].status == 0)
        #expect(write(peer, 0) == [])
        #expect(pool.statistics.state == .healthy)
        #expect(read(peer, 1).data == [UInt8](repeating: 0, count: 4096))
        try pool.close()
    }

    @Test("a rotten block is MEDIUM ERROR for that block and no other, with its address")
    func rot() throws {
        let disk = SimulatedDisk(seed: 1)
        let (peer, pool) = try peer(disk)
        #expect(write(peer, 0) == [] && write(peer, 1) == [])
        let before = Set(disk.occupiedBlocks)
        #expect(write(peer, 2) == [])
        let place = try #require(disk.occupiedBlocks.first { !before.contains($0) })
        disk.rot(block: place, bit: 3)
        #expect(read(peer, 2).sense.first == 3)
        #expect(read(peer, 2).data.isEmpty)
        #expect(read(peer, 1).data == data)
        #expect(pool.damage().records.map(\.volumeOffset) == [8192])
        #expect(write(peer, 2) == [])
        #expect(read(peer, 2).data == data)
        try pool.close()
    }

    @Test(
        "WRITE SAME of two initiators is one of them whole, with its ends; COMPARE AND WRITE beside it loses no step"
    )
    func writeSame() async throws {
        var options = PoolOptions()
        options.maxSizeBytes = 256 << 20
        options.journalBytes = 1 << 20
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 16 << 20)
        let running = try await RunningServer()
        try running.registry.addLUN(
            RunningServer.open, lun: 1, device: try pool.device(of: volume),
            identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000000b1", serial: "P"))
        let address = "127.0.0.1:\(running.port)"
        let problems = Mutex<[String]>([])
        let steps = Atomic<Int>(0)
        Self.atOnce(3) { index in
            do {
                let path = try RawInitiator(
                    address, target: RunningServer.open, initiator: "iqn.2026-11.test:same\(index)")
                try path.clearAttentions(lun: 1)
                if index < 2 {
                    for round in 0..<40 {
                        let tag = UInt8(index * 100 + round + 1)
                        // Begins and ends within blocks.
                        try Self.writeSame(path, lba: 3, blocks: 2043, tag)
                        // The rest of the block whose first part is counted in.
                        try Self.writeSame(path, lba: 2049, blocks: 7, tag)
                        if try Self.count(path, lba: 2048) { steps.add(1, ordering: .relaxed) }
                    }
                } else {
                    for round in 0..<60 {
                        for (lba, blocks) in [(UInt32(round % 4 * 507 + 3), UInt16(512)), (2049, 7)] {
                            let bytes = try path.read(lba: lba, blocks: blocks, lun: 1).data
                            if Set(bytes).count != 1 { problems.withLock { $0.append("a mixture at \(lba)") } }
                        }
                        // More than the target sends in one piece.
                        guard round % 4 == 0 else { continue }
                        let cut = try pool.createSnapshot(
                            id: .random(), name: "s\(round)", volumes: [volume], attributes: [])
                        var bytes = [UInt8](repeating: 0, count: 2043 * 512)
                        let kept = try pool.device(of: cut.id, volume: volume)
                        try bytes.withUnsafeMutableBytes { try kept.read(at: 3 * 512, into: $0) }
                        if Set(bytes).count != 1 { problems.withLock { $0.append("a mixture in \(cut.name)") } }
                    }
                }
            } catch {
                problems.withLock { $0.append("initiator \(index): \(error)") }
            }
        }
        #expect(problems.withLock { $0 } == [])
        let last = try RawInitiator(address, target: RunningServer.open, initiator: "iqn.2026-11.test:last")
        try last.clearAttentions(lun: 1)
        let counted = steps.load(ordering: .relaxed)
        #expect(counted > 0)
        #expect(try last.read(lba: 2048, blocks: 1, lun: 1).data[0] == UInt8(counted))
        try await running.stop()
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    private static func writeSame(_ path: RawInitiator, lba: Int, blocks: Int, _ tag: UInt8) throws {
        let cdb: [UInt8] = [
            0x41, 0, 0, 0, UInt8(lba >> 8), UInt8(lba & 0xFF), 0, UInt8(blocks >> 8), UInt8(blocks & 0xFF), 0,
        ]
        let answer = try path.command(cdb, lun: 1, data: [UInt8](repeating: tag, count: 512))
        guard answer.isGood else { throw BlockError.io(errno: EIO) }
    }

    /// Adds one to the first byte of a block with COMPARE AND WRITE; false where another one came first.
    private static func count(_ path: RawInitiator, lba: Int) throws -> Bool {
        let now = try path.read(lba: UInt32(lba), blocks: 1, lun: 1).data
        var next = now
        next[0] += 1
        let cdb: [UInt8] = [
            0x89, 0, 0, 0, 0, 0, 0, 0, UInt8(lba >> 8), UInt8(lba & 0xFF), 0, 0, 0, 1, 0, 0,
        ]
        let answer = try path.command(cdb, lun: 1, data: now + next)
        // MISCOMPARE
        guard answer.isGood || answer.sense.first == 0xE else { throw BlockError.io(errno: EIO) }
        return answer.isGood
    }

    /// Runs `body` on so many threads, and waits for all.
    private static func atOnce(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        let group = DispatchGroup()
        for index in 0..<count {
            group.enter()
            Thread {
                body(index)
                group.leave()
            }.start()
        }
        group.wait()
    }
}
