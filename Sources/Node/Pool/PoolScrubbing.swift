import API
import BlockStore
import Foundation
import Logging
import Synchronization

/// The node's scrubs: one at a time, paced, kept over a restart, and resumed where one was ended.
final class PoolScrubbing: Sendable {
    /// What is kept in the data directory.
    private struct Kept: Codable, Sendable {
        var info: ScrubInfo
        var position: ScrubPosition
    }

    private struct State {
        var kept: Kept?
        var isRunning = false
        var isCancelled = false
    }

    private static let stepBytes: UInt64 = 4 << 20
    /// Time between two notes of the position.
    private static let noteSeconds = 5.0

    private let pool: Pool
    private let blocking: BlockingCalls
    private let file: String
    private let defaultBytesPerSecond: UInt64
    private let logger: Logger
    private let state: Mutex<State>

    init(pool: Pool, configuration: NodeConfiguration, blocking: BlockingCalls, logger: Logger) {
        self.pool = pool
        self.blocking = blocking
        self.logger = logger
        file = configuration.dataDirectory + "/scrub.json"
        defaultBytesPerSecond = configuration.poolScrubBytesPerSecond
        state = Mutex(State(kept: Self.read(file)))
    }

    private static func read(_ file: String) -> Kept? {
        guard let data = try? PrivateFile.read(file), var kept = try? APIJSON.decoder().decode(Kept.self, from: data)
        else { return nil }
        // A crash ended it.
        if kept.info.state == .running { kept.info.state = .cancelled }
        return kept
    }

    /// The scrub that runs, or the last one.
    var info: ScrubInfo? { state.withLock { $0.kept?.info } }

    var isRunning: Bool { state.withLock { $0.isRunning } }

    func cancel() throws {
        try state.withLock { state in
            guard state.isRunning else {
                throw APIFailure.conflict(
                    "noScrub", "no scrub is running", hint: "stillpoint pool show tells of the last one")
            }
            state.isCancelled = true
        }
    }

    // MARK: Running

    /// Starts the scrub as a job.
    func submit(_ request: ScrubRequest, jobs: JobEngine) async throws -> JobInfo {
        let rate = request.bytesPerSecond ?? defaultBytesPerSecond
        guard rate >= 1 << 20 else {
            throw APIFailure.invalid("bytesPerSecond must be at least 1048576 (1 MiB), not \(rate)")
        }
        let resumed = try state.withLock { state -> Kept? in
            guard !state.isRunning else {
                throw APIFailure.conflict(
                    "scrubRunning", "a scrub is running already",
                    hint: "stillpoint pool show tells how far it is; stillpoint pool scrub --cancel ends it")
            }
            state.isRunning = true
            state.isCancelled = false
            guard let kept = state.kept, kept.info.state == .cancelled, request.restart != true else { return nil }
            return kept
        }
        do {
            return try await jobs.submit(kind: "pool.scrub", subject: "pool") { job in
                try await self.run(job, bytesPerSecond: rate, resumed: resumed)
            }
        } catch {
            state.withLock { $0.isRunning = false }
            throw error
        }
    }

    private func run(_ job: JobHandle, bytesPerSecond: UInt64, resumed: Kept?) async throws -> JobResult? {
        let outcome: Result<JobResult?, any Error>
        do {
            outcome = .success(try await read(job, bytesPerSecond: bytesPerSecond, resumed: resumed))
        } catch {
            outcome = .failure(error)
        }
        state.withLock { $0.isRunning = false }
        return try outcome.get()
    }

    private func read(_ job: JobHandle, bytesPerSecond: UInt64, resumed: Kept?) async throws -> JobResult? {
        let pool = pool
        job.step("scrub", detail: resumed == nil ? nil : "goes on where the last one was ended")
        let work = try await blocking.run { try pool.scrub(from: resumed?.position) }
        var info = resumed?.info ?? ScrubInfo(state: .running, startedAt: .nowMilliseconds)
        info.state = .running
        info.endedAt = nil
        let before = info
        var notedAt = ContinuousClock.now
        keep(info, work.report, before)
        while true {
            let began = ContinuousClock.now
            let bytes = work.report.bytesRead
            let isMore = try await blocking.run { try work.step(maxBytes: Self.stepBytes) }
            info = keep(info, work.report, before)
            job.progress("scrub", detail: Self.progress(info))
            if !isMore { break }
            if Task.isCancelled || state.withLock({ $0.isCancelled }) { return try end(job, info, .cancelled) }
            if ContinuousClock.now - notedAt > .seconds(Self.noteSeconds) {
                notedAt = .now
                write()
            }
            let due = Double(work.report.bytesRead - bytes) / Double(bytesPerSecond)
            let spent = ContinuousClock.now - began
            try? await Task.sleep(for: .seconds(due) - spent)
        }
        return try end(job, info, .finished)
    }

    private func end(_ job: JobHandle, _ info: ScrubInfo, _ state: ScrubInfo.State) throws -> JobResult? {
        var info = info
        info.state = state
        info.endedAt = .nowMilliseconds
        let ended = info
        self.state.withLock { $0.kept?.info = ended }
        write()
        let text = Self.progress(info)
        if info.damageCount > 0 {
            logger.error("a scrub found damage", metadata: ["count": "\(info.damageCount)"])
        } else {
            logger.notice("scrub ended", metadata: ["state": "\(state.rawValue)", "progress": "\(text)"])
        }
        job.succeedStep("scrub", detail: state == .cancelled ? "cancelled; " + text : text)
        return JobResult(scrub: info)
    }

    static func progress(_ info: ScrubInfo) -> String {
        let percent =
            info.state == .finished || info.expectedBytes == 0
            ? 100 : min(99, Int(Double(info.bytesRead) * 100 / Double(info.expectedBytes)))
        return "\(percent) %, \(info.bytesRead >> 20) MiB read, \(info.damageCount) wrong"
    }

    /// Notes how far it is: what was read before it was ended counts.
    @discardableResult
    private func keep(_ info: ScrubInfo, _ report: ScrubReport, _ before: ScrubInfo) -> ScrubInfo {
        var info = info
        info.bytesRead = before.bytesRead + report.bytesRead
        info.expectedBytes = report.expectedBytes
        info.dataBlocks = before.dataBlocks + report.dataBlocks
        info.mapPages = before.mapPages + report.mapPages
        info.superblockCopies = report.superblockCopies
        info.repairedSuperblocks = before.repairedSuperblocks + report.repairedSuperblocks
        info.damageCount = before.damageCount + report.damageTotal
        info.damage = Array((before.damage + report.damage.map(\.description)).prefix(256))
        let kept = Kept(info: info, position: report.position)
        state.withLock { $0.kept = kept }
        return info
    }

    private func write() {
        guard let kept = state.withLock({ $0.kept }) else { return }
        do {
            try PrivateFile.write(try APIJSON.encoder().encode(kept), to: file)
        } catch {
            logger.warning("a scrub's position could not be kept", metadata: ["error": "\(error)"])
        }
    }
}
