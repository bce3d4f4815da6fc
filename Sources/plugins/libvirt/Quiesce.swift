import Dispatch
import Glibc
import PluginKit
import Synchronization

/// Brings several guests to rest at the same time, all or none. Each has a thread of its own, because libvirt's calls
/// block and nobody can interrupt one.
final class GuestRound: Sendable {
    fileprivate enum Progress: Sendable {
        case working
        case held(HeldGuest)
        case failed(PluginFailure, mayBeQuiesced: Bool)
    }

    private struct State {
        var progress: [Progress]
        /// Set when the round is given up: what comes to rest after it is released by its own thread.
        var isGivenUp = false
        /// Which guests have been asked.
        var isAsked: [Bool]

        var hasFailed: Bool {
            progress.contains { if case .failed = $0 { true } else { false } }
        }
    }

    /// The part of the lease that coming to rest may take: the rest is for the cut and the release.
    static let budget = 0.8
    /// The longest that a guest agent may take to say that it is there.
    static let defaultAgentSeconds = 2.0

    private let targets: [GuestTarget]
    private let journal: HoldJournal<GuestRecord>
    private let lease: HoldLease
    private let configuration: LibvirtConfiguration
    private let allowsLower: Bool
    private let deadline: MonotonicInstant
    private let wakeup: WakeDescriptor
    private let state: Mutex<State>
    /// Empty when all guests have been asked whether they can be brought to rest: until then none is.
    private let unasked = DispatchGroup()

    private init(
        _ targets: [GuestTarget], _ journal: HoldJournal<GuestRecord>, _ configuration: LibvirtConfiguration,
        _ lease: HoldLease, allowsLower: Bool
    ) throws(PluginFailure) {
        self.targets = targets
        self.journal = journal
        self.lease = lease
        self.configuration = configuration
        self.allowsLower = allowsLower
        deadline = .now.advanced(bySeconds: max(0, lease.remainingSeconds) * Self.budget)
        wakeup = try WakeDescriptor()
        state = Mutex(State(progress: targets.map { _ in .working }, isAsked: targets.map { _ in false }))
    }

    static func run(
        _ parameters: QuiesceParameters, _ configuration: LibvirtConfiguration, lease: HoldLease
    ) async throws(PluginFailure) -> any PluginHold {
        let connected = try await ConnectionPool.open(parameters.resources, configuration, lease: lease)
        let found = await withTaskGroup(of: Result<GuestTarget, PluginFailure>.self) { group in
            for (resource, hypervisor) in connected {
                group.addTask {
                    await OwnThread.run {
                        do throws(PluginFailure) {
                            return .success(try GuestTarget.find(resource, hypervisor, configuration))
                        } catch {
                            return .failure(error)
                        }
                    }
                }
            }
            return await group.reduce(into: [Result<GuestTarget, PluginFailure>]()) { $0.append($1) }
        }
        var targets: [GuestTarget] = []
        for result in found { targets.append(try result.get()) }
        try lease.checkWanted()
        let journal = try HoldJournal<GuestRecord>.create(
            stateDirectory: parameters.stateDirectory, plugin: LibvirtPlugin.name, holdID: parameters.holdID)
        let round: GuestRound
        do throws(PluginFailure) {
            round = try GuestRound(
                targets, journal, configuration, lease, allowsLower: parameters.allowsLower ?? false)
        } catch {
            journal.remove()
            throw error
        }
        return try await OwnThread.run { () throws(PluginFailure) in try round.run() }
    }

    private func run() throws(PluginFailure) -> any PluginHold {
        for _ in targets { unasked.enter() }
        for index in targets.indices {
            OwnThread.start { [self] in
                let result = quiesce(index)
                let isLate = state.withLock { state in
                    if !state.isGivenUp { state.progress[index] = result }
                    return state.isGivenUp
                }
                if isLate { finishLate(index, result) }
                // A failure is noted before the others go on.
                markAsked(index)
                wakeup.wake()
            }
        }
        do {
            let members = try awaitAll()
            try lease.checkWanted()
            return GuestHold(members, journal: journal, lease: lease)
        } catch {
            throw undo(after: error)
        }
    }

