import API
import Catalog
import Crypto
import Foundation
import Logging
import SwiftASN1
import Synchronization
import X509

/// The agents of this node: tokens for new ones, enrolment, clients for calling them, and who answers.
final class AgentRegistry: Sendable {
    /// What the last look at an agent found.
    struct Reachability: Sendable, Equatable {
        var isReachable = false
        var plugins: [PluginInfo] = []
        var version: String?
        /// Why it is not reachable; nil also before the first look.
        var failure: String?
    }

    /// What an agent found on the volumes.
    private struct Finding {
        var resources: [ResourceInfo]
        /// `AgentStatus.changes` before it was asked.
        var changes: Int?
        var volumes: [VolumeReference]
        var at: ContinuousClock.Instant
    }

    private struct State {
        var findings: [String: Finding] = [:]
        var clients: [String: Connected] = [:]
        var reachability: [String: Reachability] = [:]
    }

    private struct Connected {
        var address: String
        var fingerprint: String
        var client: AgentClient
    }

    let catalog: Catalog
    let identity: NodeIdentity
    let logger: Logger
    /// How long an agent's certificate lasts, in seconds.
    let certificateSeconds: Double
    let guestDisks = GuestDisks()
    /// All volumes that agents are asked about.
    private let volumes: @Sendable () async throws -> [VolumeReference]
    private let state = Mutex(State())

    init(
        catalog: Catalog, identity: NodeIdentity, logger: Logger,
        certificateSeconds: Double = AgentRegistry.usualCertificateSeconds,
        volumes: @escaping @Sendable () async throws -> [VolumeReference] = { [] }
    ) {
        self.certificateSeconds = certificateSeconds
        self.volumes = volumes
        self.catalog = catalog
        self.identity = identity
        self.logger = logger
    }

    // MARK: Calling

    /// The names of the agents that are enrolled.
    func names() async throws -> [String] { try await catalog.agents().map(\.name) }

    /// A client for an enrolled agent; kept, with its connections, until the agent is removed or enrolled again.
    ///
    /// - Throws: ``API/APIFailure`` `agentNotFound`.
    func client(_ name: String) async throws -> AgentClient {
        guard let record = try await catalog.agent(named: name) else { throw APIFailure.unknown("agent", name) }
        return try client(record)
    }

    /// Asks an agent what it finds. One inside of a guest is told by which of its disks the volumes can be known.
    func discover(
        _ record: AgentRecord, _ volumes: [VolumeReference], timeoutSeconds: Double
    ) async throws -> DiscoverResponse {
        let client = try client(record)
        let asked = guestDisks.located(volumes, for: record.name)
        let answer = try await client.discover(DiscoverRequest(volumes: asked), timeoutSeconds: timeoutSeconds)
        guestDisks.learn(answer, of: record.name)
        let known = guestDisks.located(volumes, for: record.name)
        // Only now it is known that it is inside of a guest.
        guard known != asked else { return answer }
        return try await client.discover(DiscoverRequest(volumes: known), timeoutSeconds: timeoutSeconds)
    }

    /// Where an agent is called, `HOST:PORT`; nil where it is unknown.
    func address(_ name: String) async throws -> String? { try await catalog.agent(named: name)?.address }

    func client(_ record: AgentRecord) throws -> AgentClient {
        let kept = state.withLock { $0.clients[record.name] }
        if let kept, kept.address == record.address, kept.fingerprint == record.certificateFingerprint {
            return kept.client
        }
        let client = try AgentClient(address: record.address, agentName: record.name, tls: identity.agentTLS)
        let replaced = state.withLock { state in
            let connected = Connected(
                address: record.address, fingerprint: record.certificateFingerprint, client: client)
            return state.clients.updateValue(connected, forKey: record.name)
        }
        replaced?.client.shutdown()
        return client
    }

    func shutdown() {
        let clients = state.withLock { state in
            defer { state.clients = [:] }
            return state.clients.values.map(\.client)
        }
        for client in clients { client.shutdown() }
    }

    // MARK: Enrolment

    static let validSecondsRange = 10...86_400

    /// Makes a one-time token. The catalog keeps its hash only.
    func makeToken(_ request: AgentTokenRequest, now: Date = .now) async throws -> AgentToken {
        try Self.checkName(request.name)
        let seconds = request.validSeconds ?? 3_600
        guard Self.validSecondsRange.contains(seconds) else {
            throw APIFailure.invalid("validSeconds must be from 10 to 86400, not \(seconds)")
        }
        let secret = RandomText.make(bytes: 24)
        let expiresAt = Date(timeIntervalSince1970: (now.timeIntervalSince1970 + Double(seconds)).rounded(.down))
        let record = AgentTokenRecord(hash: Self.hash(secret), agentName: request.name, expiresAt: expiresAt)
        try await catalog.insertAgentToken(record, now: now)
        let token = "spt1.\(secret).\(try identity.authority.fingerprint)"
        return AgentToken(token: token, name: request.name, expiresAt: expiresAt)
    }

