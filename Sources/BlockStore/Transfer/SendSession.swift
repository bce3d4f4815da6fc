internal import BlockIO

/// Where a broken transfer goes on: what it was of, and how far the receiver got. Printed as text without blanks.
public struct ResumeToken: Sendable, Equatable, CustomStringConvertible {
    public let snapshot: SnapshotID
    public let from: SnapshotID?
    let position: StreamPosition

    init(snapshot: SnapshotID, from: SnapshotID?, position: StreamPosition) {
        self.snapshot = snapshot
        self.from = from
        self.position = position
    }

    private static let prefix = "sp1-"

    private var bytes: [UInt8] {
        var writer = ByteWriter()
        writer.put(snapshot.value)
        writer.put(from?.value ?? ObjectID(high: 0, low: 0))
        writer.put(position.member)
        writer.put(position.block)
        writer.put(UInt8(from == nil ? 0 : 1))
        writer.put(writer.bytes.withUnsafeBytes { CRC32C.checksum($0) })
        return writer.bytes
    }

    public var description: String {
        Self.prefix
            + bytes.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
    }

    /// Nil for text that is no token, or one that was mistyped.
    public init?(_ text: String) {
        let digits = Array(text.utf8.dropFirst(Self.prefix.utf8.count))
        guard text.hasPrefix(Self.prefix), digits.count % 2 == 0, digits.count <= 256 else { return nil }
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let byte = UInt8(String(decoding: digits[index...(index + 1)], as: UTF8.self), radix: 16) else {
                return nil
            }
            bytes.append(byte)
        }
        guard let token = try? Self.decode(bytes), token.bytes == bytes else { return nil }
        self = token
    }

    private static func decode(_ bytes: [UInt8]) throws(MalformedBytes) -> ResumeToken {
        var reader = ByteReader(bytes[...])
        let snapshot = SnapshotID(try reader.getID())
        let from = SnapshotID(try reader.getID())
        let position = StreamPosition(member: try reader.get(), block: try reader.get())
        let hasFrom: UInt8 = try reader.get()
        return ResumeToken(snapshot: snapshot, from: hasFrom == 1 ? from : nil, position: position)
    }
}

extension Pool {
    /// Begins to send a snapshot as a stream: whole, or as what changed since an older one that the receiver has.
    /// docs/send-stream.md describes the stream.
    ///
    /// - Parameters:
    ///   - from: A snapshot with a common history, older than `snapshot`.
    ///   - resume: What the receiver of a broken transfer of the same two snapshots says.
    public func send(
        _ snapshot: SnapshotID, from: SnapshotID? = nil, resume: ResumeToken? = nil
    ) throws(PoolError) -> SendSession {
        if let resume {
            guard resume.snapshot == snapshot, resume.from == from else {
                throw .invalidArgument("the token to resume with is of another transfer")
            }
        }
        return try core.send(snapshot, from: from, start: resume?.position ?? StreamPosition())
    }
}

/// A stream that is being made, a bounded piece at a time. Nothing is held between two pieces but the place. Used by
/// one thread at a time.
public final class SendSession: @unchecked Sendable {
    // SAFETY: the variables belong to whoever reads; the pool's objects are guarded by its lock.
    struct Member {
        var volume: VolumeID
        var dataset: Dataset
        var base: Dataset?
    }

    private enum Stage {
        case begin
        case member(Int)
        case attributes
        case done
    }

    private static let pieceBytes = 1 << 20

    private let core: PoolCore
    private let snapshot: Snapshot
    private let from: Snapshot?
    private let members: [Member]
    private let begin: StreamBegin
    private var stage = Stage.begin
    private var sequence: UInt64 = 0
    private var diff: SnapshotDiff?
    /// Found by the diff and not sent yet, in reverse order.
    private var extents: [DiffExtent] = []
    private var dataBlocks: UInt64 = 0
    private var holeBlocks: UInt64 = 0

