internal import BlockIO

/// A transfer that has begun and not ended.
public struct ReceiveRecord: Sendable, Equatable {
    /// Of the snapshot that is being received.
    public var snapshot: SnapshotID
    public var name: String
    public var from: SnapshotID?
    /// Names of the volumes that the snapshot will be of.
    public var volumes: [String]
    /// What the sender goes on with.
    public var token: ResumeToken
    /// How far it came: the sizes of the volumes up to there, and in all.
    public var offsetBytes: UInt64
    public var sizeBytes: UInt64
    /// Whether somebody is receiving now.
    public var isActive: Bool
}

/// How a snapshot is received.
public struct ReceiveOptions: Sendable {
    /// The snapshot's name here; the sender's if nil.
    public var snapshotName: String?
    /// The new volume's name; the sender's if nil. For a snapshot of one volume. Where an increment is received it may
    /// only be the name of the volume that it belongs to.
    public var volumeName: String?
    /// Data after which the place is made durable: the most that has to be sent again.
    public var positionBytes: UInt64 = 32 << 20

    public init() {}
}

extension Pool {
    /// Begins to receive a snapshot, or goes on where a transfer broke: the stream says what it is.
    public func receive(_ options: ReceiveOptions = .init()) -> ReceiveSession {
        ReceiveSession(core: core, options: options)
    }

    /// The transfers that have not ended, by name.
    public func receives() -> [ReceiveRecord] {
        core.monitor.withLock { core.receives.values.map { core.record(of: $0) } }.sorted { $0.name < $1.name }
    }

    /// Throws away what was received of a snapshot.
    public func abortReceive(_ snapshot: SnapshotID) throws(PoolError) {
        let target = try core.withRoom { () throws(PoolError) in
            let receive = try core.receive(snapshot)
            guard !receive.isActive else {
                throw .refusedStream("snapshot \(receive.name) is being received; end that first")
            }
            return try core.perform(.abortReceive(snapshot))
        }
        try core.commit(through: target)
        core.wakeMaintenance()
    }
}

/// One stream being received. Bytes go in as they come; what they say is written to hidden volumes. The snapshot comes
/// into being in ``finish()``, by one journal record, when everything was there and has the digest that the sender
/// gave. Until then nothing of it is visible, and what was written stays for a later session. Used by one thread at a
/// time.
public final class ReceiveSession {
    private enum Stage: Equatable {
        case begin
        case members
        case attributes
        case end
        case complete
        case finished
    }

    private let core: PoolCore
    private let options: ReceiveOptions
    private var parser = StreamParser()
    private var stage = Stage.begin
    private var begin: StreamBegin?
    private var receive: Receive?
    private var stagings: [Volume] = []
    private var position = StreamPosition()
    private var unsafeBytes: UInt64 = 0
    private var digests: [Int: ContentDigest] = [:]
    private var attributes: [UInt8] = []
    private var failure: PoolError?
    public private(set) var dataBytes: UInt64 = 0

    init(core: PoolCore, options: ReceiveOptions) {
        self.core = core
        self.options = options
    }

    deinit { letGo() }

    /// What is being received, once the stream has said so.
    public var record: ReceiveRecord? {
        receive.map { receive in core.monitor.withLock { core.record(of: receive) } }
    }

    /// Names of the volumes whose content changes when this ends, once the stream has said which: those that receive an
    /// increment.
    public var targets: [String] { receive?.members.filter { $0.target != nil }.map(\.name) ?? [] }

    /// Takes bytes of the stream.
    ///
    /// - Throws: ``PoolError/badStream(_:)``, ``PoolError/unsupportedStream(_:)`` and
    /// ``PoolError/refusedStream(_:)`` for
    ///   what the stream is or does not fit; then the session is over, and what was received before stays.
    public func feed(_ bytes: UnsafeRawBufferPointer) throws(PoolError) {
        if let failure { throw failure }
        do throws(PoolError) {
            parser.feed(bytes)
            while let record = try parser.next() { try take(record) }
        } catch {
            failure = error
            suspend()
            throw error
        }
    }

    /// Ends the session where the stream broke: makes durable how far it came.
    public func suspend() {
        if stage != .finished, receive != nil { try? savePosition() }
        letGo()
    }

    private func letGo() {
        guard let receive else { return }
        core.monitor.withLock { receive.isActive = false }
        self.receive = nil
    }

    // MARK: Records

    private func take(_ record: StreamRecord) throws(PoolError) {
        switch (stage, record) {
        case (.begin, .begin(let begin)): try take(begin)
        case (.members, .data(let member, let block, let bytes)): try take(member, block, bytes)
        case (.members, .hole(let member, let block, let count)):
            try advance(member, block, count)
            let volume = stagings[Int(member)]
            let blockBytes = UInt64(Format.blockBytes)
            try write { () throws(BlockError) in
                try core.unmap(volume, at: block * blockBytes, lengthBytes: count * blockBytes)
            }
            try didApply(0)
        case (.members, .memberEnd(let member, let digest)): try take(member, digest)
        case (.attributes, .attributes(let bytes)):
            try core.checkAttributes(bytes)
            attributes = bytes
            stage = .end
        case (.end, .end): stage = .complete
        default: throw .badStream("a record of kind \(record.kind) comes where none should")
        }
    }

