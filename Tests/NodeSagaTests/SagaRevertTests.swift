import API
import BlockStore
import Catalog
import Foundation
import Protection
import Synchronization
import Testing

@testable import Node

@Suite("The revert saga over a real pool and a real journal")
struct SagaRevertTests {
    /// A volume that held 1 when the snapshot `good` was taken, and holds 2 now.
    private func withWorld(_ body: (SagaWorld) async throws -> Void) async throws {
        let world = try SagaWorld()
        try world.write(1, to: "v1")
        let request = SnapshotCreateRequest(volumes: ["v1"], name: "good", consistency: .application)
        _ = try await world.process().snapshots.run(request: request, report: RecordedReport())
        for saga in Set(try await world.catalog.sagaRecords().map(\.sagaID)) {
            try await world.catalog.forgetSaga(id: saga)
        }
        try world.write(2, to: "v1")
        world.agents.state.withLock { $0.log = [] }
        try await body(world)
        try await world.close()
    }

    private func request(drive: Bool = false) -> RevertRequest {
        RevertRequest(volumes: ["v1"], snapshot: "good", drive: drive)
    }

    @Test("a revert brings the snapshot back and keeps what was there before; an undo brings that back")
    func revertAndUndo() async throws {
        try await withWorld { world in
            let result = try await world.process().reverts.run(request: request(), report: RecordedReport())
            #expect(try world.read("v1") == 1)
            #expect(world.pool.snapshots().contains { $0.id.description == result.keptSnapshot })
            #expect(world.target.blocked.isEmpty && world.target.reverted.count == 1)
            let undo = RevertRequest(volumes: ["v1"], snapshot: nil, undo: true)
            _ = try await world.process().reverts.run(request: undo, report: RecordedReport())
            #expect(try world.read("v1") == 2)
        }
    }

    @Test("a revert is refused while an initiator has a session, and names it")
    func inUse() async throws {
        try await withWorld { world in
            let session = SagaSession(initiator: "iqn.2026-11.example:db1", address: "192.0.2.7:40000")
            world.target.state.withLock { $0.sessions = [session] }
            let failure = await #expect(throws: APIFailure.self) {
                try await world.process().reverts.run(request: request(), report: RecordedReport())
            }
            #expect(failure?.code == "volumeInUse")
            #expect(failure?.message.contains(session.initiator) == true)
            let content = try world.read("v1")
            #expect(content == 2)
            #expect(world.target.blocked.isEmpty)
        }
    }

    @Test("a driven revert stops what uses the volume, swaps, and brings it back with the snapshot's artifacts")
    func driven() async throws {
        try await withWorld { world in
            // The session of the host whose agent has just said that nothing uses the volume.
            world.target.state.withLock { $0.sessions = [SagaSession(initiator: "iqn.a", address: "127.0.0.1:5")] }
            let report = RecordedReport()
            _ = try await world.process().reverts.run(request: request(drive: true), report: report)
            #expect(world.agents.log == ["prepare host1", "finish host1"])
            #expect(try world.read("v1") == 1)
            #expect(world.agents.finishArtifacts == ["database/db": ["backup_label": "START WAL"]])
        }
    }

    @Test("a driven revert is refused while another initiator of the same host has a session")
    func anotherInitiatorOfTheHost() async throws {
        try await withWorld { world in
            let other = SagaSession(initiator: "iqn.other", address: "127.0.0.1:6")
            world.target.state.withLock {
                $0.sessions = [SagaSession(initiator: "iqn.a", address: "127.0.0.1:5"), other]
            }
            let failure = await #expect(throws: APIFailure.self) {
                try await world.process().reverts.run(request: request(drive: true), report: RecordedReport())
            }
            #expect(failure?.code == "volumeInUse")
            #expect(failure?.message.contains("iqn.other") == true)
            let content = try world.read("v1")
            #expect(content == 2)
            #expect(world.agents.log == ["prepare host1", "finish host1"], "what was stopped is brought back")
        }
    }

    @Test("a dry run changes nothing")
    func dryRun() async throws {
        try await withWorld { world in
            var rehearsal = request(drive: true)
            rehearsal.dryRun = true
            let result = try await world.process().reverts.run(request: rehearsal, report: RecordedReport())
            #expect(result.keptSnapshot == nil)
            #expect(try world.read("v1") == 2)
            #expect(world.agents.log.isEmpty)
            #expect(try await world.catalog.sagaRecords().isEmpty)
        }
    }

    @Test("killed right before or after any step, a restart ends with the old or the new state, and nothing stopped")
    func killedAtEachStep() async throws {
        for step in RevertStep.allCases where step != .check && step != .attention && step != .unblock {
            for place in ["before", "after"] {
                let point = "\(step.rawValue).\(place)"
                try await withWorld { world in
                    let dying = world.process(crashAt: point)
                    await dying.die {
                        try await $0.reverts.run(request: request(drive: true), report: RecordedReport())
                    }
                    #expect(dying.life.isDead, "\(point) was never hit")
                    let recovered = await world.process().reverts.recoverAfterRestart()
                    #expect(world.agents.stopped.isEmpty, "\(point)")
                    let isReverted = try world.read("v1") == 1
                    switch recovered.first?.outcome {
                    case .reverted: #expect(isReverted, "\(point)")
                    case .failed: #expect(!isReverted, "\(point)")
                    default: Issue.record("\(point): \(recovered)")
                    }
                }
            }
        }
    }
}

@Suite("Reservations of volumes")
struct VolumeReservationTests {
    @Test("who shares no volume does not wait, who shares one does, in order")
    func order() async throws {
        let reservations = VolumeReservations()
        try await reservations.acquire(["a", "b"])
        try await reservations.acquire(["c"])
        let waiter = Task { try await reservations.acquire(["b"]) }
        while await reservations.waiterCount == 0 { await Task.yield() }
        let later = Task { try await reservations.acquire(["b", "d"]) }
        while await reservations.waiterCount < 2 { await Task.yield() }
        await reservations.release(["a", "b"])
        try await waiter.value
        #expect(await reservations.waiterCount == 1)
        await reservations.release(["b"])
        try await later.value
    }

    @Test("a waiter that is cancelled leaves the queue")
    func cancelled() async throws {
        let reservations = VolumeReservations()
        try await reservations.acquire(["a"])
        let waiter = Task { try await reservations.acquire(["a"]) }
        while await reservations.waiterCount == 0 { await Task.yield() }
        waiter.cancel()
        await #expect(throws: CancellationError.self) { try await waiter.value }
        #expect(await reservations.waiterCount == 0)
    }
}
