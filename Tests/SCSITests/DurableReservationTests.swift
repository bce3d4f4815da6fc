import BlockIO
import Synchronization
import Testing

@testable import SCSI

/// Keeps records in memory; refuses to when it is told.
final class MemoryReservations: ReservationStore {
    let records = Mutex<[String: [UInt8]]>([:])
    let refuses = Atomic<Bool>(false)

    func save(_ record: [UInt8]?, naa: String) throws(ReservationStoreError) {
        guard !refuses.load(ordering: .relaxed) else { throw ReservationStoreError("the disk is full") }
        records.withLock { $0[naa] = record }
    }

    func load(naa: String) throws(ReservationStoreError) -> [UInt8]? { records.withLock { $0[naa] } }
}

@Suite("Reservations that outlive the process")
struct DurableReservationTests {
    let store = MemoryReservations()
    private static let ports = (1...2).map {
        TargetPort(name: "iqn.2026-11.test:target", groupTag: $0, relativeIdentifier: $0 + 0x100)
    }

    private func unit() throws -> UnitUnderTest {
        let test = try UnitUnderTest(store: store)
        test.unit.setPorts(Self.ports.map { UnitPort(port: $0, access: .activeOptimized) })
        return test
    }

    private func out(
        _ test: UnitUnderTest, _ action: UInt8, type: UInt8 = 0, key: UInt64 = 0, other: UInt64 = 0,
        flags: UInt8 = 0, more: [UInt8] = [], from nexus: LogicalUnitNexus? = nil
    ) -> CommandEnd {
        let list = test.bytes(key) + test.bytes(other) + [0, 0, 0, 0, flags, 0, 0, 0] + more
        let length = UInt8(list.count)
        return test.perform([0x5F, action, type, 0, 0, 0, 0, 0, length, 0], data: list, from: nexus).end
    }

    private func keys(_ test: UnitUnderTest) -> [UInt8] {
        Array(test.perform([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0]).data.dropFirst(8))
    }

    private func capabilities(_ test: UnitUnderTest) -> [UInt8] {
        test.perform([0x5E, 2, 0, 0, 0, 0, 0, 0, 8, 0]).data
    }

    private func transportID(_ name: String, isid: UInt64? = nil) -> [UInt8] {
        if let isid { return TransportID.encoded(InitiatorPort(name: name, isid: isid)) }
        var bytes = Array(name.utf8) + [0]
        while bytes.count % 4 != 0 || bytes.count < 20 { bytes.append(0) }
        return [0x05, 0, 0, UInt8(bytes.count)] + bytes
    }

    @Test("with APTPL, registrations and the reservation are there after a restart, and still keep others out")
    func restart() throws {
        let before = try unit()
        #expect(capabilities(before) == [0, 8, 0x0D, 0x80, 0xEA, 1, 0, 0])
        #expect(out(before, 0x00, other: 0x11, flags: 0x01) == .good)
        #expect(out(before, 0x01, type: 3, key: 0x11) == .good)
        #expect(capabilities(before)[3] == 0x81)
        let after = try unit()
        #expect(capabilities(after)[3] == 0x81)
        #expect(keys(after) == after.bytes(UInt64(0x11)))
        let stranger = UnitUnderTest.attach(after.unit, initiator: "iqn.2026-11.test:two", isid: 2)
        #expect(after.perform([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], from: stranger).end == .reservationConflict)
        #expect(after.read(lba: 0, blocks: 1).end == .good)
        #expect(out(after, 0x03, key: 0x11) == .good)
        #expect(store.records.withLock { $0.isEmpty })
    }

    @Test("without APTPL nothing is kept, and a REGISTER without it takes back what was")
    func withoutAPTPL() throws {
        let test = try unit()
        #expect(out(test, 0x00, other: 0x11) == .good)
        #expect(store.records.withLock { $0.isEmpty })
        #expect(out(test, 0x06, other: 0x12, flags: 0x01) == .good)
        #expect(store.records.withLock { $0.count } == 1)
        #expect(out(test, 0x06, other: 0x13) == .good)
        #expect(store.records.withLock { $0.isEmpty })
    }

    @Test("what cannot be made durable does not take effect, and says so")
    func refusedByTheStore() throws {
        let test = try unit()
        store.refuses.store(true, ordering: .relaxed)
        let failure = CommandEnd.sense(SenseData(.hardwareError, .internalTargetFailure))
        #expect(out(test, 0x00, other: 0x11, flags: 0x01) == failure)
        #expect(keys(test).isEmpty)
        store.refuses.store(false, ordering: .relaxed)
        #expect(out(test, 0x00, other: 0x11, flags: 0x01) == .good)
    }

    @Test("without a place to keep them, APTPL is neither offered nor taken")
    func noStore() throws {
        let test = try UnitUnderTest()
        #expect(capabilities(test) == [0, 8, 0x0C, 0x80, 0xEA, 1, 0, 0])
        #expect(out(test, 0x00, other: 0x11, flags: 0x01) == .sense(.invalidParameter(byte: 20)))
        #expect(keys(test).isEmpty)
    }

    @Test("ALL_TG_PT registers the initiator on every port, and READ FULL STATUS has a descriptor for each")
    func allPorts() throws {
        let test = try unit()
        #expect(out(test, 0x00, other: 0x11, flags: 0x04) == .good)
        let status = test.perform([0x5E, 3, 0, 0, 0, 0, 0, 2, 0, 0]).data
        let one = 24 + TransportID.encoded(test.nexus.initiatorPort).count
        #expect(status.count == 8 + 2 * one)
        #expect(status[8 + 18..<8 + 20] == [0, 1] && status[8 + one + 18..<8 + one + 20] == [1, 2])
        let otherPath = test.unit.attach(initiatorPort: test.nexus.initiatorPort, targetPort: Self.ports[1])
        #expect(out(test, 0x01, type: 5, key: 0x11, from: otherPath) == .good)
        #expect(out(test, 0x00, key: 0x11, flags: 0x04) == .good)
        #expect(keys(test).isEmpty)
    }

