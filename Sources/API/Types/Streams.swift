/// One line of a diff, which is a stream of JSON objects separated by line ends. The first is of kind `size`, the last
/// of kind `end`; without it the diff was cut off.
public struct DiffLine: Codable, Sendable, Equatable {
    public enum Kind: String, Codable, Sendable, CaseIterable {
        /// The sizes of the two; `fromBytes` is absent where there is no older one.
        case size
        /// Was written since: the newer one has data there.
        case data
        /// Had data and has none any more.
        case hole
        case end
    }

    public var kind: Kind
    public var offset: UInt64?
    public var lengthBytes: UInt64?
    public var fromBytes: UInt64?
    public var toBytes: UInt64?

    public init(
        kind: Kind, offset: UInt64? = nil, lengthBytes: UInt64? = nil, fromBytes: UInt64? = nil, toBytes: UInt64? = nil
    ) {
        self.kind = kind
        self.offset = offset
        self.lengthBytes = lengthBytes
        self.fromBytes = fromBytes
        self.toBytes = toBytes
    }
}

/// A transfer of a snapshot that has begun and not ended.
public struct ReceiveInfo: Codable, Sendable, Equatable {
    /// Id of the snapshot that is being received.
    public var snapshot: String
    public var name: String
    /// Id of the older snapshot, of an increment.
    public var from: String?
    public var volumes: [String]
    /// How far it came on the way through the volumes' sizes.
    public var offsetBytes: UInt64
    public var sizeBytes: UInt64
    /// What the sender goes on with: `stillpoint snapshot send … --resume TOKEN`.
    public var resumeToken: String
    /// Whether it is being received now.
    public var isActive: Bool

    public init(
        snapshot: String, name: String, from: String?, volumes: [String], offsetBytes: UInt64, sizeBytes: UInt64,
        resumeToken: String, isActive: Bool
    ) {
        self.snapshot = snapshot
        self.name = name
        self.from = from
        self.volumes = volumes
        self.offsetBytes = offsetBytes
        self.sizeBytes = sizeBytes
        self.resumeToken = resumeToken
        self.isActive = isActive
    }
}
