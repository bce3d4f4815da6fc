import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// A pool with one volume, written block by block.
private struct Bench {
    let pool: Pool
    let volume = VolumeID.random()

    init(maxSizeBytes: UInt64 = 64 * mib) throws {
        var options = PoolOptions.small()
        options.maxSizeBytes = maxSizeBytes
        pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 * mib)
    }

    func write(_ blocks: Range<UInt64>, _ tag: UInt64, to volume: VolumeID? = nil) throws {
        let device = try pool.device(of: volume ?? self.volume)
        for block in blocks { try device.write(pattern(tag &+ block), at: block * 4096) }
    }

    func snapshot(_ name: String, of volumes: [VolumeID]? = nil) throws -> SnapshotID {
        let id = SnapshotID.random()
        _ = try pool.createSnapshot(id: id, name: name, volumes: volumes ?? [volume], attributes: [])
        return id
    }

    func clone(_ snapshot: SnapshotID, _ name: String, of volume: VolumeID? = nil) throws -> VolumeID {
        let id = VolumeID.random()
        _ = try pool.clone(snapshot: snapshot, volume: volume ?? self.volume, newID: id, name: name)
        return id
    }

    func blocks(_ ids: SnapshotID...) throws -> (exclusive: UInt64, freed: UInt64) {
        let answer = try pool.space(of: ids)
        return (answer.exclusive.dataBytes / 4096, answer.freed.dataBytes / 4096)
    }

    /// Blocks and pages in use once reclaim has done what it can.
    func settled() throws -> (data: UInt64, pages: UInt64) {
        repeat { try pool.maintain() } while pool.core.monitor.withLock { pool.core.hasReclaimableDataset }
        let report = PoolChecker.check(pool)
        #expect(report.isSound, "\(report.problems)")
        return (report.dataBlocks, report.mapPages)
    }
}

@Suite("Space")
struct SpaceTests {
    @Test("a snapshot holds what was overwritten since and not before; what two share, only both together hold")
    func ranges() throws {
        let bench = try Bench()
        try bench.write(0..<100, 1)
        let first = try bench.snapshot("first")
        try bench.write(0..<10, 2)
        let second = try bench.snapshot("second")
        try bench.write(10..<30, 3)
        #expect(try bench.blocks(first) == (10, 10))
        // Blocks 10..<30 of the first writes are in both; the second has nothing that is in it alone.
        #expect(try bench.blocks(second) == (0, 0))
        #expect(try bench.blocks(first, second) == (30, 30))
        #expect(try bench.pool.space(of: [], volumes: [bench.volume]).exclusive.dataBytes == 20 * 4096)
    }

    @Test("what an answer says would be freed is what the deletion frees, to the block and the page")
    func freedIsFreed() throws {
        let bench = try Bench()
        var ids: [SnapshotID] = []
        for round in 0..<6 {
            let start = UInt64(round) * 700
            try bench.write(start..<(start + 900), UInt64(round + 1) << 20)
            ids.append(try bench.snapshot("s\(round)"))
        }
        try bench.write(0..<300, 9 << 20)
        for chosen in [[1, 2], [4], [0], [3, 5]] {
            let before = try bench.settled()
            let answer = try bench.pool.space(of: chosen.map { ids[$0] })
            for index in chosen { try bench.pool.deleteSnapshot(ids[index]) }
            let after = try bench.settled()
            #expect(answer.freed.dataBytes == (before.data - after.data) * 4096)
            #expect(answer.freed.mapBytes == (before.pages - after.pages) * 4096)
            #expect(answer.exclusive == answer.freed)
        }
    }

