import Simulation
import Synchronization

@testable import BlockStore

extension Surroundings {
    /// A clock and random numbers that follow from a seed: each look at the clock finds it a little later.
    static func seeded(_ seed: UInt64) -> Surroundings {
        let state = SeededState(seed: seed)
        return Surroundings(
            now: {
                state.values.withLock {
                    $0.now += 1 + $0.generator.below(1 << 30); return $0.now
                }
            },
            random: { state.values.withLock { $0.generator.next() } })
    }
}

private final class SeededState: Sendable {
    struct Values {
        /// 2033-05-18.
        var now: UInt64 = 2_000_000_000 * 1_000_000_000
        var generator: SeededGenerator
    }

    let values: Mutex<Values>

    init(seed: UInt64) { values = Mutex(Values(generator: SeededGenerator(seed: ~seed))) }
}
