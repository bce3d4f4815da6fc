/// Notes on tmpfs, beside the pool, what was acknowledged but is not in the journal yet, so that a killed process loses
/// nothing that an initiator was told is written. It vanishes with the machine's run, as the system's cache does, in
/// which the data of those changes lies.
///
/// Two files in turn: while the batch of one is committed, the next one gathers in the other. A file is used again when
/// the batches whose changes it holds are durable.
final class VolatileLog: @unchecked Sendable {
    // SAFETY: every `var` is used with the pool's lock held, or before the pool has other users.
    private let storage: any VolatileLogStorage
    private let limitBytes: Int
    private var file = 0
    private var end = VolatileLogHeader.lengthBytes
    private var number: UInt64 = 0
    private var buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 16)
    /// The file lacks a change: what follows in it would not be replayed.
    private(set) var isBroken = false

    /// Begins an empty log in both files; nil when the storage refuses.
    init?(storage: any VolatileLogStorage, header: VolatileLogHeader, limitBytes: Int) {
        self.storage = storage
        self.limitBytes = limitBytes
        let bytes = header.encoded()
        // Both first: what the one before left may be all the room there is.
        for file in 0..<2 where storage.clear(file: file) != 0 { return nil }
        for file in 0..<2 {
            guard bytes.withUnsafeBytes({ storage.write($0, at: 0, toFile: file) }) == 0 else { return nil }
        }
    }

    deinit { buffer.deallocate() }

    /// Notes records that were added to the batch `sequence` at `offset`. False when that failed.
    func append(_ records: ArraySlice<UInt8>, sequence: UInt64, offset: Int) -> Bool {
        number += 1
        let count = VolatileLogEntry.headerBytes + records.count
        guard !isBroken, end + count <= limitBytes else {
            isBroken = true
            return false
        }
        if buffer.count < count {
            buffer.deallocate()
            buffer = .allocate(byteCount: count, alignment: 16)
        }
        let entry = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
        records.withUnsafeBytes {
            UnsafeMutableRawBufferPointer(rebasing: entry[VolatileLogEntry.headerBytes...]).copyMemory(from: $0)
        }
        VolatileLogEntry.putHeader(sequence: sequence, number: number, offset: UInt32(offset), into: entry)
        guard storage.write(UnsafeRawBufferPointer(entry), at: end, toFile: file) == 0 else {
            isBroken = true
            return false
        }
        end += count
        return true
    }

    /// All that was noted is being committed, and what the other file holds is durable: goes on there.
    func turn(staysInFile: Bool = false) {
        if !staysInFile { file = 1 - file }
        end = VolatileLogHeader.lengthBytes
        isBroken = false
    }

    func remove() { storage.remove() }
}

/// Whether acknowledged changes that were not flushed survive the end of the process.
public enum VolatileLogState: Sendable, Equatable {
    /// They do.
    case active
    /// They do: the log lacks room, so each change is made durable before it is acknowledged.
    case full
    /// They do not, for this reason.
    case off(reason: String)
}
