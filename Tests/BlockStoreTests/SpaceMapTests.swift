import Testing

@testable import BlockStore

@Suite("Space map")
struct SpaceMapTests {
    private static let regionBlocks: UInt64 = 1024

    private func map(regions: UInt64) -> SpaceMap {
        SpaceMap(
            totalBlocks: regions * Self.regionBlocks, regionBlocks: Self.regionBlocks, options: PoolOptions()
        ) { _ in Page() }
    }

    /// Takes all of the first `regions`, as single blocks.
    private func fill(_ map: SpaceMap, regions: UInt64) throws {
        for _ in 0..<(regions * Self.regionBlocks) { #expect(try map.allocateData(1)?.count == 1) }
    }

    @Test("a large request passes over single free blocks and gets a long run; a small one takes them")
    func longRuns() throws {
        let map = map(regions: 64)
        try fill(map, regions: 16)
        for block in stride(from: UInt64(0), to: 16 * Self.regionBlocks, by: 2) { try map.release(block) }
        let run = try #require(try map.allocateData(32))
        #expect(run.count == 32)
        #expect(run.lowerBound >= 16 * Self.regionBlocks)
        #expect(try #require(try map.allocateData(1)).lowerBound < 16 * Self.regionBlocks)
        #expect(try map.allocateData(32) == run.upperBound..<(run.upperBound + 32))
        // What comes free in one piece is taken again, before another region is begun.
        for block in stride(from: UInt64(1), to: Self.regionBlocks, by: 2) { try map.release(block) }
        var isReused = false
        for _ in 0..<64 where try #require(try map.allocateData(32)).lowerBound < Self.regionBlocks { isReused = true }
        #expect(isReused)
    }

    @Test("large requests take all there is, to the last block, and make a pool no more than twice as large as its use")
    func bounds() throws {
        let map = map(regions: 64)
        try fill(map, regions: 48)
        for block in stride(from: UInt64(0), to: 48 * Self.regionBlocks, by: 4) {
            for single in block..<(block + 3) { try map.release(single) }
        }
        for _ in 0..<64 { _ = try map.allocateData(32) }
        #expect(map.regionsInUse == 48)
        while let run = try map.allocateData(32) { #expect(run.count <= 32) }
        #expect(map.dataFree == 0)
        #expect(map.busyBlocks == 64 * Self.regionBlocks)
    }

    @Test("after a full file system large requests take blocks that have storage, for a while")
    func rewind() throws {
        let map = map(regions: 64)
        try fill(map, regions: 16)
        for block in stride(from: UInt64(0), to: 16 * Self.regionBlocks, by: 2) { try map.release(block) }
        map.rewind()
        #expect(try map.allocateData(32) == 0..<1)
    }
}
