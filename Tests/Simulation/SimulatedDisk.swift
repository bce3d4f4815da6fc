public import BlockIO
internal import Synchronization

/// A disk that lies as real ones do: writes stay in a volatile cache until a sync; a crash keeps any part of what was
/// not synced, in pieces of 512 bytes; calls fail when a plan says so; blocks rot.
public final class SimulatedDisk: StorageFile {
    public static let blockBytes = 4096

    /// One call that can fail.
    public enum Call: Sendable, Equatable {
        case read(block: UInt64)
        case write(block: UInt64)
        case sync
        case punch
        case allocate
    }

    /// What happens to a call.
    public enum Fault: Sendable, Equatable {
        case fail(errno: Int32)
        /// Power is lost in the middle of the call; all later calls fail.
        case powerLoss
        /// The call says it succeeded and did nothing.
        case lost
        /// The write goes to this block instead.
        case misdirect(block: UInt64)
    }

    /// What the disk did so far besides what it was asked for; kept over crashes.
    public struct Effects: Sendable, Equatable {
        /// By crashes: writes that were not synced and are gone, or are there in part; a write that is gone though a
        /// later one is there.
        public var dropped = 0
        public var torn = 0
        public var reordered = 0
        /// By plans.
        public var readErrors = 0
        public var writeErrors = 0
        public var outOfSpace = 0
        public var failedSyncs = 0
        public var lostWrites = 0
        public var misdirectedWrites = 0
        public var rottenBlocks = 0
        /// Blocks that may hold something else than was written to them, without any call having failed.
        public var spoiled: Set<UInt64> = []
    }

    private enum Change {
        case write(offset: UInt64, bytes: [UInt8])
        case punch(offset: UInt64, lengthBytes: UInt64)

        var blocks: Range<UInt64> {
            let (offset, lengthBytes) =
                switch self {
                case .write(let offset, let bytes): (offset, UInt64(bytes.count))
                case .punch(let offset, let lengthBytes): (offset, lengthBytes)
                }
            let blockBytes = UInt64(SimulatedDisk.blockBytes)
            return (offset / blockBytes)..<((offset + lengthBytes + blockBytes - 1) / blockBytes)
        }
    }

    private struct State {
        var durable: [UInt64: [UInt8]] = [:]
        var live: [UInt64: [UInt8]] = [:]
        var pending: [Change] = []
        /// Blocks that reads show otherwise than the disk has them, though nothing of them waits to be written: what a
        /// failed sync did not write.
        var falselyClean: Set<UInt64> = []
        /// The last of `pending` was cut short by the end: this is what came of it, nil for nothing.
        var isCutShort = false
        var remainder: Change?
        var backed: Set<UInt64> = []
        var sizeBytes: UInt64 = 0
        var isDead = false
        var calls: UInt64 = 0
        var bytesWritten: UInt64 = 0
        var plan: (@Sendable (UInt64, Call) -> Fault?)?
        var interruption: (@Sendable () -> Void)?
        var effects = Effects()
        var generator: SeededGenerator
        var trace: UInt64 = 0

        /// Mixes a number into `trace`.
        mutating func note(_ number: UInt64) {
            trace = (trace ^ number) &* 0x9e37_79b9_7f4a_7c15
            trace ^= trace >> 29
        }

        mutating func spoil(_ offset: UInt64, _ lengthBytes: Int) {
            let blockBytes = UInt64(SimulatedDisk.blockBytes)
            let end = (offset + UInt64(lengthBytes) + blockBytes - 1) / blockBytes
            for block in (offset / blockBytes)..<end { effects.spoiled.insert(block) }
        }
    }

    private let state: Mutex<State>
    /// Blocks that the disk can back; more answer ENOSPC.
    private let capacityBlocks: Int
    public let canGrow: Bool

    public init(seed: UInt64, capacityBytes: UInt64 = .max, fixedSizeBytes: UInt64? = nil) {
        var initial = State(generator: SeededGenerator(seed: seed))
        initial.sizeBytes = fixedSizeBytes ?? 0
        state = Mutex(initial)
        capacityBlocks = capacityBytes == .max ? Int.max : Int(capacityBytes / UInt64(Self.blockBytes))
        canGrow = fixedSizeBytes == nil
    }

