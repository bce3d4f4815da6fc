import API
import BlockStore

/// The pool as the sagas see it.
struct PoolAdapter: SnapshotCutting {
    let pool: Pool

    func volumes() -> [SagaVolume] { pool.volumes().map { SagaVolume(name: $0.name, naa: $0.naa.description) } }

    func snapshots() -> [SagaSnapshot] {
        let names = Dictionary(uniqueKeysWithValues: pool.volumes().map { ($0.id, $0.name) })
        return pool.snapshots().map { record in
            SagaSnapshot(
                id: record.id.description, name: record.name,
                volumes: record.members.map { names[$0.volume] ?? $0.volume.description },
                createdAt: Int64(clamping: record.createdAt), isBeforeRevert: record.kind == .beforeRevert,
                attributes: record.attributes)
        }
    }

    func hasSnapshot(named name: String) -> Bool { pool.hasSnapshot(named: name) }

    func cut(id: String, name: String, volumes: [String], attributes: [UInt8]) throws -> UInt64 {
        try pool.createSnapshot(
            id: try snapshotID(id), name: name, volumes: try volumeIDs(volumes), attributes: attributes
        ).epoch
    }

    func setAttributes(snapshot: String, _ attributes: [UInt8]) throws {
        try pool.setAttributes(of: try snapshotID(snapshot), attributes)
    }

    func delete(snapshot: String) throws {
        let id = try snapshotID(snapshot)
        guard pool.snapshots().contains(where: { $0.id == id }) else { return }
        try pool.deleteSnapshot(id)
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
        let volumes = pool.volumes()
        return try names.map { name in
            guard let volume = volumes.first(where: { $0.name == name }) else {
                throw APIFailure.unknown("volume", name)
            }
            return volume.id
        }
    }
}
