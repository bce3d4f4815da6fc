import API
import Crypto
import Foundation
import NIOSSL
import SwiftASN1
import Synchronization
import X509

/// The identity that the agent shows, and how it gets the next one: the node asks for a request, signs it and brings
/// the certificate. A new identity is checked as at enrolment and made into a TLS context before it replaces
/// anything; the one before it stays on the disk until the node has seen the new one.
final class IdentityKeeper: Sendable {
    private struct State {
        var identity: AgentIdentity
        var context: NIOSSLContext
        /// The key of the next identity, made when it was first asked for.
        var nextKey: P256.Signing.PrivateKey?
    }

    private let store: IdentityStore
    private let state: Mutex<State>

    init(_ identity: AgentIdentity, store: IdentityStore) throws {
        self.store = store
        state = Mutex(State(identity: identity, context: try Self.context(identity), nextKey: nil))
    }

    var identity: AgentIdentity { state.withLock { $0.identity } }

    /// For connections that come from now on.
    var context: NIOSSLContext { state.withLock { $0.context } }

    var shown: IdentityState {
        get throws {
            let certificate = try identity.certificate()
            return IdentityState(
                certificateFingerprint: Certificates.fingerprint(try Certificates.der(of: certificate)),
                certificateExpiresAt: certificate.notValidAfter)
        }
    }

    func request() throws -> IdentityRequest {
        let key = state.withLock { state in
            let key = state.nextKey ?? P256.Signing.PrivateKey()
            state.nextKey = key
            return key
        }
        return IdentityRequest(certificateRequest: try Enrollment.certificateRequest(key: key))
    }

    /// Shows another certificate from now on. A repetition of the last one answers as it did.
    ///
    /// - Throws: ``API/APIFailure`` `identityRefused`; then nothing has changed.
    func install(_ install: IdentityInstall) async throws -> IdentityState {
        let (current, key) = state.withLock { ($0.identity, $0.nextKey) }
        if install.certificate == current.certificatePEM { return try shown }
        guard let key else { throw Self.refusal("no certificate was asked for, or the agent was restarted since") }
        let certificate: Certificate
        do {
            certificate = try Certificate(pemEncoded: install.certificate)
            try await Certificates.verify(
                chain: [certificate], root: try current.authority(), name: .agent(name: current.name),
                usage: .serverAuth)
        } catch {
            throw Self.refusal("\(error)")
        }
        guard certificate.publicKey == Certificate.PublicKey(key.publicKey) else {
            throw Self.refusal("it certifies another key than the one asked for")
        }
        guard try certificate.notValidAfter > current.certificate().notValidAfter else {
            throw Self.refusal("it ends no later than the one it would replace")
        }
        var next = current
        next.keyPEM = key.pemRepresentation
        next.certificatePEM = install.certificate
        let context = try Self.context(next)
        try state.withLock { state in
            guard state.nextKey?.rawRepresentation == key.rawRepresentation else { return }
            try store.save(next, keepsPrevious: true)
            state = State(identity: next, context: context, nextKey: nil)
        }
        return try shown
    }

    /// The node has seen this one: the one before is not needed any more.
    func confirm(_ seen: IdentityState) throws -> IdentityState {
        let shown = try shown
        guard seen.certificateFingerprint == shown.certificateFingerprint else {
            throw Self.refusal("another certificate is shown now: \(shown.certificateFingerprint)")
        }
        store.forgetPrevious()
        return shown
    }

    private static func refusal(_ reason: String) -> APIFailure {
        APIFailure(
            status: 409, code: "identityRefused", message: "The new certificate was not taken: \(reason)",
            hint: "The agent goes on with the one it has; the node asks again at its next look")
    }

    private static func context(_ identity: AgentIdentity) throws -> NIOSSLContext {
        var configuration = TLSConfiguration.makeServerConfigurationWithMTLS(
            certificateChain: try NIOSSLCertificate.fromPEMBytes(Array(identity.certificatePEM.utf8))
                .map { .certificate($0) },
            privateKey: .privateKey(try NIOSSLPrivateKey(bytes: Array(identity.keyPEM.utf8), format: .pem)),
            trustRoots: .certificates(try NIOSSLCertificate.fromPEMBytes(Array(identity.authorityPEM.utf8))))
        configuration.minimumTLSVersion = .tlsv13
        return try NIOSSLContext(configuration: configuration)
    }
}
