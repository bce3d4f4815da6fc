import API
import ArgumentParser
import Foundation
import Logging

/// The running agent of this host, through its socket.
private func local<Answer>(
    _ configuration: AgentConfiguration, _ body: (AgentClient) async throws -> Answer
) async throws -> Answer {
    let client = AgentClient(socketPath: configuration.socketPath)
    defer { client.shutdown() }
    do {
        return try await body(client)
    } catch let failure as APIFailure {
        throw CommandFailure.end(failure)
    }
}

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show the running agent, its plug-ins and what it holds.")

    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        let status = try await local(try options.load()) { try await $0.status() }
        try output.show(status) { status in
            let plugins = tableText(
                ["PLUG-IN", "VERSION", "LAYER"], status.plugins.map { [$0.name, $0.version, $0.layer.rawValue] })
            let holds = tableText(
                ["HOLD", "SAGA", "PLUG-IN", "RESOURCES", "LEASE"],
                status.holds.map { hold in
                    [
                        hold.holdID, hold.sagaID, hold.plugin, hold.resources.joined(separator: ","),
                        String(format: "%.1f s", hold.remainingLeaseSeconds),
                    ]
                })
            return """
                agent \(status.name) \(status.version), node \(status.nodeID), \
                up \(String(format: "%.0f", status.uptimeSeconds)) s

                \(plugins)

                holds: \(status.holds.isEmpty ? "none" : "\n" + holds)
                """
        }
    }
}

struct VolumeOptions: ParsableArguments {
    @Option(
        name: .long,
        help: ArgumentHelp(
            "A volume. May be repeated. Default: all that can be recognised on this host.", valueName: "name=naa"))
    var volume: [String] = []

    func volumes(_ configuration: AgentConfiguration) throws -> [VolumeReference] {
        guard !volume.isEmpty else {
            return DeviceResolver(attachments: configuration.attachments).candidates()
        }
        return try volume.map { text in
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, parts[1].count == 32, parts[1].allSatisfy(\.isHexDigit) else {
                throw ValidationError("--volume must be NAME=NAA with 32 hexadecimal digits, not “\(text)”")
            }
            return VolumeReference(name: parts[0], naa: parts[1].lowercased())
        }
    }
}

struct DiscoverCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "discover", abstract: "Show what lies on which volume.",
        discussion: "Asks the running agent, as the node does before a snapshot. Nothing is brought to rest.")

    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var volumes: VolumeOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        let configuration = try options.load()
        let request = DiscoverRequest(volumes: try volumes.volumes(configuration))
        let answer = try await local(configuration) { try await $0.discover(request) }
        for warning in answer.warnings {
            FileHandle.standardError.write(Data("warning: \(warning)\n".utf8))
        }
        try output.show(answer) { answer in
            let devices = tableText(
                ["VOLUME", "DEVICE", "NAA"], answer.devices.map { [$0.volume, $0.path, $0.naa] })
            let resources = tableText(
                ["PLUG-IN", "LAYER", "RESOURCE", "VOLUMES"],
                answer.resources.map {
                    [$0.plugin, $0.layer.rawValue, $0.label, $0.volumes.joined(separator: ",")]
                })
            return "devices: \(answer.devices.isEmpty ? "none" : "\n" + devices)\n\n"
                + "resources: \(answer.resources.isEmpty ? "none" : "\n" + resources)"
        }
    }
}

struct PreflightCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "preflight", abstract: "Show what would go wrong if a snapshot were taken now.",
        discussion: "Exit code 1 when something stands in the way. Nothing is brought to rest.")

    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var volumes: VolumeOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        let configuration = try options.load()
        let request = DiscoverRequest(volumes: try volumes.volumes(configuration))
        let answer = try await local(configuration) { client in
            let found = try await client.discover(request)
            return try await client.preflight(PreflightRequest(resources: found.resources))
        }
        try output.show(answer) { answer in
            guard !answer.findings.isEmpty else { return "Nothing stands in the way." }
            return tableText(
                ["SEVERITY", "PLUG-IN", "RESOURCE", "FINDING"],
                answer.findings.map { finding in
                    [
                        finding.severity.rawValue, finding.plugin, finding.resource ?? "-",
                        [finding.message, finding.hint].compactMap(\.self).joined(separator: ". "),
                    ]
                })
        }
        if answer.findings.contains(where: { $0.severity == .error }) { throw ExitCode(1) }
    }
}

struct ThawCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "thaw",
        abstract: "Release what is held, whether the agent is running or not.",
        discussion: """
            A snapshot that is being taken loses its evidence by this, and fails or is labelled as less. Exit code 1 \
            when something could not be released.
            """)

    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: OutputOptions

    @Flag(name: .long, help: "Everything that is held.")
    var all = false

    @Option(
        name: .long, help: ArgumentHelp("What one saga holds; the agent must be running.", valueName: "id"))
    var saga: String?

    func validate() throws {
        guard all != (saga != nil) else { throw ValidationError("Give either --all or --saga ID.") }
    }

    func run() async throws {
        let configuration = try options.load()
        let answer = try await thaw(configuration)
        try output.show(answer) { answer in
            let lines = answer.released.map { "released \($0)" } + answer.failures.map { "NOT released: \($0)" }
            return lines.isEmpty ? "Nothing was held." : lines.joined(separator: "\n")
        }
        if !answer.failures.isEmpty { throw ExitCode(1) }
    }

    private func thaw(_ configuration: AgentConfiguration) async throws -> ThawResponse {
        let client = AgentClient(socketPath: configuration.socketPath)
        defer { client.shutdown() }
        do {
            return try await client.thaw(sagaID: saga)
        } catch let failure as APIFailure where failure.code == "agentUnreachable" && saga == nil {
            return try await thawWithoutAgent(configuration)
        } catch let failure as APIFailure {
            throw CommandFailure.end(failure)
        }
    }

    /// What `serve` does first, without serving.
    private func thawWithoutAgent(_ configuration: AgentConfiguration) async throws -> ThawResponse {
        signal(SIGPIPE, SIG_IGN)
        let logger = Logger(label: "agent") { DroppingLogHandler(label: $0, level: .warning) }
        do {
            let directory = try RunDirectory(configuration.run, allowsDisk: true)
            let surroundings = AgentService.surroundings(
                configuration, launcher: PluginProcessLauncher(logger: logger), logger: logger)
            let answer = await HoldTable(surroundings: surroundings).recoverLeftovers()
            DroppingLog.shared.flush(atMostSeconds: 1)
            withExtendedLifetime(directory) {}
            return answer
        } catch {
            throw CommandFailure.end(String(describing: error))
        }
    }
}
