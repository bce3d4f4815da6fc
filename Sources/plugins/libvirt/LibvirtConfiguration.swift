import PluginKit

/// How a guest is brought to rest. docs/libvirt.md says what each one promises.
enum GuestMode: String, Codable, Sendable, CaseIterable {
    /// The guest agent freezes the guest's file systems; in Windows guests this runs VSS.
    case agent
    /// The guest's processors are stopped.
    case pause
    /// Stopped, with its memory written to a file that becomes part of the snapshot.
    case memory
    /// Left running, because an agent of ours inside of it brings everything to rest.
    case none
}

/// The plug-in's section of the agent's configuration. Everything may be left out.
struct LibvirtConfiguration: Decodable, Sendable {
    struct Guest: Decodable, Sendable {
        /// Its name or UUID.
        var name: String
        /// True leaves it alone: it is not found at all.
        var ignore: Bool?
        var mode: GuestMode?
        /// What to do where the policy of the snapshot allows less and `mode` fails.
        var fallback: [GuestMode]?
        /// What a freeze by the guest agent brings to rest: `application` where freeze hooks of the guest do so for
        /// all its applications.
        var level: PluginLevel?
        /// Name of the Stillpoint agent inside the guest, which answers for what runs there.
        var insideAgent: String?
    }

    /// libvirt's connection URIs; one for each hypervisor.
    var uris: [String]?
    var mode: GuestMode?
    var fallback: [GuestMode]?
    var guests: [Guest]?
    /// How often a call to libvirt that failed for want of a connection is tried. Snap Creator's KVM_CMD_RETRY_COUNT.
    var retryCount: Int?
    /// Between two tries.
    var retrySeconds: Double?
    /// Where libvirt keeps its definitions, read while it does not answer. Snap Creator's KVM_VM_CONFIG_DIR.
    var configDirectory: String?
    /// Where memory images are written; on a file system of a volume.
    var memoryDirectory: String?
    /// The longest that a guest agent may take to answer a question before anything is frozen.
    var agentTimeoutSeconds: Double?
    /// How long a restore waits for a guest to shut down before it turns it off.
    var shutdownSeconds: Double?

    static let defaultURI = "qemu:///system"
    static let defaultConfigDirectory = "/etc/libvirt/qemu"
    static let retryLimits = 1...100

    var connections: [String] { uris ?? [Self.defaultURI] }
    var tries: Int { retryCount ?? 3 }
    /// Nobody said where guests are to be looked for.
    var isDefault: Bool { uris == nil && guests == nil && configDirectory == nil }
    var pauseSeconds: Double { retrySeconds ?? 0.5 }

    static func read(_ value: JSONValue?) throws(PluginFailure) -> LibvirtConfiguration {
        let configuration = try JSONValue.configuration(value, as: LibvirtConfiguration.self)
        func wrong(_ what: String, _ hint: String) -> PluginFailure {
            PluginFailure(.badConfiguration, "The configuration of the libvirt plug-in is wrong: \(what)", hint: hint)
        }
        guard retryLimits.contains(configuration.tries) else {
            throw wrong("retryCount is \(configuration.tries)", "It is 1 to 100")
        }
        guard (0...60).contains(configuration.pauseSeconds) else {
            throw wrong("retrySeconds is \(configuration.pauseSeconds)", "It is 0 to 60")
        }
        guard (0.5...60).contains(configuration.agentTimeoutSeconds ?? 2) else {
            throw wrong("agentTimeoutSeconds is out of bounds", "It is 0.5 to 60")
        }
        guard (0...3_600).contains(configuration.shutdownSeconds ?? 60) else {
            throw wrong("shutdownSeconds is out of bounds", "It is 0 to 3600")
        }
        for path in [configuration.configDirectory, configuration.memoryDirectory].compactMap({ $0 })
        where !path.hasPrefix("/") {
            throw wrong("\(path) is no absolute path", "Write the whole path")
        }
        if let uri = configuration.connections.first(where: { !$0.contains("://") }) {
            throw wrong("\(uri) is no connection URI", "E.g. qemu:///system, qemu+ssh://root@kvm2/system")
        }
        return configuration
    }

    /// What holds for one guest.
    func guest(name: String, uuid: String) -> Guest {
        var found =
            guests?.first { $0.name == name || $0.name.lowercased() == uuid.lowercased() } ?? Guest(name: name)
        found.mode = found.mode ?? (found.insideAgent == nil ? mode ?? .agent : .pause)
        found.fallback = found.fallback ?? fallback ?? []
        return found
    }
}
