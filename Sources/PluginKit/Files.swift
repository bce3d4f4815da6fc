public import Glibc

/// The names in a directory without `.` and `..`; empty when it cannot be read.
public func directoryEntries(_ path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        if name != ".", name != ".." { names.append(name) }
    }
    return names
}

/// A small file's bytes, at most 16 MiB; nil when it cannot be read.
public func readWholeFile(_ path: String) -> [UInt8]? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    while bytes.count < 16 << 20 {
        switch Descriptor.read(descriptor) {
        case .bytes(let more): bytes.append(contentsOf: more)
        case .nothingYet: continue
        case .end: return bytes
        }
    }
    return bytes
}

public func readText(_ path: String) -> String? {
    readWholeFile(path).map { String(decoding: $0, as: UTF8.self) }
}

/// Writes a file that is either there as a whole, with what is given, or as it was.
///
/// - Throws: `operatingSystem`.
public func writeFile(
    _ path: String, _ bytes: [UInt8], mode: UInt32 = 0o600, owner: UserIdentity? = nil
) throws(PluginFailure) {
    let temporary = "\(path).new"
    func failure(_ what: String) -> PluginFailure {
        PluginFailure(.operatingSystem, "\(path) cannot be \(what): \(errorText(errno))")
    }
    unlink(temporary)
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode)
    guard descriptor >= 0 else { throw failure("made") }
    defer { close(descriptor) }
    var done = 0
    while done < bytes.count {
        guard let count = Descriptor.write(descriptor, bytes[done...], limit: 1 << 20) else { throw failure("written") }
        done += count
    }
    if let owner, fchown(descriptor, owner.uid, owner.gid) < 0 { throw failure("given to \(owner.name)") }
    guard fsync(descriptor) == 0, rename(temporary, path) == 0 else { throw failure("written") }
    let folder = open(String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)]) + "/", O_RDONLY | O_CLOEXEC)
    if folder >= 0 {
        fsync(folder)
        close(folder)
    }
}

/// Where a symbolic link leads, as written in it; nil when it is none.
public func linkTarget(_ path: String) -> String? {
    var buffer = [UInt8](repeating: 0, count: 4_096)
    let count = buffer.withUnsafeMutableBytes {
        readlink(path, $0.baseAddress!.assumingMemoryBound(to: CChar.self), $0.count)
    }
    return count > 0 ? String(decoding: buffer.prefix(count), as: UTF8.self) : nil
}

/// The path without symbolic links; nil when there is nothing.
public func resolvedPath(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
}

/// What `stat` says, following symbolic links; nil when there is nothing.
public func fileStatus(_ path: String) -> stat? {
    var status = stat()
    return stat(path, &status) == 0 ? status : nil
}
