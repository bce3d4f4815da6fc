import API
import BlockIO
import BlockStore
import Catalog
import Foundation
import ISCSI
import NIOHTTP1
import Testing

@testable import Node

@Suite("Inventory")
struct InventoryTests {
    private static func make(_ node: TestNode, _ name: String, export: Bool? = nil) async throws -> VolumeInfo {
        let answer = try await node.call(
            .POST, "/v1/volumes", VolumeCreateRequest(name: name, sizeBytes: 1 << 20, export: export))
        try #require(answer.status == 201, "\(String(decoding: answer.body, as: UTF8.self))")
        return try answer.decode()
    }

    private static func snap(_ node: TestNode, _ volumes: [String], _ name: String) async throws -> SnapshotInfo {
        let job = try await node.ended(
            try await node.call(.POST, "/v1/snapshots", SnapshotCreateRequest(volumes: volumes, name: name)))
        return try #require(job.result?.snapshot, "\(job)")
    }

    // MARK: Volumes

    @Test("a new volume is LUN 0 of a closed target of its own, whose name is a legal IQN")
    func volumeIsExported() async throws {
        try await TestNode.with { node in
            let volume = try await Self.make(node, "DB_1@x")
            #expect(volume.exports.map(\.iqn) == ["iqn.2026-11.io.stillpoint:db-1-x"])
            #expect(volume.exports.map(\.lun) == [0])
            #expect(volume.naa.count == 32 && volume.naa.first == "6")
            let target: TargetInfo = try await node.call(.GET, "/v1/targets/\(volume.exports[0].iqn)").decode()
            #expect(target.access.isEmpty && target.luns.map(\.volume) == ["DB_1@x"])
            #expect(target.portals == [node.services.addresses.iscsi])
        }
    }

    @Test("two names that make the same IQN get different targets")
    func collidingNames() async throws {
        try await TestNode.with { node in
            let first = try await Self.make(node, "a_b")
            let second = try await Self.make(node, "a-b")
            #expect(first.exports[0].iqn != second.exports[0].iqn)
        }
    }

    @Test("a volume without export has no target")
    func unexported() async throws {
        try await TestNode.with { node in
            let volume = try await Self.make(node, "a", export: false)
            let targets: [TargetInfo] = try await node.call(.GET, "/v1/targets").decode()
            #expect(volume.exports.isEmpty && targets.isEmpty)
        }
    }

    @Test("a name is taken once: of many creations at once one succeeds, and no target is left over")
    func duplicateNames() async throws {
        try await TestNode.with { node in
            let statuses = try await withThrowingTaskGroup(of: Int.self) { group in
                for _ in 0..<8 {
                    group.addTask {
                        try await node.call(.POST, "/v1/volumes", VolumeCreateRequest(name: "a", sizeBytes: 4096))
                            .status
                    }
                }
                return try await group.reduce(into: []) { $0.append($1) }
            }
            #expect(statuses.sorted() == [201] + Array(repeating: 409, count: 7))
            #expect(try await node.call(.GET, "/v1/targets").decode([TargetInfo].self).count == 1)
        }
    }

