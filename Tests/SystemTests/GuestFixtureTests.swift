import API
import Foundation
import Testing

/// The fixture itself: if a guest does not boot, the tests that stand on guests say nothing.
@Suite("Guests: fixture", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct GuestFixtureTests {
    @Test("a guest boots from a LUN with CHAP, answers its agent, and is frozen and thawed")
    func bootsAndFreezes() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let host = try KVMHost()
        defer { host.stop() }
        try host.start()
        let guest = Guest(host: host, name: "g1")
        guest.disks = [
            try node.guestDisk(
                volume: "g1-data", target: "vda", initiator: guest.initiator, host: host, label: "data")
        ]
        try guest.boot()
        #expect(try guest.shell("cat /proc/mounts").contains("/mnt/data ext4"))

        try guest.startWriter(["/mnt/data/n"])
        try host.virsh("domfsfreeze", "g1")
        let frozen = try host.virshResult("domfsinfo", "g1")
        #expect(frozen.status != 0, "a frozen guest agent answers nothing else")
        try host.virsh("domfsthaw", "g1")
        let before = try guest.written()
        #expect(Shell.wait { (try? guest.written()) ?? 0 > before })

        // A freeze hook that says no.
        let hook = "/etc/qemu/fsfreeze-hook.d/no"
        try guest.shell("printf '#!/bin/sh\\n[ $1 != freeze ]\\n' > \(hook); chmod +x \(hook)")
        #expect(try host.virshResult("domfsfreeze", "g1").status != 0)
        let after = try guest.written()
        #expect(Shell.wait { (try? guest.written()) ?? 0 > after })

        try host.virsh("shutdown", "g1")
        #expect(Shell.wait { guest.state == "shut off" })
    }
}
