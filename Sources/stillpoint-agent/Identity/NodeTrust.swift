import API
import Foundation
import NIOCore
import NIOSSL
import SwiftASN1
import X509

/// By what an enrolling agent tells the node from somebody in between, before it sends the token's secret.
enum NodeTrust: Sendable, Equatable {
    /// The node shows a certificate of the authority whose fingerprint the token carries.
    case token
    /// The node's API has a certificate of an authority of the user's (PEM), for the host that is called.
    case authority(pem: String)
    /// The node's API has exactly the certificate with this SHA-256, lower-case hexadecimal.
    case fingerprint(String)

    /// - Throws: ``IdentityError`` where a file or a fingerprint cannot be used, or both are given.
    init(authorityFile: String?, fingerprint: String?) throws {
        switch (authorityFile, fingerprint) {
        case (nil, nil): self = .token
        case (let file?, nil):
            guard let pem = try? String(contentsOfFile: file, encoding: .utf8) else {
                throw IdentityError("The authority \(file) cannot be read")
            }
            guard let certificates = try? NIOSSLCertificate.fromPEMBytes(Array(pem.utf8)), !certificates.isEmpty else {
                throw IdentityError("\(file) holds no certificate in PEM")
            }
            self = .authority(pem: pem)
        case (nil, let text?):
            let digits = text.lowercased().filter { $0 != ":" }
            guard digits.count == 64, digits.allSatisfy({ $0.isASCII && $0.isHexDigit }) else {
                throw IdentityError(
                    "“\(text)” is not the SHA-256 of a certificate: 64 hexadecimal digits, as "
                        + "openssl x509 -noout -fingerprint -sha256 prints them")
            }
            self = .fingerprint(digits)
        case (_?, _?): throw IdentityError("Give either --node-ca or --node-fingerprint")
        }
    }

    /// TLS that accepts this node and nobody else.
    ///
    /// - Parameter host: a name or an address, as the URL has it.
    func security(_ token: EnrollmentToken, host: String) throws -> LinkSecurity {
        var configuration = TLSConfiguration.makeClientConfiguration()
        configuration.minimumTLSVersion = .tlsv13
        switch self {
        case .authority(let pem):
            configuration.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(Array(pem.utf8)))
            configuration.certificateVerification = .fullVerification
            // RFC 6066 3: an address is no server name. It is then compared with the certificate's addresses.
            let isAddress = (try? SocketAddress(ipAddress: host, port: 0)) != nil
            return LinkSecurity(
                context: try NIOSSLContext(configuration: configuration), peerURI: nil,
                hostName: isAddress ? nil : host)
        case .fingerprint(let wanted):
            configuration.certificateVerification = .noHostnameVerification
            return Self.checked(try NIOSSLContext(configuration: configuration)) { chain in
                guard let leaf = chain.first else { return false }
                return try Certificates.fingerprint(Certificates.der(of: leaf)) == wanted
            }
        case .token:
            configuration.certificateVerification = .noHostnameVerification
            let fingerprint = token.authorityFingerprint
            // The node must show its authority's certificate along with its own: before enrolling, the agent has only
            // its fingerprint.
            return Self.checked(try NIOSSLContext(configuration: configuration)) { chain in
                let root = try chain.first { try Certificates.fingerprint(Certificates.der(of: $0)) == fingerprint }
                guard let root else { return false }
                try await Certificates.verify(chain: chain, root: root, name: .anyNode, usage: .serverAuth)
                return true
            }
        }
    }

    private static func checked(
        _ context: NIOSSLContext, _ accepts: @escaping @Sendable ([Certificate]) async throws -> Bool
    ) -> LinkSecurity {
        LinkSecurity(context: context, peerURI: nil) { shown, promise in
            promise.completeWithTask {
                do {
                    let chain = try shown.map { try Certificate(derEncoded: $0.toDERBytes()) }
                    return try await accepts(chain) ? .certificateVerified : .failed
                } catch {
                    return .failed
                }
            }
        }
    }

    /// Why the server was not trusted, with the way on.
    func refusal(of node: URL, _ reason: String) -> String {
        switch self {
        case .token:
            "The server at \(node) is not the node that made this token: \(reason). If its API has a certificate of "
                + "its own, name that with --node-ca or --node-fingerprint"
        case .authority:
            "The server at \(node) has no certificate of the authority in --node-ca for this host name: \(reason)"
        case .fingerprint:
            "The server at \(node) has another certificate than --node-fingerprint says: \(reason)"
        }
    }
}
