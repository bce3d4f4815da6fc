import Foundation
import Testing

@testable import Node

@Suite("Configuration")
struct ConfigurationTests {
    private func file(_ text: String) throws -> String {
        let url = FileManager.default.temporaryDirectory.appending(path: "sp-config-\(UUID().uuidString).yaml")
        try Data(text.utf8).write(to: url)
        return url.path
    }

    @Test("flags win over the environment, the environment over the file, the file over the defaults")
    func precedence() throws {
        let path = try file("data: /from/file\napi:\n  listen: 127.0.0.1:1111\nlog:\n  level: debug\n")
        defer { try? FileManager.default.removeItem(atPath: path) }
        let environment = ["STILLPOINT_DATA": "/from/environment", "STILLPOINT_API_LISTEN": "127.0.0.1:2222"]
        let configuration = try NodeConfiguration.load(
            file: path, environment: environment, flags: ["data": "/from/flag"])
        #expect(configuration.dataDirectory == "/from/flag")
        #expect(configuration.apiListen == ListenAddress(host: "127.0.0.1", port: 2222))
        #expect(configuration.logLevel == .debug)
        #expect(configuration.iscsiListen == ListenAddress(host: "127.0.0.1", port: 3260))
    }

    @Test("the documented example is accepted, and sets every setting")
    func fullExample() throws {
        let path = try file(Self.complete)
        defer { try? FileManager.default.removeItem(atPath: path) }
        let configuration = try NodeConfiguration.load(file: path, environment: [:])
        #expect(configuration.apiNames == ["storage.example.org", "192.0.2.7"])
        #expect(configuration.poolMaximumBytes == 500 << 30)
        #expect(configuration.iscsiAdvertise?.description == "[2001:db8::7]:3260")
        for setting in ConfigurationSetting.all where !["api.certificate", "api.key"].contains(setting.key) {
            let last = try #require(setting.key.split(separator: ".").last)
            #expect(Self.complete.contains("\(last):"), "the example does not show \(setting.key)")
        }
    }

    /// The example of docs/configuration.md.
    private static let complete: String = {
        let text = (try? String(contentsOf: Documents.file("docs/configuration.md"), encoding: .utf8)) ?? ""
        return text.firstMatch(of: /```yaml\n((?:.|\n)*?)```/).map { String($0.1) } ?? ""
    }()

