import BlockIO
import SCSI
import TestInitiator
import Testing

@testable import ISCSI

@Suite("Waiting for the next command", .serialized)
struct SocketPollTests {
    private func testUnitReady(_ peer: ScriptedSession, expStatSN: UInt32) -> [UInt8] {
        var bytes = peer.command(CDB.testUnitReady, flags: 0x80)
        for index in 0..<4 { bytes[28 + index] = UInt8(truncatingIfNeeded: expStatSN >> UInt32(24 - 8 * index)) }
        return bytes
    }

    @Test("an initiator is waited for when it had every answer before each of its last commands, and only then")
    func inStep() throws {
        let peer = try ScriptedSession()
        func sendInStep(_ count: Int) {
            for _ in 0..<count { peer.deliver(testUnitReady(peer, expStatSN: peer.session.statSN)) }
        }
        sendInStep(15)
        #expect(!peer.session.isInStep)
        sendInStep(1)
        #expect(peer.session.isInStep)
        // Two commands at once: the second cannot have seen the answer to the first.
        let next = peer.session.statSN
        peer.deliver(testUnitReady(peer, expStatSN: next) + testUnitReady(peer, expStatSN: next))
        #expect(!peer.session.isInStep)
        sendInStep(16)
        #expect(peer.session.isInStep)
        peer.session.fellOutOfStep()
        sendInStep(15)
        #expect(!peer.session.isInStep)
    }

    @Test("an initiator that has two answers or more before it is behind until a command shows that it took them")
    func behind() throws {
        let peer = try ScriptedSession()
        let first = peer.session.statSN
        peer.deliver(testUnitReady(peer, expStatSN: first))
        #expect(!peer.session.isInitiatorBehind)
        peer.deliver(testUnitReady(peer, expStatSN: first))
        #expect(peer.session.isInitiatorBehind)
        peer.deliver(testUnitReady(peer, expStatSN: peer.session.statSN))
        #expect(!peer.session.isInitiatorBehind)
    }

    @Test("commands one by one, quick and with pauses, alone and beside another session, are all answered")
    func pauses() async throws {
        let running = try await RunningServer()
        func connect(_ number: UInt64) throws -> RawInitiator {
            let initiator = try RawInitiator(
                "127.0.0.1:\(running.port)", target: RunningServer.open, initiator: "iqn.2026-11.test:step",
                isid: number)
            _ = try initiator.clearAttentions()
            return initiator
        }
        func exercise(_ initiators: [RawInitiator], steps: Int, pauseEvery: Int) async throws {
            for step in 0..<steps {
                let data = [UInt8](repeating: UInt8(truncatingIfNeeded: step), count: step % 7 == 0 ? 65_536 : 4096)
                let lba = UInt32(step % 16 * 128)
                for initiator in initiators {
                    #expect(try initiator.write(lba: lba, data).isGood)
                    #expect(try initiator.read(lba: lba, blocks: UInt16(data.count / 512)).data == data)
                }
                if step % pauseEvery == 0 { try await Task.sleep(for: .milliseconds(1)) }
            }
        }
        let first = try connect(1)
        try await exercise([first], steps: 200, pauseEvery: 50)
        let second = try connect(2)
        try await exercise([first, second], steps: 100, pauseEvery: 10)
        // The end of a connection is noticed right after a command that made the target wait for the next one.
        try await exercise([second], steps: 40, pauseEvery: 100)
        second.cut()
        for _ in 0..<500 where running.registry.liveSessions().count > 1 {
            try await Task.sleep(for: .milliseconds(10))
        }
        #expect(running.registry.liveSessions().count == 1)
        try await exercise([first], steps: 40, pauseEvery: 100)
        try await running.stop()
    }
}
