import BlockIO
import Glibc
import Simulation
import Synchronization
import Testing

@testable import BlockStore

@Suite("Zeros and atomic writes")
struct AtomicityTests {
    private let volume = VolumeID("00000000-0000-4000-8000-000000000001")!
    private let zeros = [UInt8](repeating: 0, count: 8192)

    private func makePool(_ change: (inout PoolOptions) -> Void = { _ in }) throws -> (Pool, any BlockDevice) {
        var options = PoolOptions.small()
        change(&options)
        let pool = try Pool.create(on: SimulatedDisk(seed: 1), options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 << 20)
        return (pool, try pool.device(of: volume))
    }

    @Test("written zeros become unmapped blocks and take no room; a snapshot keeps what they replaced")
    func zeroDetection() throws {
        let (pool, device) = try makePool()
        try device.write(pattern(1, count: 8192), at: 4096)
        let snapshot = try pool.createSnapshot(id: .random(), name: "s", volumes: [volume], attributes: [])
        let before = pool.statistics.dataBytesWritten
        try device.write(zeros, at: 4096)
        #expect(pool.statistics.dataBytesWritten == before)
        #expect(try device.provisioning(at: 4096, maxLengthBytes: 8192).isMapped == false)
        #expect(try device.read(8192, at: 4096) == zeros)
        let kept = try pool.device(of: snapshot.id, volume: volume)
        #expect(try kept.read(8192, at: 4096) == pattern(1, count: 8192))
        // A block that is zero in part only is data.
        try device.write(pattern(2, count: 512), at: 4096 + 512)
        #expect(try device.provisioning(at: 4096, maxLengthBytes: 4096).isMapped)
        try device.write(Array(zeros[..<512]), at: 4096 + 512)
        #expect(try device.provisioning(at: 4096, maxLengthBytes: 4096).isMapped == false)
        try pool.close()
    }

    @Test("a block with one byte that is not zero is data, wherever that byte is")
    func singleBytes() throws {
        let (pool, device) = try makePool()
        for at in Array(stride(from: 0, to: 4096, by: 251)) + [4095] {
            var block = [UInt8](repeating: 0, count: 4096)
            block[at] = 1
            try device.write(block, at: 4096)
            #expect(try device.read(4096, at: 4096) == block, "byte \(at)")
            try device.unmap(at: 4096, lengthBytes: 4096)
        }
        try pool.close()
    }

    @Test("without zero detection zeros are data like others")
    func noZeroDetection() throws {
        let (pool, device) = try makePool { $0.detectsZeros = false }
        try device.write(zeros, at: 4096)
        #expect(pool.statistics.dataBytesWritten == 8192)
        #expect(try device.provisioning(at: 4096, maxLengthBytes: 8192).isMapped)
        #expect(try device.read(8192, at: 4096) == zeros)
        try pool.maintain()
        #expect(try device.read(8192, at: 4096) == zeros)
        #expect(PoolChecker.check(pool).isSound)
        try pool.close()
    }

    @Test("a range that many write whole is always one of the writers' own, never a mixture")
    func wholeWrites() throws {
        let (pool, device) = try makePool { $0.hasMaintenanceThread = true }
        let count = 64 << 10
        let mixtures = Atomic<Int>(0)
        let threads = (1...4).map { tag in
            startThread {
                for _ in 0..<60 {
                    try? device.write([UInt8](repeating: UInt8(tag), count: count), at: 1 << 20)
                }
            }
        }
        let reader = startThread {
            for _ in 0..<200 {
                guard let bytes = try? device.read(count, at: 1 << 20) else { continue }
                if Set(bytes).count > 1 { mixtures.add(1, ordering: .relaxed) }
            }
        }
        for thread in threads + [reader] { pthread_join(thread, nil) }
        #expect(mixtures.load(ordering: .relaxed) == 0)
        try pool.close()
    }

    @Test("writers, holes and zeros over the same range: each 64 KiB is one of them whole, before and after a start")
    func writesAndHoles() throws {
        let disk = SimulatedDisk(seed: 1)
        var options = PoolOptions.small(hasThread: true)
        options.overlayEntries = 200
        var pool = try Pool.create(on: disk, options: options)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 64 << 20)
        var device = try pool.device(of: volume)
        let count = 64 << 10
        let mixtures = Atomic<Int>(0)
        let reads = Atomic<Int>(0)
        let shared = device
        let writers = (0..<4).map { tag in
            startThread {
                for round in 0..<40 {
                    // Ranges of the same 64 KiB pieces that begin and end at different ones.
                    let first = UInt64((round + tag) % 3)
                    for piece in first..<(first + 2) {
                        let offset = (1 << 20) + piece * UInt64(count)
                        if tag == 3 {
                            try? shared.unmap(at: offset, lengthBytes: UInt64(count))
                        } else {
                            try? shared.write([UInt8](repeating: UInt8(tag), count: count), at: offset)
                        }
                    }
                }
            }
        }
        let reader = startThread {
            for round in 0..<300 {
                let offset = (1 << 20) + UInt64(round % 4 * count)
                guard let bytes = try? shared.read(count, at: offset) else { continue }
                reads.add(1, ordering: .relaxed)
                if Set(bytes).count > 1 { mixtures.add(1, ordering: .relaxed) }
            }
        }
        for thread in writers + [reader] { pthread_join(thread, nil) }
        #expect(mixtures.load(ordering: .relaxed) == 0 && reads.load(ordering: .relaxed) == 300)
        try device.flush()
        let before = try device.read(4 * count, at: 1 << 20)
        try pool.close()
        pool = try Pool.open(on: disk, options: .small())
        device = try pool.device(of: volume)
        #expect(try device.read(4 * count, at: 1 << 20) == before)
        for piece in 0..<4 { #expect(Set(before[(piece * count)..<((piece + 1) * count)]).count == 1) }
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }

    @Test(
        "COMPARE AND WRITE of many at once loses no step, in whole blocks and in parts of one, with writers beside it")
    func compareAndWrite() throws {
        let (pool, device) = try makePool { $0.hasMaintenanceThread = true }
        for (offset, length) in [(UInt64(8192), 4096), (UInt64(20480 + 512), 512)] {
            try device.write([UInt8](repeating: 0, count: length), at: offset)
            let threads = (0..<4).map { _ in
                startThread {
                    var done = 0
                    while done < 25 {
                        guard let now = try? device.read(length, at: offset) else { return }
                        var next = now
                        next[0] &+= 1
                        let isWritten = now.withUnsafeBytes { expected in
                            next.withUnsafeBytes { replacement in
                                (try? device.compareAndWrite(
                                    at: offset, expected: expected, replacement: replacement, durability: .cached))
                                    != nil
                            }
                        }
                        if isWritten { done += 1 }
                    }
                }
            }
            let neighbour = startThread {
                for index in 0..<100 {
                    try? device.write(pattern(UInt64(index), count: 512), at: offset / 4096 * 4096 + 2048 + 4096)
                }
            }
            for thread in threads + [neighbour] { pthread_join(thread, nil) }
            #expect(try device.read(length, at: offset)[0] == 100)
        }
        try pool.close()
    }

    private func startThread(_ body: @escaping @Sendable () -> Void) -> pthread_t {
        final class Box: Sendable {
            let body: @Sendable () -> Void
            init(_ body: @escaping @Sendable () -> Void) { self.body = body }
        }
        var thread = pthread_t()
        pthread_create(
            &thread, nil,
            { argument in
                Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
                return nil
            }, Unmanaged.passRetained(Box(body)).toOpaque())
        return thread
    }
}
