import API
import BlockStore
import Catalog
import Foundation
import ISCSI
import Logging
import SCSI
import Synchronization

extension Inventory {
    /// What can be refused before a job is begun; the saga checks everything else.
    func checkSnapshotRequest(_ request: SnapshotCreateRequest) async throws {
        guard !request.volumes.isEmpty else { throw APIFailure.invalid("name at least one volume") }
        guard Set(request.volumes).count == request.volumes.count else {
            throw APIFailure.invalid("a volume is named twice")
        }
        if let lease = request.leaseSeconds, !(2...60).contains(lease) {
            throw APIFailure.invalid("leaseSeconds must be from 2 to 60, not \(lease)")
        }
        let isTaken = try await look { directory in
            for name in request.volumes { _ = try directory.volume(named: name) }
            return request.name.map { directory.pool.hasSnapshot(named: $0) } ?? false
        }
        if let name = request.name {
            try Self.checkName(name, of: "snapshot")
            if isTaken {
                throw APIFailure.conflict(
                    "nameTaken", "there is a snapshot \"\(name)\" already", hint: "Choose another name")
            }
        }
    }

    /// What can be refused before a revert's job is begun.
    func checkRevertRequest(_ request: RevertRequest) async throws {
        guard !request.volumes.isEmpty else { throw APIFailure.invalid("name at least one volume") }
        guard Set(request.volumes).count == request.volumes.count else {
            throw APIFailure.invalid("a volume is named twice")
        }
        guard (request.snapshot != nil) != (request.undo ?? false) else {
            throw APIFailure.invalid("name the snapshot to revert to, or ask for undo")
        }
        let volumes = try await look { directory in
            let volumes = try request.volumes.map { try directory.volume(named: $0) }
            if let name = request.snapshot {
                let snapshot = try directory.snapshot(name)
                for volume in volumes { _ = try directory.member(volume.name, of: snapshot) }
            }
            return volumes
        }
        // A driven revert makes the initiators log out first, and a dry run tells about them.
        guard request.drive != true, request.dryRun != true else { return }
        for volume in volumes {
            try refuseWhileInUse(
                volume.name, naa: volume.naa.description, orElse: ", or let the agents do it: --drive")
        }
    }

    // MARK: Delete

    func deleteSnapshot(_ idOrName: String) async throws {
        let names = try await look { directory in
            Set(directory.members(of: try directory.snapshot(idOrName)).map(\.name))
        }
        try await exclusively(names) {
            let snapshot = try await look { try $0.snapshot(idOrName) }
            try await checkDeletable(snapshot)
            try await delete(snapshot)
            logger.notice("snapshot deleted", metadata: ["snapshot": "\(snapshot.name)"])
        }
    }

    /// - Throws: ``API/APIFailure`` where clones stand on it or somebody reads it.
    func checkDeletable(_ snapshot: SnapshotRecord) async throws {
        let clones = try await look { $0.pool.clones(of: snapshot.id).map(\.name) }
        guard clones.isEmpty else {
            throw APIFailure.conflict(
                "snapshotHasClones", "the snapshot \"\(snapshot.name)\" has clones: \(Self.list(clones))",
                hint: "Delete them first (stillpoint clone delete \(clones[0])); or, to keep a clone and do without "
                    + "the snapshot's volume, make it the owner (stillpoint clone promote \(clones[0]))")
        }
        for lun in try await exports(of: snapshot.id).flatMap(\.luns) {
            let sessions = registry.sessions(naa: lun.naa ?? "")
            guard let session = sessions.first else { continue }
            throw APIFailure.conflict(
                "snapshotInUse",
                "the snapshot \"\(snapshot.name)\" is being read by \(session.initiator) (\(session.address))",
                hint: "Detach it there first")
        }
    }

    /// The temporary targets first: none may outlive what it shows.
    func delete(_ snapshot: SnapshotRecord) async throws {
        for target in try await exports(of: snapshot.id) { try await removeExport(target) }
        let pool = pool
        try await blocking.run { try pool.deleteSnapshot(snapshot.id) }
    }

    // MARK: Exports of snapshots

    /// Most temporary targets of one snapshot.
    static let exportLimit = 16

    func exports(of snapshot: SnapshotID) async throws -> [ExportedTarget] {
        let id = snapshot.description
        return try await catalog.targets().filter { $0.luns.contains { $0.snapshotID == id } }
    }

