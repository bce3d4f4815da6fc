import API
import Catalog
import Foundation
import Logging
import Synchronization

/// Runs long work, tells watchers about it, and keeps its record.
///
/// The memory of a running job is the truth about it; the catalog follows as fast as the disk takes it, and the end
/// of a job is durable before anybody is told of it. A job that the catalog says is running when the node starts was
/// cut short by a crash: ``failInterrupted()`` says so after the saga's recovery had its turn.
final class JobEngine: Sendable {
    /// Most watchers of event streams at a time, over all jobs.
    static let watcherLimit = 64
    /// Most jobs that run at a time; more are refused.
    static let runningLimit = 64
    /// Ended jobs that are kept.
    static let keptJobs = 1_000

    private struct Entry {
        var info: JobInfo
        var task: Task<Void, Never>?
        var isBackground = false
        var watchers: [UInt64: AsyncStream<JobInfo>.Continuation] = [:]
    }

    private struct State {
        var running: [String: Entry] = [:]
        var nextWatcher: UInt64 = 0
        var watcherCount = 0
        /// Jobs whose newest state the catalog has not.
        var unwritten: Set<String> = []
        var isWriting = false
        var isShuttingDown = false
        var succeeded: UInt64 = 0
        var failed: UInt64 = 0
    }

    private let catalog: Catalog
    private let logger: Logger
    private let state = Mutex(State())

    init(catalog: Catalog, logger: Logger) {
        self.catalog = catalog
        self.logger = logger
    }

    /// Starts `work` and returns at once.
    ///
    /// - Parameters:
    ///   - kind: `noun.verb`, e.g. `snapshot.create`.
    ///   - subject: What it works on, for people.
    ///   - isBackground: It waits for others and may do so for days: it counts for no limit, and the node's end cancels
    ///     it at once.
    /// - Throws: ``API/APIFailure`` when the node is shutting down or has too many jobs, or the catalog fails.
    func submit(
        kind: String, subject: String, isBackground: Bool = false,
        work: @escaping @Sendable (JobHandle) async throws -> JobResult?
    ) async throws -> JobInfo {
        let info = JobInfo(
            id: UUID().uuidString.lowercased(), kind: kind, subject: subject, state: .running,
            createdAt: .nowMilliseconds)
        try state.withLock { state in
            if state.isShuttingDown { throw APIFailure.shuttingDown }
            guard isBackground || state.running.count < Self.runningLimit else {
                throw APIFailure(
                    status: 503, code: "tooManyJobs", message: "\(Self.runningLimit) jobs are running already",
                    hint: "Wait for some to end: stillpoint job list")
            }
            state.running[info.id] = Entry(info: info, isBackground: isBackground)
        }
        do {
            try await catalog.setJob(record(info))
        } catch {
            state.withLock { _ = $0.running.removeValue(forKey: info.id) }
            throw error
        }
        let handle = JobHandle(id: info.id, engine: self)
        // Under the lock, so that a shutdown either sees the task or keeps it from being made.
        let isStarted = state.withLock { state in
            if state.isShuttingDown { return false }
            state.running[info.id]?.task = Task { await self.run(handle, work) }
            return true
        }
        guard isStarted else {
            await end(info.id) { info in
                info.state = .failed
                info.failure = .shuttingDown
            }
            throw APIFailure.shuttingDown
        }
        return info
    }

    private func run(_ handle: JobHandle, _ work: @Sendable (JobHandle) async throws -> JobResult?) async {
        do {
            let result = try await work(handle)
            await end(handle.id) { info in
                info.state = .succeeded
                info.result = result
            }
        } catch {
            let failure = APIFailure.from(error)
            logger.notice("job failed", metadata: ["job": "\(handle.id)", "failure": "\(failure)"])
            await end(handle.id) { info in
                info.state = .failed
                info.failure = failure
            }
        }
    }

    /// Makes the end durable, then tells the watchers. In a task of its own: a job that was cancelled has an end, too,
    /// and the catalog writes nothing for a cancelled task.
    private func end(_ id: String, _ change: @escaping @Sendable (inout JobInfo) -> Void) async {
        await Task { await keepEnd(id, change) }.value
    }

    private func keepEnd(_ id: String, _ change: (inout JobInfo) -> Void) async {
        let ended: JobInfo? = state.withLock { state in
            guard var info = state.running[id]?.info else { return nil }
            change(&info)
            info.endedAt = .nowMilliseconds
            info.closeOpenSteps()
            return info
        }
        guard let ended else { return }
        do {
            try await catalog.setJob(record(ended))
            try await catalog.pruneJobs(keep: Self.keptJobs)
        } catch {
            logger.error("the end of a job could not be kept", metadata: ["job": "\(id)", "error": "\(error)"])
        }
        let watchers = state.withLock { state in
            let entry = state.running.removeValue(forKey: id)
            state.watcherCount -= entry?.watchers.count ?? 0
            if ended.state == .succeeded { state.succeeded += 1 } else { state.failed += 1 }
            return entry.map { Array($0.watchers.values) } ?? []
        }
        for watcher in watchers {
            watcher.yield(ended)
            watcher.finish()
        }
    }

