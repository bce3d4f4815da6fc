/// The node at a glance.
public struct NodeStatus: Codable, Sendable, Equatable {
    public var nodeID: String
    public var version: String
    public var uptimeSeconds: Double
    /// `HOST:PORT` each.
    public var apiAddress: String
    public var iscsiAddress: String
    public var dataDirectory: String
    public var pool: PoolStatus
    public var volumeCount: Int
    public var snapshotCount: Int
    public var agentCount: Int
    public var reachableAgentCount: Int
    public var runningJobs: Int

    public init(
        nodeID: String, version: String, uptimeSeconds: Double, apiAddress: String, iscsiAddress: String,
        dataDirectory: String, pool: PoolStatus, volumeCount: Int, snapshotCount: Int, agentCount: Int,
        reachableAgentCount: Int, runningJobs: Int
    ) {
        self.nodeID = nodeID
        self.version = version
        self.uptimeSeconds = uptimeSeconds
        self.apiAddress = apiAddress
        self.iscsiAddress = iscsiAddress
        self.dataDirectory = dataDirectory
        self.pool = pool
        self.volumeCount = volumeCount
        self.snapshotCount = snapshotCount
        self.agentCount = agentCount
        self.reachableAgentCount = reachableAgentCount
        self.runningJobs = runningJobs
    }
}

public struct PoolStatus: Codable, Sendable, Equatable {
    public enum State: String, Codable, Sendable { case healthy, readOnly, full }

    public var state: State
    public var sizeBytes: UInt64
    public var usedBytes: UInt64
    public var freeBytes: UInt64
    /// Why it is not healthy.
    public var failure: String?
    /// What somebody should look at, the worst first.
    public var alerts: [PoolAlert]

    public init(
        state: State, sizeBytes: UInt64, usedBytes: UInt64, freeBytes: UInt64, failure: String?,
        alerts: [PoolAlert] = []
    ) {
        self.alerts = alerts
        self.state = state
        self.sizeBytes = sizeBytes
        self.usedBytes = usedBytes
        self.freeBytes = freeBytes
        self.failure = failure
    }
}

/// `GET /health`, without a token.
public struct HealthInfo: Codable, Sendable, Equatable {
    public var status: String
    public var checks: [String: String]

    public init(status: String, checks: [String: String]) {
        self.status = status
        self.checks = checks
    }
}
