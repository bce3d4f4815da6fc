import BlockIO
import SCSI
import Testing

@testable import ISCSI

/// Task attributes (SAM-5 8): who waits for whom.
@Suite("Task sets")
struct TaskSetTests {
    private enum Attribute: UInt8, CaseIterable {
        case untagged = 0
        case simple = 1
        case ordered = 2
        case headOfQueue = 3
    }

    private static let block = [UInt8](repeating: 0x5A, count: 512)

    /// A write of one block whose data has to be asked for, or a flush.
    private func write(
        _ peer: ScriptedSession, _ attribute: Attribute, tag: UInt32, lba: UInt8 = 0, lun: Int = 0
    ) -> [ScriptedSession.Answer] {
        peer.exchange(
            peer.command(
                CDB.write(lba: lba, blocks: 1), flags: 0xA0 | attribute.rawValue, expected: 512, lun: lun, tag: tag))
    }

    private func flush(
        _ peer: ScriptedSession, _ attribute: Attribute, tag: UInt32, lun: Int = 0
    ) -> [ScriptedSession.Answer] {
        peer.exchange(
            peer.command(CDB.synchronizeCache, flags: 0x80 | attribute.rawValue, lun: lun, tag: tag))
    }

    private func data(
        _ peer: ScriptedSession, for request: ScriptedSession.Answer, _ byte: UInt8 = 1
    ) -> [ScriptedSession.Answer] {
        peer.exchange(
            peer.dataOut(
                tag: request.header.initiatorTaskTag, transferTag: request.header.targetTransferTag, dataSN: 0,
                offset: 0, [UInt8](repeating: byte, count: 512), isFinal: true))
    }

    private func tags(_ answers: [ScriptedSession.Answer]) -> [UInt32] { answers.map(\.header.initiatorTaskTag) }

    @Test("an ORDERED command waits for all older ones, and younger ones wait for it")
    func ordered() throws {
        let peer = try ScriptedSession()
        let first = write(peer, .simple, tag: 1)
        #expect(first.map(\.header.opcode) == [.readyToTransfer])
        #expect(write(peer, .ordered, tag: 2, lba: 1).isEmpty)
        #expect(flush(peer, .simple, tag: 3).isEmpty)
        #expect(flush(peer, .ordered, tag: 4).isEmpty)
        #expect(flush(peer, .untagged, tag: 5).isEmpty)
        // The first ends; the second may ask for its data, nobody else may begin.
        let second = data(peer, for: first[0])
        #expect(tags(second) == [1, 2] && second[1].header.opcode == .readyToTransfer)
        // Then one after another.
        #expect(tags(data(peer, for: second[1])) == [2, 3, 4, 5])
        #expect(peer.session.dormant.isEmpty && !peer.session.isOrdering && peer.session.gatheredBytes == 0)
    }

    @Test("a HEAD OF QUEUE command begins at once, and the others wait until it has ended")
    func headOfQueue() throws {
        let peer = try ScriptedSession()
        let first = write(peer, .simple, tag: 1)
        #expect(write(peer, .ordered, tag: 2).isEmpty)
        let urgent = write(peer, .headOfQueue, tag: 3, lba: 2)
        #expect(urgent.map(\.header.opcode) == [.readyToTransfer])
        // The ORDERED one waits for both.
        #expect(tags(data(peer, for: first[0])) == [1])
        let ordered = data(peer, for: urgent[0])
        #expect(tags(ordered) == [3, 2] && ordered[1].header.opcode == .readyToTransfer)
        #expect(tags(data(peer, for: ordered[1])) == [2])
        let second = write(peer, .headOfQueue, tag: 4)
        #expect(flush(peer, .simple, tag: 5).isEmpty)
        #expect(tags(data(peer, for: second[0])) == [4, 5])
    }

    @Test("other LUNs and other sessions wait for nobody's ORDERED command: each I_T nexus has a task set")
    func separate() throws {
        let peer = try ScriptedSession()
        let waiting = write(peer, .ordered, tag: 1)
        #expect(waiting.map(\.header.opcode) == [.readyToTransfer])
        #expect(flush(peer, .simple, tag: 2).isEmpty)
        #expect(tags(flush(peer, .simple, tag: 3, lun: 1)) == [3])
        let unit = try #require(peer.session.nexuses[0]?.unit)
        let other = unit.attach(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.test:other", isid: 2),
            targetPort: TargetPort(name: ScriptedSession.iqn, groupTag: 1, relativeIdentifier: 1))
        guard case .read = unit.begin(CommandBlock(CDB.read(lba: 0, blocks: 1)), nexus: other).disposition else {
            Issue.record("another nexus was held up")
            return
        }
        // TST=001b says so.
        let mode = unit.begin(CommandBlock([0x1A, 0x08, 0x0A, 0, 64, 0]), nexus: other).disposition
        guard case .parameterData(let page) = mode else {
            Issue.record("no control mode page")
            return
        }
        #expect(page[4 + 2] >> 5 == 1)
        unit.detach(other)
    }

