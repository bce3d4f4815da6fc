import PluginKit

/// What was mounted before a restore, kept between prepare and finish.
struct RestoreState: Codable, Sendable {
    struct Mount: Codable, Sendable {
        var mountPoint: String
        var type: String
        /// What of the file system was mounted.
        var root: String
        var options: [String]
        var superOptions: [String]
        /// The device that was mounted.
        var source: String
        /// The volume whose device that was, or whose partition; nil when something stood in between.
        var volume: String?
        var partition: Int?
        var resource: String
    }

    /// In the order of mounting.
    var mounts: [Mount]

    static func path(_ parameters: RestoreParameters) throws(PluginFailure) -> String {
        try RestoreNote.path(parameters, plugin: FilesystemPlugin.name)
    }

    static func read(_ path: String) throws(PluginFailure) -> RestoreState? {
        try RestoreNote.read(path, as: RestoreState.self, wayOut: "Mount by hand")
    }

    func write(_ path: String) throws(PluginFailure) { try RestoreNote.write(self, to: path) }
}
