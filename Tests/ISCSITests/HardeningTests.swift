import BlockIO
import SCSI
import Testing

@testable import ISCSI

/// What went wrong in other targets (docs/iscsi.md lists them) must not go wrong here.
@Suite("Bugs of others")
struct HardeningTests {
    @Test("CVE-2011-0001: a login PDU may be of any length and claim any; nothing before authentication overflows")
    func loginOverflow() {
        for claimed in [0, 1, 8192, 16_384, 16_385, 1 << 20, 0xFF_FFFF] {
            var header = BasicHeader(.loginRequest, flags: 0x87)
            header.dataSegmentBytes = claimed
            var bytes = [UInt8](repeating: 0x41, count: 48 + min(paddedLength(claimed), 32 << 10))
            for word in 0..<6 {
                for index in 0..<8 {
                    bytes[8 * word + index] = UInt8(truncatingIfNeeded: header[word: word] >> UInt64(56 - 8 * index))
                }
            }
            let step = bytes.withUnsafeBytes { PDUFraming(dataSegmentLimit: TargetLimits().textBytes).next($0) }
            if claimed > TargetLimits().textBytes {
                #expect(step == .failed(.dataSegmentTooLong(claimed)))
            } else if case .frame(let frame) = step {
                var login = ScriptedLogin()
                #expect(login.machine.receive(frame.header, bytes[frame.data]).failure != nil)
            } else {
                Issue.record("neither too long nor a PDU: \(claimed)")
            }
        }
    }

