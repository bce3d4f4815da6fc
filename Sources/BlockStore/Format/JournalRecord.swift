internal import BlockIO

/// A volume as it is created, in a journal record.
struct VolumeSeed: Equatable {
    var number: UInt32
    var dataset: UInt64
    var id: VolumeID
    var name: String
    var naa: NAA
    var sizeBytes: UInt64
    var createdAt: UInt64
}

/// A snapshot as it is taken, in a journal record.
struct SnapshotSeed: Equatable {
    struct Member: Equatable {
        /// The volume whose head is cut.
        var volume: UInt32
        /// The number of the dataset that keeps what the head was.
        var dataset: UInt64
    }

    var id: SnapshotID
    var name: String
    var createdAt: UInt64
    var kind: SnapshotKind
    var members: [Member]
    var attributes: [UInt8]
}

/// One change, as the journal holds it. Replaying the records of a prefix of the journal over the checkpoint gives the
/// state at the end of that prefix.
enum JournalRecord: Equatable {
    /// `crcs.count` logical blocks from `block` are at `physical` and the blocks after it.
    case map(volume: UInt32, block: UInt64, physical: UInt64, crcs: [UInt32])
    case unmap(volume: UInt32, block: UInt64, count: UInt64)
    case createVolume(VolumeSeed)
    case resizeVolume(volume: UInt32, sizeBytes: UInt64)
    case deleteVolume(volume: UInt32)
    case snapshot(SnapshotSeed)
    case deleteSnapshot(SnapshotID)
    case setAttributes(SnapshotID, [UInt8])
    case clone(VolumeSeed, origin: CloneOrigin)
    /// The snapshot keeps the heads; they then become what the members of `target` are.
    case revert(SnapshotSeed, target: SnapshotID)
    case growPool(totalBlocks: UInt64)
    /// The snapshots that a clone stands on become its own.
    case promote(volume: UInt32)
    /// Hidden volumes for a snapshot that is being received.
    case beginReceive(ReceiveSeed)
    /// Everything before the position has been received.
    case receivePosition(SnapshotID, StreamPosition)
    /// The hidden volumes become the snapshot, and what stands on it.
    case finishReceive(SnapshotSeed)
    case abortReceive(SnapshotID)

    enum Kind: UInt8 {
        case map = 1
        case unmap = 2
        case createVolume = 3
        case resizeVolume = 4
        case deleteVolume = 5
        case snapshot = 6
        case deleteSnapshot = 7
        case setAttributes = 8
        case clone = 9
        case revert = 10
        case growPool = 20
        case promote = 11
        case beginReceive = 12
        case receivePosition = 13
        case finishReceive = 14
        case abortReceive = 15
    }

    /// Appends the record: kind, three bytes of zeros, length of the body, body, zeros up to a multiple of 8.
    func encode(into writer: inout ByteWriter) {
        var body = ByteWriter()
        let kind = encodeBody(into: &body)
        Self.putHeader(kind, bodyBytes: body.bytes.count, into: &writer)
        writer.bytes.append(contentsOf: body.bytes)
        writer.pad(to: 8)
    }

    static func putHeader(_ kind: Kind, bodyBytes: Int, into writer: inout ByteWriter) {
        writer.put(UInt32(kind.rawValue))
        writer.put(UInt32(bodyBytes))
    }

    /// A map record in few pieces, since every write has one. Little-endian machines only, as is the checksum's code.
    static func putMap(
        volume: UInt32, block: UInt64, physical: UInt64, crcs: UnsafeBufferPointer<UInt32>,
        into writer: inout ByteWriter
    ) {
        let bodyBytes = UInt32(24 + 4 * crcs.count)
        let head = (UInt32(Kind.map.rawValue), bodyBytes, volume, UInt32(crcs.count), block, physical)
        withUnsafeBytes(of: head) { writer.bytes.append(contentsOf: $0) }
        writer.bytes.append(contentsOf: UnsafeRawBufferPointer(crcs))
        if crcs.count % 2 == 1 { writer.put(UInt32(0)) }
    }

