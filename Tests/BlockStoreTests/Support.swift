import BlockIO
import BlockStore
import Glibc
import Testing

/// A directory that is removed with its contents at the end.
final class ScratchDirectory {
    let path: String

    init() {
        var template = Array("/tmp/stillpoint-store-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }

    func file(_ name: String) -> String { path + "/" + name }

    deinit {
        guard let directory = opendir(path) else { return }
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { unlink(path + "/" + name) }
        }
        closedir(directory)
        rmdir(path)
    }
}

extension PoolOptions {
    /// Small enough that a test makes many pools; passes run only when the test asks for them.
    static func small(hasThread: Bool = false) -> PoolOptions {
        var options = PoolOptions()
        options.maxSizeBytes = 64 << 20
        options.journalBytes = 1 << 20
        options.cacheBytes = 4 << 20
        options.overlayEntries = 20000
        options.hasMaintenanceThread = hasThread
        return options
    }
}

let kib: UInt64 = 1024
let mib: UInt64 = 1 << 20

extension BlockDevice {
    func write(_ bytes: [UInt8], at offset: UInt64, durability: WriteDurability = .cached) throws {
        try bytes.withUnsafeBytes { try write(at: offset, from: $0, durability: durability) }
    }

    func read(_ count: Int, at offset: UInt64) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count)
        try bytes.withUnsafeMutableBytes { try read(at: offset, into: $0) }
        return bytes
    }
}

/// Bytes that differ from block to block and from `tag` to `tag`.
func pattern(_ tag: UInt64, count: Int = 4096) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: (UInt64($0 / 8) &* 31) ^ (tag &* 167) ^ (tag >> 8) | 1) }
}
