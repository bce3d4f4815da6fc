import Foundation

/// What the system says of a file, symbolic links followed.
struct FileStatus: Sendable, Equatable {
    var device: UInt64
    var inode: UInt64
    var mode: Int
    var owner: UInt32
    var sizeBytes: Int64
    var modifiedAt: Date
    var isRegularFile: Bool

    /// Nil if the file cannot be looked at.
    init?(path: String) {
        // `struct stat` is owned by another C module in each compilation, hence Foundation's view of it.
        let path = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
        guard let attributes = try? FileManager.default.attributesOfItem(atPath: path) else { return nil }
        func number(_ key: FileAttributeKey) -> UInt64 { (attributes[key] as? NSNumber)?.uint64Value ?? 0 }
        device = number(.systemNumber)
        inode = number(.systemFileNumber)
        mode = Int(number(.posixPermissions))
        owner = UInt32(truncatingIfNeeded: number(.ownerAccountID))
        sizeBytes = Int64(number(.size))
        modifiedAt = attributes[.modificationDate] as? Date ?? .distantPast
        isRegularFile = attributes[.type] as? FileAttributeType == .typeRegular
    }

    /// What an open descriptor of this process leads to; nil for pipes, sockets and terminals' like.
    init?(descriptor: Int32) {
        guard let path = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\(descriptor)"),
            path.hasPrefix("/")
        else { return nil }
        self.init(path: path)
    }

    var isOurs: Bool { owner == geteuid() }
    /// Nobody but us and root can change it.
    var isTrusted: Bool { (owner == 0 || isOurs) && mode & 0o022 == 0 }

    /// `MAJOR:MINOR` of its file system, as makedev(3) packs it: 12 + 20 bits and 8 + 24.
    var deviceNumber: String {
        let major = (device >> 8) & 0xFFF | (device >> 32) & 0xFFFF_F000
        let minor = device & 0xFF | (device >> 12) & 0xFFFF_FF00
        return "\(major):\(minor)"
    }
}
