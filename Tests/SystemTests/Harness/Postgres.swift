import Foundation

/// A private PostgreSQL in a directory of the test's choosing, reached only over a UNIX socket.
final class TestPostgres {
    let dataFolder: String
    let socketFolder: TemporaryFolder
    let port: Int
    private let bin: String

    init(mountPoint: String) throws {
        guard let bin = Components.postgresBin else { throw CommandFailed(description: "no PostgreSQL here") }
        self.bin = bin
        dataFolder = mountPoint + "/pgdata"
        socketFolder = try TemporaryFolder(prefix: "sp-pg")
        port = try freePort()
        try Shell.check(["chown", "postgres:postgres", socketFolder.path])
    }

    private func asPostgres(_ arguments: [String]) -> [String] {
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "env", "-C", "/"] + arguments
    }

    func create() throws {
        try Shell.check(["install", "-d", "-m", "0700", "-o", "postgres", "-g", "postgres", dataFolder])
        try Shell.check(
            asPostgres([bin + "/initdb", "-D", dataFolder, "-A", "trust", "--data-checksums", "--no-sync"]),
            timeoutSeconds: 120)
    }

    func start() throws {
        try Shell.check(
            asPostgres([
                bin + "/pg_ctl", "-D", dataFolder, "-w", "-t", "60", "-l", socketFolder.path + "/log", "-o",
                "-k \(socketFolder.path) -p \(port) -c listen_addresses= -c shared_buffers=32MB", "start",
            ]), timeoutSeconds: 90)
    }

    func stop(mode: String = "fast") {
        _ = try? Shell.run(
            asPostgres([bin + "/pg_ctl", "-D", dataFolder, "-w", "-t", "60", "-m", mode, "stop"]), timeoutSeconds: 90)
    }

    func remove() { socketFolder.remove() }

    @discardableResult
    func sql(_ text: String, database: String = "postgres", timeoutSeconds: Double = 30) throws -> String {
        try Shell.check(
            asPostgres([
                bin + "/psql", "-h", socketFolder.path, "-p", "\(port)", "-d", database, "-XAtq", "-v",
                "ON_ERROR_STOP=1", "-c",
                text,
            ]), timeoutSeconds: timeoutSeconds
        ).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    func amcheck() throws {
        try sql("CREATE EXTENSION IF NOT EXISTS amcheck")
        try Shell.check(
            asPostgres([bin + "/pg_amcheck", "-h", socketFolder.path, "-p", "\(port)", "postgres"]), timeoutSeconds: 120
        )
    }
}
