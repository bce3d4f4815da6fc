import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// A seeded history in which map pages rot. The model knows of each volume and snapshot what each block must be, and
/// which blocks a rotten page has ever led to.
struct MapRotHistory {
    private struct Content {
        var tags: [UInt64: UInt64] = [:]
        /// A medium error is allowed here.
        var doubtful: [Range<UInt64>] = []
        /// Written since, so that it must be right again.
        var known: Set<UInt64> = []

        func mayBeLost(_ block: UInt64) -> Bool {
            !known.contains(block) && doubtful.contains { $0.contains(block) }
        }
    }

    /// Ends in the middle of a leaf, and of pages above it.
    private static let sizeBytes: UInt64 = 5_000_020 << 12
    private static let places: [UInt64] = [0, 256, 512, 32768, 32768 + 256, 5_000_000]

    private var generator: SeededGenerator
    private var disk: SimulatedDisk
    private var pool: Pool
    private var volumes: [VolumeID: Content] = [:]
    private var snapshots: [SnapshotID: [VolumeID: Content]] = [:]
    private var tag: UInt64 = 1

    private let plantedBug: PlantedBug?
    private let surroundings: Surroundings

    private func options() -> PoolOptions {
        var options = PoolOptions.small()
        options.plantedBug = plantedBug
        options.surroundings = surroundings
        options.cacheBytes = 64 << 10
        options.reclaimPagesPerPass = 5
        return options
    }

    init(seed: UInt64, plantedBug: PlantedBug? = nil) {
        self.plantedBug = plantedBug
        generator = SeededGenerator(seed: seed)
        surroundings = .seeded(seed)
        disk = SimulatedDisk(seed: seed)
        do {
            var options = PoolOptions.small()
            options.cacheBytes = 64 << 10
            options.reclaimPagesPerPass = 5
            options.plantedBug = plantedBug
            options.surroundings = surroundings
            pool = try Pool.create(on: disk, options: options)
        } catch {
            preconditionFailure("\(error)")
        }
    }

    mutating func run() throws {
        for index in 0..<3 {
            let id = VolumeID(.random(from: surroundings))
            _ = try pool.createVolume(id: id, name: "v\(index)", sizeBytes: Self.sizeBytes)
            volumes[id] = Content()
        }
        for _ in 0..<160 { try step() }
        try reopen()
        try checkAll()
        for id in snapshots.keys.sorted(by: { $0.description < $1.description }) { try pool.deleteSnapshot(id) }
        snapshots = [:]
        for _ in 0..<400 where pool.statistics.reclaimsPending > 0 { try pool.maintain() }
        #expect(pool.statistics.reclaimsPending == 0)
        try checkAll()
        #expect(pool.statistics.state == .healthy)
        // What was overwritten whole is sound again.
        for id in sortedVolumes { try pool.device(of: id).unmap(at: 0, lengthBytes: Self.sizeBytes) }
        repeat { try pool.maintain() } while pool.statistics.reclaimsPending > 0
        var report = PoolChecker.check(pool)
        // A page that no checkpoint had to read is still wrong.
        #expect(report.problems.allSatisfy { $0.contains("allocation map") })
        // Nothing leads anywhere any more, and what was set aside can be found; with it what only such a page says.
        #expect(try PoolChecker.repair(pool) ?? 0 >= report.setAsideBlocks)
        try pool.maintain()
        report = PoolChecker.check(pool)
        #expect(report.problems == [] && report.setAsideBlocks == 0)
        try pool.close()
    }

    private var sortedVolumes: [VolumeID] { volumes.keys.sorted { $0.description < $1.description } }

    private mutating func step() throws {
        let ids = sortedVolumes
        let id = ids[Int(generator.below(UInt64(ids.count)))]
        switch generator.below(100) {
        case 0..<50: try write(id)
        case 50..<58: try unmap(id)
        case 58..<66: try cut(ids)
        case 66..<72:
            guard let old = snapshots.keys.sorted(by: { $0.description < $1.description }).first else { return }
            try pool.deleteSnapshot(old)
            snapshots[old] = nil
        case 72..<86: try pool.maintain()
        case 86..<92: try rot()
        case 92..<96: try reopen()
        default: try checkAll()
        }
        #expect(pool.statistics.state == .healthy)
    }

    private mutating func write(_ id: VolumeID) throws {
        let place = Self.places[Int(generator.below(UInt64(Self.places.count)))]
        let block = place + generator.below(20)
        tag += 1
        try pool.device(of: id).write(pattern(tag), at: block * 4096)
        volumes[id]!.tags[block] = tag
        volumes[id]!.known.insert(block)
    }