    @Test("the pool's use falls by what the answer says, to the byte, evidence included, also with a clone beside it")
    func freedToTheByte() throws {
        // In one large region, so that no bitmap comes free with the last block of its region.
        let bench = try Bench(maxSizeBytes: 8 << 30)
        var ids: [SnapshotID] = []
        for (round, attributeBytes) in [0, 100, 4096, 20000].enumerated() {
            try bench.write(UInt64(round * 300)..<UInt64(round * 300 + 500), UInt64(round + 1) << 20)
            ids.append(.random())
            _ = try bench.pool.createSnapshot(
                id: ids[round], name: "s\(round)", volumes: [bench.volume],
                attributes: [UInt8](repeating: 7, count: attributeBytes))
        }
        let clone = try bench.clone(ids[0], "c")
        try bench.write(0..<40, 77 << 20, to: clone)
        try bench.write(100..<900, 9 << 20)
        /// The catalog is not asked about, and is no larger than a page here.
        func used() throws -> UInt64 {
            _ = try bench.settled()
            for _ in 0..<3 { try bench.pool.maintain() }
            #expect(bench.pool.statistics.reclaim.leavingBytes == 0)
            return bench.pool.statistics.usedBytes
        }
        for (chosen, evidenceBytes) in [([1], UInt64(4096)), ([2, 3], 4096 + 6 * 4096)] {
            let before = try used()
            let answer = try bench.pool.space(of: chosen.map { ids[$0] })
            #expect(answer.attributeBytes == evidenceBytes)
            for index in chosen { try bench.pool.deleteSnapshot(ids[index]) }
            #expect(before - (try used()) == answer.freedBytes)
        }
    }

    @Test("reclaim says how far it is: what is under way, what waits for others, and what it freed")
    func reclaimProgress() throws {
        var options = PoolOptions.small()
        options.reclaimPagesPerPass = 5
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options)
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 * mib)
        let device = try pool.device(of: volume)
        for block in 0..<UInt64(40) { try device.write(pattern(block), at: block * mib) }
        let id = SnapshotID.random()
        _ = try pool.createSnapshot(id: id, name: "s", volumes: [volume], attributes: [])
        for block in 0..<UInt64(40) { try device.write(pattern(block + 100), at: block * mib) }
        let cloned = VolumeID.random()
        _ = try pool.clone(snapshot: id, volume: volume, newID: cloned, name: "c")
        #expect(throws: PoolError.hasClones(["c"])) { try pool.deleteSnapshot(id) }
        _ = try pool.revert(
            volumes: [volume], to: id, keepAs: .random(), keepName: "kept", attributes: [])
        try pool.deleteVolume(cloned)
        while pool.statistics.reclaim.pending > 0 { try pool.maintain() }
        // The kept state and the head both stand on it.
        try pool.deleteSnapshot(id)
        try pool.maintain()
        #expect(pool.statistics.reclaim.pending == 1 && pool.statistics.reclaim.waiting == 1)
        let kept = try #require(pool.snapshots().first).id
        try pool.deleteSnapshot(kept)
        var steps: [UInt64] = []
        var freed: UInt64 = 0
        while pool.statistics.reclaim.pending > 0 {
            try pool.maintain()
            let progress = pool.statistics.reclaim
            if progress.pending == 2 { steps.append(progress.doneBytes) }
            #expect(progress.doneBytes <= progress.sizeBytes && progress.freedBytes >= freed)
            freed = progress.freedBytes
        }
        #expect(steps.count > 2 && steps == steps.sorted() && Set(steps).count == steps.count, "\(steps)")
        // The kept state's 40 blocks and their pages; the snapshot's own are the head's now.
        #expect(freed >= 80 * 4096)
        for _ in 0..<3 { try pool.maintain() }
        #expect(pool.statistics.reclaim.leavingBytes == 0)
        try pool.close()
    }

    @Test("a question while deletions are half reclaimed counts what they still give back to nobody")
    func halfReclaimed() throws {
        var options = PoolOptions.small()
        options.reclaimPagesPerPass = 7
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options)
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 * mib)
        let device = try pool.device(of: volume)
        var ids: [SnapshotID] = []
        for round in 0..<3 {
            for block in 0..<UInt64(4000) where block % 3 != UInt64(round) {
                try device.write(pattern(block + UInt64(round) << 20), at: block * 4096)
            }
            ids.append(SnapshotID.random())
            _ = try pool.createSnapshot(id: ids[round], name: "s\(round)", volumes: [volume], attributes: [])
        }
        try device.unmap(at: 0, lengthBytes: 64 * mib)
        try pool.maintain()
        try pool.deleteSnapshot(ids[1])
        try pool.maintain()
        try #require(pool.core.monitor.withLock { pool.core.tables.doomed.values.contains { $0.cursor > 0 } })
        func settle() throws -> UInt64 {
            repeat { try pool.maintain() } while pool.core.monitor.withLock { pool.core.hasReclaimableDataset }
            return PoolChecker.check(pool, verifiesData: false).dataBlocks
        }
        // The deletion of the middle one goes on by itself and is no part of the answer.
        let answer = try pool.space(of: [ids[0]])
        let before = try settle()
        #expect(try pool.space(of: [ids[0]]) == answer)
        try pool.deleteSnapshot(ids[0])
        #expect(answer.freed.dataBytes == (before - (try settle())) * 4096)
    }

    @Test("after a revert a snapshot's blocks come back when one of its two successors is left, and the answer says so")
    func forks() throws {
        let bench = try Bench()
        try bench.write(0..<50, 1)
        let first = try bench.snapshot("first")
        try bench.write(0..<20, 2)
        let kept = SnapshotID.random()
        _ = try bench.pool.revert(
            volumes: [bench.volume], to: first, keepAs: kept, keepName: "kept", attributes: [])
        try bench.write(0..<5, 3)
        let answer = try bench.pool.space(of: [first])
        #expect(answer.exclusive.dataBytes == 5 * 4096 && answer.freed == SpaceUse())
        let before = try bench.settled()
        try bench.pool.deleteSnapshot(first)
        #expect(try bench.settled().data == before.data)
        // The kept one's twenty, and the five that the deleted one left behind.
        let last = try bench.pool.space(of: [kept])
        #expect(last.exclusive.dataBytes == 20 * 4096 && last.freed.dataBytes == 25 * 4096)
        try bench.pool.deleteSnapshot(kept)
        #expect(try bench.settled().data == before.data - 25)
    }

    @Test("space asked for in a read-only pool whose changes are on the disk is answered")
    func readOnly() throws {
        let disk = SimulatedDisk(seed: 1)
        let pool = try Pool.create(on: disk, options: .small())
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: mib)
        try pool.device(of: volume).write(pattern(1), at: 0)
        let id = SnapshotID.random()
        _ = try pool.createSnapshot(id: id, name: "s", volumes: [volume], attributes: [])
        try pool.device(of: volume).unmap(at: 0, lengthBytes: mib)
        try pool.close()
        var options = PoolOptions.small()
        options.isReadOnly = true
        let again = try Pool.open(on: disk.handedOver(), options: options)
        #expect(try again.space(of: [id]).freed.dataBytes == 4096)
        #expect(throws: PoolError.self) { try again.space(of: [SnapshotID.random()]) }
    }
}

