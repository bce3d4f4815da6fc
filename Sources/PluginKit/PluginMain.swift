import CLinux
import Glibc
import Synchronization

/// The main program of a plug-in.
public enum PluginMain {
    /// Speaks the contract on standard input and output until the input ends or the process is told to end; releases
    /// everything first. The main thread does the input and output, and nothing else, so that no work of the plug-in
    /// can keep a lease from ending.
    public static func run(_ plugin: any Plugin) -> Never {
        answerPeople(plugin.identity)
        signal(SIGPIPE, SIG_IGN)
        // Before there is any other thread: they inherit the mask.
        let signals = clinux_termination_signals()
        do throws(PluginFailure) {
            let wakeup = try WakeDescriptor()
            PluginLoop(plugin: plugin, signals: signals, wakeup: wakeup).run()
        } catch {
            PluginLog.line("error: \(error)")
            exit(1)
        }
        exit(0)
    }

    /// Somebody who runs a plug-in by hand is told what it is for.
    private static func answerPeople(_ identity: DescribeResult) {
        switch CommandLine.arguments.dropFirst().first {
        case "-h", "--help":
            print(
                """
                The plug-in \(identity.name) (version \(identity.version), contract \(identity.contract)) of \
                stillpoint-agent, for the layer \(identity.layer.rawValue).
                The agent starts it and speaks JSON lines with it on standard input and output; it lets go of \
                everything when its input ends. It takes no options: its settings are in the agent's configuration, \
                under pluginConfiguration. See docs/plugins.md.
                """)
        case "--version": print(identity.version)
        default: return
        }
        exit(0)
    }
}

/// For people: one line on standard error, dropped rather than waited for. While something is frozen nothing may wait
/// for a reader that perhaps waits for the frozen thing.
public enum PluginLog {
    public static func line(_ text: String) {
        var polled = pollfd(fd: 2, events: Int16(POLLOUT), revents: 0)
        guard poll(&polled, 1, 0) == 1, polled.revents & Int16(POLLOUT) != 0 else { return }
        let bytes = Array("\(text.prefix(2_000).replacing("\n", with: " "))\n".utf8).prefix(4_096)
        _ = Descriptor.write(2, bytes, limit: bytes.count)
    }
}

/// What is to be written on standard output. Never waits.
final class PluginOutput: Sendable {
    private struct State {
        var bytes: [UInt8] = []
        var pending = 0
    }

    /// Events beyond this much unread output are dropped. Answers are not: the requests are counted.
    private static let maximumEventBytes = 4 << 20

    private let state = Mutex(State())
    private let wakeup: WakeDescriptor

    init(wakeup: WakeDescriptor) { self.wakeup = wakeup }

    /// Counts a request that will be answered; false when there are too many.
    func admit() -> Bool {
        state.withLock { state in
            guard state.pending < PluginContract.maximumPendingRequests else { return false }
            state.pending += 1
            return true
        }
    }

    func answer(id: Int, result: some Encodable) {
        do throws(PluginFailure) {
            let line = try PluginJSON.encode(OutgoingResult(id: id, result: result))
            guard line.count <= PluginContract.maximumLineBytes else {
                throw PluginFailure(.lineTooLong, "The answer has \(line.count) bytes: more than a line may have")
            }
            put(line, answers: 1)
        } catch {
            answer(id: id, failure: error)
        }
    }

    func answer(id: Int?, failure: PluginFailure, isCounted: Bool = true) {
        let line = try? PluginJSON.encode(OutgoingError(id: id, error: failure))
        put(line ?? [], answers: isCounted ? 1 : 0)
    }

    func event(_ event: PluginEvent) {
        guard state.withLock({ $0.bytes.count < Self.maximumEventBytes }) else { return }
        if let line = try? PluginJSON.encode(event) { put(line, answers: 0) }
    }

    private func put(_ line: [UInt8], answers: Int) {
        state.withLock { state in
            state.bytes.append(contentsOf: line)
            state.pending -= answers
        }
        wakeup.wake()
    }

    var isEmpty: Bool { state.withLock { $0.bytes.isEmpty } }

    /// Every request is answered, and every answer written.
    var isDone: Bool { state.withLock { $0.bytes.isEmpty && $0.pending == 0 } }

    /// Writes a piece that a pipe which polled as writable takes without waiting. False when the reader is gone.
    func writeSome() -> Bool {
        state.withLock { state in
            guard let count = Descriptor.write(1, state.bytes[...], limit: 4_096) else {
                state.bytes = []
                return false
            }
            state.bytes.removeFirst(count)
            return true
        }
    }
}

/// When each hold's lease ends.
final class LeaseDeadlines: Sendable {
    private let ends = Mutex<[String: MonotonicInstant]>([:])
    private let wakeup: WakeDescriptor

    init(wakeup: WakeDescriptor) { self.wakeup = wakeup }

