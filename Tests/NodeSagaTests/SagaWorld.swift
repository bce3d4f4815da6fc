import API
import BlockIO
import BlockStore
import Catalog
import Foundation
import Logging
import NIOPosix
import Protection
import Synchronization
import Testing

@testable import Node

/// A real pool and a real catalog in a directory of their own, scripted agents, and a node's process that can die:
/// what it asks for after its death does not happen.
final class SagaWorld: Sendable {
    let directory: URL
    let pool: Pool
    let catalog: Catalog
    let agents = ScriptedAgents()
    let target = ScriptedTarget()
    let threads = NIOThreadPool(numberOfThreads: 2)

    init(volumes: [String] = ["v1"]) throws {
        directory = FileManager.default.temporaryDirectory.appending(path: "sp-saga-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        pool = try Pool.create(path: directory.appending(path: "pool").path)
        catalog = try Catalog(path: directory.appending(path: "catalog").path)
        threads.start()
        for name in volumes { _ = try pool.createVolume(id: .random(), name: name, sizeBytes: 1 << 20) }
    }

    func close() async throws {
        try pool.close()
        try catalog.close()
        try await threads.shutdownGracefully()
        try FileManager.default.removeItem(at: directory)
    }

    /// A process of the node; `crashAt` is where it dies.
    func process(crashAt: String? = nil) -> SagaProcess {
        let life = ProcessLife(crashAt: crashAt)
        let effects = SagaEffects(
            pool: MortalPool(pool: PoolAdapter(pool: pool), life: life),
            agents: MortalAgents(agents: agents, life: life),
            journal: MortalJournal(journal: CatalogJournal(catalog: catalog), life: life),
            guarding: target, blocking: BlockingCalls(threads), reservations: VolumeReservations(),
            logger: Logger(label: "saga") { _ in SwiftLogNoOpLogHandler() },
            crashPoint: CrashPoint { life.hit($0) })
        var limits = SagaLimits()
        limits.releaseTimeout = .milliseconds(200)
        limits.transit = .milliseconds(100)
        limits.retryInterval = .milliseconds(20)
        return SagaProcess(effects: effects, limits: limits, life: life)
    }

    var pending: [String] {
        PoolAdapter(pool: pool).snapshots()
            .filter { SnapshotAttributes(bytes: $0.attributes)?.state == .pending }.map(\.name)
    }

    /// One block of a volume, to tell states apart.
    func write(_ byte: UInt8, to volume: String) throws {
        let record = try #require(pool.volumes().first { $0.name == volume })
        let block = [UInt8](repeating: byte, count: 4096)
        try block.withUnsafeBytes { try pool.device(of: record.id).write(at: 0, from: $0, durability: .durable) }
    }

    func read(_ volume: String) throws -> UInt8 {
        let record = try #require(pool.volumes().first { $0.name == volume })
        var block = [UInt8](repeating: 0, count: 4096)
        try block.withUnsafeMutableBytes { try pool.device(of: record.id).read(at: 0, into: $0) }
        return block[0]
    }
}

struct SagaProcess {
    let effects: SagaEffects
    let limits: SagaLimits
    let life: ProcessLife

    var snapshots: SnapshotSagaDriver { SnapshotSagaDriver(effects: effects, limits: limits) }
    var reverts: RevertDriver { RevertDriver(effects: effects) }

    /// Runs `work` until the process dies or the work ends. What it does after its death has no effect and is not
    /// waited for.
    func die(_ work: @escaping @Sendable (SagaProcess) async throws -> some Sendable) async {
        let ended = Mutex(false)
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let resume: @Sendable () -> Void = {
                let isFirst = ended.withLock { isOver in
                    defer { isOver = true }
                    return !isOver
                }
                if isFirst { continuation.resume() }
            }
            life.onDeath.withLock { $0 = resume }
            Task {
                _ = try? await work(self)
                resume()
            }
        }
    }
}

