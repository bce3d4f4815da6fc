import Foundation
import Logging
import Synchronization

/// Writes log lines to standard error without ever making a caller wait.
///
/// While something is held, a line to a file could wait for the very file system that is frozen, and a thread that
/// waits there cannot thaw it. So lines go into a bounded queue which a thread of its own empties; when the queue is
/// full they are dropped and counted. While anything is held, and standard error is a regular file, nothing is
/// written at all.
final class DroppingLog: Sendable {
    static let shared = DroppingLog(descriptor: STDERR_FILENO)

    /// Bytes that wait to be written at most; what comes after that is dropped.
    static let limitBytes = 1 << 20

    private struct State {
        var lines: [String] = []
        var bytes = 0
        var dropped = 0
        var pauses = 0
        var isWriting = false
    }

    private let state = Mutex(State())
    private let wakeUp = DispatchSemaphore(value: 0)
    private let descriptor: Int32
    private let isRegularFile: Bool

    init(descriptor: Int32) {
        self.descriptor = descriptor
        isRegularFile = FileStatus(descriptor: descriptor)?.isRegularFile ?? false
        let thread = Thread { [weak self] in
            while let log = self { log.writeNext() }
        }
        thread.name = "log"
        thread.start()
    }

    func append(_ line: String) {
        let isQueued = state.withLock { state in
            guard state.bytes + line.utf8.count <= Self.limitBytes else {
                state.dropped += 1
                return false
            }
            state.lines.append(line)
            state.bytes += line.utf8.count
            return true
        }
        if isQueued { wakeUp.signal() }
    }

    /// From now on, until `resume`, nothing is written to a regular file. Nests.
    func pause() { state.withLock { $0.pauses += 1 } }

    func resume() {
        state.withLock { $0.pauses -= 1 }
        wakeUp.signal()
    }

    /// Waits until everything is written, at most the given time.
    func flush(atMostSeconds: Double) {
        let end = ContinuousClock.now + .seconds(atMostSeconds)
        while ContinuousClock.now < end, state.withLock({ !$0.lines.isEmpty || $0.isWriting }) { usleep(2_000) }
    }

    private func writeNext() {
        wakeUp.wait()
        let text: String? = state.withLock { state in
            guard !state.lines.isEmpty, !(isRegularFile && state.pauses > 0) else { return nil }
            var text = state.lines.joined()
            if state.dropped > 0 { text += "… \(state.dropped) lines dropped\n" }
            state.lines = []
            state.bytes = 0
            state.dropped = 0
            state.isWriting = true
            return text
        }
        guard let text else { return }
        var bytes = ArraySlice(text.utf8)
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 && (errno == EINTR || errno == EAGAIN) { continue }
            if count <= 0 { break }
            bytes = bytes.dropFirst(count)
        }
        state.withLock { $0.isWriting = false }
    }
}

/// swift-log over `DroppingLog`.
struct DroppingLogHandler: LogHandler {
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level
    let label: String

    init(label: String, level: Logger.Level) {
        self.label = label
        logLevel = level
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        var all = metadata
        if let more = event.metadata { all.merge(more) { $1 } }
        let details = all.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        let time = Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
        DroppingLog.shared.append("\(time) \(event.level) \(event.message)\(details)\n")
    }
}
