import API
import BlockStore
import Foundation
import ISCSI
import Logging
import NIOCore
import Synchronization

// What leaves and enters the node as a stream: differences, snapshots.

extension Inventory {
    /// Streams at a time, in and out.
    static let streamLimit = 8

    /// Counts a stream in; the caller counts it out.
    private func enterStream() throws {
        let isFull = streams.withLock { count in
            if count >= Self.streamLimit { return true }
            count += 1
            return false
        }
        guard isFull else { return }
        throw APIFailure(
            status: 503, code: "tooManyStreams", message: "\(Self.streamLimit) streams are under way already",
            hint: "Try again when one has ended")
    }

    private func leaveStream() { streams.withLock { $0 -= 1 } }

    // MARK: Differences

    /// What changed in a member of a snapshot since an older one, or everything that is mapped, as lines of JSON.
    func diff(
        _ idOrName: String, from: String?, volume: String?, fromVolume: String?, offset: UInt64
    ) async throws -> ChunkSource {
        let (newer, member, older, olderVolume) = try await look { directory in
            let newer = try directory.snapshot(idOrName)
            let member = try directory.member(volume, of: newer)
            let older = try from.map { try directory.snapshot($0) }
            return (newer, member, older, try fromVolume.map { try directory.volume(named: $0).id })
        }
        return try await diff(from: older?.id, to: newer.id, member.id, olderVolume, offset: offset) {}
    }

    /// What changed in a volume since a snapshot, up to now: against a snapshot that is taken for it, shown nowhere and
    /// deleted at the end. A restart deletes it, too.
    func diff(volume name: String, from: String?) async throws -> ChunkSource {
        let (volume, older) = try await look { directory in
            (try directory.volume(named: name), try from.map { try directory.snapshot($0) })
        }
        let attributes = SnapshotAttributes(
            sagaID: "", state: .pending, requested: .crash, achieved: .crash, quietSeconds: 0, evidence: nil)
        let (pool, logger, blocking, pending) = (pool, logger, blocking, pending)
        let bytes = try attributes.bytes()
        let now = SnapshotID.random()
        pending.insert(now)
        _ = try await exclusively([name]) {
            try await blocking.run {
                try pool.createSnapshot(id: now, name: "diff-\(now)", volumes: [volume.id], attributes: bytes)
            }
        }
        let forget: @Sendable () async -> Void = {
            do {
                try await blocking.run { try pool.deleteSnapshot(now) }
                pending.remove(now)
            } catch {
                logger.error("the snapshot of a diff could not be deleted", metadata: ["error": "\(error)"])
            }
        }
        do {
            return try await diff(from: older?.id, to: now, volume.id, nil, offset: 0, end: forget)
        } catch {
            await forget()
            throw error
        }
    }

    private func diff(
        from: SnapshotID?, to: SnapshotID, _ volume: VolumeID, _ fromVolume: VolumeID?, offset: UInt64,
        end: @escaping @Sendable () async -> Void
    ) async throws -> ChunkSource {
        try enterStream()
        let (pool, blocking) = (pool, blocking)
        do {
            let diff = try await blocking.run {
                try pool.diff(from: from, to: to, volume: volume, fromVolume: fromVolume, startingAt: offset)
            }
            let lines = DiffLines(diff)
            return ChunkSource(
                next: { try await blocking.run { try lines.next() } },
                end: { [self] in
                    leaveStream()
                    await end()
                })
        } catch {
            leaveStream()
            throw error
        }
    }

    // MARK: Send

    /// A snapshot as a stream: docs/send-stream.md.
    func send(_ idOrName: String, from: String?, resume: String?) async throws -> ChunkSource {
        let (snapshot, older) = try await look { directory in
            (try directory.snapshot(idOrName), try from.map { try directory.snapshot($0) })
        }
        let token = try resume.map { text in
            guard let token = ResumeToken(text) else {
                throw APIFailure.invalid("\"\(text.prefix(140))\" is no token to resume with")
            }
            return token
        }
        try enterStream()
        let (pool, blocking) = (pool, blocking)
        do {
            let session = try await blocking.run { try pool.send(snapshot.id, from: older?.id, resume: token) }
            logger.notice(
                "sending a snapshot",
                metadata: ["snapshot": "\(snapshot.name)", "from": "\(older?.name ?? "-")"])
            return ChunkSource(
                next: { try await blocking.run { try session.next().map { Data($0) } } },
                end: { [self] in leaveStream() })
        } catch {
            leaveStream()
            throw error
        }
    }

    // MARK: Receive

