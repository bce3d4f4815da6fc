import CLinux
import Glibc

/// What the last failed call of the C library said, in words.
public func errorText(_ code: Int32) -> String { String(cString: strerror(code)) }

/// A counter that wakes a thread out of `poll`.
public final class WakeDescriptor: Sendable {
    public let descriptor: Int32

    /// - Throws: `operatingSystem` when there are no descriptors left.
    public init() throws(PluginFailure) {
        descriptor = clinux_eventfd()
        guard descriptor >= 0 else { throw PluginFailure(.operatingSystem, "eventfd failed: \(errorText(errno))") }
    }

    deinit { close(descriptor) }

    public func wake() {
        var one: UInt64 = 1
        _ = write(descriptor, &one, 8)
    }

    public func drain() {
        var count: UInt64 = 0
        _ = read(descriptor, &count, 8)
    }

    /// Blocks the calling thread until it is woken, for this long at most. Takes the wake-up.
    public func wait(milliseconds: Int32) {
        var polled = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        if poll(&polled, 1, milliseconds) > 0 { drain() }
    }
}

enum Descriptor {
    enum ReadOutcome {
        case bytes([UInt8])
        case nothingYet
        case end
    }

    static func read(_ descriptor: Int32) -> ReadOutcome {
        var count = 0
        var code: Int32 = 0
        let chunk = [UInt8](unsafeUninitializedCapacity: 65_536) { buffer, initialized in
            count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
            code = errno
            initialized = max(0, count)
        }
        if count > 0 { return .bytes(chunk) }
        return count < 0 && (code == EAGAIN || code == EINTR) ? .nothingYet : .end
    }

    /// What is writable now of `bytes`, at most `limit`; the number written, or nil when the reader is gone.
    static func write(_ descriptor: Int32, _ bytes: ArraySlice<UInt8>, limit: Int) -> Int? {
        let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, min($0.count, limit)) }
        if count >= 0 { return count }
        return errno == EAGAIN || errno == EINTR ? 0 : nil
    }
}
