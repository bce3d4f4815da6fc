import API
import Crypto
import Foundation
import NIOCore
import NIOSSL
import SwiftASN1
import X509

/// The one-time token: a secret for the node, and the fingerprint of the node's authority for the agent.
struct EnrollmentToken: Sendable, Equatable {
    /// As it was given; this is what the node gets.
    let text: String
    /// SHA-256 of the authority's DER, lower-case hexadecimal.
    let authorityFingerprint: String

    init(_ text: String) throws {
        let text = text.trimmingCharacters(in: .whitespacesAndNewlines)
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "spt1", !parts[1].isEmpty, parts[2].count == 64,
            parts[2].allSatisfy(\.isHexDigit)
        else {
            throw IdentityError(
                "This is not an enrollment token: it must look like spt1.SECRET.FINGERPRINT. "
                    + "Make one with: stillpoint agent token NAME")
        }
        self.text = text
        authorityFingerprint = parts[2].lowercased()
    }

    /// Reads it from a file, or from standard input if the path is `-`; never from the command line.
    static func read(from path: String) throws -> EnrollmentToken {
        let data: Data?
        if path == "-" {
            data = try FileHandle.standardInput.read(upToCount: 4_096)
        } else {
            data = try? FileHandle(forReadingFrom: URL(fileURLWithPath: path)).read(upToCount: 4_096)
        }
        guard let data else { throw IdentityError("The token file \(path) cannot be read") }
        return try EnrollmentToken(String(decoding: data, as: UTF8.self))
    }
}

/// Gets an identity from a node.
struct Enrollment: Sendable {
    var node: URL
    var token: EnrollmentToken
    /// `HOST:PORT` where the node will call this agent.
    var address: String
    var trust = NodeTrust.token
    var timeoutSeconds = 30.0

    /// Asks the node for a certificate and checks everything it answers; stores nothing.
    func run() async throws -> AgentIdentity {
        guard HTTPEndpoint(hostAndPort: address) != nil else {
            throw IdentityError("The address “\(address)” is not HOST:PORT. Give one with --address")
        }
        let (endpoint, host, isSecure) = try target()
        guard isSecure || trust == .token else {
            throw IdentityError(
                "\(node) has no certificate that could be checked. Write https://, or leave --node-ca and "
                    + "--node-fingerprint away")
        }
        let key = P256.Signing.PrivateKey()
        let request = EnrollRequest(
            token: token.text, address: address, certificateRequest: try Self.certificateRequest(key: key),
            version: Release.version)
        let call = HTTPCall(
            method: "POST", path: "/v1/enroll", body: Array(try APIJSON.encoder().encode(request)))
        let deadline = NIODeadline.now() + .nanoseconds(Int64(timeoutSeconds * 1e9))
        let answer: HTTPAnswer
        do {
            let link = try await HTTPLink.open(
                endpoint, security: isSecure ? try trust.security(token, host: host) : nil, deadline: deadline)
            defer { link.close() }
            answer = try await link.exchange(call, deadline: deadline)
        } catch let fault as HTTPFault {
            throw failure(of: fault)
        }
        guard (200..<300).contains(answer.status) else {
            if let failure = try? APIJSON.decoder().decode(APIFailure.self, from: Data(answer.body)) {
                throw IdentityError("The node refused: \(failure)")
            }
            throw IdentityError("\(node) answered with status \(answer.status). Is this a Stillpoint node?")
        }
        guard let response = try? APIJSON.decoder().decode(EnrollResponse.self, from: Data(answer.body)) else {
            throw IdentityError("The node's answer cannot be understood. Node and agent must be of matching versions")
        }
        return try await accept(response, key: key)
    }

    static func certificateRequest(key: P256.Signing.PrivateKey) throws -> String {
        let request = try CertificateSigningRequest(
            version: .v1, subject: try DistinguishedName { CommonName("stillpoint-agent") },
            privateKey: Certificate.PrivateKey(key), attributes: CertificateSigningRequest.Attributes(),
            signatureAlgorithm: .ecdsaWithSHA256)
        return try request.serializeAsPEM().pemString
    }

    /// The answer is worth something only if it comes from the authority that the token names.
    private func accept(_ response: EnrollResponse, key: P256.Signing.PrivateKey) async throws -> AgentIdentity {
        let authority: Certificate
        let certificate: Certificate
        do {
            authority = try Certificate(pemEncoded: response.authority)
            certificate = try Certificate(pemEncoded: response.certificate)
        } catch {
            throw IdentityError("The node's answer holds a certificate that cannot be read: \(error)")
        }
        guard Certificates.fingerprint(try Certificates.der(of: authority)) == token.authorityFingerprint else {
            throw IdentityError(
                "The node's authority is not the one the token names: somebody may be in between. Nothing was stored")
        }
        guard certificate.publicKey == Certificate.PublicKey(key.publicKey) else {
            throw IdentityError("The node certified another key than ours. Nothing was stored")
        }
        guard !response.nodeID.isEmpty, !response.name.isEmpty else {
            throw IdentityError("The node's answer lacks its id or our name. Nothing was stored")
        }
        do {
            try await Certificates.verify(
                chain: [certificate], root: authority, name: .agent(name: response.name), usage: .serverAuth)
        } catch {
            throw IdentityError("The node's answer cannot be used: \(error). Nothing was stored")
        }
        return AgentIdentity(
            record: AgentIdentity.Record(
                name: response.name, nodeID: response.nodeID, node: node.absoluteString, address: address,
                enrolledAt: Date()),
            keyPEM: key.pemRepresentation, certificatePEM: response.certificate, authorityPEM: response.authority)
    }

    private func target() throws -> (HTTPEndpoint, host: String, isSecure: Bool) {
        guard let host = node.host(), !host.isEmpty, let scheme = node.scheme?.lowercased(),
            scheme == "https" || scheme == "http"
        else { throw IdentityError("“\(node)” is not the URL of a node; it looks like https://HOST:PORT") }
        let plain = host.hasPrefix("[") ? String(host.dropFirst().dropLast()) : host
        let isSecure = scheme == "https"
        if !isSecure && !Self.isLoopback(plain) {
            throw IdentityError(
                "The token would go over the network in clear. Use https://, or enroll over the loopback address")
        }
        return (.tcp(host: plain, port: node.port ?? (isSecure ? 443 : 80)), plain, isSecure)
    }

    static func isLoopback(_ host: String) -> Bool {
        if host == "localhost" || host == "::1" { return true }
        let parts = host.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4 && parts[0] == "127" && parts.allSatisfy { UInt8($0) != nil }
    }

    private func failure(of fault: HTTPFault) -> IdentityError {
        switch fault {
        case .unreachable(let reason):
            IdentityError("The node at \(node) cannot be reached: \(reason)", isUnreachable: true)
        case .wrongPeer(let reason), .refusedByPeer(let reason):
            IdentityError("\(trust.refusal(of: node, reason)). The token was not sent")
        case .broken(let reason): IdentityError("The node at \(node) broke off: \(reason)")
        case .timedOut: IdentityError("The node at \(node) did not answer in time", isUnreachable: true)
        case .malformedAnswer(let reason): IdentityError("What answers at \(node) is not a node: \(reason)")
        }
    }
}
