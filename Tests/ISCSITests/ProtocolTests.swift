import BlockIO
import SCSI
import TestInitiator
import Testing

@testable import ISCSI

/// Sentences of RFC 7143 that no other suite is about.
@Suite("The rules of the wire")
struct ProtocolTests {
    private func asked(_ peer: ScriptedSession, blocks: UInt16 = 8) -> [ScriptedSession.Answer] {
        peer.exchange(
            peer.command(CDB.write(lba: 0, blocks: blocks), flags: 0xA0, expected: Int(blocks) * 512, tag: 7))
    }

    @Test("solicited data with a wrong DataSN, a gap, too much of it, or an early end ends its command unwritten")
    func solicitedData() throws {
        for (dataSN, offset, count, isFinal) in [
            (1, 0, 512, false), (0, 512, 512, false), (0, 0, 4608, false), (0, 0, 512, true),
        ] {
            let peer = try ScriptedSession()
            let request = asked(peer)
            let end = peer.exchange(
                peer.dataOut(
                    tag: 7, transferTag: request[0].header.targetTransferTag, dataSN: UInt32(dataSN), offset: offset,
                    [UInt8](repeating: 1, count: count), isFinal: isFinal))
            #expect(end.map(\.sense) == [[0x0B, 0x4B, 0x00]])
            #expect(peer.session.outstanding.isEmpty)
            #expect(try peer.device.provisioning(at: 0, maxLengthBytes: 4096).isMapped == false)
        }
    }

    @Test("R2Ts of one command count R2TSN up, take no StatSN, and are answered in their order only")
    func requestOrder() throws {
        var parameters = ScriptedSession.defaults
        parameters.maxBurstBytes = 512
        parameters.maxOutstandingR2T = 2
        let peer = try ScriptedSession(parameters: parameters)
        let requests = asked(peer, blocks: 4)
        #expect(requests.map(\.header.dataSN) == [0, 1])
        #expect(requests.map(\.header.bufferOffset) == [0, 512] && requests.map(\.header.residual) == [512, 512])
        // Both carry the StatSN that the next response will have.
        #expect(Set(requests.map(\.header.sequenceNumber)) == [7])
        let end = peer.exchange(
            peer.dataOut(
                tag: 7, transferTag: requests[1].header.targetTransferTag, dataSN: 0, offset: 512,
                [UInt8](repeating: 1, count: 512), isFinal: true))
        #expect(end.map(\.sense) == [[0x0B, 0x4B, 0x00]])
        #expect(end[0].header.sequenceNumber == 7)
    }

