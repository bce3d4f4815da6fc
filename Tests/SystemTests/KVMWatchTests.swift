import API
import Foundation
import Testing

/// What `volume show` says of guests, as they come and go.
@Suite("Guests: what uses a volume", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMWatchTests {
    @Test("libvirt's events tell of a guest's definition, start, new disk, stop and removal, and volume show follows")
    func uses() throws {
        let world = try KVMWorld()
        defer { world.tearDown() }
        let guest = try world.guest("g1", volumes: ["data"])
        let late = try world.node.guestDisk(
            volume: "late", target: "vdb", initiator: guest.initiator, host: world.host)
        world.agent.configuration = "logLevel: debug\n"
        try world.startAgents()
        let isWatched = Shell.wait(upToSeconds: 30) { world.agent.log.contains("libvirt: it is watched") }
        #expect(isWatched, "\(world.agent.log)")
        #expect(try Self.uses(world, "data") == [])
        try Self.follows(world, "data", ["guest g1 off"]) { try guest.define() }
        try Self.follows(world, "data", ["guest g1 running"]) { try guest.start() }
        try guest.waitForAgent()
        let file = "\(world.host.folder.path)/late.xml"
        try late.xml.write(toFile: file, atomically: true, encoding: .utf8)
        try Self.follows(world, "late", ["guest g1 running"]) { try world.host.virsh("attach-device", "g1", file) }
        try Self.follows(world, "late", []) { try world.host.virsh("detach-device", "g1", file) }
        try Self.follows(world, "data", ["guest g1 off"]) { try world.host.virsh("destroy", "g1") }
        try Self.follows(world, "data", []) { try world.host.virsh("undefine", "g1") }
    }

    private static func uses(_ world: KVMWorld, _ volume: String) throws -> [String] {
        try (world.node.json(VolumeInfo.self, "volume", "show", volume).uses ?? [])
            .map { "\($0.label) \($0.state ?? "")" }
    }

    /// How many changes the agent has been told of; asking does not make it look.
    private static func changes(_ world: KVMWorld) throws -> Int {
        let folder = world.agent.folder.path
        let text = try Shell.check([
            Components.bin + "/stillpoint-agent", "status", "--state", folder + "/state", "--run", folder + "/run",
            "-o", "json",
        ])
        return try APIJSON.decoder().decode(AgentStatus.self, from: Data(text.utf8)).changes ?? 0
    }

    private static func follows(
        _ world: KVMWorld, _ volume: String, _ expected: [String], after action: () throws -> Void
    ) throws {
        let before = try changes(world)
        try action()
        let isTold = try Shell.wait(upToSeconds: 30) { try changes(world) > before }
        #expect(isTold, "no event led to \(expected)")
        var shown: [String] = []
        _ = try Shell.wait(upToSeconds: 30) {
            shown = try uses(world, volume)
            return shown == expected
        }
        #expect(shown == expected, "\(volume)")
    }
}
