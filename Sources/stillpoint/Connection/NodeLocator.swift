import API
import Foundation

enum EnvironmentName {
    static let api = "STILLPOINT_API"
    static let tokenFile = "STILLPOINT_TOKEN_FILE"
    static let authorityFile = "STILLPOINT_CA_FILE"
}

/// Where a node is and what it takes to talk to it.
struct NodeAddress: Codable, Equatable, Sendable {
    var api: String
    var tokenFile: String?
    var authorityFile: String?

    /// - Throws: ``CommandFailure`` when a file cannot be read.
    func connect(timeoutSeconds: Double = 60, connectTimeoutSeconds: Double = 5) throws -> NodeClient {
        guard let url = URL(string: api) else {
            throw CommandFailure.usage("'\(api)' is not a URL", hint: "Write it as https://HOST:PORT")
        }
        return try NodeClient(
            NodeClient.Settings(
                url: url, token: try tokenFile.map { try readToken($0) },
                authorityPEM: try authorityFile.map { try read($0, what: "certificate authority") },
                timeoutSeconds: timeoutSeconds, connectTimeoutSeconds: connectTimeoutSeconds))
    }

    /// With paths that hold from any working directory.
    var absolute: NodeAddress {
        func absolute(_ path: String) -> String {
            path.hasPrefix("/") ? path : FileManager.default.currentDirectoryPath + "/" + path
        }
        return NodeAddress(
            api: api, tokenFile: tokenFile.map(absolute), authorityFile: authorityFile.map(absolute))
    }

    private func readToken(_ path: String) throws -> String {
        let token = try read(path, what: "administrator's token").trimmingCharacters(in: .whitespacesAndNewlines)
        guard !token.isEmpty, token.allSatisfy({ $0.isASCII && !$0.isWhitespace }) else {
            throw CommandFailure("The file \(path) does not hold a token", hint: "It has to be one line of text")
        }
        return token
    }

    private func read(_ path: String, what: String) throws -> String {
        do {
            return try String(contentsOfFile: path, encoding: .utf8)
        } catch {
            let reason =
                FileManager.default.fileExists(atPath: path)
                ? "may not be read by this user" : "is not there"
            throw CommandFailure(
                "The file with the \(what), \(path), \(reason)",
                hint: "Run this as the node's user, or give a copy with --token-file and --ca-file")
        }
    }
}

/// Finds the node a command is for: options first, then the environment, then what a node of this machine left in the
/// run directory, then the default data directories.
struct NodeLocator {
    var environment: [String: String] = ProcessInfo.processInfo.environment
    var user: uid_t = getuid()
    var isReadable: (String) -> Bool = { access($0, R_OK) == 0 }

    func locate(api: String?, tokenFile: String?, authorityFile: String?) throws -> NodeAddress {
        let api = try (api ?? value(EnvironmentName.api)).map(normalised)
        var tokenFile = tokenFile ?? value(EnvironmentName.tokenFile)
        var authorityFile = authorityFile ?? value(EnvironmentName.authorityFile)
        let nodes = RunDirectory.nodes(in: RunDirectory.path(environment: environment, user: user))
        guard let record = nodes.first(where: { api == nil || sameNode($0.api, api!) }) else {
            guard let api else {
                throw CommandFailure(
                    "No node was found on this machine",
                    hint: "Start one with: stillpoint serve. One elsewhere is given with --api https://HOST:PORT, "
                        + "--token-file and --ca-file",
                    status: .unreachable)
            }
            if authorityFile == nil, let tokenFile {
                // A token given as DATA/admin-token: the authority lies beside it.
                authorityFile = readable((tokenFile as NSString).deletingLastPathComponent + "/pki/ca.pem")
            }
            if isOnThisMachine(api) {
                for directory in defaultDataDirectories {
                    if tokenFile == nil { tokenFile = readable(directory + "/admin-token") }
                    if authorityFile == nil { authorityFile = readable(directory + "/pki/ca.pem") }
                }
            }
            return NodeAddress(api: api, tokenFile: tokenFile, authorityFile: authorityFile)
        }
        return NodeAddress(
            api: api ?? record.api, tokenFile: tokenFile ?? record.tokenFile,
            authorityFile: authorityFile ?? record.authorityFile)
    }

    /// Where `stillpoint serve` keeps its data when it is not told.
    var defaultDataDirectories: [String] {
        var directories = user == 0 ? ["/var/lib/stillpoint"] : []
        if let path = value("XDG_DATA_HOME") {
            directories.append(path + "/stillpoint")
        } else if let home = value("HOME") {
            directories.append(home + "/.local/share/stillpoint")
        }
        return directories
    }

    private func value(_ name: String) -> String? {
        guard let value = environment[name], !value.isEmpty else { return nil }
        return value
    }

    private func readable(_ path: String) -> String? { isReadable(path) ? path : nil }

    /// `HOST:PORT` alone means what a node does by default: plain HTTP on loopback, TLS beyond it.
    private func normalised(_ text: String) throws -> String {
        var text = text
        while text.hasSuffix("/") { text.removeLast() }
        if !text.contains("://") {
            text =
                (URLComponents(string: "http://" + text)?.host.map(Self.isLoopback) == true ? "http://" : "https://")
                + text
        }
        guard let parts = URLComponents(string: text), let scheme = parts.scheme, ["http", "https"].contains(scheme),
            let host = parts.host, !host.isEmpty, parts.path.isEmpty
        else {
            throw CommandFailure.usage(
                "'\(text)' is not the address of a node", hint: "Write it as https://HOST:PORT, without a path")
        }
        return text
    }

    private func isOnThisMachine(_ api: String) -> Bool {
        URLComponents(string: api)?.host.map(Self.isLoopback) ?? false
    }

    /// Two addresses of one listening socket: the same port, and the same host or both this machine's.
    private func sameNode(_ left: String, _ right: String) -> Bool {
        guard let left = URLComponents(string: left), let right = URLComponents(string: right) else { return false }
        func port(_ parts: URLComponents) -> Int { parts.port ?? (parts.scheme == "http" ? 80 : 443) }
        guard let leftHost = left.host?.lowercased(), let rightHost = right.host?.lowercased() else { return false }
        guard port(left) == port(right) else { return false }
        if leftHost == rightHost { return true }
        // A node that listens on all addresses is also found under this machine's own.
        let anywhere: Set<String> = ["0.0.0.0", "[::]", "::"]
        let own = Self.isLoopback(rightHost) || rightHost == ProcessInfo.processInfo.hostName.lowercased()
        return own && (anywhere.contains(leftHost) || Self.isLoopback(leftHost))
    }

    private static func isLoopback(_ host: String) -> Bool {
        ["localhost", "::1", "[::1]"].contains(host.lowercased()) || host.hasPrefix("127.")
    }
}
