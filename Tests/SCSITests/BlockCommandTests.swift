import BlockIO
import Synchronization
import Testing

@testable import SCSI

@Suite("Block commands")
struct BlockCommandTests {
    @Test("what is written with each CDB size reads back with each CDB size")
    func allSizes() throws {
        let test = try UnitUnderTest()
        let data = [UInt8](repeating: 0xA5, count: 1024)
        let lba = test.bytes(UInt32(6))
        let writes: [[UInt8]] = [
            [0x0A, 0, 0, 6, 2, 0], [0x2A, 0] + lba + [0, 0, 2, 0], [0xAA, 0] + lba + [0, 0, 0, 2, 0, 0],
            [0x8A, 0, 0, 0, 0, 0] + lba + [0, 0, 0, 2, 0, 0],
        ]
        let reads: [[UInt8]] = [
            [0x08, 0, 0, 6, 2, 0], [0x28, 0] + lba + [0, 0, 2, 0], [0xA8, 0] + lba + [0, 0, 0, 2, 0, 0],
            [0x88, 0, 0, 0, 0, 0] + lba + [0, 0, 0, 2, 0, 0],
        ]
        for write in writes {
            #expect(test.perform([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], data: unmapList(test, 0, 64)).end == .good)
            #expect(test.perform(write, data: data).end == .good)
            for read in reads { #expect(test.perform(read).data == data) }
        }
    }

    private func unmapList(_ test: UnitUnderTest, _ lba: UInt64, _ blocks: UInt32) -> [UInt8] {
        [0, 22, 0, 16, 0, 0, 0, 0] + test.bytes(lba) + test.bytes(blocks) + [0, 0, 0, 0]
    }

    @Test("a range beyond the end is LBA OUT OF RANGE with the LBA as information, and changes nothing")
    func beyondTheEnd() throws {
        let test = try UnitUnderTest(sizeBytes: 1 << 20)
        let expected = CommandEnd.sense(
            SenseData(.illegalRequest, .blockAddressOutOfRange, information: 2047))
        #expect(test.write(lba: 2047, [UInt8](repeating: 1, count: 1024)) == expected)
        #expect(test.read(lba: 2047, blocks: 2).end == expected)
        #expect(test.read(lba: 2047, blocks: 1).data == [UInt8](repeating: 0, count: 512))
        #expect(test.read(lba: 2048, blocks: 0).end == .good)
        #expect(test.read(lba: 2049, blocks: 0).end != .good)
        let wrapping: [UInt8] = [0x88, 0] + [UInt8](repeating: 0xFF, count: 8) + [0xFF, 0xFF, 0xFF, 0xFF, 0, 0]
        #expect(test.perform(wrapping).end != .good)
    }

    @Test("a read-only unit refuses every command that writes with DATA PROTECT")
    func writeProtect() throws {
        let test = try UnitUnderTest(isReadOnly: true)
        for opcode: UInt8 in [0x0A, 0x2A, 0xAA, 0x8A, 0x2E, 0xAE, 0x8E, 0x41, 0x93, 0x42, 0x89, 0x8B] {
            #expect(
                test.perform([opcode] + [UInt8](repeating: 0, count: 15)).end
                    == .sense(SenseData(.dataProtect, .writeProtected)))
        }
        #expect(test.read(lba: 0, blocks: 1).end == .good)
    }

