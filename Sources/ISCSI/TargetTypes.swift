public import SCSI

/// Every length, count and time that a peer can influence, in one place.
public struct TargetLimits: Sendable {
    /// Connections that have not finished login, per server.
    public var connectionsInLogin = 64
    /// Sessions of all targets together, discovery sessions included.
    public var sessions = 512
    /// Seconds from accept to the end of login; a connection that takes longer is closed.
    public var loginSeconds: Int64 = 15
    /// Seconds without any PDU from the initiator after which it is asked for a sign of life (NOP-In).
    public var idleSeconds: Int64 = 15
    /// Seconds that it has to give it before the connection is closed.
    public var pingSeconds: Int64 = 15
    /// Bytes of login or text keys that one negotiation may send.
    public var textBytes = 16 << 10
    /// PDUs that one login may take.
    public var loginRounds = 32
    /// Commands of one session that may be outstanding; also the width of the CmdSN window.
    public var commandsPerSession = 256
    /// Bytes that one session may have gathered in parameter lists of unfinished commands.
    public var gatheredBytesPerSession = 16 << 20
    /// Data segment bytes of one PDU that the target accepts (MaxRecvDataSegmentLength).
    public var receiveSegmentBytes = 256 << 10
    /// FirstBurstLength that is offered, in bytes.
    public var firstBurstBytes = 256 << 10
    /// MaxBurstLength that is offered, in bytes.
    public var maxBurstBytes = 1 << 20
    /// MaxOutstandingR2T that is offered.
    public var outstandingR2T = 8
    /// Bytes of answers that may wait for a peer that does not read before its commands wait too.
    public var pendingOutputBytes = 2 << 20
    /// Targets in one registry.
    public var targets = 4096
    /// LUNs in one target; LUN numbers are 0..<this, at most 16,384.
    public var lunsPerTarget = 1024
    /// Portal groups of one server.
    public var portalGroups = 64
    /// Rules in one target.
    public var rulesPerTarget = 1024

    public init() {}
}

/// Who a rule speaks of.
public enum InitiatorRule: Sendable, Hashable {
    /// Every initiator that has no rule of its own.
    case any
    /// The initiator with this iSCSI name, compared without regard to case (names are normalised to lower case).
    case named(String)
}

/// A CHAP name and secret, and the pair with which the target proves itself when the initiator asks it to.
public struct CHAPCredentials: Sendable, Equatable {
    public let user: String
    /// 12...255 bytes.
    public let secret: [UInt8]
    /// The target's own name and secret for mutual CHAP.
    public let mutual: Mutual?

    public struct Mutual: Sendable, Equatable {
        public let user: String
        public let secret: [UInt8]

        public init(user: String, secret: [UInt8]) {
            self.user = user
            self.secret = secret
        }
    }

    public enum Invalid: Error, Equatable, Sendable {
        /// A CHAP name is 1...255 bytes without control characters.
        case user(String)
        /// A secret is 12...255 bytes (RFC 7143 12.1.3 asks for 96 bits); this one has so many.
        case secretLength(Int)
        /// The two directions may not share a secret: the target's own answer could be played back to it.
        case sameSecret
    }

    /// - Throws: ``Invalid`` when a name or a secret breaks the limits, or both directions share a secret.
    public init(user: String, secret: [UInt8], mutual: Mutual? = nil) throws(Invalid) {
        for (name, key) in [(user, secret)] + (mutual.map { [($0.user, $0.secret)] } ?? []) {
            guard (1...255).contains(name.utf8.count), name.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7F }) else {
                throw .user(name)
            }
            guard (12...255).contains(key.count) else { throw .secretLength(key.count) }
        }
        if let mutual, mutual.secret == secret { throw .sameSecret }
        self.user = user
        self.secret = secret
        self.mutual = mutual
    }
}

/// Why the registry refused a change. Nothing is changed then.
public enum TargetError: Error, Equatable, Sendable {
    case noSuchTarget(iqn: String)
    case targetExists(iqn: String)
    /// No `iqn.`, `eui.` or `naa.` name of at most 223 bytes (RFC 7143 4.2.7).
    case invalidName(String)
    case noSuchLUN(iqn: String, lun: Int)
    case lunInUse(iqn: String, lun: Int)
    /// The number is not in 0..<``TargetLimits/lunsPerTarget``.
    case invalidLUN(Int)
    /// A device of this target has this identity already, or another device claims it.
    case identityInUse(naa: String)
    /// Logins that reach this device are blocked (a revert runs).
    case blocked(naa: String)
    case noSuchRule(iqn: String, initiator: InitiatorRule)
    /// Reservations were kept for this device and cannot be read; the text says why.
    case reservationsUnreadable(naa: String, reason: String)
    /// A limit of ``TargetLimits`` is reached; the text names it.
    case limit(String)
}

/// One session as an administrator sees it.
public struct SessionRecord: Sendable, Equatable {
    /// Unique while the process runs.
    public var id: UInt64
    /// The target's name; empty for a discovery session.
    public var iqn: String
    public var initiator: String
    /// The peer's address and port.
    public var address: String
    /// The portal group through which it came.
    public var portalGroupTag: UInt16
    /// The target session identifying handle.
    public var tsih: UInt16
    /// Nanoseconds since 1970.
    public var connectedAt: Int64
    public var statistics: CommandStatistics
    public var isDiscovery: Bool
}

/// One LUN of a target.
public struct LUNRecord: Sendable, Equatable {
    public var lun: Int
    public var identity: LogicalUnitIdentity
    public var sizeBytes: UInt64
    public var isReadOnly: Bool
}

/// One target as an administrator sees it; secrets stay inside.
public struct TargetRecord: Sendable, Equatable {
    public var iqn: String
    public var luns: [LUNRecord]
    public var rules: [Rule]

    public struct Rule: Sendable, Equatable {
        public var initiator: InitiatorRule
        public var requiresCHAP: Bool
        public var isMutual: Bool
    }
}

/// Counters of one target since it was added, for Prometheus.
public struct TargetMetrics: Sendable, Equatable {
    public var iqn: String
    public var sessions = 0
    public var statistics = CommandStatistics()
    public var loginsAccepted: UInt64 = 0
    public var loginsRefused: UInt64 = 0

    public init(iqn: String) { self.iqn = iqn }
}
