import API
import Foundation
import Testing

@Suite("Run directory")
struct RunDirectoryTests {
    @Test("it comes from the environment, else from the user")
    func path() {
        let named = ["STILLPOINT_RUN_DIR": "/tmp/x", "XDG_RUNTIME_DIR": "/run/user/7"]
        #expect(RunDirectory.path(environment: named, user: 0) == "/tmp/x")
        #expect(RunDirectory.path(environment: [:], user: 0) == "/run/stillpoint")
        #expect(RunDirectory.path(environment: ["XDG_RUNTIME_DIR": "/run/user/7"], user: 7) == "/run/user/7/stillpoint")
        #expect(RunDirectory.path(environment: [:], user: 7) == "/tmp/stillpoint-7")
        #expect(RunDirectory.path(environment: ["STILLPOINT_RUN_DIR": "relative"], user: 0) == "/run/stillpoint")
    }

    @Test("a node that runs is found before one that left its record behind, and a damaged record is passed over")
    func records() throws {
        let folder = NSTemporaryDirectory() + "sp-run-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        func write(_ name: String, _ api: String, pid: Int32) throws {
            let record = NodeRecord(api: api, tokenFile: "/t", authorityFile: nil, pid: pid)
            try APIJSON.encoder().encode(record).write(to: URL(filePath: folder + "/" + name))
        }
        // The largest pid that Linux can give, which nobody has.
        try write("node.json", "http://gone", pid: 4_194_305)
        try write("node-2.json", "http://there", pid: getpid())
        try Data("{".utf8).write(to: URL(filePath: folder + "/node-3.json"))
        try write("else.json", "http://else", pid: getpid())
        #expect(RunDirectory.nodes(in: folder).map(\.api) == ["http://there", "http://gone"])
        #expect(RunDirectory.nodes(in: folder + "/nowhere").isEmpty)
    }
}