final class ProcessLife: Sendable {
    private let crashAt: String?
    private let isOver = Mutex(false)
    let onDeath = Mutex<(@Sendable () -> Void)?>(nil)

    init(crashAt: String?) { self.crashAt = crashAt }

    var isDead: Bool { isOver.withLock { $0 } }

    func hit(_ name: String) {
        guard name == crashAt else { return }
        isOver.withLock { $0 = true }
        onDeath.withLock { $0?() }
    }

    func check() throws {
        if isDead { throw APIFailure(status: 503, code: "agentUnreachable", message: "the process is dead") }
    }
}

struct MortalPool: SnapshotCutting {
    let pool: PoolAdapter
    let life: ProcessLife

    func volumes() -> [SagaVolume] { pool.volumes() }
    func snapshots() -> [SagaSnapshot] { pool.snapshots() }

    func cut(id: String, name: String, volumes: [String], attributes: [UInt8]) throws -> UInt64 {
        try life.check()
        return try pool.cut(id: id, name: name, volumes: volumes, attributes: attributes)
    }

    func setAttributes(snapshot: String, _ attributes: [UInt8]) throws {
        try life.check()
        try pool.setAttributes(snapshot: snapshot, attributes)
    }

    func delete(snapshot: String) throws {
        try life.check()
        try pool.delete(snapshot: snapshot)
    }

    func revert(volumes: [String], to snapshot: String, keepID: String, keepName: String, attributes: [UInt8]) throws {
        try life.check()
        try pool.revert(volumes: volumes, to: snapshot, keepID: keepID, keepName: keepName, attributes: attributes)
    }

    func info(snapshot: String) throws -> SnapshotInfo { try pool.info(snapshot: snapshot) }
}

struct MortalJournal: SagaJournaling {
    let journal: CatalogJournal
    let life: ProcessLife

    func append(_ entry: SagaJournalEntry) async throws {
        try life.check()
        try await journal.append(entry)
    }

    func entries() async throws -> [SagaJournalEntry] { try await journal.entries() }
    func forget(sagaID: String) async throws { try await journal.forget(sagaID: sagaID) }
    func quiesceHistory() async throws -> [String: Double] { try await journal.quiesceHistory() }
    func rememberQuiesce(_ seconds: [String: Double]) async throws { try await journal.rememberQuiesce(seconds) }
    func lastKnownVolumes(ofAgent name: String) async throws -> Set<String>? {
        try await journal.lastKnownVolumes(ofAgent: name)
    }
    func rememberVolumes(_ volumes: Set<String>, ofAgent name: String) async throws {
        try await journal.rememberVolumes(volumes, ofAgent: name)
    }
    func machine(ofAgent name: String) async throws -> String? { try await journal.machine(ofAgent: name) }
    func rememberMachine(_ machine: String, ofAgent name: String) async throws {
        try await journal.rememberMachine(machine, ofAgent: name)
    }
    func unfinishedRestores() async throws -> [UnfinishedRestore] { try await journal.unfinishedRestores() }
    func keep(_ restore: UnfinishedRestore) async throws {
        try life.check()
        try await journal.keep(restore)
    }
    func forget(_ restore: UnfinishedRestore) async throws { try await journal.forget(restore) }
}

struct MortalAgents: AgentCalling {
    let agents: ScriptedAgents
    let life: ProcessLife

    private func reach<Answer>(_ call: () throws -> Answer) throws -> Answer {
        try life.check()
        return try call()
    }

    let guestDisks = GuestDisks()

