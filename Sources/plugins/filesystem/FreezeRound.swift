import CLinux
import Glibc
import PluginKit
import Synchronization

/// Threads that are inside a freeze. As long as this process lives, each undoes what nobody wants any more.
enum FreezesUnderWay {
    static let count = Mutex(0)
}

/// Freezes several file systems, all or none. Blocks its thread; each freeze has a thread of its own, because the
/// kernel lets nobody interrupt one.
final class FreezeRound: Sendable {
    private enum Progress {
        case working
        case frozen(MonotonicInstant)
        case failed(Int32)
    }

    private struct State {
        var progress: [Progress]
        /// Set when the round is given up: a freeze that succeeds after it is undone by its own thread.
        var isGivenUp = false
    }

    /// The part of the lease that the freeze may take: the rest is for the cut and the release.
    private static let budget = 0.8

    private let targets: [FreezeTarget]
    private let journal: HoldJournal<FreezeRecord>
    private let lease: HoldLease
    private let wakeup: WakeDescriptor
    private let state: Mutex<State>

    private init(
        _ targets: [FreezeTarget], _ journal: HoldJournal<FreezeRecord>, _ lease: HoldLease
    ) throws(PluginFailure) {
        self.targets = targets
        self.journal = journal
        self.lease = lease
        wakeup = try WakeDescriptor()
        state = Mutex(State(progress: targets.map { _ in .working }))
    }

    static func run(_ parameters: QuiesceParameters, lease: HoldLease) throws(PluginFailure) -> any PluginHold {
        let guardian = FreezeGuard(
            mounts: .current(), stateDirectory: parameters.stateDirectory,
            protectedPaths: parameters.protectedPaths ?? [])
        var targets: [FreezeTarget] = []
        for resource in parameters.resources {
            let entry = try guardian.mount(of: resource)
            try guardian.check(entry)
            let target = try FreezeTarget(resource.id, entry)
            guard !targets.contains(where: { $0.record.superblock == target.record.superblock }) else {
                throw PluginFailure(.badRequest, "\(resource.id) is the same file system as another one of the request")
            }
            targets.append(target)
        }
        let journal = try HoldJournal<FreezeRecord>.create(
            stateDirectory: parameters.stateDirectory, plugin: FilesystemPlugin.name, holdID: parameters.holdID)
        let round: FreezeRound
        do throws(PluginFailure) {
            round = try FreezeRound(targets, journal, lease)
        } catch {
            journal.remove()
            throw error
        }
        return try round.run()
    }

    private func run() throws(PluginFailure) -> any PluginHold {
        let began = MonotonicInstant.now
        let deadline = began.advanced(bySeconds: lease.remainingSeconds * Self.budget)
        // What is dirty goes to disk while everybody can still write: the freeze itself has little left to flush.
        work { target in clinux_sync_filesystem(target.descriptor) }
        do {
            try awaitAll("written out", until: deadline)
            for target in targets { try journal.append(target.record(.intent)) }
        } catch {
            state.withLock { $0.isGivenUp = true }
            journal.remove()
            throw error
        }
        state.withLock { state in state.progress = targets.map { _ in .working } }
        freezeAll()
        do {
            try awaitAll("frozen", until: deadline)
            let stop = try WakeDescriptor()
            try lease.checkWanted()
            return FreezeHold(frozenMembers(began), journal: journal, lease: lease, wakeup: stop)
        } catch {
            undo()
            // A code that tells the agent: not everything is back yet.
            if !isIdle {
                throw PluginFailure(
                    .timedOut,
                    error.code == .timedOut ? error.message : "\(error.message). A freeze is still under way",
                    hint: error.hint)
            }
            throw error
        }
    }

    private func work(_ body: @escaping @Sendable (FreezeTarget) -> Int32) {
        for (index, target) in targets.enumerated() {
            OwnThread.start { [self] in
                let code = body(target)
                state.withLock { state in
                    if !state.isGivenUp { state.progress[index] = code == 0 ? .frozen(.now) : .failed(code) }
                }
                wakeup.wake()
            }
        }
    }

