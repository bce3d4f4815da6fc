import BlockIO
import Synchronization

@testable import SCSI

/// A logical unit over a memory device, and the commands a test sends to it.
struct UnitUnderTest {
    let device: MemoryDevice
    let unit: LogicalUnit
    let nexus: LogicalUnitNexus

    static let naa = "6589cfc000000f1e2d3c4b5a69788796"

    init(sizeBytes: UInt64 = 8 << 20, isReadOnly: Bool = false) throws {
        device = MemoryDevice(sizeBytes: sizeBytes)
        unit = LogicalUnit(
            device: device, identity: try LogicalUnitIdentity(naa: Self.naa, serial: "SERIAL-1"),
            isReadOnly: isReadOnly)
        nexus = Self.attach(unit, initiator: "iqn.2026-11.test:one")
    }

    init(store: any ReservationStore) throws {
        device = MemoryDevice(sizeBytes: 1 << 20)
        unit = try LogicalUnit(
            device: device, identity: try LogicalUnitIdentity(naa: Self.naa, serial: "SERIAL-1"), store: store)
        nexus = Self.attach(unit, initiator: "iqn.2026-11.test:one")
    }

    static func attach(_ unit: LogicalUnit, initiator: String, isid: UInt64 = 1) -> LogicalUnitNexus {
        unit.attach(
            initiatorPort: InitiatorPort(name: initiator, isid: isid),
            targetPort: TargetPort(name: "iqn.2026-11.test:target", groupTag: 1, relativeIdentifier: 1))
    }

    /// Carries a command out to its end, as a transport would.
    /// - Returns: how it ended, and what it returned.
    func perform(
        _ cdb: [UInt8], data: [UInt8] = [], from other: LogicalUnitNexus? = nil
    ) -> (end: CommandEnd, data: [UInt8]) {
        let nexus = other ?? nexus
        let started = unit.begin(CommandBlock(cdb), nexus: nexus)
        do throws(CommandEnd) {
            return (.good, try carryOut(started.disposition, started.activity, data))
        } catch {
            return (error, [])
        }
    }

    private func carryOut(
        _ disposition: CommandDisposition, _ activity: CommandActivity, _ data: [UInt8]
    ) throws(CommandEnd) -> [UInt8] {
        switch disposition {
        case .detached: throw .aborted
        case .end(.good): return []
        case .end(let end): throw end
        case .parameterData(let bytes): return bytes
        case .read(let offset, let count):
            let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 8)
            defer { buffer.deallocate() }
            try unit.read(at: offset, into: buffer, activity: activity)
            return Array(buffer)
        case .dataOut(let operation):
            let bytes = Array(data.prefix(operation.lengthBytes))
            let result: Result<Void, CommandEnd> = bytes.withUnsafeBytes { bytes in
                do throws(CommandEnd) {
                    return .success(try unit.consume(operation, at: 0, bytes: bytes, activity: activity))
                } catch {
                    return .failure(error)
                }
            }
            try result.get()
            if let last = unit.finish(operation) { return try carryOut(.blocking(last), activity, []) }
            return []
        case .parameterList(let count, let operation):
            let list = Array(data.prefix(count))
            return try carryOut(unit.finish(operation, list: list, activity: activity), activity, [])
        case .blocking(var operation):
            while true {
                guard let end = unit.step(&operation, activity: activity) else { continue }
                if end == .good { return [] }
                throw end
            }
        }
    }

    // MARK: Commands

    func read(lba: UInt32, blocks: UInt16) -> (end: CommandEnd, data: [UInt8]) {
        perform([0x28, 0] + bytes(lba) + [0] + bytes(blocks) + [0])
    }

    func write(
        lba: UInt32, _ data: [UInt8], fua: Bool = false, from other: LogicalUnitNexus? = nil
    ) -> CommandEnd {
        perform(
            [0x2A, fua ? 0x08 : 0] + bytes(lba) + [0] + bytes(UInt16(data.count / 512)) + [0], data: data,
            from: other
        ).end
    }

    func bytes(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * $0)) } }
    func bytes(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xFF)] }
    func bytes(_ value: UInt64) -> [UInt8] { bytes(UInt32(value >> 32)) + bytes(UInt32(value & 0xFFFF_FFFF)) }
}

/// A device that does what a test tells it to when it is touched.
final class HookedDevice: BlockDevice {
    let inner: MemoryDevice
    let onFlush: @Sendable () throws(BlockError) -> Void
    let flushes = Atomic<Int>(0)

    init(sizeBytes: UInt64, onFlush: @escaping @Sendable () throws(BlockError) -> Void = { () throws(BlockError) in }) {
        inner = MemoryDevice(sizeBytes: sizeBytes)
        self.onFlush = onFlush
    }

    var sizeBytes: UInt64 { inner.sizeBytes }
    var geometry: BlockGeometry { inner.geometry }
    var isReadOnly: Bool { false }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError) {
        if offset == 4096 { throw .medium(offset: 4096) }
        try inner.read(at: offset, into: buffer)
    }
    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability) throws(BlockError) {
        if offset == 8192 { throw .noSpace }
        try inner.write(at: offset, from: buffer, durability: durability)
    }
    func flush() throws(BlockError) {
        flushes.wrappingAdd(1, ordering: .relaxed)
        try onFlush()
    }
    func unmap(at offset: UInt64, lengthBytes: UInt64) throws(BlockError) {
        try inner.unmap(at: offset, lengthBytes: lengthBytes)
    }
    func writeSame(
        at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError) {
        try inner.writeSame(at: offset, lengthBytes: lengthBytes, block: block, durability: durability)
    }
    func compareAndWrite(
        at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError) {
        try inner.compareAndWrite(at: offset, expected: expected, replacement: replacement, durability: durability)
    }
    func provisioning(at offset: UInt64, maxLengthBytes: UInt64) throws(BlockError) -> ProvisionedRun {
        try inner.provisioning(at: offset, maxLengthBytes: maxLengthBytes)
    }
}
