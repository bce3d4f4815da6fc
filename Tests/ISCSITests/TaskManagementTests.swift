import BlockIO
import SCSI
import Testing

@testable import ISCSI

@Suite("Task management")
struct TaskManagementTests {
    private func waitingWrite(_ peer: ScriptedSession, tag: UInt32, lun: Int = 0) -> UInt32 {
        peer.exchange(
            peer.command(CDB.write(lba: 0, blocks: 8), flags: 0xA0, expected: 4096, lun: lun, tag: tag)
        )[0].header.targetTransferTag
    }

    @Test("ABORT TASK ends a write that waits for data; its late data is swallowed and writes nothing")
    func abortWrite() throws {
        let peer = try ScriptedSession()
        let transfer = waitingWrite(peer, tag: 50)
        let answer = peer.exchange(peer.taskManagement(1, referenced: 50))
        #expect(answer.map(\.header.opcode) == [.taskManagementResponse])
        #expect(answer[0].header[byte: 2] == 0)
        let late = peer.dataOut(
            tag: 50, transferTag: transfer, dataSN: 0, offset: 0, [UInt8](repeating: 9, count: 4096), isFinal: true)
        #expect(peer.exchange(late).isEmpty)
        let read = peer.exchange(peer.command(CDB.read(lba: 0, blocks: 8), flags: 0xC0, expected: 4096))
        #expect(read[0].data.allSatisfy { $0 == 0 })
        #expect(peer.exchange(peer.taskManagement(1, referenced: 50))[0].header[byte: 2] == 1)
    }

    @Test("ABORT TASK of a flush that runs is answered when the flush has ended, and the flush is not")
    func abortRunning() throws {
        let peer = try ScriptedSession()
        peer.runsBlockingAtOnce = false
        peer.deliver(peer.command(CDB.synchronizeCache, flags: 0x80, tag: 60))
        #expect(peer.exchange(peer.taskManagement(1, referenced: 60)).isEmpty)
        peer.runBlocked()
        #expect(peer.answers().map(\.header.opcode) == [.taskManagementResponse])
    }

    @Test("ABORT TASK of a command that has not come yet makes it do nothing when it comes")
    func abortHeld() throws {
        let peer = try ScriptedSession()
        let first = peer.takeCmdSN()
        let second = peer.takeCmdSN()
        let data = [UInt8](repeating: 5, count: 512)
        peer.deliver(
            peer.command(
                CDB.write(lba: 0, blocks: 1), flags: 0xA0, expected: 512, data: data, tag: 71, cmdSN: second))
        let answer = peer.exchange(peer.taskManagement(1, referenced: 71, referencedCmdSN: second))
        #expect(answer[0].header[byte: 2] == 0)
        let end = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, tag: 70, cmdSN: first))
        #expect(end.map(\.header.initiatorTaskTag) == [70])
        let read = peer.exchange(peer.command(CDB.read(lba: 0, blocks: 1), flags: 0xC0, expected: 512))
        #expect(read[0].data.allSatisfy { $0 == 0 })
        // Its place in the window is free again.
        #expect(Int32(bitPattern: read[0].header.maxCmdSN &- read[0].header.expectedNumber) == 255)
    }

    @Test("LOGICAL UNIT RESET ends the unit's commands, leaves other LUNs alone, and raises 29/03")
    func unitReset() throws {
        let peer = try ScriptedSession()
        _ = waitingWrite(peer, tag: 80)
        let other = waitingWrite(peer, tag: 81, lun: 1)
        let answer = peer.exchange(peer.taskManagement(5))
        #expect(answer.map(\.header.opcode) == [.taskManagementResponse])
        #expect(peer.session.outstanding.keys.sorted() == [81])
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80))[0].sense == [6, 0x29, 3])
        let end = peer.exchange(
            peer.dataOut(
                tag: 81, transferTag: other, dataSN: 0, offset: 0, [UInt8](repeating: 1, count: 4096), isFinal: true))
        #expect(end.map(\.status) == [0])
    }

    @Test("TARGET WARM RESET ends everything; unknown LUNs and functions are refused")
    func targetReset() throws {
        let peer = try ScriptedSession()
        _ = waitingWrite(peer, tag: 90)
        _ = waitingWrite(peer, tag: 91, lun: 1)
        #expect(peer.exchange(peer.taskManagement(6))[0].header[byte: 2] == 0)
        #expect(peer.session.outstanding.isEmpty)
        #expect(peer.exchange(peer.taskManagement(5, lun: 7))[0].header[byte: 2] == 2)
        #expect(peer.exchange(peer.taskManagement(8))[0].header[byte: 2] == 4)
        #expect(peer.exchange(peer.taskManagement(99))[0].header[byte: 2] == 5)
    }

    @Test("a torn down session leaves nothing running and nothing reserved")
    func tearDown() throws {
        let peer = try ScriptedSession()
        #expect(peer.exchange(peer.command([0x16, 0, 0, 0, 0, 0], flags: 0x80))[0].status == 0)
        let transfer = waitingWrite(peer, tag: 95)
        let unit = try #require(peer.session.nexuses[0]?.unit)
        peer.session.tearDown()
        #expect(
            peer.exchange(
                peer.dataOut(
                    tag: 95, transferTag: transfer, dataSN: 0, offset: 0, [UInt8](repeating: 1, count: 4096),
                    isFinal: true)
            ).isEmpty)
        let next = unit.attach(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.test:other", isid: 2),
            targetPort: TargetPort(name: ScriptedSession.iqn, groupTag: 1, relativeIdentifier: 1))
        guard case .read = unit.begin(CommandBlock(CDB.read(lba: 0, blocks: 1)), nexus: next).disposition else {
            Issue.record("the reservation outlived its session")
            return
        }
    }
}