    /// Takes a stream, and makes the snapshot at its end. What was received stays when the stream breaks.
    func receive(
        volume: String?, name: String?, _ body: some AsyncSequence<ByteBuffer, any Error>
    ) async throws -> SnapshotInfo {
        if let volume { try Self.checkName(volume, of: "volume") }
        if let name { try Self.checkName(name, of: "snapshot") }
        try enterStream()
        defer { leaveStream() }
        var options = ReceiveOptions()
        options.volumeName = volume
        options.snapshotName = name
        let session = ReceiverBox(pool.receive(options))
        let blocking = blocking
        do {
            var targets: [String]?
            for try await buffer in body {
                try await blocking.run { try session.feed(buffer) }
                if targets == nil, let found = session.targets {
                    targets = found
                    for name in found {
                        let naa = try await look { try $0.volume(named: name).naa.description }
                        try refuseWhileInUse(name, naa: naa)
                    }
                }
            }
            let snapshot = try await finish(session, targets ?? [])
            logger.notice("snapshot received", metadata: ["snapshot": "\(snapshot.name)"])
            return try await self.snapshot(snapshot.id.description)
        } catch {
            try? await blocking.run { session.suspend() }
            throw error
        }
    }

    /// The volumes' content changes here: nobody may be logged in to them.
    private func finish(_ session: ReceiverBox, _ targets: [String]) async throws -> SnapshotRecord {
        let blocking = blocking
        return try await exclusively(Set(targets)) {
            let volumes = try await look { directory in targets.compactMap { directory.pool.volume(named: $0) } }
            for volume in volumes { registry.blockLogins(naa: volume.naa.description) }
            defer { for volume in volumes { registry.unblockLogins(naa: volume.naa.description) } }
            for volume in volumes { try refuseWhileInUse(volume.name, naa: volume.naa.description) }
            return try await blocking.run { try session.finish() }
        }
    }

    /// The transfers that have not ended.
    func receives() async throws -> [ReceiveInfo] {
        let pool = pool
        return try await blocking.run { pool.receives() }.map { record in
            ReceiveInfo(
                snapshot: record.snapshot.description, name: record.name, from: record.from?.description,
                volumes: record.volumes, offsetBytes: record.offsetBytes, sizeBytes: record.sizeBytes,
                resumeToken: record.token.description, isActive: record.isActive)
        }
    }

    /// Throws away what was received of a snapshot.
    func abortReceive(_ idOrName: String) async throws {
        let pool = pool
        let all = try await blocking.run { pool.receives() }
        guard let found = all.first(where: { $0.snapshot.description == idOrName || $0.name == idOrName }) else {
            throw APIFailure(
                status: 404, code: "receiveNotFound", message: "there is no transfer of a snapshot \"\(idOrName)\"",
                hint: "stillpoint receive list shows those that there are")
        }
        try await blocking.run { try pool.abortReceive(found.snapshot) }
        logger.notice("transfer aborted", metadata: ["snapshot": "\(found.name)"])
    }
}

/// A receiving session between threads.
private final class ReceiverBox: @unchecked Sendable {
    // SAFETY: one task uses it, a call at a time, each awaited before the next.
    private let session: ReceiveSession
    private(set) var targets: [String]?

    init(_ session: ReceiveSession) { self.session = session }

    func feed(_ buffer: ByteBuffer) throws {
        try buffer.withUnsafeReadableBytes { try session.feed($0) }
        if targets == nil, session.record != nil { targets = session.targets }
    }

    func finish() throws -> SnapshotRecord { try session.finish() }
    func suspend() { session.suspend() }
}

/// A diff as lines of JSON: neighbours of one kind are joined, also over the pieces it is read in.
private final class DiffLines: @unchecked Sendable {
    // SAFETY: one task reads, a call at a time, each awaited before the next.
    private let diff: SnapshotDiff
    private var held: DiffExtent?
    private var hasBegun = false
    private var hasEnded = false

    init(_ diff: SnapshotDiff) { self.diff = diff }

    /// About as many lines as one step of the diff finds; nil after the end.
    func next() throws -> Data? {
        if hasEnded { return nil }
        var lines: [DiffLine] = []
        if !hasBegun {
            hasBegun = true
            lines.append(DiffLine(kind: .size, fromBytes: diff.fromSizeBytes, toBytes: diff.toSizeBytes))
        }
        while lines.isEmpty {
            guard let extents = try diff.next(limit: 2048) else {
                if let held { lines.append(Self.line(held)) }
                lines.append(DiffLine(kind: .end, toBytes: diff.toSizeBytes))
                hasEnded = true
                break
            }
            for extent in extents {
                if let last = held, last.kind == extent.kind, last.offset + last.lengthBytes == extent.offset {
                    held?.lengthBytes += extent.lengthBytes
                } else {
                    if let held { lines.append(Self.line(held)) }
                    held = extent
                }
            }
        }
        let encoder = APIJSON.encoder()
        return try lines.reduce(into: Data()) { data, line in
            data.append(try encoder.encode(line))
            data.append(UInt8(ascii: "\n"))
        }
    }

    private static func line(_ extent: DiffExtent) -> DiffLine {
        DiffLine(
            kind: extent.kind == .data ? .data : .hole, offset: extent.offset, lengthBytes: extent.lengthBytes)
    }
}
