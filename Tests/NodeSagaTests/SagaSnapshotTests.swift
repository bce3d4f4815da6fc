import API
import BlockStore
import Catalog
import Foundation
import Protection
import Synchronization
import Testing

@testable import Node

@Suite("The snapshot saga over a real pool and a real journal")
struct SagaSnapshotTests {
    private func withWorld(_ volumes: [String] = ["v1"], _ body: (SagaWorld) async throws -> Void) async throws {
        let world = try SagaWorld(volumes: volumes)
        try await body(world)
        try await world.close()
    }

    private func request(
        _ volumes: [String] = ["v1"], _ consistency: Consistency = .application,
        _ policy: ConsistencyPolicy = .require
    ) -> SnapshotCreateRequest {
        SnapshotCreateRequest(
            volumes: volumes, name: "s1", consistency: consistency, policy: policy, leaseSeconds: 30)
    }

    @Test("an application-consistent snapshot carries the evidence of every member, in the pool")
    func applicationConsistent() async throws {
        try await withWorld { world in
            let report = RecordedReport()
            let info = try await world.process().snapshots.run(request: request(), report: report)
            #expect(info.achievedConsistency == .application)
            let evidence = try #require(try PoolAdapter(pool: world.pool).info(snapshot: info.id).evidence)
            #expect(evidence.members.map(\.plugin) == ["database", "filesystem"])
            for member in evidence.members {
                #expect(member.heldBeforeCut && member.releasedAfterCut && member.stillHeldAtRelease)
                #expect(member.quietSeconds > 0)
            }
            #expect(evidence.members[0].artifacts["backup_label"] == "START WAL")
            #expect(
                world.agents.log == [
                    "hold host1 database", "hold host1 filesystem", "release host1 filesystem",
                    "release host1 database",
                ])
            #expect(
                report.steps == [
                    "plan succeeded", "preflight succeeded", "quiesce.application succeeded",
                    "quiesce.fileSystem succeeded", "cut succeeded", "unquiesce.fileSystem succeeded",
                    "unquiesce.application succeeded", "evidence succeeded", "label succeeded",
                ])
        }
    }

    @Test("every step is in the journal, with its compensation, before the job hears of it")
    func journalled() async throws {
        try await withWorld { world in
            _ = try await world.process().snapshots.run(request: request(), report: RecordedReport())
            let rows = try await world.catalog.sagaRecords()
            #expect(
                rows.map(\.step) == [
                    "plan", "preflight", "quiesce.application", "quiesce.fileSystem", "cut", "unquiesce.fileSystem",
                    "unquiesce.application", "evidence", "label", "done",
                ])
            #expect(rows.map(\.sequence) == Array(0..<rows.count))
            #expect(rows.allSatisfy { !$0.compensation.isEmpty && $0.jobID == "job" })
        }
    }

    @Test("what an agent cannot look at any more refuses the level on what it had, again and again, and nowhere else")
    func unseen() async throws {
        try await withWorld(["v1", "v2"]) { world in
            world.agents.state.withLock { $0.names = ["host1", "host2"] }
            let process = world.process()
            _ = try await process.snapshots.run(request: request(["v1", "v2"]), report: RecordedReport())
            world.agents.state.withLock {
                $0.unseen["host1"] = [
                    UnseenInfo(plugin: "libvirt", layer: .machine, reason: "libvirt: no answer. Start it", scope: .any)
                ]
            }
            for _ in 1...2 {
                var again = request(["v1"])
                again.name = "s2"
                let failure = await #expect(throws: APIFailure.self) {
                    try await process.snapshots.run(request: again, report: RecordedReport())
                }
                #expect(failure?.code == "levelUnreachable")
                #expect(failure?.message.contains("libvirt: no answer. Start it") == true)
                let preview = try await process.snapshots.preview(again)
                #expect(preview.refusal?.contains("libvirt: no answer. Start it") == true)
                #expect(preview.attainableConsistency == .crash)
            }
            var other = request(["v2"])
            other.name = "s3"
            #expect(
                try await process.snapshots.run(request: other, report: RecordedReport()).achievedConsistency
                    == .application)
        }
    }

    /// A guest with two disks on two volumes, and the agent inside of it, as they answered.
    private func recordGuest(_ world: SagaWorld, serials: [String]) {
        let machine = "0b1c2d3e-0000-4000-8000-00000000abcd"
        let lines = zip(serials, ["v1", "v2"]).map { "vd\t\($0)\t\t\($1)" }.joined(separator: "\n")
        let host = ResourceInfo(
            plugin: "libvirt", layer: .machine, id: machine, label: "guest web", volumes: ["v1", "v2"],
            details: ["machine": machine, "guestDisks": lines, "state": "running"], level: .fileSystem)
        let inside = ["v1", "v2"].flatMap { volume in
            [
                ResourceInfo(
                    plugin: "database", layer: .application, id: volume, label: "database", volumes: [volume]),
                ResourceInfo(plugin: "filesystem", layer: .fileSystem, id: volume, label: "ext4", volumes: [volume]),
            ]
        }
        world.agents.state.withLock {
            $0.names = ["host1", "web"]
            $0.recorded["host1"] = DiscoverResponse(devices: [], resources: [host], warnings: [], machine: "bare")
            $0.recorded["web"] = DiscoverResponse(
                devices: ["v1", "v2"].map { DeviceInfo(volume: $0, naa: "", path: "/dev/vda", guest: machine) },
                resources: inside, warnings: [], machine: machine)
        }
    }

    @Test("an agent in a guest is told which of its disks are volumes, and comes to rest before the guest is frozen")
    func agentInGuest() async throws {
        try await withWorld(["v1", "v2"]) { world in
            recordGuest(world, serials: ["a", "b"])
            let process = world.process()
            let info = try await process.snapshots.run(request: request(["v1", "v2"]), report: RecordedReport())
            #expect(info.achievedConsistency == .application)
            let discovers = ["discover host1", "discover web", "discover web"]
            #expect(world.agents.log.prefix(3).sorted() == discovers)
            let holds = [
                "hold web database", "hold host1 libvirt", "release host1 libvirt", "release web database",
            ]
            #expect(Array(world.agents.log.dropFirst(3)) == holds)
            // Known by now: it is asked once.
            var again = request(["v1", "v2"])
            again.name = "s2"
            _ = try await process.snapshots.run(request: again, report: RecordedReport())
            #expect(Array(world.agents.log.dropFirst(7).prefix(2)).sorted() == Array(discovers.prefix(2)))
            #expect(Array(world.agents.log.dropFirst(9)) == holds)
        }
    }

    @Test("a disk that cannot be told in the guest refuses what an application on it would have a say in")
    func unrecognisable() async throws {
        try await withWorld(["v1", "v2"]) { world in
            recordGuest(world, serials: ["a", ""])
            let process = world.process()
            let failure = await #expect(throws: APIFailure.self) {
                try await process.snapshots.run(request: request(["v1", "v2"]), report: RecordedReport())
            }
            #expect(failure?.message.contains("--edit target=vd --disk serial=") == true)
            let info = try await process.snapshots.run(
                request: request(["v1", "v2"], .fileSystem), report: RecordedReport())
            #expect(info.achievedConsistency == .fileSystem)
        }
    }

    @Test("a crash-consistent snapshot asks no agent")
    func crashConsistent() async throws {
        try await withWorld { world in
            let info = try await world.process().snapshots.run(
                request: request(["v1"], .crash), report: RecordedReport())
            #expect(info.achievedConsistency == .crash)
            #expect(info.quietSeconds == 0)
            #expect(world.agents.log.isEmpty)
        }
    }

    @Test("a required level that a member cannot reach leaves no snapshot and nobody quiet")
    func required() async throws {
        try await withWorld { world in
            world.agents.state.withLock { $0.failsHold = ["filesystem"] }
            let failure = await #expect(throws: APIFailure.self) {
                try await world.process().snapshots.run(request: request(), report: RecordedReport())
            }
            #expect(failure?.code == "quiesceFailed")
            #expect(failure?.message.contains("ext4 on v1") == true)
            #expect(world.pool.snapshots().isEmpty)
            #expect(!world.agents.isQuiet)
        }
    }

    @Test("a hold that was lost unnoticed is found at release, and the required snapshot is deleted")
    func lostHold() async throws {
        try await withWorld { world in
            world.agents.state.withLock { $0.losesHold = ["database"] }
            let failure = await #expect(throws: APIFailure.self) {
                try await world.process().snapshots.run(request: request(), report: RecordedReport())
            }
            #expect(failure?.code == "notProven")
            #expect(world.pool.snapshots().isEmpty)
        }
    }

    @Test("where less is allowed, the snapshot says what was achieved and why it is less")
    func allowedLower() async throws {
        try await withWorld { world in
            world.agents.state.withLock { $0.losesHold = ["database"] }
            let info = try await world.process().snapshots.run(
                request: request(["v1"], .application, .allowLower), report: RecordedReport())
            #expect(info.achievedConsistency == .fileSystem)
            #expect(info.requestedConsistency == .application)
            #expect(info.evidence?.reasons.contains { $0.contains("database on v1") } == true)
        }
    }

    @Test("an agent that used the volume and does not answer now forbids the label before anything is touched")
    func silentAgent() async throws {
        try await withWorld { world in
            _ = try await world.process().snapshots.run(request: request(), report: RecordedReport())
            world.agents.state.withLock {
                $0.silent = ["host1"]
                $0.log = []
            }
            var second = request()
            second.name = "s2"
            let failure = await #expect(throws: APIFailure.self) {
                try await world.process().snapshots.run(request: second, report: RecordedReport())
            }
            #expect(failure?.code == "levelUnreachable")
            #expect(failure?.message.contains("host1") == true)
            #expect(world.agents.log.isEmpty)
        }
    }

    @Test("a preview names members, level and time as the snapshot then has them, and touches nothing")
    func preview() async throws {
        try await withWorld { world in
            let before = try await world.process().snapshots.preview(request())
            #expect(before.attainableConsistency == .application && before.refusal == nil)
            #expect(before.members.map(\.plugin) == ["database", "filesystem"])
            #expect(before.members.allSatisfy { $0.blockedBy == nil && $0.quiesceSeconds == nil })
            #expect(before.estimatedQuietSeconds > 0 && !before.isEstimateFromHistory)
            #expect(world.agents.log.isEmpty && world.pool.snapshots().isEmpty)
            #expect(try await world.catalog.sagaRecords().isEmpty)
            let journal = CatalogJournal(catalog: world.catalog)
            #expect(try await journal.lastKnownVolumes(ofAgent: "host1") == nil, "a preview records nothing")

            let info = try await world.process().snapshots.run(request: request(), report: RecordedReport())
            #expect(info.achievedConsistency == before.attainableConsistency && info.name == before.name)
            #expect(try await journal.lastKnownVolumes(ofAgent: "host1") == ["v1"])
            var second = request()
            second.name = "s2"
            let after = try await world.process().snapshots.preview(second)
            #expect(after.isEstimateFromHistory && after.members.allSatisfy { $0.quiesceSeconds != nil })
        }
    }

    @Test("a preview says why a snapshot would fail, and what is attainable where less is allowed")
    func refusedPreview() async throws {
        try await withWorld { world in
            _ = try await world.process().snapshots.run(request: request(), report: RecordedReport())
            world.agents.state.withLock { $0.silent = ["host1"] }
            var second = request()
            second.name = "s2"
            let refused = try await world.process().snapshots.preview(second)
            #expect(refused.refusal?.contains("host1") == true)
            #expect(refused.attainableConsistency == .crash)
            second.policy = .allowLower
            let lower = try await world.process().snapshots.preview(second)
            #expect(lower.refusal == nil && lower.reasons.count == 1)
            second.volumes = ["nope"]
            await #expect(throws: APIFailure.self) { try await world.process().snapshots.preview(second) }
        }
    }

    @Test("two volumes on two agents are cut once, and both members are proven")
    func twoAgents() async throws {
        try await withWorld(["v1", "v2"]) { world in
            world.agents.state.withLock { $0.names = ["host1", "host2"] }
            let info = try await world.process().snapshots.run(
                request: request(["v1", "v2"]), report: RecordedReport())
            #expect(info.achievedConsistency == .application)
            #expect(info.evidence?.members.count == 4)
            #expect(world.pool.snapshots().count == 1)
        }
    }

    @Test("killed right before or after any step, a restart finishes the snapshot or leaves nothing of it")
    func killedAtEachStep() async throws {
        let absent: Set<SagaStep> = [
            .quiesceMachine, .unquiesceMachine, .quiesceHostFileSystem, .unquiesceHostFileSystem,
        ]
        for step in SagaStep.allCases where !absent.contains(step) {
            for place in ["before", "after"] {
                let point = "\(step.rawValue).\(place)"
                try await withWorld { world in
                    if step == .delete { world.agents.state.withLock { $0.losesHold = ["database"] } }
                    let dying = world.process(crashAt: point)
                    await dying.die { try await $0.snapshots.run(request: request(), report: RecordedReport()) }
                    #expect(dying.life.isDead, "\(point) was never hit")
                    let recovered = await world.process().snapshots.recoverAfterRestart()
                    #expect(world.pending.isEmpty, "\(point)")
                    #expect(!world.agents.isQuiet, "\(point)")
                    #expect(recovered.count == 1, "\(point)")
                    guard let outcome = recovered.first?.outcome else { return }
                    switch outcome {
                    case .snapshot(let info):
                        #expect(info.achievedConsistency == .application, "\(point)")
                        #expect(world.pool.snapshots().count == 1, "\(point)")
                        #expect([.evidence, .label, .done].contains(step), "\(point)")
                    case .failed:
                        #expect(world.pool.snapshots().isEmpty, "\(point)")
                        #expect(![.label, .done].contains(step), "\(point)")
                    case .reverted: Issue.record("\(point): a snapshot became a revert")
                    }
                }
            }
        }
    }

    @Test("a pending snapshot that no saga owns is deleted at start")
    func orphan() async throws {
        try await withWorld { world in
            let attributes = SnapshotAttributes(
                sagaID: "gone", state: .pending, requested: .application, achieved: .crash, quietSeconds: 0,
                evidence: nil)
            _ = try PoolAdapter(pool: world.pool).cut(
                id: UUID().uuidString, name: "orphan", volumes: ["v1"], attributes: try attributes.bytes())
            _ = await world.process().snapshots.recoverAfterRestart()
            #expect(world.pool.snapshots().isEmpty)
        }
    }

    @Test("a cancelled job turns its saga back")
    func cancelled() async throws {
        try await withWorld { world in
            let driver = world.process().snapshots
            let reservations = driver.effects.reservations
            try await reservations.acquire(["v1"])
            let task = Task { try await driver.run(request: request(), report: RecordedReport()) }
            task.cancel()
            await reservations.release(["v1"])
            await #expect(throws: (any Error).self) { try await task.value }
            #expect(world.pool.snapshots().isEmpty)
            #expect(!world.agents.isQuiet)
        }
    }
}
