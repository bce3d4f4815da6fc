import Glibc
import PluginKit
import Synchronization

/// One guest at rest, and what proves that it stayed so.
struct HeldGuest: Sendable {
    enum How: Sendable, Equatable {
        case frozen
        case suspended
        /// It does not run.
        case off
        /// Left to an agent of ours inside of it.
        case inside
        /// It could not be brought to rest, and the policy allows that.
        case none
    }

    var target: GuestTarget
    var how: How
    /// When it had come to rest.
    var heldAt: MonotonicInstant
    var quiesceSeconds = 0.0
    /// File systems that were frozen.
    var frozenCount = 0
    /// What had been written to its disks when it had come to rest; nil where QEMU did not say.
    var writes: WriteCounters?
    var memoryFile: String?
    /// Why a lesser mode was used.
    var fallbackReason: String?
    /// Why it is not held at all.
    var unheldBecause: String?

    init(_ target: GuestTarget, _ how: How, heldAt: MonotonicInstant) {
        self.target = target
        self.how = how
        self.heldAt = heldAt
    }

    /// How long a release keeps trying. The agent ends the process after 10 s, and `recover` goes on.
    private static let releaseSeconds = 8.0
    /// The longest that a guest agent may take for a thaw.
    private static let thawSeconds = 5.0

    /// Lets the guest go. Blocks.
    ///
    /// - Parameter isExpected: false for one of which it is not known whether it ever came to rest.
    func release(_ journal: HoldJournal<GuestRecord>, isExpected: Bool = true) -> UnquiesceResult.Member {
        let deadline = MonotonicInstant.now.advanced(bySeconds: Self.releaseSeconds)
        PausePoint.reachBlocking("plugin.release.before")
        switch how {
        case .frozen: return thaw(journal, until: deadline, isExpected)
        case .suspended: return resume(journal, until: deadline)
        case .off: return checkOff(until: deadline)
        case .inside: return member(failure: nil)
        case .none: return member(failure: unheldBecause ?? "it was not brought to rest")
        }
    }

    private func member(failure: String?, mayBeQuiesced: Bool? = nil, quietUntil: MonotonicInstant = .now)
        -> UnquiesceResult.Member
    {
        var member = UnquiesceResult.Member(
            resource: target.resource, stillHeld: failure == nil, quietSeconds: quietUntil.seconds(since: heldAt),
            failure: failure, artifacts: artifacts, mayBeQuiesced: mayBeQuiesced)
        // Of another instant than the disks: a guest that went on from it would damage them.
        if failure != nil { member.artifacts?["memoryFile"] = nil }
        member.level = level
        return member
    }

    /// What this way of coming to rest makes of the guest's disks.
    private var level: PluginLevel? {
        switch how {
        case .suspended: target.own.insideAgent == nil ? .crash : nil
        // As discovered: the resource says it.
        case .frozen, .off, .inside, .none: nil
        }
    }

    private var artifacts: [String: String] {
        var artifacts = target.artifacts
        switch how {
        case .frozen: artifacts["mode"] = GuestMode.agent.rawValue
        case .suspended: artifacts["mode"] = (memoryFile == nil ? GuestMode.pause : .memory).rawValue
        case .off: artifacts["mode"] = "off"
        case .inside, .none: artifacts["mode"] = GuestMode.none.rawValue
        }
        if how == .frozen { artifacts["frozenFileSystems"] = "\(frozenCount)" }
        artifacts["memoryFile"] = memoryFile
        artifacts["fallback"] = fallbackReason
        return artifacts
    }

    /// The proof has three parts. A thaw answers how many file systems it thawed: fewer than were frozen means that
    /// somebody thawed before. The run of the guest is the same. And since a thaw followed by another freeze would pass
    /// both: nothing was written to its disks in between, as QEMU itself counts.
    private func thaw(
        _ journal: HoldJournal<GuestRecord>, until deadline: MonotonicInstant, _ isExpected: Bool
    ) -> UnquiesceResult.Member {
        let writesNow = isExpected ? currentWrites(until: deadline) : nil
        let askedAt = MonotonicInstant.now
        var last = ""
        while true {
            do throws(LibvirtError) {
                guard try target.isSameRun(until: deadline) else {
                    note(journal, .freeze)
                    return member(failure: "The guest was stopped during the hold")
                }
                let thawed = try target.call(until: deadline) { guest throws(LibvirtError) in
                    try guest.limitAgent(seconds: min(Self.thawSeconds, max(1, deadline.secondsFromNow)))
                    return try guest.thaw()
                }
                PausePoint.reachBlocking("plugin.release.after")
                note(journal, .freeze)
                try? target.call(until: .now) { guest throws(LibvirtError) in guest.restoreAgentLimit() }
                let failure =
                    thawed < frozenCount
                    ? "Somebody else thawed it during the hold: \(thawed) of \(frozenCount) file systems were frozen"
                    : writeFailure(writesNow)
                return member(failure: failure, quietUntil: askedAt)
            } catch {
                last = error.message
                if error.isNoDomain {
                    note(journal, .freeze)
                    return member(failure: "The guest went away during the hold")
                }
            }
            guard deadline > .now else { break }
            usleep(100_000)
        }
        return member(failure: "It could not be thawed: \(last)", mayBeQuiesced: true)
    }

