import BlockIO
import Simulation
import Testing

@testable import BlockStore

@Suite("The checker")
struct CheckerTests {
    /// A sound pool with data, snapshots, attributes of several pages, and changes that only the journal has.
    private func makePool(_ disk: SimulatedDisk) throws -> (Pool, any BlockDevice) {
        let (pool, device, _) = try ScrubTests.makePool(disk)
        _ = try pool.createSnapshot(
            id: .random(), name: "t", volumes: [ScrubTests.volume], attributes: [UInt8](repeating: 7, count: 20000))
        try pool.maintain()
        for block in 0..<UInt64(30) { try device.write(pattern(block + 2000), at: block * 40960) }
        return (pool, device)
    }

    /// The same in one stretch and in as many as the pool has regions.
    private func check(_ pool: Pool) -> PoolCheckReport {
        let whole = PoolChecker.check(pool)
        var pieces = PoolChecker.check(pool, memoryBytes: 0)
        #expect(Set(whole.problems) == Set(pieces.problems))
        #expect(whole.problems.count == pieces.problems.count)
        pieces.problems = whole.problems
        #expect(whole == pieces)
        return whole
    }

    @Test("with memory for one region at a time a sound pool is found sound, and everything in it is counted once")
    func sound() throws {
        let (pool, _) = try makePool(SimulatedDisk(seed: 1))
        #expect(pool.core.space.regions.count > 1)
        let report = check(pool)
        #expect(report.problems == [])
        #expect(report.dataBlocks == 250)
        #expect(report.verifiedBlocks == 280)
        try pool.close()
    }

