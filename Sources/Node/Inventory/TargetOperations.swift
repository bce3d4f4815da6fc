import API
import BlockIO
import BlockStore
import Catalog
import Foundation
import ISCSI
import Logging
import SCSI

extension Inventory {
    // MARK: Access

    /// Lets an initiator in, or changes its CHAP credentials for later logins.
    func allow(_ iqn: String, _ request: TargetAllowRequest) async throws -> TargetInfo {
        let initiator = try Self.initiatorName(request.initiator)
        let chap = try Self.credentials(request)
        return try await exclusively {
            let target = try await exportedTarget(iqn)
            guard target.purpose == .volume else {
                throw APIFailure.conflict(
                    "exportIsPrivate", "\(target.iqn) shows a snapshot to one initiator; others cannot be let in",
                    hint: "Export the snapshot once more, for the other initiator")
            }
            let rule = try sealedRule(request, initiator: initiator, context: Self.sealContext(target.iqn, initiator))
            try registry.allow(target.iqn, initiator: Self.registryRule(initiator), chap: chap)
            do {
                try await catalog.setAccess(rule, iqn: target.iqn)
            } catch {
                // Closed rather than open: what is not recorded is not allowed.
                try? registry.deny(target.iqn, initiator: Self.registryRule(initiator))
                throw error
            }
            logger.notice(
                "initiator allowed",
                metadata: ["target": "\(target.iqn)", "initiator": "\(initiator)", "chap": "\(chap != nil)"])
            return try await self.target(target.iqn)
        }
    }

    /// Takes a rule back; the sessions that stood on it end.
    func deny(_ iqn: String, _ request: TargetDenyRequest) async throws -> TargetInfo {
        let initiator = try Self.initiatorName(request.initiator)
        return try await exclusively {
            let target = try await exportedTarget(iqn)
            guard target.access.contains(where: { $0.initiator == initiator }) else {
                throw APIFailure(
                    status: 404, code: "ruleNotFound",
                    message: "\(target.iqn) has no rule for \(initiator)",
                    hint: "stillpoint target show \(target.iqn) shows its rules")
            }
            do {
                try registry.deny(target.iqn, initiator: Self.registryRule(initiator))
            } catch TargetError.noSuchRule {
                // A rule whose secret did not open was never given to the target.
            }
            _ = try await catalog.deleteAccess(iqn: target.iqn, initiator: initiator)
            logger.notice("initiator denied", metadata: ["target": "\(target.iqn)", "initiator": "\(initiator)"])
            return try await self.target(target.iqn)
        }
    }