    private init(
        durable: [UInt64: [UInt8]], live: [UInt64: [UInt8]]? = nil, pending: [Change] = [], sizeBytes: UInt64,
        backed: Set<UInt64>, effects: Effects, seed: UInt64, trace: UInt64, like other: SimulatedDisk
    ) {
        var initial = State(generator: SeededGenerator(seed: seed))
        initial.durable = durable
        initial.live = live ?? durable
        initial.pending = pending
        initial.sizeBytes = sizeBytes
        initial.backed = backed
        initial.effects = effects
        initial.trace = trace
        state = Mutex(initial)
        capacityBlocks = other.capacityBlocks
        canGrow = other.canGrow
    }

    // MARK: Control

    /// Calls so far.
    public var callCount: UInt64 { state.withLock { $0.calls } }

    /// A digest of all calls so far, over crashes, and of what they wrote.
    public var trace: UInt64 { state.withLock { $0.trace } }

    /// Bytes that were written behind the superblock's copies, by calls that succeeded.
    public var bytesWritten: UInt64 { state.withLock { $0.bytesWritten } }

    /// Decides for each later call, by its number, whether it fails; nil lets all pass.
    public func setPlan(_ plan: (@Sendable (UInt64, Call) -> Fault?)?) { state.withLock { $0.plan = plan } }

    /// What happens before each call that reads, writes, syncs or punches, and at the end of a sync, in the caller's
    /// thread: as if another thread came between.
    public func setInterruption(_ body: (@Sendable () -> Void)?) { state.withLock { $0.interruption = body } }

    private func interrupt() { state.withLock { $0.interruption }?() }

    public var effects: Effects { state.withLock { $0.effects } }

    public var isDead: Bool { state.withLock { $0.isDead } }

    /// The process ends here: no later call does anything.
    public func kill() { state.withLock { $0.isDead = true } }

    /// Blocks that occupy storage.
    public var backedBlocks: Int { state.withLock { $0.backed.count } }

    /// Cuts the power and returns the disk as it is afterwards: what was synced, and of the rest whatever chance kept.
    public func crashed() -> SimulatedDisk {
        state.withLock { state in
            state.isDead = true
            var generator = state.generator
            var image = state.durable
            let keepsMost = generator.chance(50)
            var effects = state.effects
            var hasDropped = false
            for change in state.pending {
                if generator.chance(keepsMost ? 80 : 30) {
                    if Self.apply(change, to: &image, tearing: &generator) { effects.torn += 1 }
                    if hasDropped { effects.reordered += 1 }
                } else {
                    effects.dropped += 1
                    hasDropped = true
                }
            }
            return SimulatedDisk(
                durable: image, sizeBytes: state.sizeBytes, backed: state.backed, effects: effects,
                seed: generator.next(), trace: state.trace, like: self)
        }
    }

    /// The disk as a process finds it that starts after the one before was killed: no write that returned is lost, and
    /// what was not synced is still not durable.
    public func handedOver() -> SimulatedDisk {
        state.withLock { state in
            state.isDead = true
            var generator = state.generator
            var pending = state.pending
            if state.isCutShort {
                pending.removeLast()
                if let remainder = state.remainder { pending.append(remainder) }
            }
            let disk = SimulatedDisk(
                durable: state.durable, live: state.live, pending: pending, sizeBytes: state.sizeBytes,
                backed: state.backed, effects: state.effects, seed: generator.next(), trace: state.trace,
                like: self)
            disk.state.withLock { $0.falselyClean = state.falselyClean }
            return disk
        }
    }

    /// Another disk with the same content, all of it durable.
    public func copy() -> SimulatedDisk {
        state.withLock { state in
            SimulatedDisk(
                durable: state.live, sizeBytes: state.sizeBytes, backed: state.backed, effects: state.effects, seed: 1,
                trace: state.trace, like: self)
        }
    }

    /// Changes one bit of a block, on the medium and in what later reads see.
    public func rot(block: UInt64, bit: Int) {
        state.withLock { state in
            state.effects.rottenBlocks += 1
            state.effects.spoiled.insert(block)
            for path in [\State.durable, \State.live] {
                var bytes = state[keyPath: path][block] ?? [UInt8](repeating: 0, count: Self.blockBytes)
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
                state[keyPath: path][block] = bytes
            }
        }
    }

    /// Blocks that hold something.
    public var occupiedBlocks: [UInt64] {
        state.withLock { state in state.live.keys.filter { state.live[$0]!.contains { $0 != 0 } }.sorted() }
    }

    // MARK: StorageFile

    public var sizeBytes: UInt64 { state.withLock { $0.sizeBytes } }

    public var availableBytes: UInt64? {
        state.withLock { state in
            capacityBlocks == Int.max ? nil : UInt64(max(0, capacityBlocks - state.backed.count) * Self.blockBytes)
        }
    }

