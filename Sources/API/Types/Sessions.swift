public import Foundation

/// An initiator that is logged in.
public struct SessionInfo: Codable, Sendable, Equatable {
    /// Unique while the node runs; names the session in `session drop`.
    public var id: UInt64
    /// The target's name; empty for a discovery session.
    public var target: String
    public var initiator: String
    /// `HOST:PORT` of the initiator.
    public var address: String
    public var tsih: Int
    public var portalGroup: Int
    public var connectedAt: Date
    public var commands: UInt64
    public var failedCommands: UInt64
    public var readBytes: UInt64
    public var writtenBytes: UInt64
    public var reads: LatencyInfo
    public var writes: LatencyInfo

    public init(
        id: UInt64, target: String, initiator: String, address: String, tsih: Int, portalGroup: Int = 1,
        connectedAt: Date = Date(timeIntervalSince1970: 0), commands: UInt64 = 0, failedCommands: UInt64 = 0,
        readBytes: UInt64 = 0, writtenBytes: UInt64 = 0, reads: LatencyInfo = .init(), writes: LatencyInfo = .init()
    ) {
        self.id = id
        self.target = target
        self.initiator = initiator
        self.address = address
        self.tsih = tsih
        self.portalGroup = portalGroup
        self.connectedAt = connectedAt
        self.commands = commands
        self.failedCommands = failedCommands
        self.readBytes = readBytes
        self.writtenBytes = writtenBytes
        self.reads = reads
        self.writes = writes
    }
}

/// How long commands took, from the arrival of the command to its answer.
public struct LatencyInfo: Codable, Sendable, Equatable {
    public var count: UInt64
    public var meanSeconds: Double
    /// Half of the commands took no longer; rounded up to the next of 16 µs, 32 µs, … 16.8 s.
    public var medianSeconds: Double
    /// 99 % of the commands took no longer; rounded in the same way.
    public var p99Seconds: Double

    public init(count: UInt64 = 0, meanSeconds: Double = 0, medianSeconds: Double = 0, p99Seconds: Double = 0) {
        self.count = count
        self.meanSeconds = meanSeconds
        self.medianSeconds = medianSeconds
        self.p99Seconds = p99Seconds
    }
}

/// Who may ask which targets there are.
public struct DiscoveryInfo: Codable, Sendable, Equatable {
    /// Empty means anybody, each seeing the targets that it may log in to.
    public var access: [AccessInfo]

    public init(access: [AccessInfo]) { self.access = access }
}
