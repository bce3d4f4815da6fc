internal import BlockIO

/// Numbers of the format that snapshots are sent in; docs/send-stream.md explains them.
enum StreamFormat {
    static let version: UInt32 = 1
    static let recordMagic: UInt32 = 0x5253_5053  // "SPSR" as little-endian bytes
    static let beginMagic: UInt64 = 0x3130_444e_4553_5053  // "SPSEND01"
    static let headerBytes = 32
    /// Blocks in one record of data: 1 MiB.
    static let maxDataBlocks = 256
    static let maxMembers = 1024
    static let maxBeginBytes = 512 << 10
    static let dataHeaderBytes = 16
    static let noBase: UInt32 = .max

    static func maxPayload(_ kind: StreamRecord.Kind) -> Int {
        switch kind {
        case .begin: maxBeginBytes
        case .data: dataHeaderBytes + maxDataBlocks * Format.blockBytes
        case .hole: 24
        case .memberEnd: 32
        case .attributes: Format.maxAttributeBytes
        case .end: 24
        }
    }
}

/// Where in a snapshot a stream begins, or how far a receiver got: everything before it is there.
struct StreamPosition: Equatable, Comparable, Sendable {
    var member: UInt32 = 0
    var block: UInt64 = 0

    static func < (left: StreamPosition, right: StreamPosition) -> Bool {
        (left.member, left.block) < (right.member, right.block)
    }
}

/// The first record of a stream: what is sent, and from where on.
struct StreamBegin: Equatable {
    struct Member: Equatable {
        var volume: VolumeID
        var name: String
        var sizeBytes: UInt64
        /// Index of the member of the older snapshot that this one is sent as a difference to.
        var base: UInt32?
        /// The base belongs to another volume: this one is a clone of it, and becomes one where it is received.
        var isClone = false
    }

    var pool: ObjectID
    var snapshot: SnapshotID
    /// The older snapshot that the receiver must have; nil for a full stream.
    var from: SnapshotID?
    var createdAt: UInt64
    var kind: SnapshotKind
    var name: String
    var start = StreamPosition()
    var members: [Member]
}

/// One record of a stream.
enum StreamRecord: Equatable {
    case begin(StreamBegin)
    /// Whole blocks of a member; the bytes are a multiple of 4096.
    case data(member: UInt32, block: UInt64, bytes: [UInt8])
    /// Blocks that have no data (any more).
    case hole(member: UInt32, block: UInt64, count: UInt64)
    case memberEnd(member: UInt32, digest: ContentDigest)
    case attributes([UInt8])
    case end(dataBlocks: UInt64, holeBlocks: UInt64)

    enum Kind: UInt8 {
        case begin = 1
        case data = 2
        case hole = 3
        case memberEnd = 4
        case attributes = 5
        case end = 6
    }

    var kind: Kind {
        switch self {
        case .begin: .begin
        case .data: .data
        case .hole: .hole
        case .memberEnd: .memberEnd
        case .attributes: .attributes
        case .end: .end
        }
    }

    // MARK: Encoding

    /// Appends the record as number `sequence` of its stream.
    func encode(sequence: UInt64, into bytes: inout [UInt8]) {
        let start = bytes.count
        bytes.append(contentsOf: repeatElement(0, count: StreamFormat.headerBytes))
        var writer = ByteWriter()
        swap(&writer.bytes, &bytes)
        encodePayload(into: &writer)
        swap(&writer.bytes, &bytes)
        let payload = start + StreamFormat.headerBytes
        Self.fillHeader(of: kind, sequence: sequence, payload: payload, in: &bytes)
    }

