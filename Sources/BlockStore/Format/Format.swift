internal import BlockIO

/// Numbers of the on-disk format; docs/format.md explains them.
enum Format {
    static let version: UInt32 = 1
    static let blockBytes = 4096
    static let superblockMagic: UInt64 = 0x3130_4c4f_4f50_5053  // "SPPOOL01" as little-endian bytes
    static let batchMagic: UInt64 = 0x3130_4c4e_524a_5053  // "SPJRNL01"
    static let superblockCopies = 4
    /// Distance between two superblock copies in blocks.
    static let superblockStride: UInt64 = 16
    static let journalBlock: UInt64 = 64
    static let leafEntries: UInt64 = 256
    static let fanOut: UInt64 = 128
    static let maxVolumeBytes: UInt64 = 64 << 40
    static let maxAttributeBytes = 1 << 20
    /// Root level of a volume's map: 128^4 leaves of 1 MiB.
    static let mapRootLevel = 4
    /// Root level of the allocation map and of streams: 128^3 pages.
    static let plainRootLevel = 3
    static let maxRegionBlocks: UInt64 = 32768
    static let maxEpoch: UInt64 = (1 << 40) - 1
    /// In place of a block number: what stood here is not known any more. No pool is so large that it were a real one.
    static let lostBlock: UInt64 = (1 << 40) - 1
    /// Incompatible feature: maps may hold lost marks, and blocks may be set aside.
    static let featureLosses: UInt64 = 1
    static let knownFeatures: UInt64 = featureLosses
}

/// Appends little-endian fields to bytes.
struct ByteWriter {
    var bytes: [UInt8] = []

    mutating func put<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    mutating func put(_ id: ObjectID) {
        put(id.high)
        put(id.low)
    }

    mutating func put(_ text: String) {
        put(UInt32(text.utf8.count))
        bytes.append(contentsOf: text.utf8)
    }

    mutating func put(_ data: [UInt8]) {
        put(UInt32(data.count))
        bytes.append(contentsOf: data)
    }

    mutating func put(_ pointer: NodePointer) {
        put(pointer.block)
        put(pointer.birth)
        put(pointer.digest.low)
        put(pointer.digest.high)
    }

    mutating func pad(to multiple: Int) {
        let rest = bytes.count % multiple
        if rest > 0 { bytes.append(contentsOf: repeatElement(0, count: multiple - rest)) }
    }
}

/// The bytes end too early or hold a value that cannot be.
struct MalformedBytes: Error {}

/// Reads little-endian fields; never reads past the end.
struct ByteReader {
    private let bytes: ArraySlice<UInt8>
    private(set) var position: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    var remaining: Int { bytes.endIndex - position }

    mutating func get<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(MalformedBytes) -> T {
        let count = MemoryLayout<T>.size
        guard remaining >= count else { throw MalformedBytes() }
        var value: T = 0
        for index in (0..<count).reversed() { value = value << 8 | T(truncatingIfNeeded: bytes[position + index]) }
        position += count
        return value
    }

    mutating func getID() throws(MalformedBytes) -> ObjectID {
        let high: UInt64 = try get()
        let low: UInt64 = try get()
        return ObjectID(high: high, low: low)
    }

    mutating func getBytes() throws(MalformedBytes) -> [UInt8] {
        let count = Int(try get(UInt32.self))
        guard remaining >= count else { throw MalformedBytes() }
        defer { position += count }
        return Array(bytes[position..<(position + count)])
    }

    mutating func getString() throws(MalformedBytes) -> String {
        guard let text = String(validating: try getBytes(), as: UTF8.self) else { throw MalformedBytes() }
        return text
    }

    mutating func getPointer() throws(MalformedBytes) -> NodePointer {
        let block: UInt64 = try get()
        let birth: UInt64 = try get()
        let low: UInt64 = try get()
        let high: UInt64 = try get()
        return NodePointer(block: block, birth: birth, digest: PageDigest(low: low, high: high))
    }

    mutating func skip(toMultipleOf multiple: Int) throws(MalformedBytes) {
        let rest = (position - bytes.startIndex) % multiple
        guard rest > 0 else { return }
        guard remaining >= multiple - rest else { throw MalformedBytes() }
        position += multiple - rest
    }
}

/// Where the journal of a superblock or of a batch ends and the next batch begins.
struct JournalPoint: Equatable, Sendable {
    /// Bytes since the pool was made; the place in the ring is this modulo the ring's size.
    var position: UInt64 = 0
    var sequence: UInt64 = 1
    /// CRC of the batch before.
    var chain: UInt32 = 0
}

