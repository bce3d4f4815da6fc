// Quiesce and cut: layer by layer, all members of a layer at once, under leases.
extension SnapshotSaga {
    /// The next layer with anything to bring to rest, or the cut.
    mutating func quiesceNext(after layer: QuiesceLayer?, _ now: MonotonicInstant) {
        let later = QuiesceLayer.allCases.filter { candidate in layer.map { candidate > $0 } ?? true }
        for candidate in later {
            let orders = holdOrders(candidate)
            guard !orders.isEmpty else { continue }
            phase = .quiescing(candidate)
            begin(.quiesce(candidate), sentence(orders.flatMap { $0.members.map(\.text) }))
            journal(.quiesce(candidate), .quiesce(orders), then: .hold(candidate), now)
            return
        }
        ready(now)
    }

    private func holdOrders(_ layer: QuiesceLayer) -> [HoldOrder] {
        let usable = (group?.members ?? []).filter { $0.resource.layer == layer && blocked[$0.key] == nil }
        let byPlugin = Dictionary(grouping: usable) { [$0.agent, $0.resource.plugin] }
        return byPlugin.sorted { $0.key.lexicographicallyPrecedes($1.key) }.enumerated().map { index, group in
            HoldOrder(
                holdID: "\(plan.sagaID)-\(layer.rawValue)-\(index)", agent: group.key[0], plugin: group.key[1],
                layer: layer, members: group.value, lease: plan.lease)
        }
    }

    mutating func requestHolds(_ layer: QuiesceLayer, _ now: MonotonicInstant) {
        for order in holdOrders(layer) {
            let lease = Lease(sentAt: now, length: order.lease, cap: limits.holdCap, transit: limits.transit)
            holds.append(Hold(order: order, lease: lease, requestedAt: now))
            actions.append(.hold(order))
        }
    }

    mutating func takeHold(_ event: Event, _ now: MonotonicInstant) {
        switch event {
        case .held(let holdID, let quiesceSeconds):
            guard let index = index(holdID), holds[index].state == .requesting else { return }
            holds[index].quiesceSeconds = quiesceSeconds
            holds[index].heldAt = now
            let missing = holds[index].order.members.filter { quiesceSeconds[$0.resource.id] == nil }
            if let first = missing.first {
                giveUp(index, "the agent's answer does not say that \(first.resource.label) is held", now)
            } else if holds[index].lease.mayHaveEnded(at: now) {
                giveUp(index, "coming to rest took longer than the lease of \(plan.lease.text)", now)
            } else {
                holds[index].state = .held
            }
            layerMayBeDone(now)
        case .holdFailed(let holdID, let reason, let mayBeHeld):
            guard let index = index(holdID), holds[index].state == .requesting else { return }
            giveUp(index, reason, mayBeHeld: mayBeHeld, now)
            layerMayBeDone(now)
        case .renewed(let holdID):
            guard let index = index(holdID), let renewal = holds[index].renewal else { return }
            holds[index].renewal = nil
            holds[index].lease.renewalGranted(sentAt: renewal.sentAt, length: renewal.length)
        case .renewFailed(let holdID, let reason, let isLost):
            guard let index = index(holdID), holds[index].renewal != nil else { return }
            holds[index].renewal = nil
            holds[index].renewRetryAt = now + limits.retryInterval
            guard isLost, holds[index].state == .held else { return }
            if isBeforeCut { giveUp(index, "the hold was lost: \(reason)", now) }
        default: break
        }
    }

    /// A hold that proves nothing any more. It is released at once: nobody is kept quiet for nothing.
    private mutating func giveUp(
        _ index: Int, _ reason: String, mayBeHeld: Bool = true, _ now: MonotonicInstant
    ) {
        holds[index].failure = reason
        holds[index].state = mayBeHeld ? .unsettled : .settled
        let order = holds[index].order
        guard failure == nil else { return }
        if plan.policy == .require {
            let names = order.members.map(\.text).joined(separator: ", ")
            return fail(SagaFailure(.quiesceFailed, "\(names) could not be brought to rest: \(reason)"), now)
        }
        if mayBeHeld { orderRelease([order.holdID], order.layer, now) }
    }

    private mutating func layerMayBeDone(_ now: MonotonicInstant) {
        guard failure == nil, case .quiescing(let layer) = phase else { return }
        let here = holds.filter { $0.order.layer == layer }
        guard !here.isEmpty, here.allSatisfy({ $0.state != .requesting }) else { return }
        let details = here.flatMap { hold in
            hold.order.members.map { member in
                if let failure = hold.failure { return "\(member.text): \(failure)" }
                let seconds = hold.quiesceSeconds[member.resource.id] ?? 0
                return "\(member.text) at rest after \(Duration.text(seconds: seconds))"
            }
        }
        succeed(.quiesce(layer), sentence(details))
        quiesceNext(after: layer, now)
    }