    @Test("CVE-2013-2850: a long key is refused, not echoed into a buffer")
    func longKey() {
        var login = ScriptedLogin()
        let long = String(repeating: "K", count: 4000)
        #expect(login.send(ScriptedLogin.names + [(long, "1")], next: 1).failure?.status == .initiatorError)
        #expect(throws: TextKeys.ParseError.keyTooLong) {
            try TextKeys(Array("\(String(repeating: "k", count: 64))=1".utf8))
        }
        #expect(throws: TextKeys.ParseError.valueTooLong) {
            try TextKeys(Array("k=\(String(repeating: "v", count: 4097))".utf8))
        }
    }

    @Test("CVE-2018-14633: a CHAP challenge or response longer than its buffer is refused")
    func longChallenge() throws {
        let credentials = try CHAPCredentials(
            user: "alice", secret: Array("wonderland-2026".utf8),
            mutual: .init(user: "target", secret: Array("looking-glass-2".utf8)))
        for count in [1025, 2000] {
            var exchange = CHAPExchange(credentials: [credentials], random: countingRandom())
            var algorithms = TextKeys()
            algorithms.append("CHAP_A", "5")
            guard case .challenge(let challenge) = try exchange.receive(algorithms) else { continue }
            let bytes = TextValue.binary(challenge["CHAP_C"] ?? "", limit: 64) ?? []
            let identifier = UInt8(challenge["CHAP_I"] ?? "") ?? 0
            var answer = TextKeys()
            answer.append("CHAP_N", "alice")
            answer.append(
                "CHAP_R",
                TextValue.hexadecimal(
                    CHAPAlgorithm.md5.response(identifier: identifier, secret: credentials.secret, challenge: bytes)))
            answer.append("CHAP_I", "1")
            answer.append("CHAP_C", "0b" + Base64.encode([UInt8](repeating: 7, count: count)))
            #expect(throws: CHAPExchange.Failure.malformed("CHAP_C")) { try exchange.receive(answer) }
        }
    }

    @Test("CVE-2024-45751: challenges and identifiers come from the system and do not repeat")
    func constantChallenge() {
        let challenges = Set((0..<100).map { _ in SystemRandom.bytes(16) })
        #expect(challenges.count == 100)
    }

    @Test("base64 CHAP_R overwrite: a response that decodes to more bytes than the digest has is malformed")
    func base64Response() throws {
        let credentials = try CHAPCredentials(user: "alice", secret: Array("wonderland-2026".utf8))
        for count in [17, 64, 3000] {
            var exchange = CHAPExchange(credentials: [credentials], random: countingRandom())
            var keys = TextKeys()
            keys.append("CHAP_A", "5")
            _ = try exchange.receive(keys)
            var answer = TextKeys()
            answer.append("CHAP_N", "alice")
            answer.append("CHAP_R", "0b" + Base64.encode([UInt8](repeating: 1, count: count)))
            #expect(throws: CHAPExchange.Failure.malformed("CHAP_R")) { try exchange.receive(answer) }
        }
    }

    @Test("CVE-2010-0743: format characters and control characters in names do not reach the log as such")
    func formatString() {
        #expect(printable("%n%s\u{1B}[31m\nx") == "%n%s?[31m?x")
        #expect(printable(String(repeating: "a", count: 5000)).count == 256)
        var login = ScriptedLogin()
        let failure = login.send([("InitiatorName", "iqn.%n%n\nroot"), ("TargetName", "x")], next: 1).failure
        #expect(failure?.status == .initiatorError)
        #expect(failure?.message.contains("\n") == false)
    }

    @Test("CVE-2010-2221: a length inside a message that reaches beyond it is refused, wherever there is one")
    func innerLength() throws {
        // Additional header segments beyond the limit end the connection before their bytes are waited for.
        var header = BasicHeader(.scsiCommand, flags: 0x80)
        header[byte: 4] = 0xFF
        let peer = try ScriptedSession()
        peer.deliver(peer.pdu(header, []))
        #expect(peer.closeReason != nil)
        // Lists whose own length fields say more than came: MODE SELECT(6) with a long page, UNMAP, REGISTER with
        // TransportIDs, EXTENDED COPY.
        let zeros = { [UInt8](repeating: 0, count: $0) }
        let lists: [(cdb: [UInt8], list: [UInt8])] = [
            ([0x15, 0x10, 0, 0, 6, 0], [0, 0, 0, 0, 0x08, 0xFE]),
            ([0x15, 0x10, 0, 0, 6, 0], [0, 0, 0, 0xF8, 0x08, 0x12]),
            ([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], [0xFF, 0xFE, 0xFF, 0xF0] + zeros(20)),
            ([0x5F, 0, 0, 0, 0, 0, 0, 0, 28, 0], zeros(20) + [0x08, 0, 0, 0] + [0xFF, 0xFF, 0xFF, 0xFF]),
            ([0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], [1, 0, 0xFF, 0xE0] + zeros(12)),
        ]
        let victim = try ScriptedSession()
        for row in lists {
            let answers = victim.exchange(
                victim.command(row.cdb, flags: 0xA0, expected: row.list.count, data: row.list))
            #expect(answers.map(\.status) == [2], "\(row.cdb)")
            #expect(answers.first?.sense.first == 5, "\(row.cdb)")
        }
        #expect(victim.exchange(victim.command(CDB.testUnitReady, flags: 0x80)).map(\.status) == [0])
    }

    @Test("CVE-2020-28374, CVE-2021-3139: EXTENDED COPY reaches what its initiator may log in to, and nothing else")
    func extendedCopy() throws {
        let peer = try ScriptedSession()
        let names = ["own", "forbidden", "open", "secret", "reverting"].map { "iqn.2026-11.test:\($0)" }
        for (index, name) in names.enumerated() {
            try peer.registry.addTarget(name)
            try peer.registry.addLUN(
                name, lun: 0, device: MemoryDevice(sizeBytes: 1 << 20),
                identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000001\(index)0", serial: "T\(index)"))
        }
        let chap = try CHAPCredentials(user: "u", secret: Array("wonderland-2026".utf8))
        for name in [names[2], names[4]] { try peer.registry.allow(name, initiator: .any) }
        try peer.registry.allow(names[3], initiator: .any, chap: chap)
        peer.registry.blockLogins(naa: "6589cfc0000000000000000000000140")
        func copies(to naa: String) -> [UInt8] {
            let digits = Array(naa)
            let bytes = stride(from: 0, to: 32, by: 2).map { UInt8(String(digits[$0...($0 + 1)]), radix: 16) ?? 0 }
            let own: [UInt8] = [0x65, 0x89, 0xCF, 0xC0] + [UInt8](repeating: 0, count: 12)
            let head: [UInt8] = [0xE4, 0, 0, 0, 1, 3, 0, 16]
            let tail: [UInt8] = [0, 0, 0, 0, 0, 0, 2, 0]
            let units = head + own + tail + head + bytes + tail
            let segment: [UInt8] = [2, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 1] + [UInt8](repeating: 0, count: 16)
            let list: [UInt8] = [1, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0] + units + segment
            let cdb: [UInt8] = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, UInt8(list.count), 0, 0]
            return peer.exchange(peer.command(cdb, flags: 0xA0, expected: list.count, data: list)).first?.sense ?? []
        }
        let unreachable: [UInt8] = [0x0A, 0x0D, 0x02]
        // The other LUN of the session's own target.
        #expect(copies(to: "6589cfc0000000000000000000000001") == [])
        #expect(copies(to: "6589cfc0000000000000000000000100") == unreachable)
        #expect(copies(to: "6589cfc0000000000000000000000110") == unreachable)
        #expect(copies(to: "6589cfc0000000000000000000000120") == [])
        #expect(copies(to: "6589cfc0000000000000000000000130") == unreachable)
        #expect(copies(to: "6589cfc0000000000000000000000140") == unreachable)
        #expect(copies(to: "6589cfc00000000000000000000001f0") == unreachable)
        // The very secret with which it logged in opens the other target, too.
        try peer.registry.allow(ScriptedSession.iqn, initiator: .named(ScriptedSession.initiator), chap: chap)
        #expect(copies(to: "6589cfc0000000000000000000000130") == [])
    }

    @Test("SPDK: abort, R2T and the removal of the LUN in any order leave nothing behind")
    func abortAndRemoval() throws {
        for order in 0..<6 {
            let peer = try ScriptedSession()
            let request = peer.exchange(
                peer.command(CDB.write(lba: 0, blocks: 8), flags: 0xA0, expected: 4096, tag: 5))
            let transfer = request[0].header.targetTransferTag
            let steps: [() throws -> Void] = [
                { peer.deliver(peer.taskManagement(1, referenced: 5)) },
                { try peer.registry.removeLUN(ScriptedSession.iqn, lun: 0) },
                {
                    peer.deliver(
                        peer.dataOut(
                            tag: 5, transferTag: transfer, dataSN: 0, offset: 0,
                            [UInt8](repeating: 3, count: 4096), isFinal: true))
                },
            ]
            let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
            for step in orders[order] { try steps[step]() }
            #expect(peer.session.outstanding.isEmpty)
            #expect(peer.session.gatheredBytes == 0)
            _ = peer.answers()
            #expect(peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 1)).count == 1)
        }
    }

    @Test("SPDK: a PDU cut anywhere, with digests, is the same PDU")
    func splitWithDigests() throws {
        var parameters = ScriptedSession.defaults
        parameters.headerDigest = true
        parameters.dataDigest = true
        let peer = try ScriptedSession(parameters: parameters)
        let bytes = peer.command(
            CDB.write(lba: 0, blocks: 1), flags: 0xA0, expected: 512, data: [UInt8](repeating: 8, count: 512))
        for cut in 0..<bytes.count {
            let step = Array(bytes[..<cut]).withUnsafeBytes { peer.session.framing.next($0) }
            guard case .needs(let count) = step else {
                Issue.record("\(cut) bytes are no PDU")
                continue
            }
            #expect(count > cut && count <= bytes.count)
        }
        #expect(peer.exchange(bytes).map(\.status) == [0])
    }

    @Test("SPDK #3806: a thousand WRITE SAMEs do not keep a NOP waiting")
    func writeSameFlood() throws {
        var limits = TargetLimits()
        limits.commandsPerSession = 1000
        let peer = try ScriptedSession(limits: limits)
        peer.runsBlockingAtOnce = false
        let cdb: [UInt8] = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0]
        let block = [UInt8](repeating: 1, count: 512)
        for _ in 0..<900 { peer.deliver(peer.command(cdb, flags: 0xA0, expected: 512, data: block)) }
        var nop = BasicHeader(.nopOut)
        nop.initiatorTaskTag = 0xABCD
        nop.targetTransferTag = BasicHeader.reservedTag
        nop.sequenceNumber = peer.takeCmdSN()
        #expect(peer.exchange(peer.pdu(nop, [])).map(\.header.opcode) == [.nopIn])
        #expect(peer.blocked.count == 900)
    }

    @Test("tgt: a dropped connection leaves no command behind, not even one that runs")
    func droppedConnection() throws {
        let peer = try ScriptedSession()
        peer.runsBlockingAtOnce = false
        peer.deliver(peer.command(CDB.synchronizeCache, flags: 0x80))
        _ = peer.exchange(peer.command(CDB.write(lba: 0, blocks: 8), flags: 0xA0, expected: 4096))
        peer.session.tearDown()
        #expect(peer.session.outstanding.isEmpty && peer.session.running.count == 1)
        peer.runBlocked()
        #expect(peer.session.running.isEmpty && peer.answers().isEmpty)
    }

    @Test("unsolicited data beyond FirstBurstLength, out of order or with a wrong DataSN writes nothing more")
    func dataSequence() throws {
        for (dataSN, offset, count) in [(1, 0, 512), (0, 512, 512), (0, 0, 8192)] {
            var parameters = ScriptedSession.defaults
            parameters.firstBurstBytes = 4096
            let peer = try ScriptedSession(parameters: parameters)
            peer.deliver(peer.command(CDB.write(lba: 0, blocks: 32), flags: 0x20, expected: 16_384, tag: 2))
            let answers = peer.exchange(
                peer.dataOut(
                    tag: 2, dataSN: UInt32(dataSN), offset: offset, [UInt8](repeating: 1, count: count),
                    isFinal: false))
            #expect(answers.map(\.sense) == [[0x0B, 0x0C, 0x0C]])
            #expect(peer.session.outstanding.isEmpty)
        }
    }

    @Test("what one session may keep gathered is bounded; more is BUSY")
    func gatheredBytes() throws {
        var limits = TargetLimits()
        limits.gatheredBytesPerSession = 64 << 10
        var parameters = ScriptedSession.defaults
        parameters.initialR2T = true
        let peer = try ScriptedSession(parameters: parameters, limits: limits)
        let cdb: [UInt8] = [0x42, 0, 0, 0, 0, 0, 0, 0x40, 0, 0]
        for _ in 0..<4 {
            #expect(
                peer.exchange(peer.command(cdb, flags: 0xA0, expected: 16_384)).map(\.header.opcode)
                    == [.readyToTransfer])
        }
        #expect(peer.exchange(peer.command(cdb, flags: 0xA0, expected: 16_384)).map(\.status) == [0x08])
        #expect(peer.session.gatheredBytes == 64 << 10)
    }

    @Test("damaged PDUs never crash a session or the login, and good commands still work on other sessions")
    func mutations() throws {
        var generator = SplitMix(state: 7143)
        for round in 0..<400 {
            let peer = try ScriptedSession()
            let data = [UInt8](repeating: 1, count: 4096)
            let templates: [[UInt8]] = [
                peer.command(CDB.write(lba: 0, blocks: 8), flags: 0xA0, expected: 4096, data: data),
                peer.command(CDB.write(lba: 0, blocks: 32), flags: 0x20, expected: 16_384, tag: 500),
                peer.dataOut(tag: 500, dataSN: 0, offset: 0, data, isFinal: true),
                peer.command(CDB.read(lba: 0, blocks: 64), flags: 0xC0, expected: 32_768),
                peer.taskManagement(UInt8(round % 9), referenced: 500), peer.text([("SendTargets", "")]),
                peer.command(
                    [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], flags: 0xA0, expected: 1024,
                    data: [UInt8](repeating: 0, count: 1024)),
            ]
            for var bytes in templates {
                for _ in 0..<Int.random(in: 0...3, using: &generator) {
                    let at = Int.random(in: 0..<min(bytes.count, 60), using: &generator)
                    bytes[at] = UInt8.random(in: .min ... .max, using: &generator)
                }
                peer.deliver(bytes)
            }
            peer.session.tearDown()
        }
        for _ in 0..<4000 {
            var login = ScriptedLogin(
                credentials: [try CHAPCredentials(user: "alice", secret: Array("wonderland-2026".utf8))])
            let (_, text, _) = CapturedLogins.all[Int.random(in: 0..<3, using: &generator)]
            var bytes = CapturedLogins.bytes(text)
            for _ in 0..<Int.random(in: 1...6, using: &generator) {
                let at = Int.random(in: 0..<bytes.count, using: &generator)
                bytes[at] = UInt8.random(in: .min ... .max, using: &generator)
            }
            if case .frame(let frame) = bytes.withUnsafeBytes({ PDUFraming(dataSegmentLimit: 16_384).next($0) }) {
                let step = login.machine.receive(frame.header, bytes[frame.data])
                #expect(step.outcome?.target == nil, "no damage logs anybody in without CHAP")
            }
        }
    }
}
