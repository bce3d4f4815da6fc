import BlockIO
import Simulation
import Synchronization
import Testing

@testable import BlockStore

/// One block many times over a range is one change: whole for readers, snapshots, crashes, and when there is no room.
@Suite("WRITE SAME of any length is one change")
struct WriteSameTests {
    private let volume = VolumeID("00000000-0000-4000-8000-000000000001")!
    /// More than two pieces that the store writes to the disk at once.
    private static let longBytes: UInt64 = 700 << 10

    private func makePool(
        _ disk: SimulatedDisk = SimulatedDisk(seed: 1), sizeBytes: UInt64 = 16 * mib,
        _ change: (inout PoolOptions) -> Void = { _ in }
    ) throws -> (Pool, any BlockDevice) {
        var options = PoolOptions.small()
        change(&options)
        let pool = try Pool.create(on: disk, options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: sizeBytes)
        return (pool, try pool.device(of: volume))
    }

    private static func sector(_ tag: UInt8) -> [UInt8] { [UInt8](repeating: tag, count: 512) }

    private static func run(_ bodies: [@Sendable () throws -> Void]) {
        let threads = bodies.map { body in
            WorkerThread {
                do { try body() } catch { Issue.record("\(error)") }
            }
        }
        for thread in threads { thread.join() }
    }

    @Test("any range and pattern reads as written, in parts of blocks too, over checkpoints and a start")
    func contents() throws {
        for detectsZeros in [true, false] {
            let disk = SimulatedDisk(seed: 1)
            var (pool, device) = try makePool(disk, sizeBytes: 4 * mib) {
                $0.detectsZeros = detectsZeros
                $0.journalBytes = 8 << 20
                $0.overlayEntries = 700
            }
            var model = [UInt8](repeating: 0, count: 4 << 20)
            var generator = SeededGenerator(seed: 7)
            for round in 0..<120 {
                let sectors = round % 3 == 0 ? generator.next() % 4096 : generator.next() % 40
                let offset = generator.next() % (8192 - sectors) * 512
                let range = Int(offset)..<Int(offset + sectors * 512)
                let block = round % 4 == 1 ? Self.sector(0) : pattern(UInt64(round), count: 512)
                if round % 8 == 7 {
                    try device.unmap(at: offset, lengthBytes: sectors * 512)
                    for index in range { model[index] = 0 }
                } else {
                    try device.writeSame(at: offset, lengthBytes: sectors * 512, block: block, durability: .cached)
                    for index in range { model[index] = block[(index - range.lowerBound) % 512] }
                }
                if round % 20 == 19 {
                    #expect(try device.read(model.count, at: 0) == model, "round \(round)")
                    try pool.maintain()
                }
            }
            #expect(PoolChecker.check(pool).problems == [])
            try pool.close()
            pool = try Pool.open(on: disk, options: .small())
            device = try pool.device(of: volume)
            #expect(try device.read(model.count, at: 0) == model)
            #expect(PoolChecker.check(pool).problems == [])
            try pool.close()
        }
    }

