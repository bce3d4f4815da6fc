import Crypto
import Foundation
import SwiftASN1
import Testing
@_spi(FixedExpiryValidationTime) import X509

@testable import Node

@Suite("Identity")
struct IdentityTests {
    private let directory = FileManager.default.temporaryDirectory.appending(path: "sp-pki-\(UUID().uuidString)").path

    private func cleanUp() { try? FileManager.default.removeItem(atPath: directory) }

    private func identity(names: [String] = ["localhost", "127.0.0.1"], now: Date = .now) throws -> NodeIdentity {
        try NodeIdentity(pki: directory, names: Set(names.compactMap(CertificateName.init)), now: now)
    }

    private func verifies(
        _ certificate: Certificate, by authority: Certificate, at date: Date = .now
    ) async -> Bool {
        var verifier = Verifier(rootCertificates: CertificateStore([authority])) {
            RFC5280Policy(fixedExpiryValidationTime: date)
        }
        let result = await verifier.validate(leaf: certificate, intermediates: CertificateStore([]))
        if case .validCertificate = result { return true }
        return false
    }

    private static func request(_ key: P256.Signing.PrivateKey, name: String = "whoever") throws -> String {
        try CertificateSigningRequest(
            version: .v1, subject: DistinguishedName { CommonName(name) }, privateKey: .init(key),
            attributes: .init()
        ).serializeAsPEM().pemString
    }

    @Test("the first start makes everything, private to the owner; the second finds it")
    func madeOnce() throws {
        defer { cleanUp() }
        let first = try identity()
        let second = try identity()
        #expect(first.nodeID == second.nodeID)
        #expect(try first.authority.fingerprint == second.authority.fingerprint)
        #expect(try first.certificate.fingerprint == second.certificate.fingerprint)
        for name in try FileManager.default.contentsOfDirectory(atPath: directory) {
            let attributes = try FileManager.default.attributesOfItem(atPath: directory + "/" + name)
            #expect((attributes[.posixPermissions] as? NSNumber)?.intValue == 0o600, "\(name)")
        }
    }

    @Test("the node's certificate names the node, is signed by its authority, and by no other")
    func nodeCertificate() async throws {
        defer { cleanUp() }
        let identity = try identity()
        #expect(identity.certificate.stillpointURI == "urn:stillpoint:node:\(identity.nodeID)")
        #expect(await verifies(identity.certificate, by: identity.authority.certificate))
        let stranger = try CertificateAuthority(nodeID: "other")
        #expect(await !verifies(identity.certificate, by: stranger.certificate))
        let years = Date.now.addingTimeInterval(86_400 * 900)
        #expect(await !verifies(identity.certificate, by: identity.authority.certificate, at: years))
    }

    @Test("an agent's certificate says what the node says, whatever its request asks for")
    func agentCertificate() async throws {
        defer { cleanUp() }
        let identity = try identity()
        let key = P256.Signing.PrivateKey()
        let pem = try Self.request(key, name: "urn:stillpoint:node:\(identity.nodeID)")
        let certificate = try identity.authority.issueAgent(name: "db1", requestPEM: pem)
        #expect(certificate.stillpointURI == "urn:stillpoint:agent:db1")
        #expect(certificate.publicKey == Certificate.PublicKey(key.publicKey))
        #expect(await verifies(certificate, by: identity.authority.certificate))
        #expect(try certificate.extensions.basicConstraints == .notCertificateAuthority)
    }

    @Test("a request that is not signed by its own key, or is none, is refused")
    func badRequests() throws {
        defer { cleanUp() }
        let identity = try identity()
        let pem = try Self.request(P256.Signing.PrivateKey())
        let lines = pem.split(separator: "\n").map(String.init)
        var body = try #require(Data(base64Encoded: lines.dropFirst().dropLast().joined()))
        body[body.count - 1] ^= 1
        let forged = ([lines[0], body.base64EncodedString(), lines[lines.count - 1]]).joined(separator: "\n")
        for text in ["", "nonsense", lines[0], forged] {
            #expect(throws: FileFailure.self) { try identity.authority.issueAgent(name: "db1", requestPEM: text) }
        }
    }

    @Test("a certificate near its end, or for other names, is issued anew; the key and the authority stay")
    func renewal() throws {
        defer { cleanUp() }
        let first = try identity()
        let later = try identity(now: Date.now.addingTimeInterval(86_400 * 740))
        #expect(try later.certificate.fingerprint != first.certificate.fingerprint)
        #expect(later.certificate.publicKey == first.certificate.publicKey)
        let renamed = try identity(names: ["storage.example.org"], now: Date.now.addingTimeInterval(86_400 * 740))
        #expect(try renamed.certificate.fingerprint != later.certificate.fingerprint)
        #expect(try renamed.authority.fingerprint == first.authority.fingerprint)
    }

    @Test("an authority whose key is lost or strange is never silently replaced")
    func lostAuthority() throws {
        defer { cleanUp() }
        _ = try identity()
        try PrivateFile.write(Data(P256.Signing.PrivateKey().pemRepresentation.utf8), to: directory + "/ca.key")
        #expect(throws: FileFailure.self) { try identity() }
        try FileManager.default.removeItem(atPath: directory + "/ca.key")
        #expect(throws: FileFailure.self) { try identity() }
    }

    @Test("key files that others can read are refused")
    func openFiles() throws {
        defer { cleanUp() }
        _ = try identity()
        try FileManager.default.setAttributes([.posixPermissions: 0o644], ofItemAtPath: directory + "/node.key")
        let failure = #expect(throws: FileFailure.self) { try identity() }
        #expect(failure?.description.contains("chmod 600") == true)
    }

    @Test("a sealed secret opens where it belongs and nowhere else")
    func secrets() throws {
        defer { cleanUp() }
        let box = try identity().secrets
        let sealed = try box.seal("correct horse battery", context: "iqn.a/any")
        #expect(try box.open(sealed, context: "iqn.a/any") == "correct horse battery")
        #expect(throws: FileFailure.self) { try box.open(sealed, context: "iqn.b/any") }
        #expect(!sealed.contains("correct".utf8))
        #expect(try identity().secrets.open(sealed, context: "iqn.a/any") == "correct horse battery")
    }

    @Test("the administrator's token is made once, and only it matches")
    func administratorToken() throws {
        defer { cleanUp() }
        try PrivateFile.makeDirectory(directory)
        let file = directory + "/admin-token"
        let token = try AdministratorToken(file: file)
        let text = try String(contentsOfFile: file, encoding: .utf8).trimmingCharacters(in: .newlines)
        #expect(token.matches(text))
        #expect(!token.matches(""))
        #expect(!token.matches(text + "x"))
        #expect(!token.matches(String(text.dropLast())))
        #expect(try AdministratorToken(file: file).matches(text))
    }
}

extension Data {
    fileprivate func contains(_ other: some Sequence<UInt8>) -> Bool { range(of: Data(other)) != nil }
}