    // MARK: Looking

    func job(id: String) async throws -> JobInfo? {
        if let info = state.withLock({ $0.running[id]?.info }) { return info }
        return try await catalog.job(id: id).map(Self.info)
    }

    /// The newest first.
    func jobs(limit: Int) async throws -> [JobInfo] {
        try await catalog.jobs(limit: limit).map { record in
            try state.withLock { $0.running[record.id]?.info } ?? Self.info(record)
        }
    }

    struct Counts: Sendable {
        var running: Int
        var succeeded: UInt64
        var failed: UInt64
    }

    /// Since the node started.
    var counts: Counts {
        state.withLock { Counts(running: $0.running.count, succeeded: $0.succeeded, failed: $0.failed) }
    }

    /// The job's state now and after every change, until it ends. A slow reader skips states, never the last one.
    ///
    /// - Throws: ``API/APIFailure`` when the job is unknown or there are too many watchers.
    func events(id: String) async throws -> AsyncStream<JobInfo> {
        let (stream, continuation) = AsyncStream.makeStream(of: JobInfo.self, bufferingPolicy: .bufferingNewest(1))
        let isRunning = try state.withLock { state in
            guard state.running[id] != nil else { return false }
            guard state.watcherCount < Self.watcherLimit else {
                throw APIFailure(
                    status: 503, code: "tooManyWatchers",
                    message: "\(Self.watcherLimit) watchers are connected already",
                    hint: "Poll GET /v1/jobs/\(id) instead")
            }
            let watcher = state.nextWatcher
            state.nextWatcher += 1
            state.watcherCount += 1
            state.running[id]?.watchers[watcher] = continuation
            if let info = state.running[id]?.info { continuation.yield(info) }
            continuation.onTermination = { [weak self] _ in self?.removeWatcher(watcher, of: id) }
            return true
        }
        if !isRunning {
            guard let info = try await job(id: id) else { throw APIFailure.unknown("job", id) }
            continuation.yield(info)
            continuation.finish()
        }
        return stream
    }

    private func removeWatcher(_ watcher: UInt64, of id: String) {
        state.withLock { state in
            if state.running[id]?.watchers.removeValue(forKey: watcher) != nil { state.watcherCount -= 1 }
        }
    }

    // MARK: Changes by the handle

    fileprivate func update(_ id: String, _ change: (inout JobInfo) -> Void) {
        state.withLock { state in
            guard var info = state.running[id]?.info else { return }
            change(&info)
            state.running[id]?.info = info
            state.unwritten.insert(id)
            for watcher in (state.running[id]?.watchers ?? [:]).values { watcher.yield(info) }
            guard !state.isWriting else { return }
            state.isWriting = true
            Task { await writeUnwritten() }
        }
    }

    /// Durable on return; where it throws, it is as if it had not been called.
    fileprivate func add(_ guest: GuestRestoreResult, to id: String) async throws {
        func add(to info: inout JobInfo) {
            var result = info.result ?? JobResult()
            result.guests = (result.guests ?? []) + [guest]
            info.result = result
        }
        guard var info = state.withLock({ $0.running[id]?.info }) else { return }
        add(to: &info)
        try await catalog.setJob(record(info))
        // Steps may have been written meanwhile, without this: it is written again.
        update(id) { add(to: &$0) }
    }

    private func writeUnwritten() async {
        while true {
            let info: JobInfo? = state.withLock { state in
                while let id = state.unwritten.popFirst() {
                    if let info = state.running[id]?.info { return info }
                }
                state.isWriting = false
                return nil
            }
            guard let info else { return }
            do {
                try await catalog.setJob(record(info))
            } catch {
                logger.error("a job's step could not be kept", metadata: ["job": "\(info.id)", "error": "\(error)"])
            }
        }
    }

    // MARK: Start and end of the node

    /// Jobs that were running when the node stopped without ending them.
    func interruptedJobs() async throws -> [JobInfo] {
        let running = state.withLock { Set($0.running.keys) }
        return try await catalog.unendedJobs().filter { !running.contains($0.id) }.map(Self.info)
    }

