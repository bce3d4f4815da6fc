import API
import Crypto
import Foundation
import SwiftASN1
import X509

@testable import stillpoint_agent

/// A small authority, as a node has one.
struct TestAuthority {
    let certificate: Certificate
    private let key = P256.Signing.PrivateKey()

    init(name: String = "test authority") throws {
        let subject = try DistinguishedName { CommonName(name) }
        certificate = try Certificate(
            version: .v3, serialNumber: .init(), publicKey: .init(key.publicKey),
            notValidBefore: .now - 300, notValidAfter: .now + 86_400, issuer: subject, subject: subject,
            signatureAlgorithm: .ecdsaWithSHA256,
            extensions: try Certificate.Extensions {
                Critical(BasicConstraints.isCertificateAuthority(maxPathLength: 0))
                Critical(KeyUsage(keyCertSign: true))
            },
            issuerPrivateKey: .init(key))
    }

    var pem: String { get throws { try certificate.serializeAsPEM().pemString } }

    var fingerprint: String { get throws { Certificates.fingerprint(try Certificates.der(of: certificate)) } }

    func issue(
        _ publicKey: Certificate.PublicKey, uri: String?, notAfter: Date = .now + 3_600,
        usages: [ExtendedKeyUsage.Usage] = [.serverAuth, .clientAuth], address: [UInt8]? = nil
    ) throws -> String {
        try Certificate(
            version: .v3, serialNumber: .init(), publicKey: publicKey, notValidBefore: .now - 7_200,
            notValidAfter: notAfter, issuer: certificate.subject,
            subject: try DistinguishedName { CommonName("test") }, signatureAlgorithm: .ecdsaWithSHA256,
            extensions: try Certificate.Extensions {
                Critical(BasicConstraints.notCertificateAuthority)
                Critical(KeyUsage(digitalSignature: true))
                try ExtendedKeyUsage(usages)
                if let uri { SubjectAlternativeNames([.uniformResourceIdentifier(uri)]) }
                if let address { SubjectAlternativeNames([.ipAddress(ASN1OctetString(contentBytes: address[...]))]) }
            },
            issuerPrivateKey: .init(key)
        ).serializeAsPEM().pemString
    }

    func client(
        uri: String?, notAfter: Date = .now + 3_600, usages: [ExtendedKeyUsage.Usage] = [.serverAuth, .clientAuth],
        trusting authority: TestAuthority? = nil
    ) throws -> AgentTLS {
        let key = P256.Signing.PrivateKey()
        return AgentTLS(
            certificatePEM: try issue(.init(key.publicKey), uri: uri, notAfter: notAfter, usages: usages),
            privateKeyPEM: key.pemRepresentation, authorityPEM: try (authority ?? self).pem)
    }

    func agent(_ name: String, nodeID: String) throws -> AgentIdentity {
        let key = P256.Signing.PrivateKey()
        return AgentIdentity(
            record: .init(
                name: name, nodeID: nodeID, node: "http://127.0.0.1", address: "127.0.0.1:11169", enrolledAt: .now),
            keyPEM: key.pemRepresentation,
            certificatePEM: try issue(.init(key.publicKey), uri: "urn:stillpoint:agent:\(name)"),
            authorityPEM: try pem)
    }
}

/// A directory of a test, removed with it. Short, because sockets live in it.
final class TemporaryDirectory: Sendable {
    let path: String

    init() throws {
        path = "/tmp/spa-" + String(UInt32.random(in: 0...UInt32.max), radix: 36)
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func write(_ text: String, to name: String, mode: Int = 0o644) throws {
        let file = path + "/" + name
        try FileManager.default.createDirectory(
            atPath: (file as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        try Data(text.utf8).write(to: URL(fileURLWithPath: file))
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: file)
    }
}

/// Waits for something that happens elsewhere, for a generous time.
func eventually(_ condition: () async throws -> Bool) async rethrows -> Bool {
    for _ in 0..<12_000 {
        if try await condition() { return true }
        try? await Task.sleep(for: .milliseconds(10))
    }
    return false
}
