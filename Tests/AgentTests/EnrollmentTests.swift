import API
import Crypto
import Foundation
import Hummingbird
import HummingbirdCore
import HummingbirdTLS
import Logging
import NIOCore
import NIOSSL
import ServiceLifecycle
import SwiftASN1
import Synchronization
import Testing
import X509

@testable import stillpoint_agent

/// A node that does nothing but enroll.
struct StubNode {
    enum Fault: Sendable { case none, otherAuthority, otherKey, otherName, refuses }

    let port: Int
    let requests: Counter
    private let group: ServiceGroup

    final class Counter: Sendable {
        private let count = Mutex(0)
        var value: Int { count.withLock { $0 } }
        func increment() { count.withLock { $0 += 1 } }
    }

    static func start(
        authority: TestAuthority, fault: Fault = .none, isSecure: Bool = false, presented: TestAuthority? = nil,
        own: TLSConfiguration? = nil
    ) async throws -> StubNode {
        let requests = Counter()
        let router = Router()
        router.post("/v1/enroll") { request, _ in
            requests.increment()
            let body = try await request.body.collect(upTo: 1 << 20)
            let enroll = try APIJSON.decoder().decode(EnrollRequest.self, from: Data(body.readableBytesView))
            let answer = try answer(enroll, authority: authority, fault: fault)
            return Response(
                status: fault == .refuses ? .forbidden : .ok, headers: [.contentType: "application/json"],
                body: .init(byteBuffer: ByteBuffer(bytes: answer)))
        }
        let (ports, ready) = AsyncStream.makeStream(of: Int.self)
        let server: HTTPServerBuilder =
            isSecure ? try .tls(tlsConfiguration: own ?? tls(presented ?? authority)) : .http1()
        let logger = Logger(label: "stub") { _ in SwiftLogNoOpLogHandler() }
        let application = Application(
            router: router, server: server, configuration: .init(address: .hostname("127.0.0.1", port: 0)),
            onServerRunning: { ready.yield($0.localAddress?.port ?? 0) }, logger: logger)
        let group = ServiceGroup(services: [application], logger: logger)
        Task { try await group.run() }
        var port = 0
        for await first in ports {
            port = first
            break
        }
        return StubNode(port: port, requests: requests, group: group)
    }

    /// Not by cancellation: a connection that was accepted and not yet served would end the process (NIOAsyncWriter).
    func end() { Task { await group.triggerGracefulShutdown() } }

    private static func tls(_ authority: TestAuthority) throws -> TLSConfiguration {
        let key = P256.Signing.PrivateKey()
        let certificate = try authority.issue(.init(key.publicKey), uri: "urn:stillpoint:node:n1")
        return try tls(certificate: certificate, key: key, authority)
    }

    /// As an API with a certificate of the user's own: for a host name, with nothing of ours in it.
    static func ownTLS(
        _ authority: TestAuthority, address: [UInt8] = [127, 0, 0, 1]
    ) throws -> (TLSConfiguration, fingerprint: String) {
        let key = P256.Signing.PrivateKey()
        let certificate = try authority.issue(.init(key.publicKey), uri: nil, address: address)
        let leaf = try Certificate(pemEncoded: certificate)
        return (
            try tls(certificate: certificate, key: key, authority),
            Certificates.fingerprint(try Certificates.der(of: leaf))
        )
    }

    private static func tls(
        certificate: String, key: P256.Signing.PrivateKey, _ authority: TestAuthority
    ) throws -> TLSConfiguration {
        let chain = try NIOSSLCertificate.fromPEMBytes(Array((certificate + "\n" + authority.pem).utf8))
        return .makeServerConfiguration(
            certificateChain: chain.map { .certificate($0) },
            privateKey: .privateKey(try NIOSSLPrivateKey(bytes: Array(key.pemRepresentation.utf8), format: .pem)))
    }

    private static func answer(_ request: EnrollRequest, authority: TestAuthority, fault: Fault) throws -> Data {
        if fault == .refuses {
            return try APIJSON.encoder().encode(
                APIFailure(status: 403, code: "tokenUsed", message: "The token was used already", hint: "Make another"))
        }
        let asked = try CertificateSigningRequest(pemEncoded: request.certificateRequest).publicKey
        let key = fault == .otherKey ? Certificate.PublicKey(P256.Signing.PrivateKey().publicKey) : asked
        let issuer = fault == .otherAuthority ? try TestAuthority(name: "other") : authority
        let name = fault == .otherName ? "db-9" : "web-1"
        return try APIJSON.encoder().encode(
            EnrollResponse(
                name: "web-1", nodeID: "n1",
                certificate: try issuer.issue(key, uri: "urn:stillpoint:agent:\(name)"), authority: try issuer.pem))
    }
}

@Suite("Enrolment")
struct EnrollmentTests {
    let authority: TestAuthority
    let directory: TemporaryDirectory

    init() throws {
        authority = try TestAuthority()
        directory = try TemporaryDirectory()
    }

    private func enrollment(_ node: StubNode, isSecure: Bool = false) throws -> Enrollment {
        Enrollment(
            node: URL(string: "\(isSecure ? "https" : "http")://127.0.0.1:\(node.port)")!,
            token: try EnrollmentToken("spt1.c2VjcmV0.\(try authority.fingerprint)"), address: "10.0.0.7:11169")
    }

