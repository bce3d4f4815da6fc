import Foundation
import PluginKit
import Synchronization
import Testing

/// The Python example is the peer here: the contract needs nothing of ours on the other side.
@Suite("Plug-in process, against the example in Python", .enabled(if: Example.hasPython))
struct PluginProcessTests {
    @Test("the example says who it is, finds its application, holds it and proves the hold")
    func wholeLife() async throws {
        let example = try Example()
        let plugin = try example.start()
        let description = try await plugin.describe()
        #expect(description == DescribeResult(name: "pausefile", version: "1.0", layer: .application))

        let found = try await plugin.discover(
            DiscoverParameters(devices: [], config: example.config)
        ).resources
        #expect(found.map(\.id) == [example.application])
        #expect(found.first?.volumes == ["vol1"])

        let held = try await plugin.quiesce(example.quiesce("h1", found))
        #expect(held.members.map(\.resource) == [example.application])
        #expect(example.isPaused)
        _ = try await plugin.renew(RenewParameters(holdID: "h1", leaseSeconds: 60))
        let released = try await plugin.unquiesce(UnquiesceParameters(holdID: "h1"))
        #expect(released.members.map(\.stillHeld) == [true])
        #expect(!example.isPaused)
        #expect(await plugin.end() == .exited(code: 0))
    }

    @Test("the example lets go when its input closes and when its lease ends")
    func letsGo() async throws {
        let example = try Example()
        let plugin = try example.start()
        _ = try await plugin.quiesce(example.quiesce("h1", [example.resource], leaseSeconds: 1))
        try await eventually { !example.isPaused }
        _ = try await plugin.quiesce(example.quiesce("h2", [example.resource]))
        #expect(example.isPaused)
        #expect(await plugin.end() == .exited(code: 0))
        #expect(!example.isPaused)
    }

    @Test("what a killed plug-in left quiesced is released by another one's recover")
    func recovers() async throws {
        let example = try Example()
        let first = try example.start()
        _ = try await first.quiesce(example.quiesce("h1", [example.resource]))
        first.kill()
        #expect(await first.waitForExit() == .signalled(signal: SIGKILL))
        #expect(example.isPaused)
        let second = try example.start()
        let result = try await second.recover(RecoverParameters(stateDirectory: example.state))
        #expect(result.released == [example.application])
        #expect(!example.isPaused)
        await second.end()
    }

    @Test("a plug-in's own error arrives with its code and message")
    func errors() async throws {
        let example = try Example()
        let plugin = try example.start()
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.unquiesce(UnquiesceParameters(holdID: "nobody"))
        }
        #expect(failure?.code == "failed")
        #expect(failure?.message == "unquiesce: KeyError('nobody')")
        await plugin.end()
    }
}

@Suite("Plug-in process, against shell scripts that break the contract")
struct BrokenPluginTests {
    @Test("calls that wait when the plug-in dies fail with how it died, and so do later ones")
    func death() async throws {
        let record = Record()
        let plugin = try start("read line; echo to the log >&2; exit 7", record)
        let failure = await #expect(throws: PluginFailure.self) { try await plugin.describe() }
        #expect(failure == PluginFailure(.pluginDied, "The plug-in's process exited with 7"))
        let later = await #expect(throws: PluginFailure.self) { try await plugin.describe() }
        #expect(later?.code == .pluginDied)
        #expect(await plugin.waitForExit() == .exited(code: 7))
        // Told on a thread of its own, a moment after those who waited.
        try await eventually { record.exits == [.exited(code: 7)] }
        #expect(record.logs == ["to the log"])
    }

    @Test("an answer that does not come is an error, and its late arrival disturbs nobody")
    func timeOut() async throws {
        let script = """
            read one; read two; echo '{"id":1,"result":{}}'
            echo '{"id":2,"result":{"findings":[]}}'; cat >/dev/null
            """
        let plugin = try start(script)
        let failure = await #expect(throws: PluginFailure.self) { try await plugin.describe(timeoutSeconds: 0.1) }
        #expect(failure?.code == .timedOut)
        let result = try await plugin.preflight(PreflightParameters(resources: [], stateDirectory: "/nowhere"))
        #expect(result.findings == [])
        #expect(await plugin.end() == .exited(code: 0))
    }

