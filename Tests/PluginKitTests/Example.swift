import Foundation
import PluginKit
import Testing

/// The Python example with an application directory and a state directory of its own.
final class Example: Sendable {
    static let executable = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: "Examples/plugins/stillpoint-plugin-pausefile").path
    static let python = ["/usr/bin/python3", "/usr/local/bin/python3"].first {
        FileManager.default.isExecutableFile(atPath: $0)
    }
    static var hasPython: Bool { python != nil }

    let directory: String
    let application: String
    let state: String

    init() throws {
        directory =
            FileManager.default.temporaryDirectory.appending(path: "sp-plugin-\(UUID().uuidString.prefix(8))")
            .path
        application = directory + "/application"
        state = directory + "/state"
        for path in [application, state] {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        }
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    var resource: PluginResource {
        PluginResource(id: application, label: "", layer: .application, volumes: ["vol1"])
    }

    var config: JSONValue {
        .object([
            "directories": .array([
                .object(["path": .string(application), "volumes": .array([.string("vol1")])]),
                .object(["path": .string("/nowhere"), "volumes": .array([])]),
            ])
        ])
    }

    var isPaused: Bool { access(application + "/pause", F_OK) == 0 }

    func start() throws -> PluginProcess {
        var options = PluginProcess.Options(executable: Self.python!)
        options.arguments = [Self.executable]
        return try PluginProcess.start(options)
    }

    func quiesce(_ holdID: String, _ resources: [PluginResource], leaseSeconds: Double = 30) -> QuiesceParameters {
        QuiesceParameters(holdID: holdID, resources: resources, leaseSeconds: leaseSeconds, stateDirectory: state)
    }
}

/// Waits until something becomes true. The limit is far beyond what it takes: it only ends a hopeless wait.
func eventually(_ what: String = "", _ condition: () async throws -> Bool) async throws {
    for _ in 0..<2400 {
        if try await condition() { return }
        try await Task.sleep(for: .milliseconds(50))
    }
    Issue.record("did not become true within two minutes \(what)")
}
