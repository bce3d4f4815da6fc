import API
import BlockStore
import Catalog
import Foundation
import ISCSI

// The pool's and the catalog's records as the API shows them.

extension Inventory {
    func volumes() async throws -> [VolumeInfo] { try await describe { $0.pool.volumes() } }

    func clones() async throws -> [VolumeInfo] {
        try await describe { $0.pool.volumes().filter { $0.clonedFrom != nil } }
    }

    func volume(_ name: String) async throws -> VolumeInfo { try await describe { [try $0.volume(named: name)] }[0] }

    private func describe(
        _ select: @escaping @Sendable (PoolDirectory) throws -> [VolumeRecord]
    ) async throws -> [VolumeInfo] {
        let pending = pending
        let found = try await look { directory in
            try select(directory).map { volume in
                let origin = volume.clonedFrom.map { origin in
                    (try? directory.snapshot(origin.snapshot.description).name) ?? origin.snapshot.description
                }
                return (volume, origin, pending.shownCount(of: volume.id, in: directory.pool))
            }
        }
        let targets = try await catalog.targets()
        return found.map { volume, origin, count in describe(volume, cloneOf: origin, snapshotCount: count, targets) }
    }

    private func describe(
        _ volume: VolumeRecord, cloneOf origin: String?, snapshotCount: Int, _ targets: [ExportedTarget]
    ) -> VolumeInfo {
        let id = volume.id.description
        let exports = targets.flatMap { target in
            target.luns.filter { $0.volumeID == id && $0.snapshotID == nil }
                .map { ExportInfo(iqn: target.iqn, lun: $0.lun, portals: portals) }
        }
        return VolumeInfo(
            id: id, name: volume.name, sizeBytes: volume.sizeBytes, mappedBytes: volume.mappedBytes,
            naa: volume.naa.description, createdAt: Date(poolNanoseconds: volume.createdAt), exports: exports,
            cloneOf: origin, initiators: initiators(naa: volume.naa.description), snapshotCount: snapshotCount)
    }

    /// Names of the initiators that can reach a device now, without repetition.
    func initiators(naa: String) -> [String] { Set(registry.sessions(naa: naa).map(\.initiator)).sorted() }

    // MARK: Snapshots

    /// The complete ones, oldest first, without evidence.
    ///
    /// - Parameter volume: Only those that this volume is a member of.
    func snapshots(of volume: String?) async throws -> [SnapshotInfo] {
        guard let volume else {
            let contents = try await contents()
            let names = Dictionary(uniqueKeysWithValues: contents.volumes.map { ($0.id, $0.name) })
            let clones = Dictionary(grouping: contents.volumes.filter { $0.clonedFrom != nil }) {
                $0.clonedFrom!.snapshot
            }
            return contents.snapshots.map { snapshot in
                Self.describe(
                    snapshot, contents.attributes[snapshot.id], clones: clones[snapshot.id]?.map(\.name) ?? [],
                    withEvidence: false
                ) { names[$0] }
            }
        }
        let id = try await look { try $0.volume(named: volume).id }
        let found = try await snapshotRecords(of: id)
        return try await look { directory in
            found.map { Self.describe($0.record, $0.attributes, directory, withEvidence: false) }
        }
    }

    func snapshot(_ idOrName: String) async throws -> SnapshotInfo {
        try await look { directory in
            let snapshot = try directory.snapshot(idOrName)
            return Self.describe(
                snapshot, SnapshotAttributes(bytes: snapshot.attributes), directory, withEvidence: true)
        }
    }

    private static func describe(
        _ snapshot: SnapshotRecord, _ attributes: SnapshotAttributes?, _ directory: PoolDirectory, withEvidence: Bool
    ) -> SnapshotInfo {
        describe(
            snapshot, attributes, clones: directory.pool.clones(of: snapshot.id).map(\.name), withEvidence: withEvidence
        ) { directory.volume($0)?.name }
    }

