import API
import Foundation
import TestInitiator
import Testing

/// The promise of bounded memory on the real process: `docs/benchmarks.md` has it with 10,000 snapshots.
@Suite("Memory limit", .serialized)
struct MemoryLimitTests {
    private static let volumeBytes: UInt64 = 16 << 40
    private static let snapshots = 120

    private static func limited(toMebibytes limit: Int) -> [String] {
        ["sh", "-c", "ulimit -v \(limit * 1024) && exec \"$@\"", "sh"]
    }

    /// WRITE (16) or READ (16) of 4 KiB: a 16 TiB volume has addresses that the shorter commands cannot say.
    private static func command(_ code: UInt8, at offset: UInt64) -> [UInt8] {
        let lba = offset / 512
        return [code, 0] + (0..<8).map { UInt8(truncatingIfNeeded: lba >> UInt64(56 - 8 * $0)) } + [0, 0, 0, 8, 0, 0]
    }

    private static func write(_ path: RawInitiator, _ tag: Int, at offset: UInt64) throws {
        let answer = try path.command(
            command(0x8A, at: offset), data: [UInt8](repeating: UInt8(tag % 251 + 1), count: 4096))
        try #require(answer.isGood, "\(answer)")
    }

    private static func holds(_ path: RawInitiator, _ tag: Int, at offset: UInt64) throws -> Bool {
        try path.command(command(0x88, at: offset), readBytes: 4096).data
            == [UInt8](repeating: UInt8(tag % 251 + 1), count: 4096)
    }

    /// Spread over the whole volume, each in a leaf of the map of its own.
    private static func place(_ index: Int) -> UInt64 {
        UInt64(index + 1) * (volumeBytes / UInt64(snapshots + 2)) / 4096 * 4096
    }

    private static func connect(_ node: TestNode, _ volume: String) throws -> RawInitiator {
        let target = try node.json(VolumeInfo.self, "volume", "show", volume).exports[0].iqn
        let path = try RawInitiator(node.iscsi, target: target, initiator: "iqn.2026-11.test:memory")
        _ = try path.clearAttentions()
        return path
    }

    private static func client(_ node: TestNode) throws -> NodeClient {
        let token = try String(contentsOfFile: node.tokenFile, encoding: .utf8)
        return try NodeClient(
            .init(
                url: try #require(URL(string: node.api)),
                token: token.trimmingCharacters(in: .whitespacesAndNewlines)))
    }

    /// Each after a write of its own and one to the block that all of them change.
    private static func takeSnapshots(_ node: TestNode, _ path: RawInitiator) async throws {
        let client = try client(node)
        for index in 0..<snapshots {
            try write(path, index, at: place(index))
            try write(path, index, at: 0)
            var job = try await client.createSnapshot(SnapshotCreateRequest(volumes: ["v"], name: "s\(index)"))
            while !job.state.isEnded { job = try await client.job(job.id) }
            try #require(job.state == .succeeded, "\(job)")
        }
        for index in 40..<80 { _ = try await client.deleteSnapshot("s\(index)") }
        await client.close()
    }

    @Test("a node with 1 GiB of addresses serves a 16 TiB volume with hundreds of snapshots, and again after kill -9")
    func addressSpace() async throws {
        let node = try TestNode()
        defer { node.stop() }
        node.prefix = Self.limited(toMebibytes: 1024)
        node.extraEnvironment["STILLPOINT_POOL_MAXIMUM_SIZE"] = "20TiB"
        try node.start()
        try node.must("volume", "create", "v", "--size", "16TiB")
        try node.allowAny(volume: "v")
        let limit = try node.json(PoolInfo.self, "pool", "show").memory.limitBytes
        #expect(limit >= 64 << 20 && limit < 768 << 20, "\(limit)")
        var path = try Self.connect(node, "v")
        try await Self.takeSnapshots(node, path)
        try Self.write(path, 249, at: Self.volumeBytes - 4096)
        // SYNCHRONIZE CACHE.
        #expect(try path.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).isGood)
        node.killHard()

        try node.start()
        #expect(try node.json([SnapshotInfo].self, "snapshot", "list", "v").count == Self.snapshots - 40)
        path = try Self.connect(node, "v")
        for index in 0..<Self.snapshots {
            #expect(try Self.holds(path, index, at: Self.place(index)), "\(index)")
        }
        #expect(try Self.holds(path, Self.snapshots - 1, at: 0))
        #expect(try Self.holds(path, 249, at: Self.volumeBytes - 4096))
        for index in [0, 39, 80] {
            try node.must("clone", "create", "s\(index)", "--name", "c\(index)")
            try node.allowAny(volume: "c\(index)")
            let clone = try Self.connect(node, "c\(index)")
            #expect(try Self.holds(clone, index, at: 0))
            #expect(try Self.holds(clone, index, at: Self.place(index)))
            #expect(try Self.holds(clone, 249, at: Self.volumeBytes - 4096) == false)
            clone.cut()
        }
        // The node would wait for the session to end.
        path.cut()
        #expect(node.terminate() == 0, "\(node.log)")
    }

    @Test("a node that may use too little memory says so and does not start")
    func tooLittle() throws {
        let node = try TestNode()
        defer { node.stop() }
        let serve = [
            Components.bin + "/stillpoint", "serve", "--data", node.dataFolder, "--iscsi-listen", "127.0.0.1:0",
            "--api-listen", "127.0.0.1:0",
        ]
        let environment = ["STILLPOINT_RUN_DIR": node.runFolder]
        for (limit, setting, words) in [
            (300, [:], ["ulimit -v", "raise the limit"]),
            (1024, ["STILLPOINT_POOL_MEMORY": "2GiB"], ["pool.memory is 2048MiB", "ulimit -v"]),
            (1024, ["STILLPOINT_POOL_MEMORY": "1MiB"], ["at least 64MiB"]),
        ] {
            let refused = try Shell.run(
                Self.limited(toMebibytes: limit) + serve, environment: environment.merging(setting) { $1 })
            #expect(refused.status != 0 && refused.status < 4, "\(refused)")
            for word in words { #expect(refused.errors.contains(word), "\(word): \(refused)") }
            #expect(!FileManager.default.fileExists(atPath: node.dataFolder + "/pool"))
        }
    }
}