    /// Writes the header before the payload that reaches from `payload` to the end.
    static func fillHeader(of kind: Kind, sequence: UInt64, payload: Int, in bytes: inout [UInt8]) {
        let crc = bytes.withUnsafeBytes { CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[payload...])) }
        var header = ByteWriter()
        header.put(StreamFormat.recordMagic)
        header.put(UInt32(kind.rawValue))
        header.put(sequence)
        header.put(UInt32(bytes.count - payload))
        header.put(crc)
        header.put(UInt32(0))
        header.put(header.bytes.withUnsafeBytes { CRC32C.checksum($0) })
        bytes.replaceSubrange((payload - StreamFormat.headerBytes)..<payload, with: header.bytes)
    }

    private func encodePayload(into writer: inout ByteWriter) {
        switch self {
        case .begin(let begin): begin.encode(into: &writer)
        case .data(let member, let block, let bytes):
            writer.put(member)
            writer.put(UInt32(bytes.count / Format.blockBytes))
            writer.put(block)
            writer.bytes.append(contentsOf: bytes)
        case .hole(let member, let block, let count):
            writer.put(member)
            writer.put(UInt32(0))
            writer.put(block)
            writer.put(count)
        case .memberEnd(let member, let digest):
            writer.put(member)
            writer.put(UInt32(0))
            writer.put(digest.mappedBlocks)
            writer.put(digest.low)
            writer.put(digest.high)
        case .attributes(let bytes): writer.bytes.append(contentsOf: bytes)
        case .end(let dataBlocks, let holeBlocks):
            writer.put(dataBlocks)
            writer.put(holeBlocks)
            writer.put(UInt64(0))
        }
    }

    // MARK: Decoding

    static func decode(_ kind: Kind, _ payload: ArraySlice<UInt8>) throws(PoolError) -> StreamRecord {
        do {
            var reader = ByteReader(payload)
            let record = try decodeFields(kind, payload, &reader)
            return record
        } catch let error as PoolError {
            throw error
        } catch {
            throw .badStream("a record of kind \(kind) has no valid content")
        }
    }

    private static func decodeFields(
        _ kind: Kind, _ payload: ArraySlice<UInt8>, _ reader: inout ByteReader
    ) throws -> StreamRecord {
        let record: StreamRecord
        switch kind {
        case .begin: record = .begin(try StreamBegin(&reader))
        case .data:
            let member: UInt32 = try reader.get()
            let count = Int(try reader.get(UInt32.self))
            let block: UInt64 = try reader.get()
            guard (1...StreamFormat.maxDataBlocks).contains(count), reader.remaining == count * Format.blockBytes else {
                throw MalformedBytes()
            }
            return .data(member: member, block: block, bytes: Array(payload[reader.position...]))
        case .hole:
            let member: UInt32 = try reader.get()
            _ = try reader.get(UInt32.self)
            record = .hole(member: member, block: try reader.get(), count: try reader.get())
        case .memberEnd:
            let member: UInt32 = try reader.get()
            _ = try reader.get(UInt32.self)
            record = .memberEnd(
                member: member,
                digest: ContentDigest(
                    mappedBlocks: try reader.get(), low: try reader.get(), high: try reader.get()))
        case .attributes: return .attributes(Array(payload))
        case .end:
            record = .end(dataBlocks: try reader.get(), holeBlocks: try reader.get())
            _ = try reader.get(UInt64.self)
        }
        guard reader.remaining == 0 else { throw MalformedBytes() }
        return record
    }
}

extension StreamBegin {
    private static let incremental: UInt32 = 1

    func encode(into writer: inout ByteWriter) {
        writer.put(StreamFormat.beginMagic)
        writer.put(StreamFormat.version)
        writer.put(from == nil ? UInt32(0) : Self.incremental)
        writer.put(pool)
        writer.put(snapshot.value)
        writer.put(from?.value ?? ObjectID(high: 0, low: 0))
        writer.put(createdAt)
        writer.put(UInt64(kind.rawValue))
        writer.put(start.member)
        writer.put(UInt32(0))
        writer.put(start.block)
        writer.put(name)
        writer.put(UInt32(members.count))
        for member in members {
            writer.put(member.volume.value)
            writer.put(member.sizeBytes)
            writer.put(member.base ?? StreamFormat.noBase)
            writer.put(UInt32(member.isClone ? 1 : 0))
            writer.put(member.name)
        }
    }

    /// - Throws: ``PoolError`` for a version or flag that this one does not know, ``MalformedBytes`` for anything else.
    init(_ reader: inout ByteReader) throws {
        guard try reader.get(UInt64.self) == StreamFormat.beginMagic else {
            throw PoolError.badStream("it is no stream of a snapshot")
        }
        let version: UInt32 = try reader.get()
        guard version == StreamFormat.version else {
            throw PoolError.unsupportedStream("version \(version), and this program knows \(StreamFormat.version)")
        }
        let flags: UInt32 = try reader.get()
        guard flags & ~Self.incremental == 0 else {
            throw PoolError.unsupportedStream("unknown features \(String(flags, radix: 16))")
        }
        pool = try reader.getID()
        snapshot = SnapshotID(try reader.getID())
        let from = SnapshotID(try reader.getID())
        self.from = flags & Self.incremental == 0 ? nil : from
        createdAt = try reader.get()
        guard let kind = SnapshotKind(rawValue: UInt8(truncatingIfNeeded: try reader.get(UInt64.self))) else {
            throw MalformedBytes()
        }
        self.kind = kind
        start.member = try reader.get()
        _ = try reader.get(UInt32.self)
        start.block = try reader.get()
        name = try reader.getString()
        let count = Int(try reader.get(UInt32.self))
        guard (1...StreamFormat.maxMembers).contains(count) else { throw MalformedBytes() }
        members = []
        for _ in 0..<count {
            let volume = VolumeID(try reader.getID())
            let sizeBytes: UInt64 = try reader.get()
            let base: UInt32 = try reader.get()
            let isClone: UInt32 = try reader.get()
            guard base == StreamFormat.noBase ? isClone == 0 : self.from != nil && isClone <= 1 else {
                throw MalformedBytes()
            }
            members.append(
                Member(
                    volume: volume, name: try reader.getString(), sizeBytes: sizeBytes,
                    base: base == StreamFormat.noBase ? nil : base, isClone: isClone == 1))
        }
        // Each volume receives one increment.
        let increments = members.filter { !$0.isClone }.compactMap(\.base)
        guard start.member <= UInt32(count), Set(increments).count == increments.count else { throw MalformedBytes() }
    }
}

