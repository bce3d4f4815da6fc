import PluginKit

/// How a cluster is brought to rest. docs/postgresql.md says what each one promises.
enum QuiesceMode: String, Codable {
    /// Between pg_backup_start and pg_backup_stop on one connection.
    case backup
    /// After a CHECKPOINT.
    case checkpoint
}

/// The plug-in's section of the agent's configuration. Everything may be left out.
struct PostgreSQLConfiguration: Decodable, Sendable {
    struct Cluster: Decodable, Sendable {
        /// Which cluster this is about: its data directory.
        var dataDirectory: String
        /// True leaves it alone: it is not found at all.
        var ignore: Bool?
        var mode: QuiesceMode?
        /// The role to connect as; the operating system's user of the cluster by default.
        var user: String?
        var database: String?
        /// A libpq connection string in place of the socket found in postmaster.pid.
        var conninfo: String?
        /// A file in .pgpass format.
        var passFile: String?
        var stopCommand: [String]?
        var startCommand: [String]?
        var stopTimeoutSeconds: Double?
        var startTimeoutSeconds: Double?
        /// On a restore, recover from the archive beyond the snapshot. Never for a plain restore: docs/postgresql.md.
        var restoreWithBackupLabel: Bool?
    }

    var mode: QuiesceMode?
    var user: String?
    var database: String?
    var clusters: [Cluster]?

    static func read(_ value: JSONValue?) throws(PluginFailure) -> PostgreSQLConfiguration {
        let configuration = try JSONValue.configuration(value, as: PostgreSQLConfiguration.self)
        for cluster in configuration.clusters ?? [] {
            for command in [cluster.stopCommand, cluster.startCommand].compactMap({ $0 })
            where command.first?.hasPrefix("/") != true {
                throw PluginFailure(
                    .badConfiguration, "A command of the cluster \(cluster.dataDirectory) has no absolute path",
                    hint: "Write it as a list: [\"/usr/bin/pg_ctlcluster\", \"15\", \"main\", \"stop\"]")
            }
        }
        return configuration
    }

    func cluster(_ dataDirectory: String) -> Cluster {
        let resolved = resolvedPath(dataDirectory) ?? dataDirectory
        var found =
            clusters?.first { (resolvedPath($0.dataDirectory) ?? $0.dataDirectory) == resolved }
            ?? Cluster(dataDirectory: dataDirectory)
        found.mode = found.mode ?? mode ?? .backup
        found.user = found.user ?? user
        found.database = found.database ?? database ?? "postgres"
        return found
    }
}
