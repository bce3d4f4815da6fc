import API
import ArgumentParser
import Foundation

struct TargetCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "target", abstract: "iSCSI targets and who may reach them.",
        subcommands: [List.self, ShowOne.self, Allow.self, Deny.self])

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the targets.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let targets = try await node.targets()
            if connection.isJSON { return try Output.json(targets) }
            Output.table(
                Table(
                    [.left("IQN"), .left("LUNS"), .left("ALLOWED"), .right("SESSIONS"), .left("PORTALS")],
                    rows: targets.map { target in
                        [
                            target.iqn, Show.list(target.luns.map { "\($0.lun)=\($0.volume)" }),
                            target.access.isEmpty ? "nobody" : Show.list(target.access.map(\.initiator)),
                            "\(target.sessions.count)", Show.list(target.portals),
                        ]
                    }),
                whenEmpty: "There are no targets. A volume brings one: stillpoint volume create NAME --size 10GiB")
        }
    }

    struct ShowOne: NodeCommand {
        static let configuration = CommandConfiguration(commandName: "show", abstract: "Show one target.")

        @Argument(help: "Name of the target (IQN).", completion: Names.targets) var iqn: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let target = try await node.target(iqn)
            if connection.isJSON { return try Output.json(target) }
            print(TargetReport.description(target))
        }
    }

    struct Allow: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Let an initiator log in to a target.",
            discussion:
                "A rule for the same initiator is replaced. Secrets have 12 to 255 bytes and come from files only.")

        @Argument(help: "Name of the target (IQN).", completion: Names.targets) var iqn: String
        @OptionGroup var rule: RuleOptions
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let target = try await node.allow(try rule.request(), on: iqn)
            let initiator = rule.initiator
            if connection.isJSON { return try Output.json(target) }
            print("\(initiator == "any" ? "Any initiator" : initiator) may log in to \(target.iqn)")
        }
    }

    struct Deny: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shut an initiator out of a target, dropping its sessions.")

        @Argument(help: "Name of the target (IQN).", completion: Names.targets) var iqn: String
        @Option(help: ArgumentHelp("Name of the initiator, or any.", valueName: "name")) var initiator: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let target = try await node.deny(initiator, on: iqn)
            if connection.isJSON { return try Output.json(target) }
            let left = target.access.map(\.initiator)
            print(
                "\(initiator == "any" ? "Who has no rule" : initiator) may no longer log in to \(target.iqn); "
                    + (left.isEmpty ? "nobody may" : "left: \(Show.list(left))"))
        }
    }
}

/// Who is let in, and how it has to prove itself.
struct RuleOptions: ParsableArguments {
    @Option(help: ArgumentHelp("Name of the initiator, or any.", valueName: "name")) var initiator: String
    @Option(help: ArgumentHelp("The initiator has to prove itself as this user.", valueName: "user"))
    var chapUser: String?
    @Option(help: ArgumentHelp("Its secret.", valueName: "file"), completion: .file()) var chapSecretFile: String?
    @Option(help: ArgumentHelp("The target proves itself as this user.", valueName: "user")) var mutualUser: String?
    @Option(help: ArgumentHelp("Its secret.", valueName: "file"), completion: .file())
    var mutualSecretFile: String?

    func validate() throws {
        if (chapUser == nil) != (chapSecretFile == nil) {
            throw ValidationError("--chap-user and --chap-secret-file go together")
        }
        if (mutualUser == nil) != (mutualSecretFile == nil) {
            throw ValidationError("--mutual-user and --mutual-secret-file go together")
        }
        if mutualUser != nil && chapUser == nil {
            throw ValidationError("Mutual CHAP needs --chap-user and --chap-secret-file too")
        }
    }

    func request() throws -> TargetAllowRequest {
        TargetAllowRequest(
            initiator: initiator, chapUser: chapUser, chapSecret: try chapSecretFile.map(SecretFile.read),
            mutualUser: mutualUser, mutualSecret: try mutualSecretFile.map(SecretFile.read))
    }
}

/// A CHAP secret in a file: its first line, without the line break.
enum SecretFile {
    static func read(_ path: String) throws -> String {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw CommandFailure("The file with the secret, \(path), cannot be read")
        }
        let secret =
            String(decoding: data, as: UTF8.self).split(separator: "\n", maxSplits: 1).first.map(String.init) ?? ""
        guard (12...255).contains(secret.utf8.count) else {
            throw CommandFailure(
                "The secret in \(path) has \(secret.utf8.count) bytes", hint: "CHAP asks for 12 to 255")
        }
        return secret
    }
}

enum TargetReport {
    static func rule(_ access: AccessInfo) -> String {
        access.initiator + (access.chapUser.map { "  CHAP user \($0)\(access.isMutual ? ", mutual" : "")" } ?? "")
    }

    static func description(_ target: TargetInfo) -> String {
        var text = Description()
        text.add("Target", target.iqn)
        text.add("Portals", Show.list(target.portals))
        text.add(
            "LUNs",
            lines: target.luns.map { "\($0.lun)  \($0.volume)  NAA \($0.naa)\($0.isReadOnly ? "  read-only" : "")" })
        text.add(
            "Allowed",
            lines: target.access.isEmpty
                ? ["nobody"]
                : target.access.map(rule))
        text.add(
            "Sessions",
            lines: target.sessions.isEmpty
                ? ["none"] : target.sessions.map { "\($0.initiator)  from \($0.address)  TSIH \($0.tsih)" })
        return text.rendered()
    }
}
