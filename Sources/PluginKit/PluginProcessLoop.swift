import CLinux
import Glibc
import Synchronization

/// The one thread that does a plug-in process's input and output, and notices its end.
final class PluginProcessLoop: Sendable {
    typealias Outcome = Result<[UInt8], PluginFailure>

    private struct Waiting {
        var continuation: CheckedContinuation<Outcome, Never>
        var deadline: MonotonicInstant
    }

    private struct State {
        var nextID = 1
        var waiting: [Int: Waiting] = [:]
        var outbox: [UInt8] = []
        var isClosing = false
        var exit: PluginExit?
        var exitWaiters: [CheckedContinuation<PluginExit, Never>] = []
    }

    /// After its output has ended, a plug-in has this long to end too.
    private static let lingerSeconds = 10.0

    let processID: Int32
    private let options: PluginProcess.Options
    private let wakeup: WakeDescriptor
    private let state = Mutex(State())

    private init(processID: Int32, options: PluginProcess.Options, wakeup: WakeDescriptor) {
        self.processID = processID
        self.options = options
        self.wakeup = wakeup
    }

    static func start(_ options: PluginProcess.Options) throws(PluginFailure) -> PluginProcessLoop {
        let wakeup = try WakeDescriptor()
        let pipes = try PipeSet()
        let pid: Int32
        do {
            pid = try Spawn.start(
                path: options.executable, arguments: [options.executable] + options.arguments,
                environment: options.environment, directory: "/", user: nil, input: pipes.childInput,
                output: pipes.childOutput, error: pipes.childError)
        } catch {
            pipes.closeAll()
            throw error
        }
        pipes.closeChildEnds()
        let pidfd = clinux_pidfd(pid)
        guard pidfd >= 0 else {
            let code = errno
            Glibc.kill(-pid, SIGKILL)
            waitpid(pid, nil, 0)
            pipes.closeAll()
            throw PluginFailure(.spawnFailed, "The plug-in's process cannot be watched: \(errorText(code))")
        }
        let loop = PluginProcessLoop(processID: pid, options: options, wakeup: wakeup)
        OwnThread.start { Run(loop: loop, pipes: pipes, pidfd: pidfd).run() }
        return loop
    }

    var exit: PluginExit? { state.withLock { $0.exit } }

    func ask(
        timeoutSeconds: Double, _ encode: (Int) throws(PluginFailure) -> [UInt8]
    ) async throws(PluginFailure) -> [UInt8] {
        let id = state.withLock { state in
            defer { state.nextID += 1 }
            return state.nextID
        }
        let line = try encode(id)
        guard line.count <= options.maximumLineBytes else {
            throw PluginFailure(.lineTooLong, "The request has \(line.count) bytes: more than a line may have")
        }
        let deadline = MonotonicInstant.now.advanced(bySeconds: min(max(timeoutSeconds, 0), 86_400))
        let outcome: Outcome = await withCheckedContinuation { continuation in
            let failure = state.withLock { state -> PluginFailure? in
                if let exit = state.exit { return Self.died(exit) }
                if state.isClosing { return PluginFailure(.ending, "The plug-in is being ended") }
                guard state.waiting.count < PluginContract.maximumPendingRequests else {
                    return PluginFailure(.busy, "\(state.waiting.count) requests to the plug-in are unanswered")
                }
                state.waiting[id] = Waiting(continuation: continuation, deadline: deadline)
                state.outbox.append(contentsOf: line)
                return nil
            }
            if let failure { continuation.resume(returning: .failure(failure)) } else { wakeup.wake() }
        }
        return try outcome.get()
    }

    func closeInput() {
        state.withLock { $0.isClosing = true }
        wakeup.wake()
    }

    func waitForExit() async -> PluginExit {
        await withCheckedContinuation { continuation in
            let exit = state.withLock { state -> PluginExit? in
                if state.exit == nil { state.exitWaiters.append(continuation) }
                return state.exit
            }
            if let exit { continuation.resume(returning: exit) }
        }
    }

