import API
import BlockStore
import Catalog
import Foundation
import ISCSI
import Logging
import SCSI

extension Inventory {
    /// Sizes that a volume can have, in bytes: multiples of 4096 up to 64 TiB.
    static let volumeSizeRange: ClosedRange<UInt64> = 4096...(64 << 40)

    /// Makes a volume and, unless the request says otherwise, a target of its own with the volume as LUN 0.
    func createVolume(_ request: VolumeCreateRequest) async throws -> VolumeInfo {
        try Self.checkName(request.name, of: "volume")
        try Self.checkSize(request.sizeBytes)
        return try await exclusively {
            if try await look({ $0.hasVolume(named: request.name) }) {
                throw APIFailure.conflict(
                    "volumeExists", "there is a volume \"\(request.name)\" already",
                    hint: "Choose another name; stillpoint volume show \(request.name) shows the one that is there")
            }
            let id = VolumeID.random()
            let target = request.export ?? true ? try await newTarget(for: request.name, id: id) : nil
            let pool = pool
            return try await publish(target, as: request.name) {
                try pool.createVolume(id: id, name: request.name, sizeBytes: request.sizeBytes)
            }
        }
    }

    /// Clones a member of a snapshot into a volume with an identity of its own.
    func createClone(_ request: CloneRequest) async throws -> VolumeInfo {
        try Self.checkName(request.name, of: "clone")
        return try await exclusively {
            let (snapshot, member, isTaken) = try await look { directory in
                let snapshot = try directory.snapshot(request.snapshot)
                let member = try directory.member(request.volume, of: snapshot)
                return (snapshot, member, directory.hasVolume(named: request.name))
            }
            if isTaken {
                throw APIFailure.conflict(
                    "volumeExists", "there is a volume \"\(request.name)\" already", hint: "Choose another name")
            }
            let id = VolumeID.random()
            let target = request.export ?? true ? try await newTarget(for: request.name, id: id) : nil
            let pool = pool
            return try await publish(target, as: request.name) {
                try pool.clone(snapshot: snapshot.id, volume: member.id, newID: id, name: request.name)
            }
        }
    }

    /// Catalog, pool, target, in this order: see ``Inventory``.
    private func publish(
        _ target: ExportedTarget?, as name: String, _ make: @escaping @Sendable () throws -> VolumeRecord
    ) async throws -> VolumeInfo {
        if let target { try await catalog.insertTarget(target) }
        do {
            _ = try await blocking.run(make)
        } catch {
            if let target { try await catalog.deleteTarget(iqn: target.iqn) }
            throw error
        }
        if let target { try await serve(target) }
        logger.notice("volume created", metadata: ["volume": "\(name)", "target": "\(target?.iqn ?? "-")"])
        return try await volume(name)
    }

    /// A target for a volume, with a name that no other target has.
    private func newTarget(for name: String, id: VolumeID) async throws -> ExportedTarget {
        let taken = Set(try await catalog.targets().map(\.iqn))
        var iqn = TargetName.of(volume: name)
        if taken.contains(iqn) { iqn += "." + id.description.prefix(8) }
        return ExportedTarget(
            iqn: iqn, purpose: .volume, createdAt: .now, luns: [ExportedLUN(lun: 0, volumeID: id.description)])
    }

    // MARK: Resize

    /// Grows a volume; sessions learn of it through a unit attention.
    func resizeVolume(_ name: String, _ request: VolumeResizeRequest) async throws -> VolumeInfo {
        try Self.checkSize(request.sizeBytes)
        return try await exclusively([name]) {
            let volume = try await look { try $0.volume(named: name) }
            guard request.sizeBytes >= volume.sizeBytes else {
                throw APIFailure(
                    status: 400, code: "shrinkRefused",
                    message: "the volume \"\(name)\" has \(byteText(volume.sizeBytes)); shrinking it would lose data",
                    hint: "Make a smaller volume and copy what is needed")
            }
            let pool = pool
            try await blocking.run { try pool.resizeVolume(volume.id, sizeBytes: request.sizeBytes) }
            registry.deviceResized(naa: volume.naa.description)
            logger.notice(
                "volume resized", metadata: ["volume": "\(name)", "sizeBytes": "\(request.sizeBytes)"])
            return try await self.volume(name)
        }
    }

    // MARK: Delete

