import Crypto
import Foundation
import Glibc
import SwiftASN1
import X509

/// The node's own authority: signs its certificate and those of its agents, and nothing else trusts it.
///
/// P-256 keys. Identity is the URI in the subject alternative name (`urn:stillpoint:node:ID`,
/// `urn:stillpoint:agent:NAME`), never a host name.
struct CertificateAuthority: Sendable {
    /// Ten years; an authority that ends takes every agent with it.
    static let authorityDays = 3_650
    static let nodeDays = 825
    /// The node renews an agent's certificate when a third of this is left.
    static let agentSeconds = 825.0 * 86_400

    let certificate: Certificate
    private let key: P256.Signing.PrivateKey

    /// Makes a new authority.
    init(nodeID: String, now: Date = .now) throws {
        key = P256.Signing.PrivateKey()
        let name = try DistinguishedName {
            OrganizationName("Stillpoint")
            CommonName("Stillpoint authority \(nodeID)")
        }
        let publicKey = Certificate.PublicKey(key.publicKey)
        certificate = try Certificate(
            version: .v3, serialNumber: .init(), publicKey: publicKey,
            notValidBefore: now.addingTimeInterval(-Self.clockSkewSeconds),
            notValidAfter: now.addingTimeInterval(Double(Self.authorityDays) * 86_400), issuer: name, subject: name,
            extensions: try Certificate.Extensions {
                Critical(BasicConstraints.isCertificateAuthority(maxPathLength: 0))
                Critical(KeyUsage(keyCertSign: true, cRLSign: true))
                SubjectKeyIdentifier(hash: publicKey)
            },
            issuerPrivateKey: .init(key))
    }

    /// Takes up an authority that was stored.
    init(certificatePEM: String, keyPEM: String) throws {
        certificate = try Certificate(pemEncoded: certificatePEM)
        key = try P256.Signing.PrivateKey(pemRepresentation: keyPEM)
        guard Certificate.PublicKey(key.publicKey) == certificate.publicKey else {
            throw FileFailure(message: "the authority's key does not belong to its certificate")
        }
    }

    private static let clockSkewSeconds = 300.0

    var keyPEM: String { key.pemRepresentation }

    var certificatePEM: String {
        get throws { try certificate.serializeAsPEM().pemString }
    }

    /// SHA-256 of the certificate in DER, hexadecimal: what an enrolment token carries.
    var fingerprint: String {
        get throws { try certificate.fingerprint }
    }

    /// The node's certificate, for serving the API and for calling agents.
    func issueNode(
        id: String, key nodeKey: P256.Signing.PublicKey, names: [CertificateName], now: Date = .now
    ) throws -> Certificate {
        try issue(
            commonName: "Stillpoint node \(id)", key: .init(nodeKey), uri: "urn:stillpoint:node:\(id)", names: names,
            usages: [.serverAuth, .clientAuth], lifetimeSeconds: Double(Self.nodeDays) * 86_400, now: now)
    }

    /// Signs an agent's request. Of the request only the public key is taken: the node says who the agent is.
    ///
    /// - Throws: ``FileFailure`` when the request is none, or not signed by its key.
    func issueAgent(
        name: String, requestPEM: String, lifetimeSeconds: Double = Self.agentSeconds, now: Date = .now
    ) throws -> Certificate {
        let request: CertificateSigningRequest
        do {
            request = try CertificateSigningRequest(pemEncoded: requestPEM)
        } catch {
            throw FileFailure(message: "the certificate request is not PKCS#10 in PEM")
        }
        guard request.publicKey.isValidSignature(request.signature, for: request) else {
            throw FileFailure(message: "the certificate request is not signed by its own key")
        }
        return try issue(
            commonName: "Stillpoint agent \(name)", key: request.publicKey, uri: "urn:stillpoint:agent:\(name)",
            names: [], usages: [.serverAuth, .clientAuth], lifetimeSeconds: lifetimeSeconds, now: now)
    }

    private func issue(
        commonName: String, key subjectKey: Certificate.PublicKey, uri: String, names: [CertificateName],
        usages: [ExtendedKeyUsage.Usage], lifetimeSeconds: Double, now: Date
    ) throws -> Certificate {
        let lifetime = now.addingTimeInterval(lifetimeSeconds)
        return try Certificate(
            version: .v3, serialNumber: .init(), publicKey: subjectKey,
            notValidBefore: now.addingTimeInterval(-Self.clockSkewSeconds),
            notValidAfter: min(lifetime, certificate.notValidAfter), issuer: certificate.subject,
            subject: try DistinguishedName {
                OrganizationName("Stillpoint")
                CommonName(String(commonName.prefix(64)))
            },
            extensions: try Certificate.Extensions {
                Critical(BasicConstraints.notCertificateAuthority)
                Critical(KeyUsage(digitalSignature: true))
                try ExtendedKeyUsage(usages)
                SubjectAlternativeNames([.uniformResourceIdentifier(uri)] + names.map(\.generalName))
                SubjectKeyIdentifier(hash: subjectKey)
                AuthorityKeyIdentifier(
                    keyIdentifier: SubjectKeyIdentifier(hash: certificate.publicKey).keyIdentifier)
            },
            issuerPrivateKey: .init(key))
    }
}

/// A host name or an IP address in a server certificate.
enum CertificateName: Sendable, Equatable, Hashable {
    case host(String)
    /// 4 or 16 bytes in network order.
    case address([UInt8])

    init?(_ text: String) {
        var v4 = in_addr()
        var v6 = in6_addr()
        if inet_pton(AF_INET, text, &v4) == 1 {
            self = .address(withUnsafeBytes(of: v4) { Array($0) })
        } else if inet_pton(AF_INET6, text, &v6) == 1 {
            self = .address(withUnsafeBytes(of: v6) { Array($0) })
        } else if Self.isHostName(text) {
            self = .host(text.lowercased())
        } else {
            return nil
        }
    }

    static func isValid(_ text: String) -> Bool { CertificateName(text) != nil }

    /// RFC 1123 2.1.
    private static func isHostName(_ text: String) -> Bool {
        let labels = text.split(separator: ".", omittingEmptySubsequences: false)
        return text.utf8.count <= 253
            && labels.allSatisfy { label in
                (1...63).contains(label.utf8.count) && label.first != "-" && label.last != "-"
                    && label.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-") }
            }
    }

    fileprivate var generalName: GeneralName {
        switch self {
        case .host(let name): .dnsName(name)
        case .address(let bytes): .ipAddress(ASN1OctetString(contentBytes: bytes[...]))
        }
    }
}

extension Certificate {
    /// SHA-256 of the DER, hexadecimal.
    var fingerprint: String {
        get throws {
            var serializer = DER.Serializer()
            try serializer.serialize(self)
            return SHA256.hash(data: serializer.serializedBytes).hexadecimal
        }
    }

    /// The `urn:stillpoint:` name in it.
    var stillpointURI: String? {
        guard let names = try? extensions.subjectAlternativeNames else { return nil }
        for case .uniformResourceIdentifier(let uri) in names where uri.hasPrefix("urn:stillpoint:") { return uri }
        return nil
    }
}

extension Sequence<UInt8> {
    var hexadecimal: String { map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined() }
}
