import BlockIO
import Glibc
import Simulation
import Testing

@testable import BlockStore

/// Reclaim is done by the pool's own thread, though nobody asks for a pass.
@Suite("Reclaim in the background")
struct BackgroundReclaimTests {
    private let volume = VolumeID.random()

    private func options(hasThread: Bool) -> PoolOptions {
        var options = PoolOptions.small(hasThread: hasThread)
        // Many steps for one map.
        options.reclaimPagesPerPass = 6
        return options
    }

    /// A volume of eight leaves and a snapshot that has all of them alone.
    private func fill(_ pool: Pool) throws -> SnapshotID {
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 * mib)
        let device = try pool.device(of: volume)
        for leaf in 0..<UInt64(8) { try device.write(pattern(leaf), at: leaf * mib) }
        let snapshot = try pool.createSnapshot(id: .random(), name: "s", volumes: [volume], attributes: [])
        for leaf in 0..<UInt64(8) { try device.write(pattern(leaf + 50), at: leaf * mib) }
        try device.flush()
        return snapshot.id
    }

    /// Until nothing deleted is left; the limit is only for a pool that never gets there.
    private func awaitReclaim(_ pool: Pool) {
        for _ in 0..<6000 where pool.statistics.reclaimsPending > 0 { usleep(10_000) }
        #expect(pool.statistics.reclaimsPending == 0)
        #expect(PoolChecker.check(pool).problems == [])
    }

    @Test("a deleted snapshot is freed step by step without anybody asking again")
    func continues() throws {
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options(hasThread: true))
        try pool.deleteSnapshot(try fill(pool))
        awaitReclaim(pool)
        try pool.close()
    }

    @Test("what a process left half reclaimed is taken up when the pool opens again")
    func isTakenUp() throws {
        let disk = SimulatedDisk(seed: 1)
        let pool = try Pool.create(on: disk, options: options(hasThread: false))
        let snapshot = try fill(pool)
        try pool.maintain()
        try pool.deleteSnapshot(snapshot)
        try pool.maintain()
        #expect(pool.core.monitor.withLock { pool.core.tables.doomed.values.contains { $0.cursor > 0 } })
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        let opened = try Pool.open(on: disk.handedOver(), options: options(hasThread: true))
        awaitReclaim(opened)
        try opened.close()
    }
}
