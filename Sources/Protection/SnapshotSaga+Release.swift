// Release, evidence, label: who was still quiet, and what that is worth.
extension SnapshotSaga {
    mutating func startReleasing(_ now: MonotonicInstant) {
        phase = .releasing
        releasingSince = now
        releaseNext(now)
    }

    /// Releases whatever may be released now, in reverse order of layers: on one agent strictly (a database cannot go
    /// on above a frozen file system), across agents with a little patience, so that an agent that is lost does not
    /// keep the others quiet.
    mutating func releaseNext(_ now: MonotonicInstant) {
        if let releasingSince, now >= releasingSince + limits.releasePatience { patienceIsOver = true }
        for layer in QuiesceLayer.allCases.reversed() {
            let due = holds.filter { hold in
                hold.order.layer == layer && !hold.releaseIsOrdered && mayRelease(hold)
            }
            if !due.isEmpty { orderRelease(due.map(\.order.holdID), layer, now) }
        }
        closeUnquiesceSteps()
        if holds.allSatisfy({ $0.state == .settled }) { allReleased(now) }
    }

    private func mayRelease(_ hold: Hold) -> Bool {
        guard hold.state == .held || hold.state == .unsettled else { return false }
        let above = holds.filter { $0.order.layer > hold.order.layer && $0.state != .settled }
        let agent = hold.order.agent
        if above.contains(where: { $0.order.agent == agent || $0.isAround(agent: agent) }) { return false }
        return above.isEmpty || patienceIsOver
    }

    mutating func orderRelease(_ holdIDs: [String], _ layer: QuiesceLayer, _ now: MonotonicInstant) {
        for holdID in holdIDs {
            if let index = index(holdID) { holds[index].releaseIsOrdered = true }
        }
        if phase == .releasing, !openUnquiesce.contains(layer) {
            openUnquiesce.append(layer)
            begin(.unquiesce(layer))
        }
        journal(.unquiesce(layer), .unquiesce(holdIDs), then: .release(holdIDs), now)
    }

    mutating func sendReleases(_ holdIDs: [String], _ now: MonotonicInstant) {
        for holdID in holdIDs {
            guard let index = index(holdID), holds[index].state != .settled, !holds[index].isReleasing else { continue }
            if holds[index].releaseSentAt == nil {
                holds[index].releaseSentAt = now
                holds[index].releaseWasAfterCut = cutFacts != nil
            }
            holds[index].isReleasing = true
            holds[index].releaseRetryAt = nil
            actions.append(.release(holdID: holdID, agent: holds[index].order.agent))
        }
    }

    mutating func retryReleases(_ now: MonotonicInstant) {
        for hold in holds where hold.state != .settled && !hold.isReleasing {
            if let at = hold.releaseRetryAt, now >= at { sendReleases([hold.order.holdID], now) }
        }
    }

