/// What proves the achieved level. It maps one to one to the API's `EvidenceInfo`; docs/evidence.md explains it.
public struct Evidence: Codable, Sendable, Equatable {
    public var requested: ConsistencyLevel
    public var policy: LevelPolicy
    public var achieved: ConsistencyLevel
    /// Why `achieved` is less than `requested`; empty where it is not.
    public var reasons: [String]
    public var cut: CutFacts
    public var members: [MemberProof]

    public init(
        requested: ConsistencyLevel, policy: LevelPolicy, achieved: ConsistencyLevel, reasons: [String],
        cut: CutFacts, members: [MemberProof]
    ) {
        self.requested = requested
        self.policy = policy
        self.achieved = achieved
        self.reasons = reasons
        self.cut = cut
        self.members = members
    }

    /// The longest time that any member was quiet, in seconds.
    public var quietSeconds: Double { members.map(\.quietSeconds).max() ?? 0 }
}

/// The cut on the node's clocks.
public struct CutFacts: Codable, Sendable, Equatable {
    /// The pool's birth epoch that the cut closed.
    public var epoch: UInt64
    /// Nanoseconds since 1970.
    public var startedAt: Int64
    /// Until it was durable.
    public var durationSeconds: Double

    public init(epoch: UInt64, startedAt: Int64, durationSeconds: Double) {
        self.epoch = epoch
        self.startedAt = startedAt
        self.durationSeconds = durationSeconds
    }
}

/// What one member proved about its quiet window.
public struct MemberProof: Codable, Sendable, Equatable {
    public var member: Member
    /// The node had the answer "held" before it began the cut.
    public var heldBeforeCut: Bool
    /// The node asked for the release after the cut was durable.
    public var releasedAfterCut: Bool
    /// The hold was never lost, says the release; and it was quiet for at least as long as it must have been.
    public var stillHeldAtRelease: Bool
    /// On the agent's monotonic clock.
    public var quietSeconds: Double
    public var quiesceSeconds: Double
    public var failure: String?
    public var artifacts: [String: String]
    /// What its quiesce made of the data, where its layer alone does not say.
    public var level: ConsistencyLevel?

    public init(
        member: Member, heldBeforeCut: Bool, releasedAfterCut: Bool, stillHeldAtRelease: Bool, quietSeconds: Double,
        quiesceSeconds: Double, failure: String?, artifacts: [String: String], level: ConsistencyLevel? = nil
    ) {
        self.level = level
        self.member = member
        self.heldBeforeCut = heldBeforeCut
        self.releasedAfterCut = releasedAfterCut
        self.stillHeldAtRelease = stillHeldAtRelease
        self.quietSeconds = quietSeconds
        self.quiesceSeconds = quiesceSeconds
        self.failure = failure
        self.artifacts = artifacts
    }

    /// The cut lay inside the quiet window. A failure that a plug-in reports at release, after it proved that the hold
    /// had not been lost, does not change that; a hold given up before the cut has no window.
    public var isProven: Bool { heldBeforeCut && releasedAfterCut && stillHeldAtRelease }
}
