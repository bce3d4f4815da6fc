import API
import Foundation
import Testing

/// A hypervisor that the agent reaches over SSH. The command that stands for ssh runs what libvirt asks for on this
/// machine: everything between libvirt's two ends is real, but for the encryption.
@Suite("Guests: another host", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMRemoteTests {
    @Test("over qemu+ssh a guest is found by its iSCSI disks, frozen, restored; its files are left alone, and said so")
    func overSSH() throws {
        let world = try KVMWorld()
        defer { world.tearDown() }
        let folder = world.host.folder.path
        let command = "\(folder)/ssh"
        // ssh [OPTION…] -- HOST COMMAND…
        try "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\nexec sh -c \"$*\"\n"
            .write(toFile: command, atomically: true, encoding: .utf8)
        try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: command)
        let uri = "qemu+ssh://root@kvm2.example.org/system?command=\(command)"
        let silent = "qemu+ssh://root@kvm3.example.org/system?command=/bin/false"
        world.agent.configuration =
            "pluginConfiguration: {libvirt: {uris: [\"\(uri)\", \"\(silent)\"], retryCount: 1}}\n"
        let guest = try world.guest("g1", volumes: ["data"])
        try world.host.run("qemu-img", "create", "-q", "-f", "qcow2", "\(folder)/local.qcow2", "16M")
        guest.disks.append(
            GuestDisk(target: "vdb", serial: "local", source: .file("\(folder)/local.qcow2", format: "qcow2")))
        try guest.boot()
        try world.startAgents()

        let info = try world.node.json(AgentInfo.self, "agent", "show", "kvm1")
        let found = try #require(info.resources?.first { $0.plugin == "libvirt" })
        #expect(found.details["uri"] == uri)
        #expect(found.details["disk.vda"]?.hasPrefix("iscsi data ") == true)
        #expect(found.details["disk.vdb"] == nil && found.details["leftAlone.vdb"] != nil, "\(found.details)")
        // A hypervisor that is silent may have guests on the volume: no level above `crash` is promised.
        let plan = try world.node.cli("snapshot", "create", "data", "--consistency", "file-system", "--dry-run")
        #expect(plan.status == 1 && plan.output.contains("kvm3.example.org"), "the silent host is named: \(plan)")
        world.agent.stopProcess()
        world.agent.configuration = "pluginConfiguration: {libvirt: {uris: [\"\(uri)\"], retryCount: 1}}\n"
        try world.agent.start()

        try guest.shell("echo one > /mnt/data/marker; sync")
        let made = try world.snapshot(["data"], name: "s1", "--consistency", "file-system")
        #expect(made.achievedConsistency == .fileSystem)
        #expect(try !Ext4Image(path: world.image(of: "s1", volume: "data")).needsRecovery())
        #expect(guest.isRunningFreely(withinSeconds: 10))
        try guest.shell("echo two > /mnt/data/marker; sync")
        try world.node.must("guest", "restore", "g1", "--from", "s1", timeoutSeconds: 180)
        try guest.waitForAgent()
        #expect(try guest.shell("cat /mnt/data/marker") == "one\n")
    }
}
