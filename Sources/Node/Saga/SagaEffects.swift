import API
import Foundation
import Logging

// What the sagas need of the world. Production adapters stand in PoolAdapter.swift and AgentAdapter.swift; tests bring
// their own. Every protocol here is small on purpose: a saga that can be run against a simulated world is one whose
// crashes can be tested.

/// A volume as the sagas see it.
struct SagaVolume: Sendable, Equatable {
    var name: String
    /// 32 hexadecimal digits, lower case.
    var naa: String

    init(name: String, naa: String) {
        self.name = name
        self.naa = naa
    }
}

/// A snapshot as the sagas see it.
struct SagaSnapshot: Sendable, Equatable {
    /// Lower-case UUID text.
    var id: String
    var name: String
    /// Names of the member volumes.
    var volumes: [String]
    /// Nanoseconds since 1970.
    var createdAt: Int64
    var isBeforeRevert: Bool
    var attributes: [UInt8]

    init(
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
protocol SnapshotCutting: Sendable {
    func volumes() -> [SagaVolume]
    func snapshots() -> [SagaSnapshot]
    // These cost the same whatever else the pool holds.
    func volume(named name: String) -> SagaVolume?
    func snapshots(of volume: String) -> [SagaSnapshot]
    func snapshot(_ idOrName: String) -> SagaSnapshot?
    /// Whether there is a snapshot of this name, in the same time whatever their number.
    func hasSnapshot(named name: String) -> Bool
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

extension SnapshotCutting {
    func hasSnapshot(named name: String) -> Bool { snapshots().contains { $0.name == name } }
    func volume(named name: String) -> SagaVolume? { volumes().first { $0.name == name } }
    func snapshots(of volume: String) -> [SagaSnapshot] { snapshots().filter { $0.volumes.contains(volume) } }
    func snapshot(_ idOrName: String) -> SagaSnapshot? {
        snapshots().first { $0.id == idOrName } ?? snapshots().first { $0.name == idOrName }
    }
}

/// The enrolled agents. Every call ends within `timeoutSeconds`, with an answer or an error.
protocol AgentCalling: Sendable {
    func names() async throws -> [String]
    /// What they answered of guests, and where they run themselves.
    var guestDisks: GuestDisks { get }
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
protocol RevertGuarding: Sendable {
    /// Who can reach a volume now: initiator names with their addresses (`HOST:PORT`).
    func sessions(naa: String) -> [SagaSession]
    func blockLogins(naa: String)
    func unblockLogins(naa: String)
    /// Raises the unit attentions that tell initiators of other data.
    func deviceReverted(naa: String)
}

struct SagaSession: Sendable, Equatable, Hashable {
    var initiator: String
    var address: String

    init(initiator: String, address: String) {
        self.initiator = initiator
        self.address = address
    }
}

/// The monotonic clock and the calendar.
protocol SagaClock: Sendable {
    /// Nanoseconds, monotonic.
    func monotonicNanoseconds() -> Int64
    /// Nanoseconds since 1970.
    func unixNanoseconds() -> Int64
    /// Returns at `deadline` (monotonic nanoseconds) or throws `CancellationError`.
    func sleep(until deadline: Int64) async throws
}

/// Where a saga tells what it is doing: the job. `JobHandle` conforms.
protocol SagaReporting: Sendable {
    /// Journalled with the saga, so that recovery can say which job it ended.
    var jobID: String { get }
    func stepBegan(_ name: String, detail: String?) async
    func stepSucceeded(_ name: String, detail: String?) async
    func stepFailed(_ name: String, detail: String?) async
    /// The step was undone because a later one failed.
    func stepCompensated(_ name: String, detail: String?) async
}

/// A saga that a former process had left open, and how it was ended.
struct RecoveredSaga: Sendable {
    enum Outcome: Sendable {
        /// Evidence had been journalled: the snapshot was labelled.
        case snapshot(SnapshotInfo)
        case reverted(RevertResult)
        case failed(APIFailure)
    }

    var sagaID: String
    var jobID: String
    var outcome: Outcome

    init(sagaID: String, jobID: String, outcome: Outcome) {
        self.sagaID = sagaID
        self.jobID = jobID
        self.outcome = outcome
    }
}

/// The world of the sagas in one place.
struct SagaEffects: Sendable {
    var pool: any SnapshotCutting
    var agents: any AgentCalling
    var journal: any SagaJournaling
    var guarding: any RevertGuarding
    var clock: any SagaClock
    var blocking: BlockingCalls
    /// Shared by all drivers of a node.
    var reservations: VolumeReservations
    var logger: Logger
    var crashPoint: CrashPoint
    /// Called when an unfinished restore was kept: somebody goes on with it.
    var onUnfinishedRestore: @Sendable () async -> Void = {}

    init(
        pool: any SnapshotCutting, agents: any AgentCalling, journal: any SagaJournaling,
        guarding: any RevertGuarding, clock: any SagaClock = SystemClock(), blocking: BlockingCalls,
        reservations: VolumeReservations, logger: Logger, crashPoint: CrashPoint = .fromEnvironment
    ) {
        self.pool = pool
        self.agents = agents
        self.journal = journal
        self.guarding = guarding
        self.clock = clock
        self.blocking = blocking
        self.reservations = reservations
        self.logger = logger
        self.crashPoint = crashPoint
    }
}

/// The durable journal of the sagas; the production one is `SagaJournal` in Catalog.
protocol SagaJournaling: Sendable {
    /// Durable on return.
    func append(_ entry: SagaJournalEntry) async throws
    /// All records of the sagas that were not forgotten, each saga's in order.
    func entries() async throws -> [SagaJournalEntry]
    /// Forgets the records of a saga that has ended.
    func forget(sagaID: String) async throws
    /// The same for several, at the cost of one.
    func forget(sagaIDs: [String]) async throws
    /// How long each member took to come to rest in former sagas, in seconds, by `agent/plugin/resource`.
    func quiesceHistory() async throws -> [String: Double]
    func rememberQuiesce(_ seconds: [String: Double]) async throws
    /// Names of the volumes that an agent had when it last answered; nil when it never did.
    func lastKnownVolumes(ofAgent name: String) async throws -> Set<String>?
    func rememberVolumes(_ volumes: Set<String>, ofAgent name: String) async throws
    /// UUID of the machine that an agent runs on; nil where it never told.
    func machine(ofAgent name: String) async throws -> String?
    func rememberMachine(_ machine: String, ofAgent name: String) async throws
    /// What agents stopped for a revert and have not brought back; the oldest first.
    func unfinishedRestores() async throws -> [UnfinishedRestore]
    /// Durable on return.
    func keep(_ restore: UnfinishedRestore) async throws
    func forget(_ restore: UnfinishedRestore) async throws
}

extension SagaJournaling {
    func forget(sagaIDs: [String]) async throws { for id in sagaIDs { try await forget(sagaID: id) } }
}

/// What an agent stopped for a revert and has not brought back yet.
struct UnfinishedRestore: Sendable, Equatable {
    var agent: String
    var request: RestoreRequest
    var since: Date

    var volumes: [String] { request.volumes.map(\.name) }
}

struct SagaJournalEntry: Sendable, Equatable {
    enum Kind: String, Sendable { case snapshot, revert }

    var sagaID: String
    var kind: Kind
    var jobID: String
    /// From 0, without gaps.
    var sequence: Int
    /// The step's name, e.g. `quiesce.application`; docs/saga.md has the list.
    var step: String
    /// What undoes the step.
    var compensation: String
    /// JSON of the record of `Protection`.
    var body: String

    init(
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
