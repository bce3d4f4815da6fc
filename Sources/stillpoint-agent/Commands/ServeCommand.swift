import ArgumentParser
import Dispatch
import Foundation
import Logging

struct ServeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve", abstract: "Run the agent until SIGTERM or SIGINT; everything held is released first.")

    @OptionGroup var options: ConfigurationOptions

    @Option(name: .long, help: ArgumentHelp("Where the node calls. Default 127.0.0.1:11169.", valueName: "host:port"))
    var listen: String?

    func run() async throws {
        var configuration = try options.load()
        if let listen { configuration.listen = listen }
        let level = Logger.Level(rawValue: configuration.logLevel) ?? .info
        let logger = Logger(label: "agent") { DroppingLogHandler(label: $0, level: level) }
        do {
            try configuration.check()
            guard let identity = try IdentityStore(directory: configuration.state).load() else {
                throw StartFailure(
                    description:
                        "This agent is not enrolled yet. Get a token from the node (stillpoint agent token NAME)"
                        + " and run: stillpoint-agent enroll --node URL --token-file FILE")
            }
            try await AgentServer(configuration: configuration, identity: identity, logger: logger)
                .run(until: Self.signals())
        } catch {
            DroppingLog.shared.flush(atMostSeconds: 1)
            throw CommandFailure.end(String(describing: error))
        }
    }

    /// Yields at SIGTERM and SIGINT, whose default action is off from now on.
    private static func signals() -> AsyncStream<String> {
        AsyncStream { continuation in
            let sources = SignalSources([SIGTERM, SIGINT]) { continuation.yield("signal \($0)") }
            continuation.onTermination = { _ in sources.cancel() }
        }
    }
}

// SAFETY: the sources are made in init, never changed, and cancelling one is safe on any thread.
private final class SignalSources: @unchecked Sendable {
    private let sources: [any DispatchSourceSignal]

    init(_ numbers: [Int32], _ body: @escaping @Sendable (Int32) -> Void) {
        sources = numbers.map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler { body(number) }
            source.resume()
            return source
        }
    }

    func cancel() { for source in sources { source.cancel() } }
}

struct ConfigCheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "configcheck", abstract: "Check the configuration; start nothing.",
        discussion: "Says what is wrong with it, in which line, and whether this agent is enrolled.")

    @Argument(
        help: "The file, as with --config. Default /etc/stillpoint/agent.yaml, if there is one.",
        completion: .file(extensions: ["yaml", "yml"]))
    var file: String?

    @OptionGroup var options: ConfigurationOptions

    func validate() throws {
        guard file == nil || options.config == nil else {
            throw ValidationError("Give the file once: as FILE or with --config FILE")
        }
    }

    func run() throws {
        var options = options
        options.config = file ?? options.config
        let configuration = try options.load()
        for directory in configuration.plugins where !FileManager.default.fileExists(atPath: directory) {
            print("note: the plug-in directory \(directory) does not exist")
        }
        do {
            if let identity = try IdentityStore(directory: configuration.state).load() {
                print("enrolled as \(identity.name) with node \(identity.nodeID)")
            } else {
                print("note: not enrolled yet")
            }
        } catch {
            throw CommandFailure.end(String(describing: error))
        }
        print("The configuration is fine.")
    }
}