    private func take(_ begin: StreamBegin) throws(PoolError) {
        let receive = try core.beginReceive(begin, options)
        self.receive = receive
        self.begin = begin
        stagings = try core.monitor.withLock { () throws(PoolError) in
            try receive.members.map { member throws(PoolError) in try core.volumeNumbered(member.staging) }
        }
        position = begin.start
        stage = begin.start.member < UInt32(begin.members.count) ? .members : .attributes
    }

    private func take(_ member: UInt32, _ block: UInt64, _ bytes: [UInt8]) throws(PoolError) {
        try advance(member, block, UInt64(bytes.count / Format.blockBytes))
        let volume = stagings[Int(member)]
        try write { () throws(BlockError) in
            try bytes.withRawBytes { raw throws(BlockError) in
                try core.write(volume, at: block * UInt64(Format.blockBytes), from: raw, durability: .cached)
            }
        }
        dataBytes += UInt64(bytes.count)
        try didApply(UInt64(bytes.count))
    }

    /// Blocks come in ascending order, members one after another.
    private func advance(_ member: UInt32, _ block: UInt64, _ count: UInt64) throws(PoolError) {
        guard let begin, member == position.member, block >= position.block, count > 0,
            count <= begin.members[Int(member)].sizeBytes / UInt64(Format.blockBytes),
            block <= begin.members[Int(member)].sizeBytes / UInt64(Format.blockBytes) - count
        else { throw .badStream("a record is about blocks that cannot come here") }
        position.block = block + count
    }

    private func take(_ member: UInt32, _ digest: ContentDigest) throws(PoolError) {
        guard let begin, member == position.member else { throw .badStream("the end of another member comes here") }
        // Nobody else writes to a hidden volume: what is verified here stays so until the end.
        let actual = try core.digest(ofStaging: stagings[Int(member)])
        guard actual == digest || core.hasBug(.digestNotCompared) else {
            throw .badStream(
                "what was received as volume \(receive?.members[Int(member)].name ?? "") is not what was sent; "
                    + "abort the transfer and begin again")
        }
        digests[Int(member)] = actual
        position = StreamPosition(member: member + 1, block: 0)
        try savePosition()
        if member + 1 == UInt32(begin.members.count) { stage = .attributes }
    }

    private func write(_ body: () throws(BlockError) -> Void) throws(PoolError) {
        do throws(BlockError) {
            try body()
        } catch {
            switch error {
            case .noSpace: throw .noSpace
            case .removed: throw .refusedStream("the transfer was aborted, or the pool closed")
            case .readOnly: throw core.monitor.withLock { core.refusal } ?? .closed
            case .io(let errno): throw .io(operation: "writing what was received", errno: errno)
            default: throw .badStream("what it says cannot be written: \(error)")
            }
        }
    }

    private func didApply(_ bytes: UInt64) throws(PoolError) {
        unsafeBytes += bytes + 4096
        if unsafeBytes >= options.positionBytes { try savePosition() }
    }

    /// Makes everything up to here durable, and the place with it.
    private func savePosition() throws(PoolError) {
        guard let receive, begin != nil else { return }
        var reached = position
        if core.hasBug(.positionAhead) { reached.block += 64 }
        let target = try core.monitor.withLock { () throws(PoolError) in
            guard core.receives[receive.snapshot] === receive else {
                throw .refusedStream("the transfer was aborted, or the pool closed")
            }
            guard receive.position < reached else { return core.lastRecord }
            return try core.perform(.receivePosition(receive.snapshot, reached))
        }
        try core.commit(through: target)
        unsafeBytes = 0
    }

    // MARK: The end

    /// Makes the snapshot of what was received and verified: one record, durable on return.
    ///
    /// - Throws: ``PoolError/badStream(_:)`` where the stream was cut off; ``PoolError/refusedStream(_:)`` where a
    /// volume
    ///   was written to meanwhile. Nothing visible has changed then.
    public func finish() throws(PoolError) -> SnapshotRecord {
        if let failure { throw failure }
        do throws(PoolError) {
            guard stage == .complete, parser.isBetweenRecords, let receive else { throw cutOff() }
            let record = try core.finishReceive(receive, attributes: attributes, digests: digests)
            stage = .finished
            letGo()
            return record
        } catch {
            failure = error
            suspend()
            throw error
        }
    }

    private func cutOff() -> PoolError {
        if stage == .complete { return .badStream("bytes follow its end") }
        return .badStream(
            stage == .begin
                ? "it ends before it says what it is" : "it was cut off; what came is kept, and can be gone on with")
    }
}
