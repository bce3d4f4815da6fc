import BlockIO
import Glibc
import Testing

@testable import BlockStore

/// A loop device over a sparse file, detached at the end.
private final class LoopDevice {
    let backing: String
    let path: String

    static let isAvailable = geteuid() == 0 && access("/dev/loop-control", R_OK | W_OK) == 0 && run("losetup -f") != nil

    init?(_ backing: String, sizeBytes: UInt64) {
        self.backing = backing
        guard truncate(backing, sizeBytes),
            let path = LoopDevice.run("losetup --find --show \(backing)")
        else { return nil }
        self.path = path
    }

    deinit { _ = LoopDevice.run("losetup --detach \(path)") }

    func enlarge(to sizeBytes: UInt64) -> Bool {
        truncate(backing, sizeBytes) && LoopDevice.run("losetup --set-capacity \(path)") != nil
    }

    /// Bytes that the backing file occupies once everything is written.
    var occupiedBytes: UInt64 {
        guard let text = LoopDevice.run("sync \(backing); stat -c %b \(backing)"), let blocks = UInt64(text) else {
            return 0
        }
        return blocks * 512
    }

    /// What the command prints; nil when it fails.
    static func run(_ command: String) -> String? {
        guard let stream = popen(command + " 2>/dev/null", "r") else { return nil }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = fread(&bytes, 1, bytes.count, stream)
        guard pclose(stream) == 0 else { return nil }
        return String(decoding: bytes[..<count], as: UTF8.self).split(separator: "\n").first.map(String.init) ?? ""
    }
}

private func truncate(_ path: String, _ sizeBytes: UInt64) -> Bool {
    let file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    defer { close(file) }
    return file >= 0 && ftruncate(file, off_t(sizeBytes)) == 0
}

/// A MiB that differs by its number, made faster than a pattern.
private func filled(_ number: UInt64) -> [UInt8] { [UInt8](repeating: UInt8(number % 255 + 1), count: 1 << 20) }

@Suite("A pool on a block device", .enabled(if: LoopDevice.isAvailable, "no loop device can be had"), .serialized)
struct RawDeviceTests {
    private let volume = VolumeID("00000000-0000-4000-8000-000000000001")!

    @Test("it is made, filled, unmapped with discards that reach the device, grown, scrubbed, and checked")
    func wholeLife() throws {
        let scratch = ScratchDirectory()
        let loop = try #require(LoopDevice(scratch.file("disk"), sizeBytes: 128 << 20))
        var pool = try Pool.create(path: loop.path, options: .small(hasThread: true))
        // The options' 64 MiB; the rest of the device is for a growth.
        #expect(pool.statistics.sizeBytes == 64 << 20)
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 1 << 30)
        var device = try pool.device(of: volume)
        for index in 0..<UInt64(32) { try device.write(filled(index), at: index << 20) }
        try device.flush()
        try pool.maintain()
        let full = loop.occupiedBytes
        try device.unmap(at: 0, lengthBytes: 24 << 20)
        try device.flush()
        for _ in 0..<3 { try pool.maintain() }
        #expect(loop.occupiedBytes + (16 << 20) < full)
        #expect(try device.read(8192, at: 1 << 20) == [UInt8](repeating: 0, count: 8192))

        #expect(try pool.grow() == 128 << 20)
        #expect(loop.enlarge(to: 256 << 20))
        #expect(try pool.grow() == 256 << 20)
        for index in 32..<UInt64(128) { try device.write(filled(index), at: index << 20) }
        try device.flush()
        let scrub = try pool.scrub()
        while try scrub.step() {}
        #expect(scrub.report.damage == [])
        try pool.close()

        let report = try PoolChecker.check(path: loop.path)
        #expect(report.problems == [])
        pool = try Pool.open(path: loop.path, options: .small())
        #expect(pool.statistics.sizeBytes == 256 << 20)
        device = try pool.device(of: volume)
        for index in stride(from: UInt64(24), to: 128, by: 7) {
            #expect(try device.read(4096, at: index << 20) == Array(filled(index)[..<4096]))
        }
        try pool.close()
    }

    @Test("a full device refuses writes, not flushes, and a growth makes room at once")
    func full() throws {
        let scratch = ScratchDirectory()
        let loop = try #require(LoopDevice(scratch.file("disk"), sizeBytes: 32 << 20))
        let pool = try Pool.create(path: loop.path, options: .small(hasThread: true))
        _ = try pool.createVolume(id: volume, name: "v", sizeBytes: 1 << 30)
        let device = try pool.device(of: volume)
        var written: UInt64 = 0
        #expect(throws: BlockError.noSpace) {
            while written < 64 {
                try device.write(filled(written), at: written << 20)
                written += 1
            }
        }
        try device.flush()
        #expect(throws: PoolError.self) { try pool.grow() }
        #expect(loop.enlarge(to: 64 << 20))
        try pool.grow()
        try device.write(filled(written), at: written << 20)
        try device.flush()
        try pool.close()
        #expect(try PoolChecker.check(path: loop.path).isSound)
    }

    @Test("a device that became smaller than its pool is refused with both sizes")
    func shrunk() throws {
        let scratch = ScratchDirectory()
        let loop = try #require(LoopDevice(scratch.file("disk"), sizeBytes: 64 << 20))
        try Pool.create(path: loop.path, options: .small()).close()
        #expect(loop.enlarge(to: 32 << 20))
        do {
            _ = try Pool.open(path: loop.path, options: .small())
            Issue.record("it opened")
        } catch {
            #expect("\(error)".contains("\(32 << 20)") && "\(error)".contains("\(64 << 20)"))
        }
    }
}
