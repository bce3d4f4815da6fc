import API
import BlockIO
import BlockStore
import Foundation
import Glibc
import NIOHTTP1
import Testing

@testable import Node

@Suite("The pool's routes")
struct PoolRouteTests {
    @Test(
        "the pool is shown with its space, copies of the superblock, memory and backend, and has no alerts when sound")
    func show() async throws {
        try await TestNode.with { node in
            let pool: PoolInfo = try await node.call(.GET, "/v1/pool").decode()
            #expect(pool.state == .healthy && pool.alerts.isEmpty)
            #expect(pool.sizeBytes == 1 << 30)
            #expect(pool.superblockCopies.count == 4)
            #expect(pool.superblockCopies.count { $0.isGood } >= 2)
            #expect(pool.backend.hasPrefix("uring") || pool.backend.hasPrefix("pread"))
            #expect(pool.softThresholdPercent == 80)
            #expect(pool.scrub == nil)
            let metrics = String(decoding: try await node.call(.GET, "/metrics").body, as: UTF8.self)
            #expect(metrics.contains("stillpoint_pool_alert{kind=\"damage\"} 0"))
            #expect(metrics.contains("stillpoint_pool_backend_info{io=\"\(pool.backend)\"} 1"))
        }
    }

    @Test("a pool grows online; a size that is no growth is refused with a reason")
    func grow() async throws {
        try await TestNode.with { node in
            let refused = try await node.call(.POST, "/v1/pool/grow", PoolGrowRequest(sizeBytes: 1 << 20))
            #expect(refused.status == 400)
            #expect(refused.failure?.message.contains("no larger") == true)
            let grown: PoolInfo = try await node.call(.POST, "/v1/pool/grow", PoolGrowRequest(sizeBytes: 2 << 30))
                .decode()
            #expect(grown.sizeBytes == 2 << 30)
        }
    }

    @Test("a scrub is a job with progress and a result; what it finds is in status, pool and metrics, and never data")
    func scrub() async throws {
        try await TestNode.with { node in
            let pool = node.services.inventory.pool
            let id = VolumeID.random()
            _ = try pool.createVolume(id: id, name: "v", sizeBytes: 16 << 20)
            let device = try pool.device(of: id)
            let bytes = (0..<65536).map { UInt8(truncatingIfNeeded: $0 / 7 + 1) }
            try bytes.withUnsafeBytes { try device.write(at: 0, from: $0, durability: .durable) }
            try pool.maintain()
            let sound = try await node.ended(try await node.call(.POST, "/v1/pool/scrub", ScrubRequest()))
            #expect(sound.state == .succeeded)
            #expect(sound.result?.scrub?.damageCount == 0)
            #expect((sound.result?.scrub?.dataBlocks ?? 0) == 16)
            try Self.rot(node.directory + "/data/pool", block: Array(bytes[4096..<8192]))
            let found = try await node.ended(try await node.call(.POST, "/v1/pool/scrub", ScrubRequest()))
            let scrub = try #require(found.result?.scrub)
            #expect(scrub.damageCount == 1)
            #expect(scrub.damage.first?.contains("at 4096 of volume v") == true)
            let status: NodeStatus = try await node.call(.GET, "/v1/status").decode()
            #expect(status.pool.alerts.map(\.kind) == ["damage"])
            let info: PoolInfo = try await node.call(.GET, "/v1/pool").decode()
            #expect(info.alerts.map(\.kind) == ["damage"])
            #expect(info.scrub == scrub)
            let metrics = String(decoding: try await node.call(.GET, "/metrics").body, as: UTF8.self)
            #expect(metrics.contains("stillpoint_pool_damaged_blocks 1"))
            #expect(metrics.contains("stillpoint_pool_alert{kind=\"damage\"} 1"))
        }
    }

    /// Changes a byte of the only block of the pool's file that holds `block`.
    private static func rot(_ path: String, block: [UInt8]) throws {
        let file = try #require(FileHandle(forUpdatingAtPath: path))
        defer { try? file.close() }
        var offset: UInt64 = 0
        while let bytes = try file.read(upToCount: 4096), !bytes.isEmpty {
            if bytes.elementsEqual(block) {
                try file.seek(toOffset: offset + 77)
                try file.write(contentsOf: [block[77] ^ 0x40])
                try file.synchronize()
                return
            }
            offset += 4096
        }
        Issue.record("the block is not in the pool")
    }

