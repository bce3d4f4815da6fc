import API
import Foundation
import Logging
import PluginKit
import Synchronization
import Testing

@testable import stillpoint_agent

/// Plug-ins of one layer each, which note in which order they were asked.
final class ScriptedPlugins: PluginLauncher {
    struct Behaviour: Sendable {
        var describes: DescribeResult
        var finds: [PluginResource] = []
        var unseen: [PluginUnseen]?
        var failsToDiscover = false
        var failsToPrepare = false
        var supportsRestore = true
    }

    let behaviours: [String: Behaviour]
    let asked = Mutex<[String]>([])

    init(_ behaviours: [String: Behaviour]) { self.behaviours = behaviours }

    func launch(_ plugin: InstalledPlugin) async throws -> any PluginSession {
        guard let behaviour = behaviours[plugin.name] else { throw PluginFailure(.spawnFailed, "no such file") }
        return Session(plugin.name, behaviour, self)
    }

    private final class Session: PluginSession {
        let events = AsyncStream<PluginEvent> { $0.finish() }
        private let name: String
        private let behaviour: Behaviour
        private let owner: ScriptedPlugins

        init(_ name: String, _ behaviour: Behaviour, _ owner: ScriptedPlugins) {
            self.name = name
            self.behaviour = behaviour
            self.owner = owner
        }

        func call<Parameters: Encodable & Sendable, Result: Decodable & Sendable>(
            _ method: PluginMethod, _ parameters: Parameters, as: Result.Type, timeoutSeconds: Double
        ) async throws -> Result {
            if method != .describe {
                var detail = ""
                if let discover = parameters as? DiscoverParameters {
                    detail = " knowing " + discover.resources.map(\.id).sorted().joined(separator: ",")
                } else if let restore = parameters as? RestoreParameters, let artifacts = restore.artifacts {
                    detail = " with " + artifacts.keys.sorted().joined(separator: ",")
                }
                owner.asked.withLock { $0.append("\(name) \(method.rawValue)\(detail)") }
            }
            let answer: any Sendable
            switch method {
            case .describe: answer = behaviour.describes
            case .discover:
                if behaviour.failsToDiscover { throw PluginFailure(.badConfiguration, "it makes no sense") }
                answer = DiscoverResult(resources: behaviour.finds, unseen: behaviour.unseen)
            case .preflight: answer = PreflightResult(findings: [PluginFinding(.warning, "beware")])
            case .prepareRestore, .finishRestore:
                if !behaviour.supportsRestore { throw PluginFailure(.notSupported, "no restore") }
                if behaviour.failsToPrepare && method == .prepareRestore {
                    throw PluginFailure(.inUse, "somebody is in there", hint: "Ask them to leave")
                }
                answer = RestoreResult(steps: ["\(name) \(method.rawValue)"])
            default: throw PluginFailure(.unknownMethod, method.rawValue)
            }
            guard let answer = answer as? Result else { throw PluginFailure(.badAnswer, "wrong type") }
            return answer
        }

        func end(graceSeconds: Double) async {}
        func kill() async {}
    }
}

@Suite("Plug-ins, discovery and restores")
struct PluginCatalogTests {
    let directory: TemporaryDirectory
    let volumes = [VolumeReference(name: "v", naa: String(repeating: "6", count: 32))]

    init() throws { directory = try TemporaryDirectory() }

    private func behaviour(_ name: String, _ layer: PluginLayer, finds: [String] = []) -> ScriptedPlugins.Behaviour {
        ScriptedPlugins.Behaviour(
            describes: DescribeResult(name: name, version: "1", layer: layer),
            finds: finds.map { PluginResource(id: $0, label: $0, layer: layer, volumes: ["v"]) })
    }

    private func discovery(
        _ plugins: ScriptedPlugins, configuration: [String: JSONValue] = [:]
    ) throws -> Discovery {
        for name in plugins.behaviours.keys {
            try directory.write("#!/bin/sh\n", to: "plugins/stillpoint-plugin-\(name)", mode: 0o755)
        }
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        return Discovery(
            catalog: PluginCatalog(
                directories: [directory.path + "/plugins"], configuration: configuration, launcher: plugins,
                logger: logger),
            devices: DeviceResolver(sysfs: directory.path + "/sys", attachments: directory.path + "/attachments"),
            protectedPaths: [], scratch: directory.path, logger: logger)
    }

    private func runner(_ discovery: Discovery) -> RestoreRunner {
        RestoreRunner(discovery: discovery, directory: directory.path + "/restores", logger: discovery.logger)
    }

