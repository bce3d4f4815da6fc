import API
import Foundation
import Logging
import PluginKit

/// The plug-ins of this host: executables named `stillpoint-plugin-NAME` in the configured directories, each asked once
/// who it is. The first directory that has a name wins. Looked at again when a file changes.
actor PluginCatalog {
    static let prefix = "stillpoint-plugin-"
    static let describeTimeoutSeconds = 10.0

    private struct Known {
        var file: FileStatus
        var plugin: InstalledPlugin?
        var problem: String?
    }

    private let directories: [String]
    private let configuration: [String: JSONValue]
    private let launcher: any PluginLauncher
    private let logger: Logger
    private var known: [String: Known] = [:]
    private var refreshing: Task<Void, Never>?

    init(
        directories: [String], configuration: [String: JSONValue], launcher: any PluginLauncher, logger: Logger
    ) {
        self.directories = directories
        self.configuration = configuration
        self.launcher = launcher
        self.logger = logger
    }

    /// By name; asks those that are new or changed.
    func plugins() async -> [InstalledPlugin] {
        await refresh()
        return known.values.compactMap(\.plugin).sorted { $0.name < $1.name }
    }

    /// Why some executables cannot be used, one sentence each.
    func problems() async -> [String] {
        await refresh()
        return known.values.compactMap(\.problem).sorted()
    }

    /// Plug-ins that the configuration has a section for and that cannot be asked, with the reason.
    func missing() async -> [(name: String, reason: String, config: JSONValue)] {
        await refresh()
        let usable = Set(known.values.compactMap(\.plugin?.name))
        return configuration.filter { !usable.contains($0.key) }.sorted { $0.key < $1.key }.map { name, config in
            let broken = known.first { $0.key.hasSuffix("/" + Self.prefix + name) }?.value.problem
            let absent = "The configuration has a section for the plug-in \(name), which is not on this host"
            return (name, broken ?? "\(absent). Install it, or remove the section", config)
        }
    }

    /// Looks in what is known first: no look at the disk when there need not be one.
    func plugin(named name: String) async -> InstalledPlugin? {
        if let plugin = known.values.compactMap(\.plugin).first(where: { $0.name == name }) { return plugin }
        return await plugins().first { $0.name == name }
    }

    nonisolated func launch(_ plugin: InstalledPlugin) async throws -> any PluginSession {
        try await launcher.launch(plugin)
    }

    private func refresh() async {
        if let refreshing { return await refreshing.value }
        let task = Task { await lookAgain() }
        refreshing = task
        await task.value
        refreshing = nil
    }

    private func lookAgain() async {
        var paths: [String] = []
        var names: Set<String> = []
        for directory in directories {
            for file in ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).sorted()
            where file.hasPrefix(Self.prefix) && !file.contains(".") && access("\(directory)/\(file)", X_OK) == 0 {
                if names.insert(file).inserted { paths.append("\(directory)/\(file)") }
            }
        }
        for gone in known.keys where !paths.contains(gone) { known[gone] = nil }
        for path in paths {
            guard let file = FileStatus(path: path), file.isRegularFile, known[path]?.file != file else { continue }
            var entry = Known(file: file)
            do {
                entry.plugin = try await describe(path, file)
            } catch {
                entry.problem = "The plug-in \(path) cannot be used: \(error)"
                logger.warning("\(entry.problem!)")
            }
            known[path] = entry
        }
    }

    private func describe(_ path: String, _ file: FileStatus) async throws -> InstalledPlugin {
        let name = String((path as NSString).lastPathComponent.dropFirst(Self.prefix.count))
        // It will run with our rights: whoever can write it has them.
        guard file.isTrusted else {
            throw PluginFailure(.refused, "others can write it", hint: "Run: chmod go-w \(path)")
        }
        var plugin = InstalledPlugin(
            name: name, version: "", layer: .application, path: path, config: configuration[name])
        let session = try await launcher.launch(plugin)
        do {
            let result = try await session.call(
                .describe, NoParameters(), as: DescribeResult.self, timeoutSeconds: Self.describeTimeoutSeconds)
            await session.end(graceSeconds: 1)
            guard result.name == name else {
                throw PluginFailure(.badAnswer, "it calls itself “\(result.name)”")
            }
            guard result.contract == PluginContract.version else {
                throw PluginFailure(
                    .badAnswer,
                    "it is written for version \(result.contract) of the contract, and this agent speaks version "
                        + "\(PluginContract.version)")
            }
            plugin.version = result.version
            plugin.layer = result.layer
            plugin.watches = result.watches ?? false
            return plugin
        } catch {
            await session.kill()
            throw error
        }
    }
}

extension ProtectionLayer {
    init(_ layer: PluginLayer) {
        switch layer {
        case .application: self = .application
        case .fileSystem: self = .fileSystem
        case .machine: self = .machine
        case .hostFileSystem: self = .hostFileSystem
        }
    }
}

extension PluginVolume {
    init(_ volume: VolumeReference) {
        self.init(
            name: volume.name, naa: volume.naa.lowercased(),
            exports: (volume.exports ?? []).map { Export(target: $0.target, lun: $0.lun) })
    }
}

extension PluginResource {
    init(_ resource: ResourceInfo) {
        let layer: PluginLayer =
            switch resource.layer {
            case .application: .application
            case .fileSystem: .fileSystem
            case .machine: .machine
            case .hostFileSystem: .hostFileSystem
            }
        self.init(
            id: resource.id, label: resource.label, layer: layer, volumes: resource.volumes, details: resource.details,
            level: resource.level.flatMap { PluginLevel(rawValue: $0.rawValue) })
    }
}

extension ResourceInfo {
    init(_ resource: PluginResource, plugin: String) {
        self.init(
            plugin: plugin, layer: ProtectionLayer(resource.layer), id: resource.id, label: resource.label,
            volumes: resource.volumes, details: resource.details,
            level: resource.level.flatMap { Consistency(rawValue: $0.rawValue) })
    }
}
