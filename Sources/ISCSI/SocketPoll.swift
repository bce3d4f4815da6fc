import Glibc
import NIOCore
import Synchronization

/// Takes bytes from a session's socket outside of the event loop's turns.
///
/// A turn of the loop costs some microseconds, and a thread that sleeps runs again only after many more. So the socket
/// is asked again as soon as what came is done with; and for a bounded time where the next bytes are known to be close:
/// in the middle of a PDU, from an initiator that sends one command at a time and was quick with the last ones, and
/// from one that has not taken all the answers that were sent.
/// Only one session waits like that while at most half of the processors have a session to serve: the others are for
/// who is waited for.
///
/// The end of the stream and errors are left to the loop, which finds them after this.
struct SocketPoll {
    /// The loop has other channels and tasks: after so many receptions it is their turn.
    static let receptionsPerTurn = 64
    /// Answers are held back for the sake of more of them in one system call, but not for longer than this.
    static let receptionsPerFlush = 16
    /// For one more command of an initiator that still has answers to take: those to come may wait so long for company.
    static let behindNanoseconds: UInt64 = 20_000
    /// Initiators send a header and its data with two system calls.
    static let restOfPDUNanoseconds: UInt64 = 10_000
    static let nextCommandNanoseconds: UInt64 = 50_000
    /// Room for one reception; as much as the loop's own.
    private static let receptionBytes = 256 << 10

    private let descriptor: CInt
    private let onLoop: SessionCount
    private let onServer: SessionCount
    private let mostWaiting: Int

    /// Nil where the channel is no socket.
    init?(_ channel: any Channel, onLoop: SessionCount, onServer: SessionCount) {
        let handle = try? channel.pipeline.syncOperations.withUnsafeTransportIfAvailable(
            of: NIOBSDSocket.Handle.self
        ) { $0 }
        guard let handle else { return nil }
        descriptor = handle
        self.onLoop = onLoop
        self.onServer = onServer
        mostWaiting = sysconf(Int32(_SC_NPROCESSORS_ONLN)) / 2
    }

    /// Appends what the socket has, or gets within `nanoseconds`, to `buffer`. The channel must be active.
    /// - Returns: whether there was something.
    func receive(into buffer: inout ByteBuffer, within nanoseconds: UInt64) -> Bool {
        if buffer.readableBytes == 0 { buffer.clear() }
        if buffer.writableBytes < Self.receptionBytes {
            buffer.discardReadBytes()
            // Twice, so that the beginning of a PDU is moved seldom.
            buffer.reserveCapacity(minimumWritableBytes: 2 * Self.receptionBytes)
        }
        let mayWait =
            nanoseconds > 0 && onLoop.value.load(ordering: .relaxed) == 1
            && onServer.value.load(ordering: .relaxed) <= mostWaiting
        var deadline: UInt64?
        while true {
            let count = buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: Self.receptionBytes) {
                max(recv(descriptor, $0.baseAddress, Self.receptionBytes, 0), 0)
            }
            if count > 0 { return true }
            guard mayWait else { return false }
            let now = MonotonicClock.nanoseconds()
            if let deadline, now >= deadline { return false }
            deadline = deadline ?? now + nanoseconds
        }
    }
}

/// How many sessions share something.
final class SessionCount: Sendable {
    let value = Atomic<Int>(0)
}
