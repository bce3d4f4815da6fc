import BlockIO
import Testing

@testable import SCSI

@Suite("Asymmetric access")
struct AccessStateTests {
    let first = TargetPort(name: "iqn.2026-11.test:target", groupTag: 1, relativeIdentifier: 1)
    let second = TargetPort(name: "iqn.2026-11.test:target", groupTag: 2, relativeIdentifier: 2)

    private func report(_ test: UnitUnderTest, extended: Bool = false) -> [UInt8] {
        test.perform([0xA3, extended ? 0x2A : 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).data
    }

    @Test("REPORT TARGET PORT GROUPS names every group with its state and its ports")
    func report() throws {
        let test = try UnitUnderTest()
        test.unit.setPorts([
            UnitPort(port: first, access: .activeOptimized), UnitPort(port: second, access: .standby),
        ])
        let groups: [UInt8] = [
            0x00, 0x8F, 0, 1, 0, 0x00, 0, 1, 0, 0, 0, 1,
            0x02, 0x8F, 0, 2, 0, 0x02, 0, 1, 0, 0, 0, 2,
        ]
        #expect(report(test) == [0, 0, 0, 24] + groups)
        #expect(report(test, extended: true) == [0, 0, 0, 28, 0x10, 60, 0, 0] + groups)
        #expect(test.perform([0xA3, 0x4A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).end == .sense(.invalidCDB(byte: 1)))
    }

    @Test(
        "a path that does not serve refuses the medium with its reason and still answers for the unit",
        arguments: [
            (AsymmetricAccess.standby, AdditionalSense(0x04, 0x0B)), (.unavailable, AdditionalSense(0x04, 0x0C)),
            (.transitioning, AdditionalSense(0x04, 0x0A)),
        ])
    func refusal(_ access: AsymmetricAccess, _ reason: AdditionalSense) throws {
        let test = try UnitUnderTest()
        let other = test.unit.attach(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.test:one", isid: 2), targetPort: second)
        test.unit.setPorts([
            UnitPort(port: first, access: .activeOptimized), UnitPort(port: second, access: access),
        ])
        let refused = CommandEnd.sense(SenseData(.notReady, reason))
        for cdb: [UInt8] in [
            [0, 0, 0, 0, 0, 0], [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            #expect(test.perform(cdb, from: other).end == refused)
            #expect(test.perform(cdb).end == .good)
        }
        #expect(test.perform([0x12, 0, 0, 0, 96, 0], from: other).end == .good)
        #expect(test.perform([0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], from: other).end == .good)
        let reservations = test.perform([0x5E, 0, 0, 0, 0, 0, 0, 0, 64, 0], from: other).end
        #expect(reservations == (access == .standby ? .good : refused))
    }

    @Test("a change of state is a unit attention on every path; a path added is none")
    func change() throws {
        let test = try UnitUnderTest()
        test.unit.setPorts([UnitPort(port: first, access: .activeOptimized)])
        test.unit.setPorts([
            UnitPort(port: first, access: .activeOptimized), UnitPort(port: second, access: .activeNonOptimized),
        ])
        #expect(test.perform([0, 0, 0, 0, 0, 0]).end == .good)
        test.unit.setPorts([
            UnitPort(port: first, access: .activeOptimized), UnitPort(port: second, access: .activeOptimized),
        ])
        #expect(
            test.perform([0, 0, 0, 0, 0, 0]).end == .sense(SenseData(.unitAttention, AdditionalSense(0x2A, 0x06))))
        #expect(test.perform([0, 0, 0, 0, 0, 0]).end == .good)
    }
}
