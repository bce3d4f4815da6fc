import API
import BlockStore
import Catalog
import Foundation
import ISCSI
import Logging
import SCSI
import Synchronization

/// Volumes, snapshots and targets as one thing: what the pool holds, what the catalog says about its exports, and who
/// is logged in at the target.
///
/// The pool is the truth about volumes and snapshots, the catalog about targets. An operation that touches both writes
/// the catalog's reference *before* the volume exists and removes it *after* the volume is gone, so that a crash in
/// between leaves at most a reference to nothing, which ``reconcile()`` removes at the next start. Operations run one
/// after another; each is O(1).
final class Inventory: Sendable {
    let pool: Pool
    let registry: TargetRegistry
    let catalog: Catalog
    let secrets: SecretBox
    /// Shared with the sagas: who works on which volume.
    let reservations: VolumeReservations
    let blocking: BlockingCalls
    /// How the configuration wants portal groups to begin; `optimized` where it says nothing.
    let configuredAccess: [UInt16: PortalAccess]
    let logger: Logger
    /// Makes operations run one after another.
    private let gate = VolumeReservations()
    private let portalAddresses = Mutex<[UInt16: [String]]>([:])
    private let decoded = DecodedAttributes()
    /// Streams that are under way.
    let streams = Mutex<Int>(0)
    /// When an export of a snapshot last had a session.
    let exportUse = Mutex<[String: Date]>([:])

    init(
        pool: Pool, registry: TargetRegistry, catalog: Catalog, secrets: SecretBox, reservations: VolumeReservations,
        blocking: BlockingCalls, configuredAccess: [UInt16: PortalAccess] = [:], logger: Logger
    ) {
        self.pool = pool
        self.registry = registry
        self.catalog = catalog
        self.secrets = secrets
        self.reservations = reservations
        self.blocking = blocking
        self.configuredAccess = configuredAccess
        self.logger = logger
    }

    /// `HOST:PORT` of the portals, known once the target listens.
    var portals: [String] { portalsByGroup.sorted { $0.key < $1.key }.flatMap(\.value) }

    /// The same, by portal group.
    var portalsByGroup: [UInt16: [String]] {
        get { portalAddresses.withLock { $0 } }
        set { portalAddresses.withLock { $0 = newValue } }
    }

    // MARK: One at a time

    /// How long an operation waits for a saga on the same volume before it is refused.
    private static let patienceSeconds = 5.0

    /// Runs `body` alone, and while no saga works on `volumes`.
    ///
    /// - Throws: ``API/APIFailure`` `volumeBusy` where a saga keeps one of the volumes too long.
    func exclusively<Value: Sendable>(
        _ volumes: Set<String> = [], _ body: () async throws -> Value
    ) async throws -> Value {
        try await reserve(volumes)
        do {
            try await gate.acquire(["inventory"])
        } catch {
            await reservations.release(volumes)
            throw error
        }
        let outcome: Result<Value, any Error>
        do {
            outcome = .success(try await body())
        } catch {
            outcome = .failure(error)
        }
        await gate.release(["inventory"])
        await reservations.release(volumes)
        return try outcome.get()
    }

    private func reserve(_ volumes: Set<String>) async throws {
        guard !volumes.isEmpty else { return }
        let reservations = reservations
        let acquiring = Task { try await reservations.acquire(volumes) }
        let timer = Task {
            try await Task.sleep(for: .seconds(Self.patienceSeconds))
            acquiring.cancel()
        }
        defer { timer.cancel() }
        do {
            try await withTaskCancellationHandler {
                try await acquiring.value
            } onCancel: {
                acquiring.cancel()
            }
        } catch is CancellationError {
            throw APIFailure.conflict(
                "volumeBusy", "a snapshot or revert is at work on \(volumes.sorted().joined(separator: ", "))",
                hint: "stillpoint job list shows it; try again when it has ended")
        }
    }

    // MARK: The pool's records at one moment

    /// What the pool holds now. Two calls may differ; one operation uses one.
    struct Contents: Sendable {
        var volumes: [VolumeRecord]
        /// Complete ones only.
        var snapshots: [SnapshotRecord]
        /// Those that a saga is still making.
        var pending: [SnapshotRecord]
        /// Of those that a saga made.
        var attributes: [SnapshotID: SnapshotAttributes]
        private var byID: [VolumeID: VolumeRecord]

        init(
            volumes: [VolumeRecord], snapshots all: [SnapshotRecord],
            decode: (SnapshotRecord) -> SnapshotAttributes? = { SnapshotAttributes(bytes: $0.attributes) }
        ) {
            self.volumes = volumes
            byID = Dictionary(uniqueKeysWithValues: volumes.map { ($0.id, $0) })
            var attributes: [SnapshotID: SnapshotAttributes] = [:]
            for snapshot in all { attributes[snapshot.id] = decode(snapshot) }
            snapshots = all.filter { attributes[$0.id]?.state != .pending }
            pending = all.filter { attributes[$0.id]?.state == .pending }
            self.attributes = attributes
        }

        func volume(_ id: VolumeID) -> VolumeRecord? { byID[id] }

        func volume(named name: String) throws -> VolumeRecord {
            guard let volume = volumes.first(where: { $0.name == name }) else {
                throw APIFailure.unknown("volume", name)
            }
            return volume
        }

        func snapshot(_ idOrName: String) throws -> SnapshotRecord {
            let byID = SnapshotID(idOrName).flatMap { id in snapshots.first { $0.id == id } }
            guard let found = byID ?? snapshots.first(where: { $0.name == idOrName }) else {
                throw APIFailure.unknown("snapshot", idOrName)
            }
            return found
        }

        func clones(of snapshot: SnapshotID) -> [VolumeRecord] {
            volumes.filter { $0.clonedFrom?.snapshot == snapshot }
        }

        /// The member that is meant where a request may leave it out.
        func member(_ name: String?, of snapshot: SnapshotRecord) throws -> VolumeRecord {
            let members = snapshot.members.compactMap { volume($0.volume) }
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

    func contents() async throws -> Contents {
        let pool = pool
        let decoded = decoded
        return try await blocking.run {
            let snapshots = pool.snapshots()
            return decoded.withEntries(of: snapshots) { decode in
                Contents(volumes: pool.volumes(), snapshots: snapshots, decode: decode)
            }
        }
    }
}

/// Attributes that were decoded before: evidence is large, and lists are asked for often.
final class DecodedAttributes: Sendable {
    private struct Entry {
        var bytes: [UInt8]
        var attributes: SnapshotAttributes?
    }

    private let entries = Mutex<[SnapshotID: Entry]>([:])

    /// Gives `body` a decoder, and forgets snapshots that are gone.
    func withEntries<Value: Sendable>(
        of snapshots: [SnapshotRecord], _ body: ((SnapshotRecord) -> SnapshotAttributes?) -> Value
    ) -> Value {
        let known = entries.withLock { $0 }
        var next: [SnapshotID: Entry] = [:]
        let value = body { snapshot in
            // Arrays of the same storage are equal at once, and the pool hands out the ones it keeps.
            if let entry = known[snapshot.id], entry.bytes == snapshot.attributes {
                next[snapshot.id] = entry
                return entry.attributes
            }
            let attributes = SnapshotAttributes(bytes: snapshot.attributes)
            next[snapshot.id] = Entry(bytes: snapshot.attributes, attributes: attributes)
            return attributes
        }
        entries.withLock { $0 = next }
        return value
    }
}
