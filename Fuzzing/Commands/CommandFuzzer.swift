import BlockIO

@testable import SCSI

/// Commands of 16 bytes, each followed by a length and so many bytes of data, to one unit from two nexuses.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzCommands(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard let identity = try? LogicalUnitIdentity(naa: "60000000000000000000000000000001", serial: "1") else {
        return 0
    }
    let unit = LogicalUnit(device: MemoryDevice(sizeBytes: 1 << 20), identity: identity)
    let port = TargetPort(name: "iqn.2026-11.fuzz:target", groupTag: 1, relativeIdentifier: 1)
    let nexuses = (0..<2).map {
        unit.attach(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.fuzz:\($0)", isid: UInt64($0)), targetPort: port)
    }
    let bytes = [UInt8](UnsafeRawBufferPointer(start: start, count: count))
    var offset = 0
    while offset + 18 <= bytes.count {
        let nexus = nexuses[Int(bytes[offset] & 1)]
        let length = Int(bytes[offset + 1])
        let cdb = CommandBlock(Array(bytes[offset + 2..<offset + 18]))
        offset += 18
        let data = Array(bytes[offset..<min(offset + length, bytes.count)])
        offset += data.count
        perform(unit.begin(cdb, nexus: nexus), unit, data)
    }
    // A unit and its nexuses hold each other until the nexus ends.
    for nexus in nexuses { unit.detach(nexus) }
    return 0
}

private func perform(_ started: StartedCommand, _ unit: LogicalUnit, _ data: [UInt8]) {
    switch started.disposition {
    case .read(let offset, let count):
        precondition(offset + UInt64(count) <= unit.device.sizeBytes)
    case .dataOut(let operation):
        precondition(operation.offset + UInt64(operation.lengthBytes) <= unit.device.sizeBytes)
        let whole = Array(data.prefix(min(data.count, operation.lengthBytes) / 512 * 512))
        whole.withUnsafeBytes { bytes in
            _ = try? unit.consume(operation, at: 0, bytes: bytes, activity: started.activity)
        }
    case .parameterList(let count, let operation):
        precondition(count <= 256 << 10)
        let list = Array((data + [UInt8](repeating: 0, count: count)).prefix(count))
        let next = unit.finish(operation, list: list, activity: started.activity)
        if case .blocking = next {
            perform(StartedCommand(disposition: next, activity: started.activity), unit, [])
        }
    case .blocking(var operation):
        for _ in 0..<2 where unit.step(&operation, activity: started.activity) == nil {}
    case .end, .detached, .parameterData: break
    }
}
