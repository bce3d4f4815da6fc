import API
import BlockStore
import Catalog
import Foundation
import ISCSI

// The pool's and the catalog's records as the API shows them.

extension Inventory {
    func volumes() async throws -> [VolumeInfo] {
        let contents = try await contents()
        let targets = try await catalog.targets()
        return contents.volumes.map { describe($0, contents, targets) }
    }

    func clones() async throws -> [VolumeInfo] { try await volumes().filter { $0.cloneOf != nil } }

    func volume(_ name: String) async throws -> VolumeInfo {
        let contents = try await contents()
        return describe(try contents.volume(named: name), contents, try await catalog.targets())
    }

    func describe(_ volume: VolumeRecord, _ contents: Contents, _ targets: [ExportedTarget]) -> VolumeInfo {
        let id = volume.id.description
        let exports = targets.flatMap { target in
            target.luns.filter { $0.volumeID == id && $0.snapshotID == nil }
                .map { ExportInfo(iqn: target.iqn, lun: $0.lun, portals: portals) }
        }
        let origin = volume.clonedFrom.map { origin in
            contents.snapshots.first { $0.id == origin.snapshot }?.name ?? origin.snapshot.description
        }
        return VolumeInfo(
            id: id, name: volume.name, sizeBytes: volume.sizeBytes, mappedBytes: volume.mappedBytes,
            naa: volume.naa.description, createdAt: Date(poolNanoseconds: volume.createdAt), exports: exports,
            cloneOf: origin, initiators: initiators(naa: volume.naa.description),
            snapshotCount: contents.snapshots.count { $0.members.contains { $0.volume == volume.id } })
    }

    /// Names of the initiators that can reach a device now, without repetition.
    func initiators(naa: String) -> [String] { Set(registry.sessions(naa: naa).map(\.initiator)).sorted() }

    // MARK: Snapshots

    /// The complete ones, oldest first, without evidence.
    ///
    /// - Parameter volume: Only those that this volume is a member of.
    func snapshots(of volume: String?) async throws -> [SnapshotInfo] {
        let contents = try await contents()
        let id = try volume.map { try contents.volume(named: $0).id }
        return contents.snapshots
            .filter { snapshot in id.map { id in snapshot.members.contains { $0.volume == id } } ?? true }
            .map { Self.describe($0, contents, withEvidence: false) }
    }

    func snapshot(_ idOrName: String) async throws -> SnapshotInfo {
        let contents = try await contents()
        return Self.describe(try contents.snapshot(idOrName), contents, withEvidence: true)
    }

    /// A snapshot made without a saga has no attributes; it is what a crash would have left.
    static func describe(_ snapshot: SnapshotRecord, _ contents: Contents, withEvidence: Bool) -> SnapshotInfo {
        let attributes = contents.attributes[snapshot.id]
        return SnapshotInfo(
            id: snapshot.id.description, name: snapshot.name, kind: snapshot.kind == .user ? .user : .beforeRevert,
            volumes: snapshot.members.map { contents.volume($0.volume)?.name ?? $0.volume.description },
            createdAt: Date(poolNanoseconds: snapshot.createdAt),
            requestedConsistency: attributes?.requested ?? .crash,
            achievedConsistency: attributes?.achieved ?? .crash, quietSeconds: attributes?.quietSeconds ?? 0,
            sizeBytes: snapshot.members.reduce(0) { $0 + $1.sizeBytes },
            clones: contents.clones(of: snapshot.id).map(\.name),
            evidence: withEvidence ? attributes?.evidence : nil)
    }

    /// One snapshot as the API shows it; for callers that may block. Pending ones are described, too.
    static func describe(snapshot id: SnapshotID, in pool: Pool) throws -> SnapshotInfo {
        guard let record = try? pool.snapshot(id) else { throw APIFailure.unknown("snapshot", id.description) }
        return describe(record, Contents(volumes: pool.volumes(), snapshots: [record]), withEvidence: true)
    }

    // MARK: Targets

    func targets() async throws -> [TargetInfo] {
        let contents = try await contents()
        let sessions = registry.sessions()
        return try await catalog.targets().map { describe($0, contents, sessions) }
    }

    func target(_ iqn: String) async throws -> TargetInfo {
        describe(try await exportedTarget(iqn), try await contents(), registry.sessions())
    }

    func exportedTarget(_ iqn: String) async throws -> ExportedTarget {
        let name = iqn.lowercased()
        guard let target = try await catalog.targets().first(where: { $0.iqn == name }) else {
            throw APIFailure.unknown("target", iqn)
        }
        return target
    }

    private func describe(
        _ target: ExportedTarget, _ contents: Contents, _ sessions: [SessionRecord]
    ) -> TargetInfo {
        TargetInfo(
            iqn: target.iqn, portals: portals,
            luns: target.luns.map { lun in
                let volume = VolumeID(lun.volumeID).flatMap(contents.volume)
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
