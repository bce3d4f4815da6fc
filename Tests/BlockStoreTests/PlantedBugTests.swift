import BlockIO
import Simulation
import Testing

@testable import BlockStore

#if DEBUG
    /// Each planted bug must be found by the simulator within `seedLimit` seeds.
    @Suite("Planted bugs")
    struct PlantedBugTests {
        static let seedLimit: UInt64 = 150

        /// The others need a second thread, a full pool or rot, and have tests of their own.
        static let simulated = PlantedBug.allCases.filter {
            ![.claimIgnored, .checksumIgnored, .noReserve].contains($0)
        }

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

        @Test("without the reserve a pool that fills up fails")
        func noReserve() throws {
            var options = PoolOptions.small()
            options.maxSizeBytes = 8 << 20
            options.plantedBug = .noReserve
            let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options)
            try FullPoolTests.fill(pool)
            guard case .readOnly = pool.statistics.state else {
                Issue.record("the pool did not fail: \(pool.statistics)")
                return
            }
        }

        @Test("without comparing checksums rot is returned as data")
        func checksumIgnored() throws {
            var options = PoolOptions.small()
            options.plantedBug = .checksumIgnored
            let disk = SimulatedDisk(seed: 1)
            let pool = try Pool.create(on: disk, options: options)
            let volume = VolumeID.random()
            _ = try pool.createVolume(id: volume, name: "v", sizeBytes: mib)
            let device = try pool.device(of: volume)
            try device.write(pattern(1), at: 0)
            disk.rot(block: disk.occupiedBlocks.last!, bit: 5)
            #expect(try device.read(4096, at: 0) != pattern(1))
        }

        @Test("without claims two writers of one block lose each other's sectors")
        func claimIgnored() throws {
            for _ in 0..<50 {
                if try !ConcurrencyTests.sectorsSurvive(plantedBug: .claimIgnored) { return }
            }
            Issue.record("no sector was lost")
        }
    }
#endif
