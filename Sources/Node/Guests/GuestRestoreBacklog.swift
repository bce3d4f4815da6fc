import API
import Foundation
import Logging
import Synchronization

/// Restores of guests that were cut short and are not taken back yet, and undos that were cut short: for each a job
/// that keeps trying, with longer and longer pauses, until it is done or an operator gives it up. The notes are files
/// of the node, so that a restart goes on with them.
final class GuestRestoreBacklog: Sendable {
    static let jobKind = "guest.takeBack"
    /// The first pause and the longest.
    private static let pauseSeconds = 1.0...60.0

    private struct Worker {
        var jobID: String?
        var isAbandoned = false
    }

    private let jobs: JobEngine
    private let journal: GuestRestoreJournal
    private let logger: Logger
    /// By restore.
    private let workers = Mutex<[String: Worker]>([:])

    init(jobs: JobEngine, journal: GuestRestoreJournal, logger: Logger) {
        self.jobs = jobs
        self.journal = journal
        self.logger = logger
    }

    /// What one try came to.
    struct Attempt: Sendable {
        var note: GuestRestoreNote
        /// What is not done yet, and why.
        var failures: [String]
        /// Of an undo.
        var result: GuestRestoreResult?
    }

    /// Begins a job for the note, unless it has one.
    func begin(
        _ note: GuestRestoreNote, attempt: @escaping @Sendable (GuestRestoreNote) async -> Attempt
    ) async {
        let id = note.restoreID
        let isNew = workers.withLock { workers in
            guard workers[id] == nil else { return false }
            workers[id] = Worker()
            return true
        }
        guard isNew else { return }
        do {
            let job = try await jobs.submit(
                kind: Self.jobKind, subject: "\(note.guest) on agent \(note.agent)", isBackground: true
            ) { [self] job in
                defer { workers.withLock { _ = $0.removeValue(forKey: id) } }
                return try await work(note, job, attempt)
            }
            workers.withLock { $0[id]?.jobID = job.id }
            logger.warning(
                "a guest's restore is not taken back yet; a job keeps trying",
                metadata: ["guest": "\(note.guest)", "job": "\(job.id)"])
        } catch {
            workers.withLock { _ = $0.removeValue(forKey: id) }
            logger.error("a guest's restore is taken back after the node's next start: \(APIFailure.from(error))")
        }
    }

    private func work(
        _ first: GuestRestoreNote, _ job: JobHandle,
        _ attempt: @Sendable (GuestRestoreNote) async -> Attempt
    ) async throws -> JobResult? {
        var note = first
        var seconds = Self.pauseSeconds.lowerBound
        var count = 1
        job.step("takeBack", detail: "asking agent \(note.agent)")
        while true {
            let tried = await attempt(note)
            note = tried.note
            if tried.failures.isEmpty {
                job.succeedStep("takeBack", detail: nil)
                return tried.result.map { JobResult(guests: [$0]) }
            }
            try refuseWhereEnded(note)
            job.step(
                "takeBack",
                detail: "attempt \(count) failed: \(tried.failures.joined(separator: "; ")); the next one in "
                    + "\(Int(seconds)) s")
            try? await Task.sleep(for: .seconds(seconds))
            try refuseWhereEnded(note)
            seconds = min(seconds * 2, Self.pauseSeconds.upperBound)
            count += 1
        }
    }

    private func refuseWhereEnded(_ note: GuestRestoreNote) throws {
        if workers.withLock({ $0[note.restoreID]?.isAbandoned ?? false }) {
            throw APIFailure(
                status: 409, code: "abandoned", message: "taking the restore of \(note.guest) back was given up on",
                hint: "Look at the guest on the host of agent \(note.agent), and at the volumes; docs/kvm.md says what "
                    + "is kept under which names")
        }
        if Task.isCancelled {
            throw APIFailure(
                status: 503, code: "shuttingDown", message: "the node was stopped",
                hint: "Another job goes on with it after the node's next start")
        }
    }

    /// - Returns: false where the job is none of these.
    func abandon(jobID: String) -> Bool {
        let id = workers.withLock { workers -> String? in
            guard let id = workers.first(where: { $0.value.jobID == jobID })?.key else { return nil }
            workers[id]?.isAbandoned = true
            return id
        }
        guard let id else { return false }
        journal.remove(id)
        return true
    }
}
