import Glibc
import PluginKit

/// One cluster at rest, on one connection that is never shared and never replaced: the server binds the backup to it.
final class BackupSession: Sendable {
    /// Renamed in PostgreSQL 15, when the exclusive kind went away.
    struct Functions {
        var start: String
        var startSignature: String
        var stop: String
        var stopSignature: String

        init(version: Int) {
            if version >= 150_000 {
                start = "SELECT pg_catalog.pg_backup_start($1, fast => true)::text"
                startSignature = "pg_catalog.pg_backup_start(text,boolean)"
                stop = "pg_catalog.pg_backup_stop(wait_for_archive => false)"
                stopSignature = "pg_catalog.pg_backup_stop(boolean)"
            } else {
                start = "SELECT pg_catalog.pg_start_backup($1, true, false)::text"
                startSignature = "pg_catalog.pg_start_backup(text,boolean,boolean)"
                stop = "pg_catalog.pg_stop_backup(false, false)"
                stopSignature = "pg_catalog.pg_stop_backup(boolean,boolean)"
            }
        }
    }

    /// The part of the lease that getting there may take: the rest is for the cut and the release.
    private static let budget = 0.8
    /// How long the release may take. The connection is closed after it, which ends the backup too.
    private static let releaseSeconds = 10.0

    let resource: String
    let quiesceSeconds: Double
    private let quietSince = MonotonicInstant.now
    private let mode: QuiesceMode
    private let connection: Connection
    private let artifacts: [String: String]
    private let stopWatching: WakeDescriptor

    private init(
        _ resource: String, _ mode: QuiesceMode, _ connection: Connection, _ artifacts: [String: String],
        since began: MonotonicInstant, wakeup: WakeDescriptor
    ) {
        self.resource = resource
        self.mode = mode
        self.connection = connection
        self.artifacts = artifacts
        quiesceSeconds = MonotonicInstant.now.seconds(since: began)
        stopWatching = wakeup
    }

    /// Blocks; on a thread of its own.
    static func start(
        _ resource: PluginResource, _ configuration: PostgreSQLConfiguration, lease: HoldLease
    ) throws(PluginFailure) -> BackupSession {
        let began = MonotonicInstant.now
        if resource.details["outside"] != nil {
            throw PluginFailure(
                .refused, "A part of \(resource.label) lies on no volume of the snapshot",
                hint: "The preflight names it")
        }
        let cluster = try PostgreSQLPlugin.cluster(resource)
        let own = configuration.cluster(cluster.dataDirectory)
        let seconds = max(lease.remainingSeconds, 0) * budget
        let limit = Connection.Limit(deadline: began.advanced(bySeconds: seconds)) { !lease.isWanted }
        let wakeup = try WakeDescriptor()
        let connection = try Connection.open(cluster, own, limit: limit)
        do throws(PluginFailure) {
            try prepare(connection, seconds, limit)
            try checkServer(connection, cluster, limit)
            var artifacts = try describe(connection, limit)
            let mode = own.mode ?? .backup
            artifacts["mode"] = mode.rawValue
            switch mode {
            case .backup:
                let functions = Functions(version: connection.serverVersion)
                let rows = try connection.query(functions.start, ["stillpoint \(lease.holdID)"], limit: limit)
                artifacts["startLSN"] = rows.first?.first ?? nil
            case .checkpoint:
                try connection.query("CHECKPOINT", limit: limit)
                artifacts["startLSN"] = try position(connection, limit)
            }
            try lease.checkWanted()
            let session = BackupSession(
                resource.id, mode, connection, artifacts, since: began, wakeup: wakeup)
            OwnThread.start { session.watch(lease) }
            return session
        } catch {
            connection.close()
            throw error
        }
    }

    private static func prepare(
        _ connection: Connection, _ seconds: Double, _ limit: Connection.Limit
    ) throws(PluginFailure) {
        // A server that hangs gives up by itself before the lease ends. Nothing of a role's own settings, of objects it
        // may have in front of the catalog's, or of its idle limits may come between start and stop.
        try connection.query(
            "SELECT pg_catalog.set_config('statement_timeout', $1, false)",
            ["\(max(1, Int(seconds * 1_000)))"], limit: limit)
        try connection.query("SELECT pg_catalog.set_config('search_path', 'pg_catalog', false)", limit: limit)
        if connection.serverVersion >= 140_000 {
            try connection.query("SELECT set_config('idle_session_timeout', '0', false)", limit: limit)
        }
    }