    @Test("immediate and unsolicited data of a command that waits is kept and written when its turn comes")
    func unsolicited() throws {
        for sendsAllBefore in [true, false] {
            let peer = try ScriptedSession()
            let first = write(peer, .simple, tag: 1, lba: 100)
            let bytes = (0..<4096).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
            peer.deliver(
                peer.command(
                    CDB.write(lba: 0, blocks: 8), flags: 0x22, expected: 4096, data: Array(bytes[..<1024]), tag: 2))
            peer.deliver(peer.dataOut(tag: 2, dataSN: 0, offset: 1024, Array(bytes[1024..<2048]), isFinal: false))
            let last = peer.dataOut(tag: 2, dataSN: 1, offset: 2048, Array(bytes[2048...]), isFinal: true)
            if sendsAllBefore { peer.deliver(last) }
            #expect(peer.answers().isEmpty && peer.session.dormant.count == 1)
            #expect(peer.session.gatheredBytes == 4096)
            let end = data(peer, for: first[0])
            if sendsAllBefore {
                #expect(tags(end) == [1, 2])
            } else {
                #expect(tags(end) == [1])
                #expect(tags(peer.exchange(last)) == [2])
            }
            let read = peer.exchange(peer.command(CDB.read(lba: 0, blocks: 8), flags: 0xC0, expected: 4096))
            #expect(read[0].data == bytes)
            #expect(peer.session.gatheredBytes == 0)
        }
    }

    @Test("unsolicited data of a command that waits, out of order or too much, ends it unwritten")
    func wrongData() throws {
        for (dataSN, offset, count) in [(1, 0, 512), (0, 512, 512), (0, 0, 4608)] {
            let peer = try ScriptedSession()
            let first = write(peer, .simple, tag: 1, lba: 100)
            peer.deliver(peer.command(CDB.write(lba: 0, blocks: 8), flags: 0x22, expected: 4096, tag: 2))
            let end = peer.exchange(
                peer.dataOut(
                    tag: 2, dataSN: UInt32(dataSN), offset: offset, [UInt8](repeating: 1, count: count),
                    isFinal: false))
            #expect(end.map(\.sense) == [[0x0B, 0x0C, 0x0C]])
            #expect(tags(data(peer, for: first[0])) == [1])
            #expect(peer.session.gatheredBytes == 0 && !peer.session.isOrdering)
            #expect(try peer.device.provisioning(at: 0, maxLengthBytes: 4096).isMapped == false)
        }
    }

    @Test("ABORT TASK, the task set functions and resets, by whomever, end commands that wait", arguments: 0..<6)
    func aborted(_ way: Int) throws {
        let peer = try ScriptedSession()
        let first = write(peer, .simple, tag: 1, lba: 100)
        peer.deliver(
            peer.command(
                CDB.write(lba: 0, blocks: 1), flags: 0xA2, expected: 512, data: Self.block, tag: 2))
        let window = peer.exchange(peer.taskManagement(1, referenced: 99))[0].header.maxCmdSN
        let unit = try #require(peer.session.nexuses[0]?.unit)
        switch way {
        case 0: #expect(peer.exchange(peer.taskManagement(1, referenced: 2)).map { $0.header[byte: 2] } == [0])
        case 1, 2, 3, 4:
            // ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM RESET.
            let functions: [UInt8] = [2, 4, 5, 6]
            #expect(peer.exchange(peer.taskManagement(functions[way - 1])).map { $0.header[byte: 2] } == [0])
        default:
            // A reset through another session.
            unit.reset {}
            _ = data(peer, for: first[0])
        }
        if way == 0 { _ = data(peer, for: first[0]) }
        _ = peer.answers()
        #expect(peer.session.dormant.isEmpty && peer.session.outstanding.isEmpty && peer.session.gatheredBytes == 0)
        let after = peer.exchange(peer.taskManagement(1, referenced: 99))[0].header.maxCmdSN
        // Both places in the window are free again.
        #expect(after &- window == 2)
        #expect(try peer.device.provisioning(at: 0, maxLengthBytes: 4096).isMapped == false)
        #expect(!peer.session.isOrdering)
    }

