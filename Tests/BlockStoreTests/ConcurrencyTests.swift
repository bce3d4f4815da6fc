import BlockIO
import Glibc
import Synchronization
import Testing

@testable import BlockStore

@Suite("Concurrent use")
struct ConcurrencyTests {
    private static func run(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        let threads = (0..<count).map { index in WorkerThread { body(index) } }
        for thread in threads { thread.join() }
    }

    /// Eight threads write the eight sectors of one block, over and over; false when one of them was lost.
    static func sectorsSurvive(plantedBug: PlantedBug? = nil) throws -> Bool {
        let scratch = ScratchDirectory()
        var options = PoolOptions.small(hasThread: true)
        options.plantedBug = plantedBug
        let pool = try Pool.create(path: scratch.file("pool"), options: options)
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: mib)
        let device = try pool.device(of: volume)
        let survived = Atomic<Bool>(true)
        run(8) { index in
            do {
                for round in 1...30 {
                    let bytes = pattern(UInt64(index * 1000 + round), count: 512)
                    try device.write(bytes, at: UInt64(index) * 512)
                    if try device.read(512, at: UInt64(index) * 512) != bytes {
                        survived.store(false, ordering: .relaxed)
                    }
                }
            } catch {
                Issue.record("\(error)")
            }
        }
        try pool.close()
        return survived.load(ordering: .relaxed)
    }

    @Test("writers of different sectors of one block do not lose each other's data")
    func sectors() throws { #expect(try Self.sectorsSurvive()) }

    @Test("compare-and-write is atomic: a counter incremented by many threads misses no step")
    func counter() throws {
        let scratch = ScratchDirectory()
        let pool = try Pool.create(path: scratch.file("pool"), options: .small(hasThread: true))
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: mib)
        let device = try pool.device(of: volume)
        Self.run(4) { _ in
            for _ in 0..<50 {
                while true {
                    do {
                        let old = try device.read(512, at: 512)
                        var new = old
                        var value = old.withUnsafeBytes { $0.load(as: UInt64.self) }
                        value += 1
                        withUnsafeBytes(of: value) { new.replaceSubrange(0..<8, with: $0) }
                        try old.withUnsafeBytes { expected in
                            try new.withUnsafeBytes { replacement in
                                try device.compareAndWrite(
                                    at: 512, expected: expected, replacement: replacement, durability: .cached)
                            }
                        }
                        break
                    } catch BlockError.miscompare {
                        continue
                    } catch {
                        Issue.record("\(error)")
                        return
                    }
                }
            }
        }
        #expect(try device.read(512, at: 512).withUnsafeBytes { $0.load(as: UInt64.self) } == 200)
        try pool.close()
    }

    /// One writer numbers its writes and puts them on two volumes in turn, each after the one before was acknowledged.
    @Test("a cut over two volumes under load never holds a write without the one acknowledged before it")
    func prefix() throws {
        let scratch = ScratchDirectory()
        let pool = try Pool.create(path: scratch.file("pool"), options: .small(hasThread: true))
        let volumes = [VolumeID.random(), VolumeID.random()]
        for (index, id) in volumes.enumerated() {
            _ = try pool.createVolume(id: id, name: "v\(index)", sizeBytes: 64 * mib)
        }
        let devices = try volumes.map { try pool.device(of: $0) }
        let writers = 3
        let stop = Atomic<Bool>(false)
        let load = WorkerThread {
            Self.run(writers) { writer in
                var number: UInt64 = 1
                while !stop.load(ordering: .relaxed), number < 100_000 {
                    var bytes = [UInt8](repeating: 0, count: 512)
                    withUnsafeBytes(of: number) { bytes.replaceSubrange(0..<8, with: $0) }
                    // Of many blocks, so that the pool has something to merge; of so few that all snapshots find room.
                    let offset = UInt64(writer) * 4096
                    do {
                        try devices[Int(number % 2)].write(bytes, at: offset)
                        try devices[Int(number % 2)].write(bytes, at: mib + (number % 100) * 4096)
                    } catch {
                        Issue.record("\(error)")
                        return
                    }
                    number += 1
                }
            }
        }
        var ids: [SnapshotID] = []
        for index in 0..<40 {
            ids.append(.random())
            _ = try pool.createSnapshot(id: ids[index], name: "s\(index)", volumes: volumes, attributes: [])
        }
        stop.store(true, ordering: .relaxed)
        load.join()
        for id in ids {
            for writer in 0..<writers {
                let numbers = try volumes.map { volume in
                    try pool.device(of: id, volume: volume).read(512, at: UInt64(writer) * 4096)
                        .withUnsafeBytes { $0.load(as: UInt64.self) }
                }
                // Volume 1 has the odd numbers: they are neighbours, or none is there yet.
                let (even, odd) = (Int64(numbers[0]), Int64(numbers[1]))
                #expect(abs(even - odd) <= 1, "\(even) and \(odd)")
            }
        }
        #expect(PoolChecker.check(pool).isSound)
        try pool.close()
        #expect(try PoolChecker.check(path: scratch.file("pool")).isSound)
    }

    @Test("readers of snapshots and heads see whole blocks while everything changes around them")
    func churn() throws {
        let scratch = ScratchDirectory()
        var options = PoolOptions.small(hasThread: true)
        options.overlayEntries = 500
        let pool = try Pool.create(path: scratch.file("pool"), options: options)
        let volume = VolumeID.random()
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
        let device = try pool.device(of: volume)
        let stop = Atomic<Bool>(false)
        let load = WorkerThread {
            Self.run(4) { index in
                var round: UInt64 = 0
                while !stop.load(ordering: .relaxed) {
                    round += 1
                    let block = (round &* 2_654_435_761 &+ UInt64(index)) % 1024
                    do {
                        if index < 2 {
                            try device.write(
                                Sector.run((block * 8)..<(block * 8 + 8), tag: round << 20), at: block * 4096)
                            if round % 50 == 0 { try device.unmap(at: block * 4096, lengthBytes: 4096) }
                        } else {
                            let bytes = try device.read(4096, at: block * 4096)
                            let tags = (0..<8).map { sector in
                                bytes[(sector * 512)..<(sector * 512 + 512)].withUnsafeBytes { Sector.tag($0) }
                            }
                            let first = tags[0] ?? .max
                            let isWhole = tags.enumerated().allSatisfy {
                                $0.element == (first == 0 ? 0 : first &+ UInt64($0.offset))
                            }
                            #expect(isWhole)
                        }
                    } catch BlockError.noSpace {
                        continue
                    } catch {
                        Issue.record("\(error)")
                        return
                    }
                }
            }
        }
        for index in 0..<30 {
            let id = SnapshotID.random()
            _ = try pool.createSnapshot(id: id, name: "s\(index)", volumes: [volume], attributes: [])
            let frozen = try pool.device(of: id, volume: volume)
            let before = try frozen.read(256 << 10, at: 0)
            try pool.maintain()
            #expect(try frozen.read(256 << 10, at: 0) == before)
            try pool.deleteSnapshot(id)
            #expect(throws: BlockError.removed) { try frozen.read(4096, at: 0) }
        }
        stop.store(true, ordering: .relaxed)
        load.join()
        for _ in 0..<10 { try pool.maintain() }
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }
}
