import BlockIO
import SCSI
import Testing

@testable import ISCSI

@Suite("Full-feature phase")
struct SessionTests {
    private func pattern(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) } }

    private func read(_ peer: ScriptedSession, lba: UInt8, blocks: UInt16) -> [UInt8] {
        peer.exchange(peer.command(CDB.read(lba: lba, blocks: blocks), flags: 0xC0, expected: Int(blocks) * 512))
            .flatMap(\.data)
    }

    @Test("a write with immediate data is one PDU each way, and reads back with the status in its Data-In")
    func immediateData() throws {
        let peer = try ScriptedSession()
        let data = pattern(4096)
        let written = peer.exchange(
            peer.command(CDB.write(lba: 8, blocks: 8), flags: 0xA0, expected: 4096, data: data))
        #expect(written.map(\.header.opcode) == [.scsiResponse])
        #expect(written[0].status == 0 && written[0].header.flags == 0x80)
        let read = peer.exchange(peer.command(CDB.read(lba: 8, blocks: 8), flags: 0xC0, expected: 4096))
        #expect(read.map(\.header.opcode) == [.dataIn])
        #expect(read[0].header.flags == 0x81)
        #expect(read[0].data == data)
        #expect(read[0].header.sequenceNumber == written[0].header.sequenceNumber &+ 1)
    }

    @Test("a SCSI response, byte by byte")
    func goldenResponse() throws {
        let peer = try ScriptedSession()
        let answer = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, tag: 0xCAFE_F00D))
        var bytes: [UInt8] = []
        for word in 0..<6 {
            for shift in stride(from: 56, through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: answer[0].header[word: word] >> UInt64(shift)))
            }
        }
        #expect(
            bytes == [
                0x21, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xCA, 0xFE, 0xF0, 0x0D, 0, 0, 0, 0,
                0, 0, 0, 7, 0, 0, 0, 101, 0, 0, 1, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ])
    }

    @Test("data that is not sent at once is asked for: several R2Ts, in order, each as long as MaxBurstLength")
    func readyToTransfer() throws {
        var parameters = ScriptedSession.defaults
        parameters.initialR2T = true
        parameters.maxBurstBytes = 8192
        parameters.maxOutstandingR2T = 2
        let peer = try ScriptedSession(parameters: parameters)
        let data = pattern(20_480)
        var requests = peer.exchange(
            peer.command(CDB.write(lba: 0, blocks: 40), flags: 0xA0, expected: 20_480, tag: 9))
        #expect(requests.map(\.header.opcode) == [.readyToTransfer, .readyToTransfer])
        #expect(requests.map(\.header.bufferOffset) == [0, 8192])
        #expect(requests.map(\.header.dataSN) == [0, 1])
        var end: [ScriptedSession.Answer] = []
        while !requests.isEmpty {
            let request = requests.removeFirst().header
            let offset = Int(request.bufferOffset)
            let half = Int(request.residual) / 2
            for part in 0..<2 {
                let from = offset + part * half
                let answers = peer.exchange(
                    peer.dataOut(
                        tag: 9, transferTag: request.targetTransferTag, dataSN: UInt32(part), offset: from,
                        Array(data[from..<from + half]), isFinal: part == 1))
                requests += answers.filter { $0.header.opcode == .readyToTransfer }
                end += answers.filter { $0.header.opcode == .scsiResponse }
            }
        }
        #expect(end.map(\.status) == [0])
        #expect(end[0].header.dataSN == 3)
        #expect(read(peer, lba: 0, blocks: 40) == data)
    }

    @Test("unsolicited data follows the command; the rest is asked for")
    func unsolicitedData() throws {
        var parameters = ScriptedSession.defaults
        parameters.firstBurstBytes = 4096
        let peer = try ScriptedSession(parameters: parameters)
        let data = pattern(8192)
        #expect(
            peer.exchange(
                peer.command(
                    CDB.write(lba: 0, blocks: 16), flags: 0x20, expected: 8192, data: Array(data[..<1024]), tag: 3)
            ).isEmpty)
        #expect(
            peer.exchange(peer.dataOut(tag: 3, dataSN: 0, offset: 1024, Array(data[1024..<2048]), isFinal: false))
                .isEmpty)
        let request = peer.exchange(
            peer.dataOut(tag: 3, dataSN: 1, offset: 2048, Array(data[2048..<4096]), isFinal: true))
        #expect(request.map(\.header.opcode) == [.readyToTransfer])
        #expect(request[0].header.bufferOffset == 4096)
        let end = peer.exchange(
            peer.dataOut(
                tag: 3, transferTag: request[0].header.targetTransferTag, dataSN: 0, offset: 4096,
                Array(data[4096...]), isFinal: true))
        #expect(end.map(\.status) == [0])
        #expect(read(peer, lba: 0, blocks: 16) == data)
    }

    @Test("data cut inside blocks is put together")
    func oddSegments() throws {
        let peer = try ScriptedSession()
        let data = pattern(2048)
        peer.deliver(
            peer.command(CDB.write(lba: 0, blocks: 4), flags: 0x20, expected: 2048, data: Array(data[..<100]), tag: 3))
        peer.deliver(peer.dataOut(tag: 3, dataSN: 0, offset: 100, Array(data[100..<1300]), isFinal: false))
        peer.deliver(peer.dataOut(tag: 3, dataSN: 1, offset: 1300, Array(data[1300...]), isFinal: true))
        #expect(peer.answers().map(\.status) == [0])
        #expect(read(peer, lba: 0, blocks: 4) == data)
    }

    @Test("a read is cut to the initiator's segments and bursts, with DataSN counted up and F at a burst's end")
    func dataIn() throws {
        var parameters = ScriptedSession.defaults
        parameters.sendSegmentBytes = 1000
        parameters.maxBurstBytes = 2048
        let peer = try ScriptedSession(parameters: parameters)
        let data = pattern(5120)
        peer.deliver(peer.command(CDB.write(lba: 0, blocks: 10), flags: 0xA0, expected: 5120, data: data))
        _ = peer.answers()
        let answers = peer.exchange(peer.command(CDB.read(lba: 0, blocks: 10), flags: 0xC0, expected: 5120))
        #expect(answers.flatMap(\.data) == data)
        #expect(answers.map(\.data.count) == [1000, 1000, 48, 1000, 1000, 48, 1000, 24])
        #expect(answers.map(\.header.dataSN) == Array(0..<8))
        #expect(answers.map(\.header.flags) == [0, 0, 0x80, 0, 0, 0x80, 0, 0x81])
    }

    @Test("digests are made and checked, padding included")
    func digests() throws {
        var parameters = ScriptedSession.defaults
        parameters.headerDigest = true
        parameters.dataDigest = true
        let peer = try ScriptedSession(parameters: parameters)
        let data = pattern(512)
        #expect(
            peer.exchange(peer.command(CDB.write(lba: 0, blocks: 1), flags: 0xA0, expected: 512, data: data))
                .map(\.status) == [0])
        #expect(read(peer, lba: 0, blocks: 1) == data)
        #expect(peer.exchange(peer.command([0x12, 0, 0, 0, 5, 0], flags: 0xC0, expected: 5))[0].data.count == 5)
        var damaged = peer.command(CDB.testUnitReady, flags: 0x80)
        damaged[20] ^= 1
        peer.deliver(damaged)
        #expect(peer.closeReason?.contains("headerDigest") == true)
    }

    @Test("a wrong data digest of a Data-Out ends its command with a CRC error and writes nothing")
    func dataDigestError() throws {
        var parameters = ScriptedSession.defaults
        parameters.dataDigest = true
        parameters.initialR2T = true
        let peer = try ScriptedSession(parameters: parameters)
        let request = peer.exchange(
            peer.command(CDB.write(lba: 0, blocks: 1), flags: 0xA0, expected: 512, tag: 4))
        var bytes = peer.dataOut(
            tag: 4, transferTag: request[0].header.targetTransferTag, dataSN: 0, offset: 0, pattern(512),
            isFinal: true)
        bytes[60] ^= 1
        let answers = peer.exchange(bytes)
        #expect(answers.map(\.header.opcode) == [.reject, .scsiResponse])
        #expect(answers[1].sense == [0x0B, 0x47, 0x05])
        #expect(read(peer, lba: 0, blocks: 1).allSatisfy { $0 == 0 })
    }

    @Test("commands are carried out in the order of CmdSN, whatever order they come in")
    func ordered() throws {
        let peer = try ScriptedSession()
        let numbers = (0..<4).map { _ in peer.takeCmdSN() }
        for index in [3, 1, 2] {
            let data = [UInt8](repeating: UInt8(index), count: 512)
            #expect(
                peer.exchange(
                    peer.command(
                        CDB.write(lba: 0, blocks: 1), flags: 0xA0, expected: 512, data: data, tag: UInt32(index),
                        cmdSN: numbers[index])
                ).isEmpty)
        }
        let answers = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, tag: 0, cmdSN: numbers[0]))
        #expect(answers.map(\.header.initiatorTaskTag) == [0, 1, 2, 3])
        #expect(read(peer, lba: 0, blocks: 1).allSatisfy { $0 == 3 })
    }

    @Test("commands outside the window are ignored; the window is as wide as promised and closes on outstanding ones")
    func window() throws {
        let peer = try ScriptedSession()
        peer.runsBlockingAtOnce = false
        #expect(peer.limits.commandsPerSession >= 128)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, cmdSN: 99)).isEmpty)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, cmdSN: 100 + 256)).isEmpty)
        for _ in 0..<256 { peer.deliver(peer.command(CDB.synchronizeCache, flags: 0x80)) }
        #expect(peer.blocked.count == 256)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80)).isEmpty)
        peer.runBlocked()
        #expect(peer.answers().count == 256)
    }

    @Test(
        "residuals are exact",
        arguments: [
            (false, 0, 1, 0x84, 512), (false, 10_000, 1, 0x82, 9488), (false, 512, 2, 0x84, 512),
            (true, 0, 1, 0x84, 512), (true, 10_000, 1, 0x82, 9488), (true, 512, 2, 0x84, 512),
        ] as [(Bool, Int, UInt16, UInt8, UInt32)])
    func residuals(_ row: (writes: Bool, expected: Int, blocks: UInt16, flags: UInt8, residual: UInt32)) throws {
        let peer = try ScriptedSession()
        let answers = peer.exchange(
            row.writes
                ? peer.command(
                    CDB.write(lba: 0, blocks: row.blocks), flags: 0xA0, expected: row.expected,
                    data: [UInt8](repeating: 1, count: row.expected))
                : peer.command(CDB.read(lba: 0, blocks: row.blocks), flags: 0xC0, expected: row.expected))
        #expect(answers.count == 1)
        #expect(answers[0].header.flags & 0x86 == row.flags)
        #expect(answers[0].header.residual == row.residual)
        #expect(answers[0].status == 0)
    }

    @Test("a failed read says how much did not come")
    func failedResidual() throws {
        let peer = try ScriptedSession()
        let answers = peer.exchange(
            peer.command([0x28, 0, 0xFF, 0, 0, 0, 0, 0, 8, 0], flags: 0xC0, expected: 4096))
        #expect(answers[0].status == 2)
        #expect(answers[0].sense == [5, 0x21, 0])
        #expect(answers[0].header.flags == 0x82 && answers[0].header.residual == 4096)
    }

    @Test("a flush that waits holds up nobody: NOPs and reads are answered meanwhile")
    func slowCommand() throws {
        let peer = try ScriptedSession()
        peer.runsBlockingAtOnce = false
        #expect(peer.exchange(peer.command(CDB.synchronizeCache, flags: 0x80, tag: 77)).isEmpty)
        var nop = BasicHeader(.nopOut)
        nop.initiatorTaskTag = 5
        nop.targetTransferTag = BasicHeader.reservedTag
        nop.sequenceNumber = peer.takeCmdSN()
        nop.dataSegmentBytes = 3
        let pong = peer.exchange(peer.pdu(nop, [1, 2, 3]))
        #expect(pong.map(\.header.opcode) == [.nopIn])
        #expect(pong[0].data == [1, 2, 3] && pong[0].header.initiatorTaskTag == 5)
        #expect(read(peer, lba: 0, blocks: 1).count == 512)
        peer.runBlocked()
        #expect(peer.answers().map(\.header.initiatorTaskTag) == [77])
    }

    @Test("output for a peer that does not read waits, bounded, and comes complete when it reads again")
    func backpressure() throws {
        let peer = try ScriptedSession()
        peer.isWritable = false
        let command = peer.command(CDB.read(lba: 0, blocks: 2048), flags: 0xC0, expected: 1 << 20)
        #expect(command.withUnsafeBytes { peer.session.receive($0) }.used == 0)
        peer.isWritable = true
        #expect(peer.exchange(command).reduce(0) { $0 + $1.data.count } == 1 << 20)
    }

    @Test("a LUN that is unmapped and mapped again is reached anew; the others are told")
    func lunChanges() throws {
        let peer = try ScriptedSession()
        _ = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 0))
        _ = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 1))
        try peer.registry.removeLUN(ScriptedSession.iqn, lun: 1)
        #expect(
            peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 0))[0].sense == [6, 0x3F, 0x0E])
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 1))[0].sense == [5, 0x25, 0])
        try peer.registry.addLUN(
            ScriptedSession.iqn, lun: 1, device: MemoryDevice(sizeBytes: 2 << 20),
            identity: LogicalUnitIdentity(naa: "6589cfc0000000000000000000000009", serial: "S9"))
        let luns = peer.exchange(
            peer.command([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], flags: 0xC0, expected: 256))
        #expect(luns[0].data[3] == 16)
        // REPORT LUNS has told it; nothing is left to say.
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 0))[0].status == 0)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 1))[0].status == 0)
    }

    @Test("a write that waits for data when its LUN is unmapped ends with LOGICAL UNIT NOT SUPPORTED, unwritten")
    func unmappedWhileWriting() throws {
        let peer = try ScriptedSession()
        let request = peer.exchange(
            peer.command(CDB.write(lba: 0, blocks: 1), flags: 0xA0, expected: 512, tag: 6))
        try peer.registry.removeLUN(ScriptedSession.iqn, lun: 0)
        let end = peer.exchange(
            peer.dataOut(
                tag: 6, transferTag: request[0].header.targetTransferTag, dataSN: 0, offset: 0,
                [UInt8](repeating: 1, count: 512), isFinal: true))
        #expect(end.map(\.sense) == [[5, 0x25, 0]])
        #expect(try peer.device.provisioning(at: 0, maxLengthBytes: 4096).isMapped == false)
    }

    @Test("resize, revert and a nearly full pool are told as unit attentions")
    func deviceEvents() throws {
        let peer = try ScriptedSession()
        let naa = "6589cfc0000000000000000000000000"
        _ = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80))
        peer.registry.deviceResized(naa: naa)
        peer.registry.deviceReverted(naa: naa)
        peer.registry.deviceSoftThreshold(naa: naa)
        let senses = (0..<3).map { _ in peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80))[0].sense }
        #expect(senses == [[6, 0x2A, 9], [6, 0x28, 0], [6, 0x38, 7]])
    }

    @Test("a long SendTargets answer goes out in pieces, and holds only what the initiator may log in to")
    func sendTargets() throws {
        var parameters = ScriptedSession.defaults
        parameters.sendSegmentBytes = 512
        let peer = try ScriptedSession(parameters: parameters, isDiscovery: true)
        for index in 0..<100 {
            try peer.registry.addTarget("iqn.2026-11.test:t\(index)")
            if index % 2 == 0 {
                try peer.registry.allow(
                    "iqn.2026-11.test:t\(index)",
                    initiator: .named(
                        ScriptedSession.initiator.uppercased()
                            .replacingPrefix("IQN")))
            } else {
                try peer.registry.allow("iqn.2026-11.test:t\(index)", initiator: .named("iqn.2026-11.test:other"))
            }
        }
        var answers = peer.exchange(peer.text([("SendTargets", "All")]))
        var bytes = answers.flatMap(\.data)
        while let last = answers.last, !last.header.isFinal {
            #expect(last.data.count <= 512)
            answers = peer.exchange(peer.text([], tag: last.header.targetTransferTag))
            bytes += answers.flatMap(\.data)
        }
        let text = String(decoding: bytes, as: UTF8.self)
        let names = text.split(separator: "\0").filter { $0.hasPrefix("TargetName=") }
        #expect(names.count == 51)
        #expect(!text.contains(":t1\0"))
        #expect(text.contains("TargetAddress=192.0.2.1:3260,1"))
    }

    @Test("a discovery session takes no SCSI commands")
    func discoveryOnly() throws {
        let peer = try ScriptedSession(isDiscovery: true)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80)).map(\.header.opcode) == [.reject])
    }

    @Test("a silent peer is pinged, then closed; one that answers is kept")
    func deadPeer() throws {
        let peer = try ScriptedSession()
        let limits = peer.limits
        peer.session.tick(0)
        peer.session.tick(limits.idleSeconds)
        let ping = peer.answers()
        #expect(ping.map(\.header.opcode) == [.nopIn])
        var pong = BasicHeader(.nopOut)
        pong[byte: 0] |= 0x40
        pong.initiatorTaskTag = BasicHeader.reservedTag
        pong.targetTransferTag = ping[0].header.targetTransferTag
        #expect(peer.exchange(peer.pdu(pong, [])).isEmpty)
        peer.session.tick(limits.idleSeconds + 1)
        peer.session.tick(limits.idleSeconds + limits.pingSeconds + 2)
        #expect(peer.closeReason == nil)
        peer.session.tick(limits.idleSeconds + 2 * limits.pingSeconds + 3)
        #expect(peer.closeReason != nil)
    }

    @Test("logout is answered, then the connection closes; recovery is not offered")
    func logout() throws {
        let peer = try ScriptedSession()
        var request = BasicHeader(.logoutRequest, flags: 0x82)
        request.initiatorTaskTag = 8
        request.sequenceNumber = peer.takeCmdSN()
        #expect(peer.exchange(peer.pdu(request, []))[0].header[byte: 2] == 2)
        #expect(peer.closeReason == nil)
        request.flags = 0x80
        request.sequenceNumber = peer.takeCmdSN()
        let answer = peer.exchange(peer.pdu(request, []))
        #expect(answer[0].header.opcode == .logoutResponse && answer[0].header[byte: 2] == 0)
        #expect(peer.closeReason != nil)
    }

    @Test("Async messages ask for a logout and announce a drop")
    func asyncMessages() throws {
        let peer = try ScriptedSession()
        peer.session.requestLogout(seconds: 30)
        let request = peer.answers()
        #expect(request[0].header.opcode == .asyncMessage)
        #expect(request[0].header[byte: 36] == 1 && request[0].header[byte: 43] == 30)
        peer.session.announceDrop("gone")
        #expect(peer.answers()[0].header[byte: 36] == 3)
        #expect(peer.closeReason == "gone")
    }

    @Test("the first command of a session to a unit learns of a power on, INQUIRY and REPORT LUNS before it do not")
    func powerOn() throws {
        let peer = try ScriptedSession(saysPowerOn: true)
        #expect(peer.exchange(peer.command([0x12, 0, 0, 0, 36, 0], flags: 0xC0, expected: 36))[0].status == 0)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80))[0].sense == [6, 0x29, 0])
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80))[0].status == 0)
        #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 1))[0].sense == [6, 0x29, 0])
    }
}

extension ScriptedSession {
    var limits: TargetLimits { session.limits }
}

extension String {
    /// Names compare without regard to case, but begin in lower case.
    fileprivate func replacingPrefix(_ prefix: String) -> String { prefix.lowercased() + dropFirst(prefix.count) }
}
