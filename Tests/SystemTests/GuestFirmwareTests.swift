import API
import Foundation
import Testing

/// What a guest keeps beside its disks: UEFI variables, and the state of its TPM.
@Suite(
    "Guests: firmware", .serialized,
    .enabled(if: KVMComponents.areThere && FirmwareComponents.areThere, "\(FirmwareComponents.skipReason)"))
struct GuestFirmwareTests {
    @Test("UEFI variables and TPM state go with the snapshot, and come back in place, beside, and after a deletion")
    func firmware() throws {
        let steps = try PauseDirectory()
        defer { steps.remove() }
        let world = try GuestWorld(environment: steps.environment)
        defer { world.stop() }
        let host = world.host
        let variables = "\(host.folder.path)/u1-vars.fd"
        let guest = Guest(host: host, name: "u1")
        guest.disks = [
            try world.node.guestDisk(
                volume: "u1-data", sizeText: "32MiB", target: "vda", initiator: guest.initiator, host: host,
                label: "data")
        ]
        guest.firmware = """
            <loader readonly='yes' type='pflash'>\(FirmwareComponents.code)</loader>\
            <nvram template='\(FirmwareComponents.variables)'>\(variables)</nvram>
            """
        guest.moreDevices =
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
        defer { guest.destroy() }
        try guest.define()
        try guest.start()
        try guest.waitForAgent(seconds: 180)
        #expect(try guest.shell("ls -d /sys/firmware/efi").contains("efi"), "it came through UEFI")
        try world.agent.start()
        try world.mark(guest, "one")
        let made = try world.node.json(
            SnapshotInfo.self, "snapshot", "create", "u1-data", "--consistency", "file-system", "--name", "s1")
        let artifacts = try #require(
            world.node.json(SnapshotInfo.self, "snapshot", "show", made.name).evidence?.members.first?.artifacts)
        #expect(artifacts["nvram"] != nil && artifacts["nvramPath"] == variables)
        #expect(artifacts["tpm.tpm2/tpm2-00.permall"] != nil, "\(artifacts.keys.sorted())")
        #expect(artifacts["omitted"] == nil)
        let kept = try bytes(world, guest.uuid, variables)
        try world.mark(guest, "two")
        try host.virsh("destroy", "u1")
        try damage(world, guest.uuid, variables)

        try world.node.must("guest", "restore", "u1", "--from", "s1", "--no-start", timeoutSeconds: 120)
        #expect(try bytes(world, guest.uuid, variables) == kept, "in place")
        try guest.start()
        try guest.waitForAgent(seconds: 180)
        #expect(try world.marker(guest) == "one")

        // Beside: variables and TPM of its own, and the original's are left alone.
        let beside = try world.node.json(
            [GuestRestoreResult].self, "guest", "restore", "u1", "--from", "s1", "--beside", "u2", "--no-start")
        let uuid = try #require(beside.first?.uuid)
        #expect(try bytes(world, uuid, "\(variables).\(uuid)") == kept, "beside")
        #expect(try host.virsh("dumpxml", "u2").contains("\(variables).\(uuid)"))
        try host.virsh("start", "u2")
        try world.node.must("guest", "restore", "u2", "--undo", timeoutSeconds: 120)
        #expect(try host.states() == ["u1": "running"])
        #expect(try host.run("ls", "/var/lib/libvirt/swtpm").contains(uuid) == false, "the TPM of u2 is gone")

        try host.virsh("destroy", "u1")
        try restartOfTheHost(world, steps, guest.uuid, variables)

