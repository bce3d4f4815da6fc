import BlockIO
import Glibc
import Simulation
import Testing

@testable import BlockStore

@Suite("Memory", .serialized)
struct MemoryLimitTests {
    /// Bytes of addresses that the process has.
    private static func addressBytes() throws -> UInt64 {
        let file = try #require(fopen("/proc/self/statm", "r"))
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 128)
        try #require(fgets(&line, Int32(line.count), file) != nil)
        return UInt64(strtoul(line, nil, 10)) * UInt64(sysconf(Int32(_SC_PAGESIZE)))
    }

    /// Runs `body` with a hard limit of the address space: what the process has, and so much more. What goes beyond
    /// it ends the process.
    private static func limited(moreBytes: UInt64, _ body: () throws -> Void) throws {
        var before = rlimit()
        try #require(getrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &before) == 0)
        var limit = before
        limit.rlim_cur = min(before.rlim_cur, UInt(try addressBytes() + moreBytes))
        try #require(setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0)
        defer { setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &before) }
        try body()
    }

    /// In long runs as many as the documents promise.
    private static let snapshots = (environmentNumber("STILLPOINT_SIM_SEEDS") ?? 0) >= 200 ? 10000 : 1000

    @Test("a 16 TiB volume with thousands of snapshots opens, is read, written and checked within 256 MiB")
    func manySnapshots() throws {
        let disk = SimulatedDisk(seed: 1)
        let volume = VolumeID("00000000-0000-4000-8000-000000000001")!
        let size: UInt64 = 16 << 40
        var options = PoolOptions.small()
        options.maxSizeBytes = 1 << 30
        options.journalBytes = 16 << 20
        options.cacheBytes = 32 << 20
        var pool = try Pool.create(on: disk, options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: size)
        var device = try pool.device(of: volume)
        let bytes = [pattern(0), pattern(1)]
        for index in 0..<UInt64(256) { try device.write(bytes[0], at: index * (64 << 30)) }
        var ids: [SnapshotID] = []
        for index in 0..<Self.snapshots {
            if index % 10 == 0 { try device.write(bytes[index / 10 % 2], at: UInt64(index) << 20) }
            ids.append(.random())
            _ = try pool.createSnapshot(id: ids[index], name: "s\(index)", volumes: [volume], attributes: [1, 2, 3])
        }
        try pool.close()
        try Self.limited(moreBytes: 256 << 20) {
            pool = try Pool.open(on: disk, options: options)
            device = try pool.device(of: volume)
            #expect(pool.snapshots().count == Self.snapshots)
            #expect(try device.read(4096, at: 255 * (64 << 30)) == bytes[0])
            let middle = try pool.device(of: ids[505], volume: volume)
            #expect(try middle.read(4096, at: 500 << 20) == bytes[0])
            #expect(try middle.read(4096, at: 510 << 20) == [UInt8](repeating: 0, count: 4096))
            for index in 0..<UInt64(1000) { try device.write(bytes[1], at: index * (16 << 30)) }
            try pool.maintain()
            try pool.deleteSnapshot(ids[505])
            try pool.maintain()
            let report = PoolChecker.check(pool, memoryBytes: 16 << 20)
            #expect(report.problems == [])
            #expect(report.snapshots == Self.snapshots - 1)
            try pool.close()
        }
    }
}
