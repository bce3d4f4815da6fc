import Foundation
import PluginKit
import Yams

/// A setting that is wrong: which one, why, what to do.
struct ConfigurationError: Error, CustomStringConvertible, Equatable {
    var description: String

    init(_ description: String) { self.description = description }
}

/// The agent's settings: defaults, then the file, then `STILLPOINT_AGENT_*`, then the command line.
struct AgentConfiguration: Sendable, Equatable {
    static let defaultPath = "/etc/stillpoint/agent.yaml"

    /// `HOST:PORT` of the node's side. Loopback until told otherwise.
    var listen = "127.0.0.1:11169"
    /// Key, certificate and authority.
    var state = "/var/lib/stillpoint-agent"
    /// Journal of holds and the plug-ins' state; on a tmpfs.
    var run = "/run/stillpoint-agent"
    /// Accept a `run` directory that is on a disk. For tests: a frozen disk could then keep its own thaw waiting.
    var allowRunOnDisk = false
    var plugins: [String] = AgentConfiguration.defaultPluginDirectories
    /// Where `stillpoint volume attach` notes its attachments.
    var attachments = AgentConfiguration.defaultAttachments
    /// `trace` … `critical`.
    var logLevel = "info"
    /// Sections for the plug-ins, by plug-in name, passed on as they are.
    var pluginConfiguration: [String: JSONValue] = [:]

    static var defaultPluginDirectories: [String] {
        var directories = ["/usr/libexec/stillpoint/plugins"]
        if let executable = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe") {
            directories.insert((executable as NSString).deletingLastPathComponent, at: 0)
        }
        return directories
    }

    static var defaultAttachments: String {
        (ProcessInfo.processInfo.environment["STILLPOINT_RUN_DIR"] ?? "/run/stillpoint") + "/attachments"
    }

    var socketPath: String { run + "/agent.sock" }

    /// Reads a file; a missing one is an error only if it was asked for by name.
    static func load(
        path: String?, environment: [String: String] = ProcessInfo.processInfo.environment
    ) throws -> AgentConfiguration {
        var configuration = AgentConfiguration()
        let wanted = path ?? environment["STILLPOINT_AGENT_CONFIG"]
        let file = wanted ?? defaultPath
        if wanted != nil || FileManager.default.fileExists(atPath: file) {
            guard let text = try? String(contentsOfFile: file, encoding: .utf8) else {
                throw ConfigurationError("The configuration file \(file) cannot be read")
            }
            do {
                try configuration.apply(yaml: text)
            } catch {
                throw ConfigurationError("\(file): \(error)")
            }
        }
        try configuration.apply(environment: environment)
        try configuration.check()
        return configuration
    }

    mutating func apply(yaml text: String) throws {
        let tree: Any?
        do {
            tree = try Yams.load(yaml: text)
        } catch YamlError.scanner(_, let problem, let mark, _), YamlError.parser(_, let problem, let mark, _),
            YamlError.composer(_, let problem, let mark, _)
        {
            throw ConfigurationError("line \(mark.line) is not YAML: \(problem)")
        } catch {
            throw ConfigurationError("it is not YAML: \(error)")
        }
        guard let tree, !(tree is NSNull) else { return }
        guard case .object(let members) = try JSONValue(yaml: tree, at: "the file") else {
            throw ConfigurationError("it must be a mapping of names to values")
        }
        for (name, value) in members.sorted(by: { $0.key < $1.key }) { try set(name, value) }
    }

    mutating func apply(environment: [String: String]) throws {
        let names = [
            "LISTEN": "listen", "STATE": "state", "RUN": "run", "ATTACHMENTS": "attachments", "LOG_LEVEL": "logLevel",
        ]
        for (suffix, name) in names {
            if let value = environment["STILLPOINT_AGENT_\(suffix)"] { try set(name, .string(value)) }
        }
        if let value = environment["STILLPOINT_AGENT_PLUGINS"] {
            plugins = value.split(separator: ":").map(String.init)
        }
        if let value = environment["STILLPOINT_AGENT_ALLOW_RUN_ON_DISK"] {
            guard let flag = ["1": true, "true": true, "0": false, "false": false][value.lowercased()] else {
                throw ConfigurationError("STILLPOINT_AGENT_ALLOW_RUN_ON_DISK must be true or false, not “\(value)”")
            }
            allowRunOnDisk = flag
        }
    }

    private mutating func set(_ name: String, _ value: JSONValue) throws {
        switch name {
        case "listen": listen = try text(value, name)
        case "state": state = try text(value, name)
        case "run": run = try text(value, name)
        case "attachments": attachments = try text(value, name)
        case "logLevel": logLevel = try text(value, name)
        case "allowRunOnDisk":
            guard case .bool(let flag) = value else { throw ConfigurationError("\(name) must be true or false") }
            allowRunOnDisk = flag
        case "plugins":
            guard case .array(let items) = value else {
                throw ConfigurationError("plugins must be a list of directories")
            }
            plugins = try items.map { try text($0, "an entry of plugins") }
        case "pluginConfiguration":
            guard case .object(let sections) = value else {
                throw ConfigurationError("pluginConfiguration must map plug-in names to their settings")
            }
            pluginConfiguration = sections
        default:
            throw ConfigurationError(
                "unknown setting “\(name)”; known are allowRunOnDisk, attachments, listen, logLevel, "
                    + "pluginConfiguration, plugins, run and state")
        }
    }

    private func text(_ value: JSONValue, _ name: String) throws -> String {
        guard let text = value.stringValue, !text.isEmpty else {
            throw ConfigurationError("\(name) must be a text that is not empty")
        }
        return text
    }

    /// Everything that can be told wrong without touching the machine.
    func check() throws {
        _ = try ListenAddress(listen)
        for (name, path) in [("state", state), ("run", run), ("attachments", attachments)] where !path.hasPrefix("/") {
            throw ConfigurationError("\(name) must be an absolute path, not “\(path)”")
        }
        for path in plugins where !path.hasPrefix("/") {
            throw ConfigurationError("plugins must be absolute paths, not “\(path)”")
        }
        guard ["trace", "debug", "info", "notice", "warning", "error", "critical"].contains(logLevel) else {
            throw ConfigurationError("logLevel must be trace, debug, info, notice, warning, error or critical")
        }
        // The longest path of an AF_UNIX socket is 107 bytes.
        guard socketPath.utf8.count <= 107 else {
            throw ConfigurationError("run is too long for the socket in it: at most 96 bytes")
        }
    }
}

