import Foundation
import Testing

/// What `make demo` shows is true with the executables of this build too.
@Suite(
    "Demo", .serialized,
    .enabled(
        if: Components.hasAttachment && Components.hasPostgres,
        "needs root, FUSE, qemu-storage-daemon, nbdfuse and PostgreSQL"))
struct DemoTests {
    static let script =
        URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().path + "/scripts/demo.sh"

    @Test("the demo runs the main job end to end and leaves nothing behind")
    func runs() throws {
        let before = try leftovers()
        let result = try Shell.run(
            [Self.script, Components.bin], environment: ["DEMO_SCALE": "1"], timeoutSeconds: 900)
        #expect(result.status == 0, "\(result)")
        #expect(result.output.contains("achieved consistency"), "\(result)")
        try expectNothingLeft(but: before)
    }

    @Test("an interrupted demo cleans up")
    func interrupted() throws {
        let before = try leftovers()
        let folder = try TemporaryFolder(prefix: "sp-demo")
        defer { folder.remove() }
        let process = try Shell.start(
            [Self.script, Components.bin], environment: ["DEMO_SCALE": "1"], outputPath: folder.path + "/out",
            leadsGroup: true)
        let underway = Shell.wait(upToSeconds: 600) {
            let text = (try? String(contentsOfFile: folder.path + "/out", encoding: .utf8)) ?? ""
            return text.contains("A crash-consistent snapshot") || !process.isRunning
        }
        #expect(underway && process.isRunning)
        process.interruptGroup()
        #expect(Shell.wait(upToSeconds: 300) { !process.isRunning })
        #expect(process.terminationStatus == 130)
        if process.isRunning { process.terminate() }
        try expectNothingLeft(but: before)
    }

    /// What ends takes a moment to be gone.
    private func expectNothingLeft(but before: [String]) throws {
        _ = try Shell.wait(upToSeconds: 60) { try leftovers() == before }
        let after = try leftovers()
        #expect(after == before)
    }

    /// Mounts, loop devices and processes that belong to a demo.
    private func leftovers() throws -> [String] {
        let mounts = try String(contentsOfFile: "/proc/mounts", encoding: .utf8).split(separator: "\n").map(String.init)
            .filter { $0.contains("stillpoint-demo") }
        let loops = try Shell.run(["losetup", "-a"]).output.split(separator: "\n").map(String.init)
            .filter { $0.contains("stillpoint-demo") }
        let processes = try Shell.run(["pgrep", "-af", "stillpoint-demo"]).output.split(separator: "\n").map(
            String.init
        )
        .filter { !$0.contains("pgrep") }
        return mounts + loops + processes
    }
}
