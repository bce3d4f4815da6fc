import Foundation
import NIOCore
import NIOSSL
import Synchronization

/// What the node shows to agents, and what it trusts.
public struct AgentTLS: Sendable {
    /// The node's certificate, PEM; URI name `urn:stillpoint:node:NODEID`.
    public var certificatePEM: String
    public var privateKeyPEM: String
    /// The authority that issued the node's and the agents' certificates, PEM.
    public var authorityPEM: String

    public init(certificatePEM: String, privateKeyPEM: String, authorityPEM: String) {
        self.certificatePEM = certificatePEM
        self.privateKeyPEM = privateKeyPEM
        self.authorityPEM = authorityPEM
    }
}

/// Calls one host agent: HTTPS with mutual TLS, or the local socket of an agent on this machine.
///
/// Every method throws `APIFailure`: what the agent answered, or one of `agentUnreachable` (nothing was done),
/// `agentTimeout` and `agentDisconnected` (it may have been done), `agentIdentity` (somebody else answers there),
/// `agentRefused` (it does not accept our certificate), `agentProtocol` (its answer makes no sense).
/// All routes are idempotent by their identifiers, so a call whose connection broke is made once more.
public final class AgentClient: Sendable {
    /// `HOST:PORT`, or the path of the local socket.
    public let address: String
    public let agentName: String

    private let endpoint: HTTPEndpoint
    private let security: LinkSecurity?
    private let idle = Mutex<[HTTPLink]>([])
    private let isShutDown = Atomic(false)

    /// Connections kept for the next call.
    private static let idleLimit = 4

    /// Only an agent whose certificate is of our authority and carries `urn:stillpoint:agent:NAME` is talked to; host
    /// names are not compared.
    public init(address: String, agentName: String, tls: AgentTLS) throws {
        guard let endpoint = HTTPEndpoint(hostAndPort: address) else {
            throw APIFailure(
                status: 400, code: "badAddress", message: "The agent address “\(address)” is not HOST:PORT")
        }
        do {
            var configuration = TLSConfiguration.makeClientConfiguration()
            configuration.minimumTLSVersion = .tlsv13
            configuration.certificateVerification = .noHostnameVerification
            configuration.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(Array(tls.authorityPEM.utf8)))
            configuration.certificateChain = try NIOSSLCertificate.fromPEMBytes(Array(tls.certificatePEM.utf8))
                .map { .certificate($0) }
            configuration.privateKey = .privateKey(
                try NIOSSLPrivateKey(bytes: Array(tls.privateKeyPEM.utf8), format: .pem))
            security = LinkSecurity(
                context: try NIOSSLContext(configuration: configuration),
                peerURI: "urn:stillpoint:agent:\(agentName)")
        } catch {
            throw APIFailure(
                status: 500, code: "badCertificate",
                message: "The node's own certificate, key or authority cannot be used: \(error)",
                hint: "Look at the files in the node's pki folder")
        }
        self.address = address
        self.agentName = agentName
        self.endpoint = endpoint
    }

    /// The agent on this machine, through its socket.
    public init(socketPath: String) {
        address = socketPath
        agentName = "local"
        endpoint = .unixSocket(path: socketPath)
        security = nil
    }

    public func status(timeoutSeconds: Double = 5) async throws -> AgentStatus {
        try await get("/v1/status", timeoutSeconds)
    }

    public func discover(_ request: DiscoverRequest, timeoutSeconds: Double = 60) async throws -> DiscoverResponse {
        try await post("/v1/discover", request, timeoutSeconds)
    }

    public func preflight(_ request: PreflightRequest, timeoutSeconds: Double = 60) async throws -> PreflightResponse {
        try await post("/v1/preflight", request, timeoutSeconds)
    }

    /// The default time limit is the lease: a later answer is worth nothing.
    public func hold(_ request: HoldRequest, timeoutSeconds: Double? = nil) async throws -> HoldResponse {
        try await post("/v1/holds", request, timeoutSeconds ?? request.leaseSeconds)
    }

    public func renew(
        holdID: String, leaseSeconds: Double, timeoutSeconds: Double = 5
    ) async throws -> RenewResponse {
        try await post("/v1/holds/\(escaped(holdID))/renew", RenewRequest(leaseSeconds: leaseSeconds), timeoutSeconds)
    }

    public func release(holdID: String, timeoutSeconds: Double = 30) async throws -> ReleaseResponse {
        try decode(try await call("POST", "/v1/holds/\(escaped(holdID))/release", nil, timeoutSeconds))
    }

    /// Releases everything, or all holds of one saga.
    public func thaw(sagaID: String? = nil, timeoutSeconds: Double = 60) async throws -> ThawResponse {
        try await post("/v1/thaw", ThawRequest(sagaID: sagaID), timeoutSeconds)
    }

    public func prepareRestore(_ request: RestoreRequest, timeoutSeconds: Double = 600) async throws -> RestoreResponse
    {
        try await post("/v1/restore/prepare", request, timeoutSeconds)
    }

    public func finishRestore(_ request: RestoreRequest, timeoutSeconds: Double = 600) async throws -> RestoreResponse {
        try await post("/v1/restore/finish", request, timeoutSeconds)
    }

    /// One step of a guest's restore; the answer's type goes by the step.
    public func restoreGuest<Answer: Decodable & Sendable>(
        _ request: GuestRestoreAgentRequest, timeoutSeconds: Double
    ) async throws -> Answer {
        try await post("/v1/guests/restore", request, timeoutSeconds)
    }

    public func requestIdentity(timeoutSeconds: Double = 10) async throws -> IdentityRequest {
        try decode(try await call("POST", "/v1/identity/request", nil, timeoutSeconds))
    }

    public func installIdentity(_ install: IdentityInstall, timeoutSeconds: Double = 10) async throws -> IdentityState {
        try await post("/v1/identity/install", install, timeoutSeconds)
    }

    public func confirmIdentity(_ state: IdentityState, timeoutSeconds: Double = 10) async throws -> IdentityState {
        try await post("/v1/identity/confirm", state, timeoutSeconds)
    }

    /// Closes idle connections; calls under way end by themselves.
    public func shutdown() {
        isShutDown.store(true, ordering: .sequentiallyConsistent)
        for link in takeAll() { link.close() }
    }

    deinit { for link in takeAll() { link.close() } }

    private func takeAll() -> [HTTPLink] {
        idle.withLock { links in
            defer { links = [] }
            return links
        }
    }
}

