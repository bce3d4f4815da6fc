import BlockIO
import Glibc
import Testing

@Suite("I/O backends")
struct BackendTests {
    /// Whether this system allows io_uring.
    static let hasUring = canUring()

    private static func canUring() -> Bool {
        let path = "/tmp/stillpoint-backend-\(getpid())-probe"
        defer { unlink(path) }
        guard let file = try? HostFile(path: path, mode: .create, backend: .uring) else { return false }
        file.close()
        return true
    }

    private func withFile(_ backend: StorageBackend, _ body: (HostFile) throws -> Void) throws {
        let path = "/tmp/stillpoint-backend-\(getpid())-\(backend.rawValue)"
        unlink(path)
        defer { unlink(path) }
        let file = try HostFile(path: path, mode: .create, backend: backend)
        defer { file.close() }
        try body(file)
    }

    /// 512 blocks, each with its number in every word.
    private func fill(_ file: HostFile) throws {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { bytes.deallocate() }
        for block in 0..<UInt64(512) {
            bytes.withMemoryRebound(to: UInt64.self) { $0.update(repeating: block + 1) }
            try file.write(at: block * 4096, from: UnsafeRawBufferPointer(bytes))
        }
    }

    private func scatteredReads(_ file: HostFile, count: Int) throws {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: count * 4096, alignment: 4096)
        defer { bytes.deallocate() }
        var pieces: [StorageRead] = []
        for index in 0..<count {
            let part = UnsafeMutableRawBufferPointer(rebasing: bytes[(index * 4096)..<((index + 1) * 4096)])
            pieces.append(StorageRead(offset: UInt64(index * 37 % 600) * 4096, buffer: part))
        }
        try file.read(pieces)
        for (index, piece) in pieces.enumerated() {
            let block = UInt64(index * 37 % 600)
            // What lies beyond the end reads as zeros.
            let expected = block < 512 ? block + 1 : 0
            let isRight = piece.buffer.withMemoryRebound(to: UInt64.self) { words in
                words.allSatisfy { $0 == expected }
            }
            #expect(isRight, "piece \(index) of \(count)")
        }
    }

    @Test("a sync that the system refuses is refused: there is nothing in between that could swallow it")
    func refusedSync() throws {
        // A file that cannot be synced, for want of a disk that fails.
        let file = try HostFile(path: "/proc/self/comm", mode: .readWrite, backend: .pread)
        defer { file.close() }
        #expect(throws: StorageError(errno: EINVAL)) { try file.sync() }
    }

    @Test("plain reads of many pieces are right, also beyond the end")
    func plain() throws {
        try withFile(.pread) { file in
            #expect(file.backend == "pread")
            try fill(file)
            for count in [1, 2, 63, 64, 65, 200] { try scatteredReads(file, count: count) }
        }
    }

    @Test(
        "io_uring reads the same, in more pieces than its ring holds", .enabled(if: hasUring, "io_uring is forbidden"))
    func uring() throws {
        try withFile(.uring) { file in
            #expect(file.backend == "uring")
            try fill(file)
            for count in [1, 2, 63, 64, 65, 200] { try scatteredReads(file, count: count) }
        }
    }

    @Test("many threads read through rings at a time", .enabled(if: hasUring, "io_uring is forbidden"))
    func threads() throws {
        try withFile(.uring) { file in
            try fill(file)
            let threads = (0..<48).map { _ in
                startThread { [self] in for _ in 0..<20 { try? scatteredReads(file, count: 70) } }
            }
            for thread in threads { pthread_join(thread, nil) }
        }
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

    @Test("where io_uring is forbidden, auto falls back and says why, and uring is refused")
    func fallback() throws {
        guard !Self.hasUring else {
            try withFile(.automatic) { #expect($0.backend == "uring") }
            return
        }
        try withFile(.automatic) { #expect($0.backend.hasPrefix("pread (no io_uring: ")) }
        #expect(throws: StorageError.self) {
            try HostFile(path: "/tmp/stillpoint-none", mode: .create, backend: .uring)
        }
    }
}
