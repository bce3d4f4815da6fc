import BlockIO
import Glibc
import Simulation
import Synchronization
import Testing

@testable import BlockStore

@Suite("The volatile log")
struct VolatileLogTests {
    private let volume = VolumeID("00000000-0000-4000-8000-000000000001")!

    private func options(_ log: (any VolatileLogStorage)?) -> PoolOptions {
        var options = PoolOptions.small()
        options.volatileLogStorage = log
        return options
    }

    /// The end of the process: nothing is written any more, and the memory is gone.
    private func abandon(_ pool: Pool) { pool.core.monitor.withLock { pool.core.forgetObjects() } }

    /// A pool with the volume and `count` unflushed writes of one block each, abandoned.
    private func abandoned(_ disk: SimulatedDisk, _ log: SimulatedLog, writes count: Int) throws {
        let pool = try Pool.create(on: disk, options: options(log))
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
        let device = try pool.device(of: volume)
        for index in 0..<count { try device.write(pattern(UInt64(index + 1)), at: UInt64(index) * 4096) }
        abandon(pool)
    }

    /// How many of those writes are there; they must be the first ones.
    private func found(_ pool: Pool, of count: Int) throws -> Int {
        let device = try pool.device(of: volume)
        let present = try (0..<count).map { try device.read(4096, at: UInt64($0) * 4096) == pattern(UInt64($0 + 1)) }
        let first = present.firstIndex(of: false) ?? count
        #expect(!present[first...].contains(true), "what came back is no prefix: \(present)")
        return first
    }

    // MARK: Format

    @Test("the header and an entry have these bytes")
    func goldenBytes() {
        let header = VolatileLogHeader(
            poolID: ObjectID(high: 0x0102_0304_0506_0708, low: 0x1112_1314_1516_1718),
            bootID: ObjectID(high: 0x2122_2324_2526_2728, low: 0x3132_3334_3536_3738), session: 0x4142_4344_4546_4748)
        #expect(
            hex(header.encoded())
                == "5350564c4f4730310100000000000000080706050403020118171615141312112827262524232221"
                + "38373635343332314847464544434241000000002f8f9487")
        #expect(VolatileLogHeader.decode(header.encoded()[...]) == header)
        let entry = VolatileLogEntry(
            sequence: 0x0102_0304_0506_0708, number: 9, offset: 0x40, records: [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(
            hex(entry.encoded())
                == "53505652080000000807060504030201090000000000000040000000a27432d60102030405060708")
        #expect(VolatileLogEntry.decode(entry.encoded()[...]) == entry)
        for index in entry.encoded().indices {
            var wrong = entry.encoded()
            wrong[index] ^= 4
            #expect(VolatileLogEntry.decode(wrong[...]) == nil)
        }
    }

    private func hex(_ bytes: [UInt8]) -> String {
        bytes.map { (($0 < 16) ? "0" : "") + String($0, radix: 16) }.joined()
    }

    // MARK: What comes back

    @Test("what a killed process had acknowledged and not flushed is there, and durable, when the pool opens again")
    func replay() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try abandoned(disk, log, writes: 20)
        let next = disk.handedOver()
        let pool = try Pool.open(on: next, options: options(log.handedOver()))
        #expect(pool.statistics.recordsFromVolatileLog == 20)
        #expect(pool.statistics.volatileLog == .active)
        #expect(try found(pool, of: 20) == 20)
        #expect(PoolChecker.check(pool).isSound)
        abandon(pool)
        // The power fails afterwards, and the log is gone.
        let later = try Pool.open(on: next.crashed(), options: options(SimulatedLog(bootID: .random())))
        #expect(try found(later, of: 20) == 20)
    }

