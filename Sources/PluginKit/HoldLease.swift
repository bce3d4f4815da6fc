import Synchronization

/// How long a hold may last: shared by the hold and by what ends it.
public final class HoldLease: Sendable {
    private struct State {
        var deadline: MonotonicInstant
        var unwanted: ReleaseReason?
        var lost: [String: String] = [:]
    }

    public let holdID: String
    private let state: Mutex<State>
    private let onLoss: @Sendable (_ resource: String, _ reason: String) -> Void

    /// For tests of a plug-in without `PluginMain`.
    public init(
        holdID: String, leaseSeconds: Double,
        onLoss: @escaping @Sendable (_ resource: String, _ reason: String) -> Void = { _, _ in }
    ) {
        self.holdID = holdID
        self.onLoss = onLoss
        state = Mutex(State(deadline: .now.advanced(bySeconds: leaseSeconds)))
    }

    public var deadline: MonotonicInstant { state.withLock { $0.deadline } }

    /// Negative when it has ended.
    public var remainingSeconds: Double { deadline.secondsFromNow }

    /// False once the lease has ended or the hold is to be released: a quiesce still under way gives up.
    public var isWanted: Bool {
        state.withLock { $0.unwanted == nil && $0.deadline > .now }
    }

    /// - Throws: `leaseEnded` or `cancelled` when the hold is not wanted any more.
    public func checkWanted() throws(PluginFailure) {
        let (unwanted, ended) = state.withLock { ($0.unwanted, $0.deadline <= .now) }
        if ended || unwanted == .leaseEnded {
            throw PluginFailure(
                .leaseEnded, "The lease ended before everything was quiesced",
                hint: "Ask for a longer lease, or find what makes the quiesce slow")
        }
        if unwanted != nil {
            throw PluginFailure(.cancelled, "The hold was released before everything was quiesced")
        }
    }

    /// Says that a resource is not held any more, though nobody asked for its release. Once for each resource.
    public func reportLost(resource: String, reason: String) {
        let isNew = state.withLock { $0.lost.updateValue(reason, forKey: resource) == nil }
        if isNew { onLoss(resource, reason) }
    }

    public var lost: [String: String] { state.withLock { $0.lost } }

    func renew(until deadline: MonotonicInstant) { state.withLock { $0.deadline = deadline } }

    func giveUp(_ reason: ReleaseReason) {
        state.withLock { if $0.unwanted == nil { $0.unwanted = reason } }
    }
}
