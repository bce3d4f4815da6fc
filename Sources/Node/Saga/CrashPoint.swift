import Foundation
import Glibc

/// A named place at which the node kills itself, for tests of its recovery: `STILLPOINT_CRASH_AT=cut.after`.
///
/// `STEP.before` is hit when the step's record is durable and nothing of it is done yet, `STEP.after` when all of it is
/// done and the next step is not journalled yet. docs/saga.md lists the steps.
struct CrashPoint: Sendable {
    /// What happens at a point that is hit.
    let hit: @Sendable (String) -> Void

    static let never = CrashPoint { _ in }

    /// The one of the environment; read once.
    static let fromEnvironment: CrashPoint = {
        guard let armed = ProcessInfo.processInfo.environment["STILLPOINT_CRASH_AT"], !armed.isEmpty else {
            return .never
        }
        return CrashPoint { name in
            if name == armed { kill(getpid(), SIGKILL) }
        }
    }()
}