    @Test("on a real file and a real tmpfs, too; a clean close removes the log", .enabled(if: Self.hasMemoryDirectory))
    func realFiles() throws {
        let scratch = ScratchDirectory()
        let directory = try MemoryDirectory()
        var options = PoolOptions.small()
        options.volatileLogDirectory = directory.path
        var pool = try Pool.create(path: scratch.file("pool"), options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
        var device = try pool.device(of: volume)
        try device.write(pattern(1, count: 16384), at: 8192)
        try device.unmap(at: 12288, lengthBytes: 4096)
        #expect(directory.files.count == 2 && directory.files.allSatisfy { $0.utf8.count == 43 }, "\(directory.files)")
        abandon(pool)
        pool.core.file.close()
        pool.core.volatileLog = nil
        // A check changes nothing, the log neither.
        #expect(try PoolChecker.check(path: scratch.file("pool")).isSound)
        #expect(directory.files.count == 2)
        pool = try Pool.open(path: scratch.file("pool"), options: options)
        device = try pool.device(of: volume)
        #expect(try device.read(4096, at: 8192) == Array(pattern(1, count: 16384)[..<4096]))
        #expect(try device.read(4096, at: 12288) == [UInt8](repeating: 0, count: 4096))
        #expect(try device.read(4096, at: 16384) == Array(pattern(1, count: 16384)[8192..<12288]))
        #expect(pool.statistics.recordsFromVolatileLog == 2)
        try pool.close()
        #expect(directory.files.isEmpty)
    }

    @Test("a kill at any call of a history loses nothing acknowledged, though blocks are soon used again")
    func killedAnywhere() throws {
        func run(_ disk: SimulatedDisk, _ log: SimulatedLog) -> (acknowledged: [UInt64: UInt64], last: UInt64) {
            var acknowledged: [UInt64: UInt64] = [:]
            var options = options(log)
            options.reusesBlocksFirst = true
            var tag: UInt64 = 0
            do {
                let pool = try Pool.create(on: disk, options: options)
                _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
                let device = try pool.device(of: volume)
                for round in 0..<4 as Range<UInt64> {
                    for block in 0..<6 as Range<UInt64> {
                        tag += 1
                        if tag % 7 == 0 {
                            try device.unmap(at: block * 4096, lengthBytes: 4096)
                            acknowledged[block] = 0
                        } else {
                            try device.write(pattern(tag), at: block * 4096)
                            acknowledged[block] = tag
                        }
                    }
                    if round % 2 == 0 { try device.flush() } else { try pool.maintain() }
                }
            } catch {
            }
            return (acknowledged, tag)
        }
        let whole = SimulatedDisk(seed: 1)
        _ = run(whole, SimulatedLog())
        for call in 1...whole.callCount {
            let disk = SimulatedDisk(seed: call)
            disk.setPlan { number, _ in number == call ? .powerLoss : nil }
            let log = SimulatedLog(isDead: { disk.isDead })
            let (acknowledged, last) = run(disk, log)
            guard !acknowledged.isEmpty else { continue }
            let pool = try Pool.open(on: disk.handedOver(), options: options(log.handedOver()))
            let device = try pool.device(of: volume)
            for (block, tag) in acknowledged {
                let content = try device.read(4096, at: block * 4096)
                let expected = tag == 0 ? [UInt8](repeating: 0, count: 4096) : pattern(tag)
                let underWay = last % 7 == 0 ? [UInt8](repeating: 0, count: 4096) : pattern(last)
                #expect(
                    content == expected || ((last - 1) % 6 == block && content == underWay),
                    "killed at call \(call): block \(block) lacks \(tag)")
            }
            #expect(PoolChecker.check(pool).isSound)
        }
    }

