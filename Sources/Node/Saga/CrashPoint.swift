import Foundation
import Glibc

/// A named place at which the node kills itself or waits, for tests of its recovery.
///
/// `STEP.before` is hit when the step's record is durable and nothing of it is done yet, `STEP.after` when all of it is
/// done and the next step is not journalled yet. docs/saga.md lists the steps.
struct CrashPoint: Sendable {
    /// What happens at a point that is hit.
    let hit: @Sendable (String) async -> Void

    static let never = CrashPoint { _ in }

    /// The one of the environment; read once. `STILLPOINT_CRASH_AT=cut.after` kills at that point. With
    /// `STILLPOINT_PAUSE_DIRECTORY=DIRECTORY`, a point whose name is a file there makes `NAME.reached` beside it and
    /// waits until the file is gone: as `PausePoint` of the plug-ins and the agent.
    static let fromEnvironment: CrashPoint = {
        let environment = ProcessInfo.processInfo.environment
        let armed = environment["STILLPOINT_CRASH_AT"] ?? ""
        let directory = environment["STILLPOINT_PAUSE_DIRECTORY"] ?? ""
        if armed.isEmpty, directory.isEmpty { return .never }
        return CrashPoint { name in
            if name == armed { kill(getpid(), SIGKILL) }
            if !directory.isEmpty { await pause("\(directory)/\(name)") }
        }
    }()

    /// A test that died must not keep the node for ever.
    private static let longest = Duration.seconds(120)

    private static func pause(_ file: String) async {
        let deadline = ContinuousClock.now + longest
        guard access(file, F_OK) == 0 else { return }
        try? Data("\(getpid())\n".utf8).write(to: URL(filePath: file + ".reached"), options: .atomic)
        while access(file, F_OK) == 0, ContinuousClock.now < deadline { try? await Task.sleep(for: .milliseconds(5)) }
    }
}
