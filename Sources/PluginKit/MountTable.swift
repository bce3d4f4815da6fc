import CLinux

/// A block device's number.
public struct DeviceNumber: Sendable, Hashable, CustomStringConvertible {
    public var major: UInt32
    public var minor: UInt32

    public init(major: UInt32, minor: UInt32) {
        self.major = major
        self.minor = minor
    }

    /// From a `dev_t`, as `stat` gives it.
    public init(_ raw: UInt64) {
        major = clinux_major(raw)
        minor = clinux_minor(raw)
    }

    /// `7:3`
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ":")
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else { return nil }
        self.init(major: major, minor: minor)
    }

    public var description: String { "\(major):\(minor)" }
}

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
public struct MountEntry: Sendable, Equatable {
    public var id: Int
    /// The file system's own number: the device's, or an anonymous one (btrfs).
    public var superblock: DeviceNumber
    /// What of the file system is mounted here; `/` for all of it.
    public var root: String
    public var mountPoint: String
    /// Of this mount: `rw,noatime`.
    public var options: [String]
    public var type: String
    public var source: String
    /// Of the file system: `rw,errors=remount-ro`.
    public var superOptions: [String]

    public var isReadOnly: Bool { superOptions.contains("ro") }

    public init?(line: some StringProtocol) {
        let fields = line.split(separator: " " as Character).map { String($0) }
        guard let dash = fields.firstIndex(of: "-"), dash >= 6, fields.count >= dash + 4, let id = Int(fields[0]),
            let superblock = DeviceNumber(fields[2])
        else { return nil }
        self.id = id
        self.superblock = superblock
        root = Self.unescape(fields[3])
        mountPoint = Self.unescape(fields[4])
        options = fields[5].split(separator: ",").map { String($0) }
        type = fields[dash + 1]
        source = Self.unescape(fields[dash + 2])
        superOptions = fields[dash + 3].split(separator: ",").map { Self.unescape($0) }
    }

    /// `\040` is how the kernel writes a space in a path.
    static func unescape(_ text: some StringProtocol) -> String {
        guard text.contains("\\") else { return String(text) }
        var bytes: [UInt8] = []
        let source = Array(text.utf8)
        var index = 0
        while index < source.count {
            if source[index] == 0x5C, index + 3 < source.count,
                let value = UInt8(String(decoding: source[index + 1...index + 3], as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                index += 4
            } else {
                bytes.append(source[index])
                index += 1
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// What is mounted in this process's mount namespace.
public struct MountTable: Sendable {
    /// In the order of mounting.
    public var entries: [MountEntry]

    public init(text: String) {
        entries = text.split(separator: "\n").compactMap { MountEntry(line: $0) }
    }

    public static func current() -> MountTable { MountTable(text: readText("/proc/self/mountinfo") ?? "") }

    /// The mount that a path without symbolic links lies on: the longest mount point above it, the last of several
    /// mounted over one another.
    public func mount(containing path: String) -> MountEntry? {
        var best: MountEntry?
        for entry in entries where path.isBelow(entry.mountPoint) {
            if best.map({ $0.mountPoint.utf8.count <= entry.mountPoint.utf8.count }) ?? true { best = entry }
        }
        return best
    }

    /// What is visible at a mount point: the last one mounted there.
    public func mount(at mountPoint: String) -> MountEntry? { entries.last { $0.mountPoint == mountPoint } }
}

extension String {
    /// True for the directory itself and for everything in it.
    public func isBelow(_ directory: String) -> Bool {
        directory == "/" ? hasPrefix("/") : self == directory || hasPrefix(directory + "/")
    }
}
