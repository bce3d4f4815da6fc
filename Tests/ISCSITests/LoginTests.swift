import SCSI
import Synchronization
import Testing

@testable import ISCSI

/// Answers the login machine's questions about names.
struct FixedPolicy: LoginPolicy {
    var credentials: [CHAPCredentials] = []
    var refusal: LoginFailure?

    func authorize(initiator: String, target: String?) -> LoginAuthorization {
        if let refusal { return .refused(refusal) }
        return .allowed(credentials: credentials)
    }
}

/// Counts up, so that challenges are known and never the same.
func countingRandom() -> @Sendable (Int) -> [UInt8] {
    let next = Atomic<Int>(0)
    return { count in
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next.wrappingAdd(1, ordering: .relaxed).oldValue) }
    }
}

/// An initiator that logs in by hand.
struct ScriptedLogin {
    var machine: LoginMachine
    var stage: UInt8 = 0
    private var itt: UInt32 = 0x77

    init(credentials: [CHAPCredentials] = [], refusal: LoginFailure? = nil, limits: TargetLimits = .init()) {
        machine = LoginMachine(
            limits: limits, policy: FixedPolicy(credentials: credentials, refusal: refusal), random: countingRandom())
    }

    static let names = [
        ("InitiatorName", "iqn.2026-11.test:initiator"), ("TargetName", "iqn.2026-11.test:target"),
        ("SessionType", "Normal"),
    ]

    /// - Parameter next: the stage to go to, with the T bit.
    mutating func send(_ keys: [(String, String)], next: UInt8? = nil, continues: Bool = false) -> LoginMachine.Step {
        var text = TextKeys()
        for (key, value) in keys { text.append(key, value) }
        return send(bytes: text.encoded, next: next, continues: continues)
    }

    mutating func send(bytes: [UInt8], next: UInt8? = nil, continues: Bool = false) -> LoginMachine.Step {
        var header = BasicHeader(
            .loginRequest, flags: (next.map { 0x80 | $0 } ?? 0) | (continues ? 0x40 : 0) | stage << 2)
        header[byte: 0] |= 0x40
        header.lun = 0x0001_0203_0405_0000
        header.initiatorTaskTag = itt
        header.sequenceNumber = 500
        header.dataSegmentBytes = bytes.count
        return machine.receive(header, bytes)
    }
}

extension LoginMachine.Step {
    var keys: TextKeys? {
        guard case .respond(_, let bytes) = self else { return nil }
        return try? TextKeys(bytes)
    }
    var failure: LoginFailure? {
        switch self {
        case .fail(_, let failure), .drop(let failure): failure
        default: nil
        }
    }
    var outcome: LoginOutcome? {
        guard case .open(let outcome) = self else { return nil }
        return outcome
    }
}

@Suite("Login")
struct LoginTests {
    @Test("libiscsi's, libiscsi's CHAP and QEMU's first login PDUs, as captured, are understood")
    func captured() throws {
        for (name, hexadecimal, expected) in CapturedLogins.all {
            let bytes = CapturedLogins.bytes(hexadecimal)
            guard case .frame(let frame) = bytes.withUnsafeBytes({ PDUFraming(dataSegmentLimit: 8192).next($0) })
            else {
                Issue.record("\(name): no PDU")
                continue
            }
            #expect(frame.byteCount == bytes.count, "\(name)")
            var machine = LoginMachine(limits: .init(), policy: FixedPolicy(), random: countingRandom())
            let step = machine.receive(frame.header, bytes[frame.data])
            switch expected {
            case .opens:
                #expect(step.outcome != nil, "\(name)")
                #expect(step.outcome?.parameters.initialR2T == false, "\(name)")
            case .asks: #expect(step.keys?["AuthMethod"] == "None", "\(name)")
            }
        }
    }

