import BlockIO
import Synchronization
import Testing

@testable import SCSI

@Suite("LOG SENSE, WRITE ATOMIC and information fields")
struct LogAndAtomicTests {
    private func log(_ test: UnitUnderTest, _ page: UInt8, subpage: UInt8 = 0, from: UInt8 = 0) -> [UInt8] {
        test.perform([0x4D, 0, 0x40 | page, subpage, 0, 0, from, 1, 0, 0]).data
    }

    @Test("LOG SENSE lists its pages, with and without subpages")
    func pages() throws {
        let test = try UnitUnderTest()
        #expect(log(test, 0) == [0, 0, 0, 3, 0x00, 0x0C, 0x2F])
        #expect(log(test, 0, subpage: 0xFF) == [0x40, 0xFF, 0, 6, 0x00, 0, 0x0C, 0, 0x2F, 0])
        #expect(log(test, 0x2F) == [0x2F, 0, 0, 8, 0, 0, 3, 4, 0, 0, 0xFF, 0])
        #expect(test.perform([0x4D, 0, 0x43, 0, 0, 0, 0, 1, 0, 0]).end == .sense(.invalidCDB(byte: 2)))
        #expect(test.perform([0x4D, 0x01, 0x40, 0, 0, 0, 0, 1, 0, 0]).end == .sense(.invalidCDB(byte: 1)))
        #expect(test.perform([0x4D, 0, 0x4C, 0, 0, 0, 3, 1, 0, 0]).end == .sense(.invalidCDB(byte: 5)))
    }

    @Test("the provisioning page counts, in MiB, what the unit uses and what is left in the pool")
    func provisioning() throws {
        let test = try UnitUnderTest()
        let thresholds = test.perform([0x12, 1, 0xB2, 0, 64, 0]).data
        #expect(thresholds[4] == 11)
        func page(left: UInt8, used: UInt8) -> [UInt8] {
            [0x0C, 0, 0, 24, 0, 1, 3, 8, 0, 0, 0, left, 2, 0, 0, 0, 0, 2, 3, 8, 0, 0, 0, used, 1, 0, 0, 0]
        }
        #expect(log(test, 0x0C) == page(left: 8, used: 0))
        #expect(test.write(lba: 0, [UInt8](repeating: 1, count: 2 << 20)) == .good)
        #expect(log(test, 0x0C) == page(left: 6, used: 2))
        #expect(log(test, 0x0C, from: 2) == [0x0C, 0, 0, 12] + page(left: 6, used: 2)[16...])
    }

