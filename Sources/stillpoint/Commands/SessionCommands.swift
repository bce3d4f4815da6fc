import API
import ArgumentParser

struct SessionCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "session", abstract: "Initiators that are logged in.", subcommands: [List.self, Drop.self])

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "List the iSCSI sessions, with what they did and how long 99 % of it took at most.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let sessions = try await node.sessions()
            if connection.isJSON { return try Output.json(sessions) }
            Output.table(
                Table(
                    [
                        .left("ID"), .left("INITIATOR"), .left("ADDRESS"), .left("TARGET"), .left("SINCE"),
                        .right("COMMANDS"), .right("FAILED"), .right("READ"), .right("WRITTEN"), .right("READS 99 %"),
                        .right("WRITES 99 %"),
                    ],
                    rows: sessions.map { session in
                        [
                            "\(session.id)", session.initiator, session.address,
                            session.target.isEmpty ? "discovery" : session.target, Show.time(session.connectedAt),
                            "\(session.commands)", "\(session.failedCommands)", Show.bytes(session.readBytes),
                            Show.bytes(session.writtenBytes), Self.latency(session.reads),
                            Self.latency(session.writes),
                        ]
                    }), whenEmpty: "Nobody is logged in")
        }

        private static func latency(_ latency: LatencyInfo) -> String {
            latency.count == 0 ? "" : Show.latency(latency.p99Seconds)
        }
    }

    struct Drop: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "End a session.",
            discussion: """
                The initiator is told, and logs in again by itself if it still may. To keep it out, take its rule back \
                instead: stillpoint target deny.
                """)

        @Argument(help: "Id of the session, as session list shows it.", completion: Names.sessions) var id: UInt64
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            try await node.dropSession(id)
            if connection.isJSON { return try Output.json(["dropped": id]) }
            print("Session \(id) ended")
        }
    }
}

struct DiscoveryCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "discovery", abstract: "Who may ask which targets there are.",
        discussion: """
            Without a rule anybody may, and sees the targets that it may log in to. The first rule shuts out all who \
            have none. Credentials for discovery are none of a target's.
            """,
        subcommands: [ShowRules.self, Allow.self, Deny.self])

    struct ShowRules: NodeCommand {
        static let configuration = CommandConfiguration(commandName: "show", abstract: "Show the rules.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let discovery = try await node.discovery()
            if connection.isJSON { return try Output.json(discovery) }
            DiscoveryCommands.show(discovery)
        }
    }

    struct Allow: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Let an initiator discover targets.",
            discussion:
                "A rule for the same initiator is replaced. Secrets have 12 to 255 bytes and come from files only.")

        @OptionGroup var rule: RuleOptions
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let discovery = try await node.allowDiscovery(try rule.request())
            if connection.isJSON { return try Output.json(discovery) }
            DiscoveryCommands.show(discovery)
        }
    }

    struct Deny: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "Take a rule back.")

        @Option(help: ArgumentHelp("Name of the initiator, or any.", valueName: "name")) var initiator: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let discovery = try await node.denyDiscovery(initiator)
            if connection.isJSON { return try Output.json(discovery) }
            DiscoveryCommands.show(discovery)
        }
    }

    fileprivate static func show(_ discovery: DiscoveryInfo) {
        var text = Description()
        text.add(
            "Discovery",
            lines: discovery.access.isEmpty
                ? ["anybody; each sees what it may log in to"] : discovery.access.map(TargetReport.rule))
        print(text.rendered())
    }
}
