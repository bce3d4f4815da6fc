import Foundation
import PluginKit
import Testing

/// What every plug-in that stands on PluginKit does with its input, whatever it is for.
@Suite("The contract, on a plug-in's bare standard input")
struct ContractTests {
    /// Gives the lines to a plug-in, ends its input, and returns what it said.
    private func talk(_ lines: [String], to plugin: String = "hook") throws -> [JSONValue] {
        let process = Process()
        process.executableURL = URL(filePath: Built.plugin(plugin))
        let (input, output) = (Pipe(), Pipe())
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        try input.fileHandleForWriting.write(contentsOf: Data(lines.map { $0 + "\n" }.joined().utf8))
        try input.fileHandleForWriting.close()
        let said = try output.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        return try said.split(separator: 0x0A).map { try JSONDecoder().decode(JSONValue.self, from: Data($0)) }
    }

    private func code(_ answer: JSONValue?) -> String? { answer?["error"]?["code"]?.stringValue }

    @Test("each plug-in describes itself", arguments: ["filesystem", "postgresql", "hook", "libvirt"])
    func describes(name: String) throws {
        let answer = try talk([#"{"id":7,"method":"describe","params":{}}"#], to: name).first
        #expect(answer?["id"] == .number(7))
        #expect(answer?["result"]?["name"] == .string(name))
        #expect(answer?["result"]?["contract"] == .number(Double(PluginContract.version)))
    }

    @Test(
        "who runs a plug-in by hand with --help is told what it is for",
        arguments: ["filesystem", "postgresql", "hook", "libvirt"])
    func help(name: String) throws {
        let text = try shell("\(Built.plugin(name)) --help")
        #expect(text.contains("plug-in \(name)") && text.contains("stillpoint-agent"))
    }

    @Test("garbage gets an error and the next request its answer")
    func garbage() throws {
        let answers = try talk([
            "not json", "[]", #"{"id":1}"#, #"{"id":2,"method":"fly","params":{}}"#, #"{"id":3,"method":"discover"}"#,
            String(repeating: "x", count: PluginContract.maximumLineBytes + 1),
            #"{"id":4,"method":"describe","params":{}}"#,
        ])
        func answer(_ id: JSONValue) -> [JSONValue] { answers.filter { $0["id"] == id } }
        #expect(answer(.null).compactMap { code($0) }.sorted() == ["badRequest", "badRequest", "lineTooLong"])
        #expect(code(answer(.number(1)).first) == "badRequest")
        #expect(code(answer(.number(2)).first) == "unknownMethod")
        #expect(code(answer(.number(3)).first) == "badRequest")
        #expect(answer(.number(4)).first?["result"] != nil)
    }

    @Test("a request before the end of the input is answered")
    func lastWords() throws {
        let request = #"{"id":1,"method":"discover","params":{"devices":[],"resources":[]}}"#
        for plugin in ["filesystem", "postgresql", "hook"] {
            #expect(try talk([request], to: plugin).first?["result"]?["resources"] == .array([]))
        }
    }

    @Test("impossible leases and hold names are refused, unknown holds are named so")
    func limits() throws {
        let answers = try talk(
            [
                #"{"holdID":"a","resources":[],"leaseSeconds":0,"stateDirectory":"/dev/shm"}"#,
                #"{"holdID":"a","resources":[],"leaseSeconds":1e300,"stateDirectory":"/dev/shm"}"#,
                #"{"holdID":"../a","resources":[],"leaseSeconds":5,"stateDirectory":"/dev/shm"}"#,
                #"{"holdID":"","resources":[],"leaseSeconds":5,"stateDirectory":"/dev/shm"}"#,
            ].map { #"{"id":1,"method":"quiesce","params":\#($0)}"# }
                + [
                    #"{"id":2,"method":"unquiesce","params":{"holdID":"a"}}"#,
                    #"{"id":2,"method":"renew","params":{"holdID":"a","leaseSeconds":5}}"#,
                ])
        #expect(answers.filter { $0["id"] == .number(1) }.compactMap(code) == Array(repeating: "badRequest", count: 4))
        #expect(answers.filter { $0["id"] == .number(2) }.compactMap(code) == ["unknownHold", "unknownHold"])
    }

    @Test("a quiesce is idempotent by its hold, and its release answers the same twice")
    func idempotent() async throws {
        let state = try StateDirectory()
        let plugin = try RunningPlugin("hook")
        let first = try await plugin.quiesce("h1", [], state: state.path)
        let again = try await plugin.quiesce("h1", [], state: state.path)
        #expect(first.members == again.members)
        let released = try await plugin.unquiesce("h1")
        #expect(try await plugin.unquiesce("h1") == released)
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", [], state: state.path)
        }
        #expect(failure?.code == .holdReleased)
        await plugin.process.end()
    }

    @Test("a state directory that is not there is an error, and nothing is held")
    func stateDirectory() async throws {
        let plugin = try RunningPlugin("hook")
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", [], state: "/nowhere")
        }
        #expect(failure?.code == .badState)
        await plugin.process.end()
    }
}
