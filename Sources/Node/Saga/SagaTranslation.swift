import API
import Foundation
import Protection

// Between the API's types and those of Protection: one to one.

extension ConsistencyLevel {
    init(_ consistency: Consistency) {
        switch consistency {
        case .crash: self = .crash
        case .fileSystem: self = .fileSystem
        case .application: self = .application
        }
    }

    var consistency: Consistency {
        switch self {
        case .crash: .crash
        case .fileSystem: .fileSystem
        case .application: .application
        }
    }
}

extension LevelPolicy {
    init(_ policy: ConsistencyPolicy) {
        switch policy {
        case .require: self = .require
        case .allowLower: self = .allowLower
        }
    }

    var consistencyPolicy: ConsistencyPolicy {
        switch self {
        case .require: .require
        case .allowLower: .allowLower
        }
    }
}

extension QuiesceLayer {
    init(_ layer: ProtectionLayer) {
        switch layer {
        case .application: self = .application
        case .fileSystem: self = .fileSystem
        case .machine: self = .machine
        case .hostFileSystem: self = .hostFileSystem
        }
    }

    var protectionLayer: ProtectionLayer {
        switch self {
        case .application: .application
        case .fileSystem: .fileSystem
        case .machine: .machine
        case .hostFileSystem: .hostFileSystem
        }
    }
}

extension Resource {
    init(_ info: ResourceInfo) {
        self.init(
            plugin: info.plugin, layer: QuiesceLayer(info.layer), id: info.id, label: info.label,
            volumes: info.volumes, details: info.details, level: info.level.map(ConsistencyLevel.init),
            machine: info.layer == .machine ? info.details["machine"]?.lowercased() : nil,
            isOff: info.layer == .machine && info.details["state"] == "off" ? true : nil)
    }

    var info: ResourceInfo {
        ResourceInfo(
            plugin: plugin, layer: layer.protectionLayer, id: id, label: label, volumes: volumes, details: details,
            level: level?.consistency)
    }
}

extension Finding {
    init(_ info: FindingInfo) {
        let severity: Finding.Severity =
            switch info.severity {
            case .note: .note
            case .warning: .warning
            case .error: .error
            }
        self.init(
            severity: severity, plugin: info.plugin, resource: info.resource, message: info.message, hint: info.hint)
    }
}

extension HoldOrder {
    func request(sagaID: String, policy: LevelPolicy) -> HoldRequest {
        HoldRequest(
            holdID: holdID, sagaID: sagaID, plugin: plugin, resources: members.map(\.resource.info),
            leaseSeconds: lease.inSeconds, allowsLower: policy == .allowLower)
    }
}

extension ReleaseAnswer {
    init(_ member: ReleasedMember) {
        self.init(
            resource: member.resource, stillHeld: member.stillHeld, quietSeconds: member.quietSeconds,
            failure: member.failure, artifacts: member.artifacts, level: member.level.map(ConsistencyLevel.init))
    }
}

extension EvidenceInfo {
    init(_ evidence: Evidence) {
        self.init(
            requested: evidence.requested.consistency, policy: evidence.policy.consistencyPolicy,
            achieved: evidence.achieved.consistency, reasons: evidence.reasons,
            cut: CutInfo(
                epoch: evidence.cut.epoch, startedAt: Date(unixNanoseconds: evidence.cut.startedAt),
                durationSeconds: evidence.cut.durationSeconds),
            members: evidence.members.map(MemberEvidence.init))
    }
}

extension MemberEvidence {
    fileprivate init(_ proof: MemberProof) {
        let resource = proof.member.resource
        self.init(
            agent: proof.member.agent, plugin: resource.plugin, layer: resource.layer.protectionLayer,
            resource: resource.id, label: resource.label, volumes: resource.volumes,
            heldBeforeCut: proof.heldBeforeCut, releasedAfterCut: proof.releasedAfterCut,
            stillHeldAtRelease: proof.stillHeldAtRelease, quietSeconds: proof.quietSeconds,
            quiesceSeconds: proof.quiesceSeconds, failure: proof.failure, artifacts: proof.artifacts,
            level: proof.level?.consistency)
    }
}

extension Date {
    /// At the API's precision.
    init(unixNanoseconds: Int64) { self.init(timeIntervalSince1970: Double(unixNanoseconds / 1_000_000) / 1000) }
}

extension SnapshotAttributes {
    /// Before the cut: nobody is shown it, and a restart knows whose it is.
    static func pending(_ plan: SnapshotPlan) -> SnapshotAttributes {
        SnapshotAttributes(
            sagaID: plan.sagaID, state: .pending, requested: plan.requested.consistency, achieved: .crash,
            quietSeconds: 0, evidence: nil)
    }

    static func complete(_ plan: SnapshotPlan, _ evidence: Evidence) -> SnapshotAttributes {
        SnapshotAttributes(
            sagaID: plan.sagaID, state: .complete, requested: plan.requested.consistency,
            achieved: evidence.achieved.consistency, quietSeconds: evidence.quietSeconds,
            evidence: EvidenceInfo(evidence))
    }
}

extension APIFailure {
    init(_ failure: SagaFailure) {
        let status: Int =
            switch failure.code {
            case .levelUnreachable, .volumeInUse: 409
            case .quiesceFailed, .notProven, .prepareFailed: 502
            case .cutFailed, .labelFailed, .journalFailed, .revertFailed: 500
            case .cancelled, .interrupted: 503
            }
        self.init(status: status, code: failure.code.rawValue, message: failure.message, hint: failure.hint)
    }
}

/// What an error of an agent call says about the agent.
struct AgentCallFailure {
    let text: String
    /// The agent itself answered with a refusal, so it has done nothing, or has undone it.
    let isRefusal: Bool
    /// The agent itself says that it does not have what was asked for.
    let isUnknown: Bool

    /// Codes that the client makes up where no agent has answered.
    private static let ofTheClient: Set<String> = [
        "agentUnreachable", "agentTimeout", "agentDisconnected", "agentIdentity", "agentRefused", "agentProtocol",
    ]

    init(_ error: any Error) {
        guard let failure = error as? APIFailure else {
            text = error is CancellationError ? "the call was cancelled" : String(describing: error)
            isRefusal = false
            isUnknown = false
            return
        }
        text = failure.description
        let isFromAgent = !Self.ofTheClient.contains(failure.code)
        isRefusal = isFromAgent && (400..<500).contains(failure.status)
        isUnknown = isFromAgent && ([404, 410].contains(failure.status) || failure.code == "holdEnded")
    }
}
