/// Answers the requests of one agent: holds, their leases, and their end.
actor PluginServer {
    private enum Phase {
        case quiescing(Task<Result<any PluginHold, PluginFailure>, Never>)
        case held(any PluginHold, since: MonotonicInstant)
        case releasing(Task<UnquiesceResult, Never>)
        case released(UnquiesceResult)
    }

    private struct Hold {
        var lease: HoldLease
        var phase: Phase
        /// The first reason for which it is to go.
        var reason: ReleaseReason?
    }

    /// Released holds whose answer is remembered, should the agent ask again.
    private static let rememberedHolds = 64

    private let plugin: any Plugin
    private let output: PluginOutput
    private let deadlines: LeaseDeadlines
    private var holds: [String: Hold] = [:]
    private var releasedOrder: [String] = []
    private var ending: ReleaseReason?

    init(plugin: any Plugin, output: PluginOutput, deadlines: LeaseDeadlines) {
        self.plugin = plugin
        self.output = output
        self.deadlines = deadlines
    }

    /// Requests are taken in their order; those that take time are then worked on at the same time.
    func take(_ line: [UInt8], receivedAt: MonotonicInstant) {
        let header: IncomingHeader
        do throws(PluginFailure) {
            header = try PluginJSON.decode(IncomingHeader.self, from: line)
        } catch {
            let id = (try? PluginJSON.decode(LineHeader.self, from: line))?.id
            return output.answer(id: id, failure: error)
        }
        guard let method = PluginMethod(rawValue: header.method) else {
            let known = PluginMethod.allCases.map(\.rawValue).joined(separator: ", ")
            return output.answer(
                id: header.id,
                failure: PluginFailure(
                    .unknownMethod, "There is no method \(header.method)", hint: "Methods are \(known)"))
        }
        if let ending {
            return output.answer(
                id: header.id, failure: PluginFailure(.ending, "The plug-in is ending: \(ending.rawValue)"))
        }
        do throws(PluginFailure) {
            try start(method, id: header.id, line: line, receivedAt: receivedAt)
        } catch {
            output.answer(id: header.id, failure: error)
        }
    }

    private func start(
        _ method: PluginMethod, id: Int, line: [UInt8], receivedAt: MonotonicInstant
    ) throws(PluginFailure) {
        let plugin = plugin
        switch method {
        case .describe: output.answer(id: id, result: plugin.identity)
        case .discover:
            let parameters = try decode(DiscoverParameters.self, line)
            work(id, method) { () async throws(PluginFailure) in try await plugin.discover(parameters) }
        case .preflight:
            let parameters = try decode(PreflightParameters.self, line)
            work(id, method) { () async throws(PluginFailure) in try await plugin.preflight(parameters) }
        case .recover:
            let parameters = try decode(RecoverParameters.self, line)
            work(id, method) { () async throws(PluginFailure) in try await plugin.recover(parameters) }
        case .prepareRestore:
            let parameters = try decode(RestoreParameters.self, line)
            work(id, method) { () async throws(PluginFailure) in try await plugin.prepareRestore(parameters) }
        case .finishRestore:
            let parameters = try decode(RestoreParameters.self, line)
            work(id, method) { () async throws(PluginFailure) in try await plugin.finishRestore(parameters) }
        case .watch:
            let parameters = try decode(WatchParameters.self, line)
            work(id, method) { [output] () async throws(PluginFailure) in
                try await plugin.watch(parameters) { output.event(PluginEvent(.changed, reason: $0)) }
                return NoParameters()
            }
        case .restoreResource:
            let parameters = try decode(ResourceRestoreParameters.self, line)
            work(id, method) { () async throws(PluginFailure) in try await plugin.restoreResource(parameters) }
        case .quiesce:
            try quiesce(id, try decode(QuiesceParameters.self, line), receivedAt: receivedAt)
        case .renew:
            output.answer(id: id, result: try renew(try decode(RenewParameters.self, line), receivedAt: receivedAt))
        case .unquiesce:
            let holdID = try decode(UnquiesceParameters.self, line).holdID
            guard holds[holdID] != nil else { throw unknown(holdID) }
            Task { answerRelease(id, await release(holdID, .requested)) }
        }
    }

    private func answerRelease(_ id: Int, _ result: UnquiesceResult) {
        let unreleased = result.members.filter { $0.mayBeQuiesced == true }
        if unreleased.isEmpty { return output.answer(id: id, result: result) }
        let reasons = unreleased.map { "\($0.resource): \($0.failure ?? "not released")" }
        output.answer(
            id: id,
            failure: PluginFailure(
                .notReleased, "Not everything could be released. \(reasons.joined(separator: "; "))",
                hint: "End this process and call recover"))
    }

    private func decode<Value: Decodable>(_ type: Value.Type, _ line: [UInt8]) throws(PluginFailure) -> Value {
        try PluginJSON.decode(IncomingRequest<Value>.self, from: line).params
    }

    /// `plugin.NAME.METHOD`: what a pause before it, and after it, is called.
    private nonisolated func point(_ method: PluginMethod) -> String {
        "plugin.\(plugin.identity.name).\(method.rawValue)"
    }

    private nonisolated func work<Answer: Encodable & Sendable>(
        _ id: Int, _ method: PluginMethod, _ body: @escaping @Sendable () async throws(PluginFailure) -> Answer
    ) {
        let point = point(method)
        Task.detached { [output] in
            do throws(PluginFailure) {
                await PausePoint.reach("\(point).before")
                let answer = try await body()
                await PausePoint.reach("\(point).after")
                output.answer(id: id, result: answer)
            } catch {
                output.answer(id: id, failure: error)
            }
        }
    }

    private func unknown(_ holdID: String) -> PluginFailure {
        PluginFailure(
            .unknownHold, "This process of the plug-in never held \(holdID)",
            hint: "If it was held by one that died, recover releases it")
    }

    // MARK: - Quiesce

    private func quiesce(
        _ id: Int, _ parameters: QuiesceParameters, receivedAt: MonotonicInstant
    ) throws(PluginFailure) {
        let holdID = parameters.holdID
        guard !holdID.isEmpty, holdID.utf8.count <= 128, !holdID.contains("/"), !holdID.hasPrefix(".") else {
            throw PluginFailure(.badRequest, "A holdID has 1 to 128 bytes, no slash and no leading dot")
        }
        guard PluginContract.leaseSeconds.contains(parameters.leaseSeconds) else {
            throw PluginFailure(
                .badRequest, "A lease of \(parameters.leaseSeconds) s is not between 0.1 and 600 s")
        }
        if let known = holds[holdID] { return try answerAgain(id, known) }
        let lease = HoldLease(holdID: holdID, leaseSeconds: parameters.leaseSeconds) { [output] resource, reason in
            output.event(PluginEvent(.holdLost, holdID: holdID, resource: resource, reason: reason))
        }
        let deadline = receivedAt.advanced(bySeconds: parameters.leaseSeconds)
        lease.renew(until: deadline)
        deadlines.set(holdID, deadline)
        let point = point(.quiesce)
        let task = Task.detached { [plugin] () -> Result<any PluginHold, PluginFailure> in
            do throws(PluginFailure) {
                await PausePoint.reach("\(point).before")
                let held = try await plugin.quiesce(parameters, lease: lease)
                await PausePoint.reach("\(point).after")
                return .success(held)
            } catch {
                return .failure(error)
            }
        }
        holds[holdID] = Hold(lease: lease, phase: .quiescing(task))
        Task { await finishQuiesce(id, holdID, task) }
    }

    private func answerAgain(_ id: Int, _ known: Hold) throws(PluginFailure) {
        let holdID = known.lease.holdID
        switch known.phase {
        case .held(let hold, _): output.answer(id: id, result: QuiesceResult(holdID: holdID, members: hold.members))
        case .quiescing: throw PluginFailure(.holdExists, "Hold \(holdID) is being quiesced already")
        case .releasing, .released: throw PluginFailure(.holdReleased, "Hold \(holdID) was released already")
        }
    }

    private func finishQuiesce(
        _ id: Int, _ holdID: String, _ task: Task<Result<any PluginHold, PluginFailure>, Never>
    ) async {
        let result = await task.value
        guard var hold = holds[holdID] else { return }
        switch result {
        case .failure(let failure):
            remember(UnquiesceResult(holdID: holdID, members: []))
            output.answer(id: id, failure: failure)
        case .success(let held):
            if let reason = hold.reason ?? (hold.lease.remainingSeconds <= 0 ? .leaseEnded : nil) {
                hold.reason = reason
                hold.phase = startRelease(holdID, held, hold.lease, reason)
                holds[holdID] = hold
                _ = await release(holdID, reason)
                output.answer(
                    id: id,
                    failure: reason == .leaseEnded
                        ? PluginFailure(.leaseEnded, "The lease ended while resources were being quiesced")
                        : PluginFailure(.cancelled, "The hold was released while resources were being quiesced"))
            } else {
                hold.phase = .held(held, since: .now)
                holds[holdID] = hold
                output.answer(id: id, result: QuiesceResult(holdID: holdID, members: held.members))
            }
        }
    }

    // MARK: - Renew and release

    private func renew(_ parameters: RenewParameters, receivedAt: MonotonicInstant) throws(PluginFailure) -> RenewResult
    {
        guard let hold = holds[parameters.holdID] else { throw unknown(parameters.holdID) }
        guard PluginContract.leaseSeconds.contains(parameters.leaseSeconds) else {
            throw PluginFailure(
                .badRequest, "A lease of \(parameters.leaseSeconds) s is not between 0.1 and 600 s")
        }
        if let (resource, reason) = hold.lease.lost.first {
            throw PluginFailure(.holdLost, "\(resource) is not held any more: \(reason)")
        }
        switch hold.phase {
        case .quiescing, .held: break
        case .releasing, .released:
            throw PluginFailure(.holdReleased, "Hold \(parameters.holdID) was released already")
        }
        // A lease that has ended stays ended, even if its release has not started yet.
        guard hold.reason == nil, hold.lease.remainingSeconds > 0 else {
            throw PluginFailure(.leaseEnded, "The lease of \(parameters.holdID) has ended")
        }
        let deadline = receivedAt.advanced(bySeconds: parameters.leaseSeconds)
        hold.lease.renew(until: deadline)
        deadlines.set(parameters.holdID, deadline)
        return RenewResult(holdID: parameters.holdID, remainingLeaseSeconds: max(0, deadline.secondsFromNow))
    }

    func leaseEnded(_ holdID: String) async {
        guard let hold = holds[holdID], hold.lease.remainingSeconds <= 0 else { return }
        if case .released = hold.phase { return }
        _ = await release(holdID, .leaseEnded)
    }

    /// Releases everything and takes nothing more.
    func end(_ reason: ReleaseReason) async {
        ending = reason
        let open = Array(holds.keys)
        await withTaskGroup { group in
            for holdID in open { group.addTask { _ = await self.release(holdID, reason) } }
        }
        await plugin.settle()
    }

    private func release(_ holdID: String, _ reason: ReleaseReason) async -> UnquiesceResult {
        guard var hold = holds[holdID] else { return UnquiesceResult(holdID: holdID, members: []) }
        switch hold.phase {
        case .released(let result): return result
        case .releasing(let task): return await task.value
        case .held(let held, _):
            // The timer may be late: what counts is when the lease ended, not when someone noticed.
            let actual = reason == .requested && hold.lease.remainingSeconds <= 0 ? .leaseEnded : reason
            hold.reason = actual
            hold.phase = startRelease(holdID, held, hold.lease, actual)
            holds[holdID] = hold
            return await release(holdID, actual)
        case .quiescing(let task):
            if hold.reason == nil { hold.reason = reason }
            holds[holdID] = hold
            hold.lease.giveUp(reason)
            task.cancel()
            _ = await task.value
            // `finishQuiesce` waits for the same task and may come second.
            while case .quiescing = holds[holdID]?.phase { await Task.yield() }
            return await release(holdID, reason)
        }
    }

    private func startRelease(
        _ holdID: String, _ held: any PluginHold, _ lease: HoldLease, _ reason: ReleaseReason
    ) -> Phase {
        deadlines.remove(holdID)
        let point = point(.unquiesce)
        return .releasing(
            Task {
                await PausePoint.reach("\(point).before")
                var members = await held.release(reason)
                await PausePoint.reach("\(point).after")
                let lost = lease.lost
                for index in members.indices {
                    guard let failure = reason.failure ?? lost[members[index].resource] else { continue }
                    members[index].stillHeld = false
                    members[index].failure = members[index].failure ?? failure
                }
                let result = UnquiesceResult(holdID: holdID, members: members)
                remember(result)
                if reason != .requested {
                    output.event(PluginEvent(.released, holdID: holdID, reason: reason.rawValue))
                }
                return result
            })
    }

    private func remember(_ result: UnquiesceResult) {
        deadlines.remove(result.holdID)
        holds[result.holdID]?.phase = .released(result)
        releasedOrder.append(result.holdID)
        if releasedOrder.count > Self.rememberedHolds {
            holds[releasedOrder.removeFirst()] = nil
        }
    }
}