    @Test("WRITE ATOMIC is one write to the device, up to the length that VPD page B0 tells")
    func atomic() throws {
        let base = MemoryDevice(sizeBytes: 8 << 20)
        let writes = Mutex<[UInt64]>([])
        let device = FaultyDevice(over: base) { operation in
            if case .write(_, let count, _) = operation { writes.withLock { $0.append(count) } }
            return nil
        }
        let test = try UnitUnderTest()
        let unit = LogicalUnit(device: device, identity: test.unit.identity)
        let nexus = UnitUnderTest.attach(unit, initiator: "iqn.2026-11.test:one")
        let started = unit.begin(CommandBlock([0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]), nexus: nexus)
        guard case .parameterList(let count, let operation) = started.disposition else {
            Issue.record("it is gathered first")
            return
        }
        #expect(count == 128 << 10 && operation.needsExactLength)
        let list = [UInt8](repeating: 7, count: count)
        guard case .end(.good) = unit.finish(operation, list: list, activity: started.activity) else {
            Issue.record("it is written")
            return
        }
        #expect(writes.withLock { $0 } == [128 << 10])
        let limits = test.perform([0x12, 1, 0xB0, 0, 64, 0]).data
        #expect(limits.long(44) == 256 && limits[48..<64].allSatisfy { $0 == 0 })
        func refused(_ cdb: [UInt8]) -> CommandEnd { test.perform(cdb).end }
        #expect(refused([0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0]) == .sense(.invalidCDB(byte: 12)))
        #expect(refused([0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 8, 0, 0]) == .sense(.invalidCDB(byte: 10)))
        #expect(
            refused([0x9C, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0])
                == .sense(SenseData(.illegalRequest, .blockAddressOutOfRange, information: 16_384)))
        #expect(refused([0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == .good)
    }

    @Test("WRITE SAME is one call of the device, up to the length that VPD page B0 tells, and refused beyond it")
    func writeSame() throws {
        let calls = Mutex<[FaultyDevice.Operation]>([])
        let device = FaultyDevice(over: MemoryDevice(sizeBytes: 64 << 20)) { operation in
            calls.withLock { $0.append(operation) }
            return nil
        }
        let identity = try UnitUnderTest().unit.identity
        func perform(_ cdb: [UInt8], limits: LogicalUnitLimits = .init(), list: [UInt8]?) -> CommandEnd? {
            let unit = LogicalUnit(device: device, identity: identity, limits: limits)
            let nexus = UnitUnderTest.attach(unit, initiator: "iqn.2026-11.test:one")
            let started = unit.begin(CommandBlock(cdb), nexus: nexus)
            var disposition = started.disposition
            if case .parameterList(_, let operation) = disposition, let list {
                disposition = unit.finish(operation, list: list, activity: started.activity)
            }
            switch disposition {
            case .end(let end): return end
            case .blocking(var operation): return unit.step(&operation, activity: started.activity)
            default: return nil
            }
        }
        let block = [UInt8](repeating: 7, count: 512)
        // From block 1 on, 16 MiB.
        let longest: [UInt8] = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x80, 0, 0, 0]
        #expect(perform(longest, list: block) == .good)
        #expect(calls.withLock { $0 } == [.writeSame(offset: 512, lengthBytes: 16 << 20)])
        var deallocating = longest
        deallocating[1] = 0x08
        #expect(perform(deallocating, list: [UInt8](repeating: 0, count: 512)) == .good)
        deallocating[1] = 0x01
        #expect(perform(deallocating, list: nil) == .good)
        let hole = FaultyDevice.Operation.unmap(offset: 512, lengthBytes: 16 << 20)
        #expect(calls.withLock { $0.dropFirst() } == [hole, hole])
        for first in [UInt8(0x00), 0x08, 0x09] {
            var tooLong = longest
            tooLong[1] = first
            tooLong[13] = 1
            #expect(perform(tooLong, list: nil) == .sense(.invalidCDB(byte: 10)))
        }
        // ANCHOR, and what an initiator gives for a device that takes less.
        var anchored = longest
        anchored[1] = 0x10
        #expect(perform(anchored, list: nil) == .sense(.invalidCDB(byte: 1)))
        var limits = LogicalUnitLimits()
        limits.writeSameBytes = 8192
        let short: [UInt8] = [0x41, 0, 0, 0, 0, 0, 0, 0, 17, 0]
        #expect(perform(short, limits: limits, list: nil) == .sense(.invalidCDB(byte: 7)))
        #expect(calls.withLock { $0.count } == 3)
        let page = try UnitUnderTest().perform([0x12, 1, 0xB0, 0, 64, 0]).data
        #expect(page.quad(36) == 0x8000)
    }

    @Test("the first byte that differs is counted from the beginning of the command's data, whichever piece it is in")
    func differences() throws {
        let test = try UnitUnderTest()
        let data = [UInt8](repeating: 5, count: 4096)
        #expect(test.write(lba: 8, data) == .good)
        let started = test.unit.begin(CommandBlock([0x2F, 2, 0, 0, 0, 8, 0, 0, 8, 0]), nexus: test.nexus)
        guard case .dataOut(let operation) = started.disposition else {
            Issue.record("VERIFY takes data")
            return
        }
        var other = data
        other[3000] = 6
        var end: CommandEnd?
        for start in [0, 2048] where end == nil {
            other[start..<start + 2048].withUnsafeBytes { bytes in
                do throws(CommandEnd) {
                    try test.unit.consume(operation, at: start, bytes: bytes, activity: started.activity)
                } catch { end = error }
            }
        }
        #expect(end == .sense(SenseData(.miscompare, .miscompare, information: 3000)))
        // COMPARE AND WRITE, likewise.
        let list = Array(other[..<512]) + data[..<512] + data[..<1024]
        let both = Array(data[..<512]) + Array(other[2560..<3072]) + data[..<1024]
        #expect(list.count == both.count)
        #expect(
            test.perform([0x89, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0], data: both).end
                == .sense(SenseData(.miscompare, .miscompare, information: 512 + 440)))
    }

    @Test("ORWRITEs of one range from two sides lose no bit and never end with a miscompare")
    func orwrite() throws {
        let base = MemoryDevice(sizeBytes: 1 << 20)
        let interferences = Atomic<Int>(0)
        let device = FaultyDevice(over: base)
        device.setRule { operation in
            guard case .compareAndWrite = operation,
                interferences.wrappingAdd(1, ordering: .relaxed).oldValue == 0
            else { return nil }
            // Somebody else was faster.
            let bytes = [UInt8](repeating: 0x10, count: 512)
            bytes.withUnsafeBytes { try? base.write(at: 0, from: $0, durability: .cached) }
            return nil
        }
        let test = try UnitUnderTest()
        let unit = LogicalUnit(device: device, identity: test.unit.identity)
        let nexus = UnitUnderTest.attach(unit, initiator: "iqn.2026-11.test:one")
        let started = unit.begin(CommandBlock([0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]), nexus: nexus)
        guard case .dataOut(let operation) = started.disposition else {
            Issue.record("ORWRITE takes data")
            return
        }
        let bits = [UInt8](repeating: 0x01, count: 512)
        try bits.withUnsafeBytes { try unit.consume(operation, at: 0, bytes: $0, activity: started.activity) }
        var result = [UInt8](repeating: 0, count: 512)
        try result.withUnsafeMutableBytes { try base.read(at: 0, into: $0) }
        #expect(result.allSatisfy { $0 == 0x11 })
    }
}
