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

    func create(_ options: String...) throws {
        try Shell.check(["install", "-d", "-m", "0700", "-o", "postgres", "-g", "postgres", dataFolder])
        try Shell.check(
            asPostgres(
                [bin + "/initdb", "-D", dataFolder, "-A", "trust", "--data-checksums", "--no-sync"] + options),
            timeoutSeconds: 240)
    }

    func start() throws {
        let result = try Shell.run(
            asPostgres([
                bin + "/pg_ctl", "-D", dataFolder, "-w", "-t", "180", "-l", socketFolder.path + "/log", "-o",
                "-k \(socketFolder.path) -p \(port) -c listen_addresses= -c shared_buffers=32MB", "start",
            ]), timeoutSeconds: 240)
        guard result.status == 0 else {
            let log = (try? String(contentsOfFile: socketFolder.path + "/log", encoding: .utf8)) ?? ""
            throw CommandFailed(description: "\(result)\n\(log.suffix(1500))")
        }
    }

    func stop(mode: String = "fast") {
        _ = try? Shell.run(
            asPostgres([bin + "/pg_ctl", "-D", dataFolder, "-w", "-t", "180", "-m", mode, "stop"]), timeoutSeconds: 240)
    }

    func remove() { socketFolder.remove() }

    @discardableResult
    func sql(_ text: String, database: String = "postgres", timeoutSeconds: Double = 180) throws -> String {
        try Shell.check(
            asPostgres([
                bin + "/psql", "-h", socketFolder.path, "-p", "\(port)", "-d", database, "-XAtq", "-v",
                "ON_ERROR_STOP=1", "-c",
                text,
            ]), timeoutSeconds: timeoutSeconds
        ).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    func pgbench(_ arguments: String...) throws {
        try Shell.check(
            asPostgres([bin + "/pgbench", "-h", socketFolder.path, "-p", "\(port)"] + arguments + ["postgres"]),
            timeoutSeconds: 120)
    }

    func amcheck() throws {
        try sql("CREATE EXTENSION IF NOT EXISTS amcheck")
        try Shell.check(
            asPostgres([bin + "/pg_amcheck", "-h", socketFolder.path, "-p", "\(port)", "postgres"]), timeoutSeconds: 240
        )
    }

    /// Every page of a cluster that is stopped against its checksum.
    func checkChecksums() throws {
        try Shell.check(asPostgres([bin + "/pg_checksums", "--check", "-D", dataFolder]))
    }

    // MARK: Load

    func makeBench() throws {
        try Shell.check(
            asPostgres([bin + "/pgbench", "-h", socketFolder.path, "-p", "\(port)", "-i", "-q", "postgres"]))
    }

    /// A `pgbench` that goes on until it is killed.
    func startBench() throws -> ChildProcess {
        try Shell.start(
            asPostgres([
                bin + "/pgbench", "-h", socketFolder.path, "-p", "\(port)", "-n", "-c", "3", "-T", "3600", "postgres",
            ]), outputPath: socketFolder.path + "/pgbench.out")
    }

    /// Transactions of the load that were committed, and whether the four sums that it keeps equal are equal.
    func bench() throws -> (transactions: Int, isWhole: Bool) {
        let columns = try sql(
            """
            SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
                   (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),
                   (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
            """
        ).split(separator: "|")
        return (columns.first.flatMap { Int($0) } ?? 0, columns.count == 5 && Set(columns.dropFirst()).count == 1)
    }

    /// For a copy of the files of a server that ran.
    func forgetServer() throws { try Shell.check(["rm", "-f", dataFolder + "/postmaster.pid"]) }
}
