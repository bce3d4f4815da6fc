import BlockIO
import Synchronization

@testable import SCSI

/// Parameter lists as they come from an initiator: the first byte chooses the command, the second its service action,
/// the rest is the list. Afterwards the unit must still answer.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzLists(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 2 else { return 0 }
    let bytes = [UInt8](UnsafeRawBufferPointer(start: start, count: count))
    let list = Array(bytes[2...])
    // What was kept on disk is read back as it was written, or refused.
    if let kept = PersistentReservations(record: list) {
        precondition(PersistentReservations(record: kept.record)?.record == kept.record)
    }
    guard let identity = try? LogicalUnitIdentity(naa: "60000000000000000000000000000001", serial: "1"),
        let unit = try? LogicalUnit(
            device: MemoryDevice(sizeBytes: 1 << 20), identity: identity, store: KeptReservations())
    else { return 0 }
    let port = TargetPort(name: "iqn.2026-11.fuzz:target", groupTag: 1, relativeIdentifier: 1)
    unit.setPorts([UnitPort(port: port, access: .activeOptimized)])
    let nexus = unit.attach(
        initiatorPort: InitiatorPort(name: "iqn.2026-11.fuzz:0", isid: 0), targetPort: port)
    // Keys and reservation 0, so that all service actions get far.
    send(unit, nexus, 0x5F, 0x06, 0x00, [UInt8](repeating: 0, count: 15) + [1] + [UInt8](repeating: 0, count: 8))
    let opcodes: [UInt8] = [0x83, 0x5F, 0x15, 0x55, 0x42, 0x9C, 0x93, 0x89]
    send(unit, nexus, opcodes[Int(bytes[0]) % opcodes.count], bytes[1] & 0x1F, bytes[1] >> 5, list)
    let ready = unit.begin(CommandBlock([0x12, 0, 0, 0, 36, 0]), nexus: nexus)
    if case .parameterData(let data) = ready.disposition { precondition(data.count == 36) }
    unit.detach(nexus)
    return 0
}

private func send(
    _ unit: LogicalUnit, _ nexus: LogicalUnitNexus, _ opcode: UInt8, _ action: UInt8, _ type: UInt8, _ list: [UInt8]
) {
    var cdb = [UInt8](repeating: 0, count: 16)
    cdb[0] = opcode
    cdb[1] = action
    let length = UInt16(clamping: list.count)
    switch opcode {
    case 0x15: (cdb[1], cdb[4]) = (0x10, UInt8(clamping: list.count))
    case 0x55, 0x42: (cdb[1], cdb[7], cdb[8]) = (opcode == 0x55 ? 0x10 : 0, UInt8(length >> 8), UInt8(length & 0xFF))
    case 0x5F: (cdb[2], cdb[7], cdb[8]) = (type, UInt8(length >> 8), UInt8(length & 0xFF))
    case 0x89, 0x93, 0x9C: cdb[13] = 1
    default: (cdb[12], cdb[13]) = (UInt8(length >> 8), UInt8(length & 0xFF))
    }
    let started = unit.begin(CommandBlock(cdb), nexus: nexus)
    guard case .parameterList(let count, let operation) = started.disposition else { return }
    let whole = Array((list + [UInt8](repeating: 0, count: count)).prefix(count))
    let next = unit.finish(operation, list: whole, activity: started.activity)
    guard case .blocking(var running) = next else { return }
    for _ in 0..<64 where unit.step(&running, activity: started.activity) == nil {}
}

private final class KeptReservations: ReservationStore {
    private let record = Mutex<[UInt8]?>(nil)
    func save(_ record: [UInt8]?, naa: String) throws(ReservationStoreError) { self.record.withLock { $0 = record } }
    func load(naa: String) throws(ReservationStoreError) -> [UInt8]? { record.withLock { $0 } }
}