    @Test("a write is answered before the flush, a FUA write after it, SYNCHRONIZE CACHE after it")
    func durability() throws {
        let device = HookedDevice(sizeBytes: 1 << 20)
        let unit = LogicalUnit(
            device: device, identity: try LogicalUnitIdentity(naa: UnitUnderTest.naa, serial: "1"))
        let nexus = UnitUnderTest.attach(unit, initiator: "iqn.2026-11.test:one")
        for (flags, flushes): (UInt8, Bool) in [(0x00, false), (0x08, true)] {
            let started = unit.begin(CommandBlock([0x2A, flags, 0, 0, 0, 0, 0, 0, 1, 0]), nexus: nexus)
            guard case .dataOut(let operation) = started.disposition else {
                Issue.record("a write takes data")
                return
            }
            #expect((unit.finish(operation) != nil) == flushes)
        }
        let flush = unit.begin(CommandBlock([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), nexus: nexus)
        guard case .blocking(var operation) = flush.disposition else {
            Issue.record("SYNCHRONIZE CACHE may wait")
            return
        }
        #expect(unit.step(&operation, activity: flush.activity) == .good)
        #expect(device.flushes.load(ordering: .relaxed) == 1)
    }

    @Test("with the write cache switched off every write waits for the disk")
    func writeThrough() throws {
        let test = try UnitUnderTest()
        var page = [UInt8](repeating: 0, count: 20)
        page[0] = 0x08
        page[1] = 0x12
        #expect(test.perform([0x15, 0x10, 0, 0, 24, 0], data: [0, 0, 0, 0] + page).end == .good)
        let started = test.unit.begin(CommandBlock([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), nexus: test.nexus)
        guard case .dataOut(let operation) = started.disposition else {
            Issue.record("a write takes data")
            return
        }
        #expect(operation.isDurable)
    }

    @Test("a failed flush is a hardware error, a bad block a medium error with its LBA, a full pool DATA PROTECT")
    func deviceErrors() throws {
        let device = HookedDevice(sizeBytes: 1 << 20) { () throws(BlockError) in throw .io(errno: 5) }
        let unit = LogicalUnit(
            device: device, identity: try LogicalUnitIdentity(naa: UnitUnderTest.naa, serial: "1"))
        let nexus = UnitUnderTest.attach(unit, initiator: "iqn.2026-11.test:one")
        let activity = unit.begin(CommandBlock([0x00, 0, 0, 0, 0, 0]), nexus: nexus).activity
        var flush = BlockingOperation(kind: .flush)
        #expect(
            unit.step(&flush, activity: activity) == .sense(SenseData(.hardwareError, .internalTargetFailure)))
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 512, alignment: 8)
        defer { buffer.deallocate() }
        #expect(throws: CommandEnd.sense(SenseData(.mediumError, .unrecoveredReadError, information: 8))) {
            try unit.read(at: 4096, into: buffer, activity: activity)
        }
        let operation = DataOutOperation(kind: .write, offset: 8192, lengthBytes: 512, isDurable: false)
        #expect(throws: CommandEnd.sense(SenseData(.dataProtect, .spaceAllocationFailed))) {
            try unit.consume(operation, at: 0, bytes: UnsafeRawBufferPointer(buffer), activity: activity)
        }
    }

    @Test("COMPARE AND WRITE writes when equal, and names the first differing byte when not")
    func compareAndWrite() throws {
        let test = try UnitUnderTest()
        let cdb: [UInt8] = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0]
        let zeros = [UInt8](repeating: 0, count: 512)
        let ones = [UInt8](repeating: 1, count: 512)
        #expect(test.perform(cdb, data: zeros + ones).end == .good)
        var expected = ones
        expected[17] = 9
        #expect(
            test.perform(cdb, data: expected + zeros).end
                == .sense(SenseData(.miscompare, .miscompare, information: 17)))
        #expect(test.read(lba: 4, blocks: 1).data == ones)
        var tooLong = cdb
        tooLong[13] = 129
        #expect(test.perform(tooLong).end != .good)
    }

    @Test("WRITE SAME repeats its block; with UNMAP and zeros, or without data, it deallocates")
    func writeSame() throws {
        let test = try UnitUnderTest()
        let pattern = (0..<512).map { UInt8(truncatingIfNeeded: $0) }
        let cdb: [UInt8] = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]
        #expect(test.perform(cdb, data: pattern).end == .good)
        #expect(test.read(lba: 8, blocks: 16).data == (0..<16).flatMap { _ in pattern })
        var unmapping = cdb
        unmapping[1] = 0x08
        // Data that is not zero is written, whatever the UNMAP bit says: reading must give it back.
        #expect(test.perform(unmapping, data: pattern).end == .good)
        #expect(test.read(lba: 8, blocks: 1).data == pattern)
        #expect(test.perform(unmapping, data: [UInt8](repeating: 0, count: 512)).end == .good)
        #expect(try test.device.provisioning(at: 8 * 512, maxLengthBytes: 8192).isMapped == false)
        #expect(test.perform(cdb, data: pattern).end == .good)
        unmapping[1] = 0x09
        #expect(test.perform(unmapping).end == .good)
        #expect(test.read(lba: 8, blocks: 16).data.allSatisfy { $0 == 0 })
        var everything = cdb
        everything[13] = 0
        #expect(test.perform(everything, data: pattern).end == .sense(.invalidCDB(byte: 10)))
    }

    @Test("UNMAP deallocates all ranges or, when one is beyond the end, none")
    func unmap() throws {
        let test = try UnitUnderTest(sizeBytes: 1 << 20)
        #expect(test.write(lba: 0, [UInt8](repeating: 7, count: 8192)) == .good)
        func list(_ ranges: [(UInt64, UInt32)]) -> [UInt8] {
            let count = UInt16(ranges.count * 16)
            return test.bytes(count + 6) + test.bytes(count) + [0, 0, 0, 0]
                + ranges.flatMap { test.bytes($0.0) + test.bytes($0.1) + [0, 0, 0, 0] }
        }
        func unmap(_ list: [UInt8]) -> CommandEnd {
            test.perform([0x42, 0, 0, 0, 0, 0, 0] + test.bytes(UInt16(list.count)) + [0], data: list).end
        }
        #expect(unmap(list([(0, 8), (2048, 1)])) != .good)
        #expect(test.read(lba: 0, blocks: 8).data.allSatisfy { $0 == 7 })
        #expect(unmap(list([(0, 8), (8, 8)])) == .good)
        #expect(test.read(lba: 0, blocks: 16).data.allSatisfy { $0 == 0 })
        var lying = list([(0, 8)])
        lying[3] = 32
        #expect(unmap(lying) == .illegal(.parameterListLengthError))
        #expect(unmap([]) == .good)
    }

    @Test("GET LBA STATUS tells mapped from unmapped runs")
    func status() throws {
        let test = try UnitUnderTest(sizeBytes: 1 << 20)
        #expect(test.write(lba: 8, [UInt8](repeating: 7, count: 4096)) == .good)
        let data = test.perform([0x9E, 0x12] + test.bytes(UInt64(0)) + test.bytes(UInt32(1024)) + [0, 0]).data
        #expect(data.long(0) == UInt32(data.count - 4))
        let runs = stride(from: 8, to: data.count, by: 16).map {
            [data.quad($0), UInt64(data.long($0 + 8)), UInt64(data[$0 + 12])]
        }
        #expect(runs == [[0, 8, 1], [8, 8, 0], [16, 2032, 1]])
    }

    @Test("VERIFY compares, WRITE AND VERIFY writes, ORWRITE ors")
    func verify() throws {
        let test = try UnitUnderTest()
        let data = [UInt8](repeating: 0x0F, count: 512)
        let rest: [UInt8] = [0, 0, 0, 0, 0, 0, 1, 0]
        #expect(test.perform([0x2E, 0x02] + rest, data: data).end == .good)
        #expect(test.perform([0x2F, 0x02] + rest, data: data).end == .good)
        #expect(test.perform([0x2F, 0x00] + rest).end == .good)
        let other = [UInt8](repeating: 0xF0, count: 512)
        #expect(
            test.perform([0x2F, 0x02] + rest, data: other).end
                == .sense(SenseData(.miscompare, .miscompare, information: 0)))
        let or: [UInt8] = [0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
        #expect(test.perform(or, data: other).end == .good)
        #expect(test.read(lba: 0, blocks: 1).data == [UInt8](repeating: 0xFF, count: 512))
    }

    @Test("random CDBs and parameter lists never crash the unit")
    func randomCommands() throws {
        let test = try UnitUnderTest(sizeBytes: 1 << 20)
        var generator = SplitMix(state: 20_261_121)
        for _ in 0..<12_000 {
            var cdb = (0..<16).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
            // Half of them within the device, so that they get somewhere.
            if Bool.random(using: &generator) {
                for index in [2, 3, 6, 7, 10, 11] { cdb[index] = 0 }
            }
            let count = Int.random(in: 0...1024, using: &generator)
            let data = (0..<count).map { _ in UInt8.random(in: 0...3, using: &generator) }
            let started = test.unit.begin(CommandBlock(cdb), nexus: test.nexus)
            if case .parameterList(let wanted, let operation) = started.disposition, wanted <= 1 << 17 {
                let list = data + [UInt8](repeating: 0, count: max(0, wanted - data.count))
                _ = test.unit.finish(operation, list: Array(list.prefix(wanted)), activity: started.activity)
            }
        }
        #expect(test.device.sizeBytes == 1 << 20)
    }
}

/// A seeded generator (SplitMix64), so that a failure can be repeated.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
