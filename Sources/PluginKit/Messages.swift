// The contract between an agent and a plug-in: one JSON object a line, requests on the plug-in's standard input,
// answers and events on its standard output. docs/plugins.md is the contract in words.

/// Bounds that both sides keep.
public enum PluginContract {
    /// The version of the contract that this code speaks; a plug-in gives the one it was written for in `describe`.
    public static let version = 1
    /// The longest line either side accepts, in bytes, without its newline.
    public static let maximumLineBytes = 1 << 20
    /// Requests a plug-in has unanswered at most; the next one gets the error `busy`.
    public static let maximumPendingRequests = 64
    /// The lease a quiesce or a renewal may ask for, in seconds.
    public static let leaseSeconds: ClosedRange<Double> = 0.1...600
}

public enum PluginMethod: String, Codable, Sendable, CaseIterable {
    case describe
    case discover
    case preflight
    case quiesce
    case renew
    case unquiesce
    case recover
    case prepareRestore = "prepare-restore"
    case finishRestore = "finish-restore"
    case restoreResource = "restore-resource"
    case watch
}

/// The layers in the order in which they are quiesced; released in reverse.
public enum PluginLayer: String, Codable, Sendable, CaseIterable {
    case application
    case fileSystem
    case machine
    /// A file system of the host with the disks of machines on it: they have to come to rest before it. The agent
    /// says which file systems these are; no plug-in does.
    case hostFileSystem
}

/// A block device of this host that is one of the storage node's volumes.
public struct PluginDevice: Codable, Sendable, Hashable {
    /// Name of the volume.
    public var volume: String
    /// 32 hexadecimal digits, lower case.
    public var naa: String
    /// E.g. `/dev/sdb`, `/dev/loop3`.
    public var path: String

    public init(volume: String, naa: String, path: String) {
        self.volume = volume
        self.naa = naa
        self.path = path
    }
}

/// A volume of the storage node, whether or not this host has it as a device.
public struct PluginVolume: Codable, Sendable, Hashable {
    /// One way to reach it over iSCSI.
    public struct Export: Codable, Sendable, Hashable {
        /// The target's iSCSI name.
        public var target: String
        public var lun: Int

        public init(target: String, lun: Int) {
            self.target = target
            self.lun = lun
        }
    }

    public var name: String
    /// 32 hexadecimal digits, lower case.
    public var naa: String
    public var exports: [Export]

    public init(name: String, naa: String, exports: [Export]) {
        self.name = name
        self.naa = naa
        self.exports = exports
    }
}

/// How much a quiesce makes of the data beneath it.
public enum PluginLevel: String, Codable, Sendable, CaseIterable {
    case crash
    case fileSystem
    case application
}

/// Something a plug-in can bring to rest.
public struct PluginResource: Codable, Sendable, Hashable {
    /// Unique within its plug-in on its host, and stable.
    public var id: String
    /// For people, e.g. `ext4 on /srv/db`.
    public var label: String
    public var layer: PluginLayer
    /// Names of the volumes it lies on.
    public var volumes: [String]
    /// What the plug-in wants back in later requests, and what higher layers may look at.
    public var details: [String: String]
    /// What its quiesce makes of the data on its volumes, where its layer alone does not say: of a machine whose file
    /// systems are frozen from within, for one. The volume is no better than this; nil leaves that to the others.
    public var level: PluginLevel?

    public init(
        id: String, label: String, layer: PluginLayer, volumes: [String], details: [String: String] = [:],
        level: PluginLevel? = nil
    ) {
        self.level = level
        self.id = id
        self.label = label
        self.layer = layer
        self.volumes = volumes
        self.details = details
    }
}

public struct NoParameters: Codable, Sendable {
    public init() {}
}

public struct DescribeResult: Codable, Sendable, Equatable {
    public var name: String
    public var version: String
    /// `PluginContract.version` it was written for.
    public var contract: Int
    /// The layer its resources are in unless a resource says otherwise.
    public var layer: PluginLayer
    /// True when it has the method `watch`.
    public var watches: Bool?

    public init(
        name: String, version: String, contract: Int = PluginContract.version, layer: PluginLayer,
        watches: Bool? = nil
    ) {
        self.watches = watches
        self.name = name
        self.version = version
        self.contract = contract
        self.layer = layer
    }
}

public struct DiscoverParameters: Codable, Sendable {
    public var devices: [PluginDevice]
    /// What plug-ins of the layers below found: file systems come before applications.
    public var resources: [PluginResource]
    /// The plug-in's own section of the agent's configuration.
    public var config: JSONValue?
    /// All volumes that are asked about, with the targets they are exported by: for what reaches them past the
    /// kernel. Nil from an agent that does not know.
    public var volumes: [PluginVolume]?

    public init(
        devices: [PluginDevice], resources: [PluginResource] = [], config: JSONValue? = nil,
        volumes: [PluginVolume]? = nil
    ) {
        self.devices = devices
        self.resources = resources
        self.config = config
        self.volumes = volumes
    }
}

