/// What `POST /v1/preflight` answers: what a snapshot would do, with nothing touched.
public struct SnapshotPreview: Codable, Sendable, Equatable {
    /// The name that it would have.
    public var name: String
    public var volumes: [String]
    public var requestedConsistency: Consistency
    public var policy: ConsistencyPolicy
    /// Reached if everything goes as found.
    public var attainableConsistency: Consistency
    /// Why it would fail before anything was touched; nil where it would be taken.
    public var refusal: String?
    /// Why `attainableConsistency` is less than `requestedConsistency`.
    public var reasons: [String]
    /// What would be brought to rest.
    public var members: [PreviewMember]
    /// Warnings, and what stands in the way.
    public var remarks: [String]
    /// The longest that any member would be quiet, in seconds.
    public var estimatedQuietSeconds: Double
    /// False where a member was never brought to rest before, and a usual value was taken for it.
    public var isEstimateFromHistory: Bool

    public init(
        name: String, volumes: [String], requestedConsistency: Consistency, policy: ConsistencyPolicy,
        attainableConsistency: Consistency, refusal: String?, reasons: [String], members: [PreviewMember],
        remarks: [String], estimatedQuietSeconds: Double, isEstimateFromHistory: Bool
    ) {
        self.name = name
        self.volumes = volumes
        self.requestedConsistency = requestedConsistency
        self.policy = policy
        self.attainableConsistency = attainableConsistency
        self.refusal = refusal
        self.reasons = reasons
        self.members = members
        self.remarks = remarks
        self.estimatedQuietSeconds = estimatedQuietSeconds
        self.isEstimateFromHistory = isEstimateFromHistory
    }
}

/// Something that a snapshot would bring to rest.
public struct PreviewMember: Codable, Sendable, Equatable {
    public var agent: String
    public var plugin: String
    public var layer: ProtectionLayer
    public var resource: String
    public var label: String
    /// Names of the volumes it lies on.
    public var volumes: [String]
    /// Why it cannot be brought to rest; nil where it can.
    public var blockedBy: String?
    /// How long it took to come to rest before, in seconds; nil where it never did.
    public var quiesceSeconds: Double?

    public init(
        agent: String, plugin: String, layer: ProtectionLayer, resource: String, label: String, volumes: [String],
        blockedBy: String?, quiesceSeconds: Double?
    ) {
        self.agent = agent
        self.plugin = plugin
        self.layer = layer
        self.resource = resource
        self.label = label
        self.volumes = volumes
        self.blockedBy = blockedBy
        self.quiesceSeconds = quiesceSeconds
    }
}
