import PluginKit

/// Runs the user's own executables around a snapshot, for what there is no plug-in for.
struct HookPlugin: Plugin {
    static let name = "hook"

    let identity = DescribeResult(name: name, version: "1.0", layer: .application)

    func discover(_ parameters: DiscoverParameters) async throws(PluginFailure) -> DiscoverResult {
        let hooks = try HookConfiguration.read(parameters.config)
        // Devices of this host, and what is reached past its kernel: a guest's disks, for one.
        let used = Set(parameters.devices.map(\.volume) + parameters.resources.flatMap(\.volumes))
        // A volume that is named is meant, whoever uses it: nobody but this configuration may know how.
        let known = used.union((parameters.volumes ?? []).map(\.name))
        var warnings: [String] = []
        let resources = hooks.compactMap { hook -> PluginResource? in
            let isMeant = hook.onlyWhereUsed == true ? used : known
            let volumes = Set(hook.volumes).intersection(isMeant).sorted()
            let others = Set(hook.volumes).subtracting(known).sorted()
            if !others.isEmpty {
                warnings.append(
                    "the hook \(hook.name) names \(others.joined(separator: ", ")), which is not among the volumes "
                        + "that are asked about")
            }
            guard !volumes.isEmpty else { return nil }
            return PluginResource(
                id: hook.resourceID, label: "hook \(hook.name)", layer: hook.level ?? .application, volumes: volumes,
                details: ["quiesce": hook.quiesce[0], "unquiesce": hook.unquiesce[0], "order": "\(hook.order ?? 0)"])
        }
        return DiscoverResult(resources: resources, warnings: warnings)
    }

    func preflight(_ parameters: PreflightParameters) async throws(PluginFailure) -> PreflightResult {
        let hooks = try HookConfiguration.read(parameters.config)
        return await withTaskGroup(of: [PluginFinding].self) { group in
            for resource in parameters.resources {
                group.addTask { await OwnThread.run { Self.findings(resource, hooks) } }
            }
            return PreflightResult(findings: await group.reduce(into: []) { $0 += $1 })
        }
    }

    private static func findings(_ resource: PluginResource, _ hooks: [Hook]) -> [PluginFinding] {
        do throws(PluginFailure) {
            let hook = try HookConfiguration.hook(resource, among: hooks)
            for command in [hook.quiesce, hook.unquiesce, hook.preflight].compactMap({ $0 }) {
                try ExecutableCheck.check(command[0])
            }
            guard let arguments = hook.preflight else { return [] }
            let outcome = try HookRun(hook, .preflight, volumes: resource.volumes, holdID: nil).run(
                arguments, timeoutSeconds: hook.timeout)
            if outcome.isSuccess { return [] }
            throw PluginFailure(.quiesceFailed, "The preflight of hook \(hook.name) \(outcome.explanation)")
        } catch {
            return [PluginFinding(.error, resource: resource.id, error.message, hint: error.hint)]
        }
    }

    func quiesce(
        _ parameters: QuiesceParameters, lease: HoldLease
    ) async throws(PluginFailure) -> any PluginHold {
        let hooks = try HookConfiguration.read(parameters.config)
        var members: [HookMember] = []
        for resource in parameters.resources {
            let hook = try HookConfiguration.hook(resource, among: hooks)
            for command in [hook.quiesce, hook.unquiesce] { try ExecutableCheck.check(command[0]) }
            members.append(HookMember(hook: hook, volumes: resource.volumes))
        }
        let journal = try HoldJournal<HookRecord>.create(
            stateDirectory: parameters.stateDirectory, plugin: Self.name, holdID: parameters.holdID)
        let hold = HookHold(members, journal: journal)
        try await hold.quiesce(lease)
        return hold
    }

    func recover(_ parameters: RecoverParameters) async throws(PluginFailure) -> RecoverResult {
        await OwnThread.run { HookRecovery.run(stateDirectory: parameters.stateDirectory) }
    }

    /// Applications behind hooks are stopped and started by those who wrote them.
    func prepareRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        RestoreResult(steps: [])
    }

    func finishRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        RestoreResult(steps: [])
    }
}
