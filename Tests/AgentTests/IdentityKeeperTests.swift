import API
import Crypto
import Foundation
import SwiftASN1
import Testing
import X509

@testable import stillpoint_agent

@Suite("Renewal of the agent's certificate")
struct IdentityKeeperTests {
    let authority: TestAuthority
    let directory: TemporaryDirectory
    let store: IdentityStore
    let keeper: IdentityKeeper

    init() throws {
        authority = try TestAuthority()
        directory = try TemporaryDirectory()
        store = IdentityStore(directory: directory.path + "/state")
        try store.save(try authority.agent("web-1", nodeID: "n1"))
        keeper = try IdentityKeeper(try #require(try store.load()), store: store)
    }

    private func certificate(
        uri: String = "urn:stillpoint:agent:web-1", notAfter: Date = .now + 7_200, by other: TestAuthority? = nil
    ) throws -> IdentityInstall {
        let request = try CertificateSigningRequest(pemEncoded: try keeper.request().certificateRequest)
        return IdentityInstall(
            certificate: try (other ?? authority).issue(request.publicKey, uri: uri, notAfter: notAfter))
    }

    private var hasPrevious: Bool { FileManager.default.fileExists(atPath: directory.path + "/state/identity.old") }

    @Test("a new certificate is shown at once; the old one stays on the disk until the new one has been seen")
    func renews() async throws {
        let before = try keeper.shown
        let install = try certificate()
        let installed = try await keeper.install(install)
        #expect(installed.certificateFingerprint != before.certificateFingerprint)
        #expect(installed.certificateExpiresAt > before.certificateExpiresAt)
        #expect(try store.load()?.certificatePEM == install.certificate)
        #expect(hasPrevious)
        // An answer that was lost: the same again.
        #expect(try await keeper.install(install) == installed)
        #expect(throws: APIFailure.self) { try keeper.confirm(before) }
        #expect(hasPrevious)
        #expect(try keeper.confirm(installed) == installed)
        #expect(!hasPrevious)
        #expect(try store.load()?.certificatePEM == install.certificate)
    }

    @Test("a certificate of another authority, for another name, key or a shorter time changes nothing")
    func refusals() async throws {
        let before = try keeper.shown
        let unasked = IdentityInstall(
            certificate: try authority.issue(
                .init(P256.Signing.PrivateKey().publicKey), uri: "urn:stillpoint:agent:web-1", notAfter: .now + 7_200))
        await #expect(throws: APIFailure.self, "not asked for") { try await keeper.install(unasked) }
        for install in [
            unasked, try certificate(by: try TestAuthority(name: "other")),
            try certificate(uri: "urn:stillpoint:agent:db-9"), try certificate(uri: "urn:stillpoint:node:n1"),
            try certificate(notAfter: .now + 600), IdentityInstall(certificate: "garbage"),
        ] {
            let failure = await #expect(throws: APIFailure.self) { try await keeper.install(install) }
            #expect(failure?.code == "identityRefused")
        }
        #expect(try keeper.shown == before)
        #expect(!hasPrevious)
    }

    @Test("a renewed identity that cannot be used after a crash gives way to the one before")
    func damaged() async throws {
        let before = try keeper.shown
        _ = try await keeper.install(try certificate())
        try directory.write("cut sho", to: "state/identity/certificate.pem")
        let loaded = try #require(try store.load())
        #expect(try IdentityKeeper(loaded, store: store).shown == before)
        // Cut short between the two renames.
        try FileManager.default.removeItem(atPath: directory.path + "/state/identity")
        #expect(try IdentityKeeper(try #require(try store.load()), store: store).shown == before)
    }

    @Test("until it is installed, the request is for one and the same key")
    func oneKey() throws {
        let first = try CertificateSigningRequest(pemEncoded: try keeper.request().certificateRequest)
        let second = try CertificateSigningRequest(pemEncoded: try keeper.request().certificateRequest)
        #expect(first.publicKey == second.publicKey)
    }
}
