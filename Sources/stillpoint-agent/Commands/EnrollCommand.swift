import ArgumentParser
import Foundation

struct EnrollCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "enroll", abstract: "Make this agent known to a node, with a one-time token.",
        discussion: """
            The token comes from the node: stillpoint agent token NAME. It is read from a file or from standard input, \
            never from the command line, where other users of this host could see it.
            """)

    @OptionGroup var options: ConfigurationOptions

    @Option(
        name: .long,
        help: ArgumentHelp(
            "Address of the node's API, e.g. https://storage:11170; http:// on this machine only.", valueName: "url"))
    var node: String

    @Option(
        name: .long, help: ArgumentHelp("The file with the token, or - for standard input.", valueName: "file"),
        completion: .file())
    var tokenFile: String

    @Option(
        name: .long,
        help: ArgumentHelp(
            "The authority (PEM) of a node whose API has a certificate of its own; its host name is then checked.",
            valueName: "file"))
    var nodeCA: String?

    @Option(
        name: .long,
        help: ArgumentHelp(
            "Instead: the SHA-256 of that node's API certificate, 64 hexadecimal digits; colons are allowed.",
            valueName: "sha256"))
    var nodeFingerprint: String?

    @Option(
        name: .long,
        help: ArgumentHelp("Where the node will call this agent. Default: where it listens.", valueName: "host:port"))
    var address: String?

    @Flag(name: .long, help: "Replace the identity that this agent has already.")
    var replace = false

    func run() async throws {
        let configuration = try options.load()
        let store = IdentityStore(directory: configuration.state)
        do {
            guard replace || !store.exists else {
                throw IdentityError(
                    "This agent is enrolled already (\(configuration.state)). Use --replace to enroll it anew")
            }
            guard let url = URL(string: node) else { throw IdentityError("“\(node)” is not a URL") }
            let token = try EnrollmentToken.read(from: tokenFile)
            let identity = try await Enrollment(
                node: url, token: token, address: try address ?? Self.defaultAddress(configuration.listen),
                trust: try NodeTrust(authorityFile: nodeCA, fingerprint: nodeFingerprint)
            ).run()
            try store.save(identity)
            print("Enrolled as \(identity.name) with node \(identity.nodeID); it will call \(identity.record.address).")
        } catch let error as IdentityError {
            throw CommandFailure.end(error, code: error.isUnreachable ? 3 : 1)
        } catch {
            throw CommandFailure.end(String(describing: error))
        }
    }

    /// What it listens on; its host name where it listens on every address.
    static func defaultAddress(_ listen: String) throws -> String {
        let address = try ListenAddress(listen)
        guard address.host == "0.0.0.0" || address.host == "::" else { return listen }
        return "\(ProcessInfo.processInfo.hostName):\(address.port)"
    }
}
