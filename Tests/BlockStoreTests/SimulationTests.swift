import Glibc
import Testing

func environmentText(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

func environmentNumber(_ name: String) -> UInt64? {
    getenv(name).flatMap { UInt64(String(cString: $0)) }
}

/// STILLPOINT_SIM_SEEDS sets how many seeds run, from STILLPOINT_SIM_FIRST_SEED on; STILLPOINT_SIM_SEED replays one
/// of them and prints its histories. A handful here, in a debug build; `make test` runs a thousand, optimized, as
/// `make simulate` does. See docs/simulator.md.
@Suite("The simulator")
struct SimulationTests {
    /// One history of each kind for every seed.
    enum Mode: String, CaseIterable {
        case crashes, kills, errors, lies

        var options: Simulator.Options {
            switch self {
            case .crashes: .init()
            case .kills: .init(endsProcesses: true)
            case .errors: .init(faults: .errors)
            case .lies: .init(faults: .lies)
            }
        }

        /// What must have happened in a run over many seeds.
        var expected: Set<Coverage.Event> {
            switch self {
            case .crashes, .kills: Coverage.everywhere
            case .errors: Coverage.ofErrors
            case .lies: Coverage.everywhere.union(Coverage.ofLies)
            }
        }
    }

    /// Seeds enough that each event is certain.
    private static let fullRun: UInt64 = 500
    private static let mostFailures = 20
    private let replayed = environmentNumber("STILLPOINT_SIM_SEED")
    private let first = environmentNumber("STILLPOINT_SIM_FIRST_SEED") ?? 1
    private let count = environmentNumber("STILLPOINT_SIM_SEEDS") ?? 4
    private let isVerbose = environmentText("STILLPOINT_SIM_VERBOSE") != nil

    private func run(_ mode: Mode) {
        guard environmentText("STILLPOINT_SIM_MODE") ?? mode.rawValue == mode.rawValue else { return }
        if let replayed { return replay(mode, replayed) }
        var coverage = Coverage()
        var failed: [UInt64] = []
        for index in 0..<count where failed.count < Self.mostFailures {
            let seed = first &+ index
            let simulator = Simulator(seed: seed, options: mode.options)
            do {
                try HistoryWatch.watching(mode, seed) { try simulator.run() }
            } catch {
                failed.append(seed)
                HistoryWatch.note(mode, seed)
                let text = Self.text(of: error, simulator)
                Issue.record("\(text) (once more: \(HistoryWatch.command(mode, seed)))")
            }
            coverage.add(simulator.coverage)
            if count >= Self.fullRun, (index + 1) % (count / 5) == 0 {
                say("\(mode.rawValue): \(index + 1) of \(count) seeds, \(failed.count) failed")
            }
        }
        if isVerbose { say("\(mode.rawValue): \(coverage.table)") }
        if !failed.isEmpty {
            say(
                (["\(mode.rawValue): failing seeds"] + failed.map { HistoryWatch.command(mode, $0) })
                    .joined(separator: "\n  "))
        }
        guard count >= Self.fullRun, failed.isEmpty else { return }
        let missing = coverage.missing(of: mode.expected)
        #expect(missing.isEmpty, "\(count) histories of kind \(mode.rawValue), and none of them has one of these")
    }

    /// Prints what happens, one line for each operation, and what is nested one deeper.
    private func replay(_ mode: Mode, _ seed: UInt64) {
        let simulator = Simulator(seed: seed, options: mode.options)
        simulator.log.isPrinted = true
        say("The history of seed \(seed), \(mode.rawValue):")
        var outcome = "all is as it should be"
        do {
            try HistoryWatch.watching(mode, seed) { try simulator.run() }
        } catch {
            outcome = "FAILED: " + Self.beginning(Self.text(of: error, simulator))
            Issue.record("\(outcome) (seed \(seed), \(mode.rawValue))")
        }
        say("\(mode.rawValue): \(outcome) (trace \(String(simulator.trace, radix: 16)))")
    }

    private static func text(of error: any Error, _ simulator: Simulator) -> String {
        error is Simulator.Failure ? "\(error)" : "\(simulator.fail("\(error)"))"
    }

    /// Without the operations, which are there already.
    private static func beginning(_ text: String) -> String {
        text.split(separator: "\n", omittingEmptySubsequences: false).prefix(3).joined(separator: "\n")
    }

    /// At once, though somebody may read it through a pipe.
    private func say(_ text: String) {
        print(text)
        fflush(nil)
    }

    @Test("after a crash at any point everything flushed is there, cuts are exact, and every block has one owner")
    func crashes() { run(.crashes) }

    @Test("a process that ends at any point loses nothing acknowledged, flushed or not")
    func processEnds() { run(.kills) }

    @Test("the same holds when reads, writes and syncs fail")
    func errors() { run(.errors) }

    @Test("a disk that loses or misplaces writes, or rots, is found out: what it spoils is an error and never data")
    func lies() { run(.lies) }
}
