public import Foundation

/// A snapshot of one or several volumes, taken in one cut.
public struct SnapshotInfo: Codable, Sendable, Equatable {
    public enum Kind: String, Codable, Sendable {
        case user
        /// What a volume held before a revert.
        case beforeRevert
    }

    public var id: String
    public var name: String
    public var kind: Kind
    /// Names of the member volumes.
    public var volumes: [String]
    public var createdAt: Date
    public var requestedConsistency: Consistency
    public var achievedConsistency: Consistency
    /// The longest time that any member was quiet, in seconds; 0 for a crash-consistent snapshot.
    public var quietSeconds: Double
    public var sizeBytes: UInt64
    /// Names of volumes cloned from it; while there are any, it cannot be deleted.
    public var clones: [String]
    /// Only in the answer for one snapshot.
    public var evidence: EvidenceInfo?
    /// In the answer for one snapshot, and in lists that ask for it; not where the pool is read-only.
    public var space: SpaceInfo?

    public init(
        id: String, name: String, kind: Kind, volumes: [String], createdAt: Date,
        requestedConsistency: Consistency, achievedConsistency: Consistency, quietSeconds: Double,
        sizeBytes: UInt64, clones: [String], evidence: EvidenceInfo?, space: SpaceInfo? = nil
    ) {
        self.id = id
        self.name = name
        self.kind = kind
        self.volumes = volumes
        self.createdAt = createdAt
        self.requestedConsistency = requestedConsistency
        self.achievedConsistency = achievedConsistency
        self.quietSeconds = quietSeconds
        self.sizeBytes = sizeBytes
        self.clones = clones
        self.evidence = evidence
        self.space = space
    }
}

public struct SnapshotCreateRequest: Codable, Sendable, Equatable {
    public var volumes: [String]
    /// Unique; made from volume and time when nil.
    public var name: String?
    /// Default `crash`.
    public var consistency: Consistency?
    /// Default `require`.
    public var policy: ConsistencyPolicy?
    /// 2 to 60; default 10. The longest an agent keeps anything quiet without hearing from the node.
    public var leaseSeconds: Double?

    public init(
        volumes: [String], name: String? = nil, consistency: Consistency? = nil,
        policy: ConsistencyPolicy? = nil, leaseSeconds: Double? = nil
    ) {
        self.volumes = volumes
        self.name = name
        self.consistency = consistency
        self.policy = policy
        self.leaseSeconds = leaseSeconds
    }
}

/// What proves the achieved consistency, kept with the snapshot in the pool. docs/evidence.md explains each field.
public struct EvidenceInfo: Codable, Sendable, Equatable {
    public var version: Int
    public var requested: Consistency
    public var policy: ConsistencyPolicy
    public var achieved: Consistency
    /// Why `achieved` is less than `requested`; empty where it is not.
    public var reasons: [String]
    public var cut: CutInfo
    /// One for everything that was (or should have been) quiet.
    public var members: [MemberEvidence]

    public init(
        version: Int = 1, requested: Consistency, policy: ConsistencyPolicy, achieved: Consistency,
        reasons: [String], cut: CutInfo, members: [MemberEvidence]
    ) {
        self.version = version
        self.requested = requested
        self.policy = policy
        self.achieved = achieved
        self.reasons = reasons
        self.cut = cut
        self.members = members
    }
}

/// The cut, on the node's clock. `epoch` is the pool's birth epoch that the cut closed.
public struct CutInfo: Codable, Sendable, Equatable {
    public var epoch: UInt64
    public var startedAt: Date
    /// How long the cut took until it was durable, in seconds.
    public var durationSeconds: Double

    public init(epoch: UInt64, startedAt: Date, durationSeconds: Double) {
        self.epoch = epoch
        self.startedAt = startedAt
        self.durationSeconds = durationSeconds
    }
}

/// What one member (a file system, a database, a hook) proved about its quiet window.
public struct MemberEvidence: Codable, Sendable, Equatable {
    /// The agent's name.
    public var agent: String
    /// The plug-in's name, e.g. `postgresql`.
    public var plugin: String
    public var layer: ProtectionLayer
    /// The resource's id within its agent and plug-in, e.g. `/srv/db` or `cluster:/srv/db/main`.
    public var resource: String
    public var label: String
    /// Names of the volumes it lies on.
    public var volumes: [String]
    /// It was quiet before the cut began.
    public var heldBeforeCut: Bool
    /// Its release came after the cut had ended.
    public var releasedAfterCut: Bool
    /// The plug-in found, at release, that the hold had never been lost.
    public var stillHeldAtRelease: Bool
    /// From quiesced to released, on the agent's monotonic clock, in seconds.
    public var quietSeconds: Double
    /// How long bringing it to rest took, in seconds.
    public var quiesceSeconds: Double
    /// What went wrong, where something did.
    public var failure: String?
    /// What a restore may need, e.g. `backup_label`.
    public var artifacts: [String: String]
    /// What its quiesce made of the data, where its layer alone does not say: of a machine, for one.
    public var level: Consistency?

    public init(
        agent: String, plugin: String, layer: ProtectionLayer, resource: String, label: String, volumes: [String],
        heldBeforeCut: Bool, releasedAfterCut: Bool, stillHeldAtRelease: Bool, quietSeconds: Double,
        quiesceSeconds: Double, failure: String?, artifacts: [String: String], level: Consistency? = nil
    ) {
        self.level = level
        self.agent = agent
        self.plugin = plugin
        self.layer = layer
        self.resource = resource
        self.label = label
        self.volumes = volumes
        self.heldBeforeCut = heldBeforeCut
        self.releasedAfterCut = releasedAfterCut
        self.stillHeldAtRelease = stillHeldAtRelease
        self.quietSeconds = quietSeconds
        self.quiesceSeconds = quiesceSeconds
        self.failure = failure
        self.artifacts = artifacts
    }
}