    init(core: PoolCore, snapshot: Snapshot, from: Snapshot?, members: [Member], begin: StreamBegin) {
        self.core = core
        self.snapshot = snapshot
        self.from = from
        self.members = members
        self.begin = begin
    }

    /// Bytes of data that were sent up to now.
    public var dataBytes: UInt64 { dataBlocks * UInt64(Format.blockBytes) }

    /// The next piece, of about 1 MiB; nil at the end.
    ///
    /// - Throws: ``PoolError/notFound(_:)`` when one of the snapshots is deleted meanwhile, ``PoolError/damaged(_:)``
    ///   where a block cannot be read as it was written.
    public func next() throws(PoolError) -> [UInt8]? {
        if case .done = stage { return nil }
        var piece: [UInt8] = []
        piece.reserveCapacity(Self.pieceBytes + 64 * 1024)
        while piece.count < Self.pieceBytes {
            switch stage {
            case .begin:
                append(.begin(begin), to: &piece)
                stage =
                    begin.start.member < UInt32(members.count) ? .member(Int(begin.start.member)) : .attributes
            case .member(let index): try appendMember(index, to: &piece)
            case .attributes:
                append(.attributes(try attributes()), to: &piece)
                append(.end(dataBlocks: dataBlocks, holeBlocks: holeBlocks), to: &piece)
                stage = .done
            case .done: return piece
            }
        }
        return piece
    }

    /// Evidence that cannot be read ends the stream: a snapshot must not arrive with less than it has.
    private func attributes() throws(PoolError) -> [UInt8] {
        let (known, root, lengthBytes, phase) = try core.monitor.withLock { () throws(PoolError) in
            try core.checkPresence(of: snapshot)
            return (snapshot.attributes, snapshot.attributesRoot, snapshot.attributeBytes, core.enterRead())
        }
        defer { core.exitRead(phase) }
        if let known { return known }
        return try core.readStream(root, lengthBytes: lengthBytes)
    }

    private func append(_ record: StreamRecord, to piece: inout [UInt8]) {
        record.encode(sequence: sequence, into: &piece)
        sequence += 1
    }

    private func appendMember(_ index: Int, to piece: inout [UInt8]) throws(PoolError) {
        let member = members[index]
        if diff == nil {
            let start = index == Int(begin.start.member) ? begin.start.block : 0
            diff = SnapshotDiff(
                core: core, old: member.base.flatMap { base in from.map { .init(snapshot: $0, dataset: base) } },
                new: .init(snapshot: snapshot, dataset: member.dataset),
                startingAt: start * UInt64(Format.blockBytes))
        }
        if extents.isEmpty {
            if let found = try diff?.next(limit: 1024) {
                extents = found.reversed()
            } else {
                let digest = try core.digest(of: member.dataset, base: member.base) { () throws(PoolError) in
                    try core.checkPresence(of: snapshot)
                    if let from { try core.checkPresence(of: from) }
                }
                append(.memberEnd(member: UInt32(index), digest: digest), to: &piece)
                diff = nil
                stage = index + 1 < members.count ? .member(index + 1) : .attributes
            }
            return
        }
        let extent = extents.removeLast()
        let block = extent.offset / UInt64(Format.blockBytes)
        let count = extent.lengthBytes / UInt64(Format.blockBytes)
        guard extent.kind == .data else {
            if core.hasBug(.sendForgetsHoles) { return }
            append(.hole(member: UInt32(index), block: block, count: count), to: &piece)
            holeBlocks += count
            return
        }
        let part = min(count, UInt64(StreamFormat.maxDataBlocks))
        if part < count {
            let done = part * UInt64(Format.blockBytes)
            extents.append(
                DiffExtent(offset: extent.offset + done, lengthBytes: extent.lengthBytes - done, kind: .data))
        }
        try appendData(index, block, Int(part), to: &piece)
    }