    @Test("file systems are looked for before what lies on them")
    func order() async throws {
        let plugins = ScriptedPlugins([
            "db": behaviour("db", .application, finds: ["cluster"]),
            "fs": behaviour("fs", .fileSystem, finds: ["/srv"]),
            "vm": behaviour("vm", .machine, finds: ["guest"]),
        ])
        let found = try await discovery(plugins).discover(DiscoverRequest(volumes: volumes))
        #expect(found.resources.map(\.id) == ["/srv", "guest", "cluster"])
        #expect(found.resources.map(\.layer) == [.fileSystem, .machine, .application])
        #expect(
            plugins.asked.withLock { $0 }
                == ["fs discover knowing ", "vm discover knowing /srv", "db discover knowing /srv,guest"])
    }

    @Test("a plug-in that others can write, that lies about its name or speaks another contract is not used")
    func distrust() async throws {
        var liar = behaviour("somebody", .application)
        liar.describes.name = "else"
        var future = behaviour("future", .application)
        future.describes.contract = PluginContract.version + 1
        let plugins = ScriptedPlugins([
            "liar": liar, "future": future, "open": behaviour("open", .application),
            "good": behaviour("good", .machine),
        ])
        let discovery = try discovery(plugins)
        try directory.write("#!/bin/sh\n", to: "plugins/stillpoint-plugin-open", mode: 0o777)
        try directory.write("#!/bin/sh\n", to: "plugins/stillpoint-plugin-absent", mode: 0o755)
        try directory.write("#!/bin/sh\n", to: "plugins/stillpoint-plugin-text", mode: 0o644)
        #expect(await discovery.catalog.plugins().map(\.name) == ["good"])
        #expect(await discovery.catalog.problems().count == 4)
        #expect(await discovery.discover(DiscoverRequest(volumes: volumes)).warnings.count == 4)
    }

    @Test("a plug-in that cannot look leaves volumes unseen: those it names, those of the host, or any")
    func unseen() async throws {
        var partly = behaviour("partly", .machine)
        partly.unseen = [PluginUnseen(reason: "no answer", hint: "wait", volumes: ["v"]), PluginUnseen(reason: "who?")]
        var broken = behaviour("broken", .application)
        broken.failsToDiscover = true
        var plain = behaviour("plain", .fileSystem)
        plain.failsToDiscover = true
        let configuration: [String: JSONValue] = [
            "broken": .object(["list": .array([.object(["volume": .string("v"), "other": .string("w")])])]),
            "absent": .object(["count": .number(1)]),
        ]
        let plugins = ScriptedPlugins(["partly": partly, "broken": broken, "plain": plain])
        let answer = try await discovery(plugins, configuration: configuration)
            .discover(DiscoverRequest(volumes: volumes))
        let unseen = answer.unseen ?? []
        #expect(unseen.map(\.plugin) == ["absent", "plain", "partly", "partly", "broken"])
        #expect(unseen.map(\.scope) == [.any, .known, .named, .known, .any])
        #expect(unseen.map(\.volumes) == [[], [], ["v"], [], ["v"]])
        #expect(unseen.map(\.layer) == [nil, .fileSystem, .machine, .machine, .application])
        #expect(unseen[0].reason.contains("Install it"))
        #expect(unseen[2].reason == "partly: no answer. wait")
    }

    @Test("a preflight names what has no plug-in here")
    func preflight() async throws {
        let discovery = try discovery(ScriptedPlugins(["fs": behaviour("fs", .fileSystem)]))
        let answer = await discovery.preflight(
            PreflightRequest(
                resources: ["fs", "nosuch"].map {
                    ResourceInfo(plugin: $0, layer: .fileSystem, id: "a", label: "a", volumes: ["v"])
                }))
        #expect(answer.findings.map(\.severity) == [.warning, .error])
        #expect(answer.findings.map(\.plugin) == ["fs", "nosuch"])
    }

    @Test("a restore stops from the top down and starts from the bottom up, each with its artifacts")
    func restore() async throws {
        var plain = behaviour("plain", .application, finds: ["x"])
        plain.supportsRestore = false
        let plugins = ScriptedPlugins([
            "db": behaviour("db", .application, finds: ["cluster"]),
            "fs": behaviour("fs", .fileSystem, finds: ["/srv"]),
            "vm": behaviour("vm", .machine, finds: ["guest"]), "plain": plain,
        ])
        let discovery = try discovery(plugins)
        let request = RestoreRequest(
            restoreID: "r1", volumes: volumes, artifacts: ["db/cluster": ["lsn": "0/1"], "fs//srv": ["a": "b"]])
        let prepared = try await runner(discovery).prepare(request)
        #expect(prepared.steps == ["db prepare-restore", "vm prepare-restore", "fs prepare-restore"])
        // Another runner: the agent was restarted in between.
        let second = runner(discovery)
        #expect(try await second.prepare(request).steps == prepared.steps)
        plugins.asked.withLock { $0 = [] }
        let finished = try await second.finish(request)
        #expect(finished.steps == ["fs finish-restore", "vm finish-restore", "db finish-restore"])
        #expect(
            plugins.asked.withLock { $0 } == [
                "fs finish-restore with /srv", "vm finish-restore with ", "plain finish-restore with ",
                "db finish-restore with cluster",
            ])
        #expect(try await second.finish(request).steps == finished.steps)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path + "/restores").isEmpty)
    }

    @Test("a restore that cannot be prepared leaves everything running, and says who refused")
    func restoreRefused() async throws {
        var busy = behaviour("fs", .fileSystem, finds: ["/srv"])
        busy.failsToPrepare = true
        let plugins = ScriptedPlugins(["db": behaviour("db", .application, finds: ["cluster"]), "fs": busy])
        let runner = try runner(discovery(plugins))
        let failure = await #expect(throws: APIFailure.self) {
            try await runner.prepare(RestoreRequest(restoreID: "r1", volumes: volumes))
        }
        #expect(failure?.message.contains("somebody is in there") == true)
        #expect(failure?.hint?.contains("Ask them to leave") == true)
        #expect(
            plugins.asked.withLock { $0.filter { !$0.contains("discover") } } == [
                "db prepare-restore", "fs prepare-restore", "fs finish-restore with ", "db finish-restore with ",
            ])
    }
}
