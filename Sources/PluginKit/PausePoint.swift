import Glibc

/// A named place at which a plug-in or the agent waits, for tests of what happens when something dies right there.
///
/// It does nothing unless the environment has `STILLPOINT_PAUSE_DIRECTORY`. Then a process that comes to the point NAME
/// looks for a file of that name in the directory. If there is one, it makes `NAME.reached` beside it, with its process
/// number, and goes on when the first file is gone. docs/saga.md lists the points.
public enum PausePoint {
    static let variable = "STILLPOINT_PAUSE_DIRECTORY"
    /// A test that died must not keep a process for ever, in seconds.
    private static let longest = 120
    private static let pollMicroseconds: UInt32 = 5_000

    private static let directory: String? = getenv(variable).map { String(cString: $0) }

    /// For child processes, which otherwise inherit nothing.
    static var environment: [String: String] { directory.map { [variable: $0] } ?? [:] }

    /// Waits without blocking a thread.
    public static func reach(_ name: String) async {
        guard let armed = note(name) else { return }
        let deadline = MonotonicInstant.now.advanced(bySeconds: Double(longest))
        while isThere(armed), deadline > .now { try? await Task.sleep(for: .milliseconds(5)) }
    }

    /// For threads of one's own.
    public static func reachBlocking(_ name: String) {
        guard let armed = note(name) else { return }
        let deadline = MonotonicInstant.now.advanced(bySeconds: Double(longest))
        while isThere(armed), deadline > .now { usleep(pollMicroseconds) }
    }

    /// - Returns: the file whose end is waited for; nil where nobody wants to wait.
    private static func note(_ name: String) -> String? {
        guard let directory else { return nil }
        let armed = "\(directory)/\(name)"
        guard isThere(armed) else { return nil }
        try? writeFile("\(armed).reached", Array("\(getpid())\n".utf8))
        return armed
    }

    private static func isThere(_ path: String) -> Bool { access(path, F_OK) == 0 }
}
