import API
import Foundation
import Testing

@Suite(
    "Guests: restore", .serialized,
    .enabled(if: KVMComponents.areThere && Components.hasAttachment, "\(KVMComponents.skipReason)"))
struct GuestRestoreTests {
    @Test("a guest comes back in place, after its deletion, and beside the original; each restore is taken back")
    func ownVolume() throws {
        let world = try GuestWorld()
        defer { world.stop() }
        let (node, host) = (world.node, world.host)
        let guest = Guest(host: host, name: "g1")
        guest.disks = [
            try node.guestDisk(
                volume: "g1-data", sizeText: "32MiB", target: "vda", initiator: guest.initiator, host: host,
                label: "data")
        ]
        try guest.boot()
        try world.agent.start()
        try world.mark(guest, "one")
        let before = try world.definition("g1")
        let snapshot = try node.json(
            SnapshotInfo.self, "snapshot", "create", "g1-data", "--consistency", "application", "--allow-lower",
            "--name", "s1")
        #expect(snapshot.volumes.count == 1)
        try world.mark(guest, "two")

        let plan = try node.must("guest", "restore", "g1", "--dry-run")
        #expect(plan.contains("revert volume g1-data"))
        #expect(try world.marker(guest) == "two")
        #expect(try host.states() == ["g1": "running"])

        try node.must("guest", "restore", "g1", "--from", "s1", timeoutSeconds: 400)
        try guest.waitForAgent()
        #expect(try world.marker(guest) == "one")
        #expect(try world.definition("g1") == before)
        try node.must("guest", "restore", "g1", "--undo", timeoutSeconds: 400)
        try guest.waitForAgent()
        #expect(try world.marker(guest) == "two")

        // Beside: both run, each with its own data.
        let made = try node.json(
            [GuestRestoreResult].self, "guest", "restore", "g1", "--from", "s1", "--beside", "g1-copy")
        let copy = Guest(host: host, name: "g1-copy")
        try copy.waitForAgent()
        #expect(try world.marker(copy) == "one")
        #expect(try world.marker(guest) == "two")
        #expect(made.first?.uuid != guest.uuid)
        #expect(try node.cli("guest", "restore", "g1", "--beside", "g1-copy").status == 1, "the name is taken")
        try node.must("guest", "restore", "g1-copy", "--undo", timeoutSeconds: 400)
        #expect(try host.states() == ["g1": "running"])
        #expect(try node.json([VolumeInfo].self, "clone", "list").isEmpty)

        // Deleted: byte for byte what the snapshot holds, and the definition that it had.
        try host.virsh("destroy", "g1")
        try host.virsh("undefine", "g1")
        #expect(try node.json([GuestInfo].self, "guest", "list").first?.state == "deleted")
        try node.must("guest", "restore", "g1", "--from", "s1", "--no-start", timeoutSeconds: 400)
        #expect(try world.definition("g1") == before)
        #expect(try host.states() == ["g1": "shut off"])
        try node.must("clone", "create", "s1", "--name", "reference")
        #expect(try node.contents(volume: "g1-data") == node.contents(volume: "reference"))
        try guest.start()
        try guest.waitForAgent()
        #expect(try world.marker(guest) == "one")
    }

