public import Foundation

/// Long work: accepted with 202, followed by polling or by server-sent events.
public struct JobInfo: Codable, Sendable, Equatable {
    public enum State: String, Codable, Sendable {
        case queued, running, succeeded, failed

        public var isEnded: Bool { self == .succeeded || self == .failed }
    }

    public var id: String
    /// `snapshot.create`, `volume.revert`, `snapshot.delete`, …
    public var kind: String
    /// What it works on, for people.
    public var subject: String
    public var state: State
    public var createdAt: Date
    public var endedAt: Date?
    public var steps: [JobStep]
    public var result: JobResult?
    public var failure: APIFailure?

    public init(
        id: String, kind: String, subject: String, state: State, createdAt: Date, endedAt: Date? = nil,
        steps: [JobStep] = [], result: JobResult? = nil, failure: APIFailure? = nil
    ) {
        self.id = id
        self.kind = kind
        self.subject = subject
        self.state = state
        self.createdAt = createdAt
        self.endedAt = endedAt
        self.steps = steps
        self.result = result
        self.failure = failure
    }
}

public struct JobStep: Codable, Sendable, Equatable {
    public enum State: String, Codable, Sendable { case running, succeeded, failed, compensated }

    public var name: String
    public var state: State
    public var startedAt: Date
    /// Nil while it runs.
    public var seconds: Double?
    public var detail: String?

    public init(name: String, state: State, startedAt: Date, seconds: Double? = nil, detail: String? = nil) {
        self.name = name
        self.state = state
        self.startedAt = startedAt
        self.seconds = seconds
        self.detail = detail
    }
}

/// What a job made; one of the fields is set, by the job's kind. A job that failed has one only where a part of its
/// work is done: guests that were restored before the one that could not be.
public struct JobResult: Codable, Sendable, Equatable {
    public var snapshot: SnapshotInfo?
    public var revert: RevertResult?
    public var scrub: ScrubInfo?
    /// One for each guest that was restored.
    public var guests: [GuestRestoreResult]?

    public init(
        snapshot: SnapshotInfo? = nil, revert: RevertResult? = nil, scrub: ScrubInfo? = nil,
        guests: [GuestRestoreResult]? = nil
    ) {
        self.snapshot = snapshot
        self.revert = revert
        self.scrub = scrub
        self.guests = guests
    }
}
