import BlockIO
import Testing

@testable import SCSI

@Suite("Reservations")
struct ReservationTests {
    private struct Two {
        let test: UnitUnderTest
        let second: LogicalUnitNexus
        var first: LogicalUnitNexus { test.nexus }

        init() throws {
            test = try UnitUnderTest()
            second = UnitUnderTest.attach(test.unit, initiator: "iqn.2026-11.test:two", isid: 2)
        }

        func out(
            _ action: UInt8, type: UInt8 = 0, key: UInt64 = 0, other: UInt64 = 0, from nexus: LogicalUnitNexus
        ) -> CommandEnd {
            let list = test.bytes(key) + test.bytes(other) + [UInt8](repeating: 0, count: 8)
            return test.perform([0x5F, action, type, 0, 0, 0, 0, 0, 24, 0], data: list, from: nexus).end
        }

        func register(_ key: UInt64, from nexus: LogicalUnitNexus) -> CommandEnd {
            out(0x00, other: key, from: nexus)
        }

        func read(from nexus: LogicalUnitNexus) -> CommandEnd {
            test.perform([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], from: nexus).end
        }

        func write(from nexus: LogicalUnitNexus) -> CommandEnd {
            test.write(lba: 0, [UInt8](repeating: 1, count: 512), from: nexus)
        }
    }

    @Test(
        "who may read and write under each type of persistent reservation",
        arguments: [
            (1, true, false, true, false), (3, false, false, false, false), (5, true, true, true, false),
            (6, true, true, false, false), (7, true, true, true, false), (8, true, true, false, false),
        ] as [(UInt8, Bool, Bool, Bool, Bool)])
    func access(_ row: (type: UInt8, regRead: Bool, regWrite: Bool, read: Bool, write: Bool)) throws {
        let two = try Two()
        #expect(two.register(0x11, from: two.first) == .good)
        #expect(two.out(0x01, type: row.type, key: 0x11, from: two.first) == .good)
        #expect(two.write(from: two.first) == .good)
        #expect((two.read(from: two.second) == .good) == row.read)
        #expect((two.write(from: two.second) == .good) == row.write)
        #expect(two.register(0x22, from: two.second) == .good)
        #expect((two.read(from: two.second) == .good) == row.regRead)
        #expect((two.write(from: two.second) == .good) == row.regWrite)
    }

    @Test("a wrong key, a second holder and a stranger are reservation conflicts and change nothing")
    func conflicts() throws {
        let two = try Two()
        #expect(two.out(0x01, type: 1, key: 0, from: two.first) == .reservationConflict)
        #expect(two.register(0x11, from: two.first) == .good)
        #expect(two.out(0x01, type: 1, key: 0x12, from: two.first) == .reservationConflict)
        #expect(two.out(0x01, type: 1, key: 0x11, from: two.first) == .good)
        #expect(two.register(0x22, from: two.second) == .good)
        #expect(two.out(0x01, type: 1, key: 0x22, from: two.second) == .reservationConflict)
        #expect(two.out(0x02, type: 3, key: 0x11, from: two.first) == .illegal(.invalidReleaseOfReservation))
        #expect(two.out(0x02, type: 1, key: 0x22, from: two.second) == .good)
        #expect(two.write(from: two.second) == .reservationConflict)
    }

    @Test("PREEMPT takes the reservation over, and the one who lost it is told")
    func preempt() throws {
        let two = try Two()
        #expect(two.register(0x11, from: two.first) == .good)
        #expect(two.register(0x22, from: two.second) == .good)
        #expect(two.out(0x01, type: 1, key: 0x11, from: two.first) == .good)
        #expect(two.out(0x04, type: 1, key: 0x22, other: 0x11, from: two.second) == .good)
        #expect(two.write(from: two.second) == .good)
        #expect(
            two.write(from: two.first) == .sense(SenseData(.unitAttention, .registrationsPreempted)))
        #expect(two.write(from: two.first) == .reservationConflict)
    }

    @Test("PREEMPT AND ABORT: a write of the loser that had begun never reaches the device")
    func preemptAndAbort() throws {
        let two = try Two()
        #expect(two.register(0x11, from: two.first) == .good)
        #expect(two.register(0x22, from: two.second) == .good)
        let begun = two.test.unit.begin(CommandBlock([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), nexus: two.first)
        guard case .dataOut(let operation) = begun.disposition else {
            Issue.record("a write takes data")
            return
        }
        #expect(two.out(0x05, type: 3, key: 0x22, other: 0x11, from: two.second) == .good)
        let data = [UInt8](repeating: 0xEE, count: 512)
        data.withUnsafeBytes { bytes in
            _ = #expect(throws: CommandEnd.aborted) {
                try two.test.unit.consume(operation, at: 0, bytes: bytes, activity: begun.activity)
            }
        }
        #expect(two.test.read(lba: 0, blocks: 1).end != .good)
    }

    @Test("a registration outlives its session; CLEAR ends all of them")
    func outlives() throws {
        let two = try Two()
        #expect(two.register(0x11, from: two.first) == .good)
        #expect(two.out(0x01, type: 3, key: 0x11, from: two.first) == .good)
        two.test.unit.detach(two.first)
        #expect(two.read(from: two.second) == .reservationConflict)
        let back = UnitUnderTest.attach(two.test.unit, initiator: "iqn.2026-11.test:one", isid: 1)
        #expect(two.write(from: back) == .good)
        #expect(two.out(0x03, key: 0x11, from: back) == .good)
        #expect(two.read(from: two.second) == .good)
    }

    @Test("READ KEYS, READ RESERVATION and READ FULL STATUS say who is there")
    func readIn() throws {
        let two = try Two()
        #expect(two.register(0x11, from: two.first) == .good)
        #expect(two.register(0x22, from: two.second) == .good)
        #expect(two.out(0x01, type: 5, key: 0x22, from: two.second) == .good)
        let keys = two.test.perform([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0]).data
        #expect(keys.long(4) == 16)
        #expect(keys.quad(8) == 0x11 && keys.quad(16) == 0x22)
        let reservation = two.test.perform([0x5E, 1, 0, 0, 0, 0, 0, 1, 0, 0]).data
        #expect(reservation.quad(8) == 0x22 && reservation[21] == 5)
        let full = two.test.perform([0x5E, 3, 0, 0, 0, 0, 0, 4, 0, 0]).data
        let text = String(decoding: full, as: UTF8.self)
        #expect(text.contains("iqn.2026-11.test:two,i,0x000000000002"))
    }

    @Test("RESERVE(6) keeps others out until it is released, reset, or its session ends")
    func reserve6() throws {
        let two = try Two()
        let reserve: [UInt8] = [0x16, 0, 0, 0, 0, 0]
        #expect(two.test.perform(reserve).end == .good)
        #expect(two.read(from: two.second) == .reservationConflict)
        #expect(two.test.perform(reserve, from: two.second).end == .reservationConflict)
        #expect(two.test.perform([0x12, 0, 0, 0, 36, 0], from: two.second).end == .good)
        #expect(two.test.perform([0x17, 0, 0, 0, 0, 0], from: two.second).end == .good)
        #expect(two.read(from: two.second) == .reservationConflict)
        two.test.unit.detach(two.first)
        #expect(two.read(from: two.second) == .good)
    }
}
