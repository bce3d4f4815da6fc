import API
import Foundation
import NIOHTTP1
import Synchronization
import Testing

@testable import BlockStore
@testable import Node

/// With 10,000 snapshots a list of all is tenths of a second: what concerns one must not need it.
@Suite("Verbs for one object")
struct SingleObjectTests {
    private static func expect(
        _ node: TestNode, _ method: HTTPMethod, _ path: String, _ body: (any Encodable & Sendable)? = nil
    )
        async throws
    {
        let answer = try await node.call(method, path, body)
        if answer.status == 202 {
            let job = try await node.ended(answer)
            #expect(job.state == .succeeded, "\(method) \(path): \(job)")
        } else {
            #expect(
                (200...299).contains(answer.status),
                "\(method) \(path): \(String(decoding: answer.body, as: UTF8.self))")
        }
    }

    /// Each verb that names what it is about, in an order in which all succeed.
    private static func everyVerb(_ node: TestNode, _ tag: String) async throws {
        let volume = "v\(tag)"
        let (first, second, clone) = ("s1\(tag)", "s2\(tag)", "c\(tag)")
        try await expect(node, .POST, "/v1/volumes", VolumeCreateRequest(name: volume, sizeBytes: 1 << 20))
        for name in [first, second] {
            try await expect(node, .POST, "/v1/snapshots", SnapshotCreateRequest(volumes: [volume], name: name))
        }
        try await expect(node, .GET, "/v1/volumes/\(volume)")
        try await expect(node, .GET, "/v1/volumes")
        try await expect(node, .GET, "/v1/snapshots/\(first)")
        try await expect(node, .GET, "/v1/snapshots?volume=\(volume)")
        try await expect(node, .POST, "/v1/space", SpaceRequest(snapshots: [first], volumes: [volume]))
        try await expect(node, .GET, "/v1/status")
        try await expect(
            node, .POST, "/v1/snapshots/\(first)/exports", SnapshotExportRequest(initiator: "iqn.2026-11.test:one"))
        try await expect(node, .DELETE, "/v1/snapshots/\(first)/exports")
        try await expect(node, .GET, "/v1/targets")
        try await expect(node, .POST, "/v1/clones", CloneRequest(snapshot: first, name: clone))
        try await expect(node, .GET, "/v1/clones")
        try await expect(node, .POST, "/v1/reverts", RevertRequest(volumes: [volume], snapshot: second))
        try await expect(node, .POST, "/v1/reverts", RevertRequest(volumes: [volume], snapshot: nil, undo: true))
        try await expect(node, .POST, "/v1/volumes/\(clone)/resize", VolumeResizeRequest(sizeBytes: 2 << 20))
        try await expect(node, .GET, "/v1/snapshots/\(second)/diff?from=\(first)")
        try await expect(node, .GET, "/v1/volumes/\(volume)/diff?from=\(first)")
        try await expect(node, .GET, "/v1/snapshots/\(first)/stream")
        try await expect(node, .POST, "/v1/clones/\(clone)/promote")
        try await expect(node, .POST, "/v1/clones/\(volume)/promote")
        try await expect(node, .DELETE, "/v1/clones/\(clone)")
        try await expect(node, .DELETE, "/v1/snapshots/\(second)")
        try await expect(node, .DELETE, "/v1/volumes/\(volume)?withSnapshots=true")
    }

    @Test("no verb that names what it is about lists all snapshots of the pool, and volumes count theirs right")
    func noListing() async throws {
        try await TestNode.with { node in
            let pool = node.services.inventory.pool
            try await Self.expect(node, .POST, "/v1/volumes", VolumeCreateRequest(name: "other", sizeBytes: 1 << 20))
            try await Self.expect(
                node, .POST, "/v1/snapshots", SnapshotCreateRequest(volumes: ["other"], name: "other"))
            let listings = { pool.core.listings.load(ordering: .relaxed) }
            // The start of the node, which looks at all of them, may go on beside the first round.
            var counts: [Int] = []
            for round in 0..<3 {
                let before = listings()
                try await Self.everyVerb(node, "\(round)")
                counts.append(listings() - before)
                if counts.last == 0 { break }
            }
            #expect(counts.contains(0), "\(counts)")
            // One that a saga still makes is not counted.
            let other = try #require(pool.volume(named: "other"))
            let pending = SnapshotAttributes(
                sagaID: "", state: .pending, requested: .crash, achieved: .crash, quietSeconds: 0, evidence: nil)
            _ = try PoolAdapter(pool: pool, pending: node.services.inventory.pending).cut(
                id: SnapshotID.random().description, name: "half", volumes: ["other"], attributes: try pending.bytes())
            #expect(pool.snapshotCount(of: other.id) == 2)
            let shown: VolumeInfo = try await node.call(.GET, "/v1/volumes/other").decode()
            let status: NodeStatus = try await node.call(.GET, "/v1/status").decode()
            #expect(shown.snapshotCount == 1 && status.snapshotCount == 1)
            let id = try #require(pool.snapshotID(named: "half"))
            var complete = pending
            complete.state = .complete
            try pool.setAttributes(of: id, try complete.bytes())
            let after: VolumeInfo = try await node.call(.GET, "/v1/volumes/other").decode()
            #expect(after.snapshotCount == 2)
        }
    }
}