    @Test("garbage, lines without end and unknown events are dropped; the answer after them is taken")
    func garbage() async throws {
        let script = """
            read one
            echo not json; echo '[]'; echo '{"event":"unheard of"}'; echo '{"id":99,"result":{}}'
            head -c 3000000 /dev/zero | tr '\\0' x; echo
            echo '{"event":"holdLost","holdID":"h","resource":"r","reason":"gone"}'
            echo '{"id":1,"result":{"name":"n","version":"1","contract":1,"layer":"machine"}}'; cat >/dev/null
            """
        let record = Record()
        let plugin = try start(script, record)
        #expect(try await plugin.describe().layer == .machine)
        #expect(record.events == [PluginEvent(.holdLost, holdID: "h", resource: "r", reason: "gone")])
        await plugin.end()
    }

    @Test("a wrong answer is an error that says what is wrong")
    func wrongAnswer() async throws {
        let plugin = try start(#"read one; echo '{"id":1,"result":{"name":"n"}}'; cat >/dev/null"#)
        let failure = await #expect(throws: PluginFailure.self) { try await plugin.describe() }
        #expect(failure?.code == .badAnswer)
        #expect(failure?.message.contains("`result.version` is missing") == true)
        await plugin.end()
    }

    @Test("a plug-in that neither reads nor ends is killed, with its children")
    func stubborn() async throws {
        let record = Record()
        let plugin = try start("trap '' TERM; echo deaf >&2; while :; do sleep 0.1; done", record)
        try await eventually { record.logs == ["deaf"] }
        #expect(await plugin.end(graceSeconds: 0.2) == .signalled(signal: SIGKILL))
    }

    @Test("a plug-in that is not there fails to start, saying why")
    func missing() {
        let expected = PluginFailure(.spawnFailed, "/nowhere/plug-in cannot be started: No such file or directory")
        #expect(throws: expected) { try PluginProcess.start(.init(executable: "/nowhere/plug-in")) }
    }

    @Test("the child has standard input, output and error, and nothing else of ours")
    func descriptors() async throws {
        let inherited = open("/dev/null", O_RDONLY)  // without O_CLOEXEC on purpose
        defer { close(inherited) }
        let record = Record()
        let script = """
            for n in $(seq 0 300); do [ ! -e /proc/$$/fd/$n ] || printf "$n " >&2; done; echo >&2
            echo $(ps -o pgid= -p $$) $$ >&2
            """
        let plugin = try start(script, record)
        _ = await plugin.waitForExit()
        #expect(record.logs.first == "0 1 2 ")
        let numbers = record.logs.last?.split(separator: " ")
        #expect(numbers?.count == 2 && numbers?[0] == numbers?[1])
    }

    private func start(_ script: String, _ record: Record = Record()) throws -> PluginProcess {
        var options = PluginProcess.Options(executable: "/bin/sh")
        options.arguments = ["-c", script]
        options.onEvent = { event in record.state.withLock { $0.events.append(event) } }
        options.onLog = { line in record.state.withLock { $0.logs.append(line) } }
        options.onExit = { exit in record.state.withLock { $0.exits.append(exit) } }
        return try PluginProcess.start(options)
    }
}

/// What a plug-in's process told the agent unasked.
final class Record: Sendable {
    struct State {
        var events: [PluginEvent] = []
        var logs: [String] = []
        var exits: [PluginExit] = []
    }

    let state = Mutex(State())
    var events: [PluginEvent] { state.withLock { $0.events } }
    var logs: [String] { state.withLock { $0.logs } }
    var exits: [PluginExit] { state.withLock { $0.exits } }
}