    @Test("a cancelled scrub says so and the next one, also after a restart, goes on where it was")
    func cancel() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var node = try await TestNode.start(directory)
        #expect(try await node.call(.DELETE, "/v1/pool/scrub").failure?.code == "noScrub")
        let pool = node.services.inventory.pool
        let id = VolumeID.random()
        _ = try pool.createVolume(id: id, name: "v", sizeBytes: 64 << 20)
        let device = try pool.device(of: id)
        let bytes = [UInt8](repeating: 9, count: 1 << 20)
        for index in 0..<24 {
            try bytes.withUnsafeBytes { try device.write(at: UInt64(index) << 20, from: $0, durability: .cached) }
        }
        let slow = ScrubRequest(bytesPerSecond: 1 << 20)
        let started = try await node.call(.POST, "/v1/pool/scrub", slow)
        #expect(try await node.call(.POST, "/v1/pool/scrub", slow).failure?.code == "scrubRunning")
        while (node.services.scrubbing.info?.dataBlocks ?? 0) == 0 { try await Task.sleep(for: .milliseconds(20)) }
        #expect(try await node.call(.DELETE, "/v1/pool/scrub").status == 204)
        let ended = try await node.ended(started)
        let part = try #require(ended.result?.scrub)
        #expect(part.state == .cancelled && part.dataBlocks > 0 && part.dataBlocks < 24 * 256)
        try await node.end()
        node = try await TestNode.start(directory)
        #expect(node.services.scrubbing.info == part)
        let whole = try await node.ended(
            try await node.call(.POST, "/v1/pool/scrub", ScrubRequest(bytesPerSecond: 1 << 30)))
        #expect(whole.result?.scrub?.state == .finished)
        #expect(whole.result?.scrub?.dataBlocks == 24 * 256)
        #expect(try await node.call(.POST, "/v1/pool/scrub", ScrubRequest(bytesPerSecond: 1)).status == 400)
        try await node.end()
    }

    @Test("the soft threshold is told once when it is crossed, shown as an alert, and armed again below it")
    func softThreshold() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory) { $0.poolSoftThresholdPercent = 20 }
        let pool = node.services.inventory.pool
        let watch = node.services.watch
        #expect(try await watch.look() == false)
        let id = VolumeID.random()
        _ = try pool.createVolume(id: id, name: "v", sizeBytes: 512 << 20)
        let device = try pool.device(of: id)
        let bytes = [UInt8](repeating: 9, count: 1 << 20)
        for round in 1...2 {
            for index in 0..<UInt64(256) {
                try bytes.withUnsafeBytes { try device.write(at: index << 20, from: $0, durability: .cached) }
            }
            try await watch.look()
            try await watch.look()
            #expect(watch.crossings == UInt64(round))
            let info: PoolInfo = try await node.call(.GET, "/v1/pool").decode()
            #expect(info.alerts.map(\.kind) == ["softThreshold"])
            #expect(info.state == .healthy)
            try device.unmap(at: 0, lengthBytes: 256 << 20)
            for _ in 0..<3 { try pool.maintain() }
            try await watch.look()
            #expect((try await node.call(.GET, "/v1/pool").decode() as PoolInfo).alerts.isEmpty)
        }
        try await node.end()
    }

    @Test("a pool that failed stays read-only over a restart, is served for reading, and is let go after a sound check")
    func failureMark() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var node = try await TestNode.start(directory)
        let id = VolumeID.random()
        _ = try node.services.inventory.pool.createVolume(id: id, name: "v", sizeBytes: 1 << 20)
        let configuration = TestNode.configuration(directory)
        #expect(throws: ServeFailure.self) {
            try checkPool(configuration, verifiesData: true, clearsFailure: true)
        }
        try await node.end()
        try PoolFailureMark(reason: "syncing data failed", failedAt: .now).write(directory + "/data")
        node = try await TestNode.start(directory)
        let status: NodeStatus = try await node.call(.GET, "/v1/status").decode()
        #expect(status.pool.state == .readOnly)
        #expect(status.pool.failure?.contains("syncing data failed") == true)
        #expect(status.pool.alerts.first?.kind == "readOnly")
        let device = try node.services.inventory.pool.device(of: id)
        var bytes = [UInt8](repeating: 1, count: 4096)
        try bytes.withUnsafeMutableBytes { try device.read(at: 0, into: $0) }
        #expect(throws: BlockError.readOnly) {
            try bytes.withUnsafeBytes { try device.write(at: 0, from: $0, durability: .cached) }
        }
        let refused = try await node.call(.POST, "/v1/volumes", VolumeCreateRequest(name: "w", sizeBytes: 1 << 20))
        #expect(refused.failure?.code == "poolReadOnly")
        #expect(try await node.call(.GET, "/health").status == 503)
        try await node.end()
        #expect(try checkPool(configuration, verifiesData: true, clearsFailure: false).isSound)
        #expect(PoolFailureMark.read(directory + "/data") != nil)
        #expect(try checkPool(configuration, verifiesData: true, clearsFailure: true).isSound)
        node = try await TestNode.start(directory)
        #expect(node.services.inventory.pool.statistics.state == .healthy)
        try await node.end()
    }

    @Test("an offline check says what is wrong: a rotten superblock copy, a map, and what is no pool")
    func check() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        try await node.end()
        let configuration = TestNode.configuration(directory)
        let file = try #require(FileHandle(forUpdatingAtPath: directory + "/data/pool"))
        try file.seek(toOffset: 100)
        try file.write(contentsOf: [0xff, 0xfe])
        try file.close()
        let result = try checkPool(configuration, verifiesData: true, clearsFailure: true)
        #expect(!result.isSound)
        #expect(result.problems.count == 1 && result.problems[0].contains("superblock"))
        let other = directory + "/text"
        try Data("no pool at all".utf8).write(to: URL(filePath: other))
        let wrong = try checkPool(configuration, path: other, verifiesData: true, clearsFailure: false)
        #expect(wrong.problems.first?.contains("holds no pool") == true)
        #expect(throws: ServeFailure.self) {
            try checkPool(configuration, path: directory + "/nothing", verifiesData: true, clearsFailure: false)
        }
    }
}
