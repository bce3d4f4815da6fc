import API
import Foundation
import Testing

/// Snapshots from one node to another, with real processes and pipes.
@Suite("Transfers between nodes", .serialized, .enabled(if: Components.hasQEMU, "needs qemu-io"))
struct TransferTests {
    private func shell(_ script: String, _ nodes: (name: String, node: TestNode)...) throws -> CommandResult {
        var environment: [String: String] = [:]
        for (name, node) in nodes {
            environment[name] =
                "env STILLPOINT_RUN_DIR=\(node.runFolder) \(Components.bin)/stillpoint"
        }
        return try Shell.run(["bash", "-c", "set -o pipefail; " + script], environment: environment)
    }

    @Test("a receiver that is killed in the middle goes on where it was, and what arrives is what was sent")
    func killedReceiver() throws {
        let source = try TestNode()
        defer { source.stop() }
        let target = try TestNode()
        defer { target.stop() }
        try source.start()
        try target.start()
        try source.must("volume", "create", "v", "--size", "256MiB")
        try source.allowAny(volume: "v")
        let url = try source.url(volume: "v")
        try Shell.check(["qemu-io", "-f", "raw", "-c", "write -q -P 17 0 96M", "-c", "flush", url])
        try source.must("snapshot", "create", "v", "--name", "s1")
        try Shell.check(["qemu-io", "-f", "raw", "-c", "write -q -P 18 8M 1M", "-c", "discard -q 32M 4M", url])
        try source.must("snapshot", "create", "v", "--name", "s2")

        // Two thirds of the stream, and then the pipe stays open until the node is dead.
        let file = target.folder.path + "/stream"
        let sent = try shell("$A snapshot send s1 -q > \(file)", ("A", source))
        #expect(sent.status == 0, "\(sent)")
        let half = try Shell.start(
            [
                "bash", "-c",
                "(head -c 67000000 \(file); while kill -0 \(target.pid); do sleep 0.1; done) "
                    + "| env STILLPOINT_RUN_DIR=\(target.runFolder) "
                    + "\(Components.bin)/stillpoint snapshot receive -q",
            ], outputPath: target.folder.path + "/receive.out", leadsGroup: true)
        defer { half.killGroup() }
        let isUnderWay = try Shell.wait {
            try target.json([ReceiveInfo].self, "receive", "list").contains { $0.offsetBytes >= 32 << 20 }
        }
        #expect(isUnderWay, "\(target.log.suffix(1000))")
        target.killHard()
        try target.start()
        #expect(try target.json([SnapshotInfo].self, "snapshot", "list").isEmpty)
        #expect(try target.json([VolumeInfo].self, "volume", "list").isEmpty)
        let open = try #require(try target.json([ReceiveInfo].self, "receive", "list").first)
        #expect(open.offsetBytes >= 32 << 20 && !open.isActive)

        let rest = try shell(
            "$A snapshot send s1 --resume \(open.resumeToken) -q | $B snapshot receive -q", ("A", source), ("B", target)
        )
        #expect(rest.status == 0, "\(rest)")
        let increment = try shell("$A snapshot send s2 --from s1 | $B snapshot receive", ("A", source), ("B", target))
        #expect(increment.status == 0 && increment.output.contains("s2"), "\(increment)")
        #expect(try target.json([ReceiveInfo].self, "receive", "list").isEmpty)

        try target.must("clone", "create", "s2", "--name", "c")
        try target.allowAny(volume: "c")
        let read = try Shell.run([
            "qemu-io", "-f", "raw", "-r", "-c", "read -P 17 0 8M", "-c", "read -P 18 8M 1M", "-c", "read -P 17 9M 23M",
            "-c", "read -P 0 32M 4M", "-c", "read -P 17 36M 60M", "-c", "read -P 0 96M 160M",
            try target.url(volume: "c"),
        ])
        #expect(read.status == 0 && !read.output.contains("verification failed"), "\(read)")
        let diff = try target.cli("snapshot", "diff", "s1", "s2", "-o", "json")
        #expect(diff.status == 0 && diff.output.split(separator: "\n").count == 4, "\(diff)")
    }

    @Test("a damaged stream is exit code 1 with what to do, and no stream goes to or comes from a terminal")
    func refusals() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "16MiB")
        try node.must("snapshot", "create", "v", "--name", "s")
        let twice = try shell("$A snapshot send s -q | $A snapshot receive -q", ("A", node))
        #expect(twice.status == 1 && twice.errors.contains("here already"), "\(twice)")
        let garbage = try shell("head -c 100000 /dev/urandom | $A snapshot receive -q", ("A", node))
        #expect(garbage.status == 1 && garbage.errors.contains("no stream of a snapshot"), "\(garbage)")
        let unknown = try shell("$A snapshot send nothing > /dev/null", ("A", node))
        #expect(unknown.status == 1, "\(unknown)")
        let terminal = try shell("script -qec \"$A snapshot send s\" /dev/null", ("A", node))
        #expect(terminal.status == 2, "\(terminal)")
        let space = try node.json(SpaceInfo.self, "snapshot", "delete", "s", "--dry-run")
        #expect(space.freedBytes == 0)
        #expect(try node.json([SnapshotInfo].self, "snapshot", "list").count == 1)
    }
}