@Suite("Promotion")
struct PromotionTests {
    private func members(_ pool: Pool, _ name: String) -> [VolumeID] {
        pool.snapshots().first { $0.name == name }!.members.map(\.volume)
    }

    @Test("a promoted clone owns its origin and what is older, and the volume it came from can go")
    func promote() throws {
        let bench = try Bench()
        let pool = bench.pool
        try bench.write(0..<10, 1)
        let old = try bench.snapshot("old")
        try bench.write(0..<5, 2)
        let origin = try bench.snapshot("origin")
        try bench.write(0..<5, 3)
        let younger = try bench.snapshot("younger")
        let clone = try bench.clone(origin, "clone")
        try bench.write(20..<30, 4, to: clone)
        #expect(throws: PoolError.hasClones(["clone"])) { try pool.deleteSnapshot(origin) }

        let result = try pool.promote(clone)
        #expect(result.snapshots == [old, origin] && result.volume.clonedFrom == nil)
        #expect(members(pool, "old") == [clone] && members(pool, "origin") == [clone])
        #expect(members(pool, "younger") == [bench.volume])
        let former = pool.volumes().first { $0.id == bench.volume }!
        #expect(former.clonedFrom == CloneOrigin(snapshot: origin, volume: clone))
        #expect(try pool.device(of: origin, volume: clone).read(4096, at: 0) == pattern(2))
        #expect(throws: PoolError.hasClones(["v"])) { try pool.deleteSnapshot(origin) }
        #expect(throws: PoolError.notAClone("clone")) { try pool.promote(clone) }

        try pool.deleteSnapshot(younger)
        try pool.deleteVolume(bench.volume)
        try pool.deleteSnapshot(origin)
        try pool.deleteSnapshot(old)
        #expect(try pool.device(of: clone).read(4096, at: 9 * 4096) == pattern(1 + 9))
        #expect(try bench.settled().data == 20)
    }