/// `HOST:PORT` to listen on; port 0 takes a free one.
struct ListenAddress: Sendable, Equatable {
    var host: String
    var port: Int

    init(_ text: String) throws {
        guard let colon = text.lastIndex(of: ":"), let port = Int(text[text.index(after: colon)...]),
            (0...65_535).contains(port)
        else { throw ConfigurationError("listen must be HOST:PORT, not “\(text)”") }
        var host = String(text[..<colon])
        if host.hasPrefix("[") && host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard !host.isEmpty else { throw ConfigurationError("listen must name a host; 0.0.0.0 is every address") }
        self.host = host
        self.port = port
    }
}

extension JSONValue {
    /// What Yams gives for a document, as JSON.
    init(yaml value: Any, at place: String) throws {
        switch value {
        case is NSNull: self = .null
        case let value as Bool: self = .bool(value)
        case let value as Int: self = .number(Double(value))
        case let value as Double: self = .number(value)
        case let value as String: self = .string(value)
        case let value as [Any]: self = .array(try value.map { try JSONValue(yaml: $0, at: place) })
        case let value as [AnyHashable: Any]:
            var members: [String: JSONValue] = [:]
            for (key, member) in value {
                let name = key as? String ?? String(describing: key)
                members[name] = try JSONValue(yaml: member, at: name)
            }
            self = .object(members)
        default: throw ConfigurationError("\(place): a value of a kind that JSON does not have (\(type(of: value)))")
        }
    }
}
