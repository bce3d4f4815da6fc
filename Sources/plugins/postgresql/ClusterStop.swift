import Glibc
import PluginKit

/// Stops the clusters on the volumes, and remembers how they ran.
struct ClusterStop {
    private static let defaultTimeoutSeconds = 120.0

    private let parameters: RestoreParameters
    private let configuration: PostgreSQLConfiguration

    init(_ parameters: RestoreParameters, _ configuration: PostgreSQLConfiguration) {
        self.parameters = parameters
        self.configuration = configuration
    }

    func run() throws(PluginFailure) -> RestoreResult {
        let path = try ClusterState.path(parameters)
        var state = try ClusterState.read(path) ?? ClusterState(clusters: [])
        var steps: [String] = []
        for resource in parameters.resources where resource.id.hasPrefix(PostgreSQLPlugin.prefix) {
            let directory = try PostgreSQLPlugin.dataDirectory(resource)
            guard let cluster = Cluster.running(in: directory) else {
                steps.append("PostgreSQL in \(directory) does not run")
                continue
            }
            let log = linkTarget("/proc/\(cluster.processID)/fd/2")
            state.clusters.removeAll { $0.resource == resource.id }
            state.clusters.append(
                ClusterState.Stopped(
                    resource: resource.id, dataDirectory: cluster.dataDirectory, wasRunning: true,
                    uid: cluster.owner.uid, programs: cluster.programs, options: try options(cluster),
                    log: log.flatMap { fileStatus($0).map { $0.st_mode & S_IFMT == S_IFREG } == true ? $0 : nil }))
            // Before it is stopped: whatever happens now, a finish can start it again.
            try state.write(path)
            steps.append(try stop(cluster))
        }
        return RestoreResult(steps: steps)
    }

    private func stop(_ cluster: Cluster) throws(PluginFailure) -> String {
        let own = configuration.cluster(cluster.dataDirectory)
        let timeout = own.stopTimeoutSeconds ?? Self.defaultTimeoutSeconds
        let command: Command
        if let arguments = own.stopCommand {
            command = Command(arguments, timeoutSeconds: timeout)
        } else {
            command = .pgCtl(
                ["stop", "-D", cluster.dataDirectory, "-m", "fast", "-w", "-t", "\(Int(timeout))"],
                programs: cluster.programs, owner: cluster.owner, timeoutSeconds: timeout + 5)
        }
        let outcome = try command.run()
        guard outcome.isSuccess, Cluster.running(in: cluster.dataDirectory) == nil else {
            throw PluginFailure(
                .restoreFailed, "\(cluster.name) did not stop: \(command.arguments[0]) \(outcome.explanation)",
                hint: "End long transactions and backups in it, then try again")
        }
        var step = "Stopped \(cluster.name)"
        if own.stopCommand == nil, let unit = Self.systemdUnit(cluster.processID) {
            step += ", which systemd ran as \(unit): set stopCommand and startCommand to keep it there"
        }
        return step
    }

    /// The service the process belongs to, e.g. `postgresql@15-main.service`.
    private static func systemdUnit(_ process: Int32) -> String? {
        (readText("/proc/\(process)/cgroup") ?? "").split { $0 == "/" || $0 == "\n" }
            .first { $0.hasSuffix(".service") && $0.contains("postgres") }.map { String($0) }
    }

    /// What follows the program in postmaster.opts: each argument in double quotes, as the server wrote them.
    private func options(_ cluster: Cluster) throws(PluginFailure) -> String {
        let line = (readText(cluster.dataDirectory + "/postmaster.opts") ?? "").trimmedOfSpace
        guard line.hasPrefix(cluster.executable) || line.contains("/postgres"), !line.contains("\n") else {
            throw PluginFailure(
                .badState, "\(cluster.dataDirectory)/postmaster.opts does not tell how the server was started",
                hint: "Set stopCommand and startCommand in the plug-in's configuration")
        }
        guard let quote = line.firstIndex(of: "\"") else { return "" }
        let options = line[quote...]
        // pg_ctl gives it to a shell, as it does itself for a restart. It runs as the owner, who could write the file.
        guard !options.contains("$"), !options.contains("`"), !options.contains("\\") else {
            throw PluginFailure(
                .badState, "The server's options need a shell to be understood: \(options)",
                hint: "Set stopCommand and startCommand in the plug-in's configuration")
        }
        return String(options)
    }
}

extension Cluster {
    var programs: String {
        String(executable[..<(executable.lastIndex(of: "/") ?? executable.startIndex)])
    }
}

extension Command {
    /// pg_ctl as the cluster's user; as ourselves when we are not root.
    static func pgCtl(
        _ arguments: [String], programs: String, owner: UserIdentity, timeoutSeconds: Double
    ) -> Command {
        let environment = [
            "PATH": "\(programs):/usr/bin:/bin", "HOME": owner.home, "USER": owner.name, "LANG": "C.UTF-8",
        ]
        return Command(
            ["\(programs)/pg_ctl"] + arguments, environment: environment, user: geteuid() == 0 ? owner : nil,
            timeoutSeconds: timeoutSeconds)
    }
}
