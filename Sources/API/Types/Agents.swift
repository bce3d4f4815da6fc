public import Foundation

/// A host agent as the node knows it.
public struct AgentInfo: Codable, Sendable, Equatable {
    public var name: String
    /// `HOST:PORT` where the node calls it.
    public var address: String
    public var enrolledAt: Date
    /// Nil when it never answered.
    public var lastSeenAt: Date?
    public var isReachable: Bool
    public var version: String?
    public var plugins: [PluginInfo]
    /// SHA-256 of its certificate, hexadecimal.
    public var certificateFingerprint: String
    /// What it protects on our volumes; only in the answer for one agent.
    public var resources: [ResourceInfo]?
    /// Why it is not reachable, where it is not.
    public var failure: String?
    /// The node renews it when a third of its life is left.
    public var certificateExpiresAt: Date?

    public init(
        name: String, address: String, enrolledAt: Date, lastSeenAt: Date?, isReachable: Bool, version: String?,
        plugins: [PluginInfo], certificateFingerprint: String, resources: [ResourceInfo]?, failure: String?,
        certificateExpiresAt: Date? = nil
    ) {
        self.name = name
        self.address = address
        self.enrolledAt = enrolledAt
        self.lastSeenAt = lastSeenAt
        self.isReachable = isReachable
        self.version = version
        self.plugins = plugins
        self.certificateFingerprint = certificateFingerprint
        self.resources = resources
        self.failure = failure
        self.certificateExpiresAt = certificateExpiresAt
    }
}

public struct AgentTokenRequest: Codable, Sendable, Equatable {
    /// The name the agent will have; letters, digits, `.`, `-`, `_`, at most 64.
    public var name: String
    /// 10 to 86,400; default 3,600.
    public var validSeconds: Int?

    public init(name: String, validSeconds: Int? = nil) {
        self.name = name
        self.validSeconds = validSeconds
    }
}

/// Shown once. Works once.
public struct AgentToken: Codable, Sendable, Equatable {
    /// `spt1.SECRET.CA`: a secret, and the SHA-256 of the node's certificate authority, so that an agent can tell the
    /// node it was meant for from one in between.
    public var token: String
    public var name: String
    public var expiresAt: Date

    public init(token: String, name: String, expiresAt: Date) {
        self.token = token
        self.name = name
        self.expiresAt = expiresAt
    }
}

/// `POST /v1/enroll`, authorised by the token in it.
public struct EnrollRequest: Codable, Sendable, Equatable {
    public var token: String
    /// `HOST:PORT` where the node will call the agent.
    public var address: String
    /// PKCS#10 in PEM; the key stays with the agent.
    public var certificateRequest: String
    public var version: String

    public init(token: String, address: String, certificateRequest: String, version: String) {
        self.token = token
        self.address = address
        self.certificateRequest = certificateRequest
        self.version = version
    }
}

public struct EnrollResponse: Codable, Sendable, Equatable {
    /// The agent's name in the node's records.
    public var name: String
    public var nodeID: String
    /// The agent's certificate, PEM; URI name `urn:stillpoint:agent:NAME`.
    public var certificate: String
    /// The authority that signs the node's and all agents' certificates, PEM.
    public var authority: String

    public init(name: String, nodeID: String, certificate: String, authority: String) {
        self.name = name
        self.nodeID = nodeID
        self.certificate = certificate
        self.authority = authority
    }
}
