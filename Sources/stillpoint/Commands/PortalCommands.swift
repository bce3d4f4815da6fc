import API
import ArgumentParser

struct PortalCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "portal", abstract: "Portal groups: the paths over which hosts reach the volumes.",
        subcommands: [List.self, SetState.self])

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the portal groups.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let groups = try await node.portalGroups()
            if connection.isJSON { return try Output.json(groups) }
            Output.table(PortalCommands.table(groups), whenEmpty: "There are no portal groups.")
        }
    }

    struct SetState: NodeCommand {
        static let configuration = CommandConfiguration(
            commandName: "set", abstract: "Change how a portal group reaches the volumes (ALUA).",
            discussion: """
                Hosts with several paths learn of it at once and choose accordingly. It outlives a restart, until \
                iscsi.groups in the configuration says something else than it does now.
                """)

        @Argument(help: "Number of the group.") var group: Int
        @Argument(help: ArgumentHelp(SetState.states, valueName: "state"), transform: SetState.state)
        var access: PortalAccess
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let changed = try await node.setPortalGroup(group, access)
            if connection.isJSON { return try Output.json(changed) }
            Output.table(PortalCommands.table([changed]), whenEmpty: "")
        }

        private static let states = PortalAccess.allCases.map(\.rawValue).joined(separator: ", ")

        private static func state(_ text: String) throws -> PortalAccess {
            guard let access = PortalAccess(rawValue: text) else {
                throw ValidationError("\"\(text)\" is none of \(states)")
            }
            return access
        }
    }

    private static func table(_ groups: [PortalGroupInfo]) -> Table {
        Table(
            [.right("GROUP"), .left("STATE"), .left("PORTALS")],
            rows: groups.map { ["\($0.group)", $0.access.rawValue, Show.list($0.portals)] })
    }
}
