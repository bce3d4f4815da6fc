/// What a snapshot saga is asked to do; fixed before its first step and journalled with it.
public struct SnapshotPlan: Codable, Sendable, Equatable {
    public var sagaID: String
    /// Chosen before the cut, so that recovery knows what to look for.
    public var snapshotID: String
    public var snapshotName: String
    public var volumes: [String]
    public var requested: ConsistencyLevel
    public var policy: LevelPolicy
    /// What agents are told: the longest they keep anything quiet without hearing from the node.
    public var lease: Duration
    /// Whoever may know of something on the volumes. Empty for `crash`.
    public var agents: [AgentCandidate]
    /// How long members took to come to rest before, in seconds, by `MemberKey.description`.
    public var history: [String: Double]

    public init(
        sagaID: String, snapshotID: String, snapshotName: String, volumes: [String], requested: ConsistencyLevel,
        policy: LevelPolicy, lease: Duration, agents: [AgentCandidate], history: [String: Double] = [:]
    ) {
        self.sagaID = sagaID
        self.snapshotID = snapshotID
        self.snapshotName = snapshotName
        self.volumes = volumes
        self.requested = requested
        self.policy = policy
        self.lease = lease
        self.agents = agents
        self.history = history
    }
}

public struct AgentCandidate: Codable, Sendable, Equatable {
    public var name: String
    /// The volumes it had when it last answered; nil when it never did. An agent that does not answer forbids a label
    /// only for volumes it had, or for all where that is not known.
    public var lastKnownVolumes: Set<String>?
    /// UUID of the machine that it runs on; nil where that is not known. A machine that is off explains its silence.
    public var machine: String?

    public init(name: String, lastKnownVolumes: Set<String>?, machine: String? = nil) {
        self.name = name
        self.lastKnownVolumes = lastKnownVolumes
        self.machine = machine
    }
}

/// Bounds of a saga. Times are on the node's clock.
public struct SagaLimits: Codable, Sendable, Equatable {
    public var discoverTimeout: Duration = .seconds(10)
    public var preflightTimeout: Duration = .seconds(20)
    public var renewTimeout: Duration = .seconds(2)
    /// Short, because a release is idempotent and its answer may have been lost.
    public var releaseTimeout: Duration = .seconds(4)
    public var retryInterval: Duration = .milliseconds(250)
    /// How long a layer's release waits for the layer above on *other* agents.
    public var releasePatience: Duration = .milliseconds(500)
    /// From the first hold request of a member; no lease is renewed beyond it.
    public var holdCap: Duration = .seconds(30)
    /// The longest time from sending a request until an agent takes it.
    public var transit: Duration = .seconds(2)
    /// How often a snapshot that cannot be deleted is tried again before it is left to recovery.
    public var deleteAttempts = 5

    public init() {}

    /// What must be left of every lease when the cut begins.
    public func cutReserve(lease: Duration) -> Duration { min(.seconds(2), lease / 4) }
}

/// The steps of the snapshot saga: names in the journal, of the job's steps, and of the crash points.
public enum SagaStep: String, Codable, Sendable, CaseIterable {
    case plan
    case preflight
    case quiesceApplication = "quiesce.application"
    case quiesceFileSystem = "quiesce.fileSystem"
    case quiesceMachine = "quiesce.machine"
    case quiesceHostFileSystem = "quiesce.hostFileSystem"
    case cut
    case unquiesceHostFileSystem = "unquiesce.hostFileSystem"
    case unquiesceMachine = "unquiesce.machine"
    case unquiesceFileSystem = "unquiesce.fileSystem"
    case unquiesceApplication = "unquiesce.application"
    case evidence
    case label
    case delete
    case done

    public static func quiesce(_ layer: QuiesceLayer) -> SagaStep {
        switch layer {
        case .application: .quiesceApplication
        case .fileSystem: .quiesceFileSystem
        case .machine: .quiesceMachine
        case .hostFileSystem: .quiesceHostFileSystem
        }
    }

    public static func unquiesce(_ layer: QuiesceLayer) -> SagaStep {
        switch layer {
        case .application: .unquiesceApplication
        case .fileSystem: .unquiesceFileSystem
        case .machine: .unquiesceMachine
        case .hostFileSystem: .unquiesceHostFileSystem
        }
    }

    /// What undoes the step when a later one fails, or when the node is stopped in it.
    public var compensation: String {
        switch self {
        case .plan, .preflight: "none: nothing was touched"
        case .quiesceApplication, .quiesceFileSystem, .quiesceMachine, .quiesceHostFileSystem:
            "release the holds; after a restart, thaw the saga on its agents"
        case .cut: "delete the pending snapshot"
        case .unquiesceHostFileSystem, .unquiesceMachine, .unquiesceFileSystem, .unquiesceApplication:
            "release again until it is answered or the lease has surely ended"
        case .evidence, .label: "write the label again from the journalled evidence"
        case .delete: "delete again"
        case .done: "none: the saga has ended"
        }
    }
}

/// One record of a saga's journal, durable before what it announces is done.
public struct SnapshotRecord: Codable, Sendable, Equatable {
    public enum Body: Codable, Sendable, Equatable {
        case plan(SnapshotPlan)
        case preflight
        case quiesce([HoldOrder])
        case cut
        case unquiesce([String])
        case evidence(Evidence)
        case label
        case delete(SagaFailure)
        case done(SagaFailure?)
    }

    /// From 0, without gaps.
    public var sequence: Int
    public var step: SagaStep
    public var body: Body

    public init(sequence: Int, step: SagaStep, body: Body) {
        self.sequence = sequence
        self.step = step
        self.body = body
    }
}

/// All members of one plug-in on one agent: they are held together, or none is.
public struct HoldOrder: Codable, Sendable, Equatable {
    public var holdID: String
    public var agent: String
    public var plugin: String
    public var layer: QuiesceLayer
    public var members: [Member]
    public var lease: Duration

    public init(
        holdID: String, agent: String, plugin: String, layer: QuiesceLayer, members: [Member], lease: Duration
    ) {
        self.holdID = holdID
        self.agent = agent
        self.plugin = plugin
        self.layer = layer
        self.members = members
        self.lease = lease
    }
}

/// What a release said about one resource.
public struct ReleaseAnswer: Codable, Sendable, Equatable {
    public var resource: String
    public var stillHeld: Bool
    public var quietSeconds: Double
    public var failure: String?
    public var artifacts: [String: String]
    /// Where that is less than the resource's own.
    public var level: ConsistencyLevel?

    public init(
        resource: String, stillHeld: Bool, quietSeconds: Double, failure: String? = nil,
        artifacts: [String: String] = [:], level: ConsistencyLevel? = nil
    ) {
        self.level = level
        self.resource = resource
        self.stillHeld = stillHeld
        self.quietSeconds = quietSeconds
        self.failure = failure
        self.artifacts = artifacts
    }
}
