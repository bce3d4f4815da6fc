public import API

// What the sagas need of the world. Production adapters stand in PoolAdapter.swift and AgentAdapter.swift; tests bring
// their own. Every protocol here is small on purpose: a saga that can be run against a simulated world is one whose
// crashes can be tested.

/// A volume as the sagas see it.
public struct SagaVolume: Sendable, Equatable {
    public var name: String
    /// 32 hexadecimal digits, lower case.
    public var naa: String

    public init(name: String, naa: String) {
        self.name = name
        self.naa = naa
    }
}

/// A snapshot as the sagas see it.
public struct SagaSnapshot: Sendable, Equatable {
    /// Lower-case UUID text.
    public var id: String
    public var name: String
    /// Names of the member volumes.
    public var volumes: [String]
    /// Nanoseconds since 1970.
    public var createdAt: Int64
    public var isBeforeRevert: Bool
    public var attributes: [UInt8]

    public init(
        id: String, name: String, volumes: [String], createdAt: Int64, isBeforeRevert: Bool, attributes: [UInt8]
    ) {
        self.id = id
        self.name = name
        self.volumes = volumes
        self.createdAt = createdAt
        self.isBeforeRevert = isBeforeRevert
        self.attributes = attributes
    }
}

/// The pool, as far as the sagas touch it. Calls block the thread; the drivers make them off the cooperative pool.
public protocol SnapshotCutting: Sendable {
    func volumes() -> [SagaVolume]
    func snapshots() -> [SagaSnapshot]
    /// One record over all volumes; durable on return. Answers the birth epoch that the cut closed.
    func cut(id: String, name: String, volumes: [String], attributes: [UInt8]) throws -> UInt64
    func setAttributes(snapshot: String, _ attributes: [UInt8]) throws
    /// A snapshot that does not exist is no error.
    func delete(snapshot: String) throws
    /// One record over all volumes; what they held is kept as snapshot `keepID` of kind `beforeRevert`.
    func revert(volumes: [String], to snapshot: String, keepID: String, keepName: String, attributes: [UInt8]) throws
    /// How the API shows a snapshot.
    func info(snapshot: String) throws -> SnapshotInfo
}

/// The enrolled agents. Every call ends within `timeoutSeconds`, with an answer or an error.
public protocol AgentCalling: Sendable {
    func names() async throws -> [String]
    /// Host part of the address where an agent is called; nil when unknown.
    func host(of agent: String) async -> String?
    func discover(_ agent: String, _ request: DiscoverRequest, timeoutSeconds: Double) async throws -> DiscoverResponse
    func preflight(
        _ agent: String, _ request: PreflightRequest, timeoutSeconds: Double
    ) async throws -> PreflightResponse
    func hold(_ agent: String, _ request: HoldRequest, timeoutSeconds: Double) async throws -> HoldResponse
    func renew(
        _ agent: String, holdID: String, _ request: RenewRequest, timeoutSeconds: Double
    ) async throws -> RenewResponse
    func release(_ agent: String, holdID: String, timeoutSeconds: Double) async throws -> ReleaseResponse
    func thaw(_ agent: String, _ request: ThawRequest, timeoutSeconds: Double) async throws -> ThawResponse
    func prepareRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse
    func finishRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse
}

/// The target, as far as a revert touches it.
public protocol RevertGuarding: Sendable {
    /// Who can reach a volume now: initiator names with their addresses (`HOST:PORT`).
    func sessions(naa: String) -> [SagaSession]
    func blockLogins(naa: String)
    func unblockLogins(naa: String)
    /// Raises the unit attentions that tell initiators of other data.
    func deviceReverted(naa: String)
}

public struct SagaSession: Sendable, Equatable, Hashable {
    public var initiator: String
    public var address: String

    public init(initiator: String, address: String) {
        self.initiator = initiator
        self.address = address
    }
}

/// The monotonic clock and the calendar.
public protocol SagaClock: Sendable {
    /// Nanoseconds, monotonic.
    func monotonicNanoseconds() -> Int64
    /// Nanoseconds since 1970.
    func unixNanoseconds() -> Int64
    /// Returns at `deadline` (monotonic nanoseconds) or throws `CancellationError`.
    func sleep(until deadline: Int64) async throws
}

/// Where a saga tells what it is doing: the job. `JobHandle` conforms.
public protocol SagaReporting: Sendable {
    /// Journalled with the saga, so that recovery can say which job it ended.
    var jobID: String { get }
    func stepBegan(_ name: String, detail: String?) async
    func stepSucceeded(_ name: String, detail: String?) async
    func stepFailed(_ name: String, detail: String?) async
    /// The step was undone because a later one failed.
    func stepCompensated(_ name: String, detail: String?) async
}

/// A saga that a former process had left open, and how it was ended.
public struct RecoveredSaga: Sendable {
    public enum Outcome: Sendable {
        /// Evidence had been journalled: the snapshot was labelled.
        case snapshot(SnapshotInfo)
        case reverted(RevertResult)
        case failed(APIFailure)
    }

    public var sagaID: String
    public var jobID: String
    public var outcome: Outcome

    public init(sagaID: String, jobID: String, outcome: Outcome) {
        self.sagaID = sagaID
        self.jobID = jobID
        self.outcome = outcome
    }
}
