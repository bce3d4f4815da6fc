import API
import BlockStore

/// The pool as the sagas see it.
struct PoolAdapter: SnapshotCutting {
    let pool: Pool
    var pending = PendingSnapshots()

    func volumes() -> [SagaVolume] { pool.volumes().map { SagaVolume(name: $0.name, naa: $0.naa.description) } }

    func volume(named name: String) -> SagaVolume? {
        pool.volume(named: name).map { SagaVolume(name: $0.name, naa: $0.naa.description) }
    }

    func snapshots() -> [SagaSnapshot] { pool.snapshots().map(describe) }

    func snapshots(of volume: String) -> [SagaSnapshot] {
        pool.volume(named: volume).map { pool.snapshots(of: $0.id).map(describe) } ?? []
    }

    func snapshot(_ idOrName: String) -> SagaSnapshot? {
        let byID = SnapshotID(idOrName).flatMap { try? pool.snapshot($0) }
        return (byID ?? pool.snapshotID(named: idOrName).flatMap { try? pool.snapshot($0) }).map(describe)
    }

    private func describe(_ record: SnapshotRecord) -> SagaSnapshot {
        SagaSnapshot(
            id: record.id.description, name: record.name,
            volumes: record.members.map { (try? pool.volume($0.volume).name) ?? $0.volume.description },
            createdAt: Int64(clamping: record.createdAt), isBeforeRevert: record.kind == .beforeRevert,
            attributes: record.attributes)
    }

    func hasSnapshot(named name: String) -> Bool { pool.hasSnapshot(named: name) }

    func cut(id: String, name: String, volumes: [String], attributes: [UInt8]) throws -> UInt64 {
        let id = try snapshotID(id)
        let volumes = try volumeIDs(volumes)
        pending.insert(id)
        do {
            return try pool.createSnapshot(id: id, name: name, volumes: volumes, attributes: attributes).epoch
        } catch {
            // An error that came after the record is none.
            if !pool.hasSnapshot(id) { pending.remove(id) }
            throw error
        }
    }

    func setAttributes(snapshot: String, _ attributes: [UInt8]) throws {
        try pool.setAttributes(of: try snapshotID(snapshot), attributes)
    }

    func delete(snapshot: String) throws {
        let id = try snapshotID(snapshot)
        if pool.hasSnapshot(id) { try pool.deleteSnapshot(id) }
        pending.remove(id)
    }

    func revert(volumes: [String], to snapshot: String, keepID: String, keepName: String, attributes: [UInt8]) throws {
        _ = try pool.revert(
            volumes: try volumeIDs(volumes), to: try snapshotID(snapshot), keepAs: try snapshotID(keepID),
            keepName: keepName, attributes: attributes)
    }

    func info(snapshot: String) throws -> SnapshotInfo {
        try Inventory.describe(snapshot: try snapshotID(snapshot), in: pool)
    }

    private func snapshotID(_ text: String) throws -> SnapshotID {
        guard let id = SnapshotID(text) else { throw APIFailure.unknown("snapshot", text) }
        return id
    }

    private func volumeIDs(_ names: [String]) throws -> [VolumeID] {
        let directory = PoolDirectory(pool: pool)
        return try names.map { try directory.volume(named: $0).id }
    }
}