    @Test("every setting is in the table of docs/configuration.md, with its variable")
    func settingsAreDocumented() throws {
        let text = try String(contentsOf: Documents.file("docs/configuration.md"), encoding: .utf8)
        for setting in ConfigurationSetting.all {
            #expect(text.contains("| `\(setting.key)` | `\(setting.environment)` |"), "\(setting.key)")
        }
        let rows = text.split(separator: "\n").count { $0.contains(/^\| `[a-zA-Z.]+` \| `STILLPOINT_/) }
        #expect(rows == ConfigurationSetting.all.count)
    }

    struct Bad: Sendable, CustomTestStringConvertible {
        var text: String
        var line: Int?
        var says: String
        var testDescription: String { text.replacingOccurrences(of: "\n", with: "⏎") }
    }

    static let bad = [
        Bad(text: "dta: /srv\n", line: 1, says: "did you mean \"data\""),
        Bad(text: "data: /srv\napi:\n  listn: 127.0.0.1:1\n", line: 3, says: "api.listn"),
        Bad(text: "api: 127.0.0.1:1\n", line: 1, says: "needs settings below it"),
        Bad(text: "data: relative\n", line: 1, says: "absolute path"),
        Bad(text: "data:\n", line: 1, says: "must have one value"),
        Bad(text: "data:\n  nested: x\n", line: 1, says: "must have one value"),
        Bad(text: "api:\n  listen: nowhere\n", line: 2, says: "HOST:PORT"),
        Bad(text: "api:\n  listen: 127.0.0.1:65536\n", line: 2, says: "HOST:PORT"),
        Bad(text: "api:\n  listen: ::1:80\n", line: 2, says: "HOST:PORT"),
        Bad(text: "api:\n  tls: never\n", line: 2, says: "auto, required"),
        Bad(text: "iscsi:\n  advertise: 0.0.0.0:3260\n", line: 2, says: "initiators can reach"),
        Bad(text: "pool:\n  maximumSize: many\n", line: 2, says: "500GiB"),
        Bad(text: "pool:\n  maximumSize: 99999999TiB\n", line: 2, says: "500GiB"),
        Bad(text: "pool:\n  memory: 1MiB\n", line: 2, says: "64MiB"),
        Bad(text: "agents:\n  pollSeconds: 0\n", line: 2, says: "from 1 to 3600"),
        Bad(text: "data: /a\ndata: /b\n", line: 1, says: "given twice"),
        Bad(text: "data: \"/srv\n", line: nil, says: "not YAML"),
        Bad(text: "data: [/srv\n", line: nil, says: "not YAML"),
        Bad(text: "just words\n", line: 1, says: "mapping"),
        Bad(text: "- data\n", line: 1, says: "mapping"),
        Bad(text: "api:\n  certificate: /nowhere/cert.pem\n", line: 2, says: "together"),
        Bad(text: "api:\n  listen: 127.0.0.1:3260\n", line: nil, says: "same as api.listen"),
    ]

    @Test("a bad file is refused, with line and reason", arguments: bad)
    func badFiles(_ sample: Bad) throws {
        let path = try file(sample.text)
        defer { try? FileManager.default.removeItem(atPath: path) }
        let problems = NodeConfiguration.check(file: path, environment: [:])
        let text = problems.map(\.description).joined(separator: "\n")
        #expect(text.contains(sample.says), "it says: \(text)")
        if let line = sample.line {
            #expect(problems.contains { $0.location == "\(path):\(line)" }, "it says: \(text)")
        }
        #expect(throws: ConfigurationInvalid.self) { try NodeConfiguration.load(file: path, environment: [:]) }
    }

    @Test("all problems are named at once")
    func allProblems() throws {
        let path = try file("dta: /srv\napi:\n  listen: x\n  tls: y\n")
        defer { try? FileManager.default.removeItem(atPath: path) }
        let problems = NodeConfiguration.check(
            file: path, environment: ["STILLPOINT_LOG_LEVEL": "loud"], flags: ["data": "here", "nonsense": "1"])
        #expect(problems.count == 6, "\(problems)")
        #expect(problems.contains { $0.location == "environment STILLPOINT_LOG_LEVEL" })
        #expect(problems.contains { $0.location == "flag --data" })
        #expect(problems.contains { $0.location == "flag --nonsense" })
    }

    @Test("a file that was named must be there; the default one need not")
    func missingFile() {
        #expect(!NodeConfiguration.check(file: "/nowhere/node.yaml", environment: [:]).isEmpty)
        #expect(NodeConfiguration.check(environment: [:]).isEmpty)
    }

    @Test("a file cut short at any byte is accepted as less, or refused; it never crashes the reader")
    func truncatedFiles() throws {
        let bytes = Array(Self.complete.utf8)
        let path = try file("")
        defer { try? FileManager.default.removeItem(atPath: path) }
        for length in 0..<bytes.count {
            try Data(bytes[..<length]).write(to: URL(fileURLWithPath: path))
            _ = NodeConfiguration.check(file: path, environment: [:])
        }
    }

    @Test("only loopback is loopback: everything else needs TLS")
    func loopback() throws {
        for text in ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"] {
            let address = try #require(ListenAddress(text))
            #expect(address.isLoopback)
        }
        for text in ["0.0.0.0:1", ":1", "[::]:1", "192.0.2.1:1", "127.0.0.1.example.org:1", "1270.0.0.1:1"] {
            let address = try #require(ListenAddress(text))
            #expect(!address.isLoopback, "\(text)")
        }
        var configuration = NodeConfiguration(environment: [:])
        #expect(!configuration.usesTLS)
        configuration.apiListen = ListenAddress(host: "0.0.0.0", port: 1)
        #expect(configuration.usesTLS)
    }
}
