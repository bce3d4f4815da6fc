import BlockIO
import Synchronization
import Testing

@testable import SCSI

/// Units that a copy may reach, and those it may not.
private final class Reachable: CopyDirectory {
    let units = Mutex<[String: LogicalUnit]>([:])
    func visit(naa: String, from nexus: LogicalUnitNexus) -> UnitVisit? {
        units.withLock { $0[naa]?.beginVisit() }
    }
}

@Suite("EXTENDED COPY")
struct ExtendedCopyTests {
    private let directory = Reachable()
    private let test: UnitUnderTest
    private let nexus: LogicalUnitNexus
    private let other: LogicalUnit
    private let otherDevice = MemoryDevice(sizeBytes: 8 << 20)
    private static let otherNAA = "6589cfc00000000000000000000000ff"

    init() throws {
        test = try UnitUnderTest()
        other = LogicalUnit(
            device: otherDevice, identity: try LogicalUnitIdentity(naa: Self.otherNAA, serial: "OTHER"))
        nexus = test.unit.attach(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.test:one", isid: 9),
            targetPort: TargetPort(name: "iqn.2026-11.test:target", groupTag: 1, relativeIdentifier: 1),
            copyDirectory: directory)
        directory.units.withLock { $0[Self.otherNAA] = other }
    }

    // MARK: Lists

    private func unit(_ naa: String, blockBytes: UInt32 = 512) -> [UInt8] {
        let digits = Array(naa)
        let bytes = stride(from: 0, to: 32, by: 2).map { UInt8(String(digits[$0...($0 + 1)]), radix: 16)! }
        return [0xE4, 0, 0, 0, 0x01, 0x03, 0, 16] + bytes + [0, 0, 0, 0] + test.bytes(blockBytes)
    }

    private func segment(
        _ blocks: UInt16, from: UInt64, to: UInt64, source: UInt16 = 0, destination: UInt16 = 0
    ) -> [UInt8] {
        [0x02, 0, 0, 24] + test.bytes(source) + test.bytes(destination) + [0, 0] + test.bytes(blocks)
            + test.bytes(from) + test.bytes(to)
    }

    private func list(_ units: [[UInt8]], _ segments: [[UInt8]], id: UInt8 = 1) -> [UInt8] {
        let first = units.flatMap { $0 }
        let second = segments.flatMap { $0 }
        return [id, 0] + test.bytes(UInt16(first.count)) + [0, 0, 0, 0] + test.bytes(UInt32(second.count))
            + [0, 0, 0, 0] + first + second
    }

    private func copy(_ list: [UInt8]) -> CommandEnd {
        test.perform(
            [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0] + test.bytes(UInt32(list.count)) + [0, 0], data: list, from: nexus
        ).end
    }

    private func results(_ action: UInt8, id: UInt8 = 0) -> (end: CommandEnd, data: [UInt8]) {
        test.perform([0x84, action, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], from: nexus)
    }

    private func fill(_ device: MemoryDevice, at offset: UInt64, _ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { try device.write(at: offset, from: $0, durability: .cached) }
    }

    private func contents(_ device: MemoryDevice, _ offset: UInt64, _ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        try bytes.withUnsafeMutableBytes { try device.read(at: offset, into: $0) }
        return bytes
    }

