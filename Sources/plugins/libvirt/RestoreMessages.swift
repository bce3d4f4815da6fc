import PluginKit

// What the node says to this plug-in, through the agent, to restore one guest: the request within `restore-resource`.
// Its other side are the types in Sources/API/Types/GuestRestore.swift.

/// One step of a restore.
struct RestoreCall: Codable, Sendable {
    enum Action: String, Codable, Sendable {
        /// Looks, and changes nothing.
        case survey
        /// Shuts the guest down, and says how it was before.
        case stop
        /// Brings files and definition back, and starts the guest.
        case apply
        /// Turns off what an unfinished restore has started.
        case halt
        /// Takes an `apply` back, and brings back what `stop` found.
        case undo
    }

    var action: Action
    /// 1 to 64 letters, digits and `-`: part of file names.
    var restoreID: String
    /// The guest's UUID at the time of the snapshot.
    var guest: String
    /// As they were kept with the snapshot; empty where none were.
    var artifacts: [String: String]
    /// For a guest beside the original.
    var beside: Beside?
    /// What happens to each disk that is restored, by its target (`vda`).
    var disks: [String: Disk]?
    /// The other disks of a guest beside the original are left out; in place they stay as they are.
    var sources: [Source]?
    /// Go on with the memory image.
    var memory: Memory?
    var start: Bool?
    /// What `stop` and `apply` answered, for `undo`.
    var state: [String: String]?

    struct Beside: Codable, Sendable {
        var name: String
        var uuid: String
    }

    struct Disk: Codable, Sendable {
        /// `keep` (the volume itself was reverted), `attach` (a clone, reached over iSCSI) or `copy` (out of a source).
        var way: String
        var export: Export?
        /// Of `sources`.
        var source: String?
        /// Within the source's file system.
        var path: String?
        /// Where the copy goes.
        var destination: String?
    }

    /// A file system that is read: a clone's.
    struct Source: Codable, Sendable {
        var name: String
        var export: Export
    }

    struct Export: Codable, Sendable {
        var portal: String
        var iqn: String
        var lun: Int
        var initiator: String
        var user: String?
        var secret: String?
    }

    struct Memory: Codable, Sendable {
        var source: String
        var path: String
    }
}

/// The answer to `survey`.
struct RestoreSurvey: Codable, Sendable, Equatable {
    struct Disk: Codable, Sendable, Equatable {
        var target: String
        /// `network`, `block`, `file`; nil for what lies on no volume.
        var way: String?
        var volumes: [String]
        /// For people: path, or target and LUN.
        var source: String
        var format: String?
        /// For `file`: the mount point, the path below it, and the whole path.
        var fileSystem: String?
        var relativePath: String?
        var path: String?
        /// A block device that is a whole volume, not a part of one or built on several.
        var isWhole: Bool
        var note: String?
    }

    struct Memory: Codable, Sendable, Equatable {
        var volumes: [String]
        var relativePath: String
        var path: String
    }

    var name: String
    var uuid: String
    var uri: String
    /// `running`, `paused`, `off`, `absent`, `other`.
    var state: String
    /// Another guest has the name that was asked for, or the name of the guest that is gone.
    var nameIsTaken: Bool
    /// Whether the definition is the snapshot's; else it is the guest's own of today.
    var hasKeptDefinition: Bool
    var disks: [Disk]
    var memory: Memory?
    var warnings: [String]
}

/// The answer to the other actions.
struct RestoreAnswer: Codable, Sendable, Equatable {
    /// One sentence for each thing done.
    var steps: [String]
    /// To be given back to `undo`.
    var state: [String: String]
}