    /// Throws, or tells what else happens to the call.
    private func begin(_ call: Call, _ state: inout State) throws(StorageError) -> Fault? {
        guard !state.isDead else { throw StorageError(errno: 5) }
        state.calls += 1
        switch call {
        case .read(let block): state.note(block << 3)
        case .write(let block): state.note(block << 3 | 1)
        case .sync: state.note(2)
        case .punch: state.note(3)
        case .allocate: state.note(4)
        }
        let fault = state.plan?(state.calls, call)
        switch fault {
        case .fail(let errno):
            switch call {
            case .read: state.effects.readErrors += 1
            case .sync: state.effects.failedSyncs += 1
            default: if errno == 28 { state.effects.outOfSpace += 1 } else { state.effects.writeErrors += 1 }
            }
            throw StorageError(errno: errno)
        case .powerLoss where call == .sync:
            state.isDead = true
            throw StorageError(errno: 5)
        default: return fault
        }
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError) {
        interrupt()
        try state.withLock { state throws(StorageError) in
            if case .powerLoss = try begin(.read(block: offset / UInt64(Self.blockBytes)), &state) {
                state.isDead = true
                throw StorageError(errno: 5)
            }
            copyOut(state.live, offset, buffer)
        }
    }

    private func copyOut(
        _ image: [UInt64: [UInt8]], _ offset: UInt64, _ buffer: UnsafeMutableRawBufferPointer
    ) {
        forEachPiece(offset, buffer.count) { block, within, at, count in
            let target = UnsafeMutableRawBufferPointer(rebasing: buffer[at..<(at + count)])
            if let bytes = image[block] {
                bytes.withUnsafeBytes {
                    target.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[within..<(within + count)]))
                }
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    public func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(StorageError) {
        try write(at: offset, from: buffer, countedBytes: buffer.count)
    }

    public func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, backing lengthBytes: UInt64
    ) throws(StorageError) {
        let blocks = (offset / UInt64(Self.blockBytes))..<((offset + lengthBytes) / UInt64(Self.blockBytes))
        let isHole = state.withLock { state in
            blocks.allSatisfy { !state.backed.contains($0) } && state.backed.count + blocks.count <= capacityBlocks
        }
        guard isHole else { return try write(at: offset, from: buffer) }
        let all = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(lengthBytes), alignment: 8)
        defer { all.deallocate() }
        all.initializeMemory(as: UInt8.self, repeating: 0)
        all.copyMemory(from: buffer)
        try write(at: offset, from: UnsafeRawBufferPointer(all), countedBytes: buffer.count)
    }

    private func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, countedBytes: Int
    ) throws(StorageError) {
        interrupt()
        try state.withLock { state throws(StorageError) in
            var offset = offset
            state.note(UInt64(CRC32C.checksum(buffer)))
            switch try begin(.write(block: offset / UInt64(Self.blockBytes)), &state) {
            case .lost:
                state.effects.lostWrites += 1
                return state.spoil(offset, buffer.count)
            case .misdirect(let block):
                state.effects.misdirectedWrites += 1
                state.spoil(offset, buffer.count)
                offset = block * UInt64(Self.blockBytes)
                state.spoil(offset, buffer.count)
            case .powerLoss:
                let change = Change.write(offset: offset, bytes: Array(buffer))
                state.pending.append(change)
                // A process that is killed in the middle leaves a part in the system's cache.
                var generator = state.generator
                Self.apply(change, to: &state.live, tearing: &generator)
                state.generator = generator
                state.isCutShort = true
                var bytes = [UInt8](repeating: 0, count: buffer.count)
                bytes.withUnsafeMutableBytes { copyOut(state.live, offset, $0) }
                state.remainder = .write(offset: offset, bytes: bytes)
                state.isDead = true
                throw StorageError(errno: 5)
            default: break
            }
            try back(offset, UInt64(buffer.count), &state)
            let change = Change.write(offset: offset, bytes: Array(buffer))
            Self.apply(change, to: &state.live)
            state.pending.append(change)
            if offset >= UInt64(64 * Self.blockBytes) { state.bytesWritten += UInt64(countedBytes) }
        }
    }

    public func sync() throws(StorageError) {
        interrupt()
        try state.withLock { state throws(StorageError) in
            let fault: Fault?
            do throws(StorageError) {
                fault = try begin(.sync, &state)
            } catch {
                // The kernel has marked what it could not write as clean: some of it never reaches the disk.
                var generator = state.generator
                if !state.isDead {
                    state.pending = state.pending.filter { change in
                        let isKept = generator.chance(50)
                        if !isKept { state.falselyClean.formUnion(change.blocks) }
                        return isKept
                    }
                }
                state.generator = generator
                throw error
            }
            if fault == .lost { return }
            for change in state.pending { Self.apply(change, to: &state.durable) }
            state.pending = []
        }
        // What comes now came too late for this sync, though it has not returned yet.
        interrupt()
    }

    public func dropCache() {
        state.withLock { state in
            guard !state.falselyClean.isEmpty, !state.isDead else { return }
            for block in state.falselyClean { state.live[block] = state.durable[block] }
            for change in state.pending { Self.apply(change, to: &state.live) }
            state.falselyClean = []
        }
    }

    public func punchHole(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {
        interrupt()
        try state.withLock { state throws(StorageError) in
            if case .powerLoss = try begin(.punch, &state) {
                state.pending.append(.punch(offset: offset, lengthBytes: lengthBytes))
                state.isCutShort = true
                state.isDead = true
                throw StorageError(errno: 5)
            }
            let change = Change.punch(offset: offset, lengthBytes: lengthBytes)
            Self.apply(change, to: &state.live)
            state.pending.append(change)
            let first = offset / UInt64(Self.blockBytes)
            for block in first..<(first + lengthBytes / UInt64(Self.blockBytes)) { state.backed.remove(block) }
        }
    }

    public func allocate(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {
        interrupt()
        try state.withLock { state throws(StorageError) in
            if case .powerLoss = try begin(.allocate, &state) {
                state.isDead = true
                throw StorageError(errno: 5)
            }
            try back(offset, lengthBytes, &state)
        }
    }

    public func close() {}

    // MARK: Parts

    private func back(_ offset: UInt64, _ lengthBytes: UInt64, _ state: inout State) throws(StorageError) {
        let blockBytes = UInt64(Self.blockBytes)
        if !canGrow {
            guard offset + lengthBytes <= state.sizeBytes else { throw StorageError(errno: 28) }
            return
        }
        let blocks = (offset / blockBytes)..<((offset + lengthBytes + blockBytes - 1) / blockBytes)
        if capacityBlocks != Int.max {
            let missing = blocks.filter { !state.backed.contains($0) }
            guard state.backed.count + missing.count <= capacityBlocks else {
                state.effects.outOfSpace += 1
                throw StorageError(errno: 28)
            }
            state.backed.formUnion(missing)
        } else {
            state.backed.formUnion(blocks)
        }
        state.sizeBytes = max(state.sizeBytes, offset + lengthBytes)
    }

    private static func apply(_ change: Change, to image: inout [UInt64: [UInt8]]) {
        switch change {
        case .write(let offset, let bytes): put(bytes[...], at: offset, into: &image)
        case .punch(let offset, let lengthBytes):
            let first = offset / UInt64(blockBytes)
            for block in first..<(first + lengthBytes / UInt64(blockBytes)) { image[block] = nil }
        }
    }

    /// Applies a change as a crash does: whole, or some of its sectors. True for the latter.
    @discardableResult
    private static func apply(
        _ change: Change, to image: inout [UInt64: [UInt8]], tearing generator: inout SeededGenerator
    ) -> Bool {
        guard case .write(let offset, let bytes) = change, generator.chance(30) else {
            apply(change, to: &image)
            return false
        }
        for at in stride(from: 0, to: bytes.count, by: 512) where generator.chance(50) {
            put(bytes[at..<min(at + 512, bytes.count)], at: offset + UInt64(at), into: &image)
        }
        return true
    }

    private static func put(_ bytes: ArraySlice<UInt8>, at offset: UInt64, into image: inout [UInt64: [UInt8]]) {
        forEachPiece(offset, bytes.count) { block, within, at, count in
            let part = bytes[(bytes.startIndex + at)..<(bytes.startIndex + at + count)]
            if count == blockBytes {
                image[block] = Array(part)
            } else {
                image[block, default: [UInt8](repeating: 0, count: blockBytes)]
                    .replaceSubrange(within..<(within + count), with: part)
            }
        }
    }

    private func forEachPiece(_ offset: UInt64, _ length: Int, _ body: (UInt64, Int, Int, Int) -> Void) {
        Self.forEachPiece(offset, length, body)
    }

    private static func forEachPiece(_ offset: UInt64, _ length: Int, _ body: (UInt64, Int, Int, Int) -> Void) {
        var at = 0
        while at < length {
            let position = offset + UInt64(at)
            let within = Int(position % UInt64(blockBytes))
            let count = min(length - at, blockBytes - within)
            body(position / UInt64(blockBytes), within, at, count)
            at += count
        }
    }
}