    /// Shows one member of a snapshot, read-only, in a target that only `initiator` may reach.
    func exportSnapshot(_ idOrName: String, _ request: SnapshotExportRequest) async throws -> ExportInfo {
        let initiator = try Self.initiatorName(request.initiator)
        guard initiator != "any" else {
            throw APIFailure.invalid("a snapshot is exported to one initiator, not to any")
        }
        guard (request.chapUser != nil) == (request.chapSecret != nil) else {
            throw APIFailure.invalid("a CHAP user and its secret are given together or not at all")
        }
        if let user = request.chapUser, let secret = request.chapSecret {
            _ = try Self.credentials(user, secret, nil, nil)
        }
        return try await exclusively {
            let (snapshot, member) = try await look { directory in
                let snapshot = try directory.snapshot(idOrName)
                return (snapshot, try directory.member(request.volume, of: snapshot))
            }
            guard try await exports(of: snapshot.id).count < Self.exportLimit else {
                throw APIFailure.conflict(
                    "tooManyExports", "the snapshot \"\(snapshot.name)\" has \(Self.exportLimit) exports already",
                    hint: "Remove some: DELETE /v1/snapshots/\(snapshot.name)/exports")
            }
            let lun = ExportedLUN(
                lun: 0, volumeID: member.id.description, snapshotID: snapshot.id.description, naa: Self.exportNAA())
            let iqn = TargetName.of(export: snapshot.name)
            let context = Self.sealContext(iqn, initiator)
            let rule = AccessRule(
                initiator: initiator, chapUser: request.chapUser,
                sealedSecret: try request.chapSecret.map { try secrets.seal($0, context: context) })
            let target = ExportedTarget(
                iqn: iqn, purpose: .snapshotExport, createdAt: .now, luns: [lun], access: [rule])
            try await catalog.insertTarget(target)
            do {
                try await serve(target)
            } catch {
                try await catalog.deleteTarget(iqn: target.iqn)
                throw error
            }
            logger.notice(
                "snapshot exported",
                metadata: ["snapshot": "\(snapshot.name)", "target": "\(target.iqn)", "initiator": "\(initiator)"])
            return ExportInfo(iqn: target.iqn, lun: 0, portals: portals)
        }
    }

    /// Removes one export of a snapshot, or all; sessions end. Removing what is not there is no error.
    func removeExports(_ idOrName: String, iqn: String?) async throws {
        try await exclusively {
            let snapshot = try await look { try $0.snapshot(idOrName) }
            for target in try await exports(of: snapshot.id) where iqn == nil || target.iqn == iqn?.lowercased() {
                try await removeExport(target)
            }
        }
    }

    /// An export that nobody has had a session with for this long is removed: whoever asked for it is gone.
    static let exportIdleSeconds = 3_600.0

    /// Removes exports that are not used. `startedAt` is when this process began: what was in use before is not known.
    func removeIdleExports(startedAt: Date, now: Date = .now) async throws {
        let used = Set(registry.sessions().map(\.iqn))
        let exports = try await catalog.targets().filter { $0.purpose == .snapshotExport }
        let idle = exportUse.withLock { lastUse in
            for target in exports where used.contains(target.iqn) { lastUse[target.iqn] = now }
            lastUse = lastUse.filter { iqn, _ in exports.contains { $0.iqn == iqn } }
            return exports.filter { target in
                let since = max(target.createdAt, startedAt, lastUse[target.iqn] ?? .distantPast)
                return !used.contains(target.iqn) && now.timeIntervalSince(since) > Self.exportIdleSeconds
            }
        }
        guard !idle.isEmpty else { return }
        try await exclusively {
            for target in idle where !registry.sessions().contains(where: { $0.iqn == target.iqn }) {
                try await removeExport(target)
            }
        }
    }

    private func removeExport(_ target: ExportedTarget) async throws {
        try? registry.removeTarget(target.iqn)
        try await catalog.deleteTarget(iqn: target.iqn)
        for naa in target.luns.compactMap(\.naa) { try await forgetReservations(of: naa) }
        logger.notice("snapshot's export removed", metadata: ["target": "\(target.iqn)"])
    }

    /// A name of its own for each export: it must never be taken for the volume. The company id is the pool's
    /// (5A5350h, locally administered); 100 random bits tell it from every other.
    private static func exportNAA() -> String {
        let random = (0..<13).map { _ in UInt8.random(in: .min ... .max) }.hexadecimal
        return "65a5350" + random.prefix(25)
    }
}
