import API
import Catalog
import Foundation
import Logging
import Synchronization
import Testing

@testable import Node

@Suite("What agents have not brought back after a revert")
struct RestoreBacklogTests {
    private static let restore = UnfinishedRestore(
        agent: "host1",
        request: RestoreRequest(
            restoreID: "r1", volumes: [VolumeReference(name: "v1", naa: "naa")], artifacts: ["p/r": ["a": "b"]]),
        since: Date(timeIntervalSince1970: 1_700_000_000))

    private struct Stage {
        let world: SagaWorld
        let jobs: JobEngine
        let backlog: RestoreBacklog

        init(_ world: SagaWorld) {
            self.world = world
            let logger = Logger(label: "backlog") { _ in SwiftLogNoOpLogHandler() }
            let effects = world.process().effects
            jobs = JobEngine(catalog: world.catalog, logger: logger)
            backlog = RestoreBacklog(
                journal: effects.journal, agents: effects.agents, jobs: jobs, logger: logger,
                pauseSeconds: 0.01...0.05)
        }

        func job() async throws -> JobInfo { try #require(try await jobs.jobs(limit: 10).first) }

        func ended() async throws -> JobInfo {
            while try await !job().state.isEnded { try await Task.sleep(for: .milliseconds(5)) }
            return try await job()
        }
    }

    private func withStage(_ body: (Stage) async throws -> Void) async throws {
        let stage = Stage(try SagaWorld())
        stage.world.agents.state.withLock { $0.failsFinish = ["host1"] }
        try await CatalogJournal(catalog: stage.world.catalog).keep(Self.restore)
        try await body(stage)
        await stage.jobs.shutdown(graceSeconds: 0)
        try await stage.world.close()
    }

    private func attempts(_ stage: Stage) -> Int { stage.world.agents.log.count { $0 == "finish host1" } }

    @Test("a job keeps trying until the agent has done it, and says why it has not yet")
    func keepsTrying() async throws {
        try await withStage { stage in
            await stage.backlog.resume()
            // A second look begins no second job.
            await stage.backlog.resume()
            while attempts(stage) < 5 { try await Task.sleep(for: .milliseconds(5)) }
            let running = try await stage.job()
            #expect(running.kind == "restore.finish" && running.subject == "v1 on agent host1")
            #expect(try await stage.jobs.jobs(limit: 10).count == 1)
            #expect(running.steps.last?.detail?.contains("the mount point is gone") == true)
            stage.world.agents.state.withLock { $0.failsFinish = [] }
            #expect(try await stage.ended().state == .succeeded)
            #expect(stage.world.agents.finishArtifacts == ["p/r": ["a": "b"]])
            #expect(try await stage.world.catalog.unfinishedRestores().isEmpty)
            #expect(stage.backlog.count == 0)
        }
    }

    @Test("a restart of the node goes on with it, and its end does not wait for it")
    func restart() async throws {
        try await withStage { stage in
            await stage.backlog.resume()
            while attempts(stage) < 2 { try await Task.sleep(for: .milliseconds(5)) }
            await stage.jobs.shutdown(graceSeconds: 600)
            #expect(try await stage.job().failure?.code == "shuttingDown")
            let next = Stage(stage.world)
            let before = attempts(stage)
            await next.backlog.resume()
            while attempts(stage) == before { try await Task.sleep(for: .milliseconds(5)) }
            stage.world.agents.state.withLock { $0.failsFinish = [] }
            while next.backlog.count > 0 { try await Task.sleep(for: .milliseconds(5)) }
            #expect(try await stage.world.catalog.unfinishedRestores().isEmpty)
            await next.jobs.shutdown(graceSeconds: 0)
        }
    }

    @Test("an operator gives it up: the job ends at once, says what to do by hand, and nothing tries again")
    func abandoned() async throws {
        try await withStage { stage in
            await stage.backlog.resume()
            let id = try await stage.job().id
            _ = try await stage.backlog.abandon(jobID: id)
            let job = try await stage.ended()
            #expect(job.failure?.code == "abandoned" && job.failure?.hint?.contains("by hand") == true)
            #expect(try await stage.world.catalog.unfinishedRestores().isEmpty)
            let again = await #expect(throws: APIFailure.self) { try await stage.backlog.abandon(jobID: id) }
            #expect(again?.code == "notAbandonable")
            let unknown = await #expect(throws: APIFailure.self) { try await stage.backlog.abandon(jobID: "x") }
            #expect(unknown?.code == "jobNotFound")
        }
    }

    @Test("a recovery that cannot bring everything back leaves it to the job, and another revert is refused until then")
    func recovery() async throws {
        let world = try SagaWorld()
        try world.write(1, to: "v1")
        _ = try await world.process().snapshots.run(
            request: SnapshotCreateRequest(volumes: ["v1"], name: "s1"), report: RecordedReport())
        let request = RevertRequest(volumes: ["v1"], snapshot: "s1", drive: true)
        let dying = world.process(crashAt: "revert.swap.after")
        await dying.die { try await $0.reverts.run(request: request, report: RecordedReport()) }
        world.agents.state.withLock { $0.failsFinish = ["host1"] }
        _ = await world.process().reverts.recoverAfterRestart()
        let left = try await world.catalog.unfinishedRestores()
        #expect(left.map(\.agent) == ["host1"])
        let refused = await #expect(throws: APIFailure.self) {
            try await world.process().reverts.run(request: request, report: RecordedReport())
        }
        #expect(refused?.code == "restoreUnfinished")
        world.agents.state.withLock { $0.failsFinish = [] }
        let stage = Stage(world)
        await stage.backlog.resume()
        while stage.backlog.count > 0 { try await Task.sleep(for: .milliseconds(5)) }
        #expect(world.agents.stopped.isEmpty)
        _ = try await world.process().reverts.run(request: request, report: RecordedReport())
        await stage.jobs.shutdown(graceSeconds: 0)
        try await world.close()
    }
}
