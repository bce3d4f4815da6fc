import Testing

@testable import BlockStore

#if DEBUG
    /// Each planted bug must be found by the simulator within `seedLimit` seeds.
    @Suite("Planted bugs")
    struct PlantedBugTests {
        static let seedLimit: UInt64 = 150

        /// What the simulator's single thread cannot show is found by tests of its own.
        static let simulated = PlantedBug.allCases.filter { $0 != .claimIgnored && $0 != .checksumIgnored }

        @Test("the simulator finds each planted bug", arguments: simulated)
        func found(_ bug: PlantedBug) {
            for seed in 1...Self.seedLimit {
                var options = Simulator.Options()
                options.plantedBug = bug
                do {
                    try Simulator(seed: seed, options: options).run()
                } catch {
                    return
                }
            }
            Issue.record("\(bug) was not found within \(Self.seedLimit) seeds")
        }
    }
#endif