    private func resume(
        _ journal: HoldJournal<GuestRecord>, until deadline: MonotonicInstant
    ) -> UnquiesceResult.Member {
        let writesNow = currentWrites(until: deadline)
        let askedAt = MonotonicInstant.now
        var last = ""
        while true {
            do throws(LibvirtError) {
                guard try target.isSameRun(until: deadline) else {
                    note(journal, .suspend)
                    return member(failure: "The guest was stopped during the hold")
                }
                let wasPaused = try target.call(until: deadline) { guest throws(LibvirtError) in
                    guard try guest.state().state == .paused else { return false }
                    try guest.resume()
                    return true
                }
                PausePoint.reachBlocking("plugin.release.after")
                note(journal, .suspend)
                let failure = wasPaused ? writeFailure(writesNow) : "Somebody else resumed it during the hold"
                // The snapshot has its copy of it.
                GuestJournal.remove(memoryFile)
                return member(failure: failure, quietUntil: askedAt)
            } catch {
                last = error.message
                if error.isNoDomain {
                    note(journal, .suspend)
                    return member(failure: "The guest went away during the hold")
                }
                if memoryFile != nil {
                    try? target.call(until: .now) { guest throws(LibvirtError) in guest.abortJob() }
                }
            }
            guard deadline > .now else { break }
            usleep(100_000)
        }
        return member(failure: "It could not be resumed: \(last)", mayBeQuiesced: true)
    }

    private func checkOff(until deadline: MonotonicInstant) -> UnquiesceResult.Member {
        do throws(LibvirtError) {
            return member(failure: try target.isSameRun(until: deadline) ? nil : "It was started during the hold")
        } catch {
            return member(failure: error.isNoDomain ? nil : "Whether it was started is not known: \(error.message)")
        }
    }

    private func currentWrites(until deadline: MonotonicInstant) -> WriteCounters? {
        try? target.call(until: deadline) { guest throws(LibvirtError) in try guest.writes(target.disks) }
    }

    private func writeFailure(_ now: WriteCounters?) -> String? {
        guard !target.disks.isEmpty else { return nil }
        guard let writes, let now else {
            return "QEMU did not say whether anything was written to its disks during the hold"
        }
        guard now != writes else { return nil }
        return "\(now.bytes - writes.bytes) bytes were written to its disks during the hold"
    }

    private func note(_ journal: HoldJournal<GuestRecord>, _ action: GuestRecord.Action) {
        try? journal.append(target.record(.released, action, memoryFile: memoryFile))
    }
}

/// Guests at rest together.
final class GuestHold: PluginHold {
    private let guests: [HeldGuest]
    private let journal: HoldJournal<GuestRecord>
    private let isReleasing: ReleaseFlag

    /// Set before we resume a guest ourselves: libvirt tells us of that, too.
    final class ReleaseFlag: Sendable {
        private let value = Mutex(false)
        var isSet: Bool { value.withLock { $0 } }
        func set() { value.withLock { $0 = true } }
    }

    init(_ guests: [HeldGuest], journal: HoldJournal<GuestRecord>, lease: HoldLease) {
        let flag = ReleaseFlag()
        self.guests = guests
        self.journal = journal
        isReleasing = flag
        for guest in guests where guest.how != .none && guest.how != .inside {
            guest.target.watch { event in
                guard !flag.isSet, let reason = Self.loss(of: guest.how, event) else { return }
                lease.reportLost(resource: guest.target.resource, reason: "\(guest.target.label) \(reason)")
            }
        }
    }

    static func loss(of how: HeldGuest.How, _ event: LifecycleEvent) -> String? {
        switch (how, event) {
        case (.frozen, .stopped), (.suspended, .stopped): "was stopped during the hold"
        case (.frozen, .migrated), (.suspended, .migrated): "was moved to another host during the hold"
        case (.suspended, .resumed): "was resumed by somebody else during the hold"
        case (_, .started): "was started during the hold"
        default: nil
        }
    }

    var members: [QuiesceResult.Member] {
        guests.map { QuiesceResult.Member(resource: $0.target.resource, quiesceSeconds: $0.quiesceSeconds) }
    }

    func release(_ reason: ReleaseReason) async -> [UnquiesceResult.Member] {
        isReleasing.set()
        let released = await withTaskGroup(of: (Int, UnquiesceResult.Member).self) { group in
            for (index, guest) in guests.enumerated() {
                group.addTask { [journal] in (index, await OwnThread.run { guest.release(journal) }) }
            }
            return await group.reduce(into: [(Int, UnquiesceResult.Member)]()) { $0.append($1) }
        }
        let members = released.sorted { $0.0 < $1.0 }.map(\.1)
        OwnThread.start { [guests] in for guest in guests { guest.target.stopWatching() } }
        if members.allSatisfy({ $0.mayBeQuiesced != true }) { journal.remove() }
        return members
    }
}