    func set(_ holdID: String, _ deadline: MonotonicInstant) {
        ends.withLock { $0[holdID] = deadline }
        wakeup.wake()
    }

    func remove(_ holdID: String) { ends.withLock { $0[holdID] = nil } }

    /// Takes out those that have ended.
    func takeEnded(_ now: MonotonicInstant) -> [String] {
        ends.withLock { ends in
            let ended = ends.filter { $0.value <= now }.map(\.key)
            for holdID in ended { ends[holdID] = nil }
            return ended
        }
    }

    var next: MonotonicInstant? { ends.withLock { $0.values.min() } }
}

/// The main thread's loop.
private struct PluginLoop {
    private enum Input: Sendable {
        case line([UInt8], MonotonicInstant)
        case leaseEnded(String)
        case end(ReleaseReason)
    }

    /// The longest sleep while something is held: a machine that was suspended notices an ended lease this much later.
    private static let maximumSleepMilliseconds: Int32 = 250
    /// How long the last answers may take to be given and read after everything is released.
    private static let flushSeconds = 3.0

    private let signals: Int32
    private let wakeup: WakeDescriptor
    private let output: PluginOutput
    private let deadlines: LeaseDeadlines
    private let inputs: AsyncStream<Input>.Continuation
    private let isFinished = FinishedFlag()
    private var lines = LineSplitter(maximumBytes: PluginContract.maximumLineBytes)
    private var isReading = true

    init(plugin: any Plugin, signals: Int32, wakeup: WakeDescriptor) {
        self.signals = signals
        self.wakeup = wakeup
        output = PluginOutput(wakeup: wakeup)
        deadlines = LeaseDeadlines(wakeup: wakeup)
        // Bounded by the requests that `PluginOutput.admit` lets in.
        let (stream, continuation) = AsyncStream.makeStream(of: Input.self)
        inputs = continuation
        let server = PluginServer(plugin: plugin, output: output, deadlines: deadlines)
        Task.detached { [isFinished, wakeup] in
            for await input in stream {
                switch input {
                case .line(let line, let receivedAt): await server.take(line, receivedAt: receivedAt)
                case .leaseEnded(let holdID): Task { await server.leaseEnded(holdID) }
                case .end(let reason): await server.end(reason)
                }
            }
            isFinished.set()
            wakeup.wake()
        }
    }

    consuming func run() {
        var flushUntil: MonotonicInstant?
        while true {
            for holdID in deadlines.takeEnded(.now) { inputs.yield(.leaseEnded(holdID)) }
            if isFinished.isSet {
                let limit = flushUntil ?? .now.advanced(bySeconds: Self.flushSeconds)
                flushUntil = limit
                if output.isDone || limit <= .now { return }
            }
            var polled = [
                pollfd(fd: wakeup.descriptor, events: Int16(POLLIN), revents: 0),
                pollfd(fd: isReading ? 0 : -1, events: Int16(POLLIN), revents: 0),
                pollfd(fd: signals, events: Int16(POLLIN), revents: 0),
                pollfd(fd: output.isEmpty ? -1 : 1, events: Int16(POLLOUT), revents: 0),
            ]
            _ = poll(&polled, nfds_t(polled.count), sleepMilliseconds(isFlushing: flushUntil != nil))
            wakeup.drain()
            if polled[1].revents != 0 { readInput() }
            if polled[2].revents != 0 { takeSignal() }
            if polled[3].revents != 0, !output.writeSome() { end(.inputClosed) }
        }
    }

    private func sleepMilliseconds(isFlushing: Bool) -> Int32 {
        if isFlushing { return 20 }
        guard let next = deadlines.next else { return -1 }
        return Int32(min(max(next.secondsFromNow * 1_000, 0) + 1, Double(Self.maximumSleepMilliseconds)))
    }

    private mutating func readInput() {
        switch Descriptor.read(0) {
        case .nothingYet: break
        case .end: end(.inputClosed)
        case .bytes(let bytes):
            for piece in lines.feed(bytes) {
                switch piece {
                case .tooLong:
                    output.answer(
                        id: nil,
                        failure: PluginFailure(
                            .lineTooLong, "A request is longer than \(PluginContract.maximumLineBytes) bytes"),
                        isCounted: false)
                case .line(let line):
                    if output.admit() {
                        inputs.yield(.line(line, .now))
                    } else {
                        output.answer(
                            id: (try? PluginJSON.decode(LineHeader.self, from: line))?.id,
                            failure: PluginFailure(.busy, "Too many requests are unanswered"), isCounted: false)
                    }
                }
            }
        }
    }

    private mutating func takeSignal() {
        var information = [UInt8](repeating: 0, count: 128)
        _ = read(signals, &information, information.count)
        end(.terminated)
    }

    private mutating func end(_ reason: ReleaseReason) {
        guard isReading else { return }
        isReading = false
        inputs.yield(.end(reason))
        inputs.finish()
    }
}

private final class FinishedFlag: Sendable {
    private let value = Atomic(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}
