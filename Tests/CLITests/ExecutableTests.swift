import Foundation
import Testing

/// The executable of this build, as a script sees it.
@Suite("Executable")
struct ExecutableTests {
    static let path: String? = {
        let bundle = CommandLine.arguments.first { $0.hasSuffix(".xctest") } ?? CommandLine.arguments[0]
        var folder = URL(filePath: bundle).deletingLastPathComponent()
        while folder.path != "/" {
            let candidate = folder.path + "/stillpoint"
            var isDirectory: ObjCBool = false
            if FileManager.default.fileExists(atPath: candidate, isDirectory: &isDirectory), !isDirectory.boolValue {
                return candidate
            }
            folder.deleteLastPathComponent()
        }
        return nil
    }()

    struct Outcome {
        var status: Int32
        var output: String
        var errors: String
    }

    private func run(_ arguments: String...) throws -> Outcome {
        let process = Process()
        process.executableURL = URL(filePath: try #require(Self.path))
        process.arguments = arguments
        process.environment = [
            "STILLPOINT_RUN_DIR": "/tmp/sp-no-such-directory", "PATH": "/usr/bin:/bin", "HOME": "/nowhere",
        ]
        let output = Pipe()
        let errors = Pipe()
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        let said = output.fileHandleForReading.readDataToEndOfFile()
        let complained = errors.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return Outcome(
            status: process.terminationStatus, output: String(decoding: said, as: UTF8.self),
            errors: String(decoding: complained, as: UTF8.self))
    }

    @Test(
        "a node that cannot be reached is exit code 3, told on standard error", .enabled(if: path != nil, "not built"))
    func unreachable() throws {
        for arguments in [["status"], ["--api", "http://127.0.0.1:1", "volume", "list", "-o", "json"]] {
            let outcome =
                arguments.count == 1 ? try run("status") : try run(arguments[0], arguments[1], "volume", "list")
            #expect(outcome.status == 3)
            #expect(outcome.output.isEmpty)
            #expect(outcome.errors.contains("stillpoint serve"))
        }
    }

    @Test("wrong usage is exit code 2, told on standard error", .enabled(if: path != nil, "not built"))
    func usage() throws {
        for outcome in [
            try run("volume", "frobnicate"), try run("volume", "create"),
            try run("volume", "create", "x", "--size", "1XB"),
            try run("volume", "create", "x", "--size", "100"), try run("status", "--nonsense"),
            try run("--api", "gopher://x", "status"),
        ] {
            #expect(outcome.status == 2, "\(outcome)")
            #expect(outcome.output.isEmpty && !outcome.errors.isEmpty, "\(outcome)")
        }
    }

    @Test(
        "help, version and completion scripts are exit code 0 on standard output",
        .enabled(if: path != nil, "not built"))
    func help() throws {
        for outcome in [
            try run("--help"), try run("help", "snapshot"), try run("--version"), try run("volume", "attach", "-h"),
            try run("--generate-completion-script", "bash"), try run("--generate-completion-script", "zsh"), try run(),
        ] {
            #expect(outcome.status == 0, "\(outcome)")
            #expect(!outcome.output.isEmpty && outcome.errors.isEmpty, "\(outcome)")
        }
    }

    /// What ArgumentParser tells of a command, its options and its verbs.
    private struct Described: Decodable {
        struct Argument: Decodable {
            var valueName: String?
            var abstract: String?
            var shouldDisplay: Bool
        }
        var commandName: String
        var abstract: String?
        var arguments: [Argument]?
        var subcommands: [Described]?
        var shouldDisplay: Bool?

        /// Without ArgumentParser's own, and those that are none for people.
        private var shown: [Described] {
            (subcommands ?? []).filter { $0.commandName != "help" && $0.shouldDisplay != false }
        }

        /// Verbs and options without a sentence that says what they are for.
        func silent(_ path: String = "") -> [String] {
            let name = path + commandName
            let own = abstract?.isEmpty == false ? [] : [name]
            let options = (arguments ?? []).filter { $0.shouldDisplay && $0.abstract?.isEmpty != false }
            return own + options.map { "\(name) \($0.valueName ?? "?")" }
                + shown.flatMap { $0.silent(name + " ") }
        }

        /// The verbs with all words before them: `stillpoint volume list`.
        func verbs(_ path: String = "") -> [String] {
            shown.isEmpty ? [path + commandName] : shown.flatMap { $0.verbs(path + commandName + " ") }
        }
    }

    @Test(
        "every verb and option of both executables has help, and the documents know every verb",
        .enabled(if: path != nil, "not built"), arguments: ["stillpoint", "stillpoint-agent"])
    func everyVerbHasHelp(name: String) throws {
        let folder = URL(filePath: try #require(Self.path)).deletingLastPathComponent().path
        let process = Process()
        process.executableURL = URL(filePath: folder + "/" + name)
        process.arguments = ["--experimental-dump-help"]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let text = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        struct Dump: Decodable { var command: Described }
        let described = try JSONDecoder().decode(Dump.self, from: text).command
        #expect(described.verbs().count > 7)
        #expect(described.silent() == [])
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        let isAgent = name == "stillpoint-agent"
        let page = try String(
            contentsOf: root.appending(path: isAgent ? "docs/agent.md" : "docs/cli.md"), encoding: .utf8)
        for verb in described.verbs() {
            let word = isAgent ? "`" + verb.dropFirst(name.count + 1) : verb
            #expect(page.contains(word), "\(verb) is not in the document")
        }
    }

    @Test("completion without a node completes nothing and says nothing", .enabled(if: path != nil, "not built"))
    func completion() throws {
        let outcome = try run(
            "---completion", "volume", "show", "--", "positional@0", "2", "0", "stillpoint", "volume", "show", "")
        #expect(outcome.output.trimmingCharacters(in: .whitespacesAndNewlines) == "", "\(outcome)")
    }

    @Test(
        "a bad configuration file is exit code 1 and names the line; a good one is 0",
        .enabled(if: path != nil, "not built"))
    func configuration() throws {
        let file = "/tmp/sp-config-\(UUID().uuidString.prefix(8)).yaml"
        defer { try? FileManager.default.removeItem(atPath: file) }
        try "data: /tmp/x\nnonsense: 1\n".write(toFile: file, atomically: true, encoding: .utf8)
        let bad = try run("configcheck", file)
        #expect(bad.status == 1)
        #expect(bad.errors.contains("\(file):2"), "\(bad)")
        let served = try run("serve", "--config", file)
        #expect(served.status == 1, "\(served)")
        try "data: /tmp/x\n".write(toFile: file, atomically: true, encoding: .utf8)
        #expect(try run("configcheck", file).status == 0)
    }
}
