import API
import Foundation
import Logging
import Synchronization

/// What agents stopped for reverts and have not brought back: for each a job that keeps trying, with longer and longer
/// pauses, until it is done or an operator gives it up. The catalog keeps the list, so that a restart goes on with it.
final class RestoreBacklog: Sendable {
    static let jobKind = "restore.finish"

    private struct Key: Hashable {
        var restoreID: String
        var agent: String
    }

    private struct Worker {
        var jobID: String?
        var isAbandoned = false
        /// Wakes it from its pause.
        var wakeUp: AsyncStream<Void>.Continuation
    }

    private let journal: any SagaJournaling
    private let agents: any AgentCalling
    private let jobs: JobEngine
    private let logger: Logger
    /// The first pause, and the longest.
    private let pauseSeconds: ClosedRange<Double>
    private let workers = Mutex<[Key: Worker]>([:])

    init(
        journal: any SagaJournaling, agents: any AgentCalling, jobs: JobEngine, logger: Logger,
        pauseSeconds: ClosedRange<Double> = 1...60
    ) {
        self.journal = journal
        self.agents = agents
        self.jobs = jobs
        self.logger = logger
        self.pauseSeconds = pauseSeconds
    }

    /// How many there are.
    var count: Int { workers.withLock { $0.count } }

    /// Begins a job for everything on the list that has none.
    func resume() async {
        do {
            for restore in try await journal.unfinishedRestores() { try await begin(restore) }
        } catch {
            logger.error("unfinished restores wait for the next start of the node: \(error)")
        }
    }

    private func begin(_ restore: UnfinishedRestore) async throws {
        let key = Key(restoreID: restore.request.restoreID, agent: restore.agent)
        let (pause, wakeUp) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let isNew = workers.withLock { workers in
            guard workers[key] == nil else { return false }
            workers[key] = Worker(wakeUp: wakeUp)
            return true
        }
        guard isNew else { return }
        do {
            let job = try await jobs.submit(
                kind: Self.jobKind, subject: "\(restore.volumes.joined(separator: ", ")) on agent \(restore.agent)",
                isBackground: true
            ) { [self] job in
                defer { workers.withLock { _ = $0.removeValue(forKey: key) } }
                try await work(restore, key, job, pause)
                return nil
            }
            workers.withLock { $0[key]?.jobID = job.id }
            logger.warning(
                "an agent has not brought back what it stopped for a revert; a job keeps trying",
                metadata: ["agent": "\(restore.agent)", "job": "\(job.id)"])
        } catch {
            workers.withLock { _ = $0.removeValue(forKey: key) }
            throw error
        }
    }

    private func work(
        _ restore: UnfinishedRestore, _ key: Key, _ job: JobHandle, _ pause: AsyncStream<Void>
    ) async throws {
        let step = "finish"
        job.step(step, detail: "asking agent \(restore.agent) to bring back what it stopped")
        var seconds = pauseSeconds.lowerBound
        var attempt = 1
        while true {
            do {
                let answer = try await agents.finishRestore(
                    restore.agent, restore.request, timeoutSeconds: RevertRun.agentSeconds)
                try await journal.forget(restore)
                return job.succeedStep(step, detail: answer.steps.joined(separator: "; "))
            } catch {
                try refuseWhereEnded(restore, key)
                let reason = AgentCallFailure(error).text
                job.step(step, detail: "attempt \(attempt) failed: \(reason); the next one in \(Int(seconds)) s")
            }
            await Self.wait(seconds, or: pause)
            try refuseWhereEnded(restore, key)
            seconds = min(seconds * 2, pauseSeconds.upperBound)
            attempt += 1
        }
    }

    private func refuseWhereEnded(_ restore: UnfinishedRestore, _ key: Key) throws {
        if workers.withLock({ $0[key]?.isAbandoned ?? false }) {
            throw APIFailure(
                status: 409, code: "abandoned",
                message: "what agent \(restore.agent) stopped for a revert of "
                    + "\(restore.volumes.joined(separator: ", ")) was given up on",
                hint: "Mount and start it by hand on that host")
        }
        if Task.isCancelled {
            throw APIFailure(
                status: 503, code: "shuttingDown", message: "the node was stopped",
                hint: "Another job goes on with it after the node's next start")
        }
    }

    private static func wait(_ seconds: Double, or pause: AsyncStream<Void>) async {
        await withTaskGroup(of: Void.self) { group in
            group.addTask { try? await Task.sleep(for: .seconds(seconds)) }
            group.addTask { for await _ in pause { return } }
            await group.next()
            group.cancelAll()
        }
    }

    /// Ends such a job for good; what was stopped is left to people.
    ///
    /// - Throws: ``API/APIFailure`` `jobNotFound`, `notAbandonable`.
    func abandon(jobID: String) async throws -> JobInfo {
        let found = workers.withLock { workers in workers.first { $0.value.jobID == jobID } }
        guard let (key, worker) = found else {
            guard let job = try await jobs.job(id: jobID) else { throw APIFailure.unknown("job", jobID) }
            throw APIFailure.conflict(
                "notAbandonable",
                job.state.isEnded ? "the job has ended already" : "the job \(job.kind) ends by itself",
                hint: "Only running jobs of the kinds \(Self.jobKind) and \(GuestRestoreBacklog.jobKind) can be given "
                    + "up")
        }
        let restore = try await journal.unfinishedRestores()
            .first { $0.request.restoreID == key.restoreID && $0.agent == key.agent }
        if let restore { try await journal.forget(restore) }
        workers.withLock { $0[key]?.isAbandoned = true }
        worker.wakeUp.yield()
        guard let job = try await jobs.job(id: jobID) else { throw APIFailure.unknown("job", jobID) }
        return job
    }
}
