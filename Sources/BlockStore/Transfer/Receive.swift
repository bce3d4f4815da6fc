/// A transfer whose beginning was received; guarded by the pool's lock. Its volumes are hidden until it ends.
final class Receive {
    struct Member: Equatable {
        /// The hidden volume that is written to.
        var staging: UInt32
        /// The volume that becomes what was received; nil where the hidden one itself becomes a new volume.
        var target: VolumeID?
        /// The new volume's name; the target's where there is one.
        var name: String
    }

    let snapshot: SnapshotID
    let from: SnapshotID?
    /// When the sender took it.
    let createdAt: UInt64
    let kind: SnapshotKind
    /// The name that the snapshot will have.
    let name: String
    let members: [Member]
    /// Everything before it is durable.
    var position: StreamPosition
    /// A session writes to it at the moment; not on disk.
    var isActive = false

    init(
        snapshot: SnapshotID, from: SnapshotID?, createdAt: UInt64, kind: SnapshotKind, name: String,
        members: [Member], position: StreamPosition
    ) {
        self.snapshot = snapshot
        self.from = from
        self.createdAt = createdAt
        self.kind = kind
        self.name = name
        self.members = members
        self.position = position
    }

    /// How messages call it where a name of a volume is expected.
    var title: String { "a transfer of \(name) that has not ended" }
}

/// A transfer as a journal record and the catalog hold it.
struct ReceiveImage: Equatable {
    var snapshot: SnapshotID
    var from: SnapshotID?
    var createdAt: UInt64
    var kind: SnapshotKind
    var name: String
    var position: StreamPosition
    var members: [Receive.Member]

    func encode(into writer: inout ByteWriter) {
        writer.put(snapshot.value)
        writer.put(UInt8(from == nil ? 0 : 1))
        writer.put(from?.value ?? ObjectID(high: 0, low: 0))
        writer.put(createdAt)
        writer.put(kind.rawValue)
        writer.put(name)
        writer.put(position.member)
        writer.put(position.block)
        writer.put(UInt32(members.count))
        for member in members {
            writer.put(member.staging)
            writer.put(UInt8(member.target == nil ? 0 : 1))
            writer.put(member.target?.value ?? ObjectID(high: 0, low: 0))
            writer.put(member.name)
        }
    }

    init(_ receive: Receive) {
        snapshot = receive.snapshot
        from = receive.from
        createdAt = receive.createdAt
        kind = receive.kind
        name = receive.name
        position = receive.position
        members = receive.members
    }

    init(
        snapshot: SnapshotID, from: SnapshotID?, createdAt: UInt64, kind: SnapshotKind, name: String,
        members: [Receive.Member]
    ) {
        self.snapshot = snapshot
        self.from = from
        self.createdAt = createdAt
        self.kind = kind
        self.name = name
        self.members = members
        position = StreamPosition()
    }

    init(_ reader: inout ByteReader) throws(MalformedBytes) {
        snapshot = SnapshotID(try reader.getID())
        let hasFrom: UInt8 = try reader.get()
        let older = SnapshotID(try reader.getID())
        from = hasFrom == 1 ? older : nil
        createdAt = try reader.get()
        guard let kind = SnapshotKind(rawValue: try reader.get()) else { throw MalformedBytes() }
        self.kind = kind
        name = try reader.getString()
        position = StreamPosition(member: try reader.get(), block: try reader.get())
        let count: UInt32 = try reader.get()
        guard count <= UInt32(StreamFormat.maxMembers) else { throw MalformedBytes() }
        members = []
        for _ in 0..<count {
            let staging: UInt32 = try reader.get()
            let hasTarget: UInt8 = try reader.get()
            let target = VolumeID(try reader.getID())
            members.append(
                Receive.Member(
                    staging: staging, target: hasTarget == 1 ? target : nil, name: try reader.getString()))
        }
    }

    func makeReceive() -> Receive {
        Receive(
            snapshot: snapshot, from: from, createdAt: createdAt, kind: kind, name: name, members: members,
            position: position)
    }
}

/// How a transfer begins, in a journal record: with the hidden volumes, which are clones where there is a base.
struct ReceiveSeed: Equatable {
    struct Staging: Equatable {
        var volume: VolumeSeed
        var base: CloneOrigin?
    }

    var image: ReceiveImage
    var stagings: [Staging]

    func encode(into writer: inout ByteWriter) {
        image.encode(into: &writer)
        for staging in stagings {
            JournalRecord.put(staging.volume, &writer)
            writer.put(UInt8(staging.base == nil ? 0 : 1))
            writer.put(staging.base?.snapshot.value ?? ObjectID(high: 0, low: 0))
            writer.put(staging.base?.volume.value ?? ObjectID(high: 0, low: 0))
        }
    }

    init(image: ReceiveImage, stagings: [Staging]) {
        self.image = image
        self.stagings = stagings
    }

    init(_ reader: inout ByteReader) throws(MalformedBytes) {
        image = try ReceiveImage(&reader)
        stagings = []
        for _ in image.members {
            let volume = try JournalRecord.volumeSeed(&reader)
            let hasBase: UInt8 = try reader.get()
            let snapshot = SnapshotID(try reader.getID())
            let origin = CloneOrigin(snapshot: snapshot, volume: VolumeID(try reader.getID()))
            stagings.append(Staging(volume: volume, base: hasBase == 1 ? origin : nil))
        }
    }
}

// MARK: - What the records do

/// Called with the lock held, when a call is made and when the journal is replayed.
extension PoolCore {
    func applyBegin(_ seed: ReceiveSeed) throws(PoolError) {
        for staging in seed.stagings {
            let source = try staging.base.map { base throws(PoolError) in try member(of: base.snapshot, base.volume) }
            applyCreate(staging.volume, origin: staging.base, from: source)
            let volume = try volumeNumbered(staging.volume.number)
            volume.isHidden = true
            if volume.head.sizeBytes != staging.volume.sizeBytes {
                applyResize(volume, sizeBytes: staging.volume.sizeBytes)
            }
        }
        receives[seed.image.snapshot] = seed.image.makeReceive()
    }

    func receive(_ id: SnapshotID) throws(PoolError) -> Receive {
        guard let receive = receives[id] else { throw .notFound("transfer of a snapshot \(id)") }
        return receive
    }

    func applyPosition(_ id: SnapshotID, _ position: StreamPosition) throws(PoolError) {
        try receive(id).position = position
    }

    func applyAbort(_ id: SnapshotID) throws(PoolError) {
        let receive = try receive(id)
        for member in receive.members { applyDelete(try volumeNumbered(member.staging)) }
        receives[id] = nil
    }

    /// The hidden volumes' content becomes the snapshot, and the heads of the volumes stand on it.
    func applyFinish(_ seed: SnapshotSeed) throws(PoolError) {
        let receive = try receive(seed.id)
        try applySnapshot(seed)
        guard let snapshot = snapshots[seed.id], snapshot.members.count == receive.members.count else {
            throw .damaged("a journal record ends the transfer of \(seed.name) with other members")
        }
        for (index, member) in receive.members.enumerated() {
            let staging = try volumeNumbered(member.staging)
            let kept = snapshot.members[index].dataset
            guard let target = member.target else {
                staging.isHidden = false
                staging.rename(member.name)
                continue
            }
            let volume = try volume(target)
            snapshot.members[index].volume = target
            kept.volume = volume.number
            breakClaims(volume.number, 0..<(.max), except: nil)
            stand(volume.head, on: kept)
            applyDelete(staging)
        }
        receives[seed.id] = nil
    }
}
