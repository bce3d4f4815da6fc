import API
import Foundation

/// Follows a job to its end, with a line on standard error for every step that ended.
struct JobProgress {
    var node: NodeClient
    var isQuiet: Bool

    /// - Returns: the job, succeeded.
    /// - Throws: the job's own failure when it failed.
    func follow(_ job: JobInfo) async throws -> JobInfo {
        var shown = Shown()
        let ended = try await node.wait(forJob: job) { state in
            guard !isQuiet else { return }
            for line in shown.news(in: state) { Terminal.error(line) }
        }
        guard ended.state == .succeeded else {
            throw ended.failure.map { withFailedSteps($0, ended) }
                ?? CommandFailure("Job \(ended.id) (\(ended.kind) \(ended.subject)) failed without saying why")
        }
        return ended
    }

    /// Which steps have been told, so that none is told twice.
    struct Shown {
        private var told: [Int: JobStep.State] = [:]

        mutating func news(in job: JobInfo) -> [String] {
            var lines: [String] = []
            for (index, step) in job.steps.enumerated() where told[index] != step.state && step.state != .running {
                told[index] = step.state
                lines.append(JobProgress.line(for: step))
            }
            return lines
        }
    }

    static func line(for step: JobStep) -> String {
        var line = "  " + step.name
        switch step.state {
        case .running: line += " …"
        case .succeeded: line += ": done"
        case .failed: line += ": FAILED"
        case .compensated: line += ": undone"
        }
        if let seconds = step.seconds { line += " in \(Show.seconds(seconds))" }
        if let detail = step.detail, !detail.isEmpty { line += " (\(detail))" }
        return line
    }

    /// The steps that failed name the members; with progress switched off nobody has told of them yet.
    private func withFailedSteps(_ failure: APIFailure, _ job: JobInfo) -> any Error {
        guard isQuiet else { return failure }
        let steps = job.steps.filter { $0.state == .failed }.map { Self.line(for: $0) }
        guard !steps.isEmpty else { return failure }
        return CommandFailure(failure.message + "\n" + steps.joined(separator: "\n"), hint: failure.hint)
    }
}
