import API
import Foundation
import Logging
import PluginKit

/// Finds what lies on volumes, and what would go wrong with it.
struct Discovery: Sendable {
    static let timeoutSeconds = 30.0
    /// Lower layers first: an application is found by the file systems it lies on.
    static let order: [PluginLayer] = [.fileSystem, .machine, .application]

    var catalog: PluginCatalog
    var devices: DeviceResolver
    var protectedPaths: [String]
    /// For the state that a preflight may try out.
    var scratch: String
    var logger: Logger

    func discover(_ request: DiscoverRequest) async -> DiscoverResponse {
        let finding = devices.resolve(request.volumes)
        var warnings = finding.warnings + (await catalog.problems())
        let wanted = Set(request.volumes.map(\.name))
        let pluginDevices = finding.devices.map { PluginDevice(volume: $0.volume, naa: $0.naa, path: $0.path) }
        let pluginVolumes = request.volumes.map(PluginVolume.init)
        let plugins = await catalog.plugins()
        var found: [PluginResource] = []
        var resources: [ResourceInfo] = []
        var unseen = finding.unseen
        unseen += await catalog.missing().map { missing in
            UnseenInfo(
                plugin: missing.name, layer: nil, reason: missing.reason, scope: .any,
                volumes: wanted.intersection(missing.config.strings).sorted())
        }
        for layer in Self.order {
            let lower = found
            let answers = await withTaskGroup(of: (String, Result<DiscoverResult, any Error>).self) { group in
                for plugin in plugins where plugin.layer == layer {
                    group.addTask {
                        let parameters = DiscoverParameters(
                            devices: pluginDevices, resources: lower, config: plugin.config, volumes: pluginVolumes)
                        return (plugin.name, await ask(plugin, .discover, parameters, Self.timeoutSeconds))
                    }
                }
                return await group.reduce(into: []) { $0.append($1) }.sorted { $0.0 < $1.0 }
            }
            for (plugin, answer) in answers {
                let config = plugins.first { $0.name == plugin }?.config
                switch answer {
                case .success(let result):
                    let ours = result.resources.filter { !wanted.isDisjoint(with: $0.volumes) }
                    found += ours
                    resources += ours.map { ResourceInfo($0, plugin: plugin) }
                    warnings += (result.warnings ?? []).map { "\(plugin): \($0)" }
                    unseen += (result.unseen ?? []).map {
                        UnseenInfo($0, plugin: plugin, layer: layer, isConfigured: config != nil)
                    }
                case .failure(let error):
                    let reason = "Plug-in \(plugin) could not look: \(error)"
                    warnings.append(reason)
                    let used = Set(finding.devices.map(\.volume) + found.flatMap(\.volumes))
                    unseen.append(
                        UnseenInfo(
                            plugin: plugin, layer: ProtectionLayer(layer), reason: reason,
                            // One with nothing configured may find what the host is known to use, no more.
                            scope: config == nil ? .known : .any,
                            volumes: used.union(wanted.intersection(config?.strings ?? [])).sorted()))
                }
            }
        }
        return DiscoverResponse(
            devices: finding.devices, resources: Self.hostFileSystemsLast(resources), warnings: warnings,
            unseen: unseen, machine: devices.machine)
    }

    /// A file system with the disks of machines on it comes to rest after them: a machine could not write out what it
    /// has to onto a frozen one. Machines name such file systems, one a line, in `fileSystems`.
    static func hostFileSystemsLast(_ resources: [ResourceInfo]) -> [ResourceInfo] {
        let beneath = Set(
            resources.filter { $0.layer == .machine }.flatMap { machine in
                (machine.details["fileSystems"] ?? "").split(separator: "\n").map(String.init)
            })
        return resources.map { resource in
            guard resource.layer == .fileSystem, beneath.contains(resource.id) else { return resource }
            var moved = resource
            moved.layer = .hostFileSystem
            return moved
        }
    }