    /// Deletes a volume with its targets; refused while an initiator has a session or, unless `withSnapshots`, while
    /// it has snapshots.
    ///
    /// - Parameter onlyClones: Refuse a volume that is no clone.
    func deleteVolume(_ name: String, withSnapshots: Bool, onlyClones: Bool = false) async throws {
        try await exclusively([name]) {
            let volume = try await look { try $0.volume(named: name) }
            if onlyClones, volume.clonedFrom == nil {
                throw APIFailure(
                    status: 404, code: "cloneNotFound", message: "the volume \"\(name)\" is no clone",
                    hint: "stillpoint volume delete \(name) deletes a volume that is none")
            }
            let naa = volume.naa.description
            // From here on no initiator comes in; the check below cannot be outrun.
            registry.blockLogins(naa: naa)
            defer { registry.unblockLogins(naa: naa) }
            try refuseWhileInUse(name, naa: naa)
            let doomed = try await snapshotsToDelete(with: volume, isWanted: withSnapshots)
            for snapshot in doomed { try await delete(snapshot) }
            try await unserve(volume: volume.id)
            let pool = pool
            do {
                try await blocking.run { try pool.deleteVolume(volume.id) }
            } catch {
                try await serveAgain(volume: volume.id)
                throw error
            }
            try await forgetTargets(of: volume.id.description)
            try await forgetReservations(of: naa)
            logger.notice("volume deleted", metadata: ["volume": "\(name)", "snapshots": "\(doomed.count)"])
        }
    }

    /// - Throws: ``API/APIFailure`` `volumeInUse`, naming the initiators.
    func refuseWhileInUse(_ name: String, naa: String, orElse alternative: String = "") throws {
        let sessions = registry.sessions(naa: naa)
        guard !sessions.isEmpty else { return }
        let who = Set(sessions.map { "\($0.initiator) (\($0.address))" }).sorted().joined(separator: ", ")
        throw APIFailure.conflict(
            "volumeInUse", "the volume \"\(name)\" is in use by \(who)",
            hint: "Unmount it and log the initiator out first\(alternative)")
    }

    /// The snapshots that go with a volume, all checked before any is deleted.
    private func snapshotsToDelete(
        with volume: VolumeRecord, isWanted: Bool
    ) async throws -> [SnapshotRecord] {
        let snapshots = try await snapshotRecords(of: volume.id).map(\.record)
        guard !snapshots.isEmpty else { return [] }
        guard isWanted else {
            throw APIFailure.conflict(
                "volumeHasSnapshots",
                "the volume \"\(volume.name)\" has \(snapshots.count == 1 ? "a snapshot" : "snapshots"): "
                    + Self.list(snapshots.map(\.name)),
                hint: "Delete them first, or delete the volume with its snapshots (--with-snapshots)")
        }
        for snapshot in snapshots {
            let others = try await look { $0.members(of: snapshot).filter { $0.id != volume.id } }
            guard others.isEmpty else {
                throw APIFailure.conflict(
                    "snapshotShared",
                    "the snapshot \"\(snapshot.name)\" also holds \(Self.list(others.map(\.name)))",
                    hint: "Delete it by itself if it is not needed: stillpoint snapshot delete \(snapshot.name)")
            }
            try await checkDeletable(snapshot)
        }
        return snapshots
    }

    // MARK: Checks

    /// What the pool takes as a name, said before anything is begun.
    static func checkName(_ name: String, of noun: String) throws {
        let isLegal = name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || "._:@-".contains($0)) }
        guard isLegal, (1...128).contains(name.utf8.count) else {
            throw APIFailure(
                status: 400, code: "invalidName",
                message: "\"\(name.prefix(140))\" is no name for a \(noun)",
                hint: "1 to 128 characters of letters, digits and . _ : @ -")
        }
    }

    static func checkSize(_ sizeBytes: UInt64) throws {
        guard volumeSizeRange.contains(sizeBytes), sizeBytes % 4096 == 0 else {
            throw APIFailure(
                status: 400, code: "invalidSize", message: "\(sizeBytes) bytes is no size for a volume",
                hint: "A multiple of 4096 from 4096 bytes to 64 TiB")
        }
    }

    /// A list that stays readable.
    static func list(_ names: [String]) -> String {
        names.count <= 8
            ? names.joined(separator: ", ") : names.prefix(8).joined(separator: ", ") + " and \(names.count - 8) more"
    }
}

/// Names of the node's targets (RFC 7143 4.2.7.3).
enum TargetName {
    static let authority = "iqn.2026-11.io.stillpoint:"

    /// Lower case, and characters that an IQN may not have become `-`.
    static func of(volume name: String) -> String { authority + legal(name) }

    /// A target for a read-only export of a snapshot; unguessable, and never one of a volume's.
    static func of(export snapshot: String) -> String {
        authority + "snapshot:" + legal(snapshot) + ":" + UUID().uuidString.lowercased().prefix(8)
    }

    private static func legal(_ name: String) -> String {
        String(name.lowercased().map { $0.isASCII && ($0.isLetter || $0.isNumber || ".:-".contains($0)) ? $0 : "-" })
    }
}
