import API
import Crypto
import Foundation
import SwiftASN1
import X509

/// Who this node is, made at the first start and kept in `DATA/pki` (every file 0600):
/// `node-id`, `ca.pem`, `ca.key`, `node.pem`, `node.key`, `secrets.key`.
struct NodeIdentity: Sendable {
    /// Lower-case UUID text, for ever.
    let nodeID: String
    let authority: CertificateAuthority
    let certificate: Certificate
    let secrets: SecretBox
    let directory: String
    /// What the node shows to its agents.
    let agentTLS: AgentTLS

    var authorityFile: String { directory + "/ca.pem" }
    var certificateFile: String { directory + "/node.pem" }
    var keyFile: String { directory + "/node.key" }

    /// A certificate with less left than this is issued anew at the start.
    private static let renewalDays = 90.0

    /// Reads the identity, making what is missing. An authority is never replaced: losing its key while the
    /// certificate is there is an error, because every agent trusts that one only.
    ///
    /// - Parameters:
    ///   - names: Host names and addresses for the server certificate.
    ///   - pki: `DATA/pki`.
    init(pki: String, names: Set<CertificateName>, now: Date = .now) throws {
        try PrivateFile.makeDirectory(pki)
        directory = pki
        nodeID = try Self.readOrMake(pki + "/node-id") { UUID().uuidString.lowercased() }
        guard UUID(uuidString: nodeID) != nil else {
            throw FileFailure(message: "\(pki)/node-id does not hold a UUID; restore it from a backup")
        }
        authority = try Self.authority(pki, nodeID: nodeID, now: now)
        let keyText = try Self.readOrMake(pki + "/node.key") { P256.Signing.PrivateKey().pemRepresentation }
        let key: P256.Signing.PrivateKey
        do {
            key = try P256.Signing.PrivateKey(pemRepresentation: keyText)
        } catch {
            throw FileFailure(message: "\(pki)/node.key is damaged; remove it together with node.pem to have new ones")
        }
        certificate = try Self.nodeCertificate(
            pki + "/node.pem", id: nodeID, key: key.publicKey, authority: authority, names: names, now: now)
        agentTLS = AgentTLS(
            certificatePEM: try certificate.serializeAsPEM().pemString, privateKeyPEM: keyText,
            authorityPEM: try authority.certificatePEM)
        secrets = try SecretBox(keyFile: pki + "/secrets.key")
    }

    private static func authority(_ pki: String, nodeID: String, now: Date) throws -> CertificateAuthority {
        let certificate = try PrivateFile.read(pki + "/ca.pem")
        let key = try PrivateFile.read(pki + "/ca.key")
        if let certificate, let key {
            do {
                return try CertificateAuthority(
                    certificatePEM: String(decoding: certificate, as: UTF8.self),
                    keyPEM: String(decoding: key, as: UTF8.self))
            } catch {
                throw FileFailure(message: "\(pki)/ca.pem or ca.key is damaged; restore both from a backup")
            }
        }
        guard certificate == nil else {
            throw FileFailure(
                message: "\(pki)/ca.key is missing though ca.pem is there; restore it from a backup "
                    + "(or remove both and enrol every agent again)")
        }
        let authority = try CertificateAuthority(nodeID: nodeID, now: now)
        // The key first: a crash between the two leaves a key without certificate, which is replaced.
        try PrivateFile.write(Data(authority.keyPEM.utf8), to: pki + "/ca.key")
        try PrivateFile.write(Data(try authority.certificatePEM.utf8), to: pki + "/ca.pem")
        return authority
    }

    private static func nodeCertificate(
        _ path: String, id: String, key: P256.Signing.PublicKey, authority: CertificateAuthority,
        names: Set<CertificateName>, now: Date
    ) throws -> Certificate {
        let wanted = try authority.issueNode(id: id, key: key, names: names.sorted { "\($0)" < "\($1)" }, now: now)
        if let stored = try PrivateFile.read(path),
            let certificate = try? Certificate(pemEncoded: String(decoding: stored, as: UTF8.self)),
            certificate.publicKey == wanted.publicKey, certificate.issuer == authority.certificate.subject,
            authority.certificate.publicKey.isValidSignature(certificate.signature, for: certificate),
            certificate.notValidAfter > now.addingTimeInterval(renewalDays * 86_400),
            try certificate.extensions.subjectAlternativeNames == wanted.extensions.subjectAlternativeNames
        {
            return certificate
        }
        try PrivateFile.write(Data(try wanted.serializeAsPEM().pemString.utf8), to: path)
        return wanted
    }

    private static func readOrMake(_ path: String, _ make: () -> String) throws -> String {
        if let data = try PrivateFile.read(path) {
            return String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        }
        let text = make()
        try PrivateFile.write(Data((text + "\n").utf8), to: path)
        return text
    }
}

/// Seals CHAP secrets before they go into the catalog, so that a copy of the catalog alone tells nothing.
struct SecretBox: Sendable {
    private let key: SymmetricKey

    init(keyFile: String) throws {
        if let data = try PrivateFile.read(keyFile) {
            guard data.count == 32 else {
                throw FileFailure(message: "\(keyFile) is damaged; restore it from a backup")
            }
            key = SymmetricKey(data: data)
        } else {
            key = SymmetricKey(size: .bits256)
            try PrivateFile.write(key.withUnsafeBytes { Data($0) }, to: keyFile)
        }
    }

    /// `context` names what the secret belongs to; a sealed secret that is moved elsewhere does not open.
    func seal(_ secret: String, context: String) throws -> Data {
        let box = try AES.GCM.seal(Data(secret.utf8), using: key, authenticating: Data(context.utf8))
        guard let combined = box.combined else { throw FileFailure(message: "cannot seal a secret") }
        return combined
    }

    func open(_ sealed: Data, context: String) throws -> String {
        do {
            let box = try AES.GCM.SealedBox(combined: sealed)
            return String(
                decoding: try AES.GCM.open(box, using: key, authenticating: Data(context.utf8)), as: UTF8.self)
        } catch {
            throw FileFailure(
                message: "the CHAP secret for \(context) does not open with pki/secrets.key; set it again")
        }
    }
}

/// The bearer token of the administrator. The file holds it in clear, the node compares hashes.
struct AdministratorToken: Sendable {
    let file: String
    private let digest: SHA256.Digest

    /// Reads `DATA/admin-token`, or makes it.
    init(file: String) throws {
        self.file = file
        var token = try PrivateFile.read(file).map {
            String(decoding: $0, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        }
        if token == nil {
            let made = "spa1." + RandomText.make(bytes: 32)
            try PrivateFile.write(Data((made + "\n").utf8), to: file)
            token = made
        }
        guard let token, token.utf8.count >= 32 else {
            throw FileFailure(
                message: "\(file) does not hold a token of at least 32 characters; remove it to have a new one")
        }
        digest = SHA256.hash(data: Data(token.utf8))
    }

    /// In time that does not depend on where the two differ: digests are compared, and in constant time.
    func matches(_ presented: String) -> Bool { SHA256.hash(data: Data(presented.utf8)) == digest }
}

enum RandomText {
    /// Base64url without padding, from the system's generator.
    static func make(bytes count: Int) -> String {
        var generator = SystemRandomNumberGenerator()
        let bytes = (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
        return Data(bytes).base64EncodedString().replacing("+", with: "-").replacing("/", with: "_")
            .replacing("=", with: "")
    }
}