extension AgentClient {
    private func get<Answer: Decodable>(_ path: String, _ timeoutSeconds: Double) async throws -> Answer {
        try decode(try await call("GET", path, nil, timeoutSeconds))
    }

    private func post<Body: Encodable, Answer: Decodable>(
        _ path: String, _ body: Body, _ timeoutSeconds: Double
    ) async throws -> Answer {
        let bytes = Array(try APIJSON.encoder().encode(body))
        return try decode(try await call("POST", path, bytes, timeoutSeconds))
    }

    private func decode<Answer: Decodable>(_ answer: HTTPAnswer) throws -> Answer {
        let decoder = APIJSON.decoder()
        let data = Data(answer.body)
        guard (200..<300).contains(answer.status) else {
            if var failure = try? decoder.decode(APIFailure.self, from: data) {
                failure.status = answer.status
                throw failure
            }
            throw failure(502, "agentProtocol", "answered with status \(answer.status) and no explanation")
        }
        do {
            return try decoder.decode(Answer.self, from: data)
        } catch {
            throw failure(
                502, "agentProtocol", "gave an answer that cannot be understood (\(error))",
                hint: "Node and agent must be of matching versions")
        }
    }

    private func call(
        _ method: String, _ path: String, _ body: [UInt8]?, _ timeoutSeconds: Double
    ) async throws -> HTTPAnswer {
        let deadline = NIODeadline.now() + .nanoseconds(Int64(max(0.001, min(timeoutSeconds, 86_400)) * 1e9))
        let call = HTTPCall(method: method, path: path, body: body)
        do {
            do {
                return try await attempt(call, deadline: deadline)
            } catch HTTPFault.broken where NIODeadline.now() < deadline && !Task.isCancelled {
                // The agent restarted, or closed an idle connection just now.
                for link in takeAll() { link.close() }
                return try await attempt(call, deadline: deadline)
            }
        } catch let fault as HTTPFault {
            if Task.isCancelled { throw CancellationError() }
            throw failure(of: fault, timeoutSeconds: timeoutSeconds)
        }
    }

    private func attempt(_ call: HTTPCall, deadline: NIODeadline) async throws -> HTTPAnswer {
        let link: HTTPLink
        if let kept = idle.withLock({ $0.popLast() }), kept.isUsable {
            link = kept
        } else {
            link = try await HTTPLink.open(endpoint, security: security, deadline: deadline)
        }
        let answer: HTTPAnswer
        do {
            answer = try await link.exchange(call, deadline: deadline)
        } catch {
            link.close()
            throw error
        }
        let isKept = idle.withLock { links in
            guard links.count < Self.idleLimit, link.isUsable,
                !isShutDown.load(ordering: .sequentiallyConsistent)
            else { return false }
            links.append(link)
            return true
        }
        if !isKept { link.close() }
        return answer
    }

    private func failure(of fault: HTTPFault, timeoutSeconds: Double) -> APIFailure {
        switch fault {
        case .unreachable(let reason):
            failure(
                503, "agentUnreachable", "cannot be reached: \(reason)",
                hint: security == nil
                    ? "Start it with: stillpoint-agent serve"
                    : "Check that stillpoint-agent runs there and that its port is open to the node")
        case .wrongPeer(let reason):
            failure(
                502, "agentIdentity", "is not who it should be: \(reason)",
                hint: "Check the address; if the host was set up anew, enroll its agent again")
        case .refusedByPeer(let reason):
            failure(
                502, "agentRefused", "does not accept this node's certificate: \(reason)",
                hint: "It is enrolled with another node, or the node's authority was made anew; enroll it again")
        case .broken(let reason):
            failure(503, "agentDisconnected", "broke off before it answered: \(reason)")
        case .timedOut:
            failure(504, "agentTimeout", "did not answer within \(timeoutSeconds) seconds")
        case .malformedAnswer(let reason):
            failure(502, "agentProtocol", "gave an answer that cannot be understood: \(reason)")
        }
    }

    private func failure(_ status: Int, _ code: String, _ text: String, hint: String? = nil) -> APIFailure {
        let who = security == nil ? "The agent at \(address)" : "Agent \(agentName) at \(address)"
        return APIFailure(status: status, code: code, message: "\(who) \(text)", hint: hint)
    }

    private func escaped(_ identifier: String) -> String {
        identifier.addingPercentEncoding(withAllowedCharacters: .alphanumerics.union(["-", "_", "."])) ?? identifier
    }
}