    /// Waits until all are at rest.
    ///
    /// - Throws: the first failure; `timedOut`, `leaseEnded`, `cancelled`.
    private func awaitAll() throws(PluginFailure) -> [HeldGuest] {
        while true {
            let progress = state.withLock { $0.progress }
            var members: [HeldGuest] = []
            var slow: [String] = []
            var failures: [PluginFailure] = []
            for (target, step) in zip(targets, progress) {
                switch step {
                case .held(let member): members.append(member)
                case .working: slow.append(target.label)
                case .failed(let failure, _): failures.append(failure)
                }
            }
            // Not one of those that only did not begin because of it.
            if let failure = failures.first(where: { $0.code != .cancelled }) ?? failures.first { throw failure }
            if slow.isEmpty { return members }
            try lease.checkWanted()
            let left = deadline.secondsFromNow
            guard left > 0 else {
                throw PluginFailure(
                    .timedOut, "\(slow.joined(separator: ", ")) did not come to rest within the lease",
                    hint: "A freeze hook that takes long, or much memory to save? Ask for a longer lease")
            }
            wakeup.wait(milliseconds: Int32(min(left * 1_000 + 1, 100)))
        }
    }

    /// Releases what is held. What is still under way is released by its own thread, or by `recover`.
    private func undo(after error: PluginFailure) -> PluginFailure {
        let progress = state.withLock { state in
            state.isGivenUp = true
            return state.progress
        }
        let left = Mutex(progress.count)
        let unreleased = Mutex(false)
        for (index, step) in progress.enumerated() {
            OwnThread.start { [self] in
                switch step {
                case .held(let member):
                    if member.release(journal).mayBeQuiesced == true { unreleased.withLock { $0 = true } }
                case .failed(_, let mayBeQuiesced): if mayBeQuiesced { unreleased.withLock { $0 = true } }
                case .working: while isWorking(index), lease.remainingSeconds > 0 { usleep(20_000) }
                }
                left.withLock { $0 -= 1 }
                wakeup.wake()
            }
        }
        while left.withLock({ $0 }) > 0, lease.remainingSeconds > -1 { wakeup.wait(milliseconds: 50) }
        let isDone =
            left.withLock { $0 } == 0 && !unreleased.withLock { $0 } && !targets.indices.contains(where: isWorking)
        if isDone {
            journal.remove()
            return error
        }
        // A code that tells the agent: not everything is back yet, so recover.
        return PluginFailure(
            .timedOut, error.code == .timedOut ? error.message : "\(error.message). Not everything is released yet",
            hint: error.hint)
    }

    private func isWorking(_ index: Int) -> Bool {
        state.withLock { if case .working = $0.progress[index] { true } else { false } }
    }

    private func finishLate(_ index: Int, _ result: Progress) {
        var result = result
        if case .held(let member) = result {
            let mayBeQuiesced = member.release(journal).mayBeQuiesced == true
            result = .failed(
                PluginFailure(.cancelled, "\(targets[index].label) came to rest too late"),
                mayBeQuiesced: mayBeQuiesced)
        }
        if case .failed(_, let mayBeQuiesced) = result, mayBeQuiesced { return }
        state.withLock { $0.progress[index] = result }
    }

    // MARK: - One guest

    /// No guest is brought to rest before all have been asked: none is quiet for as long as another one's agent takes
    /// to say that it is there, and where one does not, the others are not touched.
    private func awaitOthers(_ index: Int) throws(QuiesceFailure) {
        markAsked(index)
        while unasked.wait(timeout: .now() + .milliseconds(100)) == .timedOut, lease.isWanted, deadline > .now {}
        guard lease.isWanted, !state.withLock({ $0.isGivenUp || $0.hasFailed }) else {
            throw QuiesceFailure(
                .cancelled, "\(targets[index].label) was left alone: another guest cannot come to rest")
        }
    }

    private func markAsked(_ index: Int) {
        let isFirst = state.withLock { state in
            defer { state.isAsked[index] = true }
            return !state.isAsked[index]
        }
        if isFirst { unasked.leave() }
    }