    @Test("with memory for one region at a time the same is wrong as with memory for all")
    func wrong() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, _) = try makePool(disk)
        let core = pool.core
        let head = try core.volume(ScrubTests.volume).head
        let shared = try ScrubTests.place(pool, 60 * 10)
        // A block with two owners, one that is taken for nothing, one that is in use and free, a wrong sum, rot.
        core.monitor.withLock {
            core.changeTop(head) { _ = $0.insert(RecentMapping(block: shared, crc: 1), for: 9_000) }
        }
        _ = try core.space.allocateData(1)
        try core.space.clearDurable(try ScrubTests.place(pool, 61 * 10))
        try core.space.release(try ScrubTests.place(pool, 61 * 10))
        head.root.mappedBlocks += 1
        disk.rot(block: try ScrubTests.place(pool, 62 * 10), bit: 4)
        let problems = check(pool).problems
        for part in [
            "and also", "taken and has no use", "in use and not taken", "owned and not marked", "and says",
            "is not what was written",
        ] {
            #expect(problems.contains { $0.contains(part) }, "\(part): \(problems)")
        }
    }

    @Test("what is wrong is named by volume, snapshot and offset, once for all that share it, with its kind")
    func words() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, _) = try makePool(disk)
        #expect(check(pool).kinds == [])
        disk.rot(block: try ScrubTests.place(pool, 62 * 10), bit: 4)
        var report = check(pool)
        #expect(report.kinds == [.data])
        #expect(report.problems.count == 1)
        let place = "4096 bytes at \(62 * 10 * 4096) of volume v, snapshot s of volume v, snapshot t of volume v"
        #expect(report.problems[0].contains(place), "\(report.problems)")
        try pool.maintain()
        let root = try pool.core.volume(ScrubTests.volume).head.root.pointer
        try pool.close()
        disk.rot(block: root.block, bit: 9)
        let again = try Pool.open(on: disk, options: .small())
        report = check(again)
        #expect(report.kinds.contains(.map) && !report.kinds.contains(.superblock))
        let page = report.problems.filter { $0.hasPrefix("map page \(root.block), which leads to ") }
        #expect(page.count == 1 && page[0].contains("\(64 << 20) bytes at 0 of volume v"), "\(report.problems)")
    }

    /// One thing that is wrong in a sound pool, and what the checker must say of it.
    struct Wrong: Sendable, CustomTestStringConvertible {
        var phrase: String
        var plant: @Sendable (PoolCore) throws -> Void
        var testDescription: String { phrase }
    }

    /// Gives a volume a map of one leaf, made by hand.
    private static func setMap(_ core: PoolCore, leaf: Page, mappedBlocks: UInt64) throws {
        let writer = MetadataWriter(core: core)
        var pointer = try writer.write(leaf, birth: 1)
        for _ in 0..<Format.mapRootLevel {
            let page = Page()
            page[child: 0] = pointer
            pointer = try writer.write(page, birth: 1)
        }
        try writer.flush()
        try core.volume(second).head.root = MapRoot(pointer: pointer, mappedBlocks: mappedBlocks)
    }

    private static let second = VolumeID("00000000-0000-4000-8000-000000000002")!

    private static func dataBlock(_ core: PoolCore) throws -> UInt64 {
        let block = try core.space.allocateData(1)!.lowerBound
        try core.space.markDurable(block)
        return block
    }

    private static let wrongs: [Wrong] = [
        Wrong(phrase: "is younger than its map page") { core in
            let leaf = Page()
            leaf[entry: 0] = LeafEntry(block: try dataBlock(core), birth: 2, crc: 0)
            try setMap(core, leaf: leaf, mappedBlocks: 1)
        },
        Wrong(phrase: "is empty") { try setMap($0, leaf: Page(), mappedBlocks: 0) },
        Wrong(phrase: "maps 1 blocks and says 2") { core in
            let leaf = Page()
            leaf[entry: 0] = LeafEntry(block: try dataBlock(core), birth: 1, crc: 0)
            try setMap(core, leaf: leaf, mappedBlocks: 2)
        },
        Wrong(phrase: "is younger than what refers to it") { core in
            for snapshot in core.snapshots.values { snapshot.members[0].dataset.epoch = 0 }
        },
        Wrong(phrase: "is not younger than its parent") { core in
            for dataset in core.datasets.values where dataset.role == .snapshot { dataset.epoch = Format.maxEpoch }
        },
        Wrong(phrase: "is referenced twice") { core in
            core.discardedStreams.append((core.superblock.catalogRoot, core.superblock.catalogBytes))
        },
        Wrong(phrase: "entries, not") { $0.overlayEntries += 1 },
        Wrong(phrase: "pages, not") { $0.pagesToMerge += 1 },
        Wrong(phrase: "and has room for") { core in
            let head = try core.volume(second).head
            _ = head.layers[0].insert(RecentMapping(block: 0, crc: 0), for: 0)
            core.overlayEntries += 1
        },
        Wrong(phrase: "is in use and about to be freed") { core in
            core.retired.append(Format.journalBlock, isUnmapped: false)
        },
        Wrong(phrase: "lies beyond all regions in use") { core in
            core.changeTop(try core.volume(second).head) {
                _ = $0.insert(RecentMapping(block: 1 << 30, crc: 0), for: 0)
            }
        },
        Wrong(phrase: "marked and has no owner") { _ = try dataBlock($0) },
        Wrong(phrase: "counts") { core in
            let bits = try core.space.bits(ofRegion: 0)
            bits.busy[bits.words - 1] ^= 1 << 63
        },
        Wrong(phrase: "blocks are in use, not") { core in
            for _ in 0..<2 {
                core.space.restore(region: core.space.regionsInUse, pointer: .null, kind: .data, count: 5)
                core.space.restore(region: core.space.regionsInUse - 1, pointer: .null, kind: .data, count: 5)
            }
        },
        Wrong(phrase: "lies in a region for metadata") { core in
            let block = try core.space.allocateMetadata()!
            core.changeTop(try core.volume(second).head) { _ = $0.insert(RecentMapping(block: block, crc: 0), for: 0) }
        },
    ]

    @Test("each thing that can be wrong is said, and by itself", arguments: wrongs)
    func each(_ wrong: Wrong) throws {
        let (pool, _) = try makePool(SimulatedDisk(seed: 1))
        _ = try pool.createVolume(id: Self.second, name: "w", sizeBytes: 1 * mib)
        try pool.maintain()
        #expect(PoolChecker.check(pool).problems == [])
        try wrong.plant(pool.core)
        let problems = PoolChecker.check(pool).problems
        #expect(problems.contains { $0.contains(wrong.phrase) }, "\(problems)")
    }

    @Test(
        "where a half reclaimed snapshot had a leaf and others have a page, the snapshot has nothing to say"
    )
    func reusedPages() throws {
        let disk = SimulatedDisk(seed: 1)
        var options = PoolOptions.small()
        options.reusesBlocksFirst = true
        // One leaf in each pass.
        options.reclaimPagesPerPass = 5
        options.inlineFrees = 0
        let pool = try Pool.create(on: disk, options: options)
        _ = try pool.createVolume(id: ScrubTests.volume, name: "v", sizeBytes: 64 << 20)
        let device = try pool.device(of: ScrubTests.volume)
        func writeLeaves(_ leaves: Range<UInt64>) throws {
            for leaf in leaves { try device.write(pattern(leaf), at: leaf << 20) }
            try pool.maintain()
        }
        try writeLeaves(0..<60)
        let snapshot = try pool.createSnapshot(id: .random(), name: "s", volumes: [ScrubTests.volume], attributes: [])
        try writeLeaves(0..<60)
        let old = try pool.core.member(of: snapshot.id, ScrubTests.volume)
        // The page above all leaves, which stays until the last of them is gone.
        var above = old.root.pointer
        for _ in 1..<Format.mapRootLevel { above = try pool.core.loadPage(above)[child: 0] }
        let leaves = try pool.core.loadPage(above)
        let blocks = (0..<60).map { leaves[child: $0].block }
        try pool.deleteSnapshot(snapshot.id)
        // Until the volume's leaf lies where the snapshot's was.
        var reused: UInt64?
        for _ in 0..<40 where reused == nil {
            try writeLeaves(0..<10)
            let root = try pool.core.volume(ScrubTests.volume).head.root.pointer
            reused = try (0..<10).first { leaf in
                var pointer = root
                for _ in 1..<Format.mapRootLevel { pointer = try pool.core.loadPage(pointer)[child: 0] }
                return try pool.core.loadPage(pointer)[child: leaf].block == blocks[leaf]
            }.map { UInt64($0) }
        }
        let place = try #require(reused) * Format.leafEntries
        #expect(old.role == .doomed && old.cursor > place)
        disk.rot(block: try ScrubTests.place(pool, place), bit: 4)
        let problems = PoolChecker.check(pool).problems
        #expect(problems.count == 1)
        #expect(problems.allSatisfy { $0.contains("at \(place * 4096) of volume v, is not") }, "\(problems)")
    }

    @Test("what cannot be read is said: attributes, the allocation map, maps")
    func unreadable() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, _) = try makePool(disk)
        try pool.maintain()
        let core = pool.core
        let places: [(UInt64, String)] = try core.monitor.withLock {
            let snapshot = core.snapshots.values.first { $0.name == "t" }!
            return [
                (snapshot.attributesRoot.block, "the attributes of t"),
                (core.superblock.allocationRoot.block, "of the allocation map is not what was written"),
                (core.space.regions[0].pointer.block, "of the allocation map is not what was written"),
                (try core.volume(ScrubTests.volume).head.root.pointer.block, "is not what was written"),
            ]
        }
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        for (block, phrase) in places {
            let wrong = disk.copy()
            wrong.rot(block: block, bit: 77)
            var options = PoolOptions.small()
            options.isReadOnly = true
            let opened = try Pool.open(on: wrong, options: options)
            let problems = PoolChecker.check(opened).problems
            #expect(problems.contains { $0.contains(phrase) }, "\(phrase): \(problems)")
            try opened.close()
        }
    }

    @Test("an owner is the same after it was packed into its 16 bytes")
    func packing() throws {
        let owner = OwnerTable.Owner(
            kind: .data, level: 0, logical: (1 << 34) - 1, birth: Format.maxEpoch, crc: 0xdead_beef)
        let page = OwnerTable.Owner(kind: .map, level: 4, logical: 1 << 33, birth: 77)
        var table = try OwnerTable(capacity: 2)
        table.begin(100..<102)
        table.markLeaving(100)
        #expect(table.claim(100, owner) == nil)
        #expect(table.claim(101, page) == nil)
        #expect(table[100] == owner)
        #expect(table[101] == page)
        #expect(table.isLeaving(100) && !table.isLeaving(101))
        #expect(table.claim(100, page) == owner)
        table.begin(200..<202)
        #expect(!table.isOwned(200) && !table.isLeaving(200) && !table.isOwned(201))
    }
}
