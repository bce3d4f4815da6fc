import API
import Foundation
import Testing

/// An initiator that outlives the node: it logs in again, and its next flush succeeds. Everything it was told is
/// written has to be there then, whether it was flushed before the node was killed or not.
@Suite("Surviving initiator", .serialized, .enabled(if: Components.hasQEMU, "needs qemu-io"))
struct SurvivingInitiatorTests {
    /// One `qemu-io` that stays logged in and takes commands, one after another.
    final class Initiator {
        private static let prompt = "qemu-io> "
        private let process: ChildProcess
        private let input: FileHandle
        private let outputPath: String

        init(url: String, folder: String) throws {
            let pipe = folder + "/commands"
            outputPath = folder + "/initiator.out"
            try Shell.check(["mkfifo", pipe])
            process = try Shell.start(
                ["sh", "-c", "exec qemu-io -f raw -t none '\(url)' < \(pipe)"], outputPath: outputPath)
            input = try #require(FileHandle(forWritingAtPath: pipe))
        }

        var output: String { (try? String(contentsOfFile: outputPath, encoding: .utf8)) ?? "" }

        /// Sends a command and waits until it says that it is done.
        func run(_ command: String, says word: String, timeoutSeconds: Double = 180) throws {
            // It reads ahead: a second line sent too early would wait for a third.
            _ = Shell.wait(upToSeconds: timeoutSeconds) { output.hasSuffix(Self.prompt) || !process.isRunning }
            let before = output.components(separatedBy: word).count
            try input.write(contentsOf: Data((command + "\n").utf8))
            let isDone = Shell.wait(upToSeconds: timeoutSeconds) {
                output.components(separatedBy: word).count > before || !process.isRunning
            }
            guard isDone, process.isRunning else {
                throw CommandFailed(description: "'\(command)' was not answered:\n\(output.suffix(2000))")
            }
        }

        func end() {
            try? input.close()
            process.killHard()
        }
    }

    private static let mib = 1 << 20

    /// Pieces of every kind: single blocks, parts of blocks, large ones, overwrites, zeros, unmaps.
    private static func changes(_ round: Int) -> [(offset: Int, length: Int, pattern: Int)] {
        var result: [(offset: Int, length: Int, pattern: Int)] = []
        for index in 0..<60 {
            let pattern = 1 + (round * 60 + index) % 200
            switch index % 6 {
            case 0: result.append((index * 64 << 10, 4096, pattern))
            case 1: result.append((index * 64 << 10 + 512, 1536, pattern))
            case 2: result.append((8 * mib + index * 256 << 10, 128 << 10, pattern))
            case 3: result.append((64 * mib + index % 12 * mib, mib, pattern))
            case 4: result.append(((index - 4) * 64 << 10, 8192, pattern))
            default: result.append((8 * mib + (index - 3) * 256 << 10, 16 << 10, 0))
            }
        }
        return result
    }

    @Test("kill -9 of the node under an initiator that lives on loses nothing that was answered, flushed or not")
    func answeredWritesSurvive() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "128MiB")
        try node.allowAny(volume: "v")
        let initiator = try Initiator(url: try node.url(volume: "v"), folder: node.folder.path)
        defer { initiator.end() }
        var model = [UInt8](repeating: 0, count: 128 * Self.mib)
        for round in 0..<4 {
            for change in Self.changes(round) {
                let range = change.offset..<(change.offset + change.length)
                if change.pattern == 0, round % 2 == 1 {
                    try initiator.run("discard \(change.offset) \(change.length)", says: "discard \(change.length)/")
                } else {
                    try initiator.run(
                        "write -P \(change.pattern) \(change.offset) \(change.length)", says: "wrote \(change.length)/")
                }
                model.replaceSubrange(range, with: repeatElement(UInt8(change.pattern), count: change.length))
            }
            node.killHard()
            try node.start()
            #expect(node.log.contains("brought back"), "round \(round):\n\(node.log)")
            try initiator.run("flush", says: "qemu-io> ")
            try initiator.run("write -P \(round + 1) 127M 512", says: "wrote 512/512")
            model.replaceSubrange(
                (127 * Self.mib)..<(127 * Self.mib + 512), with: repeatElement(UInt8(round + 1), count: 512))
            let copy = node.folder.path + "/copy"
            try Shell.check([
                "qemu-img", "convert", "-n", "--target-is-zero", "-O", "raw", "-f", "raw", try node.url(volume: "v"),
                try emptyFile(copy),
            ])
            let found = [UInt8](try Data(contentsOf: URL(filePath: copy)))
            #expect(found == model, "round \(round): first difference at \(Self.firstDifference(found, model) ?? -1)")
        }
        let complaint = initiator.output.split(separator: "\n").first { $0.contains("failed") || $0.contains("error") }
        #expect(complaint == nil, "the initiator saw: \(complaint ?? "")")
        #expect(node.terminate() == 0, "\(node.log)")
    }

    private func emptyFile(_ path: String) throws -> String {
        try? FileManager.default.removeItem(atPath: path)
        try Shell.check(["truncate", "-s", "128M", path])
        return path
    }

    private static func firstDifference(_ left: [UInt8], _ right: [UInt8]) -> Int? {
        zip(left, right).enumerated().first { $1.0 != $1.1 }?.offset ?? (left.count == right.count ? nil : -2)
    }
}
