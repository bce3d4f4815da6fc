import API
import Foundation
import Logging
import PluginKit

/// All holds of this agent, those alive and for a while those that ended.
actor HoldTable {
    /// Holds alive at most.
    static let limit = 256
    /// How long the result of an ended hold is remembered, so that a repeated release gets it again.
    static let memorySeconds = 900.0
    static let memoryLimit = 1_000

    private let surroundings: HoldSurroundings
    private var holds: [String: Hold] = [:]
    /// Ended holds, oldest first.
    private var ended: [String] = []
    /// `plugin/resource` to the hold that has it.
    private var occupied: [String: String] = [:]
    /// What a dead agent left and could not be released yet, by hold.
    private var leftovers: [String: [String]] = [:]
    private var isStopping = false
    /// Holds that were released before they were asked for, and sagas that were thawed: a request that the network
    /// kept back until then must not bring anything to rest any more. Oldest first.
    private var tombstones: [(id: String, at: ContinuousClock.Instant)] = []

    init(surroundings: HoldSurroundings) { self.surroundings = surroundings }

    private var journal: HoldJournal { surroundings.journal }

    // MARK: Holding

    /// - Parameter takenAt: when the request came in: the lease starts there.
    func hold(_ request: HoldRequest, takenAt: ContinuousClock.Instant) async throws -> HoldResponse {
        try SafeIdentifier.check(request.holdID, what: "hold's identifier")
        guard PluginContract.leaseSeconds.contains(request.leaseSeconds) else {
            throw APIFailure(
                status: 400, code: "badLease", message: "The lease must be between 0.1 and 600 seconds")
        }
        guard !request.resources.isEmpty, Set(request.resources.map(\.id)).count == request.resources.count,
            request.resources.allSatisfy({ $0.plugin == request.plugin })
        else {
            throw APIFailure(
                status: 400, code: "badResources",
                message: "A hold needs resources of its plug-in, each once")
        }
        if let same = holds[request.holdID] { return try await again(same, request) }
        guard let plugin = await surroundings.catalog.plugin(named: request.plugin) else {
            throw APIFailure(
                status: 404, code: "pluginNotFound", message: "There is no plug-in \(request.plugin) on this host",
                hint: "Install it, or discover again")
        }
        // Another request with this identifier may have come while we waited.
        if let same = holds[request.holdID] { return try await again(same, request) }
        let hold = try enter(request, plugin: plugin, takenAt: takenAt)
        return try await hold.held()
    }

    private func again(_ hold: Hold, _ request: HoldRequest) async throws -> HoldResponse {
        guard hold.request.plugin == request.plugin, hold.request.sagaID == request.sagaID,
            hold.request.resources == request.resources
        else {
            throw APIFailure(
                status: 409, code: "holdExists", message: "Hold \(request.holdID) exists already, of other resources")
        }
        return try await hold.held()
    }

    private func enter(
        _ request: HoldRequest, plugin: InstalledPlugin, takenAt: ContinuousClock.Instant
    ) throws -> Hold {
        guard !isStopping else {
            throw APIFailure(status: 503, code: "agentStopping", message: "The agent is being stopped")
        }
        guard holds.count - ended.count < Self.limit else {
            throw APIFailure(
                status: 503, code: "tooManyHolds", message: "The agent has \(Self.limit) holds already",
                hint: "Wait until they end, or release them with: stillpoint-agent thaw --all")
        }
        let keys = request.resources.map { "\(request.plugin)/\($0.id)" }
        if let key = keys.first(where: { occupied[$0] != nil }) {
            throw APIFailure(
                status: 409, code: "resourceHeld", message: "\(key) is held already, by hold \(occupied[key]!)",
                hint: "Wait for it to end, or release it with: stillpoint-agent thaw --all")
        }
        guard !isBuried(request.holdID), !isBuried(request.sagaID) else {
            throw APIFailure(
                status: 409, code: "holdReleased",
                message:
                    "Hold \(request.holdID) of saga \(request.sagaID) was released before this request for it came",
                hint: "Nothing was brought to rest. Use a new identifier for a new hold")
        }
        guard leftovers[request.holdID] == nil else {
            throw APIFailure(
                status: 409, code: "holdEnded", message: "Hold \(request.holdID) was left by an earlier agent",
                hint: "Use a new identifier for a new hold")
        }
        for key in keys { occupied[key] = request.holdID }
        let hold = Hold(request: request, plugin: plugin, takenAt: takenAt, surroundings: surroundings)
        holds[request.holdID] = hold
        Task {
            await hold.finished()
            forget(request.holdID, keys: keys)
        }
        return hold
    }

    private func forget(_ holdID: String, keys: [String]) {
        for key in keys { occupied[key] = nil }
        ended.append(holdID)
        if ended.count > Self.memoryLimit { holds[ended.removeFirst()] = nil }
        Task {
            try? await Task.sleep(for: .seconds(Self.memorySeconds))
            if let index = ended.firstIndex(of: holdID) {
                ended.remove(at: index)
                holds[holdID] = nil
            }
        }
    }

    func renew(_ holdID: String, _ request: RenewRequest, takenAt: ContinuousClock.Instant) async throws
        -> RenewResponse
    {
        guard PluginContract.leaseSeconds.contains(request.leaseSeconds) else {
            throw APIFailure(status: 400, code: "badLease", message: "The lease must be between 0.1 and 600 seconds")
        }
        return try await find(holdID).renew(leaseSeconds: request.leaseSeconds, takenAt: takenAt)
    }

    func release(_ holdID: String) async throws -> ReleaseResponse {
        guard let hold = holds[holdID] else {
            try SafeIdentifier.check(holdID, what: "hold's identifier")
            bury(holdID)
            return await (try find(holdID)).release(.requested)
        }
        return await hold.release(.requested)
    }

    private func bury(_ id: String) {
        tombstones.removeAll { $0.id == id || $0.at.seconds(until: .now) > Self.memorySeconds }
        if tombstones.count >= Self.memoryLimit { tombstones.removeFirst() }
        tombstones.append((id, .now))
    }

    private func isBuried(_ id: String) -> Bool {
        tombstones.contains { $0.id == id && $0.at.seconds(until: .now) <= Self.memorySeconds }
    }

    var tombstoneCount: Int { tombstones.count }

    private func find(_ holdID: String) throws -> Hold {
        guard let hold = holds[holdID] else {
            throw APIFailure(
                status: 404, code: "holdNotFound", message: "There is no hold \(holdID)",
                hint: "It ended long ago, or the agent was restarted and released everything")
        }
        return hold
    }

    func status() async -> [HoldStatus] {
        var list: [HoldStatus] = []
        for hold in holds.values {
            if let status = await hold.status() { list.append(status) }
        }
        for holdID in leftovers.keys {
            list.append(
                HoldStatus(holdID: holdID, sagaID: "", plugin: "", resources: [], remainingLeaseSeconds: 0))
        }
        return list.sorted { $0.holdID < $1.holdID }
    }

    var isHolding: Bool {
        get async {
            for hold in holds.values where await hold.status() != nil { return true }
            return false
        }
    }

    // MARK: Releasing everything

    /// Releases all holds at once, or those of one saga.
    func thaw(sagaID: String?, cause: Hold.Cause = .thaw) async -> ThawResponse {
        var chosen: [Hold] = []
        if let sagaID { bury(sagaID) }
        for hold in holds.values where sagaID == nil || hold.request.sagaID == sagaID {
            if await hold.status() != nil { chosen.append(hold) }
        }
        var answer = await withTaskGroup(of: (Hold, ReleaseResponse, [String]).self) { group in
            for hold in chosen {
                group.addTask {
                    let response = await hold.release(cause)
                    return (hold, response, await hold.stuck == nil ? [] : await hold.retryRecovery())
                }
            }
            var answer = ThawResponse(released: [], failures: [])
            for await (hold, response, failures) in group {
                if failures.isEmpty {
                    answer.released += response.members.map { "\(hold.plugin.name)/\($0.resource)" }
                } else {
                    answer.failures += failures
                }
            }
            return answer
        }
        if sagaID == nil {
            let recovered = await recoverLeftovers()
            answer.released += recovered.released
            answer.failures += recovered.failures
        }
        answer.released.sort()
        return answer
    }

    /// No new holds; releases everything.
    func stop() async -> ThawResponse {
        isStopping = true
        return await thaw(sagaID: nil, cause: .stopping)
    }

    // MARK: What a dead agent left

    /// Releases everything in the journal that no hold of ours stands for; once at start, and at every thaw.
    func recoverLeftovers() async -> ThawResponse {
        var answer = ThawResponse(released: [], failures: [])
        for (holdID, entry) in journal.leftovers() where holds[holdID] == nil {
            let plugins: [InstalledPlugin]
            if let entry {
                guard let plugin = await surroundings.catalog.plugin(named: entry.plugin) else {
                    leftovers[holdID] = ["plug-in \(entry.plugin) is no longer there"]
                    answer.failures.append(
                        "hold \(holdID) needs plug-in \(entry.plugin), which is no longer there to release it")
                    continue
                }
                plugins = [plugin]
            } else {
                // The journal entry was never written or is damaged: whoever knows the state will release it.
                plugins = await surroundings.catalog.plugins()
            }
            var failures: [String] = []
            for plugin in plugins {
                let result = await Recovery.run(
                    plugin, stateDirectory: journal.stateDirectory(of: holdID), catalog: surroundings.catalog,
                    timeoutSeconds: surroundings.limits.recoverSeconds, logger: surroundings.logger)
                answer.released += result.released.map { "\(plugin.name)/\($0)" }
                failures += result.failures
            }
            if failures.isEmpty {
                journal.remove(holdID)
                leftovers[holdID] = nil
            } else {
                leftovers[holdID] = failures
                answer.failures += failures
            }
        }
        return answer
    }

    /// Tries again until nothing is left of what a dead agent held.
    func keepRecoveringLeftovers() async {
        var pause = surroundings.limits.retrySeconds.lowerBound
        while !leftovers.isEmpty && !Task.isCancelled {
            try? await Task.sleep(for: .seconds(pause))
            pause = min(pause * 2, surroundings.limits.retrySeconds.upperBound)
            _ = await recoverLeftovers()
        }
    }
}
