import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// Operations on histories: promotions, space, differences.
extension Simulator {
    func promote() throws {
        guard let clone = model.origins.keys.sorted(by: { $0.description < $1.description }).first else { return }
        // A revert to an older snapshot of its own can take a clone off the snapshot that it came from.
        guard model.standsOnAnother(clone) else {
            #expect(throws: PoolError.self) { try pool!.promote(clone) }
            return
        }
        try attempt(
            "promote \(clone.description.prefix(4))", as: .promote, isDurable: true, change: { $0.promote(clone) },
            { _ = try $0.promote(clone) })
    }

    // MARK: Space

    /// Lets reclaim finish. False when the history went another way.
    func settle() throws -> Bool {
        try attempt("settle", isDurable: true, change: { _ in }) { pool in
            for _ in 0..<400 {
                try pool.maintain()
                if !pool.core.monitor.withLock({ pool.core.hasReclaimableDataset }) { return }
            }
        }
        return pool != nil
    }

    /// Asks what some snapshots hold, and compares the answer with the model, and with what deleting them gives back.
    func measure() throws {
        guard !isDamaged else { return }
        let free = model.snapshots.keys.filter { !model.origins.values.contains($0) }
            .sorted { $0.description < $1.description }
        let chosen = free.filter { _ in generator.chance(35) }
        guard !chosen.isEmpty else { return }
        disk.setPlan(nil)
        let compares = reclaimPages >= 6 && generator.chance(70)
        if compares {
            guard try settle() else { return }
        }
        guard let pool else { return }
        var answer: SpaceAnswer?
        try attempt("space of \(chosen.count)", as: .spaceAnswer, isDurable: false, change: { _ in }) {
            answer = try $0.space(of: chosen)
        }
        guard let answer, self.pool != nil else { return }
        let expected = UInt64(model.exclusiveBlocks(Set(chosen))) * 4096
        if sharingIsKnown, answer.exclusive.dataBytes != expected {
            throw fail("snapshots hold \(expected) bytes alone and the answer is \(answer.exclusive.dataBytes)")
        }
        guard compares else { return }
        let before = PoolChecker.check(pool, verifiesData: false)
        for id in chosen {
            try delete(id)
            guard self.pool != nil, model.snapshots[id] == nil else { return }
        }
        guard try settle() else { return }
        let after = PoolChecker.check(pool, verifiesData: false)
        let freed = SpaceUse(
            dataBytes: (before.dataBlocks - after.dataBlocks) * 4096,
            mapBytes: (before.mapPages - after.mapPages) * 4096)
        if answer.freed != freed {
            throw fail("deleting \(chosen.count) snapshots gave \(freed) back and the answer was \(answer)")
        }
    }

    // MARK: Growing and scrubbing

    func grow() throws {
        guard let size = pool?.statistics.sizeBytes, size < 48 << 20 else { return }
        try attempt(
            "grow the pool", as: .growth, isDurable: true, change: { $0.poolBytes = size * 2 },
            { try $0.grow(to: size * 2) })
    }

    /// Everything that the pool refers to must be what was written, at any moment.
    func scrub() throws {
        guard !isDamaged else { return try checkDamage() }
        let mustBeSound = options.faults != .errors && options.plantedBug == nil
        try attempt(
            "scrub", as: .scrub, isDurable: true, change: { _ in },
            { pool in
                let scrub = try pool.scrub()
                while try scrub.step(maxBytes: 1 << 20) {}
                // A scrub takes a disk that died meanwhile for one that is wrong everywhere.
                guard !self.disk.isDead else { throw BlockError.io(errno: 5) }
                // It may begin with a checkpoint, and that be what the disk lies about.
                guard scrub.report.damage.isEmpty || !mustBeSound || self.isDamaged else {
                    throw self.fail("a scrub found \(scrub.report.damage)")
                }
            })
    }

    // MARK: Differences

    func diff() throws {
        let all = model.members.keys.sorted {
            ($0.snapshot.description, $0.slot.description) < ($1.snapshot.description, $1.slot.description)
        }
        guard sharingIsKnown, !all.isEmpty, !isDamaged else { return }
        let old = all[Int(generator.below(UInt64(all.count)))]
        let new = all[Int(generator.below(UInt64(all.count)))]
        let (oldState, newState) = (model.members[old]!, model.members[new]!)
        var found: [DiffExtent] = []
        let limit = 1 + Int(generator.below(20))
        // Anywhere, as a reader who goes on does.
        let places = Self.places(sizeBytes: model.snapshots[new.snapshot]!.members[newState.owner]!.sizeBytes)
        let place = places[Int(generator.below(UInt64(places.count)))]
        let start =
            generator.chance(50) ? 0 : (place.lowerBound / 8 + generator.below(UInt64(place.count) / 8)) * 4096
        let restarts = generator.chance(50)
        var isUnrelated = false
        var isDone = false
        try attempt(
            "diff \(old.snapshot.description.prefix(4)) \(new.snapshot.description.prefix(4))", as: .diff,
            isDurable: false, change: { _ in }
        ) { pool in
            func open(_ offset: UInt64) throws -> SnapshotDiff {
                try pool.diff(
                    from: old.snapshot, to: new.snapshot, volume: newState.owner, fromVolume: oldState.owner,
                    startingAt: offset)
            }
            do {
                var diff = try open(start)
                while let extents = try diff.next(limit: limit) {
                    found += extents
                    if restarts { diff = try open(diff.offset) }
                }
                isDone = true
            } catch PoolError.unrelated {
                isUnrelated = true
            }
        }
        guard pool != nil else { return }
        if isUnrelated != (oldState.tree != newState.tree), isDone || isUnrelated {
            throw fail("a diff across \(oldState.tree) and \(newState.tree): unrelated is \(isUnrelated)")
        }
        guard isDone else { return }
        let before = model.snapshots[old.snapshot]!.members[oldState.owner]!
        let after = model.snapshots[new.snapshot]!.members[newState.owner]!
        try compare(found, before, after, from: start / 4096)
    }

    private func compare(
        _ found: [DiffExtent], _ before: VolumeModel, _ after: VolumeModel, from start: UInt64
    ) throws {
        var data: Set<UInt64> = []
        var holes: Set<UInt64> = []
        var last: UInt64 = 0
        for extent in found {
            if extent.offset < last { throw fail("a diff goes back to \(extent.offset)") }
            last = extent.offset + extent.lengthBytes
            for block in (extent.offset / 4096)..<(last / 4096) {
                if extent.kind == .data { data.insert(block) } else { holes.insert(block) }
            }
        }
        let expectedData = Set(after.blocks.filter { $0.key >= start && before.blocks[$0.key] != $0.value }.keys)
        let expectedHoles = Set(
            before.blocks.keys.filter { $0 >= start && after.blocks[$0] == nil && $0 * 4096 < after.sizeBytes })
        if data != expectedData || holes != expectedHoles {
            throw fail(
                "a diff has \(data.count) blocks of data and \(holes.count) of holes, "
                    + "and not \(expectedData.count) and \(expectedHoles.count)")
        }
    }
}