        // Deleted with all that belongs to it.
        try host.virsh("undefine", "u1", "--nvram")
        #expect(try host.run("ls", host.folder.path).split(separator: "\n").contains("u1-vars.fd") == false)
        try world.node.must("guest", "restore", "u1", "--from", "s1", "--no-start", timeoutSeconds: 120)
        #expect(try bytes(world, guest.uuid, variables) == kept, "deleted")
        try guest.start()
        try guest.waitForAgent(seconds: 180)
        #expect(try world.marker(guest) == "one")
    }

    /// The host loses power in the middle of a restore, and with it all that agent and plug-in had noted in memory.
    private func restartOfTheHost(
        _ world: GuestWorld, _ steps: PauseDirectory, _ uuid: String, _ variables: String
    ) throws {
        try damage(world, uuid, variables)
        let before = try bytes(world, uuid, variables)
        let kept = try keptFiles(world)
        let definition = try world.definition("u1")
        let step = "plugin.restore.defined"
        try steps.arm(step)
        let restoring = try Shell.start(
            [Components.bin + "/stillpoint", "guest", "restore", "u1", "--from", "s1", "--no-start"],
            environment: ["STILLPOINT_RUN_DIR": world.node.runFolder],
            outputPath: world.node.folder.path + "/restarted")
        #expect(Shell.wait(upToSeconds: 120) { steps.isReached(step) || !restoring.isRunning })
        #expect(try bytes(world, uuid, variables) != before, "the restore had begun")
        let plugins = try Shell.run(["pgrep", "-P", "\(world.agent.pid)", "-f", "stillpoint-plugin-libvirt"]).output
            .split(separator: "\n").compactMap { Int32($0) }
        #expect(!plugins.isEmpty)
        for pid in plugins { kill(pid, SIGSTOP) }
        world.agent.killHard()
        for pid in plugins { kill(pid, SIGKILL) }
        try Shell.check(["find", world.agent.folder.path + "/run", "-mindepth", "1", "-delete"])
        steps.release(step)
        try world.agent.start()
        #expect(Shell.wait(upToSeconds: 120) { !restoring.isRunning })
        restoring.killHard()
        let isSettled = try Shell.wait(upToSeconds: 120) {
            try world.node.json([JobInfo].self, "job", "list").allSatisfy { $0.state.isEnded }
        }
        #expect(isSettled, "\(world.node.log.suffix(1500))")
        #expect(try bytes(world, uuid, variables) == before, "they are what they were before the restore")
        #expect(try world.definition("u1") == definition)
        #expect(try keptFiles(world) == kept)
    }

    /// What restores keep beside the files that they exchange.
    private func keptFiles(_ world: GuestWorld) throws -> [Substring] {
        let words = ["find", world.host.folder.path, "/var/lib/libvirt/swtpm"]
        return try Shell.check(world.host.prefix + words + ["-name", "*.before-*", "-o", "-name", "*.restore-*"])
            .split(separator: "\n").sorted()
    }

    private func tpm(_ uuid: String) -> String { "/var/lib/libvirt/swtpm/\(uuid)/tpm2/tpm2-00.permall" }

    /// Digests of both files.
    private func bytes(_ world: GuestWorld, _ uuid: String, _ variables: String) throws -> [String] {
        try [variables, tpm(uuid)].map { path in
            String(try world.host.run("sha256sum", path).prefix(64))
        }
    }

    /// As another owner of the machine would leave them.
    private func damage(_ world: GuestWorld, _ uuid: String, _ variables: String) throws {
        for path in [variables, tpm(uuid)] {
            try world.host.run("sh", "-c", "printf damage | dd of=\(path) bs=1 seek=64 conv=notrunc status=none")
        }
    }
}

/// Debian's packages ovmf, swtpm and swtpm-tools.
enum FirmwareComponents {
    static let code = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    static let variables = "/usr/share/OVMF/OVMF_VARS_4M.fd"
    private static let missing =
        [code, variables].filter { !FileManager.default.fileExists(atPath: $0) }
        + ["swtpm", "swtpm_setup"].filter { Shell.locate($0) == nil }
    static let areThere = missing.isEmpty
    static let skipReason = "guests with UEFI and a TPM need the packages of scripts/setup.sh test; missing: \(missing)"
}
