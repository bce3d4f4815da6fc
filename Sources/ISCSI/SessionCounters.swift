import Glibc
import SCSI
import Synchronization

/// What a session counts: the sum over its I_T nexuses, and the commands that no logical unit was asked about.
final class SessionCounters: Sendable {
    /// Of commands without a logical unit, REPORT LUNS for instance.
    let own = CommandCounters()
    private let state = Mutex(State())

    private struct State {
        var nexuses: [CommandCounters] = []
        /// Of nexuses that have ended within the session.
        var ended = CommandStatistics()
    }

    func begin(_ nexus: LogicalUnitNexus) { state.withLock { $0.nexuses.append(nexus.counters) } }

    func end(_ nexus: LogicalUnitNexus) {
        state.withLock { state in
            guard let index = state.nexuses.firstIndex(where: { $0 === nexus.counters }) else { return }
            state.ended += state.nexuses.remove(at: index).statistics
        }
    }

    var statistics: CommandStatistics {
        state.withLock { state in
            var sum = state.ended
            sum += own.statistics
            for counters in state.nexuses { sum += counters.statistics }
            return sum
        }
    }
}

/// Where a command is counted when it ends, and since when it is under way.
struct CommandAccount {
    let counters: CommandCounters
    let kind: CommandCounters.Kind
    /// Of ``MonotonicClock``.
    let startedAt: UInt64

    func ended() { counters.ended(kind, nanoseconds: MonotonicClock.nanoseconds() &- startedAt) }
}

enum MonotonicClock {
    static func nanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
