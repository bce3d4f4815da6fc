import BlockIO
import BlockStore
import SCSI
import Simulation
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
}
