import Crypto
import Foundation
import SwiftASN1
import X509

/// Who a certificate is for.
enum PeerName: Sendable, Equatable {
    case node(id: String)
    /// Any node of the authority.
    case anyNode
    case agent(name: String)

    static let nodePrefix = "urn:stillpoint:node:"
    static let agentPrefix = "urn:stillpoint:agent:"

    func matches(_ uri: String) -> Bool {
        switch self {
        case .node(let id): uri == Self.nodePrefix + id
        case .anyNode: uri.hasPrefix(Self.nodePrefix) && uri != Self.nodePrefix
        case .agent(let name): uri == Self.agentPrefix + name
        }
    }
}

/// Why a certificate is not accepted.
struct CertificateRejection: Error, CustomStringConvertible {
    var description: String
}

/// Checks of certificates against the one authority the agent knows.
enum Certificates {
    /// SHA-256 of the DER, lower-case hexadecimal.
    static func fingerprint(_ der: [UInt8]) -> String {
        SHA256.hash(data: der).map { String(format: "%02x", $0) }.joined()
    }

    static func der(of certificate: Certificate) throws -> [UInt8] {
        var serializer = DER.Serializer()
        try serializer.serialize(certificate)
        return serializer.serializedBytes
    }

    static func uris(of certificate: Certificate) -> [String] {
        guard let names = try? certificate.extensions.subjectAlternativeNames else { return [] }
        return names.compactMap { name in
            if case .uniformResourceIdentifier(let uri) = name { uri } else { nil }
        }
    }

    /// The first of the chain must be valid now, chain to the root through the others, and carry the name.
    static func verify(
        chain: [Certificate], root: Certificate, name: PeerName, usage: ExtendedKeyUsage.Usage
    ) async throws {
        guard let leaf = chain.first else { throw CertificateRejection(description: "no certificate was shown") }
        if leaf == root { throw CertificateRejection(description: "the authority itself was shown as a peer") }
        var verifier = Verifier(rootCertificates: CertificateStore([root])) { RFC5280Policy() }
        let result = await verifier.validate(
            leaf: leaf, intermediates: CertificateStore(chain.dropFirst().filter { $0 != root }))
        if case .couldNotValidate(let failures) = result {
            let reason =
                failures.first.map { String(describing: $0.policyFailureReason) }
                ?? "it was not issued by the authority this agent is enrolled with"
            throw CertificateRejection(description: "the certificate is not valid: \(reason)")
        }
        if let usages = try? leaf.extensions.extendedKeyUsage, !usages.contains(usage), !usages.contains(.any) {
            throw CertificateRejection(description: "the certificate is not meant for this use (\(usage))")
        }
        let uris = uris(of: leaf)
        guard uris.contains(where: name.matches) else {
            let shown = uris.isEmpty ? "no name" : uris.joined(separator: ", ")
            throw CertificateRejection(description: "the certificate is for \(shown)")
        }
    }
}
