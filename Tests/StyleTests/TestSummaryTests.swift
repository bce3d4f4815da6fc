import Foundation
import Testing

/// `scripts/test.py`, which `make test` runs the build and the tests with: the end of its output says what failed.
@Suite(
    "Summary of a test run", .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/python3"), "python3"))
struct TestSummaryTests {
    static let script = StyleTests.root.path + "/scripts/test.py"

    /// What the script prints and ends with when its command prints `text` and ends with `status`.
    private func run(
        _ text: String, status: Int, then more: String = ""
    ) throws -> (lines: [String], status: Int32) {
        let log = "/tmp/sp-summary-\(UInt32.random(in: 0...UInt32.max))"
        defer { try? FileManager.default.removeItem(atPath: log) }
        try text.write(toFile: log, atomically: true, encoding: .utf8)
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/python3")
        process.arguments = [Self.script, "sh", "-c", "cat \(log); \(more) exit \(status)"]
        process.environment = ["PATH": "/usr/bin:/bin", "TEST_STALL_SECONDS": more.isEmpty ? "60" : "1"]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(said.hasPrefix(text), "everything goes through")
        return (said.split(separator: "\n").map(String.init), process.terminationStatus)
    }

    private static let passed = """
        ◇ Test run started.
        ◇ Test "quick" started.
        ✔ Test "quick" passed after 0.010 seconds.
        ◇ Test "slow, in cases" started.
        ◇ Test case passing 1 argument kind → "a" to "slow, in cases" started.
        ✔ Test "slow, in cases" with 2 test cases passed after 12.500 seconds.
        ➜ Test "absent" skipped: "needs root"

        """
    private static let failed = """
        ◇ Test "wrong" started.
        half a line without an end✘ Test "wrong" recorded an issue at ATests.swift:12:9: Expectation failed: (1) == 2
        ↳ the node's log:
        it was \(String(repeating: "very ", count: 300))full
        ✘ Test "wrong" recorded an issue with 1 argument kind → "b" at BTests.swift:7:1: Issue recorded
        ↳ too late
        ✘ Test "wrong" failed after 1.250 seconds with 2 issues.

        """

    @Test("a run that passed ends with its slowest tests and its closing line")
    func passes() throws {
        let closing = "✔ Test run with 2 tests in 1 suite passed after 12.600 seconds."
        let (lines, status) = try run(Self.passed + closing + "\n", status: 0)
        #expect(status == 0)
        #expect(
            lines.suffix(4) == ["The slowest tests:", "12.5 s \"slow, in cases\"", "0.0 s \"quick\"", closing],
            "\(lines)")
    }

    @Test("a run that failed ends with each test's name, its issues with file and line, and the closing line")
    func fails() throws {
        let closing = "✘ Test run with 3 tests in 1 suite failed after 13.000 seconds with 2 issues."
        let (lines, status) = try run(Self.passed + Self.failed + closing + "\n", status: 5)
        #expect(status == 5)
        let summary = lines[try #require(lines.firstIndex(of: "What failed (1 tests):"))...].map { $0 }
        #expect(summary.dropFirst().first == "✘ \"wrong\" (1.2 s)")
        #expect(summary[2].hasPrefix("    ATests.swift:12: Expectation failed: (1) == 2 the node's log: it was very"))
        #expect(summary.contains { $0.hasSuffix("very full") }, "the end of a long text is kept")
        #expect(summary.contains("    BTests.swift:7: (with 1 argument kind → \"b\") too late"))
        #expect(summary.last == closing && summary.count <= 17)
        #expect(summary.allSatisfy { $0.count <= 180 })
    }

    /// A run of `swift test` in which this test fails once, or always, and is given a second try.
    private func secondTry(of identifier: String, passes: Bool) throws -> (lines: [String], status: Int32) {
        let swift = "/tmp/sp-summary-\(UInt32.random(in: 0...UInt32.max))"
        defer { try? FileManager.default.removeItem(atPath: swift) }
        try """
        #!/bin/sh
        if [ "$2" = --filter ]; then
            echo "filter $3"
            echo '\(passes ? "✔ Test \"late\" passed" : "✘ Test \"late\" failed") after 1.0 seconds.'
            exit \(passes ? 0 : 1)
        fi
        echo '{"payload":{"kind":"testEnded"}}' > "$3"
        echo '{"payload":{"kind":"issueRecorded","issue":{"isKnown":false},"testID":"\(identifier)"}}' >> "$3"
        echo '✘ Test "late" recorded an issue at A.swift:9:1: too late'
        echo '✘ Test "late" failed after 1.0 seconds with 1 issue.'
        echo '✘ Test run with 2 tests in 1 suite failed after 13.0 seconds with 1 issue.'
        exit 1
        """.write(toFile: swift, atomically: true, encoding: .utf8)
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/python3")
        process.arguments = [Self.script, swift, "test"]
        process.environment = ["PATH": "/usr/bin:/bin", "TEST_SECOND_TRY": "1"]
        let output = Pipe()
        process.standardOutput = output
        try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: swift)
        try process.run()
        let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return (said.split(separator: "\n").map(String.init), process.terminationStatus)
    }

    @Test("a test on real parts that fails once is run again alone, and a run that passes so says what failed at first")
    func secondTries() throws {
        let (lines, status) = try secondTry(of: "NodeTests.T/late()/A.swift:5:6", passes: true)
        #expect(status == 0)
        #expect(lines.contains(#"filter ^NodeTests\.T/late\(\)(/|$)"#), "\(lines)")
        #expect(lines.contains("UNSTEADY, passed when run again alone, to be mended (1 tests):"))
        #expect(lines.contains { $0.contains("A.swift:9: too late") })
        #expect(lines.last == "✔ Second try: 1 of 1 tests passed")
    }

    @Test("what fails twice, and what is the same on every machine, fails the run")
    func noSecondTry() throws {
        let (twice, status) = try secondTry(of: "NodeTests.T/late()/A.swift:5:6", passes: false)
        #expect(status == 1 && twice.contains { $0.hasPrefix("filter") } && twice.contains("What failed (1 tests):"))
        let (store, storeStatus) = try secondTry(of: "BlockStoreTests.T/late()/A.swift:5:6", passes: true)
        #expect(storeStatus == 1 && !store.contains { $0.hasPrefix("filter") }, "\(store)")
    }

    @Test("many failures are named in as many lines as there are kept, and counted")
    func many() throws {
        let text = (1...40).map {
            "✘ Test \"t\($0)\" recorded an issue at A.swift:\($0):1: no\n✘ Test \"t\($0)\" failed after 1.0 seconds "
                + "with 1 issue.\n"
        }
        let closing = "✘ Test run with 40 tests in 1 suite failed after 13.000 seconds with 40 issues."
        let (lines, _) = try run(text.joined() + closing + "\n", status: 1)
        let summary = lines[try #require(lines.firstIndex(of: "What failed (40 tests):"))...]
        #expect(summary.count == 17 && summary.last == closing)
        #expect(summary.contains("… and 26 more"))
    }

    @Test("a run that hangs is ended, and what was under way is named")
    func hangs() throws {
        let hang = try run("◇ Test \"endless\" started.\n", status: 0, then: "sleep 60;")
        #expect(hang.status == 137)
        #expect(
            hang.lines.suffix(3).first == "What failed:" && hang.lines.contains("✘ \"endless\": begun and not ended"))
    }

    @Test("a run that crashed names what was under way, a build that failed its errors")
    func crashes() throws {
        let crash = try run(
            Self.passed + "◇ Test \"fatal\" started.\nA.swift:3: Fatal error: Index out of range\n", status: 132)
        #expect(crash.status == 132)
        #expect(
            crash.lines.suffix(3) == [
                "What failed:", "✘ \"fatal\": begun and not ended", "A.swift:3: Fatal error: Index out of range",
            ])
        let build = try run("B.swift:1:2: error: no such thing\n[3/9] Compiling C\n", status: 1)
        #expect(build.lines.suffix(2) == ["What failed:", "B.swift:1:2: error: no such thing"])
    }
}