    @Test("a login without authentication in two rounds ends with what was negotiated")
    func plain() throws {
        var login = ScriptedLogin()
        let security = login.send(ScriptedLogin.names + [("AuthMethod", "None")], next: 1)
        #expect(security.keys?["AuthMethod"] == "None")
        #expect(security.keys?["TargetPortalGroupTag"] == "1")
        login.stage = 1
        let end = login.send(
            [
                ("HeaderDigest", "CRC32C,None"), ("DataDigest", "None"), ("InitialR2T", "No"),
                ("ImmediateData", "Yes"), ("MaxRecvDataSegmentLength", "65536"), ("MaxBurstLength", "16776192"),
                ("FirstBurstLength", "0x10000"), ("MaxOutstandingR2T", "16"), ("MaxConnections", "8"),
                ("ErrorRecoveryLevel", "2"), ("DefaultTime2Wait", "2"), ("DefaultTime2Retain", "20"),
                ("IFMarker", "Yes"), ("OFMarkInt", "1~65535"), ("TaskReporting", "FastAbort,RFC3720"),
                ("X-com.example.key", "1"),
            ], next: 3)
        let outcome = try #require(end.outcome)
        #expect(outcome.parameters.headerDigest && !outcome.parameters.dataDigest)
        #expect(outcome.parameters.sendSegmentBytes == 65_536)
        #expect(outcome.parameters.firstBurstBytes == 65_536)
        #expect(outcome.parameters.maxBurstBytes == TargetLimits().maxBurstBytes)
        #expect(outcome.initiatorPort.isid == 0x0001_0203_0405)
        let (header, text) = login.machine.accept(tsih: 0x1234)
        let keys = try TextKeys(text)
        #expect(header.lun == 0x0001_0203_0405_1234 && header.flags == 0x87)
        #expect(header[byte: 36] == 0 && header[byte: 37] == 0)
        #expect(keys["MaxConnections"] == "1" && keys["ErrorRecoveryLevel"] == "0")
        #expect(keys["IFMarker"] == "No" && keys["OFMarkInt"] == "Reject")
        #expect(keys["TaskReporting"] == "RFC3720" && keys["X-com.example.key"] == "NotUnderstood")
        #expect(keys["MaxRecvDataSegmentLength"] == "262144")
        #expect(keys["HeaderDigest"] == "CRC32C")
        #expect(outcome.statusSN == header.sequenceNumber &+ 1)
    }

    @Test("declarative keys are heard and not answered; markers are refused; a range that is none of ours is Reject")
    func declarativeKeys() throws {
        var login = ScriptedLogin()
        _ = login.send(ScriptedLogin.names + [("AuthMethod", "None"), ("InitiatorAlias", "front office")], next: 1)
        login.stage = 1
        let step = login.send([
            ("MaxRecvDataSegmentLength", "4096"), ("OFMarker", "Yes"), ("IFMarker", "Yes"), ("IFMarkInt", "2048~8192"),
            ("HeaderDigest", "X-strong"), ("TaskReporting", "FastAbort"), ("iSCSIProtocolLevel", "2"),
            ("DataPDUInOrder", "No"), ("DataSequenceInOrder", "No"), ("MaxOutstandingR2T", "1"),
        ])
        let keys = try #require(step.keys)
        // The target's own declaration, once; nothing about the initiator's.
        #expect(keys.pairs.filter { $0.key == "MaxRecvDataSegmentLength" }.map(\.value) == ["262144"])
        #expect(keys["InitiatorAlias"] == nil)
        #expect(keys["OFMarker"] == "No" && keys["IFMarker"] == "No" && keys["IFMarkInt"] == "Reject")
        #expect(keys["HeaderDigest"] == "Reject" && keys["TaskReporting"] == "Reject")
        #expect(keys["iSCSIProtocolLevel"] == "1" && keys["MaxOutstandingR2T"] == "1")
        #expect(keys["DataPDUInOrder"] == "Yes" && keys["DataSequenceInOrder"] == "Yes")
        let outcome = try #require(login.send([], next: 3).outcome)
        #expect(outcome.parameters.sendSegmentBytes == 4096 && !outcome.parameters.headerDigest)
    }

    @Test("a key may be negotiated once in a login, in one text or in several")
    func renegotiation() {
        for isOneText in [true, false] {
            var login = ScriptedLogin()
            _ = login.send(ScriptedLogin.names + [("AuthMethod", "None")], next: 1)
            login.stage = 1
            if isOneText {
                let failure = login.send([("InitialR2T", "No"), ("InitialR2T", "Yes")]).failure
                #expect(failure?.status == .initiatorError)
            } else {
                #expect(login.send([("InitialR2T", "No")]).failure == nil)
                let failure = login.send([("InitialR2T", "Yes")], next: 3).failure
                #expect(failure?.status == .initiatorError)
                #expect(failure?.message.contains("InitialR2T a second time") == true)
            }
        }
    }