    /// Enrols the agent that a token was made for, and uses the token up. A request that is wrong in itself is refused
    /// before, so that it does not cost the token.
    func enroll(_ request: EnrollRequest, now: Date = .now) async throws -> EnrollResponse {
        let parts = request.token.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "spt1" else {
            throw APIFailure(
                status: 401, code: "tokenInvalid", message: "that is no enrolment token",
                hint: "stillpoint agent token NAME makes one")
        }
        guard request.address.utf8.count <= 300, let address = ListenAddress(request.address), address.port != 0,
            !address.isWildcard
        else {
            throw APIFailure.invalid("\"\(request.address)\" is no HOST:PORT at which the node could call the agent")
        }
        guard request.version.utf8.count <= 64 else { throw APIFailure.invalid("the version is too long") }
        guard request.certificateRequest.utf8.count <= 16 << 10 else {
            throw APIFailure.invalid("the certificate request is too large")
        }
        do {
            _ = try identity.authority.issueAgent(name: "trial", requestPEM: request.certificateRequest)
        } catch let failure as FileFailure {
            throw APIFailure.invalid(failure.description)
        }
        let name = try await redeem(String(parts[1]), now: now)
        let certificate = try identity.authority.issueAgent(
            name: name, requestPEM: request.certificateRequest, lifetimeSeconds: certificateSeconds, now: now)
        try await catalog.setAgent(
            AgentRecord(
                name: name, address: address.description, version: request.version, enrolledAt: now, lastSeenAt: nil,
                certificateFingerprint: try certificate.fingerprint, certificateExpiresAt: certificate.notValidAfter))
        state.withLock { $0.reachability[name] = nil }
        logger.notice("agent enrolled", metadata: ["agent": "\(name)", "address": "\(address)"])
        return EnrollResponse(
            name: name, nodeID: identity.nodeID, certificate: try certificate.serializeAsPEM().pemString,
            authority: try identity.authority.certificatePEM)
    }

    private func redeem(_ secret: String, now: Date) async throws -> String {
        let hint = "stillpoint agent token NAME makes a new one"
        switch try await catalog.redeemAgentToken(hash: Self.hash(secret), now: now) {
        case .accepted(let name): return name
        case .unknown:
            throw APIFailure(
                status: 401, code: "tokenInvalid", message: "the enrolment token is not one of this node's", hint: hint)
        case .used:
            throw APIFailure(
                status: 401, code: "tokenUsed", message: "the enrolment token was used already", hint: hint)
        case .expired:
            throw APIFailure(status: 401, code: "tokenExpired", message: "the enrolment token has expired", hint: hint)
        }
    }

    private static func hash(_ secret: String) -> String { SHA256.hash(data: Data(secret.utf8)).hexadecimal }

