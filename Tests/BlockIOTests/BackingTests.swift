import BlockIO
import Glibc
import Testing

@Suite("Storage for small writes")
struct BackingTests {
    private static let group = 64 << 10

    private func withFile(_ name: String, _ body: (HostFile) throws -> Void) throws {
        let path = "/tmp/stillpoint-backing-\(getpid())-\(name)"
        unlink(path)
        defer { unlink(path) }
        let file = try HostFile(path: path, mode: .create)
        defer { file.close() }
        try body(file)
    }

    private func write(_ file: HostFile, _ byte: UInt8, at offset: Int, backing length: Int? = nil) throws {
        let bytes = [UInt8](repeating: byte, count: 4096)
        try bytes.withUnsafeBytes {
            if let length {
                try file.write(at: UInt64(offset), from: $0, backing: UInt64(length))
            } else {
                try file.write(at: UInt64(offset), from: $0)
            }
        }
    }

    /// One byte of each block.
    private func blocks(_ file: HostFile, at offset: Int, count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count * 4096)
        try bytes.withUnsafeMutableBytes { try file.read(at: UInt64(offset), into: $0) }
        return stride(from: 0, to: bytes.count, by: 4096).map { bytes[$0 + 17] }
    }

    @Test("a small write into a hole backs the whole range with storage, zeros behind the data")
    func backs() throws {
        try withFile("hole") { file in
            try write(file, 7, at: 16 * Self.group, backing: Self.group)
            try file.sync()
            #expect(file.occupiedBytes >= UInt64(Self.group))
            #expect(try blocks(file, at: 16 * Self.group, count: 16) == [7] + [UInt8](repeating: 0, count: 15))
        }
    }

    @Test("data in the range stays, wherever it lies, written long ago or not yet on the disk")
    func dataStays() throws {
        try withFile("data") { file in
            for (place, isSynced) in [(1, true), (8, false), (15, true)] {
                let start = place * 4 * Self.group
                try write(file, 9, at: start + place * 4096)
                if isSynced { try file.sync() }
                try write(file, 7, at: start, backing: Self.group)
                var expected = [UInt8](repeating: 0, count: 16)
                expected[0] = 7
                expected[place] = 9
                #expect(try blocks(file, at: start, count: 16) == expected)
            }
        }
    }

    @Test("what was punched out is backed again by the next write")
    func punched() throws {
        try withFile("punched") { file in
            try write(file, 7, at: 0, backing: Self.group)
            try file.sync()
            let before = file.occupiedBytes
            try file.punchHole(at: 0, lengthBytes: UInt64(Self.group))
            #expect(file.occupiedBytes <= before - UInt64(Self.group))
            try write(file, 8, at: 0, backing: Self.group)
            try file.sync()
            #expect(file.occupiedBytes >= before)
            #expect(try blocks(file, at: 0, count: 16) == [8] + [UInt8](repeating: 0, count: 15))
        }
    }

    @Test("a range that is longer than a group, or no longer than the data, is a plain write")
    func oddRanges() throws {
        try withFile("odd") { file in
            try write(file, 7, at: 0, backing: 4096)
            try write(file, 8, at: Self.group, backing: 8 << 20)
            #expect(try blocks(file, at: 0, count: 1) == [7])
            #expect(try blocks(file, at: Self.group, count: 2) == [8, 0])
        }
    }
}
