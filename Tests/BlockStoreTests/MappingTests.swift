import Simulation
import Testing

@testable import BlockStore

@Suite("Tables of recent mappings")
struct MappingTests {
    @Test("the hash table agrees with a dictionary over random inserts and removals")
    func table() {
        var generator = SeededGenerator(seed: 1)
        var table = MappingTable()
        var model: [UInt64: RecentMapping] = [:]
        for _ in 0..<20000 {
            let key = generator.chance(50) ? generator.below(300) : (1 << 34) - 1 - generator.below(300)
            if generator.chance(60) {
                let value = RecentMapping(
                    block: generator.below(1 << 40), crc: UInt32(truncatingIfNeeded: generator.next()))
                let old = table.insert(value, for: key)
                #expect(old == model.updateValue(value, forKey: key))
            } else {
                let old = table.remove(key)
                #expect(old == model.removeValue(forKey: key))
            }
        }
        let count = table.count
        #expect(count == model.count)
        var found: [UInt64: RecentMapping] = [:]
        table.forEach { found[$0] = $1 }
        #expect(found == model)
    }

    @Test("ranges merge with what they touch and overlap")
    func ranges() {
        var generator = SeededGenerator(seed: 2)
        var set = RangeSet()
        var model: Set<UInt64> = []
        for _ in 0..<300 {
            let start = generator.below(2000)
            let range = start..<(start + generator.below(20))
            set.insert(range)
            model.formUnion(range)
        }
        for block in 0..<UInt64(2050) { #expect(set.contains(block) == model.contains(block)) }
        for (left, right) in zip(set.ranges, set.ranges.dropFirst()) { #expect(left.upperBound < right.lowerBound) }
    }
}
