import API
import ArgumentParser
import Foundation

struct AgentCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "agent", abstract: "The agents that bring applications to rest.",
        subcommands: [Token.self, List.self, ShowOne.self, Remove.self])

    struct Token: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a token with which an agent enrols, once.")

        @Argument(help: "The name the agent will have.") var name: String
        @Option(
            help: ArgumentHelp("How long the token is good: 10 to 86400, default 3600.", valueName: "seconds"))
        var valid: Int?
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if let valid, !(10...86_400).contains(valid) { throw ValidationError("--valid is 10 to 86400 seconds") }
        }

        func run(on node: NodeClient) async throws {
            let token = try await node.createAgentToken(AgentTokenRequest(name: name, validSeconds: valid))
            if connection.isJSON { return try Output.json(token) }
            print(token.token)
            // Beside the token, so that `stillpoint agent token NAME > FILE` leaves a file to enrol with.
            Terminal.error(
                """
                Good until \(Show.time(token.expiresAt)), and once. On the agent's host put it into a file and run:
                  stillpoint-agent enroll --node \(node.settings.url.absoluteString) --token-file FILE
                """)
        }
    }

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the agents.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let agents = try await node.agents()
            if connection.isJSON { return try Output.json(agents) }
            Output.table(
                Table(
                    [
                        .left("NAME"), .left("ADDRESS"), .left("REACHABLE"), .left("LAST SEEN"), .left("VERSION"),
                        .left("PLUG-INS"),
                    ],
                    rows: agents.map { agent in
                        [
                            agent.name, agent.address, Show.yesNo(agent.isReachable),
                            agent.lastSeenAt.map(Show.time) ?? "never", agent.version ?? "",
                            Show.list(agent.plugins.map(\.name)),
                        ]
                    }), whenEmpty: "There are no agents. Begin with: stillpoint agent token NAME")
        }
    }

    struct ShowOne: NodeCommand {
        static let configuration = CommandConfiguration(
            commandName: "show", abstract: "Show one agent and what it protects.")

        @Argument(help: "Name of the agent.", completion: Names.agents) var name: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let agent = try await node.agent(name)
            if connection.isJSON { return try Output.json(agent) }
            print(AgentReport.description(agent))
        }
    }

    struct Remove: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Forget an agent; its certificate is not accepted any more.")

        @Argument(help: "Name of the agent.", completion: Names.agents) var name: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            try await node.removeAgent(name)
            if !connection.isJSON { print("Agent \(name) is removed") }
        }
    }
}

enum AgentReport {
    static func description(_ agent: AgentInfo) -> String {
        var text = Description()
        text.add("Name", agent.name)
        text.add("Address", agent.address)
        text.add("Reachable", agent.isReachable ? "yes" : "no" + (agent.failure.map { ": \($0)" } ?? ""))
        text.add("Last seen", agent.lastSeenAt.map(Show.time) ?? "never")
        text.add("Enrolled", Show.time(agent.enrolledAt))
        text.add("Version", agent.version)
        text.add("Certificate", "SHA-256 \(agent.certificateFingerprint)")
        text.add("Valid until", agent.certificateExpiresAt.map(Show.time))
        text.add(
            "Plug-ins", lines: agent.plugins.map { "\($0.name) \($0.version) (\(SnapshotReport.layer($0.layer)))" })
        guard let resources = agent.resources else { return text.rendered() }
        if resources.isEmpty {
            let finding =
                agent.lastSeenAt == nil
                ? "What this host has on our volumes is not known: its agent was not reached yet"
                : "Nothing on our volumes was found on this host"
            return text.rendered() + "\n\n" + finding
        }
        let table = Table(
            [.left("PROTECTS"), .left("LAYER"), .left("PLUG-IN"), .left("VOLUMES"), .left("ID")],
            rows: resources.map {
                [$0.label, SnapshotReport.layer($0.layer), $0.plugin, Show.list($0.volumes), $0.id]
            })
        return text.rendered() + "\n\n" + table.rendered()
    }
}