    /// Ends an interrupted job the way its recovery did.
    func endInterrupted(_ id: String, _ outcome: Result<JobResult?, APIFailure>) async throws {
        guard let record = try await catalog.job(id: id), !record.isEnded else { return }
        var info = try Self.info(record)
        switch outcome {
        case .success(let result):
            info.state = .succeeded
            info.result = result
        case .failure(let failure):
            info.state = .failed
            info.failure = failure
        }
        info.endedAt = .nowMilliseconds
        info.closeOpenSteps()
        try await catalog.setJob(self.record(info))
    }

    /// Marks what no recovery took care of as failed.
    func failInterrupted() async throws {
        for job in try await interruptedJobs() {
            let failure = APIFailure(
                status: 500, code: "interrupted", message: "the node stopped while \(job.kind) of \(job.subject) ran",
                hint: "What it had begun was undone at the start; run it again if it is still wanted")
            try await endInterrupted(job.id, .failure(failure))
        }
    }

    /// Takes no more jobs, lets those that run end by themselves for `graceSeconds`, then cancels them and waits.
    func shutdown(graceSeconds: Double) async {
        let tasks = state.withLock { state in
            state.isShuttingDown = true
            for entry in state.running.values where entry.isBackground { entry.task?.cancel() }
            return state.running.values.compactMap(\.task)
        }
        guard !tasks.isEmpty else { return }
        let canceller = Task {
            try await Task.sleep(for: .seconds(graceSeconds))
            for task in tasks { task.cancel() }
        }
        for task in tasks { await task.value }
        canceller.cancel()
    }

    // MARK: Records

    private func record(_ info: JobInfo) throws -> JobRecord {
        JobRecord(
            id: info.id, isEnded: info.state.isEnded, createdAt: info.createdAt,
            document: try APIJSON.encoder().encode(info))
    }

    private static func info(_ record: JobRecord) throws -> JobInfo {
        try APIJSON.decoder().decode(JobInfo.self, from: record.document)
    }
}

/// What a job's work reports its steps through. Calls return at once and are ignored after the job's end.
final class JobHandle: Sendable {
    let id: String
    private let engine: JobEngine

    fileprivate init(id: String, engine: JobEngine) {
        self.id = id
        self.engine = engine
    }

    /// Begins a step. Names are unique within a job; a name that comes again begins anew.
    func step(_ name: String, detail: String? = nil) {
        engine.update(id) { info in
            info.steps.removeAll { $0.name == name }
            info.steps.append(JobStep(name: name, state: .running, startedAt: .nowMilliseconds, detail: detail))
        }
    }

    /// Says more about a step that runs.
    func progress(_ name: String, detail: String) {
        engine.update(id) { info in
            guard let index = info.steps.lastIndex(where: { $0.name == name }) else { return }
            info.steps[index].detail = detail
        }
    }

    func succeedStep(_ name: String, detail: String? = nil) { close(name, .succeeded, detail) }

    func failStep(_ name: String, detail: String) { close(name, .failed, detail) }

    /// The step had succeeded and what it did was undone.
    func compensateStep(_ name: String, detail: String? = nil) { close(name, .compensated, detail) }

    /// Keeps what is done already, durable on return: it stays with the job, also where the rest fails.
    func keep(_ guest: GuestRestoreResult) async throws { try await engine.add(guest, to: id) }

    /// Runs `body` as a step: it succeeds or fails with it.
    nonisolated(nonsending) func during<Value>(
        _ name: String, detail: String? = nil, _ body: () async throws -> Value
    ) async throws -> Value {
        step(name, detail: detail)
        do {
            let value = try await body()
            succeedStep(name)
            return value
        } catch {
            failStep(name, detail: APIFailure.from(error).message)
            throw error
        }
    }

    private func close(_ name: String, _ state: JobStep.State, _ detail: String?) {
        engine.update(id) { info in
            guard let index = info.steps.lastIndex(where: { $0.name == name }) else { return }
            info.steps[index].state = state
            info.steps[index].detail = detail ?? info.steps[index].detail
            if info.steps[index].seconds == nil {
                info.steps[index].seconds = max(0, Date.now.timeIntervalSince(info.steps[index].startedAt))
            }
        }
    }
}

extension JobInfo {
    /// A job that ended has no step that still runs.
    fileprivate mutating func closeOpenSteps() {
        for index in steps.indices where steps[index].state == .running {
            steps[index].state = state == .succeeded ? .succeeded : .failed
            steps[index].seconds = endedAt.map { max(0, $0.timeIntervalSince(steps[index].startedAt)) }
        }
    }
}

extension Date {
    /// Now, at the API's precision, so that what is answered first equals what is answered later.
    static var nowMilliseconds: Date {
        Date(timeIntervalSince1970: (Date.now.timeIntervalSince1970 * 1000).rounded(.down) / 1000)
    }
}
