import PluginKit

/// Brings guests of libvirt's hypervisors to rest.
struct LibvirtPlugin: Plugin {
    static let name = "libvirt"

    let identity = DescribeResult(name: name, version: "1.0", layer: .machine, watches: true)

    func discover(_ parameters: DiscoverParameters) async throws(PluginFailure) -> DiscoverResult {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        return await Discover(parameters: parameters, configuration: configuration).run()
    }

    func watch(
        _ parameters: WatchParameters, onChange: @escaping @Sendable (String) -> Void
    ) async throws(PluginFailure) {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        for uri in configuration.connections {
            OwnThread.start { HypervisorWatch.run(uri, configuration, onChange: onChange) }
        }
    }

    func preflight(_ parameters: PreflightParameters) async throws(PluginFailure) -> PreflightResult {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        return await withTaskGroup(of: [PluginFinding].self) { group in
            for resource in parameters.resources {
                group.addTask { await OwnThread.run { Inspection(resource, configuration).findings() } }
            }
            return PreflightResult(findings: await group.reduce(into: []) { $0 += $1 })
        }
    }

    func quiesce(
        _ parameters: QuiesceParameters, lease: HoldLease
    ) async throws(PluginFailure) -> any PluginHold {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        return try await GuestRound.run(parameters, configuration, lease: lease)
    }

    func recover(_ parameters: RecoverParameters) async throws(PluginFailure) -> RecoverResult {
        await GuestJournal.recover(parameters, try LibvirtConfiguration.read(parameters.config))
    }

    func prepareRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        return try await OwnThread.run { () throws(PluginFailure) in
            try VolumeRestore(parameters, configuration).prepare()
        }
    }

    func finishRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        return try await OwnThread.run { () throws(PluginFailure) in
            try VolumeRestore(parameters, configuration).finish()
        }
    }

    func restoreResource(_ parameters: ResourceRestoreParameters) async throws(PluginFailure) -> JSONValue {
        let configuration = try LibvirtConfiguration.read(parameters.config)
        let call = try parameters.request.decoded(as: RestoreCall.self)
        return try await OwnThread.run { () throws(PluginFailure) in
            if call.action == .survey {
                let survey = Survey(call: call, parameters: parameters, configuration: configuration)
                return try JSONValue(encoding: try survey.run())
            }
            return try JSONValue(
                encoding: try Restorer(call, configuration, stateDirectory: parameters.stateDirectory).run())
        }
    }
}
