internal import CLinux
internal import Glibc
internal import Synchronization

/// How a ``HostFile`` talks to the kernel.
public enum StorageBackend: String, Sendable, CaseIterable {
    /// io_uring where the system allows it, else pread and pwrite.
    case automatic = "auto"
    /// One system call for each piece: works everywhere.
    case pread
    /// Pieces that lie apart are submitted together. Refused where the system forbids io_uring.
    case uring
}

/// One piece of a read that is scattered over the file.
public struct StorageRead {
    public var offset: UInt64
    public var buffer: UnsafeMutableRawBufferPointer

    public init(offset: UInt64, buffer: UnsafeMutableRawBufferPointer) {
        self.offset = offset
        self.buffer = buffer
    }
}

/// Rings that are free; a call takes one, and makes one where there is none, up to a limit.
final class UringStock: @unchecked Sendable {
    // SAFETY: a ring is in the list or in the hands of one call; the list is read and written with the lock held.
    private let state = Mutex<(free: [OpaqueRing], made: Int)>(([], 0))
    private static let entries: UInt32 = 64
    /// Rings are memory of the kernel's; calls beyond that many at a time go the plain way.
    private static let limit = 32

    private struct OpaqueRing: @unchecked Sendable {
        // SAFETY: a pointer that only the holder uses.
        let pointer: OpaquePointer
    }

    /// Throws the errno with which the system refuses.
    init() throws(StorageError) {
        let ring = try Self.make()
        state.withLock { state in state = ([ring], 1) }
    }

    deinit { state.withLock { for ring in $0.free { clinux_uring_destroy(ring.pointer) } } }

    private static func make() throws(StorageError) -> OpaqueRing {
        var ring: OpaquePointer?
        let failure = clinux_uring_create(entries, &ring)
        guard failure == 0, let ring else { throw StorageError(errno: failure) }
        return OpaqueRing(pointer: ring)
    }

    private func take() -> OpaqueRing? {
        let (ring, mayMake) = state.withLock { state -> (OpaqueRing?, Bool) in
            if let ring = state.free.popLast() { return (ring, false) }
            guard state.made < Self.limit else { return (nil, false) }
            state.made += 1
            return (nil, true)
        }
        if let ring { return ring }
        guard mayMake else { return nil }
        if let made = try? Self.make() { return made }
        state.withLock { $0.made -= 1 }
        return nil
    }

    /// Runs the transfers side by side; false when no ring was to be had, and nothing was done.
    func run(_ descriptor: Int32, _ transfers: UnsafeMutableBufferPointer<clinux_transfer>) -> Bool {
        guard let ring = take() else { return false }
        let failure = clinux_uring_run(
            ring.pointer, descriptor, 0, transfers.baseAddress, UInt32(transfers.count))
        if failure == 0 {
            state.withLock { $0.free.append(ring) }
            return true
        }
        clinux_uring_destroy(ring.pointer)
        state.withLock { $0.made -= 1 }
        return false
    }
}