/// Cuts a stream into records. It takes bytes in pieces of any size and keeps no more than one record; the length and
/// the checksum of a record's header are verified before its payload is waited for.
public struct StreamParser {
    private var buffer: [UInt8] = []
    private var consumed = 0
    private var sequence: UInt64 = 0
    /// Bytes of whole records that were taken.
    private(set) var bytesParsed: UInt64 = 0

    public init() {}

    var isBetweenRecords: Bool { consumed == buffer.count }

    public mutating func feed(_ bytes: UnsafeRawBufferPointer) {
        if consumed > 0 {
            buffer.removeSubrange(..<consumed)
            consumed = 0
        }
        buffer.append(contentsOf: bytes)
    }

    /// The next record, or nil when more bytes are needed.
    mutating func next() throws(PoolError) -> StreamRecord? {
        guard buffer.count - consumed >= StreamFormat.headerBytes else { return nil }
        let (kind, length, crc) = try header(buffer[consumed..<(consumed + StreamFormat.headerBytes)])
        let start = consumed + StreamFormat.headerBytes
        guard buffer.count - start >= length else { return nil }
        let payload = buffer[start..<(start + length)]
        let actual = payload.withUnsafeBytes { CRC32C.checksum($0) }
        guard actual == crc else { throw .badStream("record \(sequence) is not what was sent: its checksum is wrong") }
        let record = try StreamRecord.decode(kind, payload)
        consumed = start + length
        bytesParsed += UInt64(StreamFormat.headerBytes + length)
        sequence += 1
        return record
    }

    /// Parses everything in `bytes` and says whether it was without a fault: for fuzzing.
    public mutating func accepts(_ bytes: UnsafeRawBufferPointer) -> Bool {
        feed(bytes)
        do throws(PoolError) {
            while try next() != nil {}
            return true
        } catch {
            return false
        }
    }

    /// The bytes as records of one stream with magic, numbers and checksums made right, as far as their lengths
    /// allow: for
    /// fuzzing, which would not get past them otherwise.
    public static func withChecksumsMended(_ bytes: UnsafeRawBufferPointer) -> [UInt8] {
        var result: [UInt8] = []
        var at = 0
        var sequence: UInt64 = 0
        while bytes.count - at >= StreamFormat.headerBytes {
            let kind = StreamRecord.Kind(rawValue: bytes[at + 4] % 7) ?? .begin
            let wanted = Int(bytes[at + 16]) | Int(bytes[at + 17]) << 8
            let end = min(bytes.count, at + StreamFormat.headerBytes + wanted)
            var record = Array(bytes[at..<end])
            StreamRecord.fillHeader(of: kind, sequence: sequence, payload: StreamFormat.headerBytes, in: &record)
            result += record
            at = end
            sequence += 1
        }
        return result
    }

    private func header(_ bytes: ArraySlice<UInt8>) throws(PoolError) -> (StreamRecord.Kind, Int, UInt32) {
        do {
            var reader = ByteReader(bytes)
            let magic: UInt32 = try reader.get()
            let kind: UInt32 = try reader.get()
            let number: UInt64 = try reader.get()
            let length: UInt32 = try reader.get()
            let crc: UInt32 = try reader.get()
            _ = try reader.get(UInt32.self)
            let own: UInt32 = try reader.get()
            guard magic == StreamFormat.recordMagic else {
                throw PoolError.badStream(
                    sequence == 0 ? "it is no stream of a snapshot" : "there is no record after record \(sequence - 1)")
            }
            let expected = bytes.withUnsafeBytes {
                CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[..<(StreamFormat.headerBytes - 4)]))
            }
            guard own == expected else {
                throw PoolError.badStream("the header of record \(sequence) is not what was sent")
            }
            guard number == sequence else {
                throw PoolError.badStream("record \(number) comes where record \(sequence) should")
            }
            guard let known = StreamRecord.Kind(rawValue: UInt8(truncatingIfNeeded: kind)), kind < 256 else {
                throw PoolError.unsupportedStream("a record of kind \(kind)")
            }
            guard length <= StreamFormat.maxPayload(known) else {
                throw PoolError.badStream("record \(sequence) claims \(length) bytes, more than its kind may have")
            }
            return (known, Int(length), crc)
        } catch let error as PoolError {
            throw error
        } catch {
            throw .badStream("the header of record \(sequence) cannot be read")
        }
    }
}
