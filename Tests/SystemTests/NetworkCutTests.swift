import API
import Foundation
import Testing

/// Node and agent on two hosts (network namespaces of the test's own), with the wire between them cut while everything
/// is held. The API beyond loopback is TLS: enrolment pins the node's authority.
@Suite(
    "Network cut", .serialized,
    .enabled(
        if: Components.hasAttachment && Components.hasNamespaces, "needs root, FUSE, qemu-storage-daemon and iproute2"))
struct NetworkCutTests {
    static let namespace = "sp-test-\(getpid())"
    static let nodeLink = "spn\(getpid() % 100_000)"
    static let agentLink = "spa\(getpid() % 100_000)"
    static let nodeAddress = "10.213.77.1"
    static let agentAddress = "10.213.77.2"

    static func makeNetwork() throws {
        try Shell.check(["ip", "netns", "add", namespace])
        try Shell.check(["ip", "link", "add", nodeLink, "type", "veth", "peer", "name", agentLink, "netns", namespace])
        try Shell.check(["ip", "addr", "add", nodeAddress + "/30", "dev", nodeLink])
        try Shell.check(["ip", "link", "set", nodeLink, "up"])
        let inside = ["ip", "netns", "exec", namespace, "ip"]
        try Shell.check(inside + ["addr", "add", agentAddress + "/30", "dev", agentLink])
        try Shell.check(inside + ["link", "set", agentLink, "up"])
        try Shell.check(inside + ["link", "set", "lo", "up"])
    }

    static func removeNetwork() {
        _ = try? Shell.run(["ip", "link", "del", nodeLink])
        _ = try? Shell.run(["ip", "netns", "del", namespace])
    }

    @Test(
        "a network cut between node and agent while everything is held ends the hold within the lease, without a label")
    func cut() throws {
        try Self.makeNetwork()
        defer { Self.removeNetwork() }
        let node = try TestNode()
        defer { node.stop() }
        node.apiListen = Self.nodeAddress + ":0"
        let steps = try PauseDirectory()
        defer { steps.remove() }
        node.extraEnvironment = steps.environment
        try node.start()
        #expect(node.api.hasPrefix("https://"), "beyond loopback the API is TLS")
        let host = try ProtectedHost(node: node, agentName: "far", volume: "v", sizeText: "256MiB")
        defer { host.tearDown() }
        try host.mount()
        host.agent.host = Self.agentAddress
        host.agent.prefix = ["ip", "netns", "exec", Self.namespace]
        try host.agent.enroll()
        try host.agent.start()
        // Everything is held where the cut would begin.
        try steps.arm("cut.before")
        let client = try Shell.start(
            [
                Components.bin + "/stillpoint", "snapshot", "create", "v", "--consistency", "fileSystem", "--lease",
                "10", "--name", "cut",
            ], environment: ["STILLPOINT_RUN_DIR": node.runFolder], outputPath: node.folder.path + "/snapshot.out")
        #expect(Shell.wait { steps.isReached("cut.before") || !client.isRunning }, "\(host.agent.log)")
        #expect(steps.isReached("cut.before"), "\(node.log.suffix(1500))")
        try Shell.check(["ip", "netns", "exec", Self.namespace, "ip", "link", "set", Self.agentLink, "down"])
        steps.release("cut.before")
        #expect(host.acceptsWrites(withinSeconds: 30), "frozen for longer than its lease:\n\(host.agent.log)")
        #expect(Shell.wait { !client.isRunning })
        try Shell.check(["ip", "netns", "exec", Self.namespace, "ip", "link", "set", Self.agentLink, "up"])
        #expect(try node.achievedLevels(volume: "v").isEmpty)
        let back = try Shell.wait { try node.json(AgentInfo.self, "agent", "show", "far").isReachable }
        #expect(back, "the agent is found again when the wire is back")
        let made = try node.json(
            SnapshotInfo.self, "snapshot", "create", "v", "--consistency", "fileSystem", "--name", "after")
        #expect(made.achievedConsistency == .fileSystem)
    }
}
