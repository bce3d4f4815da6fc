import ArgumentParser
import Foundation
import Logging
import Node

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run the storage node.",
        discussion: """
            Every setting comes from a flag, else from the environment, else from the configuration file, else from \
            its default. Nothing has to be set: the first run makes the pool, the node's authority and the \
            administrator's token in the data directory.
            """)

    @Option(
        help: ArgumentHelp(
            "Configuration file, YAML. Default \(NodeConfiguration.defaultFile), if there is one.", valueName: "file"),
        completion: .file(extensions: ["yaml", "yml"]))
    var config: String?
    @Option(help: ArgumentHelp("Data directory.", valueName: "directory"), completion: .directory) var data: String?
    @Option(help: ArgumentHelp("Where initiators connect. Default 127.0.0.1:3260.", valueName: "host:port"))
    var iscsiListen: String?
    @Option(help: ArgumentHelp("Where initiators are told to connect, if elsewhere.", valueName: "host:port"))
    var iscsiAdvertise: String?
    @Option(help: ArgumentHelp("More portals, each with the number of its group.", valueName: "host:port=group,…"))
    var iscsiPortals: String?
    @Option(help: ArgumentHelp("How portal groups reach the volumes at the start.", valueName: "group=state,…"))
    var iscsiGroups: String?
    @Option(help: ArgumentHelp("Where the API listens. Default 127.0.0.1:11170.", valueName: "host:port"))
    var apiListen: String?
    @Option(help: ArgumentHelp("auto: TLS beyond loopback. required: TLS always.", valueName: "choice"))
    var apiTls: String?
    @Option(help: ArgumentHelp("More names and addresses for the node's certificate.", valueName: "name,…"))
    var apiNames: String?
    @Option(
        help: ArgumentHelp("File or block device of the pool. Default DATA/pool.", valueName: "path"),
        completion: .file())
    var poolPath: String?
    @Option(help: ArgumentHelp("The most the pool's file grows to.", valueName: "size")) var poolMaximumSize: String?
    @Option(help: ArgumentHelp("trace, debug, info, notice, warning, error or critical.", valueName: "level"))
    var logLevel: String?

    func run() async throws {
        let configuration: NodeConfiguration
        do {
            configuration = try NodeConfiguration.load(file: config.map(Self.absolute), flags: flags)
        } catch let error as ConfigurationInvalid {
            throw CommandFailure(
                "The node was not started: \(error.description)",
                hint: "Nothing was changed. stillpoint configcheck looks at a file without starting anything")
        }
        // Standard output has the addresses, for programs; what happens goes to standard error.
        LoggingSystem.bootstrap(StreamLogHandler.standardError)
        do {
            try await Node.serve(configuration, logger: Logger(label: "stillpoint"))
        } catch let error as ServeFailure {
            throw CommandFailure("The node cannot serve: \(error.description)")
        } catch let error as ConfigurationInvalid {
            throw CommandFailure("The node was not started: \(error.description)")
        }
    }

    /// The settings given here, by the names that the configuration knows them by.
    private var flags: [String: String] {
        let given = [
            "data": data.map(Self.absolute), "iscsi-listen": iscsiListen, "iscsi-advertise": iscsiAdvertise,
            "iscsi-portals": iscsiPortals, "iscsi-groups": iscsiGroups,
            "api-listen": apiListen, "api-tls": apiTls, "api-names": apiNames,
            "pool-path": poolPath.map(Self.absolute), "pool-maximumSize": poolMaximumSize,
            "log-level": logLevel,
        ]
        return given.compactMapValues { $0 }
    }

    /// Flags may be relative to where the command was given; the configuration itself knows absolute paths only.
    static func absolute(_ path: String) -> String {
        path.hasPrefix("/")
            ? path
            : URL(filePath: FileManager.default.currentDirectoryPath).appending(path: path).standardizedFileURL.path
    }
}

struct ConfigCheck: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "configcheck", abstract: "Check a configuration file of the node; start nothing.",
        discussion: "Environment and defaults count too, as they would for serve.")

    @Argument(
        help: "The file. Default \(NodeConfiguration.defaultFile), if there is one.",
        completion: .file(extensions: ["yaml", "yml"]))
    var file: String?
    @Option(
        help: ArgumentHelp("The same, as for serve.", valueName: "file"),
        completion: .file(extensions: ["yaml", "yml"]))
    var config: String?

    func validate() throws {
        guard file == nil || config == nil else {
            throw ValidationError("Give the file once: as FILE or with --config FILE")
        }
    }

    func run() throws {
        let file = file ?? config
        let problems = NodeConfiguration.check(file: file)
        guard problems.isEmpty else {
            for problem in problems { Terminal.error(problem.description) }
            throw ExitCode.failure
        }
        print("\(file ?? "The configuration") is good")
    }
}
