internal import Glibc

/// Why the pool refused or failed a control operation. Nothing has changed when one is thrown, except after ``failed``.
public enum PoolError: Error, Equatable, Sendable {
    /// No volume or snapshot has this id, or the volume is no member of the snapshot.
    case notFound(String)
    /// The id or name is taken.
    case exists(String)
    /// The name is not 1...128 bytes of `[A-Za-z0-9._:@-]`.
    case invalidName(String)
    /// The size is zero, no multiple of 4096, or more than 64 TiB.
    case invalidSize(UInt64)
    /// An argument makes no sense; the text says which.
    case invalidArgument(String)
    /// The volume still has these snapshots.
    case hasSnapshots([String])
    /// These clones stand on the snapshot.
    case hasClones([String])
    /// The volume is no clone, or the volume it was cloned from has no part in it any more.
    case notAClone(String)
    /// Two snapshots or volumes have no common history; the text says which.
    case unrelated(String)
    /// A received stream is cut off, changed on the way, or none at all; the text says what is wrong with it.
    case badStream(String)
    /// A received stream was made by a newer version.
    case unsupportedStream(String)
    /// A received stream does not fit what is here; the text says why.
    case refusedStream(String)
    /// What the call is about kept changing while it ran.
    case changing(String)
    /// The caller ended the call.
    case cancelled
    /// Another process has the pool open.
    case inUse(path: String)
    /// The file holds no pool.
    case notAPool(path: String)
    /// The pool was written by a newer version, or uses a feature this one does not know.
    case unsupported(String)
    /// What is on the disk contradicts itself; the text says what and where.
    case damaged(String)
    /// The pool has no room.
    case noSpace
    /// The pool failed, or was opened read-only, for this reason.
    case readOnly(String)
    /// The pool was closed.
    case closed
    /// The operating system answered an operation with this errno.
    case io(operation: String, errno: Int32)
}

extension PoolError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .notFound(let what): "there is no \(what)"
        case .exists(let what): "\(what) exists already"
        case .invalidName(let name): "the name '\(name)' is not 1 to 128 characters of A-Z a-z 0-9 . _ : @ -"
        case .invalidSize(let size): "\(size) bytes is not a size from 4 KiB to 64 TiB in steps of 4 KiB"
        case .invalidArgument(let text): text
        case .hasSnapshots(let names): "the volume still has snapshots: \(names.joined(separator: ", "))"
        case .hasClones(let names):
            "clones stand on the snapshot: \(names.joined(separator: ", ")); delete or promote them first"
        case .notAClone(let name): "the volume \(name) is no clone of another volume's snapshot"
        case .unrelated(let text): text
        case .badStream(let text): "the stream is damaged: \(text)"
        case .unsupportedStream(let text): "the stream is of a newer kind: \(text)"
        case .refusedStream(let text): "the stream is refused: \(text)"
        case .changing(let what): "\(what) kept changing while they were looked at; try again"
        case .cancelled: "the call was cancelled"
        case .inUse(let path): "another process has the pool \(path) open"
        case .notAPool(let path): "\(path) holds no pool"
        case .unsupported(let text): "the pool cannot be opened by this version: \(text)"
        case .damaged(let text): "the pool is damaged: \(text)"
        case .noSpace: "the pool has no space left"
        case .readOnly(let reason): "the pool is read-only: \(reason)"
        case .closed: "the pool is closed"
        case .io(let operation, let errno): "\(operation) failed: \(String(cString: strerror(errno)))"
        }
    }
}
