internal import CLinux
internal import Glibc

/// The two files of a volatile log. They outlive the process and vanish with the machine's memory.
protocol VolatileLogStorage: AnyObject, Sendable {
    /// Of the machine's run, which the files do not outlive.
    var bootID: ObjectID { get }

    /// All bytes of a file (0 or 1); empty when there is none.
    func contents(ofFile file: Int) -> [UInt8]
    /// Returns 0, or the errno when not all of `bytes` could be written.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int, toFile file: Int) -> Int32
    /// Makes a file empty; returns 0 or the errno.
    func clear(file: Int) -> Int32
    /// Removes both files; they may not be used afterwards.
    func remove()
}

/// Why there is no volatile log; a text for people.
struct VolatileLogUnavailable: Error {
    var reason: String
}

/// The files of a volatile log in a directory on tmpfs. They are mapped: a note costs no system call, and what is in
/// the mapping outlives a killed process as a written file does.
final class MemoryFileLogStorage: VolatileLogStorage, @unchecked Sendable {
    /// More than a log ever grows to; a longer file is not ours.
    static let mostBytes = 1 << 30
    /// A file grows by so much; small, because writers wait meanwhile.
    private static let windowBytes = 128 << 10
    /// What a file has from the beginning, where there is room.
    private static let firstWindows = 8

    // SAFETY: used with the pool's lock held, or before the pool has other users. A window is `windowBytes` of mapped,
    // allocated file: tmpfs cannot run out of room under it. It stays until `clear` or deinit.
    private var windows: [[UnsafeMutableRawPointer]] = [[], []]
    let bootID: ObjectID
    private let directory: Int32
    private let names: [String]
    private let files: [Int32]

    init(directory path: String, poolID: ObjectID) throws(VolatileLogUnavailable) {
        guard let bootID = Self.currentBootID() else {
            throw VolatileLogUnavailable(reason: "the machine does not tell its boot id")
        }
        self.bootID = bootID
        directory = try VolatileLogDirectory.open(path)
        names = (0..<2).map { "pool-\(poolID.text).\($0)" }
        var opened: [Int32] = []
        var failure: Int32 = 0
        for name in names where failure == 0 {
            let file = clinux_open_private_file(directory, name)
            if file < 0 { failure = -file } else { opened.append(file) }
        }
        // Another process has a copy of the pool open.
        if failure == 0 { failure = clinux_file_lock(opened[0], 1) }
        files = opened
        guard failure == 0 else {
            for file in opened { Glibc.close(file) }
            Glibc.close(directory)
            throw VolatileLogUnavailable(reason: "the files in \(path) cannot be used (errno \(failure))")
        }
    }

    deinit {
        for file in 0..<2 { unmapWindows(ofFile: file) }
        for file in files { Glibc.close(file) }
        Glibc.close(directory)
    }

    static func currentBootID() -> ObjectID? {
        let file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { Glibc.close(file) }
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = Glibc.read(file, &bytes, bytes.count)
        guard count >= 36 else { return nil }
        return VolumeID(String(decoding: bytes[..<36], as: UTF8.self))?.value
    }

    func contents(ofFile file: Int) -> [UInt8] {
        var size: UInt64 = 0
        var isBlockDevice: Int32 = 0
        guard clinux_file_size(files[file], &size, &isBlockDevice) == 0, size <= UInt64(Self.mostBytes) else {
            return []
        }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeMutableBytes {
                pread(files[file], $0.baseAddress! + done, $0.count - done, off_t(done))
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            done += count
        }
        return Array(bytes[..<done])
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int, toFile file: Int) -> Int32 {
        let isFirst = windows[file].isEmpty
        while windows[file].count * Self.windowBytes < offset + bytes.count {
            let failure = addWindow(toFile: file)
            if failure != 0 { return failure }
        }
        if isFirst { while windows[file].count < Self.firstWindows, addWindow(toFile: file) == 0 {} }
        var done = 0
        while done < bytes.count {
            let (window, within) = (offset + done).quotientAndRemainder(dividingBy: Self.windowBytes)
            let count = min(bytes.count - done, Self.windowBytes - within)
            (windows[file][window] + within).copyMemory(from: bytes.baseAddress! + done, byteCount: count)
            done += count
        }
        return 0
    }

    /// Allocated first: a page that is missing under a mapping would end the process.
    private func addWindow(toFile file: Int) -> Int32 {
        let offset = windows[file].count * Self.windowBytes
        let failure = clinux_file_allocate(files[file], UInt64(offset), UInt64(Self.windowBytes))
        guard failure == 0 else { return failure }
        let window = mmap(
            nil, Self.windowBytes, PROT_READ | PROT_WRITE, MAP_SHARED | Int32(MAP_POPULATE), files[file],
            off_t(offset))
        guard let window, window != UnsafeMutableRawPointer(bitPattern: -1) else { return errno }
        windows[file].append(window)
        return 0
    }

    private func unmapWindows(ofFile file: Int) {
        for window in windows[file] { munmap(window, Self.windowBytes) }
        windows[file] = []
    }

    func clear(file: Int) -> Int32 {
        unmapWindows(ofFile: file)
        return clinux_truncate_file(files[file], 0)
    }

    func remove() {
        for name in names { _ = clinux_remove_file(directory, name) }
    }
}

/// Directories that can hold volatile logs: on tmpfs, of this user alone.
public enum VolatileLogDirectory {
    /// The first of `candidates` (absolute paths) that can be used, made if need be; and for each one before it,
    /// why not.
    public static func firstUsable(of candidates: [String]) -> (path: String?, problems: [String]) {
        var problems: [String] = []
        for path in candidates {
            do {
                Glibc.close(try open(path))
                return (path, problems)
            } catch {
                problems.append(error.reason)
            }
        }
        return (nil, problems)
    }

    static func open(_ path: String) throws(VolatileLogUnavailable) -> Int32 {
        let directory = clinux_open_memory_directory(path)
        guard directory < 0 else { return directory }
        switch -directory {
        case ENOTSUP: throw VolatileLogUnavailable(reason: "\(path) does not lie on tmpfs")
        case EPERM: throw VolatileLogUnavailable(reason: "\(path) belongs to another user or is open to others")
        case let errno: throw VolatileLogUnavailable(reason: "\(path) cannot be opened (errno \(errno))")
        }
    }
}
