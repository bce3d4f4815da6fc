import Glibc
import PluginKit

/// Starts what `ClusterStop` stopped, on the restored files.
struct ClusterStart {
    private static let defaultTimeoutSeconds = 600.0

    private let parameters: RestoreParameters
    private let configuration: PostgreSQLConfiguration

    init(_ parameters: RestoreParameters, _ configuration: PostgreSQLConfiguration) {
        self.parameters = parameters
        self.configuration = configuration
    }

    func run() throws(PluginFailure) -> RestoreResult {
        let path = try ClusterState.path(parameters)
        guard let state = try ClusterState.read(path) else { return RestoreResult(steps: []) }
        var steps: [String] = []
        for stopped in state.clusters where stopped.wasRunning { steps += try start(stopped) }
        unlink(path)
        return RestoreResult(steps: steps)
    }

    private func start(_ stopped: ClusterState.Stopped) throws(PluginFailure) -> [String] {
        let directory = stopped.dataDirectory
        if Cluster.running(in: directory) != nil { return ["PostgreSQL in \(directory) runs already"] }
        guard fileStatus(directory + "/PG_VERSION") != nil else {
            throw PluginFailure(
                .restoreFailed, "\(directory) has no PostgreSQL cluster after the restore",
                hint: "Is its file system mounted? Repeat the finish when it is")
        }
        let owner = try UserIdentity(uid: stopped.uid)
        let own = configuration.cluster(directory)
        var steps: [String] = []
        removeStaleLock(directory)
        if own.restoreWithBackupLabel == true { steps.append(try writeLabel(stopped, owner)) }
        let timeout = own.startTimeoutSeconds ?? Self.defaultTimeoutSeconds
        let command = startCommand(stopped, own, owner, timeout)
        let outcome = try command.run()
        guard outcome.isSuccess, Cluster.running(in: directory) != nil else {
            throw PluginFailure(
                .restoreFailed,
                "PostgreSQL in \(directory) did not start: \(command.arguments[0]) "
                    + outcome.explanation,
                hint: stopped.log.map { "Its log is \($0)" } ?? "Look at its log")
        }
        let how = own.restoreWithBackupLabel == true ? "recovers from its archive" : "recovered from its own WAL"
        return steps + ["Started PostgreSQL in \(directory), which \(how)"]
    }

    private func startCommand(
        _ stopped: ClusterState.Stopped, _ own: PostgreSQLConfiguration.Cluster, _ owner: UserIdentity,
        _ timeout: Double
    ) -> Command {
        if let arguments = own.startCommand { return Command(arguments, timeoutSeconds: timeout) }
        var arguments = [
            "start", "-D", stopped.dataDirectory, "-w", "-t", "\(Int(timeout))", "-l", stopped.log ?? "/dev/null",
        ]
        if !stopped.options.isEmpty { arguments += ["-o", stopped.options] }
        return .pgCtl(arguments, programs: stopped.programs, owner: owner, timeoutSeconds: timeout + 5)
    }

    /// The cut was made while the server ran, so its lock file came back with it. No server runs in the directory:
    /// that was looked at. Left there it could name a process that is by now somebody else's.
    private func removeStaleLock(_ directory: String) { unlink(directory + "/postmaster.pid") }

    /// For a recovery beyond the snapshot from an archive; see docs/postgresql.md for when that is wrong.
    private func writeLabel(
        _ stopped: ClusterState.Stopped, _ owner: UserIdentity
    ) throws(PluginFailure) -> String {
        let artifacts = parameters.artifacts?[stopped.resource] ?? [:]
        guard let label = artifacts["backup_label"] else {
            throw PluginFailure(
                .restoreFailed, "The snapshot has no backup_label for \(stopped.dataDirectory)",
                hint: "It was not taken in the mode backup: set restoreWithBackupLabel to false")
        }
        let question = Command(
            ["\(stopped.programs)/postgres"] + stopped.optionList + [
                "-D", stopped.dataDirectory, "-C", "restore_command",
            ],
            user: geteuid() == 0 ? owner : nil, timeoutSeconds: 30)
        let answer = try question.run()
        guard answer.isSuccess, !answer.output.trimmedOfSpace.isEmpty else {
            throw PluginFailure(
                .restoreFailed, "restoreWithBackupLabel is set, but \(stopped.dataDirectory) has no restore_command",
                hint: "Without an archive PostgreSQL cannot start from a backup label: set it to false")
        }
        let directory = stopped.dataDirectory
        try writeFile(directory + "/backup_label", Array(label.utf8), owner: geteuid() == 0 ? owner : nil)
        if let map = artifacts["tablespace_map"] {
            try writeFile(directory + "/tablespace_map", Array(map.utf8), owner: geteuid() == 0 ? owner : nil)
        }
        try writeFile(directory + "/recovery.signal", [], owner: geteuid() == 0 ? owner : nil)
        return "Wrote backup_label and recovery.signal into \(directory)"
    }
}