    @Test("a clone of a clone takes over what is its parent's, and at a second promotion what is its grandparent's")
    func chain() throws {
        let bench = try Bench()
        let pool = bench.pool
        try bench.write(0..<4, 1)
        let first = try bench.snapshot("first")
        let child = try bench.clone(first, "child")
        try bench.write(0..<2, 2, to: child)
        let second = try bench.snapshot("second", of: [child])
        let grandchild = try bench.clone(second, "grandchild", of: child)

        #expect(try pool.promote(grandchild).snapshots == [second])
        #expect(pool.volumes().first { $0.id == grandchild }!.clonedFrom?.snapshot == first)
        #expect(pool.volumes().first { $0.id == child }!.clonedFrom?.snapshot == second)
        #expect(try pool.promote(grandchild).snapshots == [first])
        #expect(pool.volumes().first { $0.id == bench.volume }!.clonedFrom?.volume == grandchild)
        // A revert of the grandchild may now go back to what the first volume was.
        _ = try pool.revert(
            volumes: [grandchild], to: first, keepAs: .random(), keepName: "kept", attributes: [])
        #expect(try pool.device(of: grandchild).read(4096, at: 0) == pattern(1))
        try pool.deleteVolume(child)
        try pool.deleteVolume(bench.volume)
        _ = try bench.settled()
    }

    @Test("a promotion survives a crash, and the other members of a group stay whose they were")
    func crash() throws {
        let disk = SimulatedDisk(seed: 3)
        let pool = try Pool.create(on: disk, options: .small())
        let (a, b, clone) = (VolumeID.random(), VolumeID.random(), VolumeID.random())
        _ = try pool.createVolume(id: a, name: "a", sizeBytes: mib)
        _ = try pool.createVolume(id: b, name: "b", sizeBytes: mib)
        let group = SnapshotID.random()
        _ = try pool.createSnapshot(id: group, name: "group", volumes: [a, b], attributes: [7])
        _ = try pool.clone(snapshot: group, volume: a, newID: clone, name: "clone")
        _ = try pool.promote(clone)
        let again = try Pool.open(on: disk.crashed(), options: .small())
        #expect(Set(again.snapshots()[0].members.map(\.volume)) == [clone, b])
        #expect(again.volumes().first { $0.id == a }!.clonedFrom == CloneOrigin(snapshot: group, volume: clone))
        #expect(PoolChecker.check(again).isSound)
        #expect(throws: PoolError.hasSnapshots(["group"])) { try again.deleteVolume(clone) }
    }
}

@Suite("Differences")
struct DiffTests {
    private func extents(_ diff: SnapshotDiff, limit: Int = 4096) throws -> [DiffExtent] {
        var all: [DiffExtent] = []
        while let next = try diff.next(limit: limit) {
            for extent in next {
                if let last = all.last, last.kind == extent.kind, last.offset + last.lengthBytes == extent.offset {
                    all[all.count - 1].lengthBytes += extent.lengthBytes
                } else {
                    all.append(extent)
                }
            }
        }
        return all
    }

    private func extent(_ blocks: Range<UInt64>, _ kind: DiffExtent.Kind) -> DiffExtent {
        DiffExtent(offset: blocks.lowerBound * 4096, lengthBytes: UInt64(blocks.count) * 4096, kind: kind)
    }

