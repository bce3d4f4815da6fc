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
/// after another. What concerns one volume or snapshot finds it through ``look(_:)`` and costs nothing for the others;
/// only lists, and what looks into all evidence, gather the ``contents()``.
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
    let pending = PendingSnapshots()
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

    // MARK: The pool's records

    /// Finds single objects, on a thread that may block.
    func look<Value: Sendable>(_ body: @escaping @Sendable (PoolDirectory) throws -> Value) async throws -> Value {
        let directory = PoolDirectory(pool: pool)
        return try await blocking.run { try body(directory) }
    }

    /// All volumes, by name.
    func volumeRecords() async throws -> [VolumeRecord] { try await look { $0.pool.volumes() } }

    /// The complete snapshots of a volume, oldest first, with what was decoded of their attributes.
    func snapshotRecords(
        of volume: VolumeID
    ) async throws -> [(record: SnapshotRecord, attributes: SnapshotAttributes?)] {
        let decoded = decoded
        return try await look { directory in
            decoded.decode(directory.pool.snapshots(of: volume), in: directory.pool)
                .filter { $0.attributes?.state != .pending }
        }
    }

    /// Everything that the pool holds now, for lists. Two calls may differ; one operation uses one.
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
            volumes: [VolumeRecord], snapshots all: [(record: SnapshotRecord, attributes: SnapshotAttributes?)]
        ) {
            self.volumes = volumes
            byID = Dictionary(uniqueKeysWithValues: volumes.map { ($0.id, $0) })
            attributes = [:]
            for (record, found) in all { attributes[record.id] = found }
            snapshots = all.filter { $0.attributes?.state != .pending }.map(\.record)
            pending = all.filter { $0.attributes?.state == .pending }.map(\.record)
        }

        func volume(_ id: VolumeID) -> VolumeRecord? { byID[id] }

        func snapshot(_ idOrName: String) throws -> SnapshotRecord {
            let byID = SnapshotID(idOrName).flatMap { id in snapshots.first { $0.id == id } }
            guard let found = byID ?? snapshots.first(where: { $0.name == idOrName }) else {
                throw APIFailure.unknown("snapshot", idOrName)
            }
            return found
        }
    }

    func contents() async throws -> Contents {
        let (pool, decoded, pending) = (pool, decoded, pending)
        return try await blocking.run {
            let contents = Contents(volumes: pool.volumes(), snapshots: decoded.decode(pool.snapshots(), in: pool))
            for snapshot in contents.pending { pending.insert(snapshot.id) }
            return contents
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

    /// Snapshots with their attributes. What is kept of those that are gone stays a part of what there are.
    func decode(
        _ snapshots: [SnapshotRecord], in pool: Pool
    ) -> [(record: SnapshotRecord, attributes: SnapshotAttributes?)] {
        let known = entries.withLock { $0 }
        var new: [SnapshotID: Entry] = [:]
        let result = snapshots.map { snapshot in
            // Arrays of the same storage are equal at once, and the pool hands out the ones it keeps.
            if let entry = known[snapshot.id], entry.bytes == snapshot.attributes {
                return (snapshot, entry.attributes)
            }
            let attributes = SnapshotAttributes(bytes: snapshot.attributes)
            new[snapshot.id] = Entry(bytes: snapshot.attributes, attributes: attributes)
            return (snapshot, attributes)
        }
        guard !new.isEmpty else { return result }
        let isLarge = known.count + new.count > 2 * pool.snapshotCount() + 64
        entries.withLock { entries in
            entries.merge(new) { $1 }
            if isLarge { entries = entries.filter { pool.hasSnapshot($0.key) } }
        }
        return result
    }
}
