/// An iSCSI target: a name (IQN), LUNs, and who may reach them.
public struct TargetInfo: Codable, Sendable, Equatable {
    public var iqn: String
    public var portals: [String]
    public var luns: [LUNInfo]
    /// Empty means closed.
    public var access: [AccessInfo]
    public var sessions: [SessionInfo]

    public init(
        iqn: String, portals: [String], luns: [LUNInfo], access: [AccessInfo], sessions: [SessionInfo]
    ) {
        self.iqn = iqn
        self.portals = portals
        self.luns = luns
        self.access = access
        self.sessions = sessions
    }
}

public struct LUNInfo: Codable, Sendable, Equatable {
    public var lun: Int
    /// Name of the volume, or of the snapshot's member for a read-only export.
    public var volume: String
    public var naa: String
    public var isReadOnly: Bool

    public init(lun: Int, volume: String, naa: String, isReadOnly: Bool) {
        self.lun = lun
        self.volume = volume
        self.naa = naa
        self.isReadOnly = isReadOnly
    }
}

public struct AccessInfo: Codable, Sendable, Equatable {
    /// An initiator name, or `any`.
    public var initiator: String
    public var chapUser: String?
    /// True where the target proves itself too.
    public var isMutual: Bool

    public init(initiator: String, chapUser: String?, isMutual: Bool) {
        self.initiator = initiator
        self.chapUser = chapUser
        self.isMutual = isMutual
    }
}

public struct TargetAllowRequest: Codable, Sendable, Equatable {
    /// An initiator name, or `any`.
    public var initiator: String
    public var chapUser: String?
    /// 12 to 255 bytes (RFC 7143 12.1.3 asks for more than 96 bits).
    public var chapSecret: String?
    public var mutualUser: String?
    public var mutualSecret: String?

    public init(
        initiator: String, chapUser: String? = nil, chapSecret: String? = nil, mutualUser: String? = nil,
        mutualSecret: String? = nil
    ) {
        self.initiator = initiator
        self.chapUser = chapUser
        self.chapSecret = chapSecret
        self.mutualUser = mutualUser
        self.mutualSecret = mutualSecret
    }
}

public struct TargetDenyRequest: Codable, Sendable, Equatable {
    /// An initiator name, or `any`. Its sessions are dropped.
    public var initiator: String

    public init(initiator: String) { self.initiator = initiator }
}