public struct DiscoverResult: Codable, Sendable {
    public var resources: [PluginResource]
    /// What a person should know. May be left out.
    public var warnings: [String]?
    /// What could not be looked at, though something on the volumes may hang on it. May be left out.
    public var unseen: [PluginUnseen]?

    public init(resources: [PluginResource], warnings: [String]? = nil, unseen: [PluginUnseen]? = nil) {
        self.resources = resources
        self.warnings = warnings
        self.unseen = unseen
    }
}

/// Something that a plug-in should have looked at and could not: no snapshot may count on nothing being there.
public struct PluginUnseen: Codable, Sendable, Equatable {
    /// What could not be looked at, and why.
    public var reason: String
    /// What to do about it.
    public var hint: String?
    /// The volumes that it may lie on. Nil where that is not known: then it is those that the host is known to use.
    public var volumes: [String]?

    public init(reason: String, hint: String? = nil, volumes: [String]? = nil) {
        self.reason = reason
        self.hint = hint
        self.volumes = volumes
    }
}

/// Of `watch`: from its answer until the end of its input the plug-in sends `changed` whenever `discover` would give
/// another answer.
public struct WatchParameters: Codable, Sendable {
    public var config: JSONValue?

    public init(config: JSONValue? = nil) { self.config = config }
}

public struct PreflightParameters: Codable, Sendable {
    public var resources: [PluginResource]
    public var config: JSONValue?
    /// Where the plug-in may keep what must survive it; on a tmpfs.
    public var stateDirectory: String
    /// Files and directories of the agent that must stay writable: never freeze what they lie on.
    public var protectedPaths: [String]?

    public init(
        resources: [PluginResource], config: JSONValue? = nil, stateDirectory: String, protectedPaths: [String]? = nil
    ) {
        self.resources = resources
        self.config = config
        self.stateDirectory = stateDirectory
        self.protectedPaths = protectedPaths
    }
}

public struct PluginFinding: Codable, Sendable, Equatable {
    public enum Severity: String, Codable, Sendable { case note, warning, error }

    /// `error` means that a quiesce of this resource would fail or prove nothing.
    public var severity: Severity
    public var resource: String?
    public var message: String
    public var hint: String?

    public init(_ severity: Severity, resource: String? = nil, _ message: String, hint: String? = nil) {
        self.severity = severity
        self.resource = resource
        self.message = message
        self.hint = hint
    }
}

public struct PreflightResult: Codable, Sendable {
    public var findings: [PluginFinding]

    public init(findings: [PluginFinding]) { self.findings = findings }
}

public struct QuiesceParameters: Codable, Sendable {
    public var holdID: String
    public var resources: [PluginResource]
    /// From the moment the plug-in reads the request, on its own monotonic clock.
    public var leaseSeconds: Double
    public var config: JSONValue?
    public var stateDirectory: String
    public var protectedPaths: [String]?
    /// True where the snapshot's policy allows a lower level: then a plug-in may hold a resource in a lesser way, or
    /// not at all, and says so at the release.
    public var allowsLower: Bool?

    public init(
        holdID: String, resources: [PluginResource], leaseSeconds: Double, config: JSONValue? = nil,
        stateDirectory: String, protectedPaths: [String]? = nil, allowsLower: Bool? = nil
    ) {
        self.allowsLower = allowsLower
        self.holdID = holdID
        self.resources = resources
        self.leaseSeconds = leaseSeconds
        self.config = config
        self.stateDirectory = stateDirectory
        self.protectedPaths = protectedPaths
    }
}

/// All members are held; a plug-in that cannot hold one of them releases the others and answers with an error.
public struct QuiesceResult: Codable, Sendable {
    public struct Member: Codable, Sendable, Equatable {
        public var resource: String
        /// How long it took to bring it to rest.
        public var quiesceSeconds: Double

        public init(resource: String, quiesceSeconds: Double) {
            self.resource = resource
            self.quiesceSeconds = quiesceSeconds
        }
    }

    public var holdID: String
    public var members: [Member]

    public init(holdID: String, members: [Member]) {
        self.holdID = holdID
        self.members = members
    }
}

public struct RenewParameters: Codable, Sendable {
    public var holdID: String
    public var leaseSeconds: Double

    public init(holdID: String, leaseSeconds: Double) {
        self.holdID = holdID
        self.leaseSeconds = leaseSeconds
    }
}

public struct RenewResult: Codable, Sendable {
    public var holdID: String
    public var remainingLeaseSeconds: Double

    public init(holdID: String, remainingLeaseSeconds: Double) {
        self.holdID = holdID
        self.remainingLeaseSeconds = remainingLeaseSeconds
    }
}

public struct UnquiesceParameters: Codable, Sendable {
    public var holdID: String

    public init(holdID: String) { self.holdID = holdID }
}