    mutating func takeRelease(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .released(let holdID, let answers):
            guard let index = index(holdID), holds[index].isReleasing else { return }
            for answer in answers { holds[index].answers[answer.resource] = answer }
            settle(index, now)
        case .releaseFailed(let holdID, let reason, let isUnknown):
            guard let index = index(holdID), holds[index].isReleasing else { return }
            holds[index].isReleasing = false
            if isUnknown {
                holds[index].failure = holds[index].failure ?? "the agent no longer had the hold: \(reason)"
                settle(index, now)
            } else if holds[index].lease.hasSurelyEnded(at: now) {
                holds[index].failure =
                    holds[index].failure ?? "the agent did not answer the release; its lease has ended: \(reason)"
                settle(index, now)
            } else {
                holds[index].releaseRetryAt = now + limits.retryInterval
            }
        default: break
        }
    }

    private mutating func settle(_ index: Int, _ now: MonotonicInstant) {
        holds[index].settledAt = now
        holds[index].state = .settled
        holds[index].isReleasing = false
        holds[index].releaseRetryAt = nil
    }

    /// A machine that is stopped from outside stops the clock of an agent inside of it.
    private func stopped(_ hold: Hold) -> Duration {
        holds.filter { $0.isAround(agent: hold.order.agent) }.reduce(.zero) { sum, machine in
            let isFrozenWithin = machine.order.members.allSatisfy {
                $0.resource.insideAgents?.contains(hold.order.agent) != true || $0.resource.freezesFileSystems
            }
            guard !isFrozenWithin, let end = machine.settledAt else { return sum }
            return sum + (end - machine.requestedAt)
        }
    }

    private mutating func closeUnquiesceSteps() {
        for layer in openUnquiesce {
            let here = holds.filter { $0.order.layer == layer }
            guard here.allSatisfy({ $0.state == .settled }) else { continue }
            openUnquiesce.removeAll { $0 == layer }
            succeed(.unquiesce(layer), sentence(here.flatMap(quietDetails)))
        }
    }

    private func quietDetails(_ hold: Hold) -> [String] {
        hold.order.members.map { member in
            guard let answer = hold.answers[member.resource.id] else {
                return "\(member.text): \(hold.failure ?? "no answer")"
            }
            let quiet = "\(member.text) quiet for \(Duration.text(seconds: answer.quietSeconds))"
            let proof = hold.proof(of: member, stopped: stopped(hold))
            return proof.isProven ? quiet : "\(quiet), not proven\(proof.failure.map { ": \($0)" } ?? "")"
        }
    }

    private mutating func allReleased(_ now: MonotonicInstant) {
        guard phase == .releasing else { return }
        if let failure {
            guard cutIsOrdered else {
                compensateQuiesce()
                return close(.failed(failure), now)
            }
            return startDeleting(now)
        }
        guard let cutFacts, let group else {
            return fail(SagaFailure(.cutFailed, "The saga has no cut"), now)
        }
        phase = .deciding
        begin(.evidence)
        let evidence = weigh(group, cutFacts)
        self.evidence = evidence
        if plan.policy == .require, evidence.achieved < plan.requested {
            let reasons = evidence.reasons.joined(separator: "; ")
            return fail(
                SagaFailure(
                    .notProven,
                    "The snapshot was cut, but is not proven to be \(plan.requested.text)-consistent: \(reasons)",
                    hint: "It was deleted; take it again, or allow a lower consistency"), now)
        }
        journal(.evidence, .evidence(evidence), then: .label, now)
    }

    private mutating func compensateQuiesce() {
        for layer in QuiesceLayer.allCases.reversed() where holds.contains(where: { $0.order.layer == layer }) {
            actions.append(.stepCompensated(.quiesce(layer), detail: "released"))
        }
    }

    // MARK: Evidence

    private func weigh(_ group: ConsistencyGroup, _ cut: CutFacts) -> Evidence {
        let proofs = group.members.map { member -> MemberProof in
            if let hold = holds.first(where: { $0.order.members.contains(member) }) {
                return hold.proof(of: member, stopped: stopped(hold))
            }
            return MemberProof(
                member: member, heldBeforeCut: false, releasedAfterCut: false, stillHeldAtRelease: false,
                quietSeconds: 0, quiesceSeconds: 0, failure: blocked[member.key] ?? "it was not asked to come to rest",
                artifacts: [:])
        }
        let proven = Set(proofs.filter(\.isProven).map(\.member.key))
        let levels = Dictionary(proofs.map { ($0.member.key, $0.level) }) { first, _ in first }.compactMapValues { $0 }
        let achieved = min(plan.requested, group.level(proven: proven, levels: levels))
        var reasons: [String] = []
        if achieved < plan.requested {
            reasons = group.shortfalls(usable: proven, levels: levels)
            reasons += proofs.filter { !$0.isProven }.map { "\($0.member.text): \($0.failure ?? "not proven")" }
        }
        return Evidence(
            requested: plan.requested, policy: plan.policy, achieved: achieved, reasons: reasons, cut: cut,
            members: proofs)
    }

    mutating func announceLabel(_ now: MonotonicInstant) {
        guard phase == .deciding, let evidence else { return }
        succeed(.evidence, sentence(["\(evidence.achieved.text)-consistent"] + evidence.reasons))
        phase = .labelling
        begin(.label)
        journal(.label, .label, then: .writeLabel, now)
    }

    // MARK: Ending

    mutating func takeEnding(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .labelled:
            guard phase == .labelling, let evidence else { return }
            succeed(.label, "\(evidence.achieved.text)-consistent")
            close(.labelled(evidence), now)
        case .labelFailed(let reason):
            guard phase == .labelling else { return }
            fail(SagaFailure(.labelFailed, "The snapshot's label could not be written: \(reason)"), now)
        case .deleted:
            guard phase == .deleting, let failure else { return }
            succeed(.delete)
            actions.append(.stepCompensated(.cut, detail: "the snapshot was deleted"))
            close(.failed(failure), now)
        case .deleteFailed(let reason):
            guard phase == .deleting else { return }
            deleteAttempts += 1
            if deleteAttempts < limits.deleteAttempts {
                retryDeleteAt = now + limits.retryInterval
            } else {
                leaveToRecovery(reason)
            }
        default: break
        }
    }

    mutating func startDeleting(_ now: MonotonicInstant) {
        guard let failure else { return }
        phase = .deleting
        begin(.delete)
        journal(.delete, .delete(failure), then: .delete, now)
    }

    /// The snapshot stays pending, which nobody sees; the journal stays open, so that recovery tries again.
    private mutating func leaveToRecovery(_ reason: String) {
        actions.append(.stepFailed(.delete, detail: "\(reason); it stays invisible until the node is restarted"))
        phase = .ended
        if let failure { actions.append(.end(.failed(failure), isClosed: false)) }
    }

    mutating func close(_ outcome: Outcome, _ now: MonotonicInstant) {
        phase = .closing
        self.outcome = outcome
        if case .failed(let failure) = outcome {
            journal(.done, .done(failure), then: .close, now)
        } else {
            journal(.done, .done(nil), then: .close, now)
        }
    }

    mutating func end() {
        guard phase == .closing, let outcome else { return }
        phase = .ended
        actions.append(.end(outcome, isClosed: !journalIsBroken))
    }
}