    @Test("zeros become a hole: one record, no data, and what they replaced is free")
    func zeros() throws {
        let (pool, device) = try makePool { $0.journalBytes = 8 << 20 }
        let used = pool.statistics.usedBytes
        try device.writeSame(at: 0, lengthBytes: 3 * mib, block: Self.sector(5), durability: .durable)
        #expect(pool.statistics.dataBytesWritten == 3 * mib)
        let record = pool.core.monitor.withLock { pool.core.lastRecord }
        // Whole blocks only, then with parts of blocks that become zeros and of blocks that do not.
        try device.writeSame(at: 4096, lengthBytes: 2 * mib, block: Self.sector(0), durability: .cached)
        #expect(pool.core.monitor.withLock { pool.core.lastRecord } == record + 1)
        try device.writeSame(at: 512, lengthBytes: 3 * mib - 1024, block: Self.sector(0), durability: .durable)
        #expect(pool.core.monitor.withLock { pool.core.lastRecord } == record + 4)
        #expect(pool.statistics.dataBytesWritten == 3 * mib + 8192)
        #expect(try device.read(512, at: 0) == Self.sector(5))
        #expect(try device.read(512, at: 3 * mib - 512) == Self.sector(5))
        #expect(try device.provisioning(at: 4096, maxLengthBytes: 3 * mib).isMapped == false)
        try device.writeSame(at: 0, lengthBytes: 3 * mib, block: Self.sector(0), durability: .durable)
        try pool.maintain()
        try pool.maintain()
        #expect(pool.statistics.usedBytes == used)
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("more than the device says is refused; the limit follows the size of the journal")
    func limits() throws {
        let (pool, device) = try makePool()
        #expect(device.writeSameBytes == (1 << 20) / 64 / 40 * 4096)
        #expect(throws: BlockError.misaligned(offset: 0, lengthBytes: device.writeSameBytes + 4096)) {
            try device.writeSame(
                at: 0, lengthBytes: device.writeSameBytes + 4096, block: Self.sector(1), durability: .cached)
        }
        #expect(throws: BlockError.misaligned(offset: 0, lengthBytes: 4096)) {
            try device.writeSame(at: 0, lengthBytes: 4096, block: pattern(1), durability: .cached)
        }
        let end = device.sizeBytes - 4096
        #expect(throws: BlockError.outOfRange(offset: end, lengthBytes: 8192, sizeBytes: device.sizeBytes)) {
            try device.writeSame(at: end, lengthBytes: 8192, block: Self.sector(1), durability: .cached)
        }
        try pool.close()
        let (large, wide) = try makePool {
            $0.journalBytes = 64 << 20
            $0.maxSizeBytes = 256 << 20
        }
        #expect(wide.writeSameBytes == 16 << 20)
        try large.close()
    }

    @Test("where free room is single blocks only, as many at once as there are threads fit into the smallest journal")
    func scatteredRoom() throws {
        let (pool, device) = try makePool(SimulatedDisk(seed: 1), sizeBytes: 64 * mib) {
            $0.maxSizeBytes = 16 << 20
            $0.journalBytes = 128 << 10
            $0.hasMaintenanceThread = true
        }
        // Every second block of what the pool has is free.
        let full = UInt64(11 * mib)
        for offset in stride(from: 0, to: full, by: 4096) { try device.write(pattern(offset), at: offset) }
        for offset in stride(from: 0, to: full, by: 8192) { try device.unmap(at: offset, lengthBytes: 4096) }
        try device.flush()
        try pool.maintain()
        let length = device.writeSameBytes
        let record = pool.core.monitor.withLock { pool.core.lastRecord }
        Self.run(
            (0..<12).map { index in
                {
                    for round in 0..<4 {
                        try device.writeSame(
                            at: 16 * mib + UInt64(index) * length, lengthBytes: length,
                            block: Self.sector(UInt8(index * 4 + round + 1)), durability: .durable)
                    }
                }
            })
        // How scattered the room is that each finds depends on the others; not all of them find long runs.
        #expect(pool.core.monitor.withLock { pool.core.lastRecord } - record > 12 * 4)
        for index in 0..<12 {
            let bytes = try device.read(Int(length), at: 16 * mib + UInt64(index) * length)
            #expect(Set(bytes) == [UInt8(index * 4 + 4)])
        }
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test("readers and snapshots find one of several whole, beside writers at its ends that lose nothing")
    func concurrency() throws {
        let (pool, device) = try makePool {
            $0.hasMaintenanceThread = true
            $0.overlayEntries = 2000
        }
        // Begins and ends within blocks, of which others write the rest.
        let start = 4096 - UInt64(512)
        let length = Self.longBytes + 1024
        let end = start + length
        let mixtures = Atomic<Int>(0)
        let volume = volume
        try device.write(Self.sector(0), at: end)
        var bodies: [@Sendable () throws -> Void] = (1...3).map { tag in
            {
                for round in 0..<25 {
                    if tag == 3, round % 2 == 0 {
                        try device.unmap(at: start, lengthBytes: length)
                    } else {
                        try device.writeSame(
                            at: start, lengthBytes: length, block: Self.sector(UInt8(tag)), durability: .cached)
                    }
                }
            }
        }
        bodies.append {
            for _ in 0..<60 where Set(try device.read(Int(length), at: start)).count > 1 {
                mixtures.add(1, ordering: .relaxed)
            }
        }
        bodies.append {
            for index in 0..<12 {
                let snapshot = try pool.createSnapshot(
                    id: .random(), name: "s\(index)", volumes: [volume], attributes: [])
                let bytes = try pool.device(of: snapshot.id, volume: volume).read(Int(length), at: start)
                if Set(bytes).count > 1 { mixtures.add(1, ordering: .relaxed) }
            }
        }
        // A counter behind the last sector, in the same block.
        for _ in 0..<2 { bodies.append { for _ in 0..<20 { try Self.count(device, at: end) } } }
        // A writer before the first sector, in the same block.
        bodies.append {
            for round in 1...40 {
                let bytes = pattern(UInt64(round), count: 512)
                try device.write(bytes, at: 0)
                if try device.read(512, at: 0) != bytes { mixtures.add(1, ordering: .relaxed) }
            }
        }
        Self.run(bodies)
        #expect(mixtures.load(ordering: .relaxed) == 0)
        #expect(try device.read(512, at: end)[0] == 40)
        #expect(Set(try device.read(Int(length), at: start)).count == 1)
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    /// Adds one to the byte at `offset` with COMPARE AND WRITE.
    private static func count(_ device: any BlockDevice, at offset: UInt64) throws {
        while true {
            let now = try device.read(512, at: offset)
            var next = now
            next[0] += 1
            do {
                try now.withUnsafeBytes { expected in
                    try next.withUnsafeBytes { replacement in
                        try device.compareAndWrite(
                            at: offset, expected: expected, replacement: replacement, durability: .cached)
                    }
                }
                return
            } catch BlockError.miscompare {
                continue
            }
        }
    }

    @Test("a power loss at any of its calls to the disk leaves all of it or nothing, also over a large hole")
    func powerLoss() throws {
        for isHole in [false, true] {
            var call: UInt64 = 1
            var found: Set<UInt8> = []
            while true {
                let disk = SimulatedDisk(seed: call)
                let (_, device) = try makePool(disk)
                let start = UInt64(1536)
                try device.writeSame(
                    at: start, lengthBytes: Self.longBytes, block: Self.sector(1), durability: .durable)
                let before = disk.callCount
                let at = call
                disk.setPlan { number, _ in number == before + at ? .powerLoss : nil }
                do {
                    if isHole {
                        try device.unmap(at: start, lengthBytes: Self.longBytes)
                    } else {
                        try device.writeSame(
                            at: start, lengthBytes: Self.longBytes, block: Self.sector(2), durability: .cached)
                    }
                    try device.flush()
                } catch {
                }
                let hasLostPower = disk.isDead
                let next = try Pool.open(on: disk.crashed(), options: .small())
                let bytes = try next.device(of: volume).read(Int(Self.longBytes), at: start)
                #expect(Set(bytes).count == 1, "call \(call)")
                found.insert(bytes[0])
                #expect(PoolChecker.check(next).problems == [])
                try next.close()
                guard hasLostPower else {
                    #expect(bytes[0] == (isHole ? 0 : 2))
                    break
                }
                call += 1
            }
            #expect(found == (isHole ? [0, 1] : [1, 2]) && call > 3)
        }
    }

    @Test("a killed process's log gives back all of it or, when its entry is torn, nothing")
    func kill() throws {
        for isTorn in [false, true] {
            let disk = SimulatedDisk(seed: 1)
            let log = SimulatedLog()
            let (pool, device) = try makePool(disk) { $0.volatileLogStorage = log }
            try device.writeSame(at: 512, lengthBytes: Self.longBytes, block: Self.sector(1), durability: .durable)
            try device.writeSame(at: 512, lengthBytes: Self.longBytes, block: Self.sector(2), durability: .cached)
            pool.core.monitor.withLock { pool.core.forgetObjects() }
            var files = log.files
            if isTorn {
                // The newest entry is the last in the file that has the higher number; both lose their ends.
                for file in 0..<2 { files[file] = Array(files[file].dropLast(300)) }
            }
            var options = PoolOptions.small()
            options.volatileLogStorage = SimulatedLog(files: files)
            let next = try Pool.open(on: disk.handedOver(), options: options)
            let bytes = try next.device(of: volume).read(Int(Self.longBytes), at: 512)
            #expect(Set(bytes) == [isTorn ? 1 : 2])
            #expect(PoolChecker.check(next).problems == [])
            try next.close()
        }
    }

    @Test("one that finds no room changes nothing and holds nothing")
    func noRoom() throws {
        let disk = SimulatedDisk(seed: 1)
        let (pool, device) = try makePool(disk, sizeBytes: 64 * mib) { $0.maxSizeBytes = 8 << 20 }
        try device.writeSame(at: 0, lengthBytes: mib, block: Self.sector(1), durability: .durable)
        var refusals = 0
        for index in 1..<40 {
            do {
                try device.writeSame(
                    at: UInt64(index) * mib, lengthBytes: mib, block: Self.sector(1), durability: .cached)
            } catch {
                #expect(error == .noSpace)
                #expect(Set(try device.read(1 << 20, at: UInt64(index) * mib)) == [0])
                refusals += 1
            }
        }
        #expect(refusals > 20)
        // Over what it has, half of which does not fit either: it stays as it was.
        #expect(throws: BlockError.noSpace) {
            try device.writeSame(at: 512, lengthBytes: mib, block: Self.sector(2), durability: .cached)
        }
        #expect(Set(try device.read(1 << 20, at: 0)) == [1])
        try device.writeSame(at: 0, lengthBytes: mib, block: Self.sector(0), durability: .durable)
        try pool.maintain()
        try device.writeSame(at: 0, lengthBytes: mib / 2, block: Self.sector(3), durability: .durable)
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }
}