    private static func checkName(_ name: String) throws {
        let isLegal = name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || ".-_".contains($0)) }
        // `tokens` is a route.
        guard isLegal, (1...64).contains(name.utf8.count), name != "tokens" else {
            throw APIFailure.invalid("an agent's name is 1 to 64 characters of letters, digits, . - _")
        }
    }

    // MARK: Looking

    /// All agents without their resources.
    func agents() async throws -> [AgentInfo] { try await catalog.agents().map { info($0, resources: nil) } }

    /// One agent with what it protects on `volumes`, asked now; the last look's answer where it does not answer.
    func agent(_ name: String, volumes: [VolumeReference]) async throws -> AgentInfo {
        guard let record = try await catalog.agent(named: name) else { throw APIFailure.unknown("agent", name) }
        var resources: [ResourceInfo] = []
        await look(at: record)
        if reachability(name).isReachable {
            do {
                resources = try await discover(record, volumes, timeoutSeconds: Self.discoverSeconds).resources
            } catch {
                logger.info("discovery failed", metadata: ["agent": "\(name)", "error": "\(error)"])
            }
        }
        return info(try await catalog.agent(named: name) ?? record, resources: resources)
    }

    private static let discoverSeconds = 20.0
    private static let statusSeconds = 5.0

    private func info(_ record: AgentRecord, resources: [ResourceInfo]?) -> AgentInfo {
        let seen = reachability(record.name)
        return AgentInfo(
            name: record.name, address: record.address, enrolledAt: record.enrolledAt, lastSeenAt: record.lastSeenAt,
            isReachable: seen.isReachable, version: seen.version ?? record.version, plugins: seen.plugins,
            certificateFingerprint: record.certificateFingerprint, resources: resources, failure: seen.failure,
            certificateExpiresAt: record.certificateExpiresAt)
    }

    func reachability(_ name: String) -> Reachability { state.withLock { $0.reachability[name] ?? Reachability() } }

    /// Forgets an agent. Its certificate stays valid until it ends, but the node calls it no more.
    func remove(_ name: String) async throws {
        guard try await catalog.deleteAgent(name: name) else { throw APIFailure.unknown("agent", name) }
        let removed = state.withLock { state in
            state.reachability[name] = nil
            state.findings[name] = nil
            return state.clients.removeValue(forKey: name)
        }
        removed?.client.shutdown()
        guestDisks.forget(name)
        logger.notice("agent removed", metadata: ["agent": "\(name)"])
    }

    // MARK: Polling

    /// Looks at every agent, all at once, every `pollSeconds` until cancelled.
    func poll(everySeconds pollSeconds: Int) async {
        while !Task.isCancelled {
            do {
                let records = try await catalog.agents()
                await withDiscardingTaskGroup { group in
                    for record in records { group.addTask { await self.look(at: record) } }
                }
            } catch {
                logger.error("agents could not be polled", metadata: ["error": "\(error)"])
            }
            try? await Task.sleep(for: .seconds(pollSeconds))
        }
    }

    /// How long a finding counts though nobody told of a change: not every plug-in watches. Shorter when somebody asks.
    private static let findingSeconds = (polled: 60.0, asked: 2.0)
    /// The longest that somebody who asks about one volume waits for agents to be looked at.
    private static let lookAgainSeconds = 3.0

    /// Asks an agent what lies on the volumes, unless nothing has changed there since it was asked last.
    private func lookForUses(_ record: AgentRecord, changes: Int?, isAsked: Bool) async {
        do {
            let references = try await volumes()
            let known = state.withLock { $0.findings[record.name] }
            if let known, known.volumes == references, known.changes == changes,
                ContinuousClock.now - known.at
                    < .seconds(isAsked ? Self.findingSeconds.asked : Self.findingSeconds.polled)
            {
                return
            }
            let answer = try await discover(record, references, timeoutSeconds: Self.discoverSeconds)
            let finding = Finding(resources: answer.resources, changes: changes, volumes: references, at: .now)
            state.withLock { $0.findings[record.name] = finding }
        } catch {
            logger.info("discovery failed", metadata: ["agent": "\(record.name)", "error": "\(error)"])
        }
    }

    /// Looks at those agents that can be reached, for a short time.
    func lookAgain() async {
        guard let records = try? await catalog.agents() else { return }
        let reachable = records.filter { reachability($0.name).isReachable }
        await withTaskGroup(of: Void.self) { group in
            group.addTask { try? await Task.sleep(for: .seconds(Self.lookAgainSeconds)) }
            group.addTask {
                await withDiscardingTaskGroup { looks in
                    for record in reachable { looks.addTask { await self.look(at: record, isAsked: true) } }
                }
            }
            await group.next()
            group.cancelAll()
        }
    }

    /// What lies on a volume, as the last look at each agent found it.
    func uses(ofVolume name: String) -> [VolumeUse] {
        let findings = state.withLock { $0.findings }
        return findings.sorted { $0.key < $1.key }.flatMap { agent, finding in
            finding.resources.filter { $0.volumes.contains(name) }.map { resource in
                VolumeUse(
                    agent: agent, plugin: resource.plugin, layer: resource.layer, resource: resource.id,
                    label: resource.label, state: resource.details["state"])
            }
        }
    }

    private func look(at record: AgentRecord, isAsked: Bool = false) async {
        var found = Reachability()
        do {
            let status = try await client(record).status(timeoutSeconds: Self.statusSeconds)
            guard status.nodeID == identity.nodeID else {
                throw APIFailure.invalid("it says that it belongs to another node (\(status.nodeID))")
            }
            found = Reachability(isReachable: true, plugins: status.plugins, version: status.version, failure: nil)
            try await catalog.noteAgentSeen(name: record.name, at: .now, version: status.version)
            await renewIfDue(record, status)
            await lookForUses(record, changes: status.changes, isAsked: isAsked)
        } catch {
            if Task.isCancelled { return }
            found.failure = APIFailure.from(error).message
        }
        let before = state.withLock { $0.reachability.updateValue(found, forKey: record.name) }
        if before?.isReachable != found.isReachable {
            logger.notice(
                found.isReachable ? "agent reachable" : "agent unreachable",
                metadata: ["agent": "\(record.name)", "reason": "\(found.failure ?? "")"])
        }
    }
}
