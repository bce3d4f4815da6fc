import PluginKit

/// What would go wrong, asked beforehand.
enum Inspection {
    private static let limitSeconds = 10.0
    /// From here on the backup functions and directories have the names that are used here (until 15 renamed some).
    static let oldestVersion = 100_000

    static func findings(_ resource: PluginResource, _ configuration: PostgreSQLConfiguration) -> [PluginFinding] {
        var findings: [PluginFinding] = []
        func add(_ severity: PluginFinding.Severity, _ message: String, hint: String? = nil) {
            findings.append(PluginFinding(severity, resource: resource.id, message, hint: hint))
        }
        if let outside = resource.details["outside"] {
            let list = outside.split(separator: "\n").joined(separator: ", ")
            add(
                .error, "A part of the cluster lies on no volume of the snapshot: \(list)",
                hint: "One cut must cover data, WAL and tablespaces: move it to a volume, or add the volume")
        }
        do throws(PluginFailure) {
            let cluster = try PostgreSQLPlugin.cluster(resource)
            let own = configuration.cluster(cluster.dataDirectory)
            let limit = Connection.Limit(deadline: .now.advanced(bySeconds: limitSeconds))
            let connection = try Connection.open(cluster, own, limit: limit)
            defer { connection.close() }
            try BackupSession.checkServer(connection, cluster, limit)
            guard connection.serverVersion >= oldestVersion else {
                add(.error, "PostgreSQL \(connection.serverVersion / 10_000) is too old", hint: "10 is the oldest")
                return findings
            }
            let settings =
                try connection.query(
                    """
                    SELECT current_setting('wal_level'), current_setting('fsync'), pg_is_in_recovery(),
                           (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
                    """, limit: limit
                ).first ?? []
            guard settings.count == 4 else { throw PluginFailure(.quiesceFailed, "PostgreSQL gave no settings") }
            if settings[1] == "off" {
                add(.warning, "fsync is off: after a crash of the host the database may be lost")
            }
            if settings[2] == "t" { add(.note, "The server is a standby") }
            let isSuperuser = settings[3] == "t"
            switch own.mode ?? .backup {
            case .backup:
                if settings[0] == "minimal" {
                    add(
                        .error, "wal_level is minimal: PostgreSQL starts no backup",
                        hint: "Set wal_level to replica, or the mode to checkpoint")
                }
                if try !mayBackUp(connection, limit) {
                    add(
                        .error, "The role may not start a backup",
                        hint: "Connect as a superuser, or GRANT EXECUTE on the backup functions to the role")
                }
            case .checkpoint:
                if !isSuperuser, try !isCheckpointer(connection, limit) {
                    add(
                        .error, "The role may not run CHECKPOINT",
                        hint: "Connect as a superuser, or from PostgreSQL 15 on: GRANT pg_checkpoint TO the role")
                }
            }
        } catch {
            add(.error, error.message, hint: error.hint)
        }
        return findings
    }

    private static func mayBackUp(
        _ connection: Connection, _ limit: Connection.Limit
    ) throws(PluginFailure) -> Bool {
        let names = BackupSession.Functions(version: connection.serverVersion)
        let rows = try connection.query(
            "SELECT has_function_privilege($1, 'execute') AND has_function_privilege($2, 'execute')",
            [names.startSignature, names.stopSignature], limit: limit)
        return rows.first?.first == "t"
    }

    private static func isCheckpointer(
        _ connection: Connection, _ limit: Connection.Limit
    ) throws(PluginFailure) -> Bool {
        guard connection.serverVersion >= 150_000 else { return false }
        return try connection.query("SELECT pg_has_role('pg_checkpoint', 'usage')", limit: limit).first?.first == "t"
    }
}
