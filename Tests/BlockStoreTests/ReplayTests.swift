import Glibc
import Testing

/// A history follows from its seed alone: from no order of a hash table, address, clock, or random number, and not from
/// the process that it runs in. So a failing seed of one machine fails on every other.
@Suite("Replay of histories")
struct ReplayTests {
    private static let file = environmentText("STILLPOINT_SIM_TRACES")

    /// What was done in each of some histories, and each call that reached the disk.
    private static func traces() -> [String] {
        let first = environmentNumber("STILLPOINT_SIM_FIRST_SEED") ?? 1
        let count = environmentNumber("STILLPOINT_SIM_SEEDS") ?? 4
        var traces: [String] = []
        for mode in SimulationTests.Mode.allCases {
            for index in 0..<max(2, min(count / 50, 20)) {
                let simulator = Simulator(seed: first &+ index, options: mode.options)
                try? simulator.run()
                traces.append("\(mode.rawValue) of seed \(first &+ index): \(String(simulator.trace, radix: 16))")
            }
        }
        return traces
    }

    @Test("a seed has one history in every process")
    func oneHistory() throws {
        let directory = ScratchDirectory()
        let other = directory.file("traces")
        try Self.runOtherProcess(writing: other)
        let (here, again) = (Self.traces(), Self.traces())
        #expect(again == here)
        #expect(Self.lines(of: other) == here)
    }

    /// What the other process does.
    @Test("traces of histories", .enabled(if: file != nil, "only where another process asks for them"))
    func writeTraces() throws {
        let file = try #require(fopen(Self.file ?? "", "w"))
        for trace in Self.traces() { fputs(trace + "\n", file) }
        fclose(file)
    }

    private static func lines(of path: String) -> [String] {
        guard let file = fopen(path, "r") else { return [] }
        defer { fclose(file) }
        var lines: [String] = []
        var buffer = [CChar](repeating: 0, count: 256)
        while fgets(&buffer, Int32(buffer.count), file) != nil {
            let bytes = buffer.prefix { $0 != 0 && $0 != 10 }.map { UInt8(bitPattern: $0) }
            lines.append(String(decoding: bytes, as: UTF8.self))
        }
        return lines
    }

    /// This program once more, for the other test alone.
    private static func runOtherProcess(writing path: String) throws {
        let program = try #require(realpath("/proc/self/exe", nil))
        defer { free(program) }
        let command = """
            STILLPOINT_SIM_TRACES='\(path)' exec '\(String(cString: program))' --testing-library swift-testing \
            --filter ReplayTests/writeTraces >/dev/null 2>&1 </dev/null
            """
        #expect(system(command) == 0, "the other process failed")
    }
}