    @Test("a guest whose image shares a file system with another's is restored alone; the other runs on")
    func sharedVolume() throws {
        let world = try GuestWorld()
        defer { world.stop() }
        let (node, host) = (world.node, world.host)
        let images = try world.mountVolume("images", sizeText: "512MiB")
        defer { world.unmountVolume("images") }
        var guests: [Guest] = []
        for (name, format) in [("a", "raw"), ("b", "qcow2")] {
            try host.run("truncate", "-s", "32M", "\(images)/\(name).raw")
            try host.run("mkfs.ext4", "-q", "-L", "data", "\(images)/\(name).raw")
            if format != "raw" {
                try host.run(
                    "qemu-img", "convert", "-O", format, "\(images)/\(name).raw", "\(images)/\(name).\(format)")
                try host.run("rm", "\(images)/\(name).raw")
            }
            let guest = Guest(host: host, name: name)
            guest.disks = [
                GuestDisk(target: "vda", serial: name, source: .file("\(images)/\(name).\(format)", format: format))
            ]
            try guest.define()
            try guest.start()
            guests.append(guest)
        }
        for guest in guests { try guest.waitForAgent() }
        try world.agent.start()
        for guest in guests { try world.mark(guest, "one") }
        let snapshot = try node.json(
            SnapshotInfo.self, "snapshot", "create", "images", "--consistency", "fileSystem",
            "--name", "s1")
        #expect(snapshot.volumes.count == 1)
        for guest in guests { try world.mark(guest, "two") }
        let other = try host.virsh("domid", "a")

        try node.must("guest", "restore", "b", timeoutSeconds: 400)
        try guests[1].waitForAgent()
        #expect(try world.marker(guests[1]) == "one")
        #expect(try world.marker(guests[0]) == "two")
        #expect(try host.virsh("domid", "a") == other, "the other guest was not stopped")
        try node.must("guest", "restore", "b", "--undo", timeoutSeconds: 400)
        try guests[1].waitForAgent()
        #expect(try world.marker(guests[1]) == "two")

        // Its image was deleted with it.
        try host.virsh("destroy", "b")
        try host.virsh("undefine", "b")
        try host.run("rm", "\(images)/b.qcow2")
        try node.must("guest", "restore", "b", timeoutSeconds: 400)
        try guests[1].waitForAgent()
        #expect(try world.marker(guests[1]) == "one")
        #expect(try host.virsh("domid", "a") == other)
        #expect(try node.json([VolumeInfo].self, "clone", "list").isEmpty, "no clone is left")
        for guest in guests { guest.destroy() }
    }

    @Test("a guest whose memory was kept goes on where it was")
    func memory() throws {
        let world = try GuestWorld(
            agentConfiguration: """
                pluginConfiguration:
                  libvirt:
                    mode: memory
                    memoryDirectory: HOST/memory
                """)
        defer { world.stop() }
        let (node, host) = (world.node, world.host)
        _ = try world.mountVolume("memory", sizeText: "1GiB")
        defer { world.unmountVolume("memory") }
        let guest = Guest(host: host, name: "m1")
        guest.disks = [
            try node.guestDisk(
                volume: "m1-data", sizeText: "32MiB", target: "vda", initiator: guest.initiator, host: host,
                label: "data")
        ]
        try guest.boot()
        try world.agent.start()
        // In memory only: what boots anew does not know it.
        try guest.shell("echo here > /run/token")
        try world.mark(guest, "one")
        try node.must(
            "snapshot", "create", "m1-data", "memory", "--consistency", "application", "--allow-lower", "--name", "s1",
            "--lease", "30", timeoutSeconds: 400)
        try guest.shell("echo gone > /run/token")
        try world.mark(guest, "two")
        try node.must("guest", "restore", "m1", "--from", "s1", timeoutSeconds: 400)
        try guest.waitForAgent()
        #expect(try guest.shell("cat /run/token").hasPrefix("here"))
        #expect(try world.marker(guest) == "one")
        guest.destroy()
    }
}

extension TestNode {
    /// Every byte of a volume that nobody uses.
    fileprivate func contents(volume: String) throws -> Data {
        let initiator = "iqn.2026-11.test:read"
        let info = try json(VolumeInfo.self, "volume", "show", volume)
        try must("target", "allow", info.exports[0].iqn, "--initiator", initiator)
        let path = folder.path + "/contents"
        try Shell.check([
            "qemu-img", "convert", "-O", "raw", "--image-opts",
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=\(iscsi),file.target=\(info.exports[0].iqn),"
                + "file.lun=\(info.exports[0].lun),file.initiator-name=\(initiator)", path,
        ])
        try must("target", "deny", info.exports[0].iqn, "--initiator", initiator)
        defer { try? FileManager.default.removeItem(atPath: path) }
        return try Data(contentsOf: URL(filePath: path))
    }
}
