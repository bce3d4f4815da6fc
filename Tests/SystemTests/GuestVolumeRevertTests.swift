import API
import Foundation
import Testing

/// A volume that is reverted as a whole while guests run on it.
@Suite(
    "Guests: revert of a volume", .serialized,
    .enabled(if: KVMComponents.areThere && Components.hasAttachment, "\(KVMComponents.skipReason)"))
struct GuestVolumeRevertTests {
    @Test("a volume under a running guest is not reverted; shut down, or driven, it is, and who ran runs again")
    func revert() throws {
        let world = try GuestWorld()
        defer { world.stop() }
        let (node, host) = (world.node, world.host)
        let images = try world.mountVolume("images", sizeText: "256MiB")
        defer { world.unmountVolume("images") }
        try host.run("truncate", "-s", "32M", "\(images)/b.img")
        try host.run("mkfs.ext4", "-q", "-L", "data", "\(images)/b.img")
        let a = Guest(host: host, name: "a")
        a.disks = [
            try node.guestDisk(
                volume: "a-data", sizeText: "32MiB", target: "vda", initiator: a.initiator, host: host, label: "data")
        ]
        let b = Guest(host: host, name: "b")
        b.disks = [GuestDisk(target: "vda", serial: "b", source: .file("\(images)/b.img", format: "raw"))]
        defer { for guest in [a, b] { guest.destroy() } }
        for guest in [a, b] {
            try guest.define()
            try guest.start()
        }
        for guest in [a, b] { try guest.waitForAgent() }
        try world.agent.start()
        for guest in [a, b] { try world.mark(guest, "one") }
        try node.must("snapshot", "create", "a-data", "images", "--consistency", "file-system", "--name", "s1")
        for guest in [a, b] { try world.mark(guest, "two") }
        let runs = try ["a", "b"].map { try host.virsh("domid", $0) }

        for volume in ["a-data", "images"] {
            let refused = try node.cli("volume", "revert", volume, "--to", "s1")
            #expect(refused.status == 1, "\(volume)")
            #expect(refused.errors.contains(volume), "\(refused)")
        }
        #expect(try node.cli("volume", "revert", "a-data", "--to", "s1").errors.contains(a.initiator), "it is named")
        #expect(try ["a", "b"].map { try host.virsh("domid", $0) } == runs, "nobody was stopped")
        #expect(try [a, b].map { try world.marker($0) } == ["two", "two"])

        try host.virsh("shutdown", "a")
        #expect(Shell.wait(upToSeconds: 30) { a.state == "shut off" })
        try node.must("volume", "revert", "a-data", "--to", "s1")
        #expect(a.state == "shut off", "who was off stays off")
        try a.start()
        try a.waitForAgent()
        #expect(try world.marker(a) == "one")

        let plan = try node.must("volume", "revert", "images", "--to", "s1", "--drive", "--dry-run")
        #expect(plan.contains("guest b"), "\(plan)")
        try node.must("volume", "revert", "a-data", "--undo", "--drive", timeoutSeconds: 180)
        try node.must("volume", "revert", "images", "--to", "s1", "--drive", timeoutSeconds: 180)
        for guest in [a, b] { try guest.waitForAgent() }
        #expect(try world.marker(a) == "two")
        #expect(try world.marker(b) == "one")
        #expect(try host.run("cat", "/proc/mounts").contains(" \(images) "), "the file system is mounted again")
    }
}