    @Test("Reject says why and returns the header that it is about")
    func reject() throws {
        let peer = try ScriptedSession()
        _ = asked(peer)
        func header(_ opcode: UInt8, flags: UInt8 = 0x80) -> BasicHeader {
            var header = BasicHeader(.scsiCommand, flags: flags)
            header[byte: 0] = 0x40 | opcode
            header.initiatorTaskTag = 0x1234
            return header
        }
        let snack = header(0x10)
        // The data segment of a read request; an opcode of the target's own; one that does not exist.
        var command = header(0x01, flags: 0xC1)
        command.dataSegmentBytes = 4
        let cases: [(BasicHeader, [UInt8], RejectReason)] = [
            (snack, [], .snackReject), (command, [0, 0, 0, 0], .protocolError),
            (header(0x21), [], .protocolError), (header(0x1D), [], .commandNotSupported),
        ]
        for (wrong, data, reason) in cases {
            let bytes = peer.pdu(wrong, data)
            let answers = peer.exchange(bytes)
            #expect(answers.map(\.header.opcode) == [.reject])
            #expect(answers[0].header[byte: 2] == reason.rawValue)
            #expect(answers[0].header.initiatorTaskTag == BasicHeader.reservedTag)
            #expect(answers[0].data == Array(bytes[..<48]))
        }
        // A task tag that is in use.
        let again = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, tag: 7))
        #expect(again.map { $0.header[byte: 2] } == [RejectReason.taskInProgress.rawValue])
        #expect(peer.closeReason == nil && peer.session.outstanding.count == 1)
    }

    @Test("immediate commands beyond the window have a limit of their own")
    func immediateCommands() throws {
        let peer = try ScriptedSession()
        peer.runsBlockingAtOnce = false
        let limit = peer.limits.commandsPerSession + 32
        for _ in 0..<limit {
            peer.deliver(peer.command(CDB.synchronizeCache, flags: 0x80, isImmediate: true))
        }
        #expect(peer.answers().isEmpty)
        let answers = peer.exchange(peer.command(CDB.synchronizeCache, flags: 0x80, isImmediate: true))
        #expect(answers.map { $0.header[byte: 2] } == [RejectReason.immediateCommandReject.rawValue])
        peer.runBlocked()
        #expect(peer.answers().count == limit)
    }

    @Test("a text request that goes on over several PDUs (C bit) is one request, and a wrong transfer tag is rejected")
    func textContinuation() throws {
        let peer = try ScriptedSession(isDiscovery: true)
        func request(_ bytes: [UInt8], flags: UInt8, tag: UInt32) -> [UInt8] {
            var header = BasicHeader(.textRequest, flags: flags)
            header.initiatorTaskTag = 9
            header.targetTransferTag = tag
            header.sequenceNumber = peer.takeCmdSN()
            header.dataSegmentBytes = bytes.count
            return peer.pdu(header, bytes)
        }
        let more = peer.exchange(request(Array("SendTar".utf8), flags: 0x40, tag: BasicHeader.reservedTag))
        #expect(more.map(\.header.opcode) == [.textResponse])
        #expect(!more[0].header.isFinal && more[0].data.isEmpty)
        let tag = more[0].header.targetTransferTag
        #expect(tag != BasicHeader.reservedTag)
        let wrong = peer.exchange(request([], flags: 0x80, tag: tag &+ 1))
        #expect(wrong.map(\.header.opcode) == [.reject])
        let answer = peer.exchange(request(Array("gets=All".utf8) + [0], flags: 0x80, tag: tag))
        #expect(answer[0].header.isFinal && answer[0].header.targetTransferTag == BasicHeader.reservedTag)
        #expect(try TextKeys(answer[0].data)["TargetName"] == ScriptedSession.iqn)
        // A new MaxRecvDataSegmentLength counts at once; other keys are not understood here.
        let keys = peer.exchange(peer.text([("MaxRecvDataSegmentLength", "512"), ("MaxBurstLength", "4096")]))
        #expect(try TextKeys(keys[0].data).pairs.map(\.value) == ["NotUnderstood"])
        #expect(peer.session.parameters.sendSegmentBytes == 512)
    }

    @Test("ABORT TASK and ABORT TASK SET end reads whose data waits for a peer that does not read")
    func abortedReads() throws {
        for function in [UInt8(1), 2] {
            let peer = try ScriptedSession()
            let commands = (1...3).map {
                peer.command(CDB.read(lba: 0, blocks: 2048), flags: 0xC0, expected: 1 << 20, tag: UInt32($0))
            }
            // All three are taken before any is sent.
            peer.session.receivesWithoutSending(commands.flatMap { $0 }, on: peer)
            #expect(peer.session.reads.count >= 2)
            let answers = peer.exchange(peer.taskManagement(function, referenced: 3))
            #expect(answers.contains { $0.header.opcode == .taskManagementResponse && $0.header[byte: 2] == 0 })
            let ended = Set(answers.filter { $0.header.flags & 1 != 0 }.map(\.header.initiatorTaskTag))
            #expect(!ended.contains(3))
            #expect(peer.session.reads.isEmpty)
            // Places in the window: three commands, all over.
            #expect(peer.session.maxCmdSN &- peer.session.expCmdSN == UInt32(peer.limits.commandsPerSession - 1))
        }
    }

    @Test("TARGET COLD RESET is answered, then every session of the target is told and closed")
    func coldReset() async throws {
        let running = try await RunningServer()
        let peers = try (1...2).map {
            try RawInitiator(
                "127.0.0.1:\(running.port)", target: RunningServer.open, initiator: "iqn.2026-11.test:i",
                isid: UInt64($0))
        }
        #expect(running.registry.sessions().count == 2)
        #expect(try peers[0].taskManagement(7) == 0)
        for peer in peers {
            #expect(try peer.asyncMessage().event == 3)
            peer.awaitClose()
        }
        for _ in 0..<500 where !running.registry.sessions().isEmpty { try await Task.sleep(for: .milliseconds(10)) }
        #expect(running.registry.sessions().isEmpty)
        try await running.stop()
    }

    @Test("a login with the name and ISID of a session closes the old connection and goes on in its place")
    func reinstatement() async throws {
        let running = try await RunningServer()
        func login(isid: UInt64) throws -> RawInitiator {
            try RawInitiator(
                "127.0.0.1:\(running.port)", target: RunningServer.open, initiator: "iqn.2026-11.test:i", isid: isid)
        }
        let old = try login(isid: 1)
        let other = try login(isid: 2)
        try old.clearAttentions()
        try other.clearAttentions()
        // RESERVE(6) is the old nexus's: it ends with it.
        #expect(try old.command([0x16, 0, 0, 0, 0, 0]).isGood)
        #expect(try other.read(lba: 0, blocks: 1).status == 0x18)
        let new = try login(isid: 1)
        old.awaitClose()
        try new.clearAttentions()
        #expect(try new.write(lba: 0, [UInt8](repeating: 6, count: 512)).isGood)
        #expect(try other.read(lba: 0, blocks: 1).data == [UInt8](repeating: 6, count: 512))
        #expect(running.registry.sessions().count == 2)
        try await running.stop()
    }

    @Test("at shutdown every session is asked to log out within the grace time")
    func shutdown() async throws {
        let running = try await RunningServer()
        let peer = try RawInitiator(
            "127.0.0.1:\(running.port)", target: RunningServer.open, initiator: "iqn.2026-11.test:i")
        async let stopped: Void = running.stop()
        let message = try peer.asyncMessage()
        #expect(message.event == 1 && message.parameter3 == 1)
        peer.awaitClose()
        try await stopped
        #expect(running.registry.sessions().isEmpty)
    }
}

extension Session {
    /// Takes PDUs while the transport is full: nothing of their answers is sent.
    fileprivate func receivesWithoutSending(_ bytes: [UInt8], on peer: ScriptedSession) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let result = rest.withUnsafeBytes { receive($0) }
            rest = rest.dropFirst(result.used)
            if result.used == 0 { break }
        }
    }
}
