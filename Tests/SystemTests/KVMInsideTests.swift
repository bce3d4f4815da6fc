import API
import Foundation
import Testing

/// A `stillpoint-agent` inside of a guest, in one group with the agent of the guest's host.
@Suite("Guests: an agent inside", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMInsideTests {
    /// Notes each call in memory, with whether the file system took a write just then; only a quiesce may leave a mark
    /// in the snapshot.
    private static let hook = """
        #!/bin/sh
        echo "$STILLPOINT_PHASE" >> /run/order
        echo "$STILLPOINT_PHASE" >> /mnt/data/marks
        sync
        """

    private static let inside = """
        pluginConfiguration:
          hook: {hooks: [{name: app, volumes: [data], quiesce: [/run/app.sh], unquiesce: [/run/app.sh]}]}
        """

    @Test("its applications come to rest before its host freezes, pauses or leaves the guest, and go on after")
    func layers() throws {
        let world = try KVMWorld()
        defer { world.tearDown() }
        let guest = try world.guest("web", volumes: ["data"])
        let agent = try AgentInGuest(name: "inside", guest: guest, node: world.node)
        agent.configuration = Self.inside
        try guest.boot()
        let order = "printf '#!/bin/sh\\necho $1 >> /run/order\\n' > /etc/qemu/fsfreeze-hook.d/order"
        try guest.shell("\(order); chmod +x /etc/qemu/fsfreeze-hook.d/order")
        try guest.shell("cat > /run/app.sh <<'END'\n\(Self.hook)\nEND\nchmod 755 /run/app.sh")
        try world.startAgents()
        try agent.start()
        try isSeen(world)
        try frozen(world, guest, agent)
        try leftRunning(world, guest)
        try paused(world, guest)
        try off(world, guest)
    }

    private func isSeen(_ world: KVMWorld) throws {
        let found = try world.node.json(AgentInfo.self, "agent", "show", "inside").resources ?? []
        #expect(found.map(\.plugin).sorted() == ["filesystem", "hook"])
        #expect(found.allSatisfy { $0.volumes == ["data"] })
        let uses = try world.node.must("volume", "show", "data")
        for text in ["guest web", "hook app", "ext4 on /mnt/data"] { #expect(uses.contains(text), "\(uses)") }
    }

    private func take(
        _ world: KVMWorld, _ guest: Guest, _ name: String
    ) throws -> (info: SnapshotInfo, order: [String], image: Ext4Image) {
        try guest.shell("rm -f /run/order /mnt/data/marks; sync")
        let info = try world.snapshot(["data"], name: name, "--consistency", "application", "--lease", "20")
        #expect(info.achievedConsistency == .application)
        #expect(info.evidence?.members.contains { !$0.stillHeldAtRelease } == false)
        #expect(guest.isRunningFreely(withinSeconds: 10))
        let order = try guest.shell("cat /run/order").split(separator: "\n").map(String.init)
        let image = Ext4Image(path: try world.image(of: name, volume: "data"))
        #expect(try !image.needsRecovery(), "\(name)")
        #expect(try image.file("/marks") == "quiesce\n", "\(name)")
        #expect(try guest.shell("cat /mnt/data/marks") == "quiesce\nunquiesce\n")
        return (info, order, image)
    }

    /// The host freezes the guest's file systems, so the agent inside does not.
    private func frozen(_ world: KVMWorld, _ guest: Guest, _ agent: AgentInGuest) throws {
        try guest.startWriter(["/mnt/data/n"], pauseMicroseconds: 5_000)
        let (info, order, image) = try take(world, guest, "frozen")
        #expect(info.evidence?.members.map { "\($0.agent) \($0.plugin)" } == ["inside hook", "kvm1 libvirt"])
        #expect(order == ["quiesce", "freeze", "thaw", "unquiesce"])
        let numbers = try image.numbers("/n")
        #expect(!numbers.isEmpty && numbers == Array(1...max(1, numbers.count)))
        #expect(try guest.writerGoesOn())
        try guest.stopWriter()
    }

    private func restart(_ world: KVMWorld, _ configuration: String) throws {
        world.agent.stopProcess()
        world.agent.configuration = configuration
        try world.agent.start()
    }

    /// The agent inside freezes, and the host does nothing.
    private func leftRunning(_ world: KVMWorld, _ guest: Guest) throws {
        try restart(world, "pluginConfiguration: {libvirt: {mode: none}}\n")
        let (info, order, _) = try take(world, guest, "left")
        let members = ["inside hook", "inside filesystem", "kvm1 libvirt"]
        #expect(info.evidence?.members.map { "\($0.agent) \($0.plugin)" } == members)
        #expect(order == ["quiesce", "unquiesce"])
    }

    /// The clock of the agent inside stands still while the guest is paused; its proof bears that.
    private func paused(_ world: KVMWorld, _ guest: Guest) throws {
        try restart(world, "pluginConfiguration: {libvirt: {mode: pause}}\n")
        let (info, order, _) = try take(world, guest, "paused")
        #expect(info.evidence?.members.map(\.layer) == [.application, .fileSystem, .machine])
        #expect(order == ["quiesce", "unquiesce"])
    }

    /// The agent of a guest that is off cannot answer, and nothing is missing.
    private func off(_ world: KVMWorld, _ guest: Guest) throws {
        try restart(world, "")
        try world.host.virsh("shutdown", "web")
        #expect(Shell.wait(upToSeconds: 20) { guest.state == "shut off" })
        let info = try world.snapshot(["data"], name: "off", "--consistency", "file-system")
        #expect(info.achievedConsistency == .fileSystem)
    }
}
