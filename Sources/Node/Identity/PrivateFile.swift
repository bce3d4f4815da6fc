import API
import Foundation
import Glibc

/// Files that only the owner may read.
enum PrivateFile {
    /// Writes `contents` with mode 0600 so that a crash leaves the old file or the new one.
    static func write(_ contents: Data, to path: String) throws {
        let temporary = path + ".new"
        _ = unlink(temporary)
        let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { throw FileFailure("cannot create", temporary) }
        defer { close(descriptor) }
        var rest = contents[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            guard written > 0 else { throw FileFailure("cannot write", temporary) }
            rest = rest.dropFirst(written)
        }
        guard fsync(descriptor) == 0 else { throw FileFailure("cannot sync", temporary) }
        guard rename(temporary, path) == 0 else { throw FileFailure("cannot rename to", path) }
        try syncDirectory(of: path)
    }

    /// Reads a small file that nobody else may read or write.
    ///
    /// - Returns: nil where there is none.
    static func read(_ path: String, limitBytes: Int = 1 << 20) throws -> Data? {
        guard FileManager.default.fileExists(atPath: path) else { return nil }
        let attributes: [FileAttributeKey: Any]
        let contents: Data
        do {
            attributes = try FileManager.default.attributesOfItem(atPath: path)
            guard (attributes[.size] as? NSNumber)?.intValue ?? .max <= limitBytes else {
                throw FileFailure(message: "\(path) is too large")
            }
            contents = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch let failure as FileFailure {
            throw failure
        } catch {
            throw FileFailure(message: "cannot read \(path): \(reasonText(error))")
        }
        let mode = (attributes[.posixPermissions] as? NSNumber)?.intValue ?? 0o777
        guard mode & 0o077 == 0 else {
            throw FileFailure(message: "\(path) is open to others (mode \(String(mode, radix: 8))); chmod 600 it")
        }
        return contents
    }

    /// Makes a directory of mode 0700 with its parents.
    static func makeDirectory(_ path: String) throws {
        do {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw FileFailure(message: "cannot create the directory \(path): \(reasonText(error))")
        }
    }

    private static func syncDirectory(of path: String) throws {
        let directory = URL(fileURLWithPath: path).deletingLastPathComponent().path
        let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw FileFailure("cannot open", directory) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw FileFailure("cannot sync", directory) }
    }
}

/// A file operation of the node's own files that failed.
struct FileFailure: Error, CustomStringConvertible {
    var description: String

    init(message: String) { description = message }

    /// With the reason in `errno`.
    init(_ what: String, _ path: String) { description = "\(what) \(path): \(String(cString: strerror(errno)))" }
}
