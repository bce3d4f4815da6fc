import PluginKit
import Synchronization

/// Hooks whose quiesce has run, or is running.
final class HookHold: PluginHold {
    private struct Quiet: Sendable {
        var member: HookMember
        var quiesceSeconds: Double
        var since: MonotonicInstant
    }

    /// The part of what is left of the lease that one quiesce may take.
    private static let budget = 0.8

    private let waves: [[HookMember]]
    private let journal: HoldJournal<HookRecord>
    private let quiet = Mutex<[Quiet]>([])

    init(_ members: [HookMember], journal: HoldJournal<HookRecord>) {
        let byOrder = Dictionary(grouping: members) { $0.hook.order ?? 0 }
        waves = byOrder.keys.sorted().compactMap { byOrder[$0] }
        self.journal = journal
    }

    var members: [QuiesceResult.Member] {
        quiet.withLock { quiet in
            quiet.map {
                QuiesceResult.Member(resource: $0.member.hook.resourceID, quiesceSeconds: $0.quiesceSeconds)
            }
        }
    }

    /// All, or none: when one fails, the unquiesce of every one that was started runs, its own too.
    func quiesce(_ lease: HoldLease) async throws(PluginFailure) {
        for wave in waves {
            let failures = await withTaskGroup(of: PluginFailure?.self) { group in
                for member in wave {
                    group.addTask { await OwnThread.run { self.quiesce(member, lease) } }
                }
                return await group.reduce(into: [PluginFailure]()) { if let failure = $1 { $0.append(failure) } }
            }
            if let failure = failures.first {
                _ = await release(.requested)
                throw failure
            }
        }
    }

    private func quiesce(_ member: HookMember, _ lease: HoldLease) -> PluginFailure? {
        let began = MonotonicInstant.now
        do throws(PluginFailure) {
            try lease.checkWanted()
            // Before it is started: a recovery must know of it.
            try journal.append(member.record(.started))
            quiet.withLock { $0.append(Quiet(member: member, quiesceSeconds: 0, since: began)) }
            let limit = min(member.hook.timeout, max(lease.remainingSeconds, 0) * Self.budget)
            let outcome = try HookRun(member.hook, .quiesce, volumes: member.volumes, holdID: journal.holdID)
                .run(member.hook.quiesce, timeoutSeconds: limit) { !lease.isWanted }
            guard outcome.isSuccess else {
                try lease.checkWanted()
                throw PluginFailure(
                    outcome.ending == .timedOut ? .timedOut : .quiesceFailed,
                    "The quiesce of hook \(member.hook.name) \(outcome.explanation)")
            }
            quiet.withLock { quiet in
                for index in quiet.indices where quiet[index].member.hook.name == member.hook.name {
                    quiet[index].since = .now
                    quiet[index].quiesceSeconds = MonotonicInstant.now.seconds(since: began)
                }
            }
            return nil
        } catch {
            return error
        }
    }

    /// The executable is the only one who knows whether its application was at rest all the time: its unquiesce ends
    /// with status 0 only if it was.
    func release(_ reason: ReleaseReason) async -> [UnquiesceResult.Member] {
        var results: [String: UnquiesceResult.Member] = [:]
        var isReleased = true
        let started = quiet.withLock { $0 }
        for wave in waves.reversed() {
            let names = Set(wave.map(\.hook.name))
            let outcomes = await withTaskGroup(of: (UnquiesceResult.Member, Bool).self) { group in
                for item in started where names.contains(item.member.hook.name) {
                    group.addTask { await OwnThread.run { self.release(item) } }
                }
                return await group.reduce(into: [(UnquiesceResult.Member, Bool)]()) { $0.append($1) }
            }
            for (member, isDone) in outcomes {
                results[member.resource] = member
                isReleased = isReleased && isDone
            }
        }
        if isReleased { journal.remove() }
        return started.compactMap { results[$0.member.hook.resourceID] }
    }

    /// With false when the application may still be at rest: then the journal stays, and a recovery tries again.
    private func release(_ item: Quiet) -> (UnquiesceResult.Member, Bool) {
        let hook = item.member.hook
        let run = HookRun(hook, .unquiesce, volumes: item.member.volumes, holdID: journal.holdID)
        var failure: String?
        var isDone = false
        let quietSeconds = MonotonicInstant.now.seconds(since: item.since)
        do throws(PluginFailure) {
            let outcome = try run.run(hook.unquiesce, timeoutSeconds: hook.timeout)
            // A status of its own choice is an answer; a kill is none.
            if case .exited = outcome.ending { isDone = true }
            if !outcome.isSuccess { failure = "The unquiesce of hook \(hook.name) \(outcome.explanation)" }
        } catch {
            failure = "The unquiesce of hook \(hook.name) was not run: \(error)"
        }
        if isDone { try? journal.append(item.member.record(.released)) }
        let member = UnquiesceResult.Member(
            resource: hook.resourceID, stillHeld: failure == nil, quietSeconds: quietSeconds, failure: failure,
            mayBeQuiesced: isDone ? nil : true)
        return (member, isDone)
    }
}