    @Test("text that goes on over many PDUs (C bit), cut anywhere, is one text")
    func continuation() throws {
        var text = TextKeys()
        for (key, value) in ScriptedLogin.names + [("AuthMethod", "None")] { text.append(key, value) }
        let bytes = text.encoded
        for cut in stride(from: 1, to: bytes.count - 1, by: 13) {
            var login = ScriptedLogin()
            #expect(login.send(bytes: Array(bytes[..<cut]), continues: true).keys?.isEmpty == true)
            #expect(login.send(bytes: Array(bytes[cut...]), next: 1).keys?["AuthMethod"] == "None")
        }
    }

    @Test("an answer longer than 8 KiB goes out in pieces")
    func longAnswer() throws {
        var login = ScriptedLogin()
        _ = login.send(ScriptedLogin.names + [("AuthMethod", "None")], next: 1)
        login.stage = 1
        let unknown = (0..<110).map { ("X-com.example." + String(repeating: "k", count: 45) + "\($0)", "1") }
        var step = login.send(unknown, next: 3)
        var bytes: [UInt8] = []
        while case .respond(let header, let part) = step {
            #expect(header.flags & 0xC0 == 0x40 && part.count <= 8192)
            bytes += part
            step = login.send([], next: 3)
        }
        #expect(step.outcome != nil)
        bytes += login.machine.accept(tsih: 1).1
        #expect(try TextKeys(bytes).pairs.filter { $0.value == "NotUnderstood" }.count == 110)
    }

    @Test(
        "impossible logins are refused with the right status",
        arguments: [
            ([("TargetName", "iqn.2026-11.test:t")], .missingParameter),
            ([("InitiatorName", "iqn.2026-11.test:i")], .missingParameter),
            ([("InitiatorName", "bob"), ("TargetName", "iqn.2026-11.test:t")], .initiatorError),
            ([("InitiatorName", "iqn.2026-11.test:i"), ("SessionType", "Odd")], .unsupportedSessionType),
            (ScriptedLogin.names + [("AuthMethod", "KRB5")], .authenticationFailure),
            (ScriptedLogin.names + [("MaxBurstLength", "12")], .initiatorError),
            (ScriptedLogin.names + [("MaxRecvDataSegmentLength", "99999999999")], .initiatorError),
            (ScriptedLogin.names + [("InitialR2T", "Maybe")], .initiatorError),
        ] as [([(String, String)], LoginFailure.Status)])
    func refused(_ row: (keys: [(String, String)], status: LoginFailure.Status)) {
        var login = ScriptedLogin()
        #expect(login.send(row.keys, next: 1).failure?.status == row.status)
    }

    @Test("an initiator without a rule is refused, and the log line says who wanted what")
    func notAllowed() throws {
        let registry = TargetRegistry()
        try registry.addTarget("iqn.2026-11.test:target")
        guard
            case .refused(let failure) = registry.authorize(
                initiator: "iqn.2026-11.test:initiator", target: "iqn.2026-11.test:target")
        else {
            Issue.record("a target is closed until somebody is allowed")
            return
        }
        #expect(failure.status == .authorizationFailure)
        #expect(
            failure.message == "initiator iqn.2026-11.test:initiator is not allowed on target iqn.2026-11.test:target")
    }

    @Test("a session that exists cannot be joined, a version that does not exist is not spoken")
    func versionAndSession() {
        var login = ScriptedLogin()
        var header = BasicHeader(.loginRequest, flags: 0x81)
        header.lun = 5
        #expect(login.machine.receive(header, []).failure?.status == .sessionDoesNotExist)
        var other = ScriptedLogin()
        header.lun = 0
        header[byte: 3] = 1
        #expect(other.machine.receive(header, []).failure?.status == .unsupportedVersion)
    }

    @Test("rounds and text are bounded")
    func bounded() {
        var login = ScriptedLogin()
        _ = login.send(ScriptedLogin.names)
        var failure: LoginFailure?
        for _ in 0..<40 where failure == nil { failure = login.send([]).failure }
        #expect(failure?.message.contains("32 rounds") == true)
        var talker = ScriptedLogin()
        failure = nil
        for _ in 0..<4 where failure == nil {
            failure = talker.send(bytes: [UInt8](repeating: 0x41, count: 8000), continues: true).failure
        }
        #expect(failure?.message.contains("bytes of text") == true)
    }
}

@Suite("CHAP")
struct CHAPTests {
    private static func credentials(mutual: Bool = false) throws -> CHAPCredentials {
        try CHAPCredentials(
            user: "alice", secret: Array("wonderland-2026".utf8),
            mutual: mutual ? .init(user: "target", secret: Array("looking-glass-2".utf8)) : nil)
    }