    func names() async throws -> [String] { agents.names }
    func discover(_ agent: String, _ request: DiscoverRequest, timeoutSeconds: Double) async throws -> DiscoverResponse
    {
        let answer = try reach { try agents.discover(agent, request) }
        guestDisks.learn(answer, of: agent)
        return answer
    }
    func preflight(
        _ agent: String, _ request: PreflightRequest, timeoutSeconds: Double
    ) async throws -> PreflightResponse { try reach { PreflightResponse(findings: agents.findings) } }
    func hold(_ agent: String, _ request: HoldRequest, timeoutSeconds: Double) async throws -> HoldResponse {
        try reach { try agents.hold(agent, request) }
    }
    func renew(
        _ agent: String, holdID: String, _ request: RenewRequest, timeoutSeconds: Double
    ) async throws -> RenewResponse { try reach { RenewResponse(remainingLeaseSeconds: request.leaseSeconds) } }
    func release(_ agent: String, holdID: String, timeoutSeconds: Double) async throws -> ReleaseResponse {
        try reach { try agents.release(agent, holdID) }
    }
    func thaw(_ agent: String, _ request: ThawRequest, timeoutSeconds: Double) async throws -> ThawResponse {
        try reach { agents.thaw(agent) }
    }
    func prepareRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse { try reach { try agents.prepare(agent) } }
    func finishRestore(
        _ agent: String, _ request: RestoreRequest, timeoutSeconds: Double
    ) async throws -> RestoreResponse { try reach { try agents.finish(agent, request) } }
}

/// One database on one file system per volume, each volume on an agent of its own: `v1` on `host1`, and so on.
final class ScriptedAgents: Sendable {
    struct Held {
        var agent: String
        var request: HoldRequest
        var since: ContinuousClock.Instant
    }

    struct State {
        var names: [String] = ["host1"]
        var log: [String] = []
        var held: [String: Held] = [:]
        var stopped: Set<String> = []
        var failsHold: Set<String> = []
        var losesHold: Set<String> = []
        var silent: Set<String> = []
        var failsFinish: Set<String> = []
        /// By agent: what it could not look at; then it finds nothing.
        var unseen: [String: [UnseenInfo]] = [:]
        /// Answers as recorded, by agent; one with `machine` shows its devices only when it is told of its disks.
        var recorded: [String: DiscoverResponse] = [:]
        var findings: [FindingInfo] = []
        var finishArtifacts: [String: [String: String]] = [:]
    }

    let state = Mutex(State())

    var names: [String] { state.withLock { $0.names } }
    var log: [String] { state.withLock { $0.log } }
    var findings: [FindingInfo] { state.withLock { $0.findings } }
    var isQuiet: Bool { state.withLock { !$0.held.isEmpty } }
    var finishArtifacts: [String: [String: String]] { state.withLock { $0.finishArtifacts } }
    var stopped: Set<String> { state.withLock { $0.stopped } }

    private func note(_ text: String) { state.withLock { $0.log.append(text) } }

    func discover(_ agent: String, _ request: DiscoverRequest) throws -> DiscoverResponse {
        if state.withLock({ $0.silent.contains(agent) }) {
            throw APIFailure(status: 503, code: "agentUnreachable", message: "no answer")
        }
        if let unseen = state.withLock({ $0.unseen[agent] }) {
            return DiscoverResponse(devices: [], resources: [], warnings: [], unseen: unseen)
        }
        if let recorded = state.withLock({ $0.recorded[agent] }) {
            note("discover \(agent)")
            let isTold = request.volumes.contains { $0.guestDisks != nil }
            guard recorded.devices.contains(where: { $0.guest != nil }), !isTold else { return recorded }
            return DiscoverResponse(devices: [], resources: [], warnings: [], machine: recorded.machine)
        }
        let volume = "v\(agent.dropFirst(4))"
        guard let asked = request.volumes.first(where: { $0.name == volume }) else {
            return DiscoverResponse(devices: [], resources: [], warnings: [])
        }
        let device = DeviceInfo(volume: volume, naa: asked.naa, path: "/dev/sdx", initiator: "iqn.a")
        let resources = [
            ResourceInfo(
                plugin: "database", layer: .application, id: "db", label: "database on \(volume)", volumes: [volume]),
            ResourceInfo(
                plugin: "filesystem", layer: .fileSystem, id: "fs", label: "ext4 on \(volume)", volumes: [volume]),
        ]
        return DiscoverResponse(devices: [device], resources: resources, warnings: [])
    }