    func preflight(_ request: PreflightRequest) async -> PreflightResponse {
        let plugins = await catalog.plugins()
        let byPlugin = Dictionary(grouping: request.resources, by: \.plugin)
        let findings = await withTaskGroup(of: [FindingInfo].self) { group in
            for (name, resources) in byPlugin {
                guard let plugin = plugins.first(where: { $0.name == name }) else {
                    group.addTask {
                        [
                            FindingInfo(
                                severity: .error, plugin: name, resource: nil,
                                message: "There is no plug-in \(name) on this host", hint: "Install it")
                        ]
                    }
                    continue
                }
                group.addTask { await preflight(plugin, resources) }
            }
            return await group.reduce(into: [FindingInfo]()) { $0 += $1 }
        }
        return PreflightResponse(
            findings: findings.sorted { ($0.plugin, $0.resource ?? "") < ($1.plugin, $1.resource ?? "") })
    }

    private func preflight(_ plugin: InstalledPlugin, _ resources: [ResourceInfo]) async -> [FindingInfo] {
        let directory = scratch + "/preflight-" + UUID().uuidString
        try? FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let parameters = PreflightParameters(
            resources: resources.map(PluginResource.init), config: plugin.config, stateDirectory: directory,
            protectedPaths: protectedPaths)
        let answer: Result<PreflightResult, any Error> = await ask(
            plugin, .preflight, parameters, Self.timeoutSeconds)
        switch answer {
        case .success(let result):
            return result.findings.map { finding in
                let severity: FindingInfo.Severity =
                    switch finding.severity {
                    case .note: .note
                    case .warning: .warning
                    case .error: .error
                    }
                return FindingInfo(
                    severity: severity, plugin: plugin.name, resource: finding.resource, message: finding.message,
                    hint: finding.hint)
            }
        case .failure(let error as PluginFailure):
            return [
                FindingInfo(
                    severity: .error, plugin: plugin.name, resource: nil, message: error.message, hint: error.hint)
            ]
        case .failure(let error):
            return [FindingInfo(severity: .error, plugin: plugin.name, resource: nil, message: "\(error)")]
        }
    }

    /// One question to a plug-in of its own.
    ///
    /// - Parameter onLaunch: gets the process before it is asked.
    func ask<Parameters: Encodable & Sendable, Answer: Decodable & Sendable>(
        _ plugin: InstalledPlugin, _ method: PluginMethod, _ parameters: Parameters, _ timeoutSeconds: Double,
        onLaunch: @Sendable (any PluginSession) async -> Void = { _ in }
    ) async -> Result<Answer, any Error> {
        do {
            let session = try await catalog.launch(plugin)
            await onLaunch(session)
            do {
                let answer = try await session.call(
                    method, parameters, as: Answer.self, timeoutSeconds: timeoutSeconds)
                await session.end(graceSeconds: 2)
                return .success(answer)
            } catch {
                await session.kill()
                throw error
            }
        } catch {
            logger.warning(
                "plug-in \(plugin.name) failed", metadata: ["method": "\(method.rawValue)", "why": "\(error)"])
            return .failure(error)
        }
    }
}

extension UnseenInfo {
    init(_ unseen: PluginUnseen, plugin: String, layer: PluginLayer, isConfigured: Bool) {
        self.init(
            plugin: plugin, layer: ProtectionLayer(layer),
            reason: "\(plugin): " + (unseen.hint.map { "\(unseen.reason). \($0)" } ?? unseen.reason),
            scope: unseen.volumes != nil ? .named : isConfigured ? .any : .known, volumes: unseen.volumes ?? [])
    }
}

extension JSONValue {
    /// All strings in it: a configuration that cannot be understood still names the volumes that it is for.
    var strings: Set<String> {
        switch self {
        case .string(let text): [text]
        case .array(let values): values.reduce(into: []) { $0.formUnion($1.strings) }
        case .object(let members): members.values.reduce(into: []) { $0.formUnion($1.strings) }
        case .null, .bool, .number: []
        }
    }
}
