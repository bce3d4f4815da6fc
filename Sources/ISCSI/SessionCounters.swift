import Synchronization

/// What a session counts; written on its event loop, read from anywhere.
final class SessionCounters: Sendable {
    private let commandCount = Atomic<UInt64>(0)
    private let failureCount = Atomic<UInt64>(0)
    private let readCount = Atomic<UInt64>(0)
    private let writtenCount = Atomic<UInt64>(0)

    var commands: UInt64 { commandCount.load(ordering: .relaxed) }
    var failedCommands: UInt64 { failureCount.load(ordering: .relaxed) }
    var bytesRead: UInt64 { readCount.load(ordering: .relaxed) }
    var bytesWritten: UInt64 { writtenCount.load(ordering: .relaxed) }

    func commandBegan() { Self.add(1, commandCount) }
    func commandFailed() { Self.add(1, failureCount) }
    func read(_ bytes: Int) { Self.add(UInt64(bytes), readCount) }
    func wrote(_ bytes: Int) { Self.add(UInt64(bytes), writtenCount) }

    /// One writer only, so a load and a store do; they are cheaper than a locked addition.
    private static func add(_ value: UInt64, _ counter: borrowing Atomic<UInt64>) {
        counter.store(counter.load(ordering: .relaxed) &+ value, ordering: .relaxed)
    }
}