    @Test("a command that waited for a LUN that was mapped anew does not touch the new volume")
    func mappedAnew() throws {
        let peer = try ScriptedSession()
        let first = write(peer, .simple, tag: 1, lba: 100)
        peer.deliver(
            peer.command(
                CDB.write(lba: 0, blocks: 1), flags: 0xA2, expected: 512, data: Self.block, tag: 2))
        let other = MemoryDevice(sizeBytes: 1 << 20)
        try peer.registry.removeLUN(ScriptedSession.iqn, lun: 0)
        try peer.registry.addLUN(
            ScriptedSession.iqn, lun: 0, device: other,
            identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000000ff", serial: "new"))
        let ends = data(peer, for: first[0])
        #expect(ends.map(\.sense) == [[5, 0x25, 0], [5, 0x25, 0]])
        #expect(try other.provisioning(at: 0, maxLengthBytes: 4096).isMapped == false)
        // What is sent now is for the new one.
        let end = peer.exchange(
            peer.command(CDB.write(lba: 0, blocks: 1), flags: 0xA2, expected: 512, data: Self.block))
        #expect(end.map(\.status) == [0])
        #expect(try other.provisioning(at: 0, maxLengthBytes: 4096).isMapped)
    }

    @Test("commands that wait keep a bounded number of bytes; more is TASK SET FULL")
    func bounded() throws {
        var limits = TargetLimits()
        limits.gatheredBytesPerSession = 8192
        let peer = try ScriptedSession(limits: limits)
        let first = write(peer, .simple, tag: 1, lba: 100)
        let bytes = [UInt8](repeating: 7, count: 4096)
        for tag in UInt32(2)...3 {
            let cdb = CDB.write(lba: 8, blocks: 8)
            #expect(peer.exchange(peer.command(cdb, flags: 0xA2, expected: 4096, data: bytes, tag: tag)).isEmpty)
        }
        let full = peer.exchange(
            peer.command(CDB.write(lba: 16, blocks: 8), flags: 0xA2, expected: 4096, data: bytes, tag: 4))
        #expect(full.map(\.status) == [0x28])
        #expect(tags(data(peer, for: first[0])) == [1, 2, 3])
        #expect(try peer.device.provisioning(at: 16 * 512, maxLengthBytes: 4096).isMapped == false)
    }

    @Test("ACA and reserved attributes are INVALID MESSAGE, CLEAR ACA and the NACA bit are refused, INQUIRY says why")
    func unsupported() throws {
        let peer = try ScriptedSession()
        for attribute in UInt8(4)...7 {
            let answers = peer.exchange(
                peer.command(
                    CDB.write(lba: 0, blocks: 1), flags: 0xA0 | attribute, expected: 512, data: Self.block))
            #expect(answers.map(\.sense) == [[5, 0x49, 0]])
            #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80 | attribute, lun: 9)).count == 1)
        }
        #expect(try peer.device.provisioning(at: 0, maxLengthBytes: 4096).isMapped == false)
        #expect(peer.exchange(peer.taskManagement(3))[0].header[byte: 2] == 5)
        for cdb in [[0, 0, 0, 0, 0, 4], [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4]] as [[UInt8]] {
            let answers = peer.exchange(peer.command(cdb, flags: 0xC0, expected: 512))
            #expect(answers.map(\.sense) == [[5, 0x24, 0]])
        }
        // NORMACA=0; HEADSUP, ORDSUP and SIMPSUP.
        let inquiry = peer.exchange(peer.command([0x12, 0, 0, 0, 96, 0], flags: 0xC0, expected: 96))[0].data
        #expect(inquiry[3] & 0x20 == 0)
        let extended = peer.exchange(peer.command([0x12, 1, 0x86, 0, 64, 0], flags: 0xC0, expected: 64))[0].data
        #expect(extended[5] == 0x07)
    }

    @Test("whatever comes, in whatever order it ends: who is under way is who SAM-5 lets be", arguments: [1, 2, 3])
    func model(_ seed: UInt64) throws {
        var random = SplitMix(state: seed)
        let peer = try ScriptedSession()
        peer.runsBlockingAtOnce = false
        var model: [(tag: UInt32, lun: Int, attribute: Attribute, isActive: Bool)] = []
        func activate() {
            for index in model.indices where !model[index].isActive {
                let mine = model[index]
                let older = model[..<index].filter { $0.lun == mine.lun }
                // A HEAD OF QUEUE command goes before those that came earlier, and has begun at once.
                let urgent = model.contains { $0.lun == mine.lun && $0.attribute == .headOfQueue }
                model[index].isActive =
                    switch mine.attribute {
                    case .headOfQueue: true
                    case .ordered: older.isEmpty && !urgent
                    default: !urgent && !older.contains { $0.attribute == .ordered }
                    }
            }
        }
        for tag in UInt32(1)...400 {
            if model.count < 100, Int.random(in: 0..<3, using: &random) > 0 {
                let attribute = Attribute.allCases.randomElement(using: &random) ?? .simple
                let lun = Int.random(in: 0...1, using: &random)
                model.append((tag, lun, attribute, false))
                #expect(flush(peer, attribute, tag: tag, lun: lun).isEmpty)
            } else if !peer.blocked.isEmpty {
                let chosen = peer.blocked.remove(at: Int.random(in: peer.blocked.indices, using: &random))
                peer.session.blockingFinished(chosen.token, .good)
                let ended = tags(peer.answers())
                #expect(ended.count == 1)
                model.removeAll { ended.contains($0.tag) }
            }
            activate()
            #expect(Set(peer.session.outstanding.keys) == Set(model.filter(\.isActive).map(\.tag)))
            #expect(peer.session.dormant.count == model.filter { !$0.isActive }.count)
        }
        while !peer.blocked.isEmpty { peer.session.blockingFinished(peer.blocked.removeFirst().token, .good) }
        #expect(peer.session.dormant.isEmpty && peer.session.outstanding.isEmpty && !peer.session.isOrdering)
    }
}
