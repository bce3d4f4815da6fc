public import Foundation

// The node renews an agent's certificate: it asks for a request, signs it, hands the certificate over, and has it
// confirmed over a connection that the new one was shown on.

/// The agent's next key stays with it; this is the request for its certificate. The same until it is installed.
public struct IdentityRequest: Codable, Sendable, Equatable {
    /// PKCS#10 in PEM.
    public var certificateRequest: String

    public init(certificateRequest: String) { self.certificateRequest = certificateRequest }
}

public struct IdentityInstall: Codable, Sendable, Equatable {
    /// PEM, of the authority the agent is enrolled with, for its name and its next key.
    public var certificate: String

    public init(certificate: String) { self.certificate = certificate }
}

/// The certificate that an agent shows.
public struct IdentityState: Codable, Sendable, Equatable {
    /// SHA-256 of the DER, hexadecimal.
    public var certificateFingerprint: String
    public var certificateExpiresAt: Date

    public init(certificateFingerprint: String, certificateExpiresAt: Date) {
        self.certificateFingerprint = certificateFingerprint
        self.certificateExpiresAt = certificateExpiresAt
    }
}
