import API
import ArgumentParser
import Foundation
import Logging

/// Exit codes, the same as those of `stillpoint`: 0 done, 1 failed, 2 wrong usage, 3 the agent (or, for `enroll`, the
/// node) cannot be reached.
@main
struct AgentCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stillpoint-agent",
        abstract: "Bring applications and file systems of this host to rest while a Stillpoint node takes a snapshot.",
        discussion: """
            Settings come from a flag, else from the environment, else from the configuration file, else from their \
            default. Exit codes: 0 done, 1 the operation failed, 2 wrong usage, 3 the agent (for enroll: the node) \
            cannot be reached.
            """,
        version: Release.version,
        subcommands: [
            ServeCommand.self, EnrollCommand.self, StatusCommand.self, DiscoverCommand.self, PreflightCommand.self,
            ThawCommand.self, ConfigCheckCommand.self, ImportSnapCreatorCommand.self,
        ])

    static func main() async {
        do {
            var command = try parseAsRoot()
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
        } catch {
            // ArgumentParser's own code for wrong usage is 64.
            let code = exitCode(for: error)
            guard code == .validationFailure else { exit(withError: error) }
            FileHandle.standardError.write(Data((fullMessage(for: error) + "\n").utf8))
            Foundation.exit(2)
        }
    }
}

/// Ends the command with a message on standard error.
struct CommandFailure: Error {
    static func end(_ message: some CustomStringConvertible, code: Int32 = 1) -> ExitCode {
        FileHandle.standardError.write(Data("stillpoint-agent: \(message)\n".utf8))
        return ExitCode(code)
    }

    static func end(_ failure: APIFailure) -> ExitCode {
        end(failure.description, code: failure.code == "agentUnreachable" ? 3 : 1)
    }
}

/// Where the settings come from.
struct ConfigurationOptions: ParsableArguments {
    @Option(
        name: .long,
        help: ArgumentHelp(
            "Configuration file, YAML. Default /etc/stillpoint/agent.yaml, if there is one.", valueName: "file"),
        completion: .file(extensions: ["yaml", "yml"]))
    var config: String?

    @Option(
        name: .long, help: ArgumentHelp("Directory of the agent's key and certificate.", valueName: "directory"),
        completion: .directory)
    var state: String?

    @Option(
        name: .long,
        help: ArgumentHelp(
            "Directory of the journal of holds and of the local socket; on a tmpfs.", valueName: "directory"),
        completion: .directory)
    var run: String?

    @Option(
        name: .long, help: ArgumentHelp("Directory of plug-ins. May be repeated.", valueName: "directory"),
        completion: .directory)
    var plugins: [String] = []

    @Flag(name: .long, help: "Accept a run directory that is on a disk (for tests only).")
    var allowRunOnDisk = false

    func load() throws -> AgentConfiguration {
        do {
            var configuration = try AgentConfiguration.load(path: config)
            if let state { configuration.state = absolute(state) }
            if let run { configuration.run = absolute(run) }
            if !plugins.isEmpty { configuration.plugins = plugins.map(absolute) }
            if allowRunOnDisk { configuration.allowRunOnDisk = true }
            try configuration.check()
            return configuration
        } catch {
            throw CommandFailure.end(String(describing: error))
        }
    }

    private func absolute(_ path: String) -> String {
        path.hasPrefix("/") ? path : FileManager.default.currentDirectoryPath + "/" + path
    }
}

enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    case table
    case json
}

struct OutputOptions: ParsableArguments {
    @Option(name: .shortAndLong, help: "table for people, json for programs.")
    var output = OutputFormat.table

    /// Prints for programs or for people.
    func show<Value: Encodable>(_ value: Value, table: (Value) -> String) throws {
        switch output {
        case .json: print(String(decoding: try APIJSON.encoder(pretty: true).encode(value), as: UTF8.self))
        case .table: print(table(value))
        }
    }
}

/// Columns for people.
func tableText(_ header: [String], _ rows: [[String]]) -> String {
    guard !rows.isEmpty else { return "none" }
    let all = [header] + rows
    let widths = header.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
    return all.map { row in
        row.enumerated().map { index, cell in
            index == row.count - 1 ? cell : cell.padding(toLength: widths[index] + 2, withPad: " ", startingAt: 0)
        }.joined()
    }.joined(separator: "\n")
}