    func hold(_ agent: String, _ request: HoldRequest) throws -> HoldResponse {
        note("hold \(agent) \(request.plugin)")
        if state.withLock({ $0.failsHold.contains(request.plugin) }) {
            throw APIFailure(status: 409, code: "quiesceFailed", message: "it is busy")
        }
        state.withLock { $0.held[request.holdID] = Held(agent: agent, request: request, since: .now) }
        return HoldResponse(
            holdID: request.holdID,
            members: request.resources.map { HeldMember(resource: $0.id, quiesceSeconds: 0.01) },
            remainingLeaseSeconds: request.leaseSeconds)
    }

    func release(_ agent: String, _ holdID: String) throws -> ReleaseResponse {
        guard let held = state.withLock({ $0.held.removeValue(forKey: holdID) }) else {
            throw APIFailure(status: 404, code: "holdNotFound", message: "there is no such hold")
        }
        note("release \(agent) \(held.request.plugin)")
        let isLost = state.withLock { $0.losesHold.contains(held.request.plugin) }
        let quiet = held.since.duration(to: .now) / .seconds(1)
        return ReleaseResponse(
            holdID: holdID,
            members: held.request.resources.map {
                ReleasedMember(
                    resource: $0.id, stillHeld: !isLost, quietSeconds: quiet, failure: isLost ? "lost" : nil,
                    artifacts: $0.plugin == "database" ? ["backup_label": "START WAL"] : [:])
            })
    }

    func thaw(_ agent: String) -> ThawResponse {
        note("thaw \(agent)")
        let released = state.withLock { state in
            let mine = state.held.filter { $0.value.agent == agent }
            for key in mine.keys { state.held[key] = nil }
            return mine.values.flatMap { $0.request.resources.map(\.id) }
        }
        return ThawResponse(released: released, failures: [])
    }

    func prepare(_ agent: String) throws -> RestoreResponse {
        note("prepare \(agent)")
        _ = state.withLock { $0.stopped.insert(agent) }
        return RestoreResponse(steps: ["unmounted"])
    }

    func finish(_ agent: String, _ request: RestoreRequest) throws -> RestoreResponse {
        note("finish \(agent)")
        if state.withLock({ $0.failsFinish.contains(agent) }) {
            throw APIFailure(status: 409, code: "restoreFinishFailed", message: "the mount point is gone")
        }
        state.withLock {
            $0.stopped.remove(agent)
            $0.finishArtifacts = request.artifacts
        }
        return RestoreResponse(steps: ["mounted"])
    }
}

final class ScriptedTarget: RevertGuarding {
    struct State {
        var sessions: [SagaSession] = []
        var blocked: Set<String> = []
        var reverted: [String] = []
    }

    let state = Mutex(State())

    var blocked: Set<String> { state.withLock { $0.blocked } }
    var reverted: [String] { state.withLock { $0.reverted } }

    func sessions(naa: String) -> [SagaSession] { state.withLock { $0.sessions } }
    func blockLogins(naa: String) { _ = state.withLock { $0.blocked.insert(naa) } }
    func unblockLogins(naa: String) { _ = state.withLock { $0.blocked.remove(naa) } }
    func deviceReverted(naa: String) { state.withLock { $0.reverted.append(naa) } }
}

/// Keeps what a saga tells its job.
final class RecordedReport: SagaReporting {
    let jobID = "job"
    private let lines = Mutex<[String]>([])

    var steps: [String] { lines.withLock { $0 } }

    func stepBegan(_ name: String, detail: String?) async {}
    func stepSucceeded(_ name: String, detail: String?) async { lines.withLock { $0.append("\(name) succeeded") } }
    func stepFailed(_ name: String, detail: String?) async { lines.withLock { $0.append("\(name) failed") } }
    func stepCompensated(_ name: String, detail: String?) async {
        lines.withLock { $0.append("\(name) compensated") }
    }
}