public struct UnquiesceResult: Codable, Sendable, Equatable {
    public struct Member: Codable, Sendable, Equatable {
        public var resource: String
        /// True only if the plug-in proved at this release that the hold was never lost.
        public var stillHeld: Bool
        /// From quiesced to released, on the plug-in's monotonic clock.
        public var quietSeconds: Double
        /// Why it was not held, or could not be released.
        public var failure: String?
        /// What a restore of the snapshot may need, e.g. PostgreSQL's `backup_label`.
        public var artifacts: [String: String]?
        /// What the quiesce made of the data, where that is less than the resource's `level`.
        public var level: PluginLevel?
        /// True when it could not be released. `PluginMain` then answers with the error `notReleased`, so that the
        /// agent has it recovered.
        public var mayBeQuiesced: Bool?

        public init(
            resource: String, stillHeld: Bool, quietSeconds: Double, failure: String? = nil,
            artifacts: [String: String]? = nil, mayBeQuiesced: Bool? = nil
        ) {
            self.mayBeQuiesced = mayBeQuiesced
            self.resource = resource
            self.stillHeld = stillHeld
            self.quietSeconds = quietSeconds
            self.failure = failure
            self.artifacts = artifacts
        }
    }

    public var holdID: String
    public var members: [Member]

    public init(holdID: String, members: [Member]) {
        self.holdID = holdID
        self.members = members
    }
}

public struct RecoverParameters: Codable, Sendable {
    public var stateDirectory: String
    public var config: JSONValue?

    public init(stateDirectory: String, config: JSONValue? = nil) {
        self.stateDirectory = stateDirectory
        self.config = config
    }
}

public struct RecoverResult: Codable, Sendable {
    /// Resources that a dead plug-in had left quiesced and that are released now.
    public var released: [String]
    /// What could not be released, and what to do about it.
    public var failures: [String]

    public init(released: [String], failures: [String] = []) {
        self.released = released
        self.failures = failures
    }
}

/// Of `prepare-restore` and `finish-restore`.
public struct RestoreParameters: Codable, Sendable {
    public var restoreID: String
    /// What lies on the volumes, as `discover` gave it before the restore. For finish, the plug-in remembers what it
    /// prepared and these may be empty.
    public var resources: [PluginResource]
    /// The volumes' devices now: their paths may have changed between prepare and finish.
    public var devices: [PluginDevice]
    /// The snapshot's artifacts by resource id, for finish.
    public var artifacts: [String: [String: String]]?
    public var config: JSONValue?
    public var stateDirectory: String
    public var protectedPaths: [String]?

    public init(
        restoreID: String, resources: [PluginResource], devices: [PluginDevice],
        artifacts: [String: [String: String]]? = nil, config: JSONValue? = nil, stateDirectory: String,
        protectedPaths: [String]? = nil
    ) {
        self.restoreID = restoreID
        self.resources = resources
        self.devices = devices
        self.artifacts = artifacts
        self.config = config
        self.stateDirectory = stateDirectory
        self.protectedPaths = protectedPaths
    }
}

/// Of `restore-resource`: one resource of a snapshot is restored, and what else lies on its volumes is left alone.
public struct ResourceRestoreParameters: Codable, Sendable {
    /// What the node asks for, in a form of the plug-in's own.
    public var request: JSONValue
    /// The volumes' devices, the resources of the layers below, and the volumes: as for `discover`.
    public var devices: [PluginDevice]
    public var resources: [PluginResource]
    public var volumes: [PluginVolume]
    public var config: JSONValue?
    public var stateDirectory: String

    public init(
        request: JSONValue, devices: [PluginDevice], resources: [PluginResource], volumes: [PluginVolume],
        config: JSONValue?, stateDirectory: String
    ) {
        self.request = request
        self.devices = devices
        self.resources = resources
        self.volumes = volumes
        self.config = config
        self.stateDirectory = stateDirectory
    }
}

public struct RestoreResult: Codable, Sendable {
    /// One sentence for each thing done.
    public var steps: [String]

    public init(steps: [String]) { self.steps = steps }
}

/// What a plug-in says without being asked.
public struct PluginEvent: Codable, Sendable, Equatable {
    public enum Kind: String, Codable, Sendable {
        /// A resource is no longer held; `holdID`, `resource`, `reason`.
        case holdLost
        /// The plug-in released a hold by itself, e.g. because the lease ended; `holdID`, `reason`.
        case released
        /// After `watch`: something is there, gone or otherwise; `reason`.
        case changed
        /// A line for the log; `level` (`debug`, `info`, `warning`, `error`) and `message`.
        case log
    }

    public var event: Kind
    public var holdID: String?
    public var resource: String?
    public var reason: String?
    public var level: String?
    public var message: String?

    public init(
        _ event: Kind, holdID: String? = nil, resource: String? = nil, reason: String? = nil, level: String? = nil,
        message: String? = nil
    ) {
        self.event = event
        self.holdID = holdID
        self.resource = resource
        self.reason = reason
        self.level = level
        self.message = message
    }
}
