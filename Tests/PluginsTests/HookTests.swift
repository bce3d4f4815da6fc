import Foundation
import PluginKit
import Testing

@Suite("Hook plug-in")
struct HookTests {
    /// Scripts that note their calls in one file, and the configuration that names them.
    final class Scripts: Sendable {
        let state: StateDirectory
        var directory: String { state.path }

        init() throws { state = try StateDirectory() }

        /// - Returns: its path.
        @discardableResult
        func write(_ name: String, _ body: String, mode: Int = 0o755) throws -> String {
            let path = "\(directory)/\(name).sh"
            let text = "#!/bin/sh\necho \"$STILLPOINT_HOOK $STILLPOINT_PHASE\" >> \(directory)/calls\n\(body)\n"
            try text.write(toFile: path, atomically: false, encoding: .utf8)
            try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
            return path
        }

        var calls: [String] {
            ((try? String(contentsOfFile: "\(directory)/calls", encoding: .utf8)) ?? "").split(separator: "\n")
                .map(String.init)
        }

        func hook(
            _ name: String, quiesce: String = "", unquiesce: String = "", order: Int = 0, timeoutSeconds: Double = 60,
            environment: [String: String] = [:]
        ) throws -> JSONValue {
            .object([
                "name": .string(name), "volumes": .array([.string("vol1")]), "order": .number(Double(order)),
                "quiesce": .array([.string(try write("\(name)-quiesce", quiesce)), .string("argument")]),
                "unquiesce": .array([.string(try write("\(name)-unquiesce", unquiesce))]),
                "timeoutSeconds": .number(timeoutSeconds),
                "environment": .object(environment.mapValues { .string($0) }),
            ])
        }

        func config(_ hooks: [JSONValue]) -> JSONValue { .object(["hooks": .array(hooks)]) }

        /// What is left in the state directory of the plug-in.
        var journals: [String] { state.files.filter { $0.hasSuffix(".journal") } }
    }

    func discover(_ plugin: RunningPlugin, _ config: JSONValue) async throws -> [PluginResource] {
        let device = PluginDevice(volume: "vol1", naa: "", path: "/dev/null")
        return try await plugin.process.discover(DiscoverParameters(devices: [device], config: config)).resources
    }

    @Test("hooks run in their order, and in reverse at the release, which is proven by their exit status")
    func order() async throws {
        let scripts = try Scripts()
        let config = scripts.config([
            try scripts.hook("second", order: 2), try scripts.hook("first", order: 1),
            try scripts.hook("third", unquiesce: "echo it ran on >&2; exit 1", order: 3),
        ])
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        #expect(Set(resources.map(\.id)) == ["hook:first", "hook:second", "hook:third"])
        let held = try await plugin.quiesce("h1", resources, state: scripts.directory, config: config)
        #expect(held.members.map(\.resource) == ["hook:first", "hook:second", "hook:third"])
        #expect(scripts.calls == ["first quiesce", "second quiesce", "third quiesce"])
        let released = try await plugin.unquiesce("h1")
        #expect(released.map(\.stillHeld) == [true, true, false])
        #expect(released.last?.failure == "The unquiesce of hook third ended with status 1: it ran on")
        #expect(scripts.calls.suffix(3) == ["third unquiesce", "second unquiesce", "first unquiesce"])
        #expect(scripts.journals == [])
        await plugin.process.end()
    }

    @Test("a hook runs for every volume that it names, whoever uses it, unless it is told to run only where it is used")
    func volumesOfOthers() async throws {
        let scripts = try Scripts()
        var own = try scripts.hook("own")
        var shared = try scripts.hook("shared")
        if case .object(var members) = own {
            members["volumes"] = .array(["vol1", "far", "typo"].map { .string($0) })
            own = .object(members)
        }
        if case .object(var members) = shared {
            members["volumes"] = .array(["vol1", "far", "guests"].map { .string($0) })
            members["onlyWhereUsed"] = .bool(true)
            shared = .object(members)
        }
        let plugin = try RunningPlugin("hook")
        let found = try await plugin.process.discover(
            DiscoverParameters(
                devices: [PluginDevice(volume: "vol1", naa: "", path: "/dev/null")],
                resources: [PluginResource(id: "g", label: "guest", layer: .machine, volumes: ["guests"])],
                config: scripts.config([own, shared]),
                volumes: ["vol1", "far", "guests"].map { PluginVolume(name: $0, naa: "", exports: []) }))
        #expect(found.resources.map(\.id) == ["hook:own", "hook:shared"])
        #expect(found.resources.map(\.volumes) == [["far", "vol1"], ["guests", "vol1"]])
        #expect(found.warnings?.count == 1 && found.warnings?[0].contains("hook own names typo") == true)
        await plugin.process.end()
    }