    /// Logs in up to the challenge.
    private static func challenged(
        _ login: inout ScriptedLogin, algorithms: String = "5"
    ) throws -> (algorithm: CHAPAlgorithm, identifier: UInt8, challenge: [UInt8]) {
        let method = login.send(ScriptedLogin.names + [("AuthMethod", "CHAP,None")], next: 1)
        #expect(method.keys?["AuthMethod"] == "CHAP")
        guard case .respond(let header, _) = method else { throw CHAPExchange.Failure.malformed("AuthMethod") }
        #expect(!header.isFinal)
        let keys = try #require(login.send([("CHAP_A", algorithms)]).keys)
        let number = try #require(keys["CHAP_A"].flatMap { Int($0) })
        return (
            try #require(CHAPAlgorithm(rawValue: number)), try #require(keys["CHAP_I"].flatMap { UInt8($0) }),
            try #require(keys["CHAP_C"].flatMap { TextValue.binary($0, limit: 1024) })
        )
    }

    @Test(
        "the responses of all four algorithms, against values computed elsewhere",
        arguments: [
            (.md5, "0x4178e4bded37ee180178450492622bec"), (.sha1, "0x04264d599014d07badb88c962725eee8d5c8613b"),
            (.sha256, "0x693a32ce920df6e486eeed8dd21554efae5c28dc8483f2e1cd2fcb7d56a7c9f6"),
            (.sha3, "0xdb29e67fc9dbb48410be5e60ec03ade9d6a19bf568796c9fe7b4631e7a6629c1"),
        ] as [(CHAPAlgorithm, String)])
    func vectors(_ row: (algorithm: CHAPAlgorithm, response: String)) {
        let response = row.algorithm.response(
            identifier: 0x17, secret: Array("wonderland-2026".utf8), challenge: Array(0..<16))
        #expect(TextValue.hexadecimal(response) == row.response)
    }

    @Test("the best algorithm of the list is taken; spaces and unknown numbers do no harm; none is an error")
    func choice() throws {
        #expect(CHAPAlgorithm.choose(from: "7,6,5") == .sha256)
        #expect(CHAPAlgorithm.choose(from: "5,8,99") == .sha3)
        #expect(CHAPAlgorithm.choose(from: "5") == .md5)
        #expect(CHAPAlgorithm.choose(from: "4,9") == nil)
        var login = ScriptedLogin(credentials: [try Self.credentials()])
        _ = login.send(ScriptedLogin.names + [("AuthMethod", "CHAP")], next: 1)
        #expect(login.send([("CHAP_A", "99")]).failure?.status == .authenticationFailure)
    }

    @Test("the right secret logs in, in hexadecimal and base64", arguments: [false, true])
    func rightSecret(_ base64: Bool) throws {
        var login = ScriptedLogin(credentials: [try Self.credentials()])
        let (algorithm, identifier, challenge) = try Self.challenged(&login, algorithms: "7,5")
        #expect(algorithm == .sha256 && challenge.count == 32)
        let response = algorithm.response(
            identifier: identifier, secret: Array("wonderland-2026".utf8), challenge: challenge)
        let text = base64 ? "0b" + Base64.encode(response) : TextValue.hexadecimal(response)
        let end = login.send([("CHAP_N", "alice"), ("CHAP_R", text)], next: 1)
        guard case .respond(let header, _) = end else {
            Issue.record("refused: \(end)")
            return
        }
        #expect(header.flags == 0x81)
    }

    @Test("a wrong secret, a wrong name, a prefix of the name and a longer name are refused")
    func wrong() throws {
        for (name, secret) in [
            ("alice", "wonderland-2027"), ("bob", "wonderland-2026"), ("alic", "wonderland-2026"),
            ("alice2", "wonderland-2026"), ("Alice", "wonderland-2026"), ("", "wonderland-2026"),
        ] {
            var login = ScriptedLogin(credentials: [try Self.credentials()])
            let (algorithm, identifier, challenge) = try Self.challenged(&login)
            let response = algorithm.response(identifier: identifier, secret: Array(secret.utf8), challenge: challenge)
            let end = login.send([("CHAP_N", name), ("CHAP_R", TextValue.hexadecimal(response))], next: 1)
            #expect(end.failure?.status == .authenticationFailure, "\(name)")
        }
    }

