import BlockIO
import Simulation
import Synchronization
import Testing

@testable import BlockStore

@Suite("A check in stretches")
struct CheckerMemoryTests {
    @Test("what lies in one stretch is known not to reach another, however many there are")
    func reach() throws {
        // More stretches than a mask has bits.
        let visited = try VisitedPages(pages: 100, memoryBytes: 8192, stretchBlocks: 256, stretchCount: 350)
        var reach = VisitedPages.Reach()
        #expect(!visited.reaches(reach, stretch: 0))
        #expect(visited.note(256 * 100 + 5, in: &reach) == (256 * 100)..<(256 * 101))
        for number in 0..<350 { #expect(visited.reaches(reach, stretch: number) == (number == 100), "\(number)") }
        var other = VisitedPages.Reach()
        _ = visited.note(256 * 300, in: &other)
        reach.formUnion(other)
        #expect(visited.reaches(reach, stretch: 300) && visited.reaches(reach, stretch: 100))
        #expect(!visited.reaches(reach, stretch: 200) && !visited.reaches(reach, stretch: 349))
        visited.remember(7, level: 1, .init(mappedBlocks: 9, reach: reach, walk: 3))
        #expect(visited[7] == .init(mappedBlocks: 9, reach: reach, walk: 3) && visited[8] == nil)
    }

    @Test("memory that cannot be had is an error, not the end of the process")
    func noMemory() throws {
        #expect(throws: PoolError.self) { _ = try OwnerTable(capacity: .max / 32) }
        #expect(throws: PoolError.self) { _ = try reserveZeros(.max, of: UInt64.self) }
    }

    @Test("a check of a file says how far it is, never goes back, and finds the same with the least memory")
    func progress() throws {
        let scratch = ScratchDirectory()
        var options = PoolOptions.small()
        options.maxSizeBytes = 256 << 20
        let pool = try Pool.create(path: scratch.file("pool"), options: options)
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 128 << 20)
        let device = try pool.device(of: volume)
        for piece in 0..<UInt64(72) { try device.write(pattern(piece, count: 1 << 20), at: piece << 20) }
        try pool.close()
        var told: [PoolCheckProgress] = []
        let report = try PoolChecker.check(
            path: scratch.file("pool"), memoryBytes: PoolChecker.leastMemoryBytes
        ) { told.append($0) }
        #expect(report.problems == [] && report.verifiedBlocks == 72 * 256)
        #expect(told.first?.percent == 0 && told.contains { $0.stage == .data })
        #expect(zip(told, told.dropFirst()).allSatisfy { $0.percent <= $1.percent })
        #expect(told.allSatisfy { $0.percent <= 100 && $0.stretch <= $0.stretchCount })
    }

    @Test("a rotten page of the catalog is called one")
    func catalogPage() throws {
        let disk = SimulatedDisk(seed: 1)
        let pool = try Pool.create(on: disk, options: .small())
        _ = try pool.createVolume(id: .random(), name: "v", sizeBytes: 1 << 20)
        try pool.close()
        disk.rot(block: try Self.catalogBlock(disk), bit: 9)
        let error = #expect(throws: PoolError.self) { try Pool.open(on: disk, options: .small()) }
        #expect(error?.description.contains("page of the catalog") == true, "\(String(describing: error))")
        #expect(error?.description.contains("map page") == false)
    }

    private static func catalogBlock(_ disk: SimulatedDisk) throws -> UInt64 {
        try PoolCore.readSuperblock(disk, path: "disk").catalogRoot.block
    }
}
