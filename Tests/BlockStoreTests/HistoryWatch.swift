import Glibc
import Synchronization

@testable import BlockStore

/// Says which history it was when the process dies in the middle of one, as a mistake in the store can have it do, or
/// when one does not end. With STILLPOINT_SIM_FAILED, the commands that replay failing histories go to that file.
enum HistoryWatch {
    /// A history takes a hundredth of a second, and in a debug build a few.
    private static let mostSeconds = 120
    private static let slotBytes = 128
    private static let slotCount = SimulationTests.Mode.allCases.count + 1
    // SAFETY: one thread writes a slot. A signal handler and the watching thread read it at any time; what they see
    // is at worst the text of the history before, or half of one. The first byte is 0 where there is none.
    private nonisolated(unsafe) static let slots: UnsafeMutablePointer<CChar> = {
        let slots = UnsafeMutablePointer<CChar>.allocate(capacity: slotBytes * slotCount)
        slots.initialize(repeating: 0, count: slotBytes * slotCount)
        return slots
    }()
    private static let begun = Mutex<[Int]>(Array(repeating: 0, count: slotCount))
    private static let file: Int32 =
        environmentText("STILLPOINT_SIM_FAILED").map { open($0, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644) }
        ?? -1
    private static let isWatching: Bool = {
        watchSignals()
        _ = WorkerThread { watchTime() }
        return true
    }()

    /// The command that replays a history.
    static func command(_ mode: SimulationTests.Mode, _ seed: UInt64) -> String {
        "make simulate SEED=\(seed) MODE=\(mode.rawValue)"
    }

    /// Runs a history. One at a time for each mode.
    static func watching<R>(_ mode: SimulationTests.Mode, _ seed: UInt64, _ body: () throws -> R) rethrows -> R {
        try watching(slot: SimulationTests.Mode.allCases.firstIndex(of: mode)!, command(mode, seed), body)
    }

    /// Runs a history with a planted bug. One at a time.
    static func watching<R>(_ bug: PlantedBug, _ seed: UInt64, _ body: () throws -> R) rethrows -> R {
        try watching(slot: slotCount - 1, "seed \(seed) with the planted bug \(bug)", body)
    }

    private static func watching<R>(slot: Int, _ text: String, _ body: () throws -> R) rethrows -> R {
        _ = isWatching
        _ = file
        let place = slots + slot * slotBytes
        for (index, byte) in (text.utf8.prefix(slotBytes - 2).map { CChar(bitPattern: $0) } + [10, 0]).enumerated() {
            place[index] = byte
        }
        begun.withLock { $0[slot] += 1 }
        defer { place[0] = 0 }
        return try body()
    }

    /// Keeps the command of a history that failed.
    static func note(_ mode: SimulationTests.Mode, _ seed: UInt64) {
        let line = command(mode, seed) + "\n"
        _ = line.withCString { write(file, $0, strlen($0)) }
    }

    /// Safe in a signal's handler.
    private static func tell(slot: Int) {
        let place = slots + slot * slotBytes
        guard place[0] != 0 else { return }
        for target in [1, file] { _ = write(target, place, strlen(place)) }
    }

    private static func say(_ text: StaticString) { _ = write(1, text.utf8Start, text.utf8CodeUnitCount) }

    private static func watchSignals() {
        for number in [SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGABRT] {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { number in
                // What comes now comes to the end as it would have.
                signal(number, SIG_DFL)
                HistoryWatch.say("\nThe process died, in the middle of:\n")
                for slot in 0..<HistoryWatch.slotCount { HistoryWatch.tell(slot: slot) }
            }
            sigaction(number, &action, nil)
        }
    }

    /// Counts seconds in which the process ran.
    private static func watchTime() {
        var last = Array(repeating: 0, count: slotCount)
        var seconds = last
        while true {
            sleep(1)
            let now = begun.withLock { $0 }
            for slot in 0..<slotCount {
                seconds[slot] = now[slot] == last[slot] && slots[slot * slotBytes] != 0 ? seconds[slot] + 1 : 0
                guard seconds[slot] >= mostSeconds else { continue }
                say("\nThis does not end:\n")
                tell(slot: slot)
                _exit(1)
            }
            last = now
        }
    }
}
