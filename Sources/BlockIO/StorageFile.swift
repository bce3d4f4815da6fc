/// What a pool stands on: a file or block device of bytes with an explicit sync. Calls on different ranges may run on
/// several threads at once. A write is durable only after a `sync()` that began after it returned.
public protocol StorageFile: AnyObject, Sendable {
    /// The size in bytes at this moment.
    var sizeBytes: UInt64 { get }

    /// Whether the file grows when something is written beyond its end (a regular file does).
    var canGrow: Bool { get }

    /// Bytes that can still be allocated in what the file lies on; nil when that has no meaning.
    var availableBytes: UInt64? { get }

    /// Fills `buffer` from `offset`. What lies beyond the end or in a hole reads as zeros.
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError)

    /// Fills several buffers from places that may lie apart; side by side where the backend can.
    func read(_ pieces: [StorageRead]) throws(StorageError)

    /// The same past every cache of the operating system, where that can be had: what is on the medium.
    func readUncached(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError)

    /// How calls reach the disk, in a word for people.
    var backend: String { get }

    /// Writes all of `buffer` at `offset`; a file that can grow does so.
    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(StorageError)

    /// Writes `buffer` at `offset`. Where the range of `lengthBytes` from `offset` on is a hole, all of it is backed
    /// with storage at once: zeros go behind the buffer. The range is at least as long as the buffer, and nobody else
    /// writes there meanwhile.
    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer, backing lengthBytes: UInt64)
        throws(StorageError)

    /// Makes all writes that returned before this call durable.
    func sync() throws(StorageError)

    /// Lets the system begin to write out what was written to the range, so that the next `sync()` has less to wait
    /// for. It promises nothing and fails never: what goes wrong, the next `sync()` says.
    func startWriteback(at offset: UInt64, lengthBytes: UInt64)

    /// Lets later reads come from the medium, but for what waits to be written: after a failed sync the system may show
    /// what never got there, and take it for written.
    func dropCache()

    /// Gives the range back to what the file lies on. The range reads as zeros or old data until it is written again.
    func punchHole(at offset: UInt64, lengthBytes: UInt64) throws(StorageError)

    /// Makes sure that later writes to the range do not fail for lack of space.
    func allocate(at offset: UInt64, lengthBytes: UInt64) throws(StorageError)

    /// Closes the file and gives up its lock. No call may follow.
    func close()
}

extension StorageFile {
    public func read(_ pieces: [StorageRead]) throws(StorageError) {
        for piece in pieces { try read(at: piece.offset, into: piece.buffer) }
    }

    public func readUncached(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError) {
        try read(at: offset, into: buffer)
    }

    public func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, backing lengthBytes: UInt64
    ) throws(StorageError) { try write(at: offset, from: buffer) }

    public func startWriteback(at offset: UInt64, lengthBytes: UInt64) {}

    public func dropCache() {}

    public var backend: String { "memory" }
}

/// The errno with which a storage file refused a call.
public struct StorageError: Error, Equatable, Sendable {
    public var errno: Int32

    public init(errno: Int32) { self.errno = errno }
}
