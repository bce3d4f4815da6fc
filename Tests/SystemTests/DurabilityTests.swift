import API
import Foundation
import Testing

/// Promise 1 on a real process and a real file: what was flushed survives kill -9.
@Suite("Durability", .serialized, .enabled(if: Components.hasQEMU, "needs qemu-io and qemu-img"))
struct DurabilityTests {
    @Test("kill -9 of the node during writes loses nothing that was flushed")
    func killedUnderLoad() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "256MiB")
        try node.allowAny(volume: "v")
        for round in 1...6 {
            let url = try node.url(volume: "v")
            // Patterns that were flushed before the kill, and load that was not.
            var flushed = ["qemu-io", "-f", "raw", "-t", "writeback", url]
            for index in 0..<20 {
                flushed += ["-c", "write -q -P \(round * 8 + index % 7 + 1) \(index * 3)M 1M"]
            }
            flushed += ["-c", "flush"]
            let wrote = try Shell.run(flushed)
            #expect(wrote.status == 0, "\(wrote)")
            let load = try Shell.start(
                ["sh", "-c", "while :; do qemu-io -f raw -c 'write -q -P 250 128M 8M' \(url) || exit; done"],
                outputPath: node.folder.path + "/load.out", leadsGroup: true)
            usleep(UInt32.random(in: 20_000...400_000))
            node.killHard()
            // With its children: an initiator that lost its node would try for ever.
            load.killGroup()
            try node.start()
            var check = ["qemu-io", "-f", "raw", "-r", try node.url(volume: "v")]
            for index in 0..<20 {
                check += ["-c", "read -q -P \(round * 8 + index % 7 + 1) \(index * 3)M 1M"]
            }
            let read = try Shell.run(check)
            #expect(read.status == 0 && !read.output.contains("verification failed"), "round \(round): \(read)")
        }
        #expect(node.terminate() == 0, "SIGTERM ends the node cleanly:\n\(node.log)")
    }

    @Test("SIGTERM answers what is outstanding, closes the pool, and a restart finds everything")
    func cleanShutdown() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        try node.allowAny(volume: "v")
        let wrote = try Shell.run(["qemu-io", "-f", "raw", "-c", "write -q -P 7 0 32M", try node.url(volume: "v")])
        #expect(wrote.status == 0, "\(wrote)")
        try node.must("snapshot", "create", "v", "--name", "s")
        #expect(node.terminate() == 0, "\(node.log)")
        try node.start()
        #expect(try node.json([SnapshotInfo].self, "snapshot", "list", "v").map(\.name) == ["s"])
        let read = try Shell.run(["qemu-io", "-f", "raw", "-r", "-c", "read -P 7 0 32M", try node.url(volume: "v")])
        #expect(read.status == 0 && !read.output.contains("verification failed"), "\(read)")
    }

    @Test("a second process on the same data directory is refused with a clear message")
    func secondProcess() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let second = try Shell.run(
            [
                Components.bin + "/stillpoint", "serve", "--data", node.dataFolder, "--iscsi-listen", "127.0.0.1:0",
                "--api-listen", "127.0.0.1:0",
            ], environment: ["STILLPOINT_RUN_DIR": node.folder.path + "/run2"])
        #expect(second.status == 1, "\(second)")
        #expect(second.errors.contains(node.dataFolder), "\(second)")
        #expect(try node.cli("status").status == 0, "the first goes on")
    }

    @Test(
        "a full disk under the pool gives a SCSI error to the write, nothing else breaks, and freed space resumes it",
        .enabled(if: Components.isRoot, "needs root to mount a small tmpfs"))
    func fullDisk() throws {
        let node = try TestNode()
        defer { node.stop() }
        let small = node.folder.path + "/small"
        try FileManager.default.createDirectory(atPath: small, withIntermediateDirectories: true)
        try Shell.check(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", small])
        defer { _ = try? Shell.run(["umount", "-l", small]) }
        node.dataFolder = small + "/data"
        try node.start()
        try node.must("volume", "create", "v", "--size", "1GiB")
        try node.allowAny(volume: "v")
        let url = try node.url(volume: "v")
        try Shell.check(["qemu-io", "-f", "raw", "-c", "write -q -P 9 0 16M", "-c", "flush", url])
        let filler = small + "/filler"
        let isFilled = try Shell.wait {
            // The pool may take some of it between the two.
            let free =
                try Shell.check(["df", "--output=avail", "-B1", small]).split(separator: "\n").last
                .flatMap { Int($0.trimmingCharacters(in: .whitespaces)) } ?? 0
            return try Shell.run(["fallocate", "-l", "\(max(4096, free - 4 << 20))", filler]).status == 0
        }
        #expect(isFilled)
        var refused = try Shell.run(["qemu-io", "-f", "raw", "-c", "write -q -P 3 64M 200M", url], timeoutSeconds: 300)
        #expect(refused.status != 0 || refused.output.contains("failed"), "\(refused)")
        refused = try Shell.run(["qemu-io", "-f", "raw", "-r", "-c", "read -P 9 0 16M", url])
        #expect(refused.status == 0 && !refused.output.contains("verification failed"), "reads go on: \(refused)")
        #expect(try node.cli("status").status == 0)
        try FileManager.default.removeItem(atPath: filler)
        let resumed = try Shell.wait {
            let again = try Shell.run(["qemu-io", "-f", "raw", "-c", "write -q -P 5 64M 8M", "-c", "flush", url])
            return again.status == 0 && !again.output.contains("failed")
        }
        #expect(resumed, "space freed resumes writing without a restart\n\(node.log.suffix(2000))")
    }
}
