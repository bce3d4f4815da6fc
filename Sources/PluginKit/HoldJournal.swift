import Glibc

/// What must outlive a plug-in that is killed while it holds something: a file of JSON lines in the state directory,
/// which lies on a tmpfs, so that writing it never waits for a frozen file system.
///
/// The file is locked for as long as its process lives. `abandoned` gives only files that nobody locks: a recovery
/// never touches what another live process of the plug-in holds.
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
        let journal = HoldJournal(holdID: holdID, path: path, descriptor: descriptor)
        try journal.write(JournalHeader(process: getpid()))
        return journal
    }

    /// What a recovery reports as failures, so that it is repeated: the holds of processes that still live, which
    /// release them by themselves, but may be killed before that; and of those that were killed inside a system call
    /// that nobody can interrupt, which can be recovered only when the kernel has given them back.
    public static func unrecoverable(stateDirectory: String, plugin: String) -> [String] {
        held(stateDirectory: stateDirectory, plugin: plugin).map { holdID, process in
            isDying(process)
                ? "Process \(process) of hold \(holdID) was ended inside a call that the kernel has not given back; "
                    + "what it holds can be released only after it"
                : "Process \(process) still has hold \(holdID), and releases it by itself"
        }
    }

    /// The holds whose processes still live, or die: they release by themselves, or else a later recovery does.
    public static func held(stateDirectory: String, plugin: String) -> [(holdID: String, process: Int32)] {
        let prefix = "\(plugin)-hold-"
        return directoryEntries(stateDirectory).sorted().compactMap { name in
            guard name.hasPrefix(prefix), name.hasSuffix(".journal") else { return nil }
            let path = "\(stateDirectory)/\(name)"
            let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
            guard descriptor >= 0 else { return nil }
            defer { close(descriptor) }
            guard flock(descriptor, LOCK_EX | LOCK_NB) < 0, errno == EWOULDBLOCK else { return nil }
            var lines = LineSplitter(maximumBytes: PluginContract.maximumLineBytes)
            guard case .line(let line) = lines.feed(readWholeFile(path) ?? []).first,
                let header = try? PluginJSON.decode(JournalHeader.self, from: line)
            else { return nil }
            return (String(name.dropFirst(prefix.count).dropLast(8)), header.process)
        }
    }

    /// Its main thread is gone, or SIGKILL waits for it.
    private static func isDying(_ process: Int32) -> Bool {
        guard let status = readText("/proc/\(process)/status") else { return true }
        return status.split(separator: "\n" as Character).contains { line in
            if line.hasPrefix("State:") { return line.contains("Z") || line.contains("X") }
            guard line.hasPrefix("SigPnd:") || line.hasPrefix("ShdPnd:") else { return false }
            let signals = UInt64(line.drop { $0 != ":" }.dropFirst().filter(\.isHexDigit), radix: 16) ?? 0
            return signals & (1 << UInt64(SIGKILL - 1)) != 0
        }
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
    public func append(_ entry: Entry) throws(PluginFailure) { try write(entry) }

    private func write(_ value: some Encodable) throws(PluginFailure) {
        let line = try PluginJSON.encode(value)
        let count = line.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
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

/// The first line of a journal: whose it is.
private struct JournalHeader: Codable {
    var process: Int32
}