    @Test("mutual CHAP: the target proves itself; without a mutual secret the login is refused")
    func mutual() throws {
        for hasSecret in [true, false] {
            var login = ScriptedLogin(credentials: [try Self.credentials(mutual: hasSecret)])
            let (algorithm, identifier, challenge) = try Self.challenged(&login, algorithms: "8")
            let response = algorithm.response(
                identifier: identifier, secret: Array("wonderland-2026".utf8), challenge: challenge)
            let own = [UInt8](repeating: 0x5A, count: 24)
            let end = login.send(
                [
                    ("CHAP_N", "alice"), ("CHAP_R", TextValue.hexadecimal(response)), ("CHAP_I", "42"),
                    ("CHAP_C", TextValue.hexadecimal(own)),
                ], next: 1)
            guard hasSecret else {
                #expect(end.failure?.status == .authenticationFailure)
                continue
            }
            #expect(end.keys?["CHAP_N"] == "target")
            let proof = algorithm.response(identifier: 42, secret: Array("looking-glass-2".utf8), challenge: own)
            #expect(end.keys?["CHAP_R"] == TextValue.hexadecimal(proof))
        }
    }

    @Test("our own challenge sent back is refused")
    func reflected() throws {
        var login = ScriptedLogin(credentials: [try Self.credentials(mutual: true)])
        let (algorithm, identifier, challenge) = try Self.challenged(&login)
        let response = algorithm.response(
            identifier: identifier, secret: Array("wonderland-2026".utf8), challenge: challenge)
        let end = login.send(
            [
                ("CHAP_N", "alice"), ("CHAP_R", TextValue.hexadecimal(response)), ("CHAP_I", "42"),
                ("CHAP_C", TextValue.hexadecimal(challenge)),
            ], next: 1)
        #expect(end.failure?.message.contains("our own challenge") == true)
    }

    @Test("skipping the security stage, or offering only None, does not get around CHAP")
    func skipped() throws {
        var direct = ScriptedLogin(credentials: [try Self.credentials()])
        direct.stage = 1
        #expect(direct.send(ScriptedLogin.names, next: 3).failure?.status == .authenticationFailure)
        var none = ScriptedLogin(credentials: [try Self.credentials()])
        #expect(
            none.send(ScriptedLogin.names + [("AuthMethod", "None")], next: 1).failure?.status
                == .authenticationFailure)
        var silent = ScriptedLogin(credentials: [try Self.credentials()])
        #expect(silent.send(ScriptedLogin.names, next: 3).failure?.status == .authenticationFailure)
        var half = ScriptedLogin(credentials: [try Self.credentials()])
        _ = try Self.challenged(&half)
        half.stage = 1
        #expect(half.send([], next: 3).failure != nil)
    }

    @Test("secrets are 12 bytes at least, and not the same in both directions")
    func secrets() {
        #expect(throws: CHAPCredentials.Invalid.secretLength(5)) {
            try CHAPCredentials(user: "a", secret: Array("short".utf8))
        }
        #expect(throws: CHAPCredentials.Invalid.sameSecret) {
            let secret = Array("wonderland-2026".utf8)
            return try CHAPCredentials(user: "a", secret: secret, mutual: .init(user: "b", secret: secret))
        }
    }

    @Test("binary values: hexadecimal and base64, right and wrong")
    func binary() {
        #expect(TextValue.binary("0x0aFF", limit: 2) == [0x0A, 0xFF])
        #expect(TextValue.binary("0xaFF", limit: 2) == [0x0A, 0xFF])
        #expect(TextValue.binary("0bAQID", limit: 3) == [1, 2, 3])
        #expect(TextValue.binary("0bAQ==", limit: 3) == [1])
        for wrong in ["", "0x", "0b", "0xgg", "0b*", "0bAQI", "AQID", "0x010203", "0bAQIDBA==", "0b===="] {
            #expect(TextValue.binary(wrong, limit: 2) == nil, "\(wrong)")
        }
    }
}

/// For the tests only: the target never writes base64.
enum Base64 {
    static func encode(_ bytes: [UInt8]) -> String {
        let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
        var text: [UInt8] = []
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let part = Array(bytes[start..<min(start + 3, bytes.count)])
            let bits = part.enumerated().reduce(UInt32(0)) { $0 | UInt32($1.element) << UInt32(16 - 8 * $1.offset) }
            for index in 0..<4 {
                text.append(
                    index <= part.count ? digits[Int(bits >> UInt32(18 - 6 * index)) & 63] : UInt8(ascii: "="))
            }
        }
        return String(decoding: text, as: UTF8.self)
    }
}
