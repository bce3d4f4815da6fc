import BlockIO
import Simulation
import Testing

@testable import BlockStore

#if DEBUG
    /// Each planted bug must be found by the simulator within 200 seeds, most within 40.
    @Suite("Planted bugs")
    struct PlantedBugTests {
        /// Need something between two syncs that no other write makes up for: looked for in longer runs.
        static let rare: Set<PlantedBug> = [.writebackTakenForSync]
        static let ofVolatileLog: Set<PlantedBug> = [
            .logFailureIgnored, .logDroppedTooEarly, .logRepeatsJournal, .logNotTurned, .logTornAccepted,
            .logBootIgnored, .logSessionIgnored,
        ]
        /// Found within 200 seeds.
        static let slow: Set<PlantedBug> = [
            .cursorIgnoredWhenFreeing, .tornBatchAccepted, .journalReusedTooEarly, .overwrittenReusedTooEarly,
            .freedReusedTooEarly, .checkpointNotSynced, .superblockNotSynced, .boundaryTooLate, .logFailureIgnored,
            .logDroppedTooEarly, .logNotTurned, .lateDataTakenForSynced, .lateOverwritesReleased, .readersNotAwaited,
            .cacheTrusted, .logTornAccepted, .logSessionIgnored,
        ]
        /// These need a second thread, a full pool or rot, and have tests of their own.
        static let special: Set<PlantedBug> = [
            .claimIgnored, .checksumIgnored, .noReserve, .digestNotCompared, .logGapAccepted,
        ]
        /// Looked for in histories with rotten map pages.
        static let ofLostPages: [PlantedBug] = [.lostPageIsEmpty, .lostSuccessorIsEmpty]
        static let isLongRun = (environmentNumber("STILLPOINT_SIM_SEEDS") ?? 0) >= 200

        static let simulated = PlantedBug.allCases.filter {
            !special.contains($0) && !ofLostPages.contains($0) && (isLongRun || !rare.contains($0))
                && $0.rawValue == environmentText("STILLPOINT_SIM_BUG") ?? $0.rawValue
        }

        @Test(
            "the simulator finds each planted bug",
            .enabled(if: isLongRun, "needs hundreds of histories: make simulate"), arguments: simulated)
        func found(_ bug: PlantedBug) {
            let limit: UInt64 = Self.rare.union(Self.slow).contains(bug) ? 200 : 40
            if let count = environmentNumber("STILLPOINT_SIM_BUG_SEEDS") {
                let found = (1...count).filter { Self.isFound(bug, seed: $0) }
                return print("\(bug): \(found.count) of \(count) seeds find it, \(found.prefix(3)) first")
            }
            guard let seed = (1...limit).first(where: { Self.isFound(bug, seed: $0) }) else {
                Issue.record("\(bug) was not found within \(limit) seeds")
                return
            }
            if environmentNumber("STILLPOINT_SIM_VERBOSE") != nil { print("\(bug) found with seed \(seed)") }
        }

        private static func isFound(_ bug: PlantedBug, seed: UInt64) -> Bool {
            var options = Simulator.Options()
            options.plantedBug = bug
            options.endsProcesses = ofVolatileLog.contains(bug)
            do {
                try HistoryWatch.watching(bug, seed) { try Simulator(seed: seed, options: options).run() }
                return false
            } catch {
                return true
            }
        }

        @Test(
            "histories with rotten map pages find each bug in what deals with those",
            .enabled(if: isLongRun, "needs many histories: make simulate"), arguments: ofLostPages)
        func foundByRot(_ bug: PlantedBug) throws {
            for seed in 1...(environmentNumber("STILLPOINT_SIM_BUG_SEEDS") ?? 40) {
                // SAFETY: one thread runs the closures, one after another.
                nonisolated(unsafe) var isFound = false
                try withKnownIssue("a planted bug", isIntermittent: true) {
                    var history = MapRotHistory(seed: seed, plantedBug: bug)
                    try history.run()
                } matching: { _ in
                    isFound = true
                    return true
                }
                if isFound {
                    if environmentNumber("STILLPOINT_SIM_VERBOSE") != nil { print("\(bug) found with seed \(seed)") }
                    return
                }
            }
            Issue.record("\(bug) was not found within 40 seeds")
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

        @Test("a replay that goes on behind a gap brings back what came after a lost change")
        func logGapAccepted() throws {
            #expect(try VolatileLogTests.gap(plantedBug: .logGapAccepted) == [true, true, true, false, true, true])
        }

        @Test("without claims two writers of one block lose each other's sectors")
        func claimIgnored() throws {
            for _ in 0..<2000 {
                if try !ConcurrencyTests.sectorsSurvive(plantedBug: .claimIgnored) { return }
            }
            Issue.record("no sector was lost")
        }
    }
#endif
