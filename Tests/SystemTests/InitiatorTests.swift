import API
import Foundation
import Testing

/// Initiators that we did not write, against the whole node.
@Suite(
    "Initiators", .serialized,
    .enabled(if: Components.hasQEMU && Components.hasLibiscsi, "needs qemu-io and libiscsi-bin"))
struct InitiatorTests {
    @Test("a target is closed until an initiator is allowed, and closed again when it is denied")
    func closedUntilAllowed() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        let url = try node.url(volume: "v")
        let iqn = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let name = "iqn.2026-11.test:me"
        #expect(try Shell.run(["iscsi-inq", "-i", name, url]).status != 0)
        try node.must("target", "allow", iqn, "--initiator", name)
        #expect(try Shell.run(["iscsi-inq", "-i", name, url]).status == 0)
        #expect(try Shell.run(["iscsi-inq", "-i", "iqn.2026-11.test:other", url]).status != 0)
        let listed = try Shell.check(["iscsi-ls", "-s", "-i", name, "iscsi://\(node.iscsi)"])
        #expect(listed.contains(iqn) && listed.contains("Lun:0"), "\(listed)")
        #expect(
            try !Shell.run(["iscsi-ls", "-i", "iqn.2026-11.test:other", "iscsi://\(node.iscsi)"]).output.contains(iqn))
        try node.must("target", "deny", iqn, "--initiator", name)
        #expect(try Shell.run(["iscsi-inq", "-i", name, url]).status != 0)
    }

    @Test("CHAP lets the right secret in and no other, and the secret survives a restart")
    func chap() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        let iqn = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let secret = node.folder.path + "/secret"
        try "a-secret-of-20-chars\n".write(toFile: secret, atomically: true, encoding: .utf8)
        try node.must("target", "allow", iqn, "--initiator", "any", "--chap-user", "me", "--chap-secret-file", secret)
        for _ in 1...2 {
            let good = "iscsi://me%a-secret-of-20-chars@\(node.iscsi)/\(iqn)/0"
            let bad = "iscsi://me%a-secret-of-21-chars@\(node.iscsi)/\(iqn)/0"
            #expect(try Shell.run(["iscsi-inq", good]).status == 0)
            #expect(try Shell.run(["iscsi-inq", bad]).status != 0)
            #expect(try Shell.run(["iscsi-inq", "iscsi://\(node.iscsi)/\(iqn)/0"]).status != 0)
            #expect(node.terminate() == 0)
            try node.start()
        }
        let leaked = try Shell.run(["grep", "-c", "a-secret-of-20-chars", node.logPath])
        #expect(leaked.output.hasPrefix("0"), "a secret in the log")
    }

    @Test("a revert is refused while an initiator has a session, naming it; then it works, and can be undone")
    func revertGuard() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        try node.allowAny(volume: "v")
        let url = try node.url(volume: "v")
        let naa = try node.json(VolumeInfo.self, "volume", "show", "v").naa
        try Shell.check(["qemu-io", "-f", "raw", "-c", "write -q -P 1 0 4M", url])
        try node.must("snapshot", "create", "v", "--name", "one")
        try Shell.check(["qemu-io", "-f", "raw", "-c", "write -q -P 2 0 4M", url])
        let holder = try Shell.start(
            ["qemu-io", "-f", "raw", "-c", "sleep 600000", url], outputPath: node.folder.path + "/holder")
        let isHeld = try Shell.wait {
            try !node.json(VolumeInfo.self, "volume", "show", "v").initiators.isEmpty
        }
        #expect(isHeld)
        let refused = try node.cli("volume", "revert", "v", "--to", "one")
        #expect(refused.status == 1)
        #expect(refused.errors.contains("iqn."), "names the initiator: \(refused)")
        kill(holder.processIdentifier, SIGKILL)
        holder.waitUntilExit()
        _ = try Shell.wait {
            try node.json(VolumeInfo.self, "volume", "show", "v").initiators.isEmpty
        }
        func pattern(_ byte: Int) throws -> Bool {
            let read = try Shell.run(["qemu-io", "-f", "raw", "-r", "-c", "read -P \(byte) 0 4M", url])
            return read.status == 0 && !read.output.contains("verification failed")
        }
        try node.must("volume", "revert", "v", "--to", "one")
        #expect(try pattern(1))
        #expect(try node.json(VolumeInfo.self, "volume", "show", "v").naa == naa, "a revert keeps the identity")
        try node.must("volume", "revert", "v", "--undo")
        #expect(try pattern(2), "the state before the revert was kept")
        try node.must("clone", "create", "one", "--name", "copy")
        let copy = try node.json(VolumeInfo.self, "volume", "show", "copy")
        #expect(copy.naa != naa, "a clone has an identity of its own")
        #expect(try node.cli("snapshot", "delete", "one").status == 1, "a snapshot with a clone is protected")
        try node.must("clone", "delete", "copy")
        try node.must("snapshot", "delete", "one")
    }
}