    /// `any`, or an iSCSI name in lower case.
    static func initiatorName(_ text: String) throws -> String {
        let name = text.lowercased()
        if name == "any" { return name }
        let isLegal = name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || ".:-".contains($0)) }
        guard isLegal, name.utf8.count <= 223, ["iqn.", "eui.", "naa."].contains(String(name.prefix(4))) else {
            throw APIFailure(
                status: 400, code: "invalidInitiator", message: "\"\(text.prefix(240))\" is no initiator name",
                hint: "E.g. iqn.1993-08.org.debian:01:abc, as in /etc/iscsi/initiatorname.iscsi, or any")
        }
        return name
    }

    static func registryRule(_ initiator: String) -> InitiatorRule {
        initiator == "any" ? .any : .named(initiator)
    }

    static func sealContext(_ iqn: String, _ initiator: String) -> String { "\(iqn)/\(initiator)" }

    static func credentials(_ request: TargetAllowRequest) throws -> CHAPCredentials? {
        guard (request.chapUser != nil) == (request.chapSecret != nil),
            (request.mutualUser != nil) == (request.mutualSecret != nil)
        else { throw APIFailure.invalid("a CHAP user and its secret are given together or not at all") }
        guard let user = request.chapUser, let secret = request.chapSecret else {
            guard request.mutualUser == nil else {
                throw APIFailure.invalid("mutual CHAP needs the initiator's user and secret, too")
            }
            return nil
        }
        return try credentials(user, secret, request.mutualUser, request.mutualSecret)
    }

    static func credentials(
        _ user: String, _ secret: String, _ mutualUser: String?, _ mutualSecret: String?
    ) throws -> CHAPCredentials {
        do throws(CHAPCredentials.Invalid) {
            var mutual: CHAPCredentials.Mutual?
            if let mutualUser, let mutualSecret {
                mutual = .init(user: mutualUser, secret: Array(mutualSecret.utf8))
            }
            return try CHAPCredentials(user: user, secret: Array(secret.utf8), mutual: mutual)
        } catch {
            switch error {
            case .user: throw APIFailure.invalid("a CHAP user is 1 to 255 bytes without control characters")
            case .secretLength(let count):
                throw APIFailure.invalid("a CHAP secret has 12 to 255 bytes, not \(count)")
            case .sameSecret: throw APIFailure.invalid("the two directions of CHAP must not share a secret")
            }
        }
    }

    // MARK: Serving

    /// Gives a recorded target to the iSCSI target: all of it or nothing.
    func serve(_ target: ExportedTarget) async throws {
        try registry.addTarget(target.iqn)
        do {
            for lun in target.luns {
                let (device, identity) = try await device(of: lun)
                try registry.addLUN(
                    target.iqn, lun: lun.lun, device: device, identity: identity, isReadOnly: lun.snapshotID != nil)
            }
            for rule in target.access { allowRecorded(rule, iqn: target.iqn) }
        } catch {
            try? registry.removeTarget(target.iqn)
            throw error
        }
    }

    /// A rule as the catalog keeps it: its secrets sealed for this place only.
    func sealedRule(_ request: TargetAllowRequest, initiator: String, context: String) throws -> AccessRule {
        AccessRule(
            initiator: initiator, chapUser: request.chapUser,
            sealedSecret: try request.chapSecret.map { try secrets.seal($0, context: context) },
            mutualUser: request.mutualUser,
            sealedMutualSecret: try request.mutualSecret.map { try secrets.seal($0, context: context + "/mutual") })
    }

    /// The credentials of a recorded rule; nil for one without CHAP.
    func opened(_ rule: AccessRule, context: String) throws -> CHAPCredentials? {
        guard let user = rule.chapUser else { return nil }
        guard let sealed = rule.sealedSecret else { throw FileFailure(message: "its CHAP secret is missing") }
        return try Self.credentials(
            user, try secrets.open(sealed, context: context), rule.mutualUser,
            try rule.sealedMutualSecret.map { try secrets.open($0, context: context + "/mutual") })
    }

    /// A rule whose secret does not open stays closed, and is named in the log.
    private func allowRecorded(_ rule: AccessRule, iqn: String) {
        do {
            let chap = try opened(rule, context: Self.sealContext(iqn, rule.initiator))
            try registry.allow(iqn, initiator: Self.registryRule(rule.initiator), chap: chap)
        } catch {
            logger.error(
                "a rule stays closed",
                metadata: ["target": "\(iqn)", "initiator": "\(rule.initiator)", "reason": "\(error)"])
        }
    }

    private func device(of lun: ExportedLUN) async throws -> (any BlockDevice, LogicalUnitIdentity) {
        guard let volumeID = VolumeID(lun.volumeID) else {
            throw APIFailure.unknown("volume", lun.volumeID)
        }
        let pool = pool
        if let text = lun.snapshotID {
            guard let snapshotID = SnapshotID(text), let naa = lun.naa else {
                throw APIFailure.unknown("snapshot", text)
            }
            let device = try await blocking.run { try pool.device(of: snapshotID, volume: volumeID) }
            return (device, try LogicalUnitIdentity(naa: naa, serial: Self.serial(naa)))
        }
        return try await blocking.run {
            guard let volume = try? pool.volume(volumeID) else {
                throw APIFailure.unknown("volume", lun.volumeID)
            }
            let naa = volume.naa.description
            return (
                try pool.device(of: volumeID), try LogicalUnitIdentity(naa: naa, serial: Self.serial(naa))
            )
        }
    }

    /// The unit serial number: what follows the company id in the NAA name.
    private static func serial(_ naa: String) -> String { String(naa.dropFirst(7)) }

    /// Takes a volume's LUNs from the iSCSI target; a target without LUNs goes. The catalog is left as it is.
    func unserve(volume: VolumeID) async throws {
        for target in try await targets(of: volume) {
            if target.luns.allSatisfy({ $0.volumeID == volume.description }) {
                try? registry.removeTarget(target.iqn)
            } else {
                for lun in target.luns where lun.volumeID == volume.description {
                    try? registry.removeLUN(target.iqn, lun: lun.lun)
                }
            }
        }
    }

    /// Undoes ``unserve(volume:)``.
    func serveAgain(volume: VolumeID) async throws {
        for target in try await targets(of: volume) {
            try? registry.removeTarget(target.iqn)
            try await serve(target)
        }
    }

    private func targets(of volume: VolumeID) async throws -> [ExportedTarget] {
        let id = volume.description
        return try await catalog.targets().filter { $0.luns.contains { $0.volumeID == id && $0.snapshotID == nil } }
    }

    /// Forgets the LUNs of a volume that is gone, and targets that have none left.
    func forgetTargets(of volumeID: String) async throws {
        for target in try await catalog.targets() where target.luns.contains(where: { $0.volumeID == volumeID }) {
            let rest = target.luns.filter { $0.volumeID != volumeID }
            if rest.isEmpty {
                try await catalog.deleteTarget(iqn: target.iqn)
            } else {
                for lun in target.luns where lun.volumeID == volumeID {
                    try await catalog.deleteLUN(iqn: target.iqn, lun: lun.lun)
                }
            }
        }
    }

    // MARK: Start of the node

    /// Brings the catalog in line with the pool, then gives all targets to the iSCSI target.
    func reconcile() async throws {
        try await serveDiscoveryRules()
        let contents = try await contents()
        let volumes = Set(contents.volumes.map(\.id.description))
        let members = Dictionary(
            uniqueKeysWithValues: contents.snapshots.map { snapshot in
                (snapshot.id.description, Set(snapshot.members.map(\.volume.description)))
            })
        for target in try await catalog.targets() {
            let (kept, lost) = target.luns.partitioned { lun in
                lun.snapshotID.map { members[$0]?.contains(lun.volumeID) ?? false } ?? volumes.contains(lun.volumeID)
            }
            if kept.isEmpty {
                logger.notice("a target without LUNs is removed", metadata: ["target": "\(target.iqn)"])
                try await catalog.deleteTarget(iqn: target.iqn)
                continue
            }
            for lun in lost {
                logger.notice(
                    "a LUN to nothing is removed", metadata: ["target": "\(target.iqn)", "lun": "\(lun.lun)"])
                try await catalog.deleteLUN(iqn: target.iqn, lun: lun.lun)
            }
            var served = target
            served.luns = kept
            do {
                try await serve(served)
            } catch TargetError.reservationsUnreadable(let naa, let reason) {
                // Closed rather than open to everybody; the other targets are no worse for it.
                logger.error(
                    "a target stays closed: nobody knows who may write to one of its volumes",
                    metadata: ["target": "\(target.iqn)", "device": "\(naa)", "reason": "\(reason)"])
            }
        }
        let exports = try await catalog.targets().flatMap { $0.luns.compactMap(\.naa) }
        try await catalog.keepReservations(onlyOf: Set(exports + contents.volumes.map(\.naa.description)))
    }
}

extension Array {
    fileprivate func partitioned(_ isKept: (Element) -> Bool) -> (kept: [Element], lost: [Element]) {
        (filter(isKept), filter { !isKept($0) })
    }
}