    func end(graceSeconds: Double) async -> PluginExit {
        closeInput()
        let steps = Task {
            try await Task.sleep(for: .seconds(graceSeconds))
            self.signalGroup(SIGTERM)
            try await Task.sleep(for: .seconds(2))
            self.signalGroup(SIGKILL)
        }
        let exit = await waitForExit()
        steps.cancel()
        return exit
    }

    /// Never after it is reaped: the number may be another process's by then.
    func signalGroup(_ signal: Int32) {
        state.withLock { if $0.exit == nil { Glibc.kill(-processID, signal) } }
    }

    private static func died(_ exit: PluginExit) -> PluginFailure {
        PluginFailure(.pluginDied, "The plug-in's process \(exit)")
    }
}

extension PluginProcessLoop {
    /// What only the I/O thread touches.
    private struct Run {
        let loop: PluginProcessLoop
        let pipes: PipeSet
        let pidfd: Int32
        var lines: LineSplitter
        var logLines = LineSplitter(maximumBytes: 8_192)
        var isOutputOpen = true
        var isErrorOpen = true
        var isInputOpen = true
        var killAt: MonotonicInstant?

        init(loop: PluginProcessLoop, pipes: PipeSet, pidfd: Int32) {
            self.loop = loop
            self.pipes = pipes
            self.pidfd = pidfd
            lines = LineSplitter(maximumBytes: loop.options.maximumLineBytes)
        }

        consuming func run() {
            // A plug-in that died must be an error of write, not a signal to the agent.
            var broken = sigset_t()
            sigemptyset(&broken)
            sigaddset(&broken, SIGPIPE)
            pthread_sigmask(SIG_BLOCK, &broken, nil)
            while true {
                let wantsWrite = flushOutbox()
                var polled = [
                    pollfd(fd: loop.wakeup.descriptor, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: pidfd, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: isOutputOpen ? pipes.output : -1, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: isErrorOpen ? pipes.error : -1, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: wantsWrite ? pipes.input : -1, events: Int16(POLLOUT), revents: 0),
                ]
                _ = poll(&polled, nfds_t(polled.count), expire())
                loop.wakeup.drain()
                if polled[2].revents != 0 { readOutput() }
                if polled[3].revents != 0 { readError() }
                if polled[1].revents != 0 { break }
            }
            // What it said last is still in the pipes. A child of its own may hold them open: do not wait for their
            // end.
            readOutput()
            readError()
            finish()
        }

        /// True when something is left that cannot be written now.
        private mutating func flushOutbox() -> Bool {
            guard isInputOpen else { return false }
            let (rest, isClosing) = loop.state.withLock { state -> (Bool, Bool) in
                while !state.outbox.isEmpty {
                    guard let count = Descriptor.write(pipes.input, state.outbox[...], limit: 65_536) else {
                        state.outbox = []
                        break
                    }
                    if count == 0 { return (true, state.isClosing) }
                    state.outbox.removeFirst(count)
                }
                return (false, state.isClosing)
            }
            if isClosing && !rest {
                close(pipes.input)
                isInputOpen = false
            }
            return rest
        }

        /// Fails the calls whose time is over and gives the milliseconds until the next one's.
        private mutating func expire() -> Int32 {
            let now = MonotonicInstant.now
            let (late, next) = loop.state.withLock { state -> ([Waiting], MonotonicInstant?) in
                let ids = state.waiting.filter { $0.value.deadline <= now }.keys
                let late = ids.compactMap { state.waiting.removeValue(forKey: $0) }
                return (late, state.waiting.values.map(\.deadline).min())
            }
            for waiting in late {
                waiting.continuation.resume(
                    returning: .failure(PluginFailure(.timedOut, "The plug-in did not answer in time")))
            }
            if let killAt, killAt <= now {
                loop.signalGroup(SIGKILL)
                self.killAt = nil
            }
            guard let wake = [next, killAt].compactMap({ $0 }).min() else { return -1 }
            return Int32(min(max(wake.seconds(since: now) * 1_000, 0) + 1, 60_000))
        }

