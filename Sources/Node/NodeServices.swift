import API
import BlockStore
import Catalog
import Foundation
import ISCSI
import Logging

/// The parts of a running node, for the routes.
struct NodeServices: Sendable {
    let identity: NodeIdentity
    let inventory: Inventory
    let agents: AgentRegistry
    let watch: PoolWatch
    let scrubbing: PoolScrubbing
    let jobs: JobEngine
    let sagas: Sagas
    let guests: GuestRestoreDriver
    let dataDirectory: String
    let startedAt: ContinuousClock.Instant
    let addresses: ListeningAddresses

    var uptimeSeconds: Double {
        let elapsed = ContinuousClock.now - startedAt
        return Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
    }

    // MARK: Looking

    func status() async throws -> NodeStatus {
        let pending = inventory.pending
        let (volumeCount, snapshotCount) = try await inventory.look { directory in
            (directory.pool.volumes().count, pending.shownCount(in: directory.pool))
        }
        let names = try await agents.names()
        return NodeStatus(
            nodeID: identity.nodeID, version: Release.version, uptimeSeconds: uptimeSeconds,
            apiAddress: addresses.api, iscsiAddress: addresses.iscsi, dataDirectory: dataDirectory,
            pool: try await poolStatus(), volumeCount: volumeCount,
            snapshotCount: snapshotCount, agentCount: names.count,
            reachableAgentCount: names.count { agents.reachability($0).isReachable }, runningJobs: jobs.counts.running)
    }

    private func poolStatus() async throws -> PoolStatus {
        let pool = inventory.pool
        let statistics = try await inventory.blocking.run { pool.statistics }
        var status = Inventory.status(statistics)
        status.alerts = watch.alerts(statistics, scrub: scrubbing.info)
        return status
    }

    /// A full pool is no failing node: everything but new writes works, and freeing space heals it.
    func health() async -> HealthInfo {
        var checks: [String: String] = [:]
        var isWell = true
        do {
            let pool = try await poolStatus()
            checks["pool"] = pool.failure.map { "\(pool.state.rawValue): \($0)" } ?? pool.state.rawValue
            isWell = pool.state != .readOnly
        } catch {
            checks["pool"] = "cannot be asked: \(APIFailure.from(error).message)"
            isWell = false
        }
        do {
            _ = try await agents.names()
            checks["catalog"] = "ok"
        } catch {
            checks["catalog"] = APIFailure.from(error).message
            isWell = false
        }
        return HealthInfo(status: isWell ? "ok" : "failing", checks: checks)
    }

    /// What agents find on a volume; those that told of a change are looked at first.
    func uses(ofVolume name: String) async -> [VolumeUse] {
        await agents.lookAgain()
        return agents.uses(ofVolume: name)
    }

    // MARK: Long work

    func submitSnapshot(_ request: SnapshotCreateRequest) async throws -> JobInfo {
        try await inventory.checkSnapshotRequest(request)
        let sagas = sagas
        return try await jobs.submit(
            kind: "snapshot.create", subject: request.volumes.joined(separator: ", ")
        ) { job in
            let snapshot = try await sagas.snapshots.run(request: request, report: job)
            return JobResult(snapshot: snapshot)
        }
    }

    /// What a snapshot would do; nothing is touched.
    func previewSnapshot(_ request: SnapshotCreateRequest) async throws -> SnapshotPreview {
        try await inventory.checkSnapshotRequest(request)
        return try await sagas.snapshots.preview(request)
    }

    func submitRevert(_ request: RevertRequest) async throws -> JobInfo {
        try await inventory.checkRevertRequest(request)
        let sagas = sagas
        return try await jobs.submit(
            kind: "volume.revert", subject: request.volumes.joined(separator: ", ")
        ) { job in
            let result = try await sagas.reverts.run(request: request, report: job)
            return JobResult(revert: result)
        }
    }
}

extension NodeServices {
    /// Ends a job that keeps trying, for good; what is left of its work is left to people.
    func abandon(jobID: String) async throws -> JobInfo {
        if guests.backlog.abandon(jobID: jobID), let job = try await jobs.job(id: jobID) { return job }
        return try await sagas.backlog.abandon(jobID: jobID)
    }

    func submitGuestRestore(_ request: GuestRestoreRequest) async throws -> JobInfo {
        guard !request.guests.isEmpty else { throw APIFailure.invalid("name at least one guest") }
        guard Set(request.guests).count == request.guests.count else {
            throw APIFailure.invalid("a guest is named twice")
        }
        if let name = request.beside {
            guard request.guests.count == 1 else {
                throw APIFailure.invalid("beside the original one guest is restored at a time")
            }
            let isLegal = name.unicodeScalars.allSatisfy { $0.value > 0x20 && $0 != "/" && $0.value != 0x7F }
            guard isLegal, (1...64).contains(name.utf8.count) else {
                throw APIFailure.invalid("\"\(name.prefix(80))\" is no name for a guest")
            }
        }
        if request.undo ?? false {
            guard request.from == nil, request.beside == nil, request.disks == nil else {
                throw APIFailure.invalid("an undo takes the last restore back as it was; name nothing else")
            }
        }
        let (guests, jobs) = (guests, jobs)
        let kind = (request.dryRun ?? false) ? "guest.plan" : "guest.restore"
        return try await jobs.submit(kind: kind, subject: request.guests.joined(separator: ", ")) { job in
            let results =
                (request.undo ?? false)
                ? try await guests.undo(
                    request,
                    jobs: try await jobs.jobs(limit: JobEngine.keptJobs).filter {
                        $0.kind == "guest.restore" || $0.kind == GuestRestoreBacklog.jobKind
                    }, job, keep: job.keep)
                : try await guests.run(request, job, keep: job.keep)
            return JobResult(guests: results)
        }
    }
}

/// The drivers of the sagas, over the node's own pool, agents, target and catalog.
struct Sagas: Sendable {
    let snapshots: SnapshotSagaDriver
    let reverts: RevertDriver
    let backlog: RestoreBacklog

    init(inventory: Inventory, agents: AgentRegistry, catalog: Catalog, jobs: JobEngine, logger: Logger) {
        var effects = SagaEffects(
            pool: PoolAdapter(pool: inventory.pool, pending: inventory.pending),
            agents: AgentAdapter(registry: agents, targets: inventory.registry),
            journal: CatalogJournal(catalog: catalog), guarding: TargetAdapter(registry: inventory.registry),
            blocking: inventory.blocking, reservations: inventory.reservations, logger: logger)
        let backlog = RestoreBacklog(journal: effects.journal, agents: effects.agents, jobs: jobs, logger: logger)
        effects.onUnfinishedRestore = { await backlog.resume() }
        self.backlog = backlog
        snapshots = SnapshotSagaDriver(effects: effects)
        reverts = RevertDriver(effects: effects)
    }

    /// Ends what a former process left open, both kinds at once.
    func recoverAfterRestart() async -> [RecoveredSaga] {
        async let snapshots = snapshots.recoverAfterRestart()
        async let reverts = reverts.recoverAfterRestart()
        return await snapshots + reverts
    }
}
