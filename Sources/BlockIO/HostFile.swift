internal import CLinux
internal import Glibc
internal import Synchronization

/// A regular file or block device of the operating system, locked against other openers.
public final class HostFile: StorageFile {
    /// How to open the file.
    public enum Mode: Sendable {
        /// A new regular file, which must not exist, or an existing block device.
        case create
        case readWrite
        case readOnly
    }

    private let descriptor: Int32
    private let isBlockDevice: Bool
    private let rings: UringStock?
    /// How calls reach the disk: `pread`, `uring`, or why it is not the latter.
    public let backend: String
    /// For uncached reads; opened when first asked for, -1 where it cannot be had.
    private let directDescriptor = Mutex<Int32?>(nil)

    /// Opens and locks `path`. Errors: `EWOULDBLOCK` when another process has it, `EEXIST` for `create` on a regular
    /// file, and whatever open(2) answers.
    public init(path: String, mode: Mode, backend choice: StorageBackend = .automatic) throws(StorageError) {
        (rings, backend) = try Self.prepare(choice)
        descriptor = try HostFile.openDescriptor(path: path, mode: mode)
        var size: UInt64 = 0
        var blockDevice: Int32 = 0
        var failure = clinux_file_size(descriptor, &size, &blockDevice)
        if failure == 0 { failure = clinux_file_lock(descriptor, mode == .readOnly ? 0 : 1) }
        isBlockDevice = blockDevice != 0
        if failure == 0, mode == .create, !isBlockDevice { failure = HostFile.syncDirectory(of: path) }
        guard failure == 0 else {
            Glibc.close(descriptor)
            throw StorageError(errno: failure)
        }
    }

    private static func prepare(_ choice: StorageBackend) throws(StorageError) -> (UringStock?, String) {
        if choice == .pread { return (nil, "pread") }
        do {
            return (try UringStock(), "uring")
        } catch {
            guard choice == .automatic else { throw error }
            return (nil, "pread (no io_uring: \(String(cString: strerror(error.errno))))")
        }
    }

    /// Why this system cannot do what `choice` demands; nil where it can.
    public static func refusal(of choice: StorageBackend) -> String? {
        do {
            _ = try prepare(choice)
            return nil
        } catch {
            return String(cString: strerror(error.errno))
        }
    }

    private static func openDescriptor(path: String, mode: Mode) throws(StorageError) -> Int32 {
        var status = stat()
        let isDevice = stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFBLK
        let flags: Int32
        switch mode {
        case .create: flags = O_RDWR | O_CLOEXEC | (isDevice ? 0 : O_CREAT | O_EXCL)
        case .readWrite: flags = O_RDWR | O_CLOEXEC
        case .readOnly: flags = O_RDONLY | O_CLOEXEC
        }
        let descriptor = open(path, flags, 0o600)
        guard descriptor >= 0 else { throw StorageError(errno: errno) }
        return descriptor
    }

    /// A new file survives a crash only when its directory was synced.
    private static func syncDirectory(of path: String) -> Int32 {
        let slash = path.utf8.lastIndex(of: UInt8(ascii: "/"))
        let directory = slash.map { $0 == path.utf8.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return errno }
        defer { Glibc.close(descriptor) }
        return fsync(descriptor) == 0 ? 0 : errno
    }

    public var sizeBytes: UInt64 {
        var size: UInt64 = 0
        var blockDevice: Int32 = 0
        return clinux_file_size(descriptor, &size, &blockDevice) == 0 ? size : 0
    }

    public var canGrow: Bool { !isBlockDevice }

    public var availableBytes: UInt64? {
        guard !isBlockDevice else { return nil }
        var free: UInt64 = 0
        return clinux_file_system_free(descriptor, &free) == 0 ? free : nil
    }

    /// Bytes of storage that the file occupies: what hole punching lowers.
    public var occupiedBytes: UInt64 {
        var bytes: UInt64 = 0
        return clinux_file_occupied(descriptor, &bytes) == 0 ? bytes : 0
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError) {
        var done = 0
        while done < buffer.count {
            let next = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
            let count = pread(descriptor, next.baseAddress, next.count, off_t(offset) + off_t(done))
            if count < 0 {
                if errno == EINTR { continue }
                throw StorageError(errno: errno)
            }
            if count == 0 {
                next.initializeMemory(as: UInt8.self, repeating: 0)
                return
            }
            done += count
        }
    }

