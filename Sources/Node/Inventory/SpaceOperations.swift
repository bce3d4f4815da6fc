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
        let (snapshots, volumes) = try await look { directory in
            let snapshots = try request.snapshots.map { try directory.snapshot($0).id }
            return (snapshots, try (request.volumes ?? []).map { try directory.volume(named: $0).id })
        }
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
        let snapshots = try await snapshotRecords(of: id).map(\.record.id)
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
        let former = try await look { try Self.formerOwner(of: name, $0).former }
        return try await exclusively([name, former.name]) {
            let (clone, former) = try await look { try Self.formerOwner(of: name, $0) }
            try await refuseWhileExported(clone, former)
            let (moved, names) = try await look { directory in
                let moved = try directory.pool.promote(clone.id).snapshots
                let shown = moved.compactMap { try? directory.snapshot($0.description) }
                return (moved, shown.map(\.name))
            }
            logger.notice(
                "clone promoted",
                metadata: ["volume": "\(name)", "former": "\(former.name)", "count": "\(moved.count)"])
            return PromoteResult(volume: try await volume(name), snapshots: names, formerOwner: former.name)
        }
    }

    private static func formerOwner(
        of name: String, _ directory: PoolDirectory
    ) throws -> (clone: VolumeRecord, former: VolumeRecord) {
        let clone = try directory.volume(named: name)
        guard let origin = clone.clonedFrom, let former = directory.volume(origin.volume) else {
            throw APIFailure(
                status: 404, code: "cloneNotFound", message: "the volume \"\(name)\" is no clone of another volume",
                hint: "stillpoint clone list shows the clones")
        }
        return (clone, former)
    }

    /// An export names the volume that its snapshot's member belongs to.
    private func refuseWhileExported(_ clone: VolumeRecord, _ former: VolumeRecord) async throws {
        let exported = try await catalog.targets().flatMap(\.luns).filter { $0.volumeID == former.id.description }
            .compactMap(\.snapshotID)
        let found = try await look { directory in
            let origin = clone.clonedFrom.flatMap { try? directory.pool.snapshot($0.snapshot) }
            return exported.compactMap { try? directory.snapshot($0) }.filter { $0.epoch <= origin?.epoch ?? 0 }
        }
        if let snapshot = found.min(by: { $0.epoch < $1.epoch }) {
            throw APIFailure.conflict(
                "snapshotInUse",
                "the snapshot \"\(snapshot.name)\" of \"\(former.name)\" is exported read-only to an initiator",
                hint: "Detach it there, or remove the export: DELETE /v1/snapshots/\(snapshot.name)/exports")
        }
    }
}
