import Glibc
import Simulation
import Synchronization

@testable import BlockStore

/// The two files of a volatile log as the machine keeps them: they can be full, the process can be killed in the middle
/// of a store, and they end with the machine's run. In memory, or over the real files on tmpfs.
final class SimulatedLog: VolatileLogStorage {
    private struct State {
        var files: [[UInt8]] = [[], []]
        /// Instead of `files`.
        var real: MemoryFileLogStorage?
        /// What was written to each real file, which is longer.
        var ends = [0, 0]
        var isRemoved = false
        var death: Death?
        /// So often it had no room.
        var refusals = 0
        var isTorn = false
    }

    /// The process ends in the middle of a write to the log.
    private struct Death {
        var writesLeft: Int
        var generator: SeededGenerator
        var body: @Sendable () -> Void
    }

    /// Where real files are kept.
    struct Place {
        var directory: String
        var poolID: ObjectID
    }

    let bootID: ObjectID
    private let capacityBytes: Int
    private let place: Place?
    private let state: Mutex<State>
    /// Whether the process is gone: nothing is written any more.
    private let isDead: @Sendable () -> Bool

    init(
        bootID: ObjectID = ObjectID(high: 1, low: 2), capacityBytes: Int = .max, files: [[UInt8]] = [[], []],
        place: Place? = nil, isDead: @escaping @Sendable () -> Bool = { false }
    ) {
        self.bootID = bootID
        self.capacityBytes = capacityBytes
        self.place = place
        self.isDead = isDead
        var initial = State(files: files)
        if let place {
            initial.real = try? MemoryFileLogStorage(directory: place.directory, poolID: place.poolID)
            initial.ends = files.map(\.count)
        }
        state = Mutex(initial)
    }

    var files: [[UInt8]] {
        state.withLock { state in
            guard let real = state.real else { return state.files }
            return (0..<2).map { Array(real.contents(ofFile: $0).prefix(state.ends[$0])) }
        }
    }
    var isRemoved: Bool { state.withLock { $0.isRemoved } }
    var refusals: Int { state.withLock { $0.refusals } }
    var isTorn: Bool { state.withLock { $0.isTorn } }
    var freeBytes: Int {
        state.withLock { state in
            max(
                0,
                capacityBytes - (0..<2).map { state.real == nil ? state.files[$0].count : state.ends[$0] }.reduce(0, +))
        }
    }

    /// The process dies in the middle of a write, after so many whole ones.
    func planDeath(after writes: Int, seed: UInt64, body: @escaping @Sendable () -> Void) {
        state.withLock { $0.death = Death(writesLeft: writes, generator: SeededGenerator(seed: seed), body: body) }
    }

    /// What the next process finds.
    func handedOver(
        bootID: ObjectID? = nil, capacityBytes: Int? = nil, isDead: @escaping @Sendable () -> Bool = { false }
    ) -> SimulatedLog {
        let files = files
        // The lock on real files goes with the process.
        state.withLock { $0.real = nil }
        return SimulatedLog(
            bootID: bootID ?? self.bootID, capacityBytes: capacityBytes ?? self.capacityBytes, files: files,
            place: place, isDead: isDead)
    }

    /// For a look at what a recovery would do.
    func copy() -> SimulatedLog { SimulatedLog(bootID: bootID, capacityBytes: capacityBytes, files: files) }

    /// The process is gone, and with it its lock on real files.
    func letGo() { state.withLock { $0.real = nil } }

    func contents(ofFile file: Int) -> [UInt8] {
        state.withLock { $0.real?.contents(ofFile: file) ?? $0.files[file] }
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int, toFile file: Int) -> Int32 {
        if isDead() { return EIO }
        let (result, death) = state.withLock { state -> (Int32, (@Sendable () -> Void)?) in
            if let death = state.death {
                guard death.writesLeft == 0 else {
                    state.death!.writesLeft -= 1
                    return (Self.put(bytes, at: offset, file, &state, capacityBytes), nil)
                }
                state.death = nil
                state.isTorn = true
                Self.tear(bytes, at: offset, file, &state, capacityBytes, death.generator)
                // Nobody looks at the answer any more.
                return (0, death.body)
            }
            return (Self.put(bytes, at: offset, file, &state, capacityBytes), nil)
        }
        death?()
        return result
    }

    private static func put(
        _ bytes: UnsafeRawBufferPointer, at offset: Int, _ file: Int, _ state: inout State, _ capacityBytes: Int
    ) -> Int32 {
        let other = state.real == nil ? state.files[1 - file].count : state.ends[1 - file]
        let count = min(max(0, capacityBytes - other - offset), bytes.count)
        guard count > 0 else {
            state.refusals += 1
            return ENOSPC
        }
        let end = offset + count
        if let real = state.real {
            let failure = real.write(UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: offset, toFile: file)
            guard failure == 0 else { return failure }
            state.ends[file] = max(state.ends[file], end)
        } else {
            if state.files[file].count < end {
                state.files[file].append(contentsOf: repeatElement(0, count: end - state.files[file].count))
            }
            state.files[file].replaceSubrange(offset..<end, with: bytes[..<count])
        }
        guard count < bytes.count else { return 0 }
        state.refusals += 1
        return ENOSPC
    }

    /// What a kill leaves of a store into mapped memory: some of its words, in no order.
    private static func tear(
        _ bytes: UnsafeRawBufferPointer, at offset: Int, _ file: Int, _ state: inout State, _ capacityBytes: Int,
        _ generator: SeededGenerator
    ) {
        var generator = generator
        let percent = generator.chance(50) ? 95 : generator.below(100)
        for word in stride(from: 0, to: bytes.count, by: 8) where generator.chance(percent) {
            let part = UnsafeRawBufferPointer(rebasing: bytes[word..<min(word + 8, bytes.count)])
            guard put(part, at: offset + word, file, &state, capacityBytes) == 0 else { return }
        }
    }

    func clear(file: Int) -> Int32 {
        if isDead() { return EIO }
        return state.withLock { state in
            state.files[file] = []
            state.ends[file] = 0
            return state.real?.clear(file: file) ?? 0
        }
    }

    func remove() {
        if isDead() { return }
        state.withLock {
            $0.files = [[], []]
            $0.ends = [0, 0]
            $0.real?.remove()
            $0.isRemoved = true
        }
    }
}