    @Test("an enrolled agent has a key that only it can read, and keeps its identity", arguments: [false, true])
    func enroll(isSecure: Bool) async throws {
        let node = try await StubNode.start(authority: authority, isSecure: isSecure)
        defer { node.end() }
        let identity = try await enrollment(node, isSecure: isSecure).run()
        let store = IdentityStore(directory: directory.path + "/state")
        #expect(try store.load() == nil)
        try store.save(identity)
        let loaded = try #require(try store.load())
        #expect(loaded.name == "web-1")
        #expect(loaded.nodeID == "n1")
        #expect(loaded.keyPEM == identity.keyPEM)
        let key = directory.path + "/state/identity/key.pem"
        #expect(FileStatus(path: key)?.mode == 0o600)
        try FileManager.default.setAttributes([.posixPermissions: 0o644], ofItemAtPath: key)
        #expect(throws: IdentityError.self) { try store.load() }
    }

    @Test("a replaced identity is whole, also after a crash between its two renames")
    func replace() async throws {
        let store = IdentityStore(directory: directory.path + "/state")
        try store.save(try authority.agent("one", nodeID: "n"))
        try store.save(try authority.agent("two", nodeID: "n"))
        #expect(try store.load()?.name == "two")
        let state = directory.path + "/state"
        try FileManager.default.moveItem(atPath: state + "/identity", toPath: state + "/identity.new")
        #expect(try store.load()?.name == "two")
        try FileManager.default.moveItem(atPath: state + "/identity", toPath: state + "/identity.old")
        #expect(try store.load()?.name == "two")
    }

    @Test(
        "an answer that is not from the token's authority, for our key and our name, is refused",
        arguments: [StubNode.Fault.otherAuthority, .otherKey, .otherName, .refuses])
    func badAnswers(fault: StubNode.Fault) async throws {
        let node = try await StubNode.start(authority: authority, fault: fault)
        defer { node.end() }
        await #expect(throws: IdentityError.self) { try await enrollment(node).run() }
    }

    @Test("somebody in between never sees the token")
    func interposed() async throws {
        let node = try await StubNode.start(
            authority: authority, isSecure: true, presented: try TestAuthority(name: "test authority"))
        defer { node.end() }
        await #expect(throws: IdentityError.self) { try await enrollment(node, isSecure: true).run() }
        #expect(node.requests.value == 0)
    }

    @Test("a node whose API has a certificate of its own is known by its authority or by its fingerprint")
    func ownCertificate() async throws {
        let own = try TestAuthority(name: "the company's authority")
        let (tls, fingerprint) = try StubNode.ownTLS(own)
        let node = try await StubNode.start(authority: authority, isSecure: true, own: tls)
        defer { node.end() }
        var enrollment = try enrollment(node, isSecure: true)
        // By the token alone nobody can tell it from somebody in between; the error names the way on.
        let refused = await #expect(throws: IdentityError.self) { try await enrollment.run() }
        #expect(refused?.description.contains("--node-ca") == true)
        enrollment.trust = .authority(pem: try TestAuthority(name: "another").pem)
        let other = await #expect(throws: IdentityError.self) { try await enrollment.run() }
        #expect(other?.description.contains("The token was not sent") == true)
        enrollment.trust = .fingerprint(String(repeating: "0", count: 64))
        await #expect(throws: IdentityError.self) { try await enrollment.run() }
        #expect(node.requests.value == 0)

        let file = directory.path + "/ca.pem"
        try directory.write(try own.pem, to: "ca.pem")
        enrollment.trust = try NodeTrust(authorityFile: file, fingerprint: nil)
        #expect(try await enrollment.run().name == "web-1")
        enrollment.trust = try NodeTrust(authorityFile: nil, fingerprint: fingerprint.uppercased())
        #expect(try await enrollment.run().name == "web-1")
    }

    @Test("a certificate for another host is refused with --node-ca")
    func otherHost() async throws {
        let own = try TestAuthority(name: "the company's authority")
        let (tls, _) = try StubNode.ownTLS(own, address: [10, 9, 8, 7])
        let node = try await StubNode.start(authority: authority, isSecure: true, own: tls)
        defer { node.end() }
        var enrollment = try enrollment(node, isSecure: true)
        enrollment.trust = .authority(pem: try own.pem)
        await #expect(throws: IdentityError.self) { try await enrollment.run() }
        #expect(node.requests.value == 0)
    }

    @Test("what cannot be used to know a node by is told so before anything is sent")
    func badTrust() throws {
        try directory.write("no certificate\n", to: "text.pem")
        for (file, fingerprint, message) in [
            ("/nonexistent", nil, "cannot be read"), (directory.path + "/text.pem", nil, "no certificate in PEM"),
            (nil, "abc", "64 hexadecimal digits"), ("/a", String(repeating: "a", count: 64), "either"),
        ] as [(String?, String?, String)] {
            let error = #expect(throws: IdentityError.self) {
                try NodeTrust(authorityFile: file, fingerprint: fingerprint)
            }
            #expect(error?.description.contains(message) == true)
        }
    }

    @Test("the token does not go over the network in clear")
    func clearText() async throws {
        let token = try EnrollmentToken("spt1.x.\(try authority.fingerprint)")
        for url in ["http://10.1.2.3:80", "http://example.org", "http://127.evil.example", "ftp://127.0.0.1", "node"] {
            await #expect(throws: IdentityError.self, "\(url)") {
                try await Enrollment(node: URL(string: url)!, token: token, address: "h:1").run()
            }
        }
    }

    @Test(
        "what is not a token is told so",
        arguments: [
            "", "spt1", "spt1.x.y", "spt2.x.\(String(repeating: "a", count: 64))",
            "spt1..\(String(repeating: "a", count: 64))",
        ])
    func badTokens(text: String) {
        #expect(throws: IdentityError.self) { try EnrollmentToken(text) }
    }
}
