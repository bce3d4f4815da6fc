import API
import BlockStore
import Catalog
import Logging

// What things hold, and who owns them.

extension Inventory {
    /// What deleting all of these would free.
    func space(_ request: SpaceRequest) async throws -> SpaceInfo {
        guard !request.snapshots.isEmpty || !(request.volumes ?? []).isEmpty else {
            throw APIFailure.invalid("name at least one snapshot or volume")
        }
        let contents = try await contents()
        let snapshots = try request.snapshots.map { try contents.snapshot($0).id }
        let volumes = try (request.volumes ?? []).map { try contents.volume(named: $0).id }
        return try await space(of: snapshots, volumes: volumes)
    }

    private func space(of snapshots: [SnapshotID], volumes: [VolumeID] = []) async throws -> SpaceInfo {
        let pool = pool
        let answer = try await blocking.run { try pool.space(of: snapshots, volumes: volumes) }
        return SpaceInfo(exclusiveBytes: answer.exclusiveBytes, freedBytes: answer.freedBytes)
    }

    /// Adds what each snapshot alone holds. One that goes away meanwhile stays without, and so do all of a pool whose
    /// recent changes cannot be brought to the disk any more.
    func withSpace(_ snapshots: [SnapshotInfo]) async throws -> [SnapshotInfo] {
        var result = snapshots
        for index in result.indices {
            guard let id = SnapshotID(result[index].id) else { continue }
            result[index].space = try await unlessUnknown { try await space(of: [id]) }
        }
        return result
    }

    func withSpace(_ volume: VolumeInfo) async throws -> VolumeInfo {
        var result = volume
        guard let id = VolumeID(volume.id) else { return result }
        let snapshots = try await contents().snapshots.filter { $0.members.contains { $0.volume == id } }.map(\.id)
        result.space = try await unlessUnknown {
            let head = try await space(of: [], volumes: [id])
            let below = snapshots.isEmpty ? nil : try await space(of: snapshots)
            let total = snapshots.isEmpty ? head : try await space(of: snapshots, volumes: [id])
            return VolumeSpaceInfo(
                headBytes: head.exclusiveBytes, snapshotBytes: below?.freedBytes ?? 0, totalBytes: total.freedBytes)
        }
        return result
    }

    private func unlessUnknown<Value>(_ body: () async throws -> Value) async throws -> Value? {
        do {
            return try await body()
        } catch let error as PoolError {
            switch error {
            case .notFound, .readOnly, .changing: return nil
            default: throw error
            }
        }
    }

    // MARK: Promote

    /// Makes a clone the owner of the snapshots that it stands on.
    func promote(_ name: String) async throws -> PromoteResult {
        let known = try await contents()
        let former = try formerOwner(of: name, known)
        return try await exclusively([name, former.name]) {
            let contents = try await contents()
            let clone = try contents.volume(named: name)
            let former = try formerOwner(of: name, contents)
            try await refuseWhileExported(clone, former, contents)
            let pool = pool
            let moved = try await blocking.run { try pool.promote(clone.id).snapshots }
            let names = moved.compactMap { id in contents.snapshots.first { $0.id == id }?.name }
            logger.notice(
                "clone promoted",
                metadata: ["volume": "\(name)", "former": "\(former.name)", "count": "\(moved.count)"])
            return PromoteResult(volume: try await volume(name), snapshots: names, formerOwner: former.name)
        }
    }

    private func formerOwner(of name: String, _ contents: Contents) throws -> VolumeRecord {
        let clone = try contents.volume(named: name)
        guard let origin = clone.clonedFrom, let former = contents.volume(origin.volume) else {
            throw APIFailure(
                status: 404, code: "cloneNotFound", message: "the volume \"\(name)\" is no clone of another volume",
                hint: "stillpoint clone list shows the clones")
        }
        return former
    }

    /// An export names the volume that its snapshot's member belongs to.
    private func refuseWhileExported(
        _ clone: VolumeRecord, _ former: VolumeRecord, _ contents: Contents
    ) async throws {
        let origin = contents.snapshots.first { $0.id == clone.clonedFrom?.snapshot }
        for snapshot in contents.snapshots where snapshot.epoch <= origin?.epoch ?? 0 {
            let luns = try await exports(of: snapshot.id).flatMap(\.luns)
            guard luns.contains(where: { $0.volumeID == former.id.description }) else { continue }
            throw APIFailure.conflict(
                "snapshotInUse",
                "the snapshot \"\(snapshot.name)\" of \"\(former.name)\" is exported read-only to an initiator",
                hint: "Detach it there, or remove the export: DELETE /v1/snapshots/\(snapshot.name)/exports")
        }
    }
}