    /// The backend at the other end is a child of this cluster's postmaster: a conninfo may lead elsewhere, and
    /// behind a connection pooler a backup would belong to a session that is not ours.
    static func checkServer(
        _ connection: Connection, _ cluster: Cluster, _ limit: Connection.Limit
    ) throws(PluginFailure) {
        let process = try connection.query("SELECT pg_catalog.pg_backend_pid()", limit: limit).first?.first ?? nil
        // The name before it stands in parentheses and may have spaces.
        let status = readText("/proc/\(process ?? "none")/stat") ?? ""
        let fields = status[(status.lastIndex(of: ")") ?? status.startIndex)...].split(separator: " " as Character)
        guard fields.count > 2, fields[2] == "\(cluster.processID)" else {
            throw PluginFailure(
                .refused, "The connection does not lead to the server of \(cluster.dataDirectory)",
                hint: "Correct the conninfo in the plug-in's configuration; a connection pooler cannot be used")
        }
    }

    private static func describe(
        _ connection: Connection, _ limit: Connection.Limit
    ) throws(PluginFailure) -> [String: String] {
        let rows = try connection.query(
            """
            SELECT current_setting('server_version'), pg_is_in_recovery()::text, pg_postmaster_start_time()::text
            """, limit: limit)
        guard let row = rows.first, row.count == 3 else {
            throw PluginFailure(.quiesceFailed, "PostgreSQL gave no settings")
        }
        var artifacts: [String: String] = [:]
        artifacts["serverVersion"] = row[0]
        artifacts["isStandby"] = row[1]
        artifacts["serverStartedAt"] = row[2]
        // Not every role may ask for these; nothing depends on them.
        let identity = try? connection.query(
            """
            SELECT (SELECT system_identifier FROM pg_control_system())::text,
                   (SELECT timeline_id FROM pg_control_checkpoint())::text
            """, limit: limit)
        artifacts["systemIdentifier"] = identity?.first?[0]
        artifacts["timeline"] = identity?.first?[1]
        return artifacts
    }

    private static func position(
        _ connection: Connection, _ limit: Connection.Limit
    ) throws(PluginFailure) -> String? {
        let rows = try connection.query(
            """
            SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text
            """, limit: limit)
        return rows.first?.first ?? nil
    }

    /// The server says nothing on an idle connection, unless it ends it.
    private func watch(_ lease: HoldLease) {
        while let socket = connection.socket {
            var polled = [
                pollfd(fd: socket, events: Int16(POLLIN), revents: 0),
                pollfd(fd: stopWatching.descriptor, events: Int16(POLLIN), revents: 0),
            ]
            _ = poll(&polled, 2, -1)
            if polled[1].revents != 0 { return }
            if polled[0].revents != 0, let loss = connection.lossAfterReading() {
                lease.reportLost(resource: resource, reason: "the connection to PostgreSQL was lost: \(loss)")
                return
            }
        }
    }

    /// Ends the backup without its result.
    func abandon() {
        stopWatching.wake()
        connection.close()
    }

    /// The backup belongs to the session: `pg_backup_stop` on this connection succeeds only if the backup that was
    /// started on it was never ended, and the server never restarted. That is the proof.
    func release() -> UnquiesceResult.Member {
        stopWatching.wake()
        defer { connection.close() }
        let quiet = MonotonicInstant.now.seconds(since: quietSince)
        let limit = Connection.Limit(deadline: .now.advanced(bySeconds: Self.releaseSeconds))
        var artifacts = artifacts
        do throws(PluginFailure) {
            switch mode {
            case .backup:
                let stop = Functions(version: connection.serverVersion).stop
                let rows = try connection.query(
                    "SELECT lsn::text, labelfile, spcmapfile FROM \(stop)", limit: limit)
                guard let row = rows.first, row.count == 3, let label = row[1] else {
                    throw PluginFailure(.holdLost, "PostgreSQL gave no backup label")
                }
                artifacts["stopLSN"] = row[0]
                artifacts["backup_label"] = label
                if let map = row[2], !map.isEmpty { artifacts["tablespace_map"] = map }
            case .checkpoint:
                artifacts["stopLSN"] = try Self.position(connection, limit)
            }
            return UnquiesceResult.Member(
                resource: resource, stillHeld: true, quietSeconds: quiet, artifacts: artifacts)
        } catch {
            return UnquiesceResult.Member(
                resource: resource, stillHeld: false, quietSeconds: quiet, failure: error.message)
        }
    }
}

/// Clusters at rest together.
struct BackupHold: PluginHold {
    private let sessions: [BackupSession]

    init(_ sessions: [BackupSession]) { self.sessions = sessions }

    var members: [QuiesceResult.Member] {
        sessions.map { QuiesceResult.Member(resource: $0.resource, quiesceSeconds: $0.quiesceSeconds) }
    }

    func release(_ reason: ReleaseReason) async -> [UnquiesceResult.Member] {
        await withTaskGroup(of: UnquiesceResult.Member.self) { group in
            for session in sessions { group.addTask { await OwnThread.run { session.release() } } }
            return await group.reduce(into: []) { $0.append($1) }
        }
    }
}