    @Test("a volume grows, and does not shrink")
    func resize() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            let grown = try await node.call(.POST, "/v1/volumes/a/resize", VolumeResizeRequest(sizeBytes: 2 << 20))
            #expect(try grown.decode(VolumeInfo.self).sizeBytes == 2 << 20)
            let shrunk = try await node.call(.POST, "/v1/volumes/a/resize", VolumeResizeRequest(sizeBytes: 1 << 20))
            #expect(shrunk.failure?.code == "shrinkRefused")
            let unknown = try await node.call(.POST, "/v1/volumes/b/resize", VolumeResizeRequest(sizeBytes: 1 << 20))
            #expect(unknown.failure?.code == "volumeNotFound")
        }
    }

    // MARK: Snapshots

    @Test("a listed snapshot has the fields that scripts stand on; a shown one adds evidence")
    func snapshotContract() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            let snapshot = try await Self.snap(node, ["a"], "s")
            let list = try JSONSerialization.jsonObject(
                with: try await node.call(.GET, "/v1/snapshots?volume=a").body)
            let first = try #require((list as? [[String: Any]])?.first)
            for field in [
                "id", "name", "volumes", "createdAt", "requestedConsistency", "achievedConsistency", "quietSeconds",
            ] { #expect(first[field] != nil, "\(field)") }
            #expect(first["evidence"] == nil)
            let shown: SnapshotInfo = try await node.call(.GET, "/v1/snapshots/\(snapshot.id)").decode()
            #expect(shown.evidence?.achieved == .crash)
            #expect(try await node.call(.GET, "/v1/snapshots/s").decode(SnapshotInfo.self) == shown)
            let again = try await node.call(.POST, "/v1/snapshots", SnapshotCreateRequest(volumes: ["a"], name: "s"))
            #expect(again.failure?.code == "nameTaken")
        }
    }

    @Test("a pending snapshot is shown nowhere")
    func pendingIsInvisible() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            let pool = node.services.inventory.pool
            let volume = try #require(pool.volumes().first)
            let attributes = SnapshotAttributes(
                sagaID: "x", state: .pending, requested: .application, achieved: .crash, quietSeconds: 0, evidence: nil)
            let record = try pool.createSnapshot(
                id: .random(), name: "pending", volumes: [volume.id], attributes: try attributes.bytes())
            #expect(try await node.call(.GET, "/v1/snapshots").decode([SnapshotInfo].self).isEmpty)
            for key in ["pending", record.id.description] {
                #expect(try await node.call(.GET, "/v1/snapshots/\(key)").status == 404)
                #expect(try await node.call(.DELETE, "/v1/snapshots/\(key)").status == 404)
            }
            #expect(try await node.call(.GET, "/v1/volumes/a").decode(VolumeInfo.self).snapshotCount == 0)
        }
    }

    @Test("a volume with snapshots goes only together with them, and never takes another volume's along")
    func deletion() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            _ = try await Self.make(node, "b")
            _ = try await Self.snap(node, ["a"], "own")
            _ = try await Self.snap(node, ["a", "b"], "group")
            #expect(try await node.call(.DELETE, "/v1/volumes/a").failure?.code == "volumeHasSnapshots")
            let shared = try await node.call(.DELETE, "/v1/volumes/a?withSnapshots=true")
            #expect(shared.failure?.code == "snapshotShared")
            #expect(try await node.call(.GET, "/v1/snapshots").decode([SnapshotInfo].self).count == 2)
            #expect(try await node.call(.DELETE, "/v1/snapshots/group").status == 204)
            #expect(try await node.call(.DELETE, "/v1/volumes/a?withSnapshots=true").status == 204)
            #expect(try await node.call(.GET, "/v1/volumes").decode([VolumeInfo].self).map(\.name) == ["b"])
            #expect(try await node.call(.GET, "/v1/targets").decode([TargetInfo].self).count == 1)
            #expect(try await node.call(.DELETE, "/v1/volumes/a").failure?.code == "volumeNotFound")
        }
    }

    @Test("a clone has an identity of its own and keeps its snapshot from being deleted")
    func clones() async throws {
        try await TestNode.with { node in
            let volume = try await Self.make(node, "a")
            _ = try await Self.snap(node, ["a"], "s")
            let answer = try await node.call(.POST, "/v1/clones", CloneRequest(snapshot: "s", name: "c"))
            let clone: VolumeInfo = try answer.decode()
            #expect(answer.status == 201 && clone.cloneOf == "s" && clone.naa != volume.naa)
            #expect(try await node.call(.GET, "/v1/clones").decode([VolumeInfo].self).map(\.name) == ["c"])
            let refused = try await node.call(.DELETE, "/v1/snapshots/s")
            #expect(refused.failure?.code == "snapshotHasClones" && refused.failure?.message.contains("c") == true)
            #expect(try await node.call(.DELETE, "/v1/clones/a").failure?.code == "cloneNotFound")
            #expect(try await node.call(.DELETE, "/v1/clones/c").status == 204)
            #expect(try await node.call(.DELETE, "/v1/snapshots/s").status == 204)
        }
    }

    @Test("a snapshot is exported read-only to one initiator, and the export goes with the snapshot")
    func exports() async throws {
        try await TestNode.with { node in
            let volume = try await Self.make(node, "a")
            _ = try await Self.snap(node, ["a"], "s")
            let request = SnapshotExportRequest(initiator: "IQN.1993-08.org.debian:01:abc")
            let answer = try await node.call(.POST, "/v1/snapshots/s/exports", request)
            let export: ExportInfo = try answer.decode()
            let target: TargetInfo = try await node.call(.GET, "/v1/targets/\(export.iqn)").decode()
            #expect(target.luns.map(\.isReadOnly) == [true])
            #expect(target.luns[0].naa != volume.naa)
            #expect(target.access.map(\.initiator) == ["iqn.1993-08.org.debian:01:abc"])
            let other = try await node.call(
                .POST, "/v1/targets/\(export.iqn)/allow", TargetAllowRequest(initiator: "any"))
            #expect(other.failure?.code == "exportIsPrivate")
            let any = try await node.call(
                .POST, "/v1/snapshots/s/exports", SnapshotExportRequest(initiator: "any"))
            #expect(any.status == 400)
            #expect(try await node.call(.GET, "/v1/volumes/a").decode(VolumeInfo.self).exports.count == 1)
            #expect(try await node.call(.DELETE, "/v1/snapshots/s").status == 204)
            #expect(try await node.call(.GET, "/v1/targets/\(export.iqn)").status == 404)
        }
    }

    @Test(
        "a snapshot's export may ask for CHAP, whose secret is neither shown nor kept readable, and outlives a restart")
    func exportWithCHAP() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            _ = try await Self.snap(node, ["a"], "s")
            let half = SnapshotExportRequest(initiator: "iqn.x:y", chapUser: "reader")
            #expect(try await node.call(.POST, "/v1/snapshots/s/exports", half).status == 400)
            let short = SnapshotExportRequest(initiator: "iqn.x:y", chapUser: "reader", chapSecret: "short")
            let refused = try await node.call(.POST, "/v1/snapshots/s/exports", short)
            #expect(refused.status == 400 && refused.failure?.message.contains("12 to 255 bytes") == true)
            let request = SnapshotExportRequest(
                initiator: "iqn.x:y", chapUser: "reader", chapSecret: "a secret of some length")
            let export: ExportInfo = try await node.call(.POST, "/v1/snapshots/s/exports", request).decode()
            let target: TargetInfo = try await node.call(.GET, "/v1/targets/\(export.iqn)").decode()
            #expect(target.access == [AccessInfo(initiator: "iqn.x:y", chapUser: "reader", isMutual: false)])
            let inventory = node.services.inventory
            let kept = try await inventory.exportedTarget(export.iqn)
            let sealed = try #require(kept.access.first?.sealedSecret)
            #expect(!String(decoding: sealed, as: UTF8.self).contains("secret"))
            // What a restart does with it.
            try inventory.registry.removeTarget(export.iqn)
            try await inventory.serve(kept)
            #expect(try inventory.secrets.open(sealed, context: "\(export.iqn)/iqn.x:y") == request.chapSecret)
        }
    }

    @Test("removing one export leaves the others")
    func removingExports() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            _ = try await Self.snap(node, ["a"], "s")
            var iqns: [String] = []
            for _ in 0..<3 {
                let answer = try await node.call(
                    .POST, "/v1/snapshots/s/exports", SnapshotExportRequest(initiator: "iqn.x:y"))
                iqns.append(try answer.decode(ExportInfo.self).iqn)
            }
            #expect(try await node.call(.DELETE, "/v1/snapshots/s/exports?iqn=\(iqns[0])").status == 204)
            var left = try await node.call(.GET, "/v1/targets").decode([TargetInfo].self).map(\.iqn)
            #expect(!left.contains(iqns[0]) && left.contains(iqns[1]) && left.contains(iqns[2]))
            #expect(try await node.call(.DELETE, "/v1/snapshots/s/exports").status == 204)
            left = try await node.call(.GET, "/v1/targets").decode([TargetInfo].self).map(\.iqn)
            #expect(left == ["iqn.2026-11.io.stillpoint:a"])
        }
    }

    @Test("an export that nobody used for an hour is removed, a younger one is not")
    func idleExports() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            _ = try await Self.snap(node, ["a"], "s")
            let request = SnapshotExportRequest(initiator: "iqn.x:y")
            let export: ExportInfo = try await node.call(.POST, "/v1/snapshots/s/exports", request).decode()
            let inventory = node.services.inventory
            let limit = Inventory.exportIdleSeconds
            try await inventory.removeIdleExports(startedAt: .distantPast, now: .now.addingTimeInterval(limit - 60))
            #expect(try await node.call(.GET, "/v1/targets/\(export.iqn)").status == 200)
            let late = Date.now.addingTimeInterval(limit + 60)
            try await inventory.removeIdleExports(startedAt: late, now: late)
            #expect(try await node.call(.GET, "/v1/targets/\(export.iqn)").status == 200)
            try await inventory.removeIdleExports(startedAt: .distantPast, now: late)
            #expect(try await node.call(.GET, "/v1/targets/\(export.iqn)").status == 404)
            #expect(try await node.call(.GET, "/v1/targets").decode([TargetInfo].self).count == 1)
        }
    }

    @Test("a revert brings the data back and keeps what was there; undo brings that back")
    func revertAndUndo() async throws {
        try await TestNode.with { node in
            let volume = try await Self.make(node, "a")
            let pool = node.services.inventory.pool
            let device = try pool.device(of: try #require(VolumeID(volume.id)))
            func fill(_ byte: UInt8) throws {
                let block = [UInt8](repeating: byte, count: 4096)
                try block.withUnsafeBytes { try device.write(at: 0, from: $0, durability: .durable) }
            }
            func first() throws -> UInt8 {
                var block = [UInt8](repeating: 0, count: 4096)
                try block.withUnsafeMutableBytes { try device.read(at: 0, into: $0) }
                return block[0]
            }
            try fill(1)
            _ = try await Self.snap(node, ["a"], "s")
            try fill(2)
            var job = try await node.ended(
                try await node.call(.POST, "/v1/reverts", RevertRequest(volumes: ["a"], snapshot: "s")))
            #expect(job.state == .succeeded, "\(job)")
            #expect(try first() == 1)
            let kept = try #require(job.result?.revert?.keptSnapshot)
            let snapshot: SnapshotInfo = try await node.call(.GET, "/v1/snapshots/\(kept)").decode()
            #expect(snapshot.kind == .beforeRevert)
            job = try await node.ended(
                try await node.call(.POST, "/v1/reverts", RevertRequest(volumes: ["a"], snapshot: nil, undo: true)))
            #expect(job.state == .succeeded, "\(job)")
            #expect(try first() == 2)
            #expect(try await node.call(.GET, "/v1/volumes/a").decode(VolumeInfo.self).naa == volume.naa)
        }
    }

    // MARK: Access

    @Test("rules are kept over a restart, secrets sealed; a denied initiator is gone")
    func accessSurvivesRestart() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let iqn = "iqn.2026-11.io.stillpoint:a"
        let first = try await TestNode.start(directory)
        _ = try await Self.make(first, "a")
        let allow = TargetAllowRequest(initiator: "iqn.x:Y", chapUser: "u", chapSecret: "twelve-bytes!")
        #expect(try await first.call(.POST, "/v1/targets/\(iqn)/allow", allow).status == 200)
        #expect(
            try await first.call(.POST, "/v1/targets/\(iqn)/allow", TargetAllowRequest(initiator: "any")).status == 200)
        #expect(
            try await first.call(.POST, "/v1/targets/\(iqn)/deny", TargetDenyRequest(initiator: "any")).status == 200)
        let unknown = try await first.call(.POST, "/v1/targets/\(iqn)/deny", TargetDenyRequest(initiator: "any"))
        #expect(unknown.failure?.code == "ruleNotFound")
        try await first.end()

        let catalog = try Data(contentsOf: URL(fileURLWithPath: directory + "/data/catalog.sqlite"))
        #expect(catalog.range(of: Data("twelve-bytes!".utf8)) == nil)
        let second = try await TestNode.start(directory)
        let target: TargetInfo = try await second.call(.GET, "/v1/targets/\(iqn)").decode()
        #expect(target.access == [AccessInfo(initiator: "iqn.x:y", chapUser: "u", isMutual: false)])
        let rules = second.services.inventory.registry.targets().first { $0.iqn == iqn }?.rules
        #expect(rules?.map(\.requiresCHAP) == [true])
        try await second.end()
    }

    @Test("a rule whose secret cannot be opened stays closed; the node starts all the same")
    func lostSecretStaysClosed() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let iqn = "iqn.2026-11.io.stillpoint:a"
        let first = try await TestNode.start(directory)
        _ = try await Self.make(first, "a")
        let allow = TargetAllowRequest(initiator: "iqn.x:y", chapUser: "u", chapSecret: "twelve-bytes!")
        #expect(try await first.call(.POST, "/v1/targets/\(iqn)/allow", allow).status == 200)
        try await first.end()
        try FileManager.default.removeItem(atPath: directory + "/data/pki/secrets.key")
        let second = try await TestNode.start(directory)
        #expect(second.services.inventory.registry.targets().first { $0.iqn == iqn }?.rules.isEmpty == true)
        try await second.end()
    }

    // MARK: After a crash

    @Test("a target whose volume was never made, or is gone, is removed at the start; the others are served")
    func reconciliation() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let first = try await TestNode.start(directory)
        let kept = try await Self.make(first, "kept")
        let gone = try await Self.make(first, "gone")
        _ = try await Self.snap(first, ["kept"], "s")
        let export: ExportInfo = try await first.call(
            .POST, "/v1/snapshots/s/exports", SnapshotExportRequest(initiator: "iqn.x:y")
        ).decode()
        // A crash between catalog and pool at a creation, and between pool and catalog at two deletions.
        let catalog = first.services.inventory.catalog
        try await catalog.insertTarget(
            ExportedTarget(
                iqn: "iqn.2026-11.io.stillpoint:never", purpose: .volume, createdAt: .now,
                luns: [ExportedLUN(lun: 0, volumeID: VolumeID.random().description)]))
        let pool = first.services.inventory.pool
        try pool.deleteVolume(try #require(VolumeID(gone.id)))
        try pool.deleteSnapshot(try #require(pool.snapshots().first?.id))
        try await first.end()

        let second = try await TestNode.start(directory)
        let served = second.services.inventory.registry.targets().map(\.iqn)
        #expect(served == kept.exports.map(\.iqn))
        #expect(try await second.call(.GET, "/v1/targets").decode([TargetInfo].self).map(\.iqn) == served)
        #expect(try await second.call(.GET, "/v1/targets/\(export.iqn)").status == 404)
        let again = try await second.call(.POST, "/v1/volumes", VolumeCreateRequest(name: "never", sizeBytes: 4096))
        #expect(again.status == 201)
        try await second.end()
    }

    // MARK: Metrics

    @Test("the metrics are well-formed, and name pool, volumes, targets, jobs and the last quiet time")
    func metrics() async throws {
        try await TestNode.with { node in
            _ = try await Self.make(node, "a")
            _ = try await Self.snap(node, ["a"], "s")
            let answer = try await node.call(.GET, "/metrics", authorization: nil)
            #expect(answer.headers["content-type"] == [MetricsText.contentType])
            let text = String(decoding: answer.body, as: UTF8.self)
            var families: Set<String> = []
            for line in text.split(separator: "\n") {
                if line.hasPrefix("# ") {
                    families.insert(String(line.split(separator: " ")[2]))
                } else {
                    let match = try #require(line.wholeMatch(of: /([a-z_]+)(\{.*\})? (-?[0-9.e+-]+)/), "\(line)")
                    // A histogram has three kinds of samples.
                    let family = String(match.1).replacing(/_(bucket|sum|count)$/, with: "")
                    #expect(families.contains(family) || families.contains(String(match.1)), "\(line)")
                }
            }
            for name in [
                "stillpoint_pool_used_bytes", "stillpoint_volume_mapped_bytes", "stillpoint_target_sessions",
                "stillpoint_jobs_total", "stillpoint_volume_last_snapshot_quiet_seconds",
            ] { #expect(families.contains(name), "\(name)") }
            #expect(text.contains("stillpoint_jobs_total{outcome=\"succeeded\"} 1"))
        }
    }

    @Test("a label's quotes, backslashes and line ends are escaped")
    func metricLabels() {
        var metrics = MetricsText()
        metrics.add("x", .gauge, "h", [.init(1.5, [("l", "a\"b\\c\nd")])])
        #expect(metrics.text.hasSuffix("x{l=\"a\\\"b\\\\c\\nd\"} 1.5\n"))
    }
}