    @Test("a kill at any call of the recovery itself loses nothing either")
    func killedInRecovery() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try abandoned(disk, log, writes: 12)
        let image = disk.copy()
        var call: UInt64 = 1
        while true {
            let again = image.copy()
            again.setPlan { [call] number, _ in number == call ? .powerLoss : nil }
            let logAgain = log.handedOver { again.isDead }
            if let pool = try? Pool.open(on: again, options: options(logAgain)), !again.isDead {
                again.setPlan(nil)
                #expect(try found(pool, of: 12) == 12)
                break
            }
            let pool = try Pool.open(on: again.handedOver(), options: options(logAgain.handedOver()))
            #expect(try found(pool, of: 12) == 12, "killed at call \(call) of the recovery")
            #expect(PoolChecker.check(pool).isSound)
            call += 1
        }
        #expect(call > 10)
    }

    @Test("writers on several threads, flushes and checkpoints between them: a kill loses nothing acknowledged")
    func killedUnderThreads() throws {
        for round in 1...12 as ClosedRange<UInt64> {
            let disk = SimulatedDisk(seed: round)
            let log = SimulatedLog(capacityBytes: round % 3 == 0 ? 3000 : .max, isDead: { disk.isDead })
            var options = options(log)
            options.hasMaintenanceThread = true
            options.reusesBlocksFirst = true
            let pool = try Pool.create(on: disk, options: options)
            _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
            let device = try pool.device(of: volume)
            let killAt = disk.callCount + 200 + round * 97
            disk.setPlan { call, _ in call == killAt ? .powerLoss : nil }
            // For each of four writers what its eight blocks hold at least, and what may be under way.
            let acknowledged = Mutex([UInt64](repeating: 0, count: 32))
            let begun = Mutex([UInt64](repeating: 0, count: 32))
            let threads = (0..<4).map { writer in
                WorkerThread {
                    for tag in 1..<4000 as Range<UInt64> {
                        let block = writer * 8 + Int(tag * 5 % 8)
                        begun.withLock { $0[block] = tag }
                        do {
                            try device.write(pattern(tag << 8 | UInt64(writer)), at: UInt64(block) * 4096)
                            acknowledged.withLock { $0[block] = tag }
                            if tag % 64 == UInt64(writer) { try device.flush() }
                        } catch {
                            return
                        }
                    }
                }
            }
            for thread in threads { thread.join() }
            #expect(disk.isDead)
            try? pool.close()
            let next = try Pool.open(on: disk.handedOver(), options: self.options(log.handedOver()))
            let found = try next.device(of: volume)
            for block in 0..<32 {
                let least = acknowledged.withLock { $0[block] }
                let content = try found.read(4096, at: UInt64(block) * 4096)
                let allowed = Set([least, begun.withLock { $0[block] }]).map { tag in
                    tag == 0 ? [UInt8](repeating: 0, count: 4096) : pattern(tag << 8 | UInt64(block / 8))
                }
                #expect(allowed.contains(content), "round \(round): block \(block) lacks \(least)")
            }
            #expect(PoolChecker.check(next).isSound)
        }
    }

    // MARK: What must not come back

    @Test("a log of another run of the machine, of another pool, or of an earlier session is not replayed")
    func foreignLogs() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try abandoned(disk, log, writes: 5)
        let image = disk.copy()
        var pool = try Pool.open(
            on: image.copy(), options: options(log.handedOver(bootID: ObjectID(high: 7, low: 7))))
        #expect(try found(pool, of: 5) == 0)
        // Another pool finds the files: it has another id.
        let other = SimulatedDisk(seed: 2)
        try abandoned(other, SimulatedLog(), writes: 0)
        pool = try Pool.open(on: other.handedOver(), options: options(log.handedOver()))
        #expect(try found(pool, of: 5) == 0)
        // Somebody had the pool open meanwhile without the log, and changed nothing.
        let between = image.copy()
        try Pool.open(on: between, options: options(nil)).close()
        pool = try Pool.open(on: between.handedOver(), options: options(log.handedOver()))
        #expect(try found(pool, of: 5) == 0)
        #expect(PoolChecker.check(pool).isSound)
        // And with it: a copy of the old files is void.
        let consumed = image.copy()
        abandon(try Pool.open(on: consumed, options: options(log.handedOver())))
        pool = try Pool.open(on: consumed.handedOver(), options: options(log.handedOver()))
        #expect(pool.statistics.recordsFromVolatileLog == 0)
        #expect(try found(pool, of: 5) == 5)
    }

    @Test("a torn log gives back the changes before the tear, wherever it is")
    func tornLog() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try abandoned(disk, log, writes: 6)
        let image = disk.copy()
        let file = log.files[0].count > log.files[1].count ? 0 : 1
        let bytes = log.files[file]
        var counts: Set<Int> = []
        for end in stride(from: 0, through: bytes.count, by: 5) {
            var files = log.files
            files[file] = Array(bytes[..<end])
            let pool = try Pool.open(on: image.copy(), options: options(SimulatedLog(files: files)))
            counts.insert(try found(pool, of: 6))
        }
        #expect(counts == Set(0...5))
    }

    /// As when a change found no room, the next one went into the other file, and the process was killed before the
    /// first was durable.
    static func gap(plantedBug: PlantedBug?) throws -> [Bool] {
        let tests = VolatileLogTests()
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try tests.abandoned(disk, log, writes: 6)
        let file = log.files[0].count > log.files[1].count ? 0 : 1
        let bytes = log.files[file]
        let entries = VolatileLogEntry.run(bytes)
        try #require(entries.count == 6)
        var files = [0, 1].map { _ in Array(bytes[..<VolatileLogHeader.lengthBytes]) }
        for (index, entry) in entries.enumerated() where index != 3 { files[index < 3 ? 0 : 1] += entry.encoded() }
        var options = tests.options(SimulatedLog(files: files))
        options.plantedBug = plantedBug
        let pool = try Pool.open(on: disk.handedOver(), options: options)
        let device = try pool.device(of: tests.volume)
        return try (0..<6).map { try device.read(4096, at: UInt64($0) * 4096) == pattern(UInt64($0 + 1)) }
    }

    @Test("the replay ends where a change is missing, though later ones are there")
    func gap() throws {
        #expect(try Self.gap(plantedBug: nil) == [true, true, true, false, false, false])
    }

    @Test("garbage in the log is never replayed as something else")
    func garbage() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try abandoned(disk, log, writes: 4)
        let image = disk.copy()
        var generator = SeededGenerator(seed: 3)
        for round in 0..<300 {
            var files = log.files
            for _ in 0..<(1 + round % 3) {
                let file = Int(generator.below(2))
                let at = Int(generator.below(UInt64(files[file].count)))
                files[file][at] ^= UInt8(1 + generator.below(255))
            }
            if round % 10 == 0 { files = files.map { $0.map { _ in UInt8(truncatingIfNeeded: generator.next()) } } }
            let pool = try Pool.open(on: image.copy(), options: options(SimulatedLog(files: files)))
            _ = try found(pool, of: 4)
            #expect(PoolChecker.check(pool).isSound)
        }
    }

    @Test("a change whose data is not on the disk ends the replay")
    func missingData() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog()
        try abandoned(disk, log, writes: 6)
        let image = disk.copy()
        // The data blocks are the last six that are in use.
        image.rot(block: image.occupiedBlocks.suffix(6)[image.occupiedBlocks.suffix(6).startIndex + 3], bit: 77)
        let pool = try Pool.open(on: image, options: options(log.handedOver()))
        #expect(try found(pool, of: 6) == 3)
        #expect(PoolChecker.check(pool).isSound)
    }

    // MARK: A full log

    @Test("when the log has no room, each write is durable before it is answered; afterwards the log is used again")
    func fullLog() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog(capacityBytes: 600)
        let pool = try Pool.create(on: disk, options: options(log))
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
        let device = try pool.device(of: volume)
        let commits = pool.statistics.commits
        for index in 0..<40 as Range<UInt64> { try device.write(pattern(index + 1), at: index * 4096) }
        #expect(pool.statistics.commits > commits)
        #expect(pool.statistics.commits < commits + 40, "the log is used again after a commit")
        abandon(pool)
        let next = try Pool.open(on: disk.handedOver(), options: options(log.handedOver()))
        #expect(try found(next, of: 40) == 40)
    }

    @Test("an unmap and parts of blocks are durable too when the log has no room")
    func fullLogUnmap() throws {
        let disk = SimulatedDisk(seed: 1)
        let log = SimulatedLog(capacityBytes: 2 * VolatileLogHeader.lengthBytes)
        let pool = try Pool.create(on: disk, options: options(log))
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 4 * mib)
        let device = try pool.device(of: volume)
        try device.write(pattern(1, count: 32768), at: 0)
        try device.unmap(at: 512, lengthBytes: 12288)
        try device.unmap(at: 20480, lengthBytes: 512)
        var expected = pattern(1, count: 32768)
        expected.replaceSubrange(512..<12800, with: repeatElement(0, count: 12288))
        expected.replaceSubrange(20480..<20992, with: repeatElement(0, count: 512))
        #expect(pool.statistics.volatileLog == .active || pool.statistics.volatileLog == .full)
        abandon(pool)
        let next = try Pool.open(on: disk.crashed(), options: options(SimulatedLog(bootID: .random())))
        #expect(try next.device(of: volume).read(32768, at: 0) == expected)
    }

    // MARK: The directory

    static let hasMemoryDirectory = (try? MemoryDirectory()) != nil

    /// A directory of the test's own under /dev/shm.
    final class MemoryDirectory {
        let path: String

        init() throws {
            path = "/dev/shm/stillpoint-test-\(getpid())-\(UInt32.random(in: 0 ... .max))"
            guard VolatileLogDirectory.firstUsable(of: [path]).path == path else {
                throw PoolError.notFound("tmpfs on /dev/shm")
            }
        }

        var files: [String] {
            guard let directory = opendir(path) else { return [] }
            defer { closedir(directory) }
            var names: [String] = []
            while let entry = readdir(directory) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if !name.hasPrefix(".") { names.append(name) }
            }
            return names
        }

        deinit {
            for name in files { unlink(path + "/" + name) }
            rmdir(path)
        }
    }

    @Test("only a directory on tmpfs that is this user's alone is taken", .enabled(if: hasMemoryDirectory))
    func directories() throws {
        let scratch = ScratchDirectory()
        let memory = try MemoryDirectory()
        let (path, problems) = VolatileLogDirectory.firstUsable(of: [scratch.path, scratch.file("new"), memory.path])
        #expect(path == memory.path)
        #expect(problems.count == 2 && problems.allSatisfy { $0.contains("tmpfs") }, "\(problems)")
        chmod(memory.path, 0o755)
        #expect(VolatileLogDirectory.firstUsable(of: [memory.path]).path == nil)
        chmod(memory.path, 0o700)
        symlink(memory.path, memory.path + "/link")
        #expect(VolatileLogDirectory.firstUsable(of: [memory.path + "/link"]).path == nil)
        // A pool without a usable directory works, and says that it has no log.
        var options = PoolOptions.small()
        options.volatileLogDirectory = scratch.path
        let pool = try Pool.create(path: scratch.file("pool"), options: options)
        guard case .off(let reason) = pool.statistics.volatileLog else {
            Issue.record("the log is \(pool.statistics.volatileLog)")
            return
        }
        #expect(reason.contains("tmpfs"))
        try pool.close()
    }
}
