import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// A second pool that snapshots are sent to.
final class Replica {
    var disk: SimulatedDisk
    var pool: Pool
    /// What its snapshots hold, member by member.
    var snapshots: [SnapshotID: [VolumeModel]] = [:]

    init(disk: SimulatedDisk, options: PoolOptions) throws {
        self.disk = disk
        pool = try Pool.create(on: disk, options: options)
    }

    deinit { abandon() }

    func abandon() { pool.core.monitor.withLock { pool.core.forgetObjects() } }
}

extension Simulator {
    /// All snapshots that are left, oldest first, so that most go as increments.
    func sendAll() throws {
        guard generator.chance(60), let pool else { return }
        for record in pool.snapshots() { try send(record.id) }
    }

    func send() throws {
        if !isDamaged, let id = pickSnapshot() { try send(id) }
    }

    /// Sends a snapshot to the replica, whole or as an increment, and breaks the transfer in between.
    private func send(_ id: SnapshotID) throws {
        let replica =
            try self.replica ?? Replica(disk: SimulatedDisk(seed: generator.next()), options: replicaOptions())
        self.replica = replica
        guard replica.snapshots[id] == nil, let pool else { return }
        let all = pool.snapshots()
        let members = all.first { $0.id == id }!.members.map(\.volume)
        let epoch = all.first { $0.id == id }!.epoch
        let bases = all.filter { $0.epoch < epoch && replica.snapshots[$0.id] != nil && isRelated($0.id, id) }
        let under = replica.pool.receives().first { $0.snapshot == id }
        var from = bases.isEmpty || generator.chance(10) ? nil : bases[Int(generator.below(UInt64(bases.count)))].id
        if let under { from = under.from }
        // What a transfer was an increment to is gone here: it can only be given up.
        if let from, !all.contains(where: { $0.id == from }) { return try replica.pool.abortReceive(id) }
        if from == nil, replica.pool.volumes().count > 5 { return try prune(replica) }
        var isOffered = true
        // Where the older one has several members with the same history and none of the same volume, it is no base.
        do {
            if let from { _ = try pool.send(id, from: from) }
        } catch PoolError.unrelated {
            return
        } catch {
            // Comes again below, where it is dealt with.
            isOffered = false
        }
        var options = ReceiveOptions()
        options.positionBytes = 4096 * (1 + generator.below(200))
        let isOwn = all.first { $0.id == from }?.members.contains { $0.volume == members[0] } ?? false
        if !isOwn, members.count == 1, under == nil { options.volumeName = newName("r") }
        if let under, members.count == 1 { options.volumeName = under.volumes[0] }
        if from != nil, isOffered, !disk.isDead, generator.chance(10) {
            setPlan(nil)
            try checkRefusal(of: id, from!, replica)
        }
        var outcome: Result<SnapshotRecord, any Error>?
        try attempt(
            "send \(id.description.prefix(4)) from \(from?.description.prefix(4) ?? "nothing")",
            as: from == nil ? .send : .incrementalSend, isDurable: false, change: { _ in }
        ) { source in
            outcome = try self.transfer(id, from: from, source, replica, options)
        }
        switch outcome {
        case .success(let record): try check(record, id, members, replica)
        case .failure(let error):
            log.append("  refused: \(error)")
            guard isAllowed(error) else { throw fail("receiving failed: \(error)") }
        case nil: break
        }
    }

    private func replicaOptions() -> PoolOptions {
        var options = poolOptions()
        // The log belongs to the first pool.
        options.volatileLogStorage = nil
        return options
    }

    private func isRelated(_ older: SnapshotID, _ newer: SnapshotID) -> Bool {
        func trees(_ id: SnapshotID) -> Set<VolumeID> {
            Set(model.members.filter { $0.key.snapshot == id }.map(\.value.tree))
        }
        return !trees(older).isDisjoint(with: trees(newer))
    }

    /// Names can be taken there, space can be short, and a volume can stand elsewhere since a receive from an older
    /// base.
    private func isAllowed(_ error: any Error) -> Bool {
        switch error as? PoolError {
        case .exists?, .noSpace?: true
        case .refusedStream(let text)?: text.contains("is not what it was")
        default: false
        }
    }

