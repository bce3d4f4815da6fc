/// What a revert saga is asked to do; fixed before its first step and journalled with it.
public struct RevertPlan: Codable, Sendable, Equatable {
    public var sagaID: String
    public var volumes: [String]
    public var snapshotID: String
    public var snapshotName: String
    /// The snapshot that will keep what the volumes hold now; chosen before, so that recovery can tell whether the
    /// swap has happened.
    public var keepID: String
    public var keepName: String
    /// Ask the agents to stop what uses the volumes before, and to bring it back after.
    public var isDriven: Bool
    /// All enrolled agents, where `isDriven`.
    public var agents: [AgentCandidate]

    public init(
        sagaID: String, volumes: [String], snapshotID: String, snapshotName: String, keepID: String, keepName: String,
        isDriven: Bool, agents: [AgentCandidate]
    ) {
        self.sagaID = sagaID
        self.volumes = volumes
        self.snapshotID = snapshotID
        self.snapshotName = snapshotName
        self.keepID = keepID
        self.keepName = keepName
        self.isDriven = isDriven
        self.agents = agents
    }
}

/// The steps of the revert saga: names in the journal, of the job's steps, and of the crash points.
public enum RevertStep: String, Codable, Sendable, CaseIterable {
    case plan = "revert.plan"
    case prepare = "revert.prepare"
    case block = "revert.block"
    case check = "revert.check"
    case swap = "revert.swap"
    case attention = "revert.attention"
    case unblock = "revert.unblock"
    case finish = "revert.finish"
    case done = "revert.done"

    /// What undoes the step when a later one fails, or when the node is stopped in it.
    public var compensation: String {
        switch self {
        case .plan, .check: "none: nothing was touched"
        case .prepare: "finish-restore on the agents brings back what was stopped"
        case .block: "unblock; a restart does it by itself"
        case .swap: "none needed: it is one record, and what was there is kept as a snapshot"
        case .attention: "none needed: a restart ends all sessions"
        case .unblock: "unblock again; a restart does it by itself"
        case .finish: "finish-restore again; it is idempotent"
        case .done: "none: the saga has ended"
        }
    }
}

public struct RevertRecord: Codable, Sendable, Equatable {
    public enum Body: Codable, Sendable, Equatable {
        case plan(RevertPlan)
        /// The agents that are asked to stop something.
        case prepare([String])
        case block
        case swap
        case finish
        /// Nil where the volumes were reverted.
        case done(SagaFailure?)
    }

    public var sequence: Int
    public var step: RevertStep
    public var body: Body

    public init(sequence: Int, step: RevertStep, body: Body) {
        self.sequence = sequence
        self.step = step
        self.body = body
    }
}

/// Who can reach a volume now.
public struct VolumeSession: Codable, Sendable, Hashable {
    public var volume: String
    public var initiator: String
    /// Where it comes from, as the target sees it.
    public var address: String
    /// An agent on that host has just said that nothing there uses the volume any more.
    public var isIdle: Bool

    public init(volume: String, initiator: String, address: String, isIdle: Bool) {
        self.volume = volume
        self.initiator = initiator
        self.address = address
        self.isIdle = isIdle
    }
}

/// What a journal says of a revert saga.
public struct OpenRevert: Sendable, Equatable {
    public var plan: RevertPlan
    /// Agents on which something may have been stopped.
    public var preparedAgents: [String] = []
    /// The swap may have happened; whether it has, the pool knows.
    public var mayHaveSwapped = false
    public var isDone = false
    public var failure: SagaFailure?
    public var nextSequence: Int

    /// Nil without a plan: then nothing was touched.
    public init?(records: [RevertRecord]) {
        guard case .plan(let plan)? = records.first?.body else { return nil }
        self.plan = plan
        nextSequence = (records.last?.sequence ?? 0) + 1
        for record in records {
            switch record.body {
            case .plan, .block, .finish: break
            case .prepare(let agents): preparedAgents = agents
            case .swap: mayHaveSwapped = true
            case .done(let failure):
                isDone = true
                self.failure = failure
            }
        }
    }
}
