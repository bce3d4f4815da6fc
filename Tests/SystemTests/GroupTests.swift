import API
import Foundation
import Testing

/// Promise 1 over several volumes and hosts: one cut, and no write in it without all that came before it.
@Suite(
    "Groups", .serialized, .enabled(if: Components.hasAttachment, "needs root, FUSE, qemu-storage-daemon and nbdfuse"))
struct GroupTests {
    /// Blocks in each file; the writer begins again at the first one.
    static let blocks = 4096

    /// Writes 1, 2, 3, … alternately to two files, each durable before the next is begun, until it is killed.
    static let writer = """
        import os, sys, mmap
        paths = sys.argv[1:3]
        handles = [os.open(p, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_DSYNC, 0o600) for p in paths]
        block = mmap.mmap(-1, 4096)
        n = 0
        while True:
            n += 1
            block.seek(0)
            block.write(b"%020d" % n)
            os.pwrite(handles[n % 2], block, n // 2 % BLOCKS * 4096)
            if n == 20: open(sys.argv[3], "w").close()
        """.replacingOccurrences(of: "BLOCKS", with: "\(blocks)")

    /// A writer that has begun.
    private func startWriter(_ node: TestNode, _ paths: [String]) throws -> ChildProcess {
        let mark = node.folder.path + "/begun"
        let writing = try Shell.start(
            ["python3", "-c", Self.writer] + paths + [mark], outputPath: node.folder.path + "/writer.out")
        #expect(Shell.wait { FileManager.default.fileExists(atPath: mark) }, "the writer does not begin")
        return writing
    }

    /// The numbers in a file that the writer made.
    static func numbers(_ path: String) throws -> [Int] {
        let data = try Data(contentsOf: URL(filePath: path))
        var found: [Int] = []
        var offset = 0
        while offset + 20 <= data.count {
            if let number = Int(String(decoding: data[offset..<offset + 20], as: UTF8.self)), number > 0 {
                found.append(number)
            }
            offset += 4096
        }
        return found
    }

    static func expectPrefix(_ first: [Int], _ second: [Int], _ comment: Comment) {
        let all = (first + second).sorted()
        let last = all.last ?? 0
        #expect(last >= 20, "the writer had hardly begun: \(comment)")
        // All of them, or as many of the last ones as the two files have blocks.
        let held = min(last, 2 * blocks - 1)
        #expect(all.suffix(held) == Array(max(1, last - held + 1)...max(1, last))[...], "\(last): \(comment)")
    }

    @Test("a group snapshot over two file systems on two hosts holds a prefix of what one writer wrote to both")
    func prefixOverTwoHosts() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let first = try ProtectedHost(node: node, agentName: "host-a", volume: "a", sizeText: "256MiB")
        defer { first.tearDown() }
        let second = try ProtectedHost(node: node, agentName: "host-b", volume: "b", sizeText: "256MiB")
        defer { second.tearDown() }
        for host in [first, second] {
            try host.mount()
            try host.agent.enroll()
            try host.agent.start()
        }
        let writing = try startWriter(node, [first.mountPoint + "/n", second.mountPoint + "/n"])
        defer { if writing.isRunning { kill(writing.processIdentifier, SIGKILL) } }
        for round in 1...4 {
            Thread.sleep(forTimeInterval: 0.7)
            let consistency = round % 2 == 0 ? "crash" : "fileSystem"
            let made = try node.json(
                SnapshotInfo.self, "snapshot", "create", "a", "b", "--name", "g\(round)", "--consistency", consistency)
            #expect(made.volumes.sorted() == ["a", "b"])
            #expect(made.achievedConsistency.rawValue == consistency)
        }
        #expect(writing.isRunning, "the writer ended early")
        kill(writing.processIdentifier, SIGKILL)
        writing.waitUntilExit()

        let look = first.agent.folder.path + "/look"
        try FileManager.default.createDirectory(atPath: look, withIntermediateDirectories: true)
        for round in 1...4 {
            var found: [[Int]] = []
            for (host, volume) in [(first, "a"), (second, "b")] {
                try node.must("clone", "create", "g\(round)", "--volume", volume, "--name", "c-\(volume)-\(round)")
                let device = try host.agent.attach("c-\(volume)-\(round)")
                try Shell.check(["mount", device, look])
                found.append(try Self.numbers(look + "/n"))
                try Shell.check(["umount", look])
                let checked = try Shell.run(["e2fsck", "-fn", device])
                #expect(checked.status == 0, "\(checked)")
                host.agent.detach("c-\(volume)-\(round)")
            }
            Self.expectPrefix(found[0], found[1], "round \(round)")
        }
    }

    @Test("a crash-consistent group snapshot of two raw volumes holds a prefix, in many rounds")
    func prefixOverRawVolumes() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let agent = try TestAgent(name: "host-a", node: node)
        defer { agent.stop() }
        var devices: [String] = []
        defer { for volume in ["a", "b"] { agent.detach(volume) } }
        for volume in ["a", "b"] {
            try node.must("volume", "create", volume, "--size", "64MiB")
            devices.append(try agent.attach(volume))
        }
        let writing = try startWriter(node, devices)
        defer { if writing.isRunning { kill(writing.processIdentifier, SIGKILL) } }
        for round in 1...8 {
            Thread.sleep(forTimeInterval: 0.3)
            try node.must("snapshot", "create", "a", "b", "--name", "r\(round)")
        }
        kill(writing.processIdentifier, SIGKILL)
        writing.waitUntilExit()
        for round in 1...8 {
            var found: [[Int]] = []
            for volume in ["a", "b"] {
                let clone = "k-\(volume)-\(round)"
                try node.must("clone", "create", "r\(round)", "--volume", volume, "--name", clone)
                try node.allowAny(volume: clone)
                let copy = node.folder.path + "/copy"
                try Shell.check(["qemu-img", "convert", "-O", "raw", try node.url(volume: clone), copy])
                found.append(try Self.numbers(copy))
            }
            Self.expectPrefix(found[0], found[1], "round \(round)")
        }
    }
}
