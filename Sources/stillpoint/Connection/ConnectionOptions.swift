import API
import ArgumentParser
import Foundation

/// How to reach a node; the same for every verb, and accepted before the noun or after the verb.
struct ConnectionOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Address of the node, https://HOST:PORT. Default: \(EnvironmentName.api), else the node of this machine.",
            valueName: "url"))
    var api: String?

    @Option(
        help: ArgumentHelp(
            "File with the administrator's token. Default: \(EnvironmentName.tokenFile), else this machine's node's.",
            valueName: "file"),
        completion: .file())
    var tokenFile: String?

    @Option(
        help: ArgumentHelp(
            "The node's authority, PEM. Default: \(EnvironmentName.authorityFile), else this machine's node's.",
            valueName: "file"),
        completion: .file())
    var caFile: String?

    @Option(name: .shortAndLong, help: "table for people, json for programs.")
    var output: OutputFormat = .table

    var isJSON: Bool { output == .json }

    func locate() throws -> NodeAddress {
        try NodeLocator().locate(api: api, tokenFile: tokenFile, authorityFile: caFile)
    }

    /// - Throws: ``CommandFailure`` when there is no node or token to be found.
    func connect(timeoutSeconds: Double = 60, connectTimeoutSeconds: Double = 5) throws -> NodeClient {
        try locate().connect(timeoutSeconds: timeoutSeconds, connectTimeoutSeconds: connectTimeoutSeconds)
    }
}

/// A verb that talks to a node.
protocol NodeCommand: AsyncParsableCommand {
    var connection: ConnectionOptions { get }

    func run(on node: NodeClient) async throws
}

extension NodeCommand {
    func run() async throws {
        let node = try connection.connect()
        do {
            try await run(on: node)
        } catch {
            await node.close()
            throw error
        }
        await node.close()
    }
}
