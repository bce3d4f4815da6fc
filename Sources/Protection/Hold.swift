/// One hold as the saga knows it.
struct Hold: Sendable {
    enum State: Sendable, Equatable {
        /// Asked for; held or not is not known.
        case requesting
        case held
        /// It failed or was lost, but the agent may be holding: it has to be released.
        case unsettled
        /// Released, never held, or the lease has surely ended.
        case settled
    }

    let order: HoldOrder
    var lease: Lease
    var state: State = .requesting
    var requestedAt: MonotonicInstant
    var heldAt: MonotonicInstant?
    var quiesceSeconds: [String: Double] = [:]
    /// Why it proves nothing.
    var failure: String?
    /// It was held, for all that was known, when the cut began.
    var wasHeldAtCut = false

    /// When the renewal in flight was sent, and how long it was.
    var renewal: (sentAt: MonotonicInstant, length: Duration)?
    var renewRetryAt: MonotonicInstant?

    /// The release is journalled or being journalled.
    var releaseIsOrdered = false
    var isReleasing = false
    /// When the first attempt was sent: nothing was released by the saga before it.
    var releaseSentAt: MonotonicInstant?
    var releaseWasAfterCut = false
    var releaseRetryAt: MonotonicInstant?
    var settledAt: MonotonicInstant?
    var answers: [String: ReleaseAnswer] = [:]

    init(order: HoldOrder, lease: Lease, requestedAt: MonotonicInstant) {
        self.order = order
        self.lease = lease
        self.requestedAt = requestedAt
    }

    /// It brings a machine to rest that an agent runs in.
    func isAround(agent: String) -> Bool {
        order.members.contains { $0.resource.insideAgents?.contains(agent) == true }
    }

    /// How much shorter than the node's own measurement the agent's may be: clock rates, and plug-ins that count in
    /// milliseconds.
    static let quietTolerance: Duration = .milliseconds(1)

    /// What this hold proves about one of its members.
    ///
    /// - Parameter stopped: for how long, at most, the agent's own clock stood still with the machine that it runs in.
    func proof(of member: Member, stopped: Duration = .zero) -> MemberProof {
        let answer = answers[member.resource.id]
        var failure = failure ?? answer?.failure
        var stillHeld = answer?.stillHeld ?? false
        if let answer, stillHeld, let shortfall = quietShortfall(answer, stopped) {
            stillHeld = false
            failure = failure ?? shortfall
        }
        if answer == nil { failure = failure ?? "the release was not answered" }
        if !stillHeld { failure = failure ?? "the hold had been lost before the release" }
        return MemberProof(
            member: member, heldBeforeCut: wasHeldAtCut, releasedAfterCut: wasHeldAtCut && releaseWasAfterCut,
            stillHeldAtRelease: stillHeld, quietSeconds: answer?.quietSeconds ?? 0,
            quiesceSeconds: quiesceSeconds[member.resource.id] ?? 0, failure: failure,
            artifacts: answer?.artifacts ?? [:], level: answer?.level ?? member.resource.level)
    }

    /// The member was quiet before `heldAt` and was not released before `releaseSentAt`. If the agent measured less
    /// than what lies between, the hold was lost and taken again.
    private func quietShortfall(_ answer: ReleaseAnswer, _ stopped: Duration) -> String? {
        guard let heldAt, let releaseSentAt else { return "it was never known to be held" }
        let least = Lease.shortest(releaseSentAt - heldAt) - Self.quietTolerance - stopped
        guard answer.quietSeconds < least.inSeconds else { return nil }
        return "it was quiet for \(Duration.text(seconds: answer.quietSeconds)), but should have been for at least "
            + "\(least.text): the hold was lost and taken again"
    }
}