    private func encodeBody(into body: inout ByteWriter) -> Kind {
        switch self {
        case .map(let volume, let block, let physical, let crcs):
            body.put(volume)
            body.put(UInt32(crcs.count))
            body.put(block)
            body.put(physical)
            for crc in crcs { body.put(crc) }
            return .map
        case .unmap(let volume, let block, let count):
            body.put(volume)
            body.put(UInt32(0))
            body.put(block)
            body.put(count)
            return .unmap
        case .createVolume(let seed):
            Self.put(seed, &body)
            return .createVolume
        case .resizeVolume(let volume, let sizeBytes):
            body.put(volume)
            body.put(UInt32(0))
            body.put(sizeBytes)
            return .resizeVolume
        case .deleteVolume(let volume):
            body.put(volume)
            return .deleteVolume
        case .snapshot(let seed):
            Self.put(seed, &body)
            return .snapshot
        case .deleteSnapshot(let id):
            body.put(id.value)
            return .deleteSnapshot
        case .setAttributes(let id, let attributes):
            body.put(id.value)
            body.put(attributes)
            return .setAttributes
        case .clone(let seed, let origin):
            Self.put(seed, &body)
            body.put(origin.snapshot.value)
            body.put(origin.volume.value)
            return .clone
        case .revert(let seed, let target):
            Self.put(seed, &body)
            body.put(target.value)
            return .revert
        case .growPool(let totalBlocks):
            body.put(totalBlocks)
            return .growPool
        case .promote(let volume):
            body.put(volume)
            return .promote
        case .beginReceive(let seed):
            seed.encode(into: &body)
            return .beginReceive
        case .receivePosition(let id, let position):
            body.put(id.value)
            body.put(position.member)
            body.put(UInt32(0))
            body.put(position.block)
            return .receivePosition
        case .finishReceive(let seed):
            Self.put(seed, &body)
            return .finishReceive
        case .abortReceive(let id):
            body.put(id.value)
            return .abortReceive
        }
    }

    static func put(_ seed: VolumeSeed, _ body: inout ByteWriter) {
        body.put(seed.number)
        body.put(seed.dataset)
        body.put(seed.id.value)
        body.put(seed.naa.value)
        body.put(seed.sizeBytes)
        body.put(seed.createdAt)
        body.put(seed.name)
    }

    private static func put(_ seed: SnapshotSeed, _ body: inout ByteWriter) {
        body.put(seed.id.value)
        body.put(seed.createdAt)
        body.put(seed.kind.rawValue)
        body.put(seed.name)
        body.put(UInt32(seed.members.count))
        for member in seed.members {
            body.put(member.volume)
            body.put(member.dataset)
        }
        body.put(seed.attributes)
    }

    /// Decodes the next record and moves past it.
    static func decode(_ reader: inout ByteReader) throws(MalformedBytes) -> JournalRecord {
        guard let kind = Kind(rawValue: UInt8(truncatingIfNeeded: try reader.get(UInt32.self))) else {
            throw MalformedBytes()
        }
        let length = Int(try reader.get(UInt32.self))
        let end = reader.remaining - length
        guard end >= 0 else { throw MalformedBytes() }
        let record = try decodeBody(kind, &reader)
        guard reader.remaining == end else { throw MalformedBytes() }
        try reader.skip(toMultipleOf: 8)
        return record
    }

    private static func decodeBody(_ kind: Kind, _ reader: inout ByteReader) throws(MalformedBytes) -> JournalRecord {
        switch kind {
        case .map:
            let volume: UInt32 = try reader.get()
            let count = Int(try reader.get(UInt32.self))
            let block: UInt64 = try reader.get()
            let physical: UInt64 = try reader.get()
            guard reader.remaining >= count * 4 else { throw MalformedBytes() }
            var crcs: [UInt32] = []
            crcs.reserveCapacity(count)
            for _ in 0..<count { crcs.append(try reader.get()) }
            return .map(volume: volume, block: block, physical: physical, crcs: crcs)
        case .unmap:
            let volume: UInt32 = try reader.get()
            _ = try reader.get(UInt32.self)
            return .unmap(volume: volume, block: try reader.get(), count: try reader.get())
        case .createVolume:
            return .createVolume(try volumeSeed(&reader))
        case .resizeVolume:
            let volume: UInt32 = try reader.get()
            _ = try reader.get(UInt32.self)
            return .resizeVolume(volume: volume, sizeBytes: try reader.get())
        case .deleteVolume:
            return .deleteVolume(volume: try reader.get())
        case .snapshot:
            return .snapshot(try snapshotSeed(&reader))
        case .deleteSnapshot:
            return .deleteSnapshot(SnapshotID(try reader.getID()))
        case .setAttributes:
            let id = SnapshotID(try reader.getID())
            return .setAttributes(id, try reader.getBytes())
        case .clone:
            let seed = try volumeSeed(&reader)
            let snapshot = SnapshotID(try reader.getID())
            return .clone(seed, origin: CloneOrigin(snapshot: snapshot, volume: VolumeID(try reader.getID())))
        case .revert:
            let seed = try snapshotSeed(&reader)
            return .revert(seed, target: SnapshotID(try reader.getID()))
        case .growPool:
            return .growPool(totalBlocks: try reader.get())
        case .promote:
            return .promote(volume: try reader.get())
        case .beginReceive:
            return .beginReceive(try ReceiveSeed(&reader))
        case .receivePosition:
            let id = SnapshotID(try reader.getID())
            let member: UInt32 = try reader.get()
            _ = try reader.get(UInt32.self)
            return .receivePosition(id, StreamPosition(member: member, block: try reader.get()))
        case .finishReceive:
            return .finishReceive(try snapshotSeed(&reader))
        case .abortReceive:
            return .abortReceive(SnapshotID(try reader.getID()))
        }
    }

