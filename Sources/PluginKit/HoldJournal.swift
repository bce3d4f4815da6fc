import Glibc

/// What must outlive a plug-in that is killed while it holds something: a file of JSON lines in the state directory,
/// which lies on a tmpfs, so that writing it never waits for a frozen file system.
///
/// The file is locked for as long as its process lives. `abandoned` gives only files that nobody locks: a recovery never
/// touches what another live process of the plug-in holds.
public final class HoldJournal<Entry: Codable & Sendable>: Sendable {
    public let holdID: String
    public let path: String
    private let descriptor: Int32

    private init(holdID: String, path: String, descriptor: Int32) {
        self.holdID = holdID
        self.path = path
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    /// - Throws: `badState` when the directory cannot be written, or the hold has a journal already.
    public static func create(
        stateDirectory: String, plugin: String, holdID: String
    ) throws(PluginFailure) -> HoldJournal {
        guard holdID.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x2F && $0 < 0x7F }) else {
            throw PluginFailure(.badRequest, "The holdID has bytes that a file's name may not have")
        }
        let path = "\(stateDirectory)/\(plugin)-hold-\(holdID).journal"
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_APPEND | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else {
            throw PluginFailure(
                .badState, "The journal \(path) cannot be made: \(errorText(errno))",
                hint: errno == EEXIST
                    ? "A plug-in that died left it: recover comes first"
                    : "The agent's state directory must exist on a tmpfs and be writable")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let code = errno
            close(descriptor)
            throw PluginFailure(.badState, "The journal \(path) cannot be locked: \(errorText(code))")
        }
        return HoldJournal(holdID: holdID, path: path, descriptor: descriptor)
    }

    /// The journals in the directory whose processes are dead, locked now by the caller.
    public static func abandoned(stateDirectory: String, plugin: String) -> [HoldJournal] {
        let prefix = "\(plugin)-hold-"
        let suffix = ".journal"
        return directoryEntries(stateDirectory).sorted().compactMap { name in
            guard name.hasPrefix(prefix), name.hasSuffix(suffix) else { return nil }
            let path = "\(stateDirectory)/\(name)"
            let descriptor = open(path, O_RDWR | O_CLOEXEC | O_APPEND | O_NOFOLLOW)
            guard descriptor >= 0 else { return nil }
            guard flock(descriptor, LOCK_EX | LOCK_NB) == 0, access(path, F_OK) == 0 else {
                close(descriptor)
                return nil
            }
            let holdID = String(name.dropFirst(prefix.count).dropLast(suffix.count))
            return HoldJournal(holdID: holdID, path: path, descriptor: descriptor)
        }
    }

    /// Appends one line. On return the entry survives the process; nothing on a tmpfs survives the machine, and nothing
    /// is frozen after a restart of it.
    public func append(_ entry: Entry) throws(PluginFailure) {
        let line = try PluginJSON.encode(entry)
        let count = line.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        guard count == line.count else {
            throw PluginFailure(.badState, "The journal \(path) cannot be written: \(errorText(errno))")
        }
    }

    /// What was appended, oldest first. A last line that was cut short by the death of its writer is left out.
    public func entries() -> [Entry] {
        var lines = LineSplitter(maximumBytes: PluginContract.maximumLineBytes)
        return lines.feed(readWholeFile(path) ?? []).compactMap { piece in
            guard case .line(let line) = piece else { return nil }
            return try? PluginJSON.decode(Entry.self, from: line)
        }
    }

    /// Everything it names is released.
    public func remove() { unlink(path) }
}