    @Test("SPEC_I_PT registers those it names: one port by its ISID, every known one of an initiator without")
    func named() throws {
        let test = try unit()
        let second = UnitUnderTest.attach(test.unit, initiator: "iqn.2026-11.test:two", isid: 2)
        let names = transportID("iqn.2026-11.test:three", isid: 7) + transportID("iqn.2026-11.test:two")
        let more = [0, 0, 0, UInt8(names.count)] + names
        #expect(out(test, 0x00, other: 0x11, flags: 0x08, more: more) == .good)
        #expect(keys(test).count == 3 * 8)
        #expect(out(test, 0x01, type: 1, key: 0x11, from: second) == .good)
        // Only a new registration brings others; REGISTER AND IGNORE EXISTING KEY does not.
        #expect(out(test, 0x00, key: 0x11, other: 0x12, flags: 0x08, more: more) == .sense(.invalidCDB(byte: 1)))
        #expect(out(test, 0x06, other: 0x12, flags: 0x08, more: []) == .sense(.invalidParameter(byte: 20)))
        #expect(keys(test).count == 3 * 8)
    }

    @Test("a list of TransportIDs that is wrong anywhere registers nobody")
    func wrongNames() throws {
        let test = try unit()
        let good = transportID("iqn.2026-11.test:three", isid: 7)
        let unknown = transportID("iqn.2026-11.test:nobody")
        var fibre = good
        fibre[0] = 0x00
        let lists: [[UInt8]] = [good + unknown, good + fibre, good + good.dropLast(4), [0x45, 0, 0xFF, 0xFC]]
        for names in lists {
            let more = [0, 0, 0, UInt8(names.count)] + names
            #expect(out(test, 0x00, other: 0x11, flags: 0x08, more: more) != .good)
            #expect(keys(test).isEmpty)
        }
        #expect(
            out(test, 0x00, other: 0x11, flags: 0x08, more: [0, 0, 0, 99] + good) == .illegal(.parameterListLengthError)
        )
    }

    @Test("REGISTER AND MOVE gives the reservation to the port it names, and UNREG lets go of the own registration")
    func move() throws {
        let test = try unit()
        func move(_ key: UInt64, _ new: UInt64, port: UInt16, flags: UInt8, _ name: [UInt8]) -> CommandEnd {
            let list =
                test.bytes(key) + test.bytes(new) + [0, flags] + test.bytes(port) + test.bytes(UInt32(name.count))
                + name
            return test.perform([0x5F, 7, 0, 0, 0, 0, 0, 0, UInt8(list.count), 0], data: list).end
        }
        let goal = transportID("iqn.2026-11.test:two", isid: 2)
        #expect(out(test, 0x00, other: 0x11) == .good)
        #expect(move(0x11, 0x22, port: 0x102, flags: 0, goal) == .sense(.invalidCDB(byte: 1)))
        #expect(out(test, 0x01, type: 1, key: 0x11) == .good)
        #expect(move(0x12, 0x22, port: 0x102, flags: 0, goal) == .reservationConflict)
        #expect(move(0x11, 0x22, port: 0x103, flags: 0, goal) == .sense(.invalidParameter(byte: 18)))
        #expect(move(0x11, 0, port: 0x102, flags: 0, goal) == .sense(.invalidParameter(byte: 8)))
        #expect(move(0x11, 0x22, port: 0x102, flags: 0x03, goal) == .good)
        #expect(keys(test) == test.bytes(UInt64(0x22)))
        #expect(test.write(lba: 0, [UInt8](repeating: 1, count: 512)) == .reservationConflict)
        let moved = test.unit.attach(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.test:two", isid: 2), targetPort: Self.ports[1])
        #expect(test.write(lba: 0, [UInt8](repeating: 1, count: 512), from: moved) == .good)
        // APTPL was set with the move.
        let after = try unit()
        #expect(after.write(lba: 0, [UInt8](repeating: 1, count: 512)) == .reservationConflict)
    }

    @Test("the record's bytes, and that no damage to them is taken for a record")
    func golden() throws {
        let test = try unit()
        #expect(out(test, 0x00, other: 0x11, flags: 0x01) == .good)
        #expect(out(test, 0x01, type: 5, key: 0x11) == .good)
        let record = try #require(store.records.withLock { $0[UnitUnderTest.naa] })
        let golden: [UInt8] =
            [0x53, 0x50, 0x52, 0x31, 5, 0, 0, 0, 0, 1]
            + [0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1]
            + [0, 20] + Array("iqn.2026-11.test:one".utf8) + [0, 23] + Array("iqn.2026-11.test:target".utf8)
        #expect(record == golden)
        #expect(PersistentReservations(record: golden)?.record == golden)
        for count in 0..<golden.count { #expect(PersistentReservations(record: Array(golden[..<count])) == nil) }
        for index in 0..<30 where index != 4 && index < 10 {
            var damaged = golden
            damaged[index] ^= 0xFF
            #expect(PersistentReservations(record: damaged) == nil)
        }
        store.records.withLock { $0[UnitUnderTest.naa] = [1, 2, 3] }
        #expect(throws: ReservationStoreError.self) { try unit() }
    }
}
