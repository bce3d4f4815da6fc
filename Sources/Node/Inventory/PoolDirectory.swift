import API
import BlockStore
import Synchronization

/// Single objects of the pool, by what people call them. Each costs the same whatever else the pool holds. For callers
/// that may block; snapshots that a saga is still making are not there.
struct PoolDirectory: Sendable {
    let pool: Pool

    func volume(_ id: VolumeID) -> VolumeRecord? { try? pool.volume(id) }

    func volume(named name: String) throws -> VolumeRecord {
        guard let volume = pool.volume(named: name) else { throw APIFailure.unknown("volume", name) }
        return volume
    }

    func hasVolume(named name: String) -> Bool { pool.volume(named: name) != nil }

    func snapshot(_ idOrName: String) throws -> SnapshotRecord {
        let byID = SnapshotID(idOrName).flatMap { try? pool.snapshot($0) }
        guard let found = byID ?? pool.snapshotID(named: idOrName).flatMap({ try? pool.snapshot($0) }),
            SnapshotAttributes(bytes: found.attributes)?.state != .pending
        else { throw APIFailure.unknown("snapshot", idOrName) }
        return found
    }

    /// The volumes that a snapshot has parts of, as far as they are there.
    func members(of snapshot: SnapshotRecord) -> [VolumeRecord] { snapshot.members.compactMap { volume($0.volume) } }

    /// The member that is meant where a request may leave it out.
    func member(_ name: String?, of snapshot: SnapshotRecord) throws -> VolumeRecord {
        let members = members(of: snapshot)
        if let name {
            guard let member = members.first(where: { $0.name == name }) else {
                throw APIFailure(
                    status: 404, code: "memberNotFound",
                    message: "the snapshot \"\(snapshot.name)\" has no member \"\(name)\"",
                    hint: "Its members are \(members.map(\.name).joined(separator: ", "))")
            }
            return member
        }
        guard let only = members.first, members.count == 1 else {
            throw APIFailure.invalid(
                "the snapshot \"\(snapshot.name)\" has \(members.count) members; say which volume is meant",
                hint: "One of \(members.map(\.name).joined(separator: ", "))")
        }
        return only
    }
}

/// Snapshots that are made and not shown yet: a few at a time. Counting those of a volume needs no look at the others.
final class PendingSnapshots: Sendable {
    private let ids = Mutex<Set<SnapshotID>>([])

    /// Before such a snapshot is made, or when one was found.
    func insert(_ id: SnapshotID) { ids.withLock { _ = $0.insert(id) } }

    /// When it could not be made, or was deleted.
    func remove(_ id: SnapshotID) { ids.withLock { _ = $0.remove(id) } }

    /// Those that are there and still not to be shown. For callers that may block.
    func records(in pool: Pool) -> [SnapshotRecord] {
        let known = ids.withLock { $0 }
        let found = known.compactMap { try? pool.snapshot($0) }
            .filter { SnapshotAttributes(bytes: $0.attributes)?.state == .pending }
        // One that is about to be made is not there yet.
        let done = known.subtracting(found.map(\.id)).filter { pool.hasSnapshot($0) }
        ids.withLock { $0.subtract(done) }
        return found
    }

    /// How many snapshots there are to be shown, or how many of a volume.
    func shownCount(of volume: VolumeID? = nil, in pool: Pool) -> Int {
        let hidden = records(in: pool).count { record in
            volume.map { id in record.members.contains { $0.volume == id } } ?? true
        }
        return max(0, pool.snapshotCount(of: volume) - hidden)
    }
}