    private func appendData(_ index: Int, _ block: UInt64, _ count: Int, to piece: inout [UInt8]) throws(PoolError) {
        let payload = piece.count + StreamFormat.headerBytes
        piece.append(contentsOf: repeatElement(0, count: StreamFormat.headerBytes))
        var writer = ByteWriter()
        swap(&writer.bytes, &piece)
        writer.put(UInt32(index))
        writer.put(UInt32(count))
        writer.put(block)
        swap(&writer.bytes, &piece)
        let start = piece.count
        piece.append(contentsOf: repeatElement(0, count: count * Format.blockBytes))
        do throws(BlockError) {
            try piece.withUnsafeMutableBufferPointer { buffer throws(BlockError) in
                let raw = UnsafeMutableRawBufferPointer(rebasing: UnsafeMutableRawBufferPointer(buffer)[start...])
                try core.read(
                    .member(snapshot, members[index].dataset), at: block * UInt64(Format.blockBytes), into: raw)
            }
        } catch {
            switch error {
            case .removed:
                try core.monitor.withLock { () throws(PoolError) in try core.checkPresence(of: snapshot) }
                throw .closed
            default:
                throw .damaged("block \(block) of a member of snapshot \(snapshot.name) cannot be read: \(error)")
            }
        }
        StreamRecord.fillHeader(of: .data, sequence: sequence, payload: payload, in: &piece)
        sequence += 1
        dataBlocks += UInt64(count)
    }
}

extension PoolCore {
    /// Called with the lock held.
    func checkPresence(of snapshot: Snapshot) throws(PoolError) {
        guard !isClosed else { throw .closed }
        guard snapshots[snapshot.id] === snapshot else { throw .notFound("snapshot \(snapshot.name)") }
    }

    func send(
        _ id: SnapshotID, from: SnapshotID?, start: StreamPosition
    ) throws(PoolError) -> SendSession {
        try settled {
            () throws(PoolError) in
            let older = try from.map { id throws(PoolError) in try snapshot(id).members.map(\.dataset) } ?? []
            return try snapshot(id).members.map(\.dataset) + older
        } body: {
            () throws(PoolError) in
            let sent = try snapshot(id)
            let older = try from.map { id throws(PoolError) in try snapshot(id) }
            if let older, older.epoch >= sent.epoch {
                throw .invalidArgument("snapshot \(older.name) is not older than snapshot \(sent.name)")
            }
            var members: [SendSession.Member] = []
            var described: [StreamBegin.Member] = []
            for member in sent.members {
                let own = older?.members.firstIndex { candidate in
                    candidate.volume == member.volume
                        && ancestor(of: candidate.dataset) === ancestor(of: member.dataset)
                }
                let base = own ?? older.flatMap { soleRelation(of: member.dataset, in: $0) }
                members.append(
                    SendSession.Member(
                        volume: member.volume, dataset: member.dataset, base: base.map { older!.members[$0].dataset }))
                described.append(
                    StreamBegin.Member(
                        volume: member.volume, name: volumeNumbers[member.volume].flatMap { volumes[$0]?.name } ?? "",
                        sizeBytes: member.dataset.sizeBytes, base: base.map(UInt32.init),
                        isClone: base != nil && own == nil))
            }
            if let older, !members.contains(where: { $0.base != nil }) {
                throw .unrelated("snapshots \(older.name) and \(sent.name) have no common history")
            }
            guard start.member <= UInt32(members.count), members.count <= StreamFormat.maxMembers else {
                throw .invalidArgument("the token to resume with does not fit the snapshot")
            }
            let begin = StreamBegin(
                pool: superblock.poolID, snapshot: sent.id, from: from, createdAt: sent.createdAt, kind: sent.kind,
                name: sent.name, start: start, members: described)
            return SendSession(core: self, snapshot: sent, from: older, members: members, begin: begin)
        }
    }

    /// The only member of a snapshot that has a history in common with a dataset.
    private func soleRelation(of dataset: Dataset, in older: Snapshot) -> Int? {
        let found = older.members.indices.filter { ancestor(of: older.members[$0].dataset) === ancestor(of: dataset) }
        return found.count == 1 ? found[0] : nil
    }
}