    @Test("a hook gets a clean environment, its arguments, and what it is called for")
    func environment() async throws {
        let scripts = try Scripts()
        let body = "env | sort > \(scripts.directory)/env; echo \"$1\" > \(scripts.directory)/argument"
        let config = scripts.config([try scripts.hook("one", quiesce: body, environment: ["MINE": "yes"])])
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        _ = try await plugin.quiesce("h1", resources, state: scripts.directory, config: config)
        let names = try String(contentsOfFile: "\(scripts.directory)/env", encoding: .utf8).split(separator: "\n")
            .filter { !$0.hasPrefix("_=") && !$0.hasPrefix("PWD=") }
        #expect(
            names == [
                "LANG=C.UTF-8", "MINE=yes", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "STILLPOINT_HOLD_ID=h1",
                "STILLPOINT_HOOK=one", "STILLPOINT_PHASE=quiesce", "STILLPOINT_VOLUMES=vol1",
            ])
        #expect(try String(contentsOfFile: "\(scripts.directory)/argument", encoding: .utf8) == "argument\n")
        await plugin.process.end()
    }

    @Test("when one fails the others are released, its own unquiesce runs too, and later ones never start")
    func failure() async throws {
        let scripts = try Scripts()
        let config = scripts.config([
            try scripts.hook("good", order: 1), try scripts.hook("bad", quiesce: "echo no >&2; exit 3", order: 2),
            try scripts.hook("late", order: 3),
        ])
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", resources, state: scripts.directory, config: config)
        }
        #expect(failure?.code == .quiesceFailed)
        #expect(failure?.message == "The quiesce of hook bad ended with status 3: no")
        #expect(scripts.calls == ["good quiesce", "bad quiesce", "bad unquiesce", "good unquiesce"])
        #expect(scripts.journals == [])
        await plugin.process.end()
    }

    @Test("a hook that hangs is killed with its children at its time-out, and its unquiesce runs")
    func hangs() async throws {
        let scripts = try Scripts()
        let body = "sleep 1000 & echo $! > \(scripts.directory)/child; wait"
        let config = scripts.config([try scripts.hook("slow", quiesce: body, timeoutSeconds: 6)])
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", resources, state: scripts.directory, config: config)
        }
        #expect(failure?.code == .timedOut)
        #expect(scripts.calls == ["slow quiesce", "slow unquiesce"])
        let child = try shell("cat \(scripts.directory)/child")
        try await eventually("the child is gone") {
            let status = readText("/proc/\(child)/stat")
            return status == nil || status?.contains(") Z ") == true
        }
        await plugin.process.end()
    }

    @Test("a release during the quiesce stops it and undoes it")
    func releasedMeanwhile() async throws {
        let scripts = try Scripts()
        let config = scripts.config([try scripts.hook("slow", quiesce: "sleep 1000", timeoutSeconds: 300)])
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        let quiesce = Task {
            try await plugin.quiesce("h1", resources, state: scripts.directory, config: config)
        }
        try await eventually("it has started") { scripts.calls == ["slow quiesce"] }
        _ = try await plugin.unquiesce("h1")
        let failure = await #expect(throws: PluginFailure.self) { try await quiesce.value }
        #expect(failure?.code == .cancelled)
        #expect(scripts.calls == ["slow quiesce", "slow unquiesce"])
        await plugin.process.end()
    }

    @Test("what a killed plug-in left quiesced is undone by recover, even when the configuration is gone")
    func recovers() async throws {
        let scripts = try Scripts()
        let config = scripts.config([try scripts.hook("a", order: 1), try scripts.hook("b", order: 2)])
        let first = try RunningPlugin("hook")
        let resources = try await discover(first, config)
        _ = try await first.quiesce("h1", resources, state: scripts.directory, config: config)
        first.process.kill()
        _ = await first.process.waitForExit()
        let second = try RunningPlugin("hook")
        let result = try await second.process.recover(RecoverParameters(stateDirectory: scripts.directory))
        #expect(result.released == ["hook:b", "hook:a"])
        #expect(scripts.calls.suffix(2) == ["b recover", "a recover"])
        #expect(scripts.journals == [])
        await second.process.end()
    }

    @Test("an unquiesce that hangs is an error that says what may still be at rest, and recover runs it again")
    func unquiesceHangs() async throws {
        let scripts = try Scripts()
        let body = "[ $STILLPOINT_PHASE = recover ] || sleep 1000"
        let config = scripts.config([try scripts.hook("slow", unquiesce: body, timeoutSeconds: 6)])
        let first = try RunningPlugin("hook")
        let resources = try await discover(first, config)
        _ = try await first.quiesce("h1", resources, state: scripts.directory, config: config)
        let failure = await #expect(throws: PluginFailure.self) { try await first.unquiesce("h1") }
        #expect(failure?.code == .notReleased)
        #expect(failure?.message.contains("hook:slow") == true)
        await first.process.end()
        let second = try RunningPlugin("hook")
        let result = try await second.process.recover(RecoverParameters(stateDirectory: scripts.directory))
        #expect(result.released == ["hook:slow"])
        #expect(scripts.journals == [])
        await second.process.end()
    }

    @Test("a quiesce that still runs when the plug-in is killed ends with it")
    func killedMeanwhile() async throws {
        let scripts = try Scripts()
        let body = "echo $$ > \(scripts.directory)/pid; sleep 1000"
        let config = scripts.config([try scripts.hook("slow", quiesce: body, timeoutSeconds: 300)])
        let first = try RunningPlugin("hook")
        let resources = try await discover(first, config)
        let quiesce = Task {
            try await first.quiesce("h1", resources, state: scripts.directory, config: config)
        }
        try await eventually("it has started") { readText("\(scripts.directory)/pid")?.hasSuffix("\n") == true }
        let script = try shell("cat \(scripts.directory)/pid")
        first.process.kill()
        let failure = await #expect(throws: PluginFailure.self) { try await quiesce.value }
        #expect(failure?.code == .pluginDied)
        try await eventually("the script is gone") {
            let status = readText("/proc/\(script)/stat")
            return status == nil || status?.contains(") Z ") == true
        }
        let second = try RunningPlugin("hook")
        let result = try await second.process.recover(RecoverParameters(stateDirectory: scripts.directory))
        #expect(result.released == ["hook:slow"])
        await second.process.end()
    }

    @Test("the end of the lease and of the input run the unquiesce", arguments: [true, false])
    func letsGo(byLease: Bool) async throws {
        let scripts = try Scripts()
        let config = scripts.config([try scripts.hook("one")])
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        _ = try await plugin.quiesce(
            "h1", resources, state: scripts.directory, leaseSeconds: byLease ? 8 : 60, config: config)
        if !byLease { plugin.process.closeInput() }
        try await eventually("the unquiesce ran") { scripts.calls == ["one quiesce", "one unquiesce"] }
        await plugin.process.end()
        #expect(scripts.calls.count == 2)
    }

    @Test("a file that everybody may write is never run")
    func worldWritable() async throws {
        let scripts = try Scripts()
        let config = scripts.config([try scripts.hook("open")])
        try scripts.write("open-quiesce", "", mode: 0o777)
        let plugin = try RunningPlugin("hook")
        let resources = try await discover(plugin, config)
        let findings = try await plugin.process.preflight(
            PreflightParameters(resources: resources, config: config, stateDirectory: scripts.directory)
        ).findings
        #expect(findings.map(\.severity) == [.error])
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", resources, state: scripts.directory, config: config)
        }
        #expect(failure?.code == .refused)
        #expect(scripts.calls == [])
        await plugin.process.end()
    }

    @Test(
        "a wrong configuration is refused, saying what is wrong",
        arguments: [
            (#"{"hooks":[{"name":"x"}]}"#, "`hooks[0].volumes` is missing"),
            (#"{"hooks":[{"name":"x","volumes":["v"],"quiesce":["run"],"unquiesce":["/b"]}]}"#, "absolute path"),
            (#"{"hooks":[{"name":"a b","volumes":["v"],"quiesce":["/b"],"unquiesce":["/b"]}]}"#, "needs a name"),
            (#"{"hooks":[{"name":"x","volumes":[],"quiesce":["/b"],"unquiesce":["/b"]}]}"#, "protects no volume"),
            (#"{"hooks":"all"}"#, "`hooks` is not of type"),
        ])
    func wrongConfiguration(text: String, expected: String) async throws {
        let plugin = try RunningPlugin("hook")
        let config = try JSONDecoder().decode(JSONValue.self, from: Data(text.utf8))
        let failure = await #expect(throws: PluginFailure.self) { try await discover(plugin, config) }
        #expect(failure?.code == .badConfiguration)
        #expect(failure?.message.contains(expected) == true, "\(failure?.message ?? "")")
        await plugin.process.end()
    }
}