/// The root of everything; one 4096-byte block with several copies.
struct Superblock: Equatable, Sendable {
    var poolID: ObjectID
    var generation: UInt64 = 0
    /// Bits that a version which does not know them must refuse to open.
    var incompatibleFeatures: UInt64 = 0
    /// Bits that a version which does not know them may only open read-only.
    var readOnlyFeatures: UInt64 = 0
    var digestKey: (UInt64, UInt64)
    var totalBlocks: UInt64
    var regionBlocks: UInt64
    var journalBytes: UInt64
    var journalStart = JournalPoint()
    var epoch: UInt64 = 1
    var nextDataset: UInt64 = 1
    var nextVolume: UInt32 = 1
    var allocationRoot = NodePointer.null
    var catalogRoot = NodePointer.null
    var catalogBytes: UInt64 = 0
    var createdAt: UInt64 = 0
    /// Of the volatile log that belongs to the state from here on; 0 for none.
    var session: UInt64 = 0

    /// Levels of pages above the bitmap pages.
    var allocationLevel: Int { MetadataWriter.streamLevel(pages: Int(totalBlocks / regionBlocks)) }

    /// Whether this is a pool's superblock of the generation before `other`.
    func isBefore(_ other: Superblock) -> Bool { poolID == other.poolID && generation + 1 == other.generation }

    static func == (left: Superblock, right: Superblock) -> Bool { left.encoded() == right.encoded() }

    func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(Format.superblockMagic)
        writer.put(Format.version)
        writer.put(UInt32(Format.blockBytes))
        writer.put(poolID)
        writer.put(generation)
        writer.put(incompatibleFeatures)
        writer.put(readOnlyFeatures)
        writer.put(digestKey.0)
        writer.put(digestKey.1)
        writer.put(totalBlocks)
        writer.put(regionBlocks)
        writer.put(journalBytes)
        writer.put(journalStart.position)
        writer.put(journalStart.sequence)
        writer.put(journalStart.chain)
        writer.put(nextVolume)
        writer.put(epoch)
        writer.put(nextDataset)
        writer.put(allocationRoot)
        writer.put(catalogRoot)
        writer.put(catalogBytes)
        writer.put(createdAt)
        writer.put(session)
        writer.pad(to: Format.blockBytes)
        writer.bytes.removeLast(4)
        writer.put(writer.bytes.withUnsafeBytes { CRC32C.checksum($0) })
        return writer.bytes
    }

    /// Nil when the bytes are no valid superblock of any version.
    static func decode(_ bytes: [UInt8]) throws(PoolError) -> Superblock? {
        guard bytes.count == Format.blockBytes else { return nil }
        do {
            var reader = ByteReader(bytes[...])
            guard try reader.get(UInt64.self) == Format.superblockMagic else { return nil }
            var tail = ByteReader(bytes[(Format.blockBytes - 4)...])
            let expected = bytes.withUnsafeBytes {
                CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[..<(Format.blockBytes - 4)]))
            }
            guard try tail.get(UInt32.self) == expected else { return nil }
            let version: UInt32 = try reader.get()
            guard version == Format.version, try reader.get(UInt32.self) == UInt32(Format.blockBytes) else {
                throw PoolError.unsupported("format version \(version); this program knows \(Format.version)")
            }
            return try decodeFields(&reader)
        } catch let error as PoolError {
            throw error
        } catch {
            return nil
        }
    }

    private static func decodeFields(_ reader: inout ByteReader) throws -> Superblock {
        let poolID = try reader.getID()
        let generation: UInt64 = try reader.get()
        let incompatible: UInt64 = try reader.get()
        let readOnly: UInt64 = try reader.get()
        guard incompatible & ~Format.knownFeatures == 0 else {
            throw PoolError.unsupported("unknown features \(String(incompatible & ~Format.knownFeatures, radix: 16))")
        }
        let key = (try reader.get(UInt64.self), try reader.get(UInt64.self))
        var result = Superblock(
            poolID: poolID, digestKey: key, totalBlocks: try reader.get(), regionBlocks: try reader.get(),
            journalBytes: try reader.get())
        result.generation = generation
        result.incompatibleFeatures = incompatible
        result.readOnlyFeatures = readOnly
        result.journalStart.position = try reader.get()
        result.journalStart.sequence = try reader.get()
        result.journalStart.chain = try reader.get()
        result.nextVolume = try reader.get()
        result.epoch = try reader.get()
        result.nextDataset = try reader.get()
        result.allocationRoot = try reader.getPointer()
        result.catalogRoot = try reader.getPointer()
        result.catalogBytes = try reader.get()
        result.createdAt = try reader.get()
        result.session = try reader.get()
        return result
    }
}

extension [UInt8] {
    /// `withUnsafeBytes` with a typed error.
    func withRawBytes<R, E: Error>(_ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        try withUnsafeBufferPointer { buffer throws(E) in try body(UnsafeRawBufferPointer(buffer)) }
    }

    /// `withUnsafeMutableBytes` with a typed error.
    mutating func withMutableRawBytes<E: Error>(_ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void) throws(E) {
        try withUnsafeMutableBufferPointer { buffer throws(E) in try body(UnsafeMutableRawBufferPointer(buffer)) }
    }
}
