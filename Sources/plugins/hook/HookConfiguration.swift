import Glibc
import PluginKit

/// One thing that executables of the user's bring to rest.
struct Hook: Codable, Sendable, Equatable {
    static let defaultTimeoutSeconds = 10.0
    static let timeoutLimits = 0.1...300.0

    /// Unique; letters, digits, `.`, `-`, `_`, at most 64.
    var name: String
    /// Names of the volumes that it protects.
    var volumes: [String]
    /// Program and arguments. The program's path is absolute.
    var quiesce: [String]
    /// Exit status 0 says that it was quiesced until now, and is not any more.
    var unquiesce: [String]
    /// Exit status 0 says that a quiesce would work.
    var preflight: [String]?
    /// Of each of them; 0.1 to 300, default 10.
    var timeoutSeconds: Double?
    /// Lower ones are quiesced first and released last; equal ones at the same time. Default 0.
    var order: Int?
    var environment: [String: String]?
    /// The layer it belongs to; default `application`.
    var level: PluginLayer?
    /// True: it runs only where the volumes are used, as devices or by something that another plug-in found. For one
    /// configuration on several hosts, of which one uses the volumes at a time. Default false.
    var onlyWhereUsed: Bool?

    var resourceID: String { "hook:\(name)" }
    var timeout: Double { timeoutSeconds ?? Self.defaultTimeoutSeconds }

    /// - Throws: `badConfiguration`.
    func check() throws(PluginFailure) {
        func wrong(_ what: String, hint: String? = nil) -> PluginFailure {
            PluginFailure(.badConfiguration, "The hook \(name.isEmpty ? "without a name" : name) \(what)", hint: hint)
        }
        let allowed = name.utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
                || [0x2D, 0x2E, 0x5F].contains(byte)
        }
        guard !name.isEmpty, name.utf8.count <= 64, allowed else {
            throw wrong("needs a name of 1 to 64 letters, digits, `.`, `-`, `_`")
        }
        guard !volumes.isEmpty else { throw wrong("protects no volume", hint: "Name them in `volumes`") }
        guard Self.timeoutLimits.contains(timeout) else { throw wrong("has a time-out outside 0.1 to 300 s") }
        for command in [quiesce, unquiesce, preflight].compactMap({ $0 }) where command.first?.hasPrefix("/") != true {
            throw wrong(
                "has a command without an absolute path", hint: "Write it as a list: [\"/usr/local/bin/pause-it\"]")
        }
    }
}

struct HookConfiguration: Decodable, Sendable {
    var hooks: [Hook]?

    static func read(_ value: JSONValue?) throws(PluginFailure) -> [Hook] {
        let hooks = try JSONValue.configuration(value, as: HookConfiguration.self).hooks ?? []
        var names: Set<String> = []
        for hook in hooks {
            try hook.check()
            guard names.insert(hook.name).inserted else {
                throw PluginFailure(.badConfiguration, "Two hooks are named \(hook.name)")
            }
        }
        return hooks
    }

    static func hook(_ resource: PluginResource, among hooks: [Hook]) throws(PluginFailure) -> Hook {
        guard let hook = hooks.first(where: { $0.resourceID == resource.id }) else {
            throw PluginFailure(
                .unknownResource, "\(resource.id) is not in the configuration", hint: "Discover again")
        }
        return hook
    }
}

/// Who may have written what is about to run with the agent's rights.
enum ExecutableCheck {
    /// - Throws: `refused` when the file, or the way to it, is open to others.
    static func check(_ path: String) throws(PluginFailure) {
        guard let resolved = resolvedPath(path), let file = fileStatus(resolved) else {
            throw PluginFailure(.refused, "\(path) is not there")
        }
        guard file.st_mode & S_IFMT == S_IFREG, access(resolved, X_OK) == 0 else {
            throw PluginFailure(.refused, "\(path) is not an executable file", hint: "Run: chmod 755 \(path)")
        }
        guard file.st_uid == 0 || file.st_uid == geteuid(), file.st_mode & 0o002 == 0 else {
            throw PluginFailure(
                .refused, "\(path) can be changed by others: it would run with the agent's rights",
                hint: "Run: chown root \(path); chmod 755 \(path)")
        }
        var rest = resolved
        while let slash = rest.lastIndex(of: "/"), slash != rest.startIndex {
            rest = String(rest[..<slash])
            // In a sticky directory (like /tmp) nobody replaces the files of others.
            if let directory = fileStatus(rest), directory.st_mode & 0o002 != 0, directory.st_mode & 0o1000 == 0 {
                throw PluginFailure(
                    .refused, "\(path) lies in \(rest), where everybody may replace it",
                    hint: "Run: chmod o-w \(rest)")
            }
        }
    }
}
