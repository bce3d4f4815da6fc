import API
import BlockIO
import BlockStore
import Foundation
import NIOHTTP1
import Testing

@testable import Node

/// Space, promotion, differences over REST.
@Suite("History")
struct HistoryTests {
    static func make(_ node: TestNode, _ name: String, sizeBytes: UInt64 = 16 << 20) async throws -> VolumeInfo {
        let answer = try await node.call(
            .POST, "/v1/volumes", VolumeCreateRequest(name: name, sizeBytes: sizeBytes, export: false))
        try #require(answer.status == 201, "\(String(decoding: answer.body, as: UTF8.self))")
        return try answer.decode()
    }

    static func snap(_ node: TestNode, _ volumes: [String], _ name: String) async throws -> SnapshotInfo {
        let job = try await node.ended(
            try await node.call(.POST, "/v1/snapshots", SnapshotCreateRequest(volumes: volumes, name: name)))
        return try #require(job.result?.snapshot, "\(job)")
    }

    /// Writes blocks that differ from `tag` to `tag`.
    static func write(_ node: TestNode, _ volume: String, _ blocks: Range<UInt64>, tag: UInt64) throws {
        let pool = node.services.inventory.pool
        let device = try pool.device(of: pool.volumes().first { $0.name == volume }!.id)
        for block in blocks {
            let bytes = (0..<4096).map { UInt8(truncatingIfNeeded: UInt64($0) &* 31 ^ block ^ tag &* 167 | 1) }
            try bytes.withUnsafeBytes { try device.write(at: block * 4096, from: $0, durability: .cached) }
        }
    }

    @Test("what snapshots hold is told for one, for several, in lists and for the volume")
    func space() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            try Self.write(node, "a", 0..<100, tag: 1)
            _ = try await Self.snap(node, ["a"], "s1")
            try Self.write(node, "a", 0..<10, tag: 2)
            _ = try await Self.snap(node, ["a"], "s2")
            try Self.write(node, "a", 10..<40, tag: 3)

            let one: SpaceInfo = try await node.call(.POST, "/v1/space", SpaceRequest(snapshots: ["s1"])).decode()
            let both: SpaceInfo = try await node.call(.POST, "/v1/space", SpaceRequest(snapshots: ["s1", "s2"]))
                .decode()
            #expect(one.freedBytes >= 10 * 4096 && one.freedBytes < 20 * 4096 && one.freedBytes == one.exclusiveBytes)
            #expect(both.freedBytes >= 40 * 4096 && both.freedBytes < 60 * 4096)
            #expect(try await node.call(.GET, "/v1/snapshots/s1").decode(SnapshotInfo.self).space == one)
            #expect(try await node.call(.GET, "/v1/snapshots").decode([SnapshotInfo].self)[0].space == nil)
            let listed: [SnapshotInfo] = try await node.call(.GET, "/v1/snapshots?space=true&volume=a").decode()
            #expect(listed[0].space == one && listed[1].space?.freedBytes ?? .max < 10 * 4096)
            let volume = try #require(
                try await node.call(.GET, "/v1/volumes/a").decode(VolumeInfo.self).space)
            #expect(volume.headBytes >= 30 * 4096 && volume.snapshotBytes == both.freedBytes)
            #expect(volume.totalBytes >= 140 * 4096)

            let unknown = try await node.call(.POST, "/v1/space", SpaceRequest(snapshots: ["x"]))
            #expect(unknown.failure?.code == "snapshotNotFound")
            #expect(try await node.call(.POST, "/v1/space", SpaceRequest(snapshots: [])).status == 400)
        }
    }

    @Test("a promoted clone owns the snapshot, its former owner can be deleted, and an export keeps it from happening")
    func promote() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            try Self.write(node, "a", 0..<4, tag: 1)
            _ = try await Self.snap(node, ["a"], "s")
            _ = try await node.call(.POST, "/v1/clones", CloneRequest(snapshot: "s", name: "c"))
            let refused = try await node.call(.DELETE, "/v1/snapshots/s")
            #expect(refused.failure?.hint?.contains("clone promote c") == true)
            #expect(try await node.call(.POST, "/v1/clones/a/promote").failure?.code == "cloneNotFound")

            let export = SnapshotExportRequest(initiator: "iqn.1993-08.org.debian:01:abc")
            _ = try await node.call(.POST, "/v1/snapshots/s/exports", export)
            #expect(try await node.call(.POST, "/v1/clones/c/promote").failure?.code == "snapshotInUse")
            _ = try await node.call(.DELETE, "/v1/snapshots/s/exports")

            let result: PromoteResult = try await node.call(.POST, "/v1/clones/c/promote").decode()
            #expect(result.snapshots == ["s"] && result.formerOwner == "a" && result.volume.cloneOf == nil)
            #expect(try await node.call(.GET, "/v1/snapshots/s").decode(SnapshotInfo.self).volumes == ["c"])
            #expect(try await node.call(.GET, "/v1/clones").decode([VolumeInfo].self).map(\.name) == ["a"])
            #expect(try await node.call(.DELETE, "/v1/volumes/a").status == 204)
            #expect(try await node.call(.DELETE, "/v1/snapshots/s").status == 204)
        }
    }
}
