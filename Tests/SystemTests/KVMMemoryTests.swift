import API
import Foundation
import Testing

/// Memory images: whole in the snapshot, or not there at all.
@Suite(
    "Guests: memory", .serialized,
    .enabled(if: KVMComponents.areThere && Components.hasAttachment, "\(KVMComponents.skipReason)"))
struct KVMMemoryTests {
    private static let leaseSeconds = 12
    private static let step = "memory.writing"

    @Test(
        "a memory image is in the snapshot whole, and gone from the host after, whoever is killed while it is written"
    )
    func memory() throws {
        let steps = try PauseDirectory()
        defer { steps.remove() }
        let world = try KVMWorld(environment: steps.environment)
        let folder = world.host.folder.path + "/memory"
        world.agent.configuration = "pluginConfiguration: {libvirt: {mode: memory, memoryDirectory: \(folder)}}\n"
        defer { world.tearDown() }
        _ = try world.mountShared("shared", at: folder)
        defer { world.unmountShared("shared", at: folder) }
        let guest = try world.guest("g1", volumes: ["data"])
        try guest.boot()
        let described = try world.host.virsh("dumpxml", "g1")
        try world.startAgents()
        let found = try world.node.json(AgentInfo.self, "agent", "show", "kvm1").resources ?? []
        #expect(found.first { $0.plugin == "libvirt" }?.volumes == ["data", "shared"])
        try whole(world, guest, folder)
        #expect(try world.host.virsh("dumpxml", "g1") == described, "virsh shows what it showed before")
        #expect(try world.host.virsh("snapshot-list", "g1", "--name").allSatisfy(\.isWhitespace))
        try guest.startWriter(["/mnt/data/n"], pauseMicroseconds: 20_000)
        try slowDown(world, steps)
        for victim in KVMVictim.allCases { try cutShort(victim, world, guest, folder, steps) }
        try cutShort(nil, world, guest, folder, steps)
        try whole(world, guest, folder)
    }

    private func take(_ world: KVMWorld, _ name: String) -> [String] {
        [
            "snapshot", "create", "data", "shared", "--name", name, "--consistency", "file-system", "--allow-lower",
            "--lease", "\(Self.leaseSeconds)",
        ]
    }

    private func whole(_ world: KVMWorld, _ guest: Guest, _ folder: String) throws {
        let name = "whole-\(UInt32.random(in: 0...UInt32.max))"
        try world.node.must(
            "snapshot", "create", "data", "shared", "--name", name, "--consistency", "file-system",
            "--allow-lower", "--lease", "30")
        let made = try world.node.json(SnapshotInfo.self, "snapshot", "show", name)
        #expect(made.achievedConsistency == .crash)
        let member = try #require(made.evidence?.members.first { $0.plugin == "libvirt" })
        #expect(member.stillHeldAtRelease, "\(member.failure ?? "")")
        let file = try #require(member.artifacts["memoryFile"]).split(separator: "/").last.map(String.init) ?? ""
        #expect(guest.isRunningFreely(withinSeconds: 30))
        #expect(try images(world, folder).isEmpty)
        let image = Ext4Image(path: try world.image(of: name, volume: "shared"))
        #expect(try Shell.check(["debugfs", "-R", "ls -l /", image.path]).contains(file))
        #expect(try !image.needsRecovery())
        try world.node.must("clone", "delete", "look-\(name)-shared")
        try FileManager.default.removeItem(atPath: image.path)
    }

    private func images(_ world: KVMWorld, _ folder: String) throws -> [String] {
        try world.host.run("ls", folder).split(separator: "\n").map(String.init).filter { $0.hasSuffix(".memory") }
    }

    /// In the place of libvirt's program that writes a memory image into its file: as slow as a bad disk, while the
    /// step is armed.
    private func slowDown(_ world: KVMWorld, _ steps: PauseDirectory) throws {
        let program = "/usr/lib/libvirt/libvirt_iohelper"
        let folder = world.host.folder.path
        try Shell.check(["cp", program, "\(folder)/iohelper.real"])
        let step = steps.path(Self.step)
        try """
        #!/bin/bash
        while [ -e \(step) ]; do
            head -c 65536 > \(folder)/piece
            [ -s \(folder)/piece ] || break
            cat \(folder)/piece >&"$2"
            touch \(step).reached
            sleep 0.2
        done
        exec \(folder)/iohelper.real "$@"
        """.write(toFile: "\(folder)/iohelper", atomically: true, encoding: .utf8)
        try Shell.check(["chmod", "755", "\(folder)/iohelper"])
        try world.host.run("mount", "--bind", "\(folder)/iohelper", program)
    }

    /// - Parameter victim: nil: nobody dies, the lease ends.
    private func cutShort(
        _ victim: KVMVictim?, _ world: KVMWorld, _ guest: Guest, _ folder: String, _ steps: PauseDirectory
    ) throws {
        let name = "cut-\(victim?.rawValue ?? "lease")"
        try steps.arm(Self.step)
        let path = "\(world.node.folder.path)/\(name)"
        let taking = try Shell.start(
            [Components.bin + "/stillpoint"] + take(world, name),
            environment: ["STILLPOINT_RUN_DIR": world.node.runFolder], outputPath: path + ".out",
            errorPath: path + ".err")
        let isReached = Shell.wait(upToSeconds: 60) { steps.isReached(Self.step) || !taking.isRunning }
        let said = (try? String(contentsOfFile: path + ".err", encoding: .utf8)) ?? ""
        #expect(isReached && steps.isReached(Self.step), "\(name): \(said) \(world.agent.log.suffix(1500))")
        if let victim { try world.kill(victim, guest) { steps.release(Self.step) } }
        #expect(guest.isRunningFreely(withinSeconds: Double(Self.leaseSeconds) + 20), "\(name)")
        #expect(try guest.writerGoesOn(), "\(name)")
        #expect(Shell.wait(upToSeconds: 60) { !taking.isRunning }, "\(name)")
        taking.killHard()
        steps.release(Self.step)
        try world.expectSettled(name)
        #expect(
            Shell.wait(upToSeconds: 30) { (try? images(world, folder).isEmpty) == true },
            "\(name): half an image is left")
        guard try world.node.cli("snapshot", "show", name).status == 0 else { return }
        let made = try world.node.json(SnapshotInfo.self, "snapshot", "show", name)
        #expect(made.achievedConsistency == .crash, "\(name)")
        let counted = made.evidence?.members.filter { $0.artifacts["memoryFile"] != nil } ?? []
        #expect(counted.isEmpty, "\(name): half an image is counted")
    }
}
