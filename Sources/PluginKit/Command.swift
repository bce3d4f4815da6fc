import CLinux
import Glibc

/// A program that is run to its end, with a clean environment, a process group of its own, and a limit of time.
public struct Command: Sendable {
    public var arguments: [String]
    public var environment: [String: String]
    public var directory = "/"
    /// Nil runs it as ourselves.
    public var user: UserIdentity?
    public var timeoutSeconds: Double
    /// Killed when we are: what it does must not go on unseen. Not for what starts a daemon as another user.
    public var diesWithUs = false
    /// How much of its output, standard output and error together, is kept: its end.
    public var keptOutputBytes = 4_096

    public static let cleanEnvironment = ["PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"]

    /// - Parameter arguments: the first is the program's absolute path.
    public init(
        _ arguments: [String], environment: [String: String] = Command.cleanEnvironment, user: UserIdentity? = nil,
        timeoutSeconds: Double
    ) {
        self.arguments = arguments
        self.environment = environment
        self.user = user
        self.timeoutSeconds = timeoutSeconds
    }

    public enum Ending: Sendable, Equatable {
        case exited(code: Int32)
        case signalled(signal: Int32)
        case timedOut
        /// `shouldStop` said so.
        case stopped
    }

    public struct Outcome: Sendable, Equatable {
        public var ending: Ending
        public var output: String

        public var isSuccess: Bool { ending == .exited(code: 0) }

        /// One sentence on how it ended, with the last line it wrote.
        public var explanation: String {
            let how =
                switch ending {
                case .exited(let code): "ended with status \(code)"
                case .signalled(let signal): "was ended by signal \(signal)"
                case .timedOut: "did not end in time and was killed"
                case .stopped: "was killed because its result is not wanted any more"
                }
            let last = output.split(separator: "\n").last.map { ": \($0.prefix(300))" } ?? ""
            return how + last
        }
    }

    /// Blocks the calling thread: use it on a thread of its own. At the timeout the whole process group is killed.
    ///
    /// - Parameter shouldStop: asked a few times a second.
    /// - Throws: `spawnFailed`.
    public func run(shouldStop: () -> Bool = { false }) throws(PluginFailure) -> Outcome {
        var pipe: [Int32] = [-1, -1]
        let code = clinux_pipe(&pipe, 1)
        guard code == 0 else { throw PluginFailure(.spawnFailed, "A pipe cannot be made: \(errorText(code))") }
        defer { close(pipe[0]) }
        let pid: Int32
        do {
            defer { close(pipe[1]) }
            pid = try Spawn.start(
                path: arguments[0], arguments: arguments, environment: environment, directory: directory, user: user,
                diesWithThread: diesWithUs, input: -1, output: pipe[1], error: pipe[1])
        }
        let pidfd = clinux_pidfd(pid)
        defer { if pidfd >= 0 { close(pidfd) } }
        let deadline = MonotonicInstant.now.advanced(bySeconds: timeoutSeconds)
        var output: [UInt8] = []
        var isOpen = true
        var early: Ending?
        func drain() {
            // A bounded number of pieces: a program that never stops writing still gets its time-out.
            for _ in 0..<16 where isOpen {
                guard case .bytes(let bytes) = Descriptor.read(pipe[0]) else { return }
                output.append(contentsOf: bytes)
                output.removeFirst(max(0, output.count - keptOutputBytes))
            }
        }
        while true {
            var polled = [
                pollfd(fd: pidfd, events: Int16(POLLIN), revents: 0),
                pollfd(fd: isOpen ? pipe[0] : -1, events: Int16(POLLIN), revents: 0),
            ]
            let left = deadline.secondsFromNow
            _ = poll(&polled, 2, Int32(min(max(left * 1_000, 0) + 1, pidfd >= 0 ? 200 : 10)))
            drain()
            if polled[1].revents & Int16(POLLHUP) != 0 { isOpen = false }
            var status: Int32 = 0
            if waitpid(pid, &status, WNOHANG) == pid {
                drain()
                return Outcome(ending: early ?? Self.ending(status), output: String(decoding: output, as: UTF8.self))
            }
            if early == nil, deadline <= .now || shouldStop() {
                early = deadline <= .now ? .timedOut : .stopped
                // Its children too: it was started as the leader of a group.
                kill(-pid, SIGKILL)
            }
        }
    }

    private static func ending(_ status: Int32) -> Ending {
        let signal = status & 0x7F
        return signal == 0 ? .exited(code: (status >> 8) & 0xFF) : .signalled(signal: signal)
    }
}
