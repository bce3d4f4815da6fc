/// What a plug-in says beforehand about bringing something to rest.
public struct Finding: Codable, Sendable, Equatable {
    public enum Severity: String, Codable, Sendable { case note, warning, error }

    public var severity: Severity
    public var plugin: String
    /// Nil: all of the plug-in's resources on this agent.
    public var resource: String?
    public var message: String
    public var hint: String?

    public init(severity: Severity, plugin: String, resource: String?, message: String, hint: String? = nil) {
        self.severity = severity
        self.plugin = plugin
        self.resource = resource
        self.message = message
        self.hint = hint
    }
}

/// What follows from all findings for a group.
public struct PreflightVerdict: Codable, Sendable, Equatable {
    /// Members that cannot be brought to rest, with the reason.
    public var blocked: [MemberKey: String]
    /// Warnings and errors as sentences.
    public var remarks: [String]
    public var estimate: QuietEstimate

    /// - Parameters:
    ///   - findings: by agent.
    ///   - unreachable: agents that did not answer, with the reason.
    ///   - history: how long members took to come to rest before, in seconds, by `MemberKey.description`.
    public init(
        group: ConsistencyGroup, findings: [String: [Finding]], unreachable: [String: String],
        history: [String: Double]
    ) {
        var blocked: [MemberKey: String] = [:]
        var remarks: [String] = []
        for member in group.members {
            if let reason = unreachable[member.agent] { blocked[member.key] = reason }
        }
        for (agent, all) in findings.sorted(by: { $0.key < $1.key }) {
            for finding in all where finding.severity != .note {
                let hint = finding.hint.map { "; \($0)" } ?? ""
                let sentence = "\(finding.message)\(hint) (agent \(agent), plug-in \(finding.plugin))"
                remarks.append(sentence)
                guard finding.severity == .error else { continue }
                for member in group.members where member.agent == agent {
                    guard member.resource.plugin == finding.plugin else { continue }
                    guard finding.resource == nil || finding.resource == member.resource.id else { continue }
                    blocked[member.key] = blocked[member.key] ?? sentence
                }
            }
        }
        self.blocked = blocked
        self.remarks = remarks
        let keys = blocked
        estimate = QuietEstimate(members: group.members.filter { keys[$0.key] == nil }, history: history)
    }
}

/// How long the members will be quiet. Layers come to rest one after another, the members of a layer side by side:
/// what came to rest first waits for the slowest of each layer after it, and for the cut.
public struct QuietEstimate: Codable, Sendable, Equatable {
    /// The longest that any member will be quiet, in seconds.
    public var longestSeconds: Double
    /// By layer, the slowest member's time to come to rest, in seconds.
    public var quiesceSeconds: [QuiesceLayer: Double]
    /// False where at least one member has no history and a usual value was taken.
    public var isFromHistory: Bool

    /// Cut, journal and one round trip to release, where nothing is known yet.
    static let usualCutSeconds = 0.1

    static func usualQuiesceSeconds(_ layer: QuiesceLayer) -> Double {
        switch layer {
        case .application: 0.5
        case .fileSystem: 0.3
        case .machine: 0.2
        case .hostFileSystem: 0.3
        }
    }

    public init(members: [Member], history: [String: Double]) {
        var slowest: [QuiesceLayer: Double] = [:]
        var isFromHistory = true
        for member in members {
            let layer = member.resource.layer
            let known = history[member.key.description]
            if known == nil { isFromHistory = false }
            slowest[layer] = max(slowest[layer] ?? 0, known ?? Self.usualQuiesceSeconds(layer))
        }
        quiesceSeconds = slowest
        self.isFromHistory = isFromHistory
        longestSeconds = members.isEmpty ? 0 : slowest.values.reduce(0, +) + Self.usualCutSeconds
    }
}