    /// The first of its modes that works; only the first one where the policy allows nothing less.
    private func quiesce(_ index: Int) -> Progress {
        let target = targets[index]
        let began = MonotonicInstant.now
        let modes = [target.own.mode ?? .agent] + (allowsLower ? target.own.fallback ?? [] : [])
        var failures: [String] = []
        for mode in modes {
            target.startWatching()
            do throws(QuiesceFailure) {
                var member = try quiesce(index, mode)
                member.quiesceSeconds = member.heldAt.seconds(since: began)
                if !failures.isEmpty { member.fallbackReason = failures.joined(separator: "; ") }
                return .held(member)
            } catch {
                if error.mayBeQuiesced { return .failed(error.failure, mayBeQuiesced: true) }
                guard allowsLower, lease.isWanted else { return .failed(error.failure, mayBeQuiesced: false) }
                failures.append(error.failure.message)
            }
        }
        // Left running, and reported so at the release: the others of the group keep what they prove.
        var member = HeldGuest(target, .none, heldAt: .now)
        member.unheldBecause = failures.joined(separator: "; ")
        return .held(member)
    }

    private func quiesce(_ index: Int, _ mode: GuestMode) throws(QuiesceFailure) -> HeldGuest {
        let target = targets[index]
        guard target.runID != nil else { return HeldGuest(target, .off, heldAt: .now) }
        switch mode {
        case .agent:
            try askAgent(target)
            do throws(QuiesceFailure) {
                try awaitOthers(index)
            } catch {
                try? target.call(until: .now) { guest throws(LibvirtError) in guest.restoreAgentLimit() }
                throw error
            }
            return try freeze(target)
        case .pause, .memory:
            let file = mode == .memory ? try memoryFile(target) : nil
            try checkRunning(target)
            try awaitOthers(index)
            return try suspend(target, memoryFile: file)
        case .none: return HeldGuest(target, .inside, heldAt: .now)
        }
    }

    /// Whether the guest agent is there. Nothing is asked of it that could come true later.
    private func askAgent(_ target: GuestTarget) throws(QuiesceFailure) {
        let askSeconds = min(
            configuration.agentTimeoutSeconds ?? Self.defaultAgentSeconds, max(1, deadline.secondsFromNow / 2))
        do throws(LibvirtError) {
            try target.call(until: deadline) { guest throws(LibvirtError) in
                try guest.limitAgent(seconds: askSeconds)
                try guest.askAgent()
            }
        } catch {
            try? target.call(until: .now) { guest throws(LibvirtError) in guest.restoreAgentLimit() }
            throw QuiesceFailure(AgentTrouble.explain(error, target))
        }
    }

    private func freeze(_ target: GuestTarget) throws(QuiesceFailure) -> HeldGuest {
        do throws(LibvirtError) {
            try target.call(until: deadline) { guest throws(LibvirtError) in
                try guest.limitAgent(seconds: max(1, deadline.secondsFromNow.rounded(.down)))
            }
        } catch {
            throw QuiesceFailure(AgentTrouble.explain(error, target))
        }
        try note(target.record(.intent, .freeze))
        PausePoint.reachBlocking("plugin.freeze.before")
        let count: Int
        do throws(LibvirtError) {
            // Not repeated over a new connection: whether the first request was carried out is not known.
            count = try target.call(until: .now) { guest throws(LibvirtError) in try guest.freeze() }
        } catch {
            throw undoFreeze(target, error)
        }
        var member = HeldGuest(target, .frozen, heldAt: .now)
        PausePoint.reachBlocking("plugin.freeze.after")
        member.frozenCount = count
        guard count > 0 else {
            _ = member.release(journal)
            throw QuiesceFailure(
                PluginFailure(
                    .quiesceFailed, "The guest agent of \(target.label) found no file system to freeze",
                    hint: "Are the file systems mounted in the guest? Else use the mode pause"))
        }
        member.writes = try? target.call(until: deadline) { guest throws(LibvirtError) in
            try guest.writes(target.disks)
        }
        try? note(target.record(.held, .freeze))
        return member
    }

    /// After a freeze that failed: the guest is thawed, so that freeze hooks that had run are undone, too.
    private func undoFreeze(_ target: GuestTarget, _ error: LibvirtError) -> QuiesceFailure {
        let failure = AgentTrouble.explain(error, target)
        if error.saysFrozen {
            try? journal.append(target.record(.refused, .freeze))
            return QuiesceFailure(failure)
        }
        let member = HeldGuest(target, .frozen, heldAt: .now)
        let isReleased = member.release(journal, isExpected: false).mayBeQuiesced != true
        return QuiesceFailure(failure, mayBeQuiesced: !isReleased)
    }