    private func pattern(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ 1) } }

    // MARK: Tests

    @Test("blocks go from one unit to another, holes stay holes, and the result can be asked for")
    func between() throws {
        let data = pattern(64 << 10)
        try fill(test.device, at: 0, data)
        try fill(otherDevice, at: 1 << 20, [UInt8](repeating: 9, count: 256 << 10))
        let units = [unit(UnitUnderTest.naa), unit(Self.otherNAA)]
        #expect(copy(list(units, [segment(512, from: 0, to: 2048, destination: 1)], id: 5)) == .good)
        #expect(try contents(otherDevice, 1 << 20, 64 << 10) == data)
        #expect(try contents(otherDevice, (1 << 20) + (64 << 10), 192 << 10).allSatisfy { $0 == 0 })
        #expect(try !otherDevice.provisioning(at: (1 << 20) + (64 << 10), maxLengthBytes: 4096).isMapped)
        // 5 is completed: one segment, 256 KiB.
        #expect(results(0, id: 5).data == [0, 0, 0, 8, 1, 0, 1, 0, 0, 4, 0, 0])
        #expect(results(4, id: 5).data == [0, 0, 0, 0])
        #expect(results(0, id: 6).end == .sense(.invalidCDB(byte: 2)))
    }

    @Test("ranges of one unit that overlap are copied as if all was read before any was written")
    func overlap() throws {
        for (from, to) in [(0, 100), (100, 0)] as [(UInt64, UInt64)] {
            let data = pattern(5 << 20)
            try fill(test.device, at: from * 512, data)
            #expect(copy(list([unit(UnitUnderTest.naa)], [segment(10_240, from: from, to: to)])) == .good)
            #expect(try contents(test.device, to * 512, 5 << 20) == data)
        }
    }

    @Test("a copy with byte counts (0Ah) takes no part of a block")
    func bytes() throws {
        func wide(_ bytes: UInt32, offset: UInt16 = 0) -> [UInt8] {
            [0x0A, 0, 0, 28, 0, 0, 0, 0] + test.bytes(bytes) + test.bytes(UInt64(0)) + test.bytes(UInt64(8))
                + test.bytes(offset) + [0, 0]
        }
        let data = pattern(2048)
        try fill(test.device, at: 0, data)
        #expect(copy(list([unit(UnitUnderTest.naa)], [wide(2048)])) == .good)
        #expect(try contents(test.device, 4096, 2048) == data)
        #expect(copy(list([unit(UnitUnderTest.naa)], [wide(100)])) == .illegal(.invalidFieldInParameterList))
        #expect(copy(list([unit(UnitUnderTest.naa)], [wide(512, offset: 3)])) == .illegal(.invalidFieldInParameterList))
    }

    @Test("CVE-2020-28374: a unit that the initiator may not reach is neither read nor written")
    func unreachable() throws {
        directory.units.withLock { $0[Self.otherNAA] = nil }
        let units = [unit(UnitUnderTest.naa), unit(Self.otherNAA)]
        let refused = CommandEnd.sense(CopyOperation.aborted(.copyTargetUnreachable, segment: 0))
        #expect(copy(list(units, [segment(8, from: 0, to: 0, destination: 1)])) == refused)
        #expect(copy(list(units, [segment(8, from: 0, to: 0, source: 1)])) == refused)
        let stranger = UnitUnderTest.attach(test.unit, initiator: "iqn.2026-11.test:one", isid: 3)
        let bytes = list(units, [segment(8, from: 0, to: 0, destination: 1)])
        #expect(
            test.perform(
                [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, UInt8(bytes.count), 0, 0], data: bytes, from: stranger
            )
            .end == refused)
    }

    @Test("reservations and write protection of the other unit hold for a copy, too")
    func reserved() throws {
        let holder = UnitUnderTest.attach(other, initiator: "iqn.2026-11.test:two", isid: 2)
        let key: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 1]
        let zeros = [UInt8](repeating: 0, count: 8)
        func out(_ cdb: [UInt8], _ list: [UInt8]) {
            let started = other.begin(CommandBlock(cdb), nexus: holder)
            guard case .parameterList(_, let operation) = started.disposition else { return }
            _ = other.finish(operation, list: list, activity: started.activity)
        }
        out([0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], zeros + key + zeros)
        out([0x5F, 1, 1, 0, 0, 0, 0, 0, 24, 0], key + zeros + zeros)
        let units = [unit(UnitUnderTest.naa), unit(Self.otherNAA)]
        let refused = CommandEnd.sense(CopyOperation.aborted(.thirdPartyDeviceFailure, segment: 1))
        let nothing = segment(0, from: 0, to: 0)
        #expect(copy(list(units, [nothing, segment(8, from: 0, to: 0, destination: 1)])) == refused)
        // Write exclusive: it may be read.
        #expect(copy(list(units, [nothing, segment(8, from: 0, to: 0, source: 1)])) == .good)
        let failed = results(4, id: 1)
        #expect(failed.data == [0, 0, 0, 0])
    }

    @Test("the numbers of a list are checked: too many, too long, unknown kinds, cut off, beyond the end")
    func limits() throws {
        let one = unit(UnitUnderTest.naa)
        let piece = segment(8, from: 0, to: 64)
        func ends(_ list: [UInt8], _ reason: AdditionalSense) {
            guard case .sense(let sense) = copy(list) else {
                Issue.record("\(reason) expected")
                return
            }
            #expect(sense.additional == reason)
        }
        ends(list(.init(repeating: one, count: 17), [piece]), .tooManyTargetDescriptors)
        ends(list([one], .init(repeating: piece, count: 65)), .tooManySegmentDescriptors)
        ends(list(.init(repeating: one, count: 17), .init(repeating: piece, count: 80)), .parameterListLengthError)
        var fibre = one
        fibre[0] = 0xE0
        ends(list([fibre], [piece]), .unsupportedTargetDescriptor)
        var stream = piece
        stream[0] = 0x03
        ends(list([one], [stream]), .unsupportedSegmentDescriptor)
        ends(list([one], [Array(piece.dropLast())]), .parameterListLengthError)
        ends(Array(list([one], [piece]).dropLast()), .parameterListLengthError)
        ends(list([one], [segment(8, from: 0, to: 64, destination: 1)]), .unreachableCopyTarget)
        ends(list([one], [segment(8, from: 0, to: 16_380)]), .none)
        ends(list([one], [segment(8, from: .max, to: 0)]), .none)
        ends(list([unit(UnitUnderTest.naa, blockBytes: 4096)], [piece]), .invalidFieldInParameterList)
        var inline = list([one], [piece])
        inline[15] = 1
        ends(inline, .inlineDataLengthExceeded)
        #expect(copy([]) == .good)
        #expect(test.perform([0x83, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).end == .sense(.invalidCDB(byte: 1)))
    }

    @Test("an aborted copy stops between two steps and has failed; a list identifier in use is refused")
    func abort() throws {
        try fill(test.device, at: 0, pattern(4 << 20))
        let bytes = list([unit(UnitUnderTest.naa)], [segment(8192, from: 0, to: 8192 - 1)], id: 3)
        let cdb: [UInt8] = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0] + test.bytes(UInt32(bytes.count)) + [0, 0]
        let long = list(
            [unit(UnitUnderTest.naa)],
            [segment(4096, from: 0, to: 8192), segment(4096, from: 0, to: 8192), segment(4096, from: 0, to: 8192)],
            id: 3)
        let started = test.unit.begin(CommandBlock(cdb), nexus: nexus)
        guard case .parameterList(_, let operation) = started.disposition,
            case .blocking(var running) = test.unit.finish(operation, list: long, activity: started.activity)
        else {
            Issue.record("a copy takes time")
            return
        }
        #expect(test.unit.step(&running, activity: started.activity) == nil)
        #expect(results(0, id: 3).data[4] == 0)
        #expect(copy(long) == .illegal(.operationInProgress))
        test.unit.abortTaskSet(of: nexus) {}
        #expect(test.unit.step(&running, activity: started.activity) == .aborted)
        #expect(results(0, id: 3).data[4] == 2)
    }

    @Test("operating parameters, VPD page 8F and REPORT SUPPORTED OPERATION CODES say what there is")
    func parameters() throws {
        let data = results(3).data
        #expect(data.count == 47 && data.long(0) == 43 && data.word(8) == 16 && data.word(10) == 64)
        #expect(data.long(16) == 256 << 20 && Array(data[43...]) == [3, 0x02, 0x0A, 0xE4])
        let page = test.perform([0x12, 1, 0x8F, 2, 0, 0]).data
        #expect(page[1] == 0x8F && Int(page.word(2)) == page.count - 4)
        #expect(Array(page[4..<20]) == [0, 1, 0, 12, 8, 0x83, 1, 0, 0x84, 3, 0, 3, 4, 0, 0, 0])
        let supported = test.perform([0xA3, 0x0C, 2, 0x84, 0, 4, 0, 0, 1, 0, 0, 0]).data
        #expect(supported[1] == 3)
    }
}