    private func freezeAll() {
        for (index, target) in targets.enumerated() {
            FreezesUnderWay.count.withLock { $0 += 1 }
            OwnThread.start { [self] in
                defer { FreezesUnderWay.count.withLock { $0 -= 1 } }
                PausePoint.reachBlocking("plugin.filesystem.freeze.before")
                let code = clinux_freeze(target.descriptor)
                PausePoint.reachBlocking("plugin.filesystem.freeze.after")
                let isGivenUp = state.withLock { state in
                    if !(state.isGivenUp && code == 0) {
                        state.progress[index] = code == 0 ? .frozen(.now) : .failed(code)
                    }
                    // Under the lock, so that it never comes after the note of an undo.
                    try? journal.append(target.record(code == 0 ? .frozen : .refused))
                    return state.isGivenUp
                }
                if isGivenUp {
                    if code == 0 { thaw(index) }
                    removeJournalWhenIdle()
                }
                wakeup.wake()
            }
        }
    }

    /// Waits until all are done.
    ///
    /// - Throws: the first failure; `timedOut`, `leaseEnded`, `cancelled`.
    private func awaitAll(_ what: String, until deadline: MonotonicInstant) throws(PluginFailure) {
        while true {
            let progress = state.withLock { $0.progress }
            for (target, step) in zip(targets, progress) {
                if case .failed(let code) = step { throw failure(target, what, code) }
            }
            let slow = zip(targets, progress).filter { if case .working = $0.1 { true } else { false } }
            if slow.isEmpty { return }
            try lease.checkWanted()
            let left = deadline.secondsFromNow
            guard left > 0 else {
                let names = slow.map(\.0.mountPoint).joined(separator: ", ")
                throw PluginFailure(
                    .timedOut, "\(names) could not be \(what) within the lease",
                    hint: "Much unwritten data, or a slow or stuck device. Try again, or ask for a longer lease")
            }
            wakeup.wait(milliseconds: Int32(min(left * 1_000 + 1, 100)))
        }
    }

    private func failure(_ target: FreezeTarget, _ what: String, _ code: Int32) -> PluginFailure {
        switch code {
        case EBUSY:
            PluginFailure(
                .alreadyFrozen, "\(target.mountPoint) is frozen already, by somebody else",
                hint: "Wait for the other backup, or run: fsfreeze --unfreeze \(target.mountPoint)")
        case EPERM:
            PluginFailure(
                .quiesceFailed, "\(target.mountPoint) could not be \(what): \(errorText(code))",
                hint: "The agent needs to run as root (CAP_SYS_ADMIN)")
        default:
            PluginFailure(.quiesceFailed, "\(target.mountPoint) could not be \(what): \(errorText(code))")
        }
    }

    private func frozenMembers(_ began: MonotonicInstant) -> [FreezeHold.Member] {
        var members: [FreezeHold.Member] = []
        for (target, step) in zip(targets, state.withLock({ $0.progress })) {
            guard case .frozen(let at) = step else { continue }
            // The kernel keeps no writer out of a read-only file system, and a canary would sing at once. Its freeze
            // keeps it from becoming writable instead.
            let canary = target.isReadOnly ? nil : Canary(target)
            members.append(
                FreezeHold.Member(
                    target: target, canary: canary, frozenAt: at, quiesceSeconds: at.seconds(since: began)))
        }
        return members
    }

    private func undo() {
        let frozen = state.withLock { state in
            state.isGivenUp = true
            return state.progress.indices.filter { if case .frozen = state.progress[$0] { true } else { false } }
        }
        for index in frozen { thaw(index) }
        // An answer that says none is held should find none held. A freeze still under way undoes itself when the
        // kernel gives it back; that may take longer than anyone waits.
        while !isIdle, lease.remainingSeconds > 0 { wakeup.wait(milliseconds: 100) }
        removeJournalWhenIdle()
    }

    private func thaw(_ index: Int) {
        let code = clinux_thaw(targets[index].descriptor)
        if code == 0 || code == EINVAL { try? journal.append(targets[index].record(.thawed)) }
        state.withLock { $0.progress[index] = .failed(code) }
    }

    private var isIdle: Bool {
        state.withLock { state in
            state.progress.allSatisfy { if case .working = $0 { false } else { true } }
        }
    }

    /// A freeze still under way may succeed after our death: until it returns, its intent stays written.
    private func removeJournalWhenIdle() {
        if isIdle { journal.remove() }
    }
}
