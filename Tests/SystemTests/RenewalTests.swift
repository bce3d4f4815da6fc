import API
import Foundation
import Testing

@Suite("Certificates of agents", .serialized)
struct RenewalTests {
    @Test(
        "short-lived certificates are renewed by themselves; the agent is reachable long after the first one ended",
        .enabled(if: Components.isRoot, "needs root for tmpfs"))
    func renewal() throws {
        let node = try TestNode()
        defer { node.stop() }
        node.extraEnvironment["STILLPOINT_TEST_AGENT_CERTIFICATE_SECONDS"] = "30"
        node.extraEnvironment["STILLPOINT_AGENTS_POLL_SECONDS"] = "1"
        try node.start()
        let agent = try TestAgent(name: "host-a", node: node)
        defer { agent.stop() }
        try agent.enroll()
        try agent.start()
        let first = try node.json(AgentInfo.self, "agent", "show", "host-a")
        let end = try #require(first.certificateExpiresAt)
        let isRenewed = try Shell.wait {
            try node.json(AgentInfo.self, "agent", "show", "host-a").certificateFingerprint
                != first.certificateFingerprint
        }
        #expect(isRenewed, "\(node.log.suffix(2000))")
        let isReachedLater = try Shell.wait {
            guard Date.now > end.addingTimeInterval(1) else { return false }
            let later = try node.json(AgentInfo.self, "agent", "show", "host-a")
            return later.isReachable && (later.certificateExpiresAt ?? end) > end
        }
        #expect(isReachedLater, "\(node.log.suffix(2000))")
        // What lies on the agent's disk is the renewed one, and nothing else is left of it.
        agent.killHard()
        try agent.start()
        #expect(try Shell.wait { try node.json(AgentInfo.self, "agent", "show", "host-a").isReachable })
        // The next renewal may be under way just now.
        let isAlone = try Shell.wait {
            try FileManager.default.contentsOfDirectory(atPath: agent.folder.path + "/state") == ["identity"]
        }
        #expect(isAlone)
    }
}
