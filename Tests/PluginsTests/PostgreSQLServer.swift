import Foundation
import PluginKit

/// A real server on a loop file system, run as the user `postgres`; stopped when it goes.
final class PostgreSQLServer: Sendable {
    static let programs: String? =
        (9...30).reversed().map { "/usr/lib/postgresql/\($0)/bin" }.first {
            FileManager.default.isExecutableFile(atPath: $0 + "/initdb")
        }
    static let isHere =
        Machine.hasLoopFileSystems && programs != nil && Machine.has("setpriv") && getpwnam("postgres") != nil

    let files: LoopFileSystem
    let dataDirectory: String
    let sockets: String
    let port = 5_439

    /// - Parameter walDirectory: elsewhere than in the data directory.
    init(files: LoopFileSystem, walDirectory: String? = nil) throws {
        self.files = files
        dataDirectory = files.mountPoint + "/data"
        sockets = files.directory + "/s"
        let wal = walDirectory.map { "--waldir=\($0)" } ?? ""
        try shell(
            """
            chmod 755 \(files.directory); mkdir \(dataDirectory) \(sockets) \(walDirectory ?? "")
            chown postgres \(dataDirectory) \(sockets) \(walDirectory ?? "")
            \(Self.asPostgres) \(Self.programs!)/initdb -D \(dataDirectory) -A peer --no-sync \(wal) >/dev/null
            sync -f \(dataDirectory)
            """)
        try start()
    }

    deinit { _ = try? stop() }

    static let asPostgres = "setpriv --reuid=postgres --regid=postgres --init-groups --"

    func start(in directory: String? = nil) throws {
        let options = "-c listen_addresses= -c unix_socket_directories=\(sockets) -c port=\(port)"
        let directory = directory ?? dataDirectory
        try shell(
            """
            cd /; \(Self.asPostgres) \(Self.programs!)/pg_ctl start -w -t 240 -D \(directory) -o '\(options)' \
                -l \(directory)/log
            """)
    }

    func stop(in directory: String? = nil) throws {
        try shell(
            """
            cd /; \(Self.asPostgres) \(Self.programs!)/pg_ctl stop -w -t 240 -m immediate \
                -D \(directory ?? dataDirectory)
            """)
    }

    /// The one column of the one row of a query, or an error.
    @discardableResult
    func sql(_ statement: String) throws -> String {
        try shell(
            """
            cd /; \(Self.asPostgres) \(Self.programs!)/psql -X -q -A -t -v ON_ERROR_STOP=1 -h \(sockets) -p \(port) \
                -d postgres <<'END'
            \(statement)
            END
            """)
    }

    /// Sessions of the plug-in in the server.
    func holds() throws -> Int {
        Int(try sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stillpoint'")) ?? -1
    }

    var resourceID: String { "cluster:\(dataDirectory)" }

    /// Found as the agent finds it: the file systems first.
    func discover(_ plugin: RunningPlugin, config: JSONValue? = nil) async throws -> PluginResource? {
        let found = try await plugin.process.discover(
            DiscoverParameters(devices: [files.device], resources: [try await files.resource()], config: config))
        return found.resources.first { $0.id == resourceID }
    }
}
