import Glibc
import Testing

func environmentText(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

func environmentNumber(_ name: String) -> UInt64? {
    getenv(name).flatMap { UInt64(String(cString: $0)) }
}

/// STILLPOINT_SIM_SEEDS sets how many seeds run, from STILLPOINT_SIM_FIRST_SEED on; STILLPOINT_SIM_SEED replays one
/// of them. A handful here, in a debug build; `make test` runs a thousand, optimized, as `make simulate` does.
@Suite("The simulator")
struct SimulationTests {
    private var seeds: Range<UInt64> {
        if let one = environmentNumber("STILLPOINT_SIM_SEED") { return one..<(one + 1) }
        let first = environmentNumber("STILLPOINT_SIM_FIRST_SEED") ?? 1
        return first..<(first + (environmentNumber("STILLPOINT_SIM_SEEDS") ?? 5))
    }

    private func run(_ faults: Simulator.Options.Faults, endsProcesses: Bool = false) {
        var failures = 0
        for seed in seeds where failures < 5 {
            let simulator = Simulator(seed: seed, options: .init(faults: faults, endsProcesses: endsProcesses))
            do {
                try simulator.run()
            } catch {
                failures += 1
                let text = error is Simulator.Failure ? "\(error)" : "\(simulator.fail("\(error)"))"
                Issue.record("\(text) (once more: make simulate SEED=\(seed))")
            }
        }
    }

    @Test("after a crash at any point everything flushed is there, cuts are exact, and every block has one owner")
    func crashes() { run(.crashesOnly) }

    @Test("a process that ends at any point loses nothing acknowledged, flushed or not")
    func processEnds() { run(.crashesOnly, endsProcesses: true) }

    @Test("the same holds when reads, writes and syncs fail")
    func errors() { run(.errors) }
}