    func index(_ holdID: String) -> Int? { holds.firstIndex { $0.order.holdID == holdID } }

    // MARK: Leases

    var isBeforeCut: Bool {
        switch phase {
        case .quiescing, .readying, .recordingCut: true
        default: false
        }
    }

    /// Renews what is half through, and gives up what may have ended.
    mutating func tendLeases(_ now: MonotonicInstant) {
        guard isBeforeCut || phase == .cutting else { return }
        for index in holds.indices where holds[index].state == .held && failure == nil {
            let lease = holds[index].lease
            if isBeforeCut, lease.mayHaveEnded(at: now) {
                giveUp(index, "its lease could have ended before the cut", now)
            } else if lease.remaining(at: now) * 2 < lease.length {
                renew(index, now)
            }
        }
    }

    private mutating func renew(_ index: Int, _ now: MonotonicInstant) {
        guard holds[index].renewal == nil, now >= holds[index].renewRetryAt ?? now else { return }
        guard let length = holds[index].lease.renewalLength(at: now) else { return }
        holds[index].renewal = (now, length)
        holds[index].renewRetryAt = nil
        holds[index].lease.renewalSent(at: now, length: length, transit: limits.transit)
        let order = holds[index].order
        actions.append(.renew(holdID: order.holdID, agent: order.agent, length: length))
    }

    func wakeup(_ hold: Hold) -> MonotonicInstant? {
        if let retry = hold.releaseRetryAt { return retry }
        guard hold.state == .held, failure == nil, isBeforeCut || phase == .cutting else { return nil }
        let end = isBeforeCut ? hold.lease.earliestEnd : nil
        guard hold.renewal == nil else { return end }
        let half = hold.lease.earliestEnd - hold.lease.length / 2
        let renewAt = max(hold.renewRetryAt ?? half, half) + .nanoseconds(1)
        // Where the cap forbids a renewal now, it will forbid it later too.
        guard hold.lease.renewalLength(at: renewAt) != nil else { return end }
        return min(renewAt, end ?? renewAt)
    }

    // MARK: Cut

    mutating func ready(_ now: MonotonicInstant) {
        phase = .readying
        begin(.cut)
        cutIfReady(now)
    }

    mutating func cutIfReady(_ now: MonotonicInstant) {
        guard phase == .readying, everyLeaseIsLongEnough(now), failure == nil else { return }
        phase = .recordingCut
        journal(.cut, .cut, then: .cut, now)
    }

    private mutating func everyLeaseIsLongEnough(_ now: MonotonicInstant) -> Bool {
        let reserve = limits.cutReserve(lease: plan.lease)
        var isReady = true
        for index in holds.indices where holds[index].state == .held && failure == nil {
            guard holds[index].lease.remaining(at: now) < reserve else { continue }
            if holds[index].renewal == nil, holds[index].lease.renewalLength(at: now) == nil {
                giveUp(index, "it had been held for too long (at most \(limits.holdCap.text)) before the cut", now)
            } else {
                renew(index, now)
                isReady = false
            }
        }
        return isReady && failure == nil
    }

    /// The record took its time: look again before the cut.
    mutating func cutIfStillReady(_ now: MonotonicInstant) {
        guard phase == .recordingCut else { return }
        guard everyLeaseIsLongEnough(now) else {
            if failure == nil { phase = .readying }
            return
        }
        phase = .cutting
        cutIsOrdered = true
        for index in holds.indices { holds[index].wasHeldAtCut = holds[index].state == .held }
        let reserve = limits.cutReserve(lease: plan.lease)
        let ends = holds.filter { $0.state == .held }.map { $0.lease.earliestEnd - reserve / 2 }
        actions.append(.cut(notAfter: ends.min()))
    }

    mutating func takeCut(_ event: Event, _ now: MonotonicInstant) {
        guard phase == .cutting else { return }
        switch event {
        case .cutDone(let facts):
            cutFacts = facts
            succeed(.cut, "epoch \(facts.epoch), durable after \(Duration.text(seconds: facts.durationSeconds))")
            startReleasing(now)
        case .cutTooLate:
            cutIsOrdered = false
            phase = .readying
            if failure != nil { startReleasing(now) }
        case .cutFailed(let reason):
            actions.append(.stepFailed(.cut, detail: reason))
            fail(SagaFailure(.cutFailed, "The snapshot could not be cut: \(reason)"), now)
            startReleasing(now)
        default: break
        }
    }
}
