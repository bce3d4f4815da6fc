import PluginKit

/// Brings PostgreSQL clusters to rest on one connection each.
struct PostgreSQLPlugin: Plugin {
    static let name = "postgresql"
    static let prefix = "cluster:"

    let identity = DescribeResult(name: name, version: "1.0", layer: .application)

    func discover(_ parameters: DiscoverParameters) async throws(PluginFailure) -> DiscoverResult {
        let configuration = try PostgreSQLConfiguration.read(parameters.config)
        return await OwnThread.run { Self.discover(parameters, configuration) }
    }

    private static func discover(
        _ parameters: DiscoverParameters, _ configuration: PostgreSQLConfiguration
    ) -> DiscoverResult {
        var (clusters, warnings) = Cluster.running()
        let mounts = MountTable.current()
        clusters.removeAll { configuration.cluster($0.dataDirectory).ignore == true }
        var resources: [PluginResource] = []
        for cluster in clusters.sorted(by: { $0.dataDirectory < $1.dataDirectory }) {
            let placement = Placement(cluster, fileSystems: parameters.resources, mounts: mounts)
            guard !placement.volumes.isEmpty else { continue }
            var details = [
                "dataDirectory": cluster.dataDirectory, "port": "\(cluster.port)",
                "mode": (configuration.cluster(cluster.dataDirectory).mode ?? .backup).rawValue,
                "mountPoints": placement.mountPoints.sorted().joined(separator: "\n"),
            ]
            details["version"] = readText(cluster.dataDirectory + "/PG_VERSION")?.trimmedOfSpace
            details["socketDirectory"] = cluster.socketDirectory
            if !placement.outside.isEmpty { details["outside"] = placement.outside.joined(separator: "\n") }
            resources.append(
                PluginResource(
                    id: prefix + cluster.dataDirectory, label: cluster.name, layer: .application,
                    volumes: placement.volumes.sorted(), details: details))
        }
        for configured in configuration.clusters ?? [] where configured.ignore != true {
            let path = resolvedPath(configured.dataDirectory) ?? configured.dataDirectory
            if !clusters.contains(where: { $0.dataDirectory == path }) {
                warnings.append("the configured cluster \(configured.dataDirectory) does not run")
            }
        }
        return DiscoverResult(resources: resources, warnings: warnings)
    }

    static func dataDirectory(_ resource: PluginResource) throws(PluginFailure) -> String {
        guard resource.id.hasPrefix(prefix + "/") else {
            throw PluginFailure(.unknownResource, "\(resource.id) is not a PostgreSQL cluster")
        }
        return String(resource.id.dropFirst(prefix.count))
    }

    static func cluster(_ resource: PluginResource) throws(PluginFailure) -> Cluster {
        let directory = try dataDirectory(resource)
        guard let cluster = Cluster.running(in: directory) else {
            throw PluginFailure(
                .unknownResource, "No PostgreSQL runs in \(directory)", hint: "Was it stopped? Discover again")
        }
        return cluster
    }

    func preflight(_ parameters: PreflightParameters) async throws(PluginFailure) -> PreflightResult {
        let configuration = try PostgreSQLConfiguration.read(parameters.config)
        return await withTaskGroup(of: [PluginFinding].self) { group in
            for resource in parameters.resources {
                group.addTask { await OwnThread.run { Inspection.findings(resource, configuration) } }
            }
            return PreflightResult(findings: await group.reduce(into: []) { $0 += $1 })
        }
    }

    func quiesce(
        _ parameters: QuiesceParameters, lease: HoldLease
    ) async throws(PluginFailure) -> any PluginHold {
        let configuration = try PostgreSQLConfiguration.read(parameters.config)
        typealias Outcome = Result<BackupSession, PluginFailure>
        let outcomes = await withTaskGroup(of: Outcome.self) { group in
            for resource in parameters.resources {
                group.addTask {
                    await OwnThread.run { () -> Outcome in
                        do throws(PluginFailure) {
                            return .success(try BackupSession.start(resource, configuration, lease: lease))
                        } catch {
                            return .failure(error)
                        }
                    }
                }
            }
            return await group.reduce(into: [Outcome]()) { $0.append($1) }
        }
        var sessions: [BackupSession] = []
        var failure: PluginFailure?
        for outcome in outcomes {
            switch outcome {
            case .success(let session): sessions.append(session)
            case .failure(let error): failure = failure ?? error
            }
        }
        if let failure {
            // Closing the connection ends the backup that was started on it.
            for session in sessions { session.abandon() }
            throw failure
        }
        return BackupHold(sessions)
    }

    /// A backup ends with its connection, and the connection ended with the process: there is nothing to release.
    func recover(_ parameters: RecoverParameters) async throws(PluginFailure) -> RecoverResult {
        RecoverResult(released: [])
    }

    func prepareRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        let configuration = try PostgreSQLConfiguration.read(parameters.config)
        return try await OwnThread.run { () throws(PluginFailure) in
            try ClusterStop(parameters, configuration).run()
        }
    }

    func finishRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        let configuration = try PostgreSQLConfiguration.read(parameters.config)
        return try await OwnThread.run { () throws(PluginFailure) in
            try ClusterStart(parameters, configuration).run()
        }
    }
}