    /// Errors of the source are thrown, those of the receiver returned; nil where the source's end left it half way.
    private func transfer(
        _ id: SnapshotID, from: SnapshotID?, _ source: Pool, _ replica: Replica, _ options: ReceiveOptions
    ) throws -> Result<SnapshotRecord, any Error>? {
        for round in 0..<6 {
            let token = replica.pool.receives().first { $0.snapshot == id }?.token
            let sender = try source.send(id, from: from, resume: token)
            let session = replica.pool.receive(options)
            let breaksAt = round < 4 && generator.chance(60) ? generator.below(3) : .max
            var pieces: UInt64 = 0
            var isBroken = false
            while let piece = try sender.next() {
                do {
                    // The last piece can be cut anywhere; whole ones come in parts of any size.
                    let cut = pieces == breaksAt ? Int(generator.below(UInt64(piece.count))) : piece.count
                    let first = Int(generator.below(UInt64(cut + 1)))
                    try piece.withUnsafeBytes { raw in
                        try session.feed(UnsafeRawBufferPointer(rebasing: raw[..<first]))
                        try session.feed(UnsafeRawBufferPointer(rebasing: raw[first..<cut]))
                    }
                } catch {
                    return .failure(error)
                }
                isBroken = pieces == breaksAt
                pieces += 1
                if isBroken { break }
            }
            guard isBroken else { return Result { try session.finish() } }
            coverage.note(.brokenTransfer)
            try interrupt(session, id, replica)
            if generator.chance(15) { return nil }
        }
        return nil
    }

    private func interrupt(_ session: ReceiveSession, _ id: SnapshotID, _ replica: Replica) throws {
        if generator.chance(50) {
            log.append("  the connection is cut")
            #expect(throws: PoolError.self) { try session.finish() }
        } else {
            log.append("  the replica crashes")
            replica.abandon()
            replica.disk = replica.disk.crashed()
            replica.pool = try Pool.open(on: replica.disk, options: replicaOptions())
        }
        let report = PoolChecker.check(replica.pool, verifiesData: false)
        guard report.isSound else { throw fail("the replica after a break: \(report.problems)") }
        guard Set(replica.pool.snapshots().map(\.id)) == Set(replica.snapshots.keys) else {
            throw fail("a half received snapshot is visible, or one is lost")
        }
        guard replica.pool.volumes().allSatisfy({ !$0.name.hasPrefix("receive:") }) else {
            throw fail("the volumes of a transfer are visible")
        }
        if generator.chance(10), replica.pool.receives().contains(where: { $0.snapshot == id }) {
            log.append("  the transfer is aborted")
            try replica.pool.abortReceive(id)
        }
    }

    private func check(
        _ record: SnapshotRecord, _ id: SnapshotID, _ members: [VolumeID], _ replica: Replica
    ) throws {
        let expected = members.map { model.snapshots[id]!.members[$0]! }
        guard record.id == id, record.attributes == model.snapshots[id]!.attributes else {
            throw fail("another snapshot was received than was sent")
        }
        replica.snapshots[id] = expected
        for (known, contents) in replica.snapshots.sorted(by: { $0.key.description < $1.key.description }) {
            guard let found = replica.pool.snapshots().first(where: { $0.id == known }) else {
                throw fail("a received snapshot is gone")
            }
            for (member, content) in zip(found.members, contents) {
                let read = try readModel(try replica.pool.device(of: known, volume: member.volume))
                guard read == content else { throw fail("a received snapshot is not what was sent") }
                guard known == id else { continue }
                let head = try readModel(try replica.pool.device(of: member.volume))
                guard head == content else { throw fail("a volume is not what it received last") }
            }
        }
        if generator.chance(30) {
            let report = PoolChecker.check(replica.pool)
            guard report.isSound else { throw fail("the replica: \(report.problems)") }
        }
    }

    /// A volume that was written to takes no increment, and nothing changes by trying.
    private func checkRefusal(of id: SnapshotID, _ from: SnapshotID, _ replica: Replica) throws {
        guard replica.pool.receives().isEmpty, let pool else { return }
        let older = replica.pool.snapshots().first { $0.id == from }!
        let volume = older.members[0].volume
        let device = try replica.pool.device(of: volume)
        try device.write(Sector.run(0..<8, tag: 99 << 40), at: 0)
        let sender = try pool.send(id, from: from)
        let session = replica.pool.receive()
        if let piece = try sender.next() {
            var isRefused = false
            do {
                try piece.withUnsafeBytes { try session.feed($0) }
            } catch PoolError.refusedStream {
                isRefused = true
            } catch {
                log.append("  another refusal: \(error)")
            }
            let sent = pool.snapshots()
            let isFirst =
                sent.first { $0.id == id }?.members[0].volume == sent.first { $0.id == from }?.members[0].volume
            if !isRefused, isFirst, !replica.pool.receives().isEmpty {
                throw fail("an increment was taken by a volume that was written to")
            }
            session.suspend()
            if !replica.pool.receives().isEmpty { try replica.pool.abortReceive(id) }
        }
        _ = try replica.pool.revert(
            volumes: [volume], to: from, keepAs: SnapshotID(newObjectID()), keepName: newName("k"), attributes: [])
        for snapshot in replica.pool.snapshots() where snapshot.kind == .beforeRevert {
            if replica.snapshots[snapshot.id] == nil { try replica.pool.deleteSnapshot(snapshot.id) }
        }
    }

    /// The replica has too many volumes: the next transfers go to a new one.
    private func prune(_ replica: Replica) throws {
        replica.abandon()
        self.replica = nil
    }
}