    @Test("a diff has what was written and what became a hole, and nothing else, in both directions")
    func exact() throws {
        let bench = try Bench()
        try bench.write(0..<300, 1)
        let first = try bench.snapshot("first")
        try bench.write(10..<20, 2)
        try bench.pool.device(of: bench.volume).unmap(at: 250 * 4096, lengthBytes: 100 * 4096)
        try bench.write(400..<401, 3)
        let second = try bench.snapshot("second")
        try bench.write(0..<1, 4)
        let forth = try bench.pool.diff(from: first, to: second, volume: bench.volume)
        #expect(
            try extents(forth, limit: 1)
                == [extent(10..<20, .data), extent(250..<300, .hole), extent(400..<401, .data)])
        let back = try bench.pool.diff(from: second, to: first, volume: bench.volume)
        #expect(
            try extents(back) == [extent(10..<20, .data), extent(250..<300, .data), extent(400..<401, .hole)])
        let whole = try bench.pool.diff(from: nil, to: second, volume: bench.volume)
        #expect(try extents(whole) == [extent(0..<250, .data), extent(400..<401, .data)])
        #expect(try extents(try bench.pool.diff(from: second, to: second, volume: bench.volume)).isEmpty)
    }

    @Test("a diff goes on from where it stopped, over resizes, reverts and clones")
    func related() throws {
        let bench = try Bench()
        let pool = bench.pool
        try bench.write(0..<3000, 1)
        let first = try bench.snapshot("first")
        try bench.write(2000..<2010, 2)
        try pool.resizeVolume(bench.volume, sizeBytes: 8 * mib + 40960)
        let second = try bench.snapshot("second")
        let diff = try pool.diff(from: first, to: second, volume: bench.volume, startingAt: 2005 * 4096)
        #expect(diff.fromSizeBytes == 64 * mib && diff.toSizeBytes == 8 * mib + 40960)
        #expect(try extents(diff) == [extent(2005..<2010, .data)])

        let clone = try bench.clone(first, "clone")
        try bench.write(5..<6, 3, to: clone)
        let ofClone = try bench.snapshot("of-clone", of: [clone])
        #expect(
            try extents(try pool.diff(from: first, to: ofClone, volume: clone)) == [extent(5..<6, .data)])
        #expect(
            try extents(try pool.diff(from: second, to: ofClone, volume: clone, fromVolume: bench.volume))
                == [extent(5..<6, .data), extent(2000..<2010, .data), extent(2058..<3000, .data)])
    }

    @Test("snapshots without a common history are refused, and one that is deleted ends its diff")
    func refusals() throws {
        let bench = try Bench()
        let pool = bench.pool
        try bench.write(0..<2000, 1)
        let first = try bench.snapshot("first")
        let other = VolumeID.random()
        _ = try pool.createVolume(id: other, name: "other", sizeBytes: mib)
        let stranger = try bench.snapshot("stranger", of: [other])
        #expect(
            throws: PoolError.unrelated("snapshots first and stranger have no common history of the volume")
        ) { try pool.diff(from: first, to: stranger, volume: other) }
        #expect(throws: PoolError.self) { try pool.diff(from: nil, to: first, volume: other) }
        #expect(throws: PoolError.self) {
            try pool.diff(from: nil, to: first, volume: bench.volume, startingAt: 512)
        }
        let diff = try pool.diff(from: nil, to: first, volume: bench.volume)
        _ = try diff.next(limit: 1)
        try pool.deleteSnapshot(first)
        #expect(throws: PoolError.notFound("snapshot first")) { try diff.next() }
    }

    @Test("a diff of a terabyte with two changes looks at a handful of pages")
    func cost() throws {
        let bench = try Bench()
        let big = VolumeID.random()
        _ = try bench.pool.createVolume(id: big, name: "big", sizeBytes: 1 << 40)
        let device = try bench.pool.device(of: big)
        for index in 0..<UInt64(200) { try device.write(pattern(index), at: index << 32 & ((1 << 40) - 1)) }
        let first = try bench.snapshot("first", of: [big])
        try device.write(pattern(500), at: 1 << 39)
        let second = try bench.snapshot("second", of: [big])
        let diff = try bench.pool.diff(from: first, to: second, volume: big)
        // One step of at most 512 pages was enough.
        #expect(try diff.next() == [DiffExtent(offset: 1 << 39, lengthBytes: 4096, kind: .data)])
        #expect(try diff.next() == nil)
    }
}
