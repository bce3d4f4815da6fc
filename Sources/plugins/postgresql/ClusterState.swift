import PluginKit

/// How a cluster ran before a restore, kept between prepare and finish.
struct ClusterState: Codable, Sendable {
    struct Stopped: Codable, Sendable {
        var resource: String
        var dataDirectory: String
        /// False leaves it stopped afterwards too.
        var wasRunning: Bool
        var uid: UInt32
        /// The directory of `postgres` and `pg_ctl`.
        var programs: String
        /// The server's command line without its program, as postmaster.opts has it.
        var options: String
        /// Where its standard error went, when that was a file.
        var log: String?

        /// The options one by one: postmaster.opts has each in double quotes and escapes nothing.
        var optionList: [String] {
            options.split(separator: "\"", omittingEmptySubsequences: false).enumerated()
                .filter { $0.offset % 2 == 1 }.map { String($0.element) }
        }
    }

    var clusters: [Stopped]

    static func path(_ parameters: RestoreParameters) throws(PluginFailure) -> String {
        try RestoreNote.path(parameters, plugin: PostgreSQLPlugin.name)
    }

    static func read(_ path: String) throws(PluginFailure) -> ClusterState? {
        try RestoreNote.read(path, as: ClusterState.self, wayOut: "Start by hand")
    }

    func write(_ path: String) throws(PluginFailure) { try RestoreNote.write(self, to: path) }
}