    /// Reads with a second descriptor that bypasses the page cache, where the file system lets it and the buffer is
    /// aligned to 4096 bytes; else as ``read(at:into:)`` does.
    public func readUncached(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError) {
        let direct = directDescriptor.withLock { known in
            if known == nil { known = open("/proc/self/fd/\(descriptor)", O_RDONLY | O_CLOEXEC | clinux_o_direct()) }
            return known ?? -1
        }
        let isAligned = UInt(bitPattern: buffer.baseAddress) % 4096 == 0 && buffer.count % 4096 == 0
        guard direct >= 0, isAligned, offset % 4096 == 0 else { return try read(at: offset, into: buffer) }
        let count = pread(direct, buffer.baseAddress, buffer.count, off_t(offset))
        // What it will not do, and the end of the file, are left to the plain way.
        if count != buffer.count { try read(at: offset, into: buffer) }
    }

    public func read(_ pieces: [StorageRead]) throws(StorageError) {
        guard pieces.count > 1, let rings else {
            for piece in pieces { try read(at: piece.offset, into: piece.buffer) }
            return
        }
        let transfers = UnsafeMutableBufferPointer<clinux_transfer>.allocate(capacity: pieces.count)
        defer { transfers.deallocate() }
        for (index, piece) in pieces.enumerated() {
            transfers.initializeElement(
                at: index,
                to: clinux_transfer(
                    offset: piece.offset, buffer: piece.buffer.baseAddress, length: UInt32(piece.buffer.count),
                    result: -1))
        }
        let isDone = rings.run(descriptor, transfers)
        // A piece that ended early or failed has its say the plain way: the end of the file, a signal, an error.
        for (index, piece) in pieces.enumerated() where !isDone || transfers[index].result != piece.buffer.count {
            try read(at: piece.offset, into: piece.buffer)
        }
    }

    public func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(StorageError) {
        var done = 0
        while done < buffer.count {
            let next = UnsafeRawBufferPointer(rebasing: buffer[done...])
            let count = pwrite(descriptor, next.baseAddress, next.count, off_t(offset) + off_t(done))
            if count < 0 {
                if errno == EINTR { continue }
                throw StorageError(errno: errno)
            }
            if count == 0 { throw StorageError(errno: EIO) }
            done += count
        }
    }

    /// A file system allocates, journals and caches 64 KiB at once in the time of a few times 4 KiB. The zeros cost
    /// little: what is written in their place before the next sync never lets them reach the disk.
    public func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, backing lengthBytes: UInt64
    ) throws(StorageError) {
        let isDone =
            !isBlockDevice && clinux_file_is_hole(descriptor, offset, lengthBytes) != 0
            && clinux_file_write_backing(descriptor, offset, buffer.baseAddress, buffer.count, lengthBytes) == 0
        // Also where the file system has no room for more than the data.
        if !isDone { try write(at: offset, from: buffer) }
    }

    public func sync() throws(StorageError) {
        // Never retried: after a failed sync the kernel may have marked the lost pages clean.
        guard fdatasync(descriptor) == 0 else { throw StorageError(errno: errno) }
    }

    public func startWriteback(at offset: UInt64, lengthBytes: UInt64) {
        clinux_file_start_writeback(descriptor, offset, lengthBytes)
    }

    public func dropCache() { _ = posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED) }

    public func punchHole(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {
        let failure = clinux_file_punch(descriptor, isBlockDevice ? 1 : 0, offset, lengthBytes)
        // Giving space back is a courtesy: what cannot do it keeps the space.
        guard failure == 0 || failure == EOPNOTSUPP else { throw StorageError(errno: failure) }
    }

    public func allocate(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {
        guard !isBlockDevice else { return }
        let failure = clinux_file_allocate(descriptor, offset, lengthBytes)
        guard failure == EOPNOTSUPP else {
            guard failure == 0 else { throw StorageError(errno: failure) }
            return
        }
        try fillWithZeros(at: offset, lengthBytes: lengthBytes)
    }

    private func fillWithZeros(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {
        let piece = 1 << 20
        let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: piece, alignment: 4096)
        defer { zeros.deallocate() }
        zeros.initializeMemory(as: UInt8.self, repeating: 0)
        var done: UInt64 = 0
        while done < lengthBytes {
            let count = Int(min(UInt64(piece), lengthBytes - done))
            try write(at: offset + done, from: UnsafeRawBufferPointer(rebasing: zeros[..<count]))
            done += UInt64(count)
        }
    }

    public func close() {
        directDescriptor.withLock { if let direct = $0, direct >= 0 { Glibc.close(direct) } }
        Glibc.close(descriptor)
    }
}