    private mutating func unmap(_ id: VolumeID) throws {
        let place = Self.places[Int(generator.below(UInt64(Self.places.count)))]
        let large: [UInt64] = [256, 40000, 4_200_000]
        let end = min(place + large[Int(generator.below(3))], Self.sizeBytes / 4096)
        let range = generator.chance(70) ? (place + 3)..<(place + 9) : place..<end
        try pool.device(of: id).unmap(at: range.lowerBound * 4096, lengthBytes: UInt64(range.count) * 4096)
        for other in Self.places {
            for block in other..<(other + 20) where range.contains(block) {
                // Where nothing is mapped nothing changes, and a rotten page stays what it is.
                guard volumes[id]!.tags.removeValue(forKey: block) != nil else { continue }
                volumes[id]!.known.insert(block)
            }
        }
    }

    private mutating func cut(_ ids: [VolumeID]) throws {
        let snapshot = try pool.createSnapshot(
            id: SnapshotID(.random(from: surroundings)), name: "s\(tag).\(snapshots.count)", volumes: ids,
            attributes: [])
        snapshots[snapshot.id] = volumes
        tag += 1
    }

    /// The process is killed: what the maps' caches had is gone.
    private mutating func reopen() throws {
        for id in sortedVolumes { try pool.device(of: id).flush() }
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        disk = disk.handedOver()
        pool = try Pool.open(on: disk, options: options())
    }

    // MARK: Rot

    /// The map of each volume and of each member of a snapshot as it is on the disk.
    private func root(_ id: VolumeID) throws -> NodePointer { try pool.core.volume(id).head.root.pointer }
    private func root(_ snapshot: SnapshotID, _ id: VolumeID) throws -> NodePointer {
        try pool.core.member(of: snapshot, id).root.pointer
    }

    /// One map page of some map changes, and whatever it leads to may be lost.
    private mutating func rot() throws {
        if generator.chance(20) { return rotAllocationMap() }
        var roots: [NodePointer] = []
        for id in volumes.keys { roots.append(try root(id)) }
        for (snapshot, members) in snapshots { for id in members.keys { roots.append(try root(snapshot, id)) } }
        var pages: [UInt64: (level: Int, start: UInt64)] = [:]
        for root in roots { collect(root, Format.mapRootLevel, 0, &pages) }
        let level = Int(generator.below(UInt64(Format.mapRootLevel)))
        let chosen = pages.filter { $0.value.level == level }.keys.sorted()
        guard !chosen.isEmpty else { return }
        let block = chosen[Int(generator.below(UInt64(chosen.count)))]
        let start = pages[block]!.start
        for id in volumes.keys where leads(try root(id), to: block, level, start) { doubt(&volumes[id]!, level, start) }
        for (snapshot, members) in snapshots {
            for id in members.keys where leads(try root(snapshot, id), to: block, level, start) {
                doubt(&snapshots[snapshot]![id]!, level, start)
            }
        }
        disk.rot(block: block, bit: Int(generator.below(32768)))
    }

    /// A page of the allocation map changes: nothing of what is stored is lost with it.
    private mutating func rotAllocationMap() {
        let pages = pool.core.monitor.withLock {
            pool.core.space.regions.map(\.pointer.block).filter { $0 != 0 }
        }
        disk.rot(block: pages[Int(generator.below(UInt64(pages.count)))], bit: Int(generator.below(32768)))
    }

    private func doubt(_ content: inout Content, _ level: Int, _ start: UInt64) {
        let range = start..<(start + MapSpan.blocks(level))
        content.doubtful.append(range)
        content.known = content.known.filter { !range.contains($0) }
    }

    private func collect(
        _ pointer: NodePointer, _ level: Int, _ start: UInt64, _ pages: inout [UInt64: (level: Int, start: UInt64)]
    ) {
        guard !pointer.isNull, let page = try? pool.core.loadPage(pointer) else { return }
        pages[pointer.block] = (level, start)
        guard level > 0 else { return }
        for index in 0..<Int(Format.fanOut) {
            collect(page[child: index], level - 1, start + UInt64(index) * MapSpan.blocks(level - 1), &pages)
        }
    }

    private func leads(_ root: NodePointer, to block: UInt64, _ level: Int, _ start: UInt64) -> Bool {
        var pointer = root
        for above in stride(from: Format.mapRootLevel, to: level, by: -1) {
            guard !pointer.isNull, let page = try? pool.core.loadPage(pointer) else { return false }
            pointer = page[child: Int(start / MapSpan.blocks(above - 1)) % Int(Format.fanOut)]
        }
        return pointer.block == block
    }

    // MARK: Reading back

    private mutating func checkAll() throws {
        for (id, content) in volumes { check(try pool.device(of: id), content) }
        for (snapshot, members) in snapshots {
            for (id, content) in members { check(try pool.device(of: snapshot, volume: id), content) }
        }
    }

    private func check(_ device: any BlockDevice, _ content: Content) {
        for place in Self.places {
            for block in place..<(place + 20) {
                do {
                    let expected = content.tags[block].map { pattern($0) } ?? [UInt8](repeating: 0, count: 4096)
                    #expect(try device.read(4096, at: block * 4096) == expected, "block \(block)")
                } catch {
                    #expect(
                        error as? BlockError == .medium(offset: block * 4096) && content.mayBeLost(block),
                        "block \(block): \(error)")
                }
            }
        }
    }
}
