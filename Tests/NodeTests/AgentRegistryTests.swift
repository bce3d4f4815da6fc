import API
import Crypto
import Foundation
import NIOHTTP1
import SwiftASN1
import Testing
import X509

@testable import Node

@Suite("Agents")
struct AgentRegistryTests {
    private static func request() throws -> String {
        try CertificateSigningRequest(
            version: .v1, subject: DistinguishedName { CommonName("host") },
            privateKey: .init(P256.Signing.PrivateKey()),
            attributes: .init()
        ).serializeAsPEM().pemString
    }

    private static func token(_ node: TestNode, _ name: String = "db1") async throws -> AgentToken {
        let answer = try await node.call(.POST, "/v1/agents/tokens", AgentTokenRequest(name: name, validSeconds: 60))
        try #require(answer.status == 201)
        return try answer.decode()
    }

    private static func enroll(
        _ node: TestNode, token: String, address: String = "127.0.0.1:1", request: String? = nil
    ) async throws -> TestNode.Answer {
        let body = EnrollRequest(
            token: token, address: address, certificateRequest: try request ?? self.request(), version: "1")
        return try await node.call(.POST, "/v1/enroll", body, authorization: nil)
    }

    @Test("a token enrols once, needs no other authorisation, and gives a certificate of the node's authority")
    func enrolment() async throws {
        try await TestNode.with { node in
            let token = try await Self.token(node)
            let authority = try node.services.identity.authority.fingerprint
            #expect(token.token.hasPrefix("spt1.") && token.token.hasSuffix("." + authority))
            let answer = try await Self.enroll(node, token: token.token)
            let response: EnrollResponse = try answer.decode()
            #expect(response.name == "db1" && response.nodeID == node.services.identity.nodeID)
            #expect(try Certificate(pemEncoded: response.certificate).stillpointURI == "urn:stillpoint:agent:db1")
            #expect(try Certificate(pemEncoded: response.authority).fingerprint == authority)
            let again = try await Self.enroll(node, token: token.token)
            #expect(again.status == 401 && again.failure?.code == "tokenUsed")
            let agents: [AgentInfo] = try await node.call(.GET, "/v1/agents").decode()
            #expect(agents.map(\.name) == ["db1"])
            #expect(agents[0].certificateFingerprint == (try Certificate(pemEncoded: response.certificate).fingerprint))
        }
    }

    @Test("an expired, a made-up, and a removed agent's token are refused")
    func badTokens() async throws {
        try await TestNode.with { node in
            let agents = node.services.agents
            let old = try await agents.makeToken(
                AgentTokenRequest(name: "db1", validSeconds: 10), now: Date.now.addingTimeInterval(-11))
            #expect(try await Self.enroll(node, token: old.token).failure?.code == "tokenExpired")
            let authority = try node.services.identity.authority.fingerprint
            for text in ["", "spt1", "spt1..", "spt1.x.\(authority)", "spt2.x.y", "spt1.a.b.c"] {
                let answer = try await Self.enroll(node, token: text)
                #expect(answer.status == 401 && answer.failure?.code == "tokenInvalid", "\(text)")
            }
            let first = try await Self.token(node)
            #expect(try await Self.enroll(node, token: first.token).status == 200)
            let second = try await Self.token(node)
            #expect(try await node.call(.DELETE, "/v1/agents/db1").status == 204)
            #expect(try await Self.enroll(node, token: second.token).failure?.code == "tokenInvalid")
            #expect(try await node.call(.DELETE, "/v1/agents/db1").failure?.code == "agentNotFound")
        }
    }

    @Test("a request that is wrong in itself does not use the token up")
    func badRequestsKeepTheToken() async throws {
        try await TestNode.with { node in
            let token = try await Self.token(node)
            for address in ["", "host", "host:0", "0.0.0.0:11169", "host:99999", "a b:1"] {
                #expect(try await Self.enroll(node, token: token.token, address: address).status == 400, "\(address)")
            }
            #expect(try await Self.enroll(node, token: token.token, request: "nonsense").status == 400)
            #expect(try await Self.enroll(node, token: token.token).status == 200)
        }
    }

    @Test("the token itself is stored nowhere")
    func tokensAreHashed() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        let secret = try #require(try await Self.token(node).token.split(separator: ".").dropFirst().first)
        try await node.end()
        let catalog = try Data(contentsOf: URL(fileURLWithPath: directory + "/data/catalog.sqlite"))
        #expect(catalog.range(of: Data(secret.utf8)) == nil)
    }

    @Test("an agent that does not answer is shown as unreachable, with the reason")
    func unreachable() async throws {
        try await TestNode.with { node in
            let token = try await Self.token(node)
            #expect(try await Self.enroll(node, token: token.token).status == 200)
            let agent: AgentInfo = try await node.call(.GET, "/v1/agents/db1").decode()
            #expect(!agent.isReachable && agent.failure != nil && agent.resources == [])
            let status: NodeStatus = try await node.call(.GET, "/v1/status").decode()
            #expect(status.agentCount == 1 && status.reachableAgentCount == 0)
        }
    }

    @Test("an agent that enrols again replaces itself, with another certificate")
    func enrolledAgain() async throws {
        try await TestNode.with { node in
            var prints: Set<String> = []
            for _ in 0..<2 {
                let token = try await Self.token(node)
                #expect(try await Self.enroll(node, token: token.token).status == 200)
                let agents: [AgentInfo] = try await node.call(.GET, "/v1/agents").decode()
                #expect(agents.count == 1)
                prints.insert(agents[0].certificateFingerprint)
            }
            #expect(prints.count == 2)
        }
    }
}