        private mutating func readOutput() {
            while isOutputOpen {
                switch Descriptor.read(pipes.output) {
                case .bytes(let bytes): for piece in lines.feed(bytes) { take(piece) }
                case .nothingYet: return
                case .end:
                    // It cannot answer any more. Its end of input is its word to let go of everything.
                    isOutputOpen = false
                    loop.closeInput()
                    killAt = .now.advanced(bySeconds: PluginProcessLoop.lingerSeconds)
                }
            }
        }

        private mutating func readError() {
            while isErrorOpen {
                switch Descriptor.read(pipes.error) {
                case .bytes(let bytes):
                    for case .line(let line) in logLines.feed(bytes) {
                        loop.options.onLog(String(decoding: line, as: UTF8.self))
                    }
                case .nothingYet: return
                case .end: isErrorOpen = false
                }
            }
        }

        private func take(_ piece: LineSplitter.Piece) {
            guard case .line(let line) = piece else {
                loop.options.onLog("a line on standard output is too long and was dropped")
                return
            }
            guard let header = try? PluginJSON.decode(LineHeader.self, from: line) else {
                loop.options.onLog("not understood: \(String(decoding: line.prefix(200), as: UTF8.self))")
                return
            }
            if let id = header.id {
                let waiting = loop.state.withLock { $0.waiting.removeValue(forKey: id) }
                waiting?.continuation.resume(returning: .success(line))
            } else if let event = try? PluginJSON.decode(PluginEvent.self, from: line) {
                loop.options.onEvent(event)
            } else {
                loop.options.onLog("not understood: \(String(decoding: line.prefix(200), as: UTF8.self))")
            }
        }

        private func finish() {
            let (exit, waiting, waiters) = loop.state.withLock { state in
                var status: Int32 = 0
                while waitpid(loop.processID, &status, 0) < 0 && errno == EINTR {}
                let signal = status & 0x7F
                let exit: PluginExit =
                    signal == 0 ? .exited(code: (status >> 8) & 0xFF) : .signalled(signal: signal)
                state.exit = exit
                defer {
                    state.waiting = [:]
                    state.exitWaiters = []
                }
                return (exit, state.waiting.values.map(\.continuation), state.exitWaiters)
            }
            if isInputOpen { close(pipes.input) }
            close(pipes.output)
            close(pipes.error)
            close(pidfd)
            for continuation in waiting {
                continuation.resume(returning: .failure(PluginProcessLoop.died(exit)))
            }
            loop.options.onExit(exit)
            for waiter in waiters { waiter.resume(returning: exit) }
        }
    }
}

/// The three pipes of a child; the agent's ends do not block.
struct PipeSet {
    let childInput: Int32
    let input: Int32
    let output: Int32
    let childOutput: Int32
    let error: Int32
    let childError: Int32

    init() throws(PluginFailure) {
        var made: [Int32] = []
        for nonBlockingEnd: Int32 in [2, 1, 1] {
            var pair: [Int32] = [-1, -1]
            let code = clinux_pipe(&pair, nonBlockingEnd)
            guard code == 0 else {
                for descriptor in made { close(descriptor) }
                throw PluginFailure(.spawnFailed, "A pipe cannot be made: \(errorText(code))")
            }
            made += pair
        }
        (childInput, input, output, childOutput, error, childError) = (
            made[0], made[1], made[2], made[3], made[4], made[5]
        )
    }

    func closeChildEnds() { for descriptor in [childInput, childOutput, childError] { close(descriptor) } }

    func closeAll() {
        closeChildEnds()
        for descriptor in [input, output, error] { close(descriptor) }
    }
}