    static func volumeSeed(_ reader: inout ByteReader) throws(MalformedBytes) -> VolumeSeed {
        let number: UInt32 = try reader.get()
        let dataset: UInt64 = try reader.get()
        let id = VolumeID(try reader.getID())
        let naa = NAA(try reader.getID())
        let sizeBytes: UInt64 = try reader.get()
        let createdAt: UInt64 = try reader.get()
        return VolumeSeed(
            number: number, dataset: dataset, id: id, name: try reader.getString(), naa: naa, sizeBytes: sizeBytes,
            createdAt: createdAt)
    }

    private static func snapshotSeed(_ reader: inout ByteReader) throws(MalformedBytes) -> SnapshotSeed {
        let id = SnapshotID(try reader.getID())
        let createdAt: UInt64 = try reader.get()
        guard let kind = SnapshotKind(rawValue: try reader.get()) else { throw MalformedBytes() }
        let name = try reader.getString()
        let count = try reader.get(UInt32.self)
        var members: [SnapshotSeed.Member] = []
        for _ in 0..<count {
            members.append(SnapshotSeed.Member(volume: try reader.get(), dataset: try reader.get()))
        }
        return SnapshotSeed(
            id: id, name: name, createdAt: createdAt, kind: kind, members: members, attributes: try reader.getBytes())
    }
}

/// The head of a batch of records in the journal; 64 bytes, the records follow, zeros up to a multiple of 4096.
struct BatchHeader: Equatable {
    static let lengthBytes = 64

    /// Low half of the pool's id, so that another pool's journal is not taken for ours.
    var poolTag: UInt64
    var sequence: UInt64
    /// All batches up to this one were durable before this one was written.
    var syncedThrough: UInt64
    /// CRC of the batch before.
    var previous: UInt32
    var payloadBytes: UInt32

    /// The whole batch; the CRC is over all of it except the field itself.
    func encodeBatch(payload: [UInt8]) -> (bytes: [UInt8], crc: UInt32) {
        var writer = ByteWriter()
        writer.bytes.reserveCapacity(payload.count + 4096)
        writer.put(Format.batchMagic)
        writer.put(poolTag)
        writer.put(sequence)
        writer.put(syncedThrough)
        writer.put(previous)
        writer.put(payloadBytes)
        writer.put(UInt64(0))
        writer.put(UInt64(0))
        writer.put(UInt32(0))
        writer.put(UInt32(0))
        writer.bytes.append(contentsOf: payload)
        writer.pad(to: Format.blockBytes)
        let crc = writer.bytes.withUnsafeBytes { CRC32C.checksum($0) }
        withUnsafeBytes(of: crc.littleEndian) { writer.bytes.replaceSubrange(56..<60, with: $0) }
        return (writer.bytes, crc)
    }

    static func batchBytes(payloadBytes: Int) -> Int {
        (lengthBytes + payloadBytes + Format.blockBytes - 1) / Format.blockBytes * Format.blockBytes
    }

    /// Reads the header; the CRC is not checked yet.
    static func decode(_ bytes: [UInt8]) -> (header: BatchHeader, crc: UInt32)? {
        var reader = ByteReader(bytes[...])
        do {
            guard try reader.get(UInt64.self) == Format.batchMagic else { return nil }
            let tag: UInt64 = try reader.get()
            let sequence: UInt64 = try reader.get()
            let synced: UInt64 = try reader.get()
            let previous: UInt32 = try reader.get()
            let payload: UInt32 = try reader.get()
            _ = try reader.get(UInt64.self)
            _ = try reader.get(UInt64.self)
            let crc: UInt32 = try reader.get()
            let header = BatchHeader(
                poolTag: tag, sequence: sequence, syncedThrough: synced, previous: previous, payloadBytes: payload)
            return (header, crc)
        } catch {
            return nil
        }
    }

    /// Whether the CRC of the whole batch is right.
    static func verify(_ batch: [UInt8], crc: UInt32) -> Bool {
        var copy = batch
        for index in 56..<60 { copy[index] = 0 }
        return copy.withUnsafeBytes { CRC32C.checksum($0) } == crc
    }
}
