import API
import Foundation
import Testing

/// What a restore can be told: several guests, some disks, a clone as the source.
@Suite(
    "Guests: restore of a choice", .serialized,
    .enabled(if: KVMComponents.areThere && Components.hasAttachment, "\(KVMComponents.skipReason)"))
struct GuestRestoreChoiceTests {
    @Test("several guests in one restore, only some disks, from a clone in place and beside; each is undone")
    func choices() throws {
        let world = try GuestWorld()
        defer { world.stop() }
        let images = try world.mountVolume("images", sizeText: "512MiB")
        defer { world.unmountVolume("images") }
        let (a, b) = try guests(world, images)
        defer { for guest in [a, b] { guest.destroy() } }
        try mark("one", a, b)
        try world.node.must(
            "snapshot", "create", "a-data", "b-data", "images", "--consistency", "file-system", "--name", "s1")
        try mark("two", a, b)
        try list(world, a, b)
        try someDisks(world, a)
        try fromClones(world, a, b)
        try halfAList(world, images, a, b)
    }

    /// `a` has a volume and an image, `b` a volume.
    private func guests(_ world: GuestWorld, _ images: String) throws -> (Guest, Guest) {
        let host = world.host
        try host.run("truncate", "-s", "32M", "\(images)/a.img")
        try host.run("mkfs.ext4", "-q", "-L", "img", "\(images)/a.img")
        let guests = try ["a", "b"].map { name in
            let guest = Guest(host: host, name: name)
            guest.disks = [
                try world.node.guestDisk(
                    volume: "\(name)-data", sizeText: "32MiB", target: "vda", initiator: guest.initiator, host: host,
                    label: "data")
            ]
            return guest
        }
        guests[0].disks.append(
            GuestDisk(target: "vdb", serial: "img", source: .file("\(images)/a.img", format: "raw")))
        for guest in guests {
            try guest.define()
            try guest.start()
        }
        for guest in guests { try guest.waitForAgent() }
        try world.agent.start()
        return (guests[0], guests[1])
    }

    private func mark(_ text: String, _ guests: Guest...) throws {
        for guest in guests { try guest.shell("for d in /mnt/*; do echo \(text) > $d/marker; done; sync") }
    }

    /// Of /mnt/data, then of /mnt/img.
    private func markers(_ guest: Guest) throws -> [String] {
        try guest.waitForAgent()
        return try guest.shell("cat /mnt/*/marker").split(separator: "\n").map(String.init)
    }

    private func list(_ world: GuestWorld, _ a: Guest, _ b: Guest) throws {
        let unknown = try world.node.cli("guest", "restore", "a", "nobody", "--from", "s1")
        #expect(unknown.status != 0 && unknown.errors.contains("nobody"))
        #expect(try markers(a) == ["two", "two"], "all are planned before the first is touched")
        let made = try world.node.json([GuestRestoreResult].self, "guest", "restore", "a", "b", "--from", "s1")
        #expect(made.map(\.guest) == ["a", "b"])
        #expect(try markers(a) == ["one", "one"])
        #expect(try markers(b) == ["one"])
        try world.node.must("guest", "restore", "a", "b", "--undo", timeoutSeconds: 180)
        #expect(try markers(a) == ["two", "two"])
        #expect(try markers(b) == ["two"])
    }

    private func someDisks(_ world: GuestWorld, _ a: Guest) throws {
        try world.node.must("guest", "restore", "a", "--from", "s1", "--disk", "vdb", timeoutSeconds: 180)
        #expect(try markers(a) == ["two", "one"])
    }

    /// Of a list, the second guest cannot be restored: the first one can be taken back all the same.
    private func halfAList(_ world: GuestWorld, _ images: String, _ a: Guest, _ b: Guest) throws {
        let node = world.node
        for guest in [a, b] { guest.destroy() }
        let digest = { String(try world.host.run("sha256sum", "\(images)/a.img").prefix(64)) }
        let before = try digest()
        // Somebody whom no agent can ask to let go of the volume.
        let export = try #require(node.json(VolumeInfo.self, "volume", "show", "b-data").exports.first)
        let name = "iqn.2026-11.test:stays"
        try node.must("target", "allow", export.iqn, "--initiator", name)
        let user = try Shell.start(
            [
                "qemu-io", "-r", "-c", "sleep 600000", "--image-opts",
                "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=\(node.iscsi),file.target=\(export.iqn),"
                    + "file.lun=\(export.lun),file.initiator-name=\(name)",
            ], outputPath: node.folder.path + "/stays")
        defer { user.killHard() }
        #expect(try Shell.wait { try node.must("session", "list").contains(name) })
        let failed = try node.cli("guest", "restore", "a", "b", "--from", "s1")
        #expect(failed.status != 0 && failed.errors.contains("restored before it: a"), "\(failed)")
        #expect(try digest() != before, "a is restored")
        user.killHard()
        try node.must("guest", "restore", "a", "--undo", timeoutSeconds: 180)
        #expect(try digest() == before, "byte for byte")
        let again = try node.cli("guest", "restore", "a", "b", "--undo")
        #expect(again.status != 0, "\(again)")
    }

    private func fromClones(_ world: GuestWorld, _ a: Guest, _ b: Guest) throws {
        let node = world.node
        try mark("three", a)
        try node.must("clone", "create", "s1", "--volume", "images", "--name", "ci")
        try node.must("guest", "restore", "a", "--from", "ci", "--disk", "vdb", timeoutSeconds: 180)
        #expect(try markers(a) == ["three", "one"])

        try node.must("clone", "create", "s1", "--volume", "b-data", "--name", "cb")
        let refused = try node.cli("guest", "restore", "b", "--from", "cb")
        #expect(refused.status != 0 && refused.errors.contains("--beside"), "\(refused)")
        try node.must("guest", "restore", "b", "--from", "cb", "--beside", "b2", timeoutSeconds: 180)
        #expect(try markers(Guest(host: world.host, name: "b2")) == ["one"])
        #expect(try markers(b) == ["two"])
        try node.must("guest", "restore", "b2", "--undo", timeoutSeconds: 180)
        #expect(try world.host.states() == ["a": "running", "b": "running"])
        #expect(try node.json([VolumeInfo].self, "clone", "list").map(\.name).sorted() == ["cb", "ci"])
        #expect(try !node.must("snapshot", "list").contains("guest-restore."), "nothing of the restores is left")
    }
}
