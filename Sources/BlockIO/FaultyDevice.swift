internal import Synchronization

/// A decorator that lets a rule refuse calls of another device, and counts them.
public final class FaultyDevice: BlockDevice {
    /// A call, as the rule sees it.
    public enum Operation: Sendable, Equatable {
        case read(offset: UInt64, lengthBytes: UInt64)
        case write(offset: UInt64, lengthBytes: UInt64, isDurable: Bool)
        case flush
        case unmap(offset: UInt64, lengthBytes: UInt64)
        case writeSame(offset: UInt64, lengthBytes: UInt64)
        case compareAndWrite(offset: UInt64, lengthBytes: UInt64)
    }

    private struct State {
        var rule: @Sendable (Operation) -> BlockError?
        var count: UInt64 = 0
    }

    private let base: any BlockDevice
    private let state: Mutex<State>

    /// Calls pass through until `rule` returns an error for one.
    public init(over base: any BlockDevice, rule: @escaping @Sendable (Operation) -> BlockError? = { _ in nil }) {
        self.base = base
        state = Mutex(State(rule: rule))
    }

    /// Replaces the rule for all later calls.
    public func setRule(_ rule: @escaping @Sendable (Operation) -> BlockError?) {
        state.withLock { $0.rule = rule }
    }

    /// Calls so far, refused ones too.
    public var operationCount: UInt64 { state.withLock { $0.count } }

    public var sizeBytes: UInt64 { base.sizeBytes }
    public var geometry: BlockGeometry { base.geometry }
    public var isReadOnly: Bool { base.isReadOnly }
    public var atomicWriteBytes: Int { base.atomicWriteBytes }
    public var writeSameBytes: UInt64 { base.writeSameBytes }
    public func usage() -> DeviceUsage? { base.usage() }

    private func pass(_ operation: Operation) throws(BlockError) {
        let rule = state.withLock { state in
            state.count += 1
            return state.rule
        }
        if let error = rule(operation) { throw error }
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError) {
        try pass(.read(offset: offset, lengthBytes: UInt64(buffer.count)))
        try base.read(at: offset, into: buffer)
    }

    public func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability
    ) throws(BlockError) {
        try pass(.write(offset: offset, lengthBytes: UInt64(buffer.count), isDurable: durability == .durable))
        try base.write(at: offset, from: buffer, durability: durability)
    }

    public func flush() throws(BlockError) {
        try pass(.flush)
        try base.flush()
    }

    public func unmap(at offset: UInt64, lengthBytes: UInt64) throws(BlockError) {
        try pass(.unmap(offset: offset, lengthBytes: lengthBytes))
        try base.unmap(at: offset, lengthBytes: lengthBytes)
    }

    public func writeSame(
        at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError) {
        try pass(.writeSame(offset: offset, lengthBytes: lengthBytes))
        try base.writeSame(at: offset, lengthBytes: lengthBytes, block: block, durability: durability)
    }

    public func compareAndWrite(
        at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError) {
        try pass(.compareAndWrite(offset: offset, lengthBytes: UInt64(expected.count)))
        try base.compareAndWrite(at: offset, expected: expected, replacement: replacement, durability: durability)
    }

    public func provisioning(at offset: UInt64, maxLengthBytes: UInt64) throws(BlockError) -> ProvisionedRun {
        try base.provisioning(at: offset, maxLengthBytes: maxLengthBytes)
    }
}
