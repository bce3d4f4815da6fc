import Glibc
import Synchronization

@testable import BlockStore

/// The files of a volatile log without a tmpfs: they can be full, and end with the process or the machine's run.
final class SimulatedLog: VolatileLogStorage {
    private struct State {
        var files: [[UInt8]] = [[], []]
        var isRemoved = false
    }

    let bootID: ObjectID
    private let capacityBytes: Int
    private let state: Mutex<State>
    /// Whether the process is gone: nothing is written any more.
    private let isDead: @Sendable () -> Bool

    init(
        bootID: ObjectID = ObjectID(high: 1, low: 2), capacityBytes: Int = .max, files: [[UInt8]] = [[], []],
        isDead: @escaping @Sendable () -> Bool = { false }
    ) {
        self.bootID = bootID
        self.capacityBytes = capacityBytes
        self.isDead = isDead
        state = Mutex(State(files: files))
    }

    var files: [[UInt8]] { state.withLock { $0.files } }
    var isRemoved: Bool { state.withLock { $0.isRemoved } }

    /// What the next process finds.
    func handedOver(
        bootID: ObjectID? = nil, capacityBytes: Int? = nil, isDead: @escaping @Sendable () -> Bool = { false }
    ) -> SimulatedLog {
        SimulatedLog(
            bootID: bootID ?? self.bootID, capacityBytes: capacityBytes ?? self.capacityBytes, files: files,
            isDead: isDead)
    }

    func contents(ofFile file: Int) -> [UInt8] { files[file] }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int, toFile file: Int) -> Int32 {
        if isDead() { return EIO }
        return state.withLock { state in
            let other = state.files[1 - file].count
            let room = max(0, capacityBytes - other - offset)
            let count = min(room, bytes.count)
            let end = offset + count
            if state.files[file].count < end {
                state.files[file].append(contentsOf: repeatElement(0, count: end - state.files[file].count))
            }
            state.files[file].replaceSubrange(offset..<end, with: bytes[..<count])
            return count == bytes.count ? 0 : ENOSPC
        }
    }

    func clear(file: Int) -> Int32 {
        if isDead() { return EIO }
        state.withLock { $0.files[file] = [] }
        return 0
    }

    func remove() {
        if isDead() { return }
        state.withLock {
            $0.files = [[], []]
            $0.isRemoved = true
        }
    }
}
