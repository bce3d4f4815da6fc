public import API
public import Logging

/// Runs snapshot sagas: the pure machine of `Protection` against the pool, the agents and the journal.
public final class SnapshotSagaDriver: Sendable {
    let effects: SagaEffects

    public init(effects: SagaEffects) { self.effects = effects }

    /// Takes a snapshot of one or several volumes in one cut. Throws ``APIFailure``; then nothing is left behind.
    /// Cancelling the task cancels the saga until its label is being written.
    public func run(request: SnapshotCreateRequest, report: any SagaReporting) async throws -> SnapshotInfo {
        throw APIFailure(status: 501, code: "notImplemented", message: "The saga's driver is not there yet")
    }

    /// Ends what a former process left open: thaws on all involved agents, deletes pending snapshots or labels them
    /// from journalled evidence. Returns when everything is clean; call it in a task of its own before new sagas are
    /// let in on the volumes concerned (it reserves them by itself).
    public func recoverAfterRestart() async -> [RecoveredSaga] { [] }
}

/// The world of the sagas in one place.
public struct SagaEffects: Sendable {
    public var pool: any SnapshotCutting
    public var agents: any AgentCalling
    public var journal: any SagaJournaling
    public var guarding: any RevertGuarding
    public var clock: any SagaClock
    /// Shared by all drivers of a node.
    public var reservations: VolumeReservations
    public var logger: Logger

    public init(
        pool: any SnapshotCutting, agents: any AgentCalling, journal: any SagaJournaling,
        guarding: any RevertGuarding, clock: any SagaClock, reservations: VolumeReservations, logger: Logger
    ) {
        self.pool = pool
        self.agents = agents
        self.journal = journal
        self.guarding = guarding
        self.clock = clock
        self.reservations = reservations
        self.logger = logger
    }
}

/// The durable journal of the sagas; the production one is `SagaJournal` in Catalog.
public protocol SagaJournaling: Sendable {
    /// Durable on return.
    func append(_ entry: SagaJournalEntry) async throws
    /// All records of the sagas that have no final one, in order.
    func unfinished() async throws -> [SagaJournalEntry]
    /// Forgets the records of a saga that has ended.
    func forget(sagaID: String) async throws
    /// How long each member took to come to rest in former sagas, in seconds, by `agent/plugin/resource`.
    func quiesceHistory() async throws -> [String: Double]
    func rememberQuiesce(_ seconds: [String: Double]) async throws
    /// Names of the volumes that an agent had when it last answered; nil when it never did.
    func lastKnownVolumes(ofAgent name: String) async throws -> Set<String>?
    func rememberVolumes(_ volumes: Set<String>, ofAgent name: String) async throws
}

public struct SagaJournalEntry: Sendable, Equatable {
    public enum Kind: String, Sendable { case snapshot, revert }

    public var sagaID: String
    public var kind: Kind
    public var jobID: String
    /// From 0, without gaps.
    public var sequence: Int
    /// The step's name, e.g. `quiesce.application`; docs/saga.md has the list.
    public var step: String
    /// What undoes the step.
    public var compensation: String
    /// JSON of the record of `Protection`.
    public var body: String

    public init(
        sagaID: String, kind: Kind, jobID: String, sequence: Int, step: String, compensation: String, body: String
    ) {
        self.sagaID = sagaID
        self.kind = kind
        self.jobID = jobID
        self.sequence = sequence
        self.step = step
        self.compensation = compensation
        self.body = body
    }
}
