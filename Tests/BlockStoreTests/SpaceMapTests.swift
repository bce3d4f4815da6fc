import Simulation
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
        let region = 5 * Self.regionBlocks..<(6 * Self.regionBlocks)
        for block in region where block % 2 == 1 { try map.release(block) }
        var isReused = false
        for _ in 0..<64 where region.contains(try #require(try map.allocateData(32)).lowerBound) { isReused = true }
        #expect(isReused)
    }

    @Test("single blocks go to the emptiest region, or a fresh one, before they fill what is nearly full; none is lost")
    func emptiestFirst() throws {
        var generator = SeededGenerator(seed: 1)
        let map = map(regions: 64)
        try fill(map, regions: 32)
        for block in stride(from: UInt64(0), to: 32 * Self.regionBlocks, by: 8) { try map.release(block) }
        let roomy = 20 * Self.regionBlocks..<(21 * Self.regionBlocks)
        for block in roomy where block % 8 != 0 && block % 4 != 1 { try map.release(block) }
        #expect(roomy.contains(try #require(try map.allocateData(1)).lowerBound))
        // As many come free as are taken, here and there.
        var old = (0..<32 * Self.regionBlocks).filter { !roomy.contains($0) && $0 % 8 != 0 }
        var places = Set<UInt64>()
        for _ in 0..<20 * Self.regionBlocks {
            places.insert(try #require(try map.allocateData(1)).lowerBound / Self.regionBlocks)
            let index = Int(generator.next() % UInt64(old.count))
            try map.release(old[index])
            old.swapAt(index, old.count - 1)
            old.removeLast()
        }
        // Half as much again as what is in use, and eight.
        #expect(places.contains(32))
        #expect(map.regionsInUse > 40 && map.regionsInUse <= 51)
        while try map.allocateData(1) != nil {}
        #expect(map.busyBlocks == 64 * Self.regionBlocks)
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

    @Test("the rest of a free group is held for one write only, once, and the next small writes go there")
    func heldGroups() throws {
        let map = map(regions: 64)
        let run = try #require(try map.allocateData(1))
        #expect(run == 0..<1)
        let free = map.dataFree
        let held = try #require(map.holdGroup(behind: run))
        #expect(held == 1..<16)
        #expect(map.dataFree == free - 15)
        // Others keep out of it meanwhile, and hold groups of their own.
        let other = try #require(try map.allocateData(2))
        #expect(other == 16..<18)
        #expect(map.holdGroup(behind: other) == 18..<32)
        // Not more than two: the next one is written to like any other place.
        let third = try #require(try map.allocateData(1))
        #expect(third == 32..<33)
        #expect(map.holdGroup(behind: third) == nil)
        try map.release(32)
        try map.releaseHeld(18..<32)
        try map.releaseHeld(held)
        #expect(map.dataFree == free - 2)
        #expect(try map.allocateData(1) == 1..<2)
        // It has storage now, as long as it is not punched out.
        for block in 0..<UInt64(2) { try map.release(block) }
        map.rewind()
        let again = try #require(try map.allocateData(1))
        #expect(again == 0..<1)
        #expect(map.holdGroup(behind: again) == nil)
        let (punches, releases) = try map.planPunches([0])
        #expect(punches == [0..<16])
        for block in releases { try map.release(block) }
        map.rewind()
        #expect(try map.allocateData(1) == 0..<1)
        #expect(map.holdGroup(behind: 0..<1) == 1..<16)
    }

    @Test("no group is held that is not free as a whole, behind a long write, or where room is short")
    func notHeld() throws {
        let map = map(regions: 4)
        #expect(try map.allocateData(1) == 0..<1)
        #expect(try map.allocateData(1) == 1..<2)
        try map.release(0)
        map.rewind()
        #expect(try map.allocateData(1) == 0..<1)
        #expect(map.holdGroup(behind: 0..<1) == nil)
        #expect(map.holdGroup(behind: 1..<2) == nil)
        while map.dataFree > 1024 { _ = try map.allocateData(16) }
        let late = try #require(try map.allocateData(1))
        #expect(map.holdGroup(behind: late) == nil)
    }
}