    /// A snapshot made without a saga has no attributes; it is what a crash would have left.
    private static func describe(
        _ snapshot: SnapshotRecord, _ attributes: SnapshotAttributes?, clones: [String], withEvidence: Bool,
        name: (VolumeID) -> String?
    ) -> SnapshotInfo {
        SnapshotInfo(
            id: snapshot.id.description, name: snapshot.name, kind: snapshot.kind == .user ? .user : .beforeRevert,
            volumes: snapshot.members.map { name($0.volume) ?? $0.volume.description },
            createdAt: Date(poolNanoseconds: snapshot.createdAt),
            requestedConsistency: attributes?.requested ?? .crash,
            achievedConsistency: attributes?.achieved ?? .crash, quietSeconds: attributes?.quietSeconds ?? 0,
            sizeBytes: snapshot.members.reduce(0) { $0 + $1.sizeBytes }, clones: clones,
            evidence: withEvidence ? attributes?.evidence : nil)
    }

    /// One snapshot as the API shows it; for callers that may block. Pending ones are described, too.
    static func describe(snapshot id: SnapshotID, in pool: Pool) throws -> SnapshotInfo {
        guard let record = try? pool.snapshot(id) else { throw APIFailure.unknown("snapshot", id.description) }
        return describe(
            record, SnapshotAttributes(bytes: record.attributes), PoolDirectory(pool: pool), withEvidence: true)
    }

    // MARK: Targets

    func targets() async throws -> [TargetInfo] {
        let volumes = Dictionary(uniqueKeysWithValues: try await volumeRecords().map { ($0.id, $0) })
        let sessions = registry.sessions()
        return try await catalog.targets().map { target in describe(target, sessions) { volumes[$0] } }
    }

    func target(_ iqn: String) async throws -> TargetInfo {
        let target = try await exportedTarget(iqn)
        let volumes = try await look { directory in
            target.luns.compactMap { VolumeID($0.volumeID).flatMap(directory.volume) }
        }
        return describe(target, registry.sessions()) { id in volumes.first { $0.id == id } }
    }

    func exportedTarget(_ iqn: String) async throws -> ExportedTarget {
        let name = iqn.lowercased()
        guard let target = try await catalog.targets().first(where: { $0.iqn == name }) else {
            throw APIFailure.unknown("target", iqn)
        }
        return target
    }

    private func describe(
        _ target: ExportedTarget, _ sessions: [SessionRecord], _ volume: (VolumeID) -> VolumeRecord?
    ) -> TargetInfo {
        TargetInfo(
            iqn: target.iqn, portals: portals,
            luns: target.luns.map { lun in
                let volume = VolumeID(lun.volumeID).flatMap(volume)
                return LUNInfo(
                    lun: lun.lun, volume: volume?.name ?? lun.volumeID, naa: lun.naa ?? volume?.naa.description ?? "",
                    isReadOnly: lun.snapshotID != nil)
            },
            access: target.access.map { rule in
                AccessInfo(initiator: rule.initiator, chapUser: rule.chapUser, isMutual: rule.mutualUser != nil)
            },
            sessions: sessions.filter { $0.iqn == target.iqn }
                .map(SessionInfo.init))
    }

    // MARK: Pool

    /// Without its alerts.
    static func status(_ statistics: PoolStatistics) -> PoolStatus {
        let (state, failure): (PoolStatus.State, String?) =
            switch statistics.state {
            case .healthy: (.healthy, nil)
            case .full: (.full, "the pool has no room for new writes")
            case .readOnly(let reason): (.readOnly, reason)
            }
        return PoolStatus(
            state: state, sizeBytes: statistics.sizeBytes, usedBytes: statistics.usedBytes,
            freeBytes: statistics.freeBytes, failure: failure)
    }
}

extension Date {
    /// The pool's nanoseconds since 1970, at the API's precision.
    init(poolNanoseconds: UInt64) { self.init(timeIntervalSince1970: Double(poolNanoseconds / 1_000_000) / 1000) }
}