    private func checkRunning(_ target: GuestTarget) throws(QuiesceFailure) {
        let state: Guest.State
        do throws(LibvirtError) {
            state = try target.call(until: deadline) { guest throws(LibvirtError) in try guest.state().state }
        } catch {
            throw QuiesceFailure(.quiesceFailed, "\(target.label) cannot be looked at: \(error.message)")
        }
        guard state == .running else {
            throw QuiesceFailure(
                PluginFailure(
                    .alreadyFrozen, "\(target.label) is suspended already, by somebody else",
                    hint: "virsh resume \(target.name), then try again"))
        }
    }

    private func suspend(_ target: GuestTarget, memoryFile: String?) throws(QuiesceFailure) -> HeldGuest {
        try note(target.record(.intent, .suspend, memoryFile: memoryFile))
        PausePoint.reachBlocking("plugin.suspend.before")
        var member = HeldGuest(target, .suspended, heldAt: .now)
        member.memoryFile = memoryFile
        do throws(LibvirtError) {
            try target.call(until: .now) { guest throws(LibvirtError) in try guest.suspend() }
            member.heldAt = .now
            PausePoint.reachBlocking("plugin.suspend.after")
            member.writes = try? target.call(until: deadline) { guest throws(LibvirtError) in
                try guest.writes(target.disks)
            }
            if let memoryFile {
                try target.call(until: .now) { guest throws(LibvirtError) in
                    try guest.saveMemory(to: memoryFile, disks: target.allDisks)
                }
                FileSync.run(memoryFile)
            }
        } catch {
            let isReleased = member.release(journal, isExpected: false).mayBeQuiesced != true
            throw QuiesceFailure(
                PluginFailure(.quiesceFailed, "\(target.label) could not be suspended: \(error.message)"),
                mayBeQuiesced: !isReleased)
        }
        try? note(target.record(.held, .suspend, memoryFile: memoryFile))
        return member
    }

    /// Where this guest's memory goes.
    private func memoryFile(_ target: GuestTarget) throws(QuiesceFailure) -> String {
        guard let directory = target.memoryDirectory else {
            throw QuiesceFailure(
                PluginFailure(
                    .badConfiguration, "There is no place for the memory of \(target.label)",
                    hint: "Set memoryDirectory to a directory on a file system of a volume of the snapshot"))
        }
        return "\(directory)/\(target.uuid)-\(lease.holdID).memory"
    }

    private func note(_ record: GuestRecord) throws(QuiesceFailure) {
        do throws(PluginFailure) { try journal.append(record) } catch { throw QuiesceFailure(error) }
    }
}

/// The cut takes what is on the volume, not what is in the host's cache.
enum FileSync {
    static func run(_ path: String) {
        for path in [path, String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])] {
            let descriptor = open(path, O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            fsync(descriptor)
            close(descriptor)
        }
    }
}

/// Why a guest did not come to rest, and whether it may do so still.
struct QuiesceFailure: Error {
    var failure: PluginFailure
    var mayBeQuiesced: Bool

    init(_ failure: PluginFailure, mayBeQuiesced: Bool = false) {
        self.failure = failure
        self.mayBeQuiesced = mayBeQuiesced
    }

    init(_ code: PluginFailure.Code, _ message: String) { self.init(PluginFailure(code, message)) }
}

/// What libvirt says of a guest agent, for people.
enum AgentTrouble {
    static func explain(_ error: LibvirtError, _ target: GuestTarget) -> PluginFailure {
        explain(error, label: target.label, name: target.name)
    }

    static func explain(_ error: LibvirtError, label: String, name: String) -> PluginFailure {
        if error.saysFrozen {
            return PluginFailure(
                .alreadyFrozen, "The file systems of \(label) are frozen already, by somebody else",
                hint: "Wait for the other backup, or run: virsh domfsthaw \(name)")
        }
        if error.isOfAgent {
            return PluginFailure(
                .quiesceFailed, "The guest agent of \(label) does not answer: \(error.message)",
                hint: "Is qemu-guest-agent running in the guest? Else use the mode pause")
        }
        if error.message.contains("hook") {
            return PluginFailure(
                .quiesceFailed, "A freeze hook of \(label) failed: \(error.message)",
                hint: "Look at the guest agent's log in the guest")
        }
        if error.message.contains("not configured") {
            return PluginFailure(
                .quiesceFailed, "\(label) has no channel for a guest agent",
                hint: "Add the channel org.qemu.guest_agent.0 to its definition, or use the mode pause")
        }
        return PluginFailure(.quiesceFailed, "\(label) could not be frozen: \(error.message)")
    }
}
