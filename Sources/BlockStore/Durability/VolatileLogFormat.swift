internal import BlockIO

/// The head of each of the two files of a volatile log; 64 bytes. A log with another pool, another boot of the
/// machine or another session than the superblock names is never replayed.
struct VolatileLogHeader: Equatable {
    static let lengthBytes = 64
    static let magic: UInt64 = 0x3130_474f_4c56_5053  // "SPVLOG01" as little-endian bytes
    static let version: UInt32 = 1

    var poolID: ObjectID
    var bootID: ObjectID
    /// Drawn anew each time the pool is opened for writing, and durable in the superblock before the first entry.
    var session: UInt64

    func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(Self.magic)
        writer.put(Self.version)
        writer.put(UInt32(0))
        writer.put(poolID)
        writer.put(bootID)
        writer.put(session)
        writer.put(UInt32(0))
        writer.put(writer.bytes.withUnsafeBytes { CRC32C.checksum($0) })
        return writer.bytes
    }

    /// Nil when the bytes do not begin with a whole header of this version.
    static func decode(_ bytes: ArraySlice<UInt8>) -> VolatileLogHeader? {
        guard bytes.count >= lengthBytes else { return nil }
        let head = Array(bytes.prefix(lengthBytes))
        do {
            var reader = ByteReader(head[...])
            guard try reader.get(UInt64.self) == magic, try reader.get(UInt32.self) == version else { return nil }
            _ = try reader.get(UInt32.self)
            let result = VolatileLogHeader(
                poolID: try reader.getID(), bootID: try reader.getID(), session: try reader.get())
            _ = try reader.get(UInt32.self)
            let expected = head.withUnsafeBytes { CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[..<60])) }
            return try reader.get(UInt32.self) == expected ? result : nil
        } catch {
            return nil
        }
    }
}

/// What one change added to the batch of journal records that is being gathered: 32 bytes, then those records.
struct VolatileLogEntry: Equatable {
    static let headerBytes = 32
    static let magic: UInt32 = 0x5256_5053  // "SPVR"

    /// Sequence that the batch will have in the journal.
    var sequence: UInt64
    /// Counts the entries of a session, those too that could not be written: a gap shows.
    var number: UInt64
    /// Where the records begin among those of the batch, in bytes.
    var offset: UInt32
    var records: [UInt8]

    /// Puts the head of an entry into `target` (32 bytes), for records that lie behind it.
    static func putHeader(
        sequence: UInt64, number: UInt64, offset: UInt32, into target: UnsafeMutableRawBufferPointer
    ) {
        let length = UInt32(target.count - headerBytes)
        target.storeBytes(of: magic.littleEndian, toByteOffset: 0, as: UInt32.self)
        target.storeBytes(of: length.littleEndian, toByteOffset: 4, as: UInt32.self)
        target.storeBytes(of: sequence.littleEndian, toByteOffset: 8, as: UInt64.self)
        target.storeBytes(of: number.littleEndian, toByteOffset: 16, as: UInt64.self)
        target.storeBytes(of: offset.littleEndian, toByteOffset: 24, as: UInt32.self)
        target.storeBytes(of: 0, toByteOffset: 28, as: UInt32.self)
        let crc = CRC32C.checksum(UnsafeRawBufferPointer(target))
        target.storeBytes(of: crc.littleEndian, toByteOffset: 28, as: UInt32.self)
    }

    func encoded() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Self.headerBytes) + records
        bytes.withUnsafeMutableBytes {
            Self.putHeader(sequence: sequence, number: number, offset: offset, into: $0)
        }
        return bytes
    }

    /// The entry at the beginning of `bytes`; nil when there is no whole one.
    static func decode(_ bytes: ArraySlice<UInt8>, acceptsTorn: Bool = false) -> VolatileLogEntry? {
        var reader = ByteReader(bytes)
        do {
            guard try reader.get(UInt32.self) == magic else { return nil }
            let length = Int(try reader.get(UInt32.self))
            guard bytes.count - headerBytes >= length else { return nil }
            let sequence: UInt64 = try reader.get()
            let number: UInt64 = try reader.get()
            let offset: UInt32 = try reader.get()
            let crc: UInt32 = try reader.get()
            var copy = Array(bytes.prefix(headerBytes + length))
            for index in 28..<32 { copy[index] = 0 }
            guard copy.withUnsafeBytes({ CRC32C.checksum($0) }) == crc || acceptsTorn else { return nil }
            return VolatileLogEntry(
                sequence: sequence, number: number, offset: offset, records: Array(copy[headerBytes...]))
        } catch {
            return nil
        }
    }

    /// Whether this entry is the very next after `other`.
    func follows(_ other: VolatileLogEntry) -> Bool {
        guard number == other.number + 1 else { return false }
        return sequence == other.sequence
            ? Int(offset) == Int(other.offset) + other.records.count : sequence == other.sequence + 1 && offset == 0
    }

    /// The entries of one file behind its header, as far as each follows the one before. What lies behind them is torn,
    /// or left over from an earlier use of the file.
    static func run(_ file: [UInt8], acceptsTorn: Bool = false) -> [VolatileLogEntry] {
        var entries: [VolatileLogEntry] = []
        var at = VolatileLogHeader.lengthBytes
        while at < file.count, let entry = decode(file[at...], acceptsTorn: acceptsTorn) {
            if let last = entries.last, !entry.follows(last) { break }
            entries.append(entry)
            at += headerBytes + entry.records.count
        }
        return entries
    }
}
