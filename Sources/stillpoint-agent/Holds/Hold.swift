import API
import Foundation
import Logging
import PluginKit

/// What a hold stands on.
struct HoldSurroundings: Sendable {
    var catalog: PluginCatalog
    var journal: HoldJournal
    var logger: Logger
    /// Files and directories that must stay writable while anything is held.
    var protectedPaths: [String]
    var limits = HoldLimits()
}

/// Time limits for what a plug-in does about a hold, in seconds.
struct HoldLimits: Sendable {
    /// To release when asked.
    var unquiesceSeconds = 10.0
    /// To release when the lease has ended; the plug-in's own timer has ended then, too.
    var overdueUnquiesceSeconds = 3.0
    var recoverSeconds = 30.0
    /// To end after its input was closed.
    var graceSeconds = 2.0
    /// Between two tries to recover.
    var retrySeconds = 0.25...5.0
}

/// Resources of one plug-in at rest: from the request until they are released, whatever happens in between.
///
/// The lease runs on the continuous monotonic clock from the moment the request was taken. The plug-in process lives
/// exactly as long as the hold. However the hold ends, it ends in `finish`, and that only after the plug-in has
/// answered that it released, or after a fresh plug-in has recovered what a dead one left.
actor Hold {
    enum Cause: Sendable, Equatable {
        case requested
        case thaw
        case leaseEnded
        case lost(String)
        case stopping

        var explanation: String? {
            switch self {
            case .requested: nil
            case .thaw: "it was thawed on request before it was released"
            case .leaseEnded: "its lease ended before it was released"
            case .lost(let reason): reason
            case .stopping: "the agent was stopped"
            }
        }
    }

    private enum Phase {
        case quiescing
        case held(since: ContinuousClock.Instant)
        case ended(ReleaseResponse)
    }

    nonisolated let request: HoldRequest
    nonisolated let plugin: InstalledPlugin
    private nonisolated let surroundings: HoldSurroundings
    private let takenAt: ContinuousClock.Instant
    private var deadline: ContinuousClock.Instant
    private var phase = Phase.quiescing
    private var session: (any PluginSession)?
    private var isSessionDead = false
    /// By resource: why it is no longer held.
    private var lost: [String: String] = [:]
    private var abortedBecause: Cause?
    private var quiescing: Task<HoldResponse, any Error>?
    private var releasing: Task<ReleaseResponse, Never>?
    /// Not nil while something could not be released and is tried again and again.
    private(set) var stuck: [String]?
    private var waiters: [CheckedContinuation<Void, Never>] = []
    private(set) var endedAt: ContinuousClock.Instant?

    init(
        request: HoldRequest, plugin: InstalledPlugin, takenAt: ContinuousClock.Instant,
        surroundings: HoldSurroundings
    ) {
        self.request = request
        self.plugin = plugin
        self.takenAt = takenAt
        self.surroundings = surroundings
        deadline = takenAt + .seconds(request.leaseSeconds)
    }

    private var logger: Logger {
        var logger = surroundings.logger
        logger[metadataKey: "hold"] = "\(request.holdID)"
        logger[metadataKey: "plugin"] = "\(plugin.name)"
        return logger
    }

    /// A point of every plug-in, and of this one only.
    private nonisolated func reach(_ point: String) async {
        await PausePoint.reach(point)
        await PausePoint.reach("\(point).\(plugin.name)")
    }

    private var remainingSeconds: Double { max(0, ContinuousClock.now.seconds(until: deadline)) }

    // MARK: What the table asks

    /// Brings the resources to rest; called again, it gives the same answer.
    func held() async throws -> HoldResponse {
        if quiescing == nil {
            DroppingLog.shared.pause()
            quiescing = Task { try await quiesce() }
            Task { await watchLease() }
        }
        var response = try await quiescing!.value
        guard case .held = phase, releasing == nil else {
            throw APIFailure(
                status: 409, code: "holdEnded", message: "Hold \(request.holdID) has ended already",
                hint: "Use a new identifier for a new hold")
        }
        response.remainingLeaseSeconds = remainingSeconds
        return response
    }

    func renew(leaseSeconds: Double, takenAt: ContinuousClock.Instant) async throws -> RenewResponse {
        guard case .held = phase, releasing == nil, let session else {
            throw APIFailure(
                status: 409, code: "holdEnded", message: "Hold \(request.holdID) has ended and cannot be renewed")
        }
        // A renewal never shortens a lease.
        let leaseSeconds = max(leaseSeconds, remainingSeconds)
        do {
            _ = try await session.call(
                .renew, RenewParameters(holdID: request.holdID, leaseSeconds: leaseSeconds), as: RenewResult.self,
                timeoutSeconds: min(5, max(0.1, remainingSeconds)))
        } catch {
            throw APIFailure(
                status: 409, code: "renewFailed",
                message: "Hold \(request.holdID) was not renewed: \(error); it ends with its present lease")
        }
        guard case .held = phase, releasing == nil else {
            throw APIFailure(
                status: 409, code: "holdEnded", message: "Hold \(request.holdID) ended while it was being renewed")
        }
        deadline = max(deadline, takenAt + .seconds(leaseSeconds))
        return RenewResponse(remainingLeaseSeconds: remainingSeconds)
    }

    /// Releases; the first cause decides, later calls get its result.
    func release(_ cause: Cause) async -> ReleaseResponse {
        if case .ended(let response) = phase { return response }
        if let releasing { return await releasing.value }
        let receivedAt = ContinuousClock.now
        let task = Task { await performRelease(cause, receivedAt: receivedAt) }
        releasing = task
        return await task.value
    }

    /// Nil once it has ended and everything is released.
    func status() -> HoldStatus? {
        if case .ended = phase, stuck == nil { return nil }
        return HoldStatus(
            holdID: request.holdID, sagaID: request.sagaID, plugin: plugin.name, resources: request.resources.map(\.id),
            remainingLeaseSeconds: endedAt == nil ? remainingSeconds : 0)
    }

    /// Returns when everything is released, however long that takes.
    func finished() async {
        if case .ended = phase, stuck == nil { return }
        await withCheckedContinuation { waiters.append($0) }
    }

    // MARK: Quiescing

    private func quiesce() async throws -> HoldResponse {
        do {
            try surroundings.journal.write(
                HoldJournal.Entry(
                    holdID: request.holdID, sagaID: request.sagaID, plugin: plugin.name, resources: request.resources))
        } catch {
            end(failures: "nothing was done: the journal of holds cannot be written", recovered: true)
            throw APIFailure(
                status: 500, code: "journalFailed", message: "The journal of holds cannot be written: \(error)",
                hint: "Check the free space in \(surroundings.journal.directory) on the agent's host")
        }
        do {
            await reach("agent.hold.before")
            let result = try await askToQuiesce()
            let missing = Set(request.resources.map(\.id)).subtracting(result.members.map(\.resource))
            guard missing.isEmpty else {
                throw PluginFailure(
                    .badAnswer, "it does not say that it holds \(missing.sorted().joined(separator: ", "))")
            }
            if let abortedBecause { throw PluginFailure(.cancelled, abortedBecause.explanation ?? "it was released") }
            guard ContinuousClock.now < deadline else { throw PluginFailure(.leaseEnded, "the lease ended meanwhile") }
            phase = .held(since: .now)
            await reach("agent.hold.after")
            logger.info("held", metadata: ["resources": "\(request.resources.map(\.id))"])
            return HoldResponse(
                holdID: request.holdID,
                members: result.members.map { HeldMember(resource: $0.resource, quiesceSeconds: $0.quiesceSeconds) },
                remainingLeaseSeconds: remainingSeconds)
        } catch {
            logger.error("not held: \(error)")
            let failures = await letGo(after: error)
            end(failures: "it was never held: \(error)", recovered: failures.isEmpty)
            if !failures.isEmpty { keepRecovering(failures) }
            throw failure(of: error, unreleased: failures)
        }
    }

    private func askToQuiesce() async throws -> QuiesceResult {
        let session = try await surroundings.catalog.launch(plugin)
        self.session = session
        Task { await watch(session) }
        if let abortedBecause { throw PluginFailure(.cancelled, abortedBecause.explanation ?? "it was released") }
        let leaseSeconds = remainingSeconds
        guard leaseSeconds >= PluginContract.leaseSeconds.lowerBound else {
            throw PluginFailure(.leaseEnded, "the lease ended before the plug-in was asked")
        }
        return try await session.call(
            .quiesce,
            QuiesceParameters(
                holdID: request.holdID, resources: request.resources.map(PluginResource.init),
                leaseSeconds: leaseSeconds, config: plugin.config,
                stateDirectory: surroundings.journal.stateDirectory(of: request.holdID),
                protectedPaths: surroundings.protectedPaths, allowsLower: request.allowsLower),
            as: QuiesceResult.self, timeoutSeconds: leaseSeconds)
    }

    private func failure(of error: any Error, unreleased: [String]) -> APIFailure {
        let cause = error as? PluginFailure ?? PluginFailure(.quiesceFailed, String(describing: error))
        var message = "Plug-in \(plugin.name) could not hold its resources: \(cause.message)"
        if !unreleased.isEmpty {
            message += ". Not released yet, tried again all the time: \(unreleased.joined(separator: "; "))"
        }
        return APIFailure(
            status: cause.code == .timedOut || cause.code == .leaseEnded ? 504 : 409, code: "quiesceFailed",
            message: message, hint: cause.hint)
    }

    /// Makes sure that nothing stays at rest after a failed call; returns what could not be released.
    private func letGo(after error: any Error) async -> [String] {
        guard let session else { return [] }
        // A plug-in that is alive and answered has released everything before it did.
        let answered = ![.timedOut, .pluginDied, .badAnswer, .cancelled, .leaseEnded].contains(
            (error as? PluginFailure)?.code ?? .pluginDied)
        if isSessionDead {
            await session.kill()
        } else {
            await session.end(graceSeconds: surroundings.limits.graceSeconds)
        }
        isSessionDead = true
        return answered ? [] : await recover()
    }

    // MARK: Watching

    private func watchLease() async {
        while endedAt == nil {
            try? await Task.sleep(until: deadline, clock: .continuous)
            if endedAt == nil && ContinuousClock.now >= deadline {
                if releasing == nil { logger.warning("the lease has ended: releasing") }
                _ = await release(.leaseEnded)
            }
        }
    }

    private func watch(_ session: any PluginSession) async {
        for await event in session.events { note(event) }
        isSessionDead = true
        guard case .held = phase, releasing == nil else { return }
        logger.error("the plug-in died while it held: recovering")
        _ = await release(.lost("its plug-in died while it was held"))
    }

    private func note(_ event: PluginEvent) {
        switch event.event {
        case .holdLost, .released:
            guard endedAt == nil, event.holdID == nil || event.holdID == request.holdID else { return }
            let reason = event.reason ?? "the plug-in says that it is no longer held"
            if releasing == nil { logger.warning("no longer held: \(reason)") }
            for resource in request.resources where event.resource == nil || event.resource == resource.id {
                lost[resource.id] = lost[resource.id] ?? reason
            }
            if event.event == .released && releasing == nil, case .held = phase {
                Task { await release(.lost(reason)) }
            }
        case .changed: break
        case .log:
            let level = event.level.flatMap(Logger.Level.init(rawValue:)) ?? .info
            logger.log(level: level, "\(event.message ?? "")")
        }
    }

    // MARK: Releasing

    private func performRelease(_ cause: Cause, receivedAt: ContinuousClock.Instant) async -> ReleaseResponse {
        if case .quiescing = phase {
            abortedBecause = cause
            await session?.end(graceSeconds: surroundings.limits.graceSeconds)
            _ = try? await quiescing?.value
        }
        if case .ended(let response) = phase { return response }
        let inTime = receivedAt < deadline
        // Only a release that was asked for, in time, of something that was held can be evidence.
        let doubt = cause.explanation ?? (inTime ? nil : Cause.leaseEnded.explanation)
        var members: [ReleasedMember]
        var failures: [String] = []
        do {
            await reach("agent.release.before")
            members = try await askToUnquiesce(doubt: doubt, overdue: cause == .leaseEnded)
            await reach("agent.release.after")
            await session?.end(graceSeconds: surroundings.limits.graceSeconds)
        } catch {
            let released: [PluginFailure.Code] = [.holdReleased, .holdLost, .leaseEnded]
            if let failure = error as? PluginFailure, released.contains(failure.code) {
                await session?.end(graceSeconds: surroundings.limits.graceSeconds)
            } else {
                await session?.kill()
                failures = await recover()
            }
            members = unproven(doubt ?? String(describing: error))
        }
        isSessionDead = true
        if !failures.isEmpty {
            let text = "not released yet, tried again all the time: \(failures.joined(separator: "; "))"
            for index in members.indices { members[index].failure = text }
        }
        let response = ReleaseResponse(holdID: request.holdID, members: members)
        end(response, recovered: failures.isEmpty)
        if !failures.isEmpty { keepRecovering(failures) }
        logger.info(
            "released", metadata: ["stillHeld": "\(members.allSatisfy(\.stillHeld))", "why": "\(doubt ?? "asked")"])
        return response
    }

    private func askToUnquiesce(doubt: String?, overdue: Bool) async throws -> [ReleasedMember] {
        guard let session, !isSessionDead else { throw PluginFailure(.pluginDied, "the plug-in died while it held") }
        let limits = surroundings.limits
        let result = try await session.call(
            .unquiesce, UnquiesceParameters(holdID: request.holdID), as: UnquiesceResult.self,
            timeoutSeconds: overdue ? limits.overdueUnquiesceSeconds : limits.unquiesceSeconds)
        let quiet = quietSeconds
        return request.resources.map { resource in
            guard let member = result.members.first(where: { $0.resource == resource.id }) else {
                return ReleasedMember(
                    resource: resource.id, stillHeld: false, quietSeconds: quiet,
                    failure: doubt ?? "the plug-in did not say anything about it", artifacts: [:])
            }
            let failure = member.failure ?? lost[resource.id] ?? doubt
            return ReleasedMember(
                resource: resource.id, stillHeld: member.stillHeld && failure == nil,
                // The plug-in saw the moments themselves; it cannot have been longer than what we saw of it.
                quietSeconds: min(max(0, member.quietSeconds), takenAt.seconds(until: .now)),
                failure: member.stillHeld ? failure : failure ?? "the plug-in could not prove that it was still held",
                artifacts: member.artifacts ?? [:],
                level: member.level.flatMap { Consistency(rawValue: $0.rawValue) })
        }
    }

    private var quietSeconds: Double {
        if case .held(let since) = phase { since.seconds(until: .now) } else { 0 }
    }

    private func unproven(_ failure: String) -> [ReleasedMember] {
        let quiet = quietSeconds
        return request.resources.map {
            ReleasedMember(
                resource: $0.id, stillHeld: false, quietSeconds: quiet, failure: lost[$0.id] ?? failure, artifacts: [:])
        }
    }

    // MARK: Recovering and ending

    /// Has a fresh plug-in release what a dead one left; returns what could not be released.
    private func recover() async -> [String] {
        await Recovery.run(
            plugin, stateDirectory: surroundings.journal.stateDirectory(of: request.holdID),
            catalog: surroundings.catalog, timeoutSeconds: surroundings.limits.recoverSeconds, logger: logger
        ).failures
    }

    private func keepRecovering(_ failures: [String]) {
        stuck = failures
        let retry = surroundings.limits.retrySeconds
        Task {
            var pause = retry.lowerBound
            while stuck != nil {
                try? await Task.sleep(for: .seconds(pause))
                pause = min(pause * 2, retry.upperBound)
                _ = await retryRecovery()
            }
        }
    }

    /// One more try for what could not be released; returns what is still left.
    func retryRecovery() async -> [String] {
        guard stuck != nil else { return [] }
        let failures = await recover()
        if failures.isEmpty {
            guard stuck != nil else { return [] }
            stuck = nil
            logger.info("released at last")
            finish()
        } else {
            stuck = failures
        }
        return failures
    }

    private func end(failures text: String, recovered: Bool) {
        end(ReleaseResponse(holdID: request.holdID, members: unproven(text)), recovered: recovered)
    }

    private func end(_ response: ReleaseResponse, recovered: Bool) {
        phase = .ended(response)
        endedAt = .now
        session = nil
        if recovered { finish() }
    }

    private func finish() {
        surroundings.journal.remove(request.holdID)
        DroppingLog.shared.resume()
        for waiter in waiters { waiter.resume() }
        waiters = []
    }
}

extension ContinuousClock.Instant {
    /// Seconds from this instant to another, negative if that is earlier.
    func seconds(until other: ContinuousClock.Instant) -> Double { duration(to: other) / .seconds(1) }
}
