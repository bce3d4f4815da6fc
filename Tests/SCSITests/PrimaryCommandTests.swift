import BlockIO
import Testing

@testable import SCSI

@Suite("Primary commands")
struct PrimaryCommandTests {
    @Test("sense data in fixed and descriptor format, byte by byte")
    func sense() {
        let sense = SenseData(.mediumError, .unrecoveredReadError, information: 0x1234)
        #expect(
            sense.encoded(descriptorFormat: false)
                == [0xF0, 0, 3, 0, 0, 0x12, 0x34, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0])
        #expect(
            sense.encoded(descriptorFormat: true)
                == [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34])
        #expect(
            SenseData.invalidCDB(byte: 2).encoded(descriptorFormat: false)
                == [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xC0, 0, 2])
        // A value that does not fit four bytes is not valid in fixed format.
        let far = SenseData(.illegalRequest, .blockAddressOutOfRange, information: 1 << 40)
        #expect(far.encoded(descriptorFormat: false)[0] == 0x70)
    }

    @Test("standard INQUIRY data is what SPC-4 table 142 lays out")
    func inquiry() throws {
        let test = try UnitUnderTest()
        let data = test.perform([0x12, 0, 0, 1, 0, 0]).data
        #expect(data.count == 96)
        #expect(Array(data[0..<8]) == [0x00, 0x00, 0x06, 0x12, 91, 0x18, 0x10, 0x02])
        #expect(String(decoding: data[8..<36], as: UTF8.self) == "STILLPNTStillpoint      0001")
        #expect(Array(data[58..<66]) == [0x00, 0xA0, 0x09, 0x60, 0x04, 0x60, 0x04, 0xC0])
        #expect(test.perform([0x12, 0, 0, 0, 5, 0]).data.count == 5)
        #expect(test.perform([0x12, 0, 0x80, 0, 255, 0]).end == .sense(.invalidCDB(byte: 2)))
    }

    @Test("every VPD page that is listed is there, in ascending order, and the NAA name is the identity")
    func vitalProductData() throws {
        let test = try UnitUnderTest()
        let list = test.perform([0x12, 1, 0, 0, 255, 0]).data
        let pages = Array(list[4...])
        #expect(pages == pages.sorted())
        for page in pages {
            let data = test.perform([0x12, 1, page, 4, 0, 0]).data
            #expect(data[1] == page)
            #expect(Int(data.word(2)) == data.count - 4)
        }
        let identification = test.perform([0x12, 1, 0x83, 4, 0, 0]).data
        let name = identification[8..<24].map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
        #expect(Array(identification[4..<8]) == [0x01, 0x03, 0x00, 0x10])
        #expect(name == UnitUnderTest.naa)
        #expect(test.perform([0x12, 1, 0x99, 0, 255, 0]).end == .sense(.invalidCDB(byte: 2)))
    }

    @Test("the capacity is told in both lengths, with thin provisioning and 4 KiB physical blocks")
    func capacity() throws {
        let test = try UnitUnderTest(sizeBytes: 1 << 30)
        #expect(
            test.perform([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).data == test.bytes(UInt32(2_097_151)) + [0, 0, 2, 0])
        let long = test.perform([0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]).data
        #expect(long.quad(0) == 2_097_151)
        #expect(long.long(8) == 512)
        #expect(long[13] == 3)
        #expect(long[14] == 0xC0)
        let huge = try UnitUnderTest(sizeBytes: 64 << 40)
        #expect(huge.perform([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).data.long(0) == 0xFFFF_FFFF)
    }

    @Test("a unit attention is told once to each nexus; INQUIRY and REPORT LUNS do not use it up")
    func unitAttention() throws {
        let test = try UnitUnderTest()
        let second = UnitUnderTest.attach(test.unit, initiator: "iqn.2026-11.test:two")
        test.unit.raise(.capacityChanged)
        for nexus in [test.nexus, second] {
            #expect(test.perform([0x12, 0, 0, 0, 36, 0], from: nexus).end == .good)
            #expect(
                test.perform([0, 0, 0, 0, 0, 0], from: nexus).end
                    == .sense(SenseData(.unitAttention, .capacityChanged)))
            #expect(test.perform([0, 0, 0, 0, 0, 0], from: nexus).end == .good)
        }
        test.unit.raise(.lunsChanged)
        let sense = test.perform([0x03, 0, 0, 0, 18, 0]).data
        #expect(Array(sense[12...13]) == [0x3F, 0x0E])
        #expect(test.perform([0x03, 0, 0, 0, 18, 0]).data[2] == 0)
    }

    @Test("mode pages: changed values come back, others learn of it, unchangeable bits are refused")
    func modePages() throws {
        let test = try UnitUnderTest()
        let second = UnitUnderTest.attach(test.unit, initiator: "iqn.2026-11.test:two")
        let control = test.perform([0x1A, 0x08, 0x0A, 0, 255, 0]).data
        #expect(Array(control[4...6]) == [0x0A, 0x0A, 0x20])
        var page = Array(control[4...])
        page[4] |= 0x08
        #expect(test.perform([0x15, 0x10, 0, 0, 16, 0], data: [0, 0, 0, 0] + page).end == .good)
        #expect(
            test.perform([0, 0, 0, 0, 0, 0], from: second).end
                == .sense(SenseData(.unitAttention, .modeParametersChanged)))
        #expect(
            test.write(lba: 0, [UInt8](repeating: 0, count: 512))
                == .sense(SenseData(.dataProtect, .softwareWriteProtected)))
        page[5] = 0x40
        #expect(test.perform([0x15, 0x10, 0, 0, 16, 0], data: [0, 0, 0, 0] + page).end != .good)
        #expect(test.perform([0x1A, 0, 0xC8, 0, 255, 0]).end == .illegal(.savingNotSupported))
        #expect(test.perform([0x1A, 0, 0x3F, 0, 4, 0]).data.count == 4)
    }

    @Test("every supported command has usage data, is listed with and without timeouts, and is found alone")
    func supportedCommands() throws {
        let test = try UnitUnderTest()
        let list = test.perform([0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0]).data
        #expect((list.count - 4) / 8 == SupportedCommand.all.count)
        for command in SupportedCommand.all {
            #expect([6, 10, 12, 16].contains(command.usage.count))
            let one = test.perform(
                [0xA3, 0x0C, 3, command.opcode] + test.bytes(command.serviceAction ?? 0) + [0, 0, 1, 0, 0, 0]
            ).data
            #expect(one[1] == 3)
            #expect(Int(one.word(2)) == command.usage.count)
        }
        #expect(test.perform([0xA3, 0x0C, 1, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0]).data[1] == 1)
    }

    @Test("LUN numbers encode and decode; other address formats are no LUN of ours")
    func lunFormats() {
        for lun in [0, 1, 255, 256, 1023, 16_383] {
            #expect(AbsentLogicalUnit.decode(AbsentLogicalUnit.encode(lun)) == lun)
        }
        #expect(AbsentLogicalUnit.decode(0xC101_0000_0000_0000) == nil)
        #expect(AbsentLogicalUnit.decode(0x0000_0001_0000_0000) == nil)
        #expect(AbsentLogicalUnit.decode(0x0100_0000_0000_0000) == nil)
    }

    @Test("a LUN that is not there answers INQUIRY with qualifier 3 and everything else with 25/00")
    func absentUnit() {
        guard case .parameterData(let data) = AbsentLogicalUnit.begin(CommandBlock([0x12, 0, 0, 0, 36, 0])) else {
            Issue.record("INQUIRY is answered")
            return
        }
        #expect(data[0] == 0x7F)
        guard case .end(let end) = AbsentLogicalUnit.begin(CommandBlock([0x28])) else {
            Issue.record("READ is refused")
            return
        }
        #expect(end == .illegal(.logicalUnitNotSupported))
    }

    @Test("REPORT LUNS gives all numbers even when the list is cut, and refuses fewer than 16 bytes")
    func reportLUNs() {
        let luns = Array(0..<300)
        func report(_ allocation: UInt8...) -> CommandDisposition {
            AbsentLogicalUnit.reportLUNs(CommandBlock([0xA0, 0, 0, 0, 0, 0, 0, 0] + allocation + [0, 0]), luns: luns)
        }
        guard case .parameterData(let data) = report(0x0F, 0xFF), case .end = report(0, 15),
            case .parameterData(let cut) = report(0, 20)
        else {
            Issue.record("unexpected disposition")
            return
        }
        #expect(data.count == 8 + 2400)
        #expect(data.quad(8 + 8 * 256) == 0x4100_0000_0000_0000)
        #expect(cut.count == 20)
        #expect(cut.long(0) == 2400)
    }

    @Test("an aborted command touches nothing, and the reset answers when the last operation has left")
    func abortWaits() throws {
        let test = try UnitUnderTest()
        let activity = test.unit.begin(CommandBlock([0, 0, 0, 0, 0, 0]), nexus: test.nexus).activity
        let slot = try test.unit.enter(activity)
        let flag = DrainFlag()
        test.unit.reset { flag.set() }
        #expect(!flag.isSet)
        #expect(throws: CommandEnd.aborted) { try test.unit.enter(activity) }
        test.unit.leave(slot)
        #expect(flag.isSet)
        #expect(
            test.perform([0, 0, 0, 0, 0, 0]).end == .sense(SenseData(.unitAttention, .busDeviceReset)))
    }

    @Test("several drains at once each wait for what ran before them, and only for that")
    func drains() {
        var running = RunningOperations()
        let first = DrainFlag()
        let second = DrainFlag()
        let a = running.enter()
        #expect(!running.drain { first.set() })
        let b = running.enter()
        #expect(!running.drain { second.set() })
        for completion in running.leave(a) { completion() }
        #expect(first.isSet && !second.isSet)
        let c = running.enter()
        for completion in running.leave(b) { completion() }
        #expect(second.isSet)
        #expect(running.leave(c).isEmpty)
        #expect(running.drain {})
    }
}
