import SCSI

/// The target's side of the login phase (RFC 7143 6.3), without sockets: requests go in, responses come out.
struct LoginMachine {
    enum Stage: UInt8 {
        case security = 0
        case operational = 1
        case fullFeature = 3
    }

    /// What is to be done after a request.
    enum Step: Equatable {
        /// Send this and wait for the next request.
        case respond(BasicHeader, [UInt8])
        /// Everything is agreed: open the session, then call ``accept(tsih:)`` or ``refuse(_:)``.
        case open(LoginOutcome)
        /// Send this, then close the connection.
        case fail(BasicHeader, LoginFailure)
        /// Close the connection: what came is no login.
        case drop(LoginFailure)
    }

    private let limits: TargetLimits
    private let policy: any LoginPolicy
    private let random: @Sendable (Int) -> [UInt8]

    private var stage: Stage?
    private var rounds = 0
    private var text: [UInt8] = []
    /// What did not fit one response.
    private var unsent: [UInt8] = []
    private var transition: Stage?
    private var request = BasicHeader(.loginRequest, flags: 0)
    private var statusSN: UInt32 = 1

    private var initiator = ""
    private var target: String?
    private var credentials: [CHAPCredentials] = []
    private var isProofOptional = false
    private let portalGroupTag: UInt16
    private var authentication = Authentication.pending
    private var user: String?
    private var parameters = SessionParameters()
    /// Operational keys that were negotiated or declared.
    private var settled: Set<String> = []
    private var saidSegmentLength = false
    private var saidPortalGroup = false

    private enum Authentication {
        case pending
        case exchange(CHAPExchange)
        case finished
    }

    /// Bytes of text in one login response: the default of what an initiator accepts.
    private static let responseTextLimit = 8192

    /// - Parameter portalGroupTag: of the portal that the connection came in through.
    init(
        limits: TargetLimits, policy: any LoginPolicy, portalGroupTag: UInt16 = 1,
        random: @escaping @Sendable (Int) -> [UInt8]
    ) {
        self.limits = limits
        self.portalGroupTag = portalGroupTag
        self.policy = policy
        self.random = random
    }

    /// What is known of the peer so far; for log lines.
    var peerName: String { initiator.isEmpty ? "an initiator that gave no name" : "initiator \(printable(initiator))" }

    /// The target it asked for, when it got so far.
    var wantedTarget: String? { target }

    mutating func receive(_ header: BasicHeader, _ data: some Collection<UInt8>) -> Step {
        guard header.opcode == .loginRequest else {
            return .drop(LoginFailure(status: .invalidDuringLogin, message: "a PDU other than a login request"))
        }
        let isFirst = stage == nil
        let previous = request
        request = header
        do throws(LoginFailure) {
            if isFirst {
                try checkFirst(header)
            } else if header.initiatorTaskTag != previous.initiatorTaskTag || header.lun != previous.lun {
                throw LoginFailure(status: .initiatorError, message: "the login changed its task tag, ISID or TSIH")
            }
            rounds += 1
            guard rounds <= limits.loginRounds else {
                throw LoginFailure(status: .initiatorError, message: "the login took more than \(rounds - 1) rounds")
            }
            guard text.count + data.count <= limits.textBytes else {
                throw LoginFailure(
                    status: .initiatorError, message: "the login sent more than \(limits.textBytes) bytes of text")
            }
            text += data
            return try advance(header, isFirst: isFirst)
        } catch {
            return refuse(error)
        }
    }

    /// The last response of a login, with which the full-feature phase begins.
    mutating func accept(tsih: UInt16) -> (BasicHeader, [UInt8]) {
        var header = response(flags: 0x80 | (stage ?? .security).rawValue << 2 | Stage.fullFeature.rawValue)
        header.lun = header.lun & ~0xFFFF | UInt64(tsih)
        let bytes = unsent
        unsent = []
        header.dataSegmentBytes = bytes.count
        return (header, bytes)
    }

    mutating func refuse(_ failure: LoginFailure) -> Step {
        var header = response(flags: request.flags & 0x0F)
        header[byte: 36] = UInt8(failure.status.rawValue >> 8)
        header[byte: 37] = UInt8(failure.status.rawValue & 0xFF)
        return .fail(header, failure)
    }

    // MARK: One request

    private func checkFirst(_ header: BasicHeader) throws(LoginFailure) {
        // Version-min; only version 0 exists.
        guard header[byte: 3] == 0 else {
            throw LoginFailure(
                status: .unsupportedVersion, message: "it speaks iSCSI version \(header[byte: 3]) and later only")
        }
        guard header.lun & 0xFFFF == 0 else {
            throw LoginFailure(
                status: .sessionDoesNotExist,
                message: "it wants to join session \(header.lun & 0xFFFF): one connection per session is offered")
        }
    }

    private mutating func advance(_ header: BasicHeader, isFirst: Bool) throws(LoginFailure) -> Step {
        guard let current = Stage(rawValue: (header.flags >> 2) & 0x03), current != .fullFeature,
            stage == nil || stage == current
        else {
            throw LoginFailure(status: .initiatorError, message: "the login is in a stage that was not agreed")
        }
        stage = current
        let continues = header.flags & 0x40 != 0
        if continues {
            guard !header.isFinal else {
                throw LoginFailure(status: .initiatorError, message: "the T and C bits are both set")
            }
            // The text goes on: an empty answer asks for the rest.
            return .respond(response(flags: current.rawValue << 2), [])
        }
        if !unsent.isEmpty {
            return try answer(unsent)
        }
        transition = try wantedTransition(header, from: current)
        let keys: TextKeys
        do throws(TextKeys.ParseError) {
            keys = try TextKeys(text)
        } catch {
            throw LoginFailure(status: .initiatorError, message: "its login text is malformed (\(error))")
        }
        text = []
        var reply = TextKeys()
        if isFirst || initiator.isEmpty { try identify(keys, &reply) }
        if current == .security {
            try authenticate(keys, &reply)
        } else if case .pending = authentication {
            guard credentials.isEmpty || isProofOptional else {
                throw LoginFailure(
                    status: .authenticationFailure,
                    message: "\(peerName) must authenticate with CHAP and skipped the security stage")
            }
            authentication = .finished
        }
        try negotiate(keys, current, &reply)
        return try answer(reply.encoded)
    }

    /// The stage the initiator wants to go to, when it set the T bit.
    private func wantedTransition(_ header: BasicHeader, from current: Stage) throws(LoginFailure) -> Stage? {
        guard header.isFinal else { return nil }
        guard let next = Stage(rawValue: header.flags & 0x03), next.rawValue > current.rawValue else {
            throw LoginFailure(status: .initiatorError, message: "the login asks for a stage that does not follow")
        }
        return next
    }

    private mutating func answer(_ bytes: [UInt8]) throws(LoginFailure) -> Step {
        let current = stage ?? .security
        if bytes.count > Self.responseTextLimit {
            unsent = Array(bytes.dropFirst(Self.responseTextLimit))
            var header = response(flags: 0x40 | current.rawValue << 2)
            header.dataSegmentBytes = Self.responseTextLimit
            return .respond(header, Array(bytes.prefix(Self.responseTextLimit)))
        }
        unsent = []
        var isReady = true
        if current == .security {
            if case .finished = authentication {} else { isReady = false }
        }
        guard let next = transition, isReady else {
            var header = response(flags: current.rawValue << 2)
            header.dataSegmentBytes = bytes.count
            return .respond(header, bytes)
        }
        if next == .fullFeature {
            unsent = bytes
            return .open(outcome())
        }
        var header = response(flags: 0x80 | current.rawValue << 2 | next.rawValue)
        header.dataSegmentBytes = bytes.count
        stage = next
        transition = nil
        return .respond(header, bytes)
    }

    private func outcome() -> LoginOutcome {
        var agreed = parameters
        agreed.firstBurstBytes = min(agreed.firstBurstBytes, agreed.maxBurstBytes)
        return LoginOutcome(
            initiatorPort: InitiatorPort(name: initiator, isid: request.lun >> 16), target: target,
            parameters: agreed, connectionID: UInt16(request[long: 20] >> 16), portalGroupTag: portalGroupTag,
            user: user,
            commandSN: request.sequenceNumber, statusSN: statusSN &+ 1)
    }

    /// A response to the last request with status 0, and the next StatSN used up.
    private mutating func response(flags: UInt8) -> BasicHeader {
        var header = BasicHeader(.loginResponse, flags: flags)
        header.lun = request.lun
        header.initiatorTaskTag = request.initiatorTaskTag
        header.sequenceNumber = statusSN
        header.expectedNumber = request.sequenceNumber
        header.maxCmdSN = request.sequenceNumber &+ UInt32(limits.commandsPerSession) &- 1
        statusSN &+= 1
        return header
    }

    // MARK: Keys

    private mutating func identify(_ keys: TextKeys, _ reply: inout TextKeys) throws(LoginFailure) {
        guard let name = keys["InitiatorName"] else {
            throw LoginFailure(status: .missingParameter, message: "the login does not say InitiatorName")
        }
        guard let normalized = ISCSIName.normalized(name) else {
            throw LoginFailure(
                status: .initiatorError, message: "\"\(printable(name))\" is no iSCSI initiator name")
        }
        initiator = normalized
        switch keys["SessionType"] ?? "Normal" {
        case "Discovery": target = nil
        case "Normal":
            guard let wanted = keys["TargetName"] else {
                throw LoginFailure(
                    status: .missingParameter, message: "\(peerName) does not say which target it wants")
            }
            target = ISCSIName.normalized(wanted) ?? wanted
        default:
            throw LoginFailure(
                status: .unsupportedSessionType, message: "\(peerName) asks for an unknown session type")
        }
        switch policy.authorize(initiator: initiator, target: target) {
        case .refused(let failure): throw failure
        case .allowed(let credentials, let isOptional):
            self.credentials = credentials
            isProofOptional = isOptional
        }
        if target != nil && !saidPortalGroup {
            saidPortalGroup = true
            reply.append("TargetPortalGroupTag", String(portalGroupTag))
        }
    }

    private mutating func authenticate(_ keys: TextKeys, _ reply: inout TextKeys) throws(LoginFailure) {
        switch authentication {
        case .finished: return
        case .pending:
            guard let offered = keys["AuthMethod"] else {
                if credentials.isEmpty || isProofOptional {
                    if transition != nil { authentication = .finished }
                    return
                }
                if transition != nil { throw mustAuthenticate("and offers no authentication") }
                return
            }
            let methods = TextValue.list(offered)
            // Where discovery has no rules, a session authenticates only when the initiator insists on it.
            let skips = isProofOptional && methods.contains("None")
            if !credentials.isEmpty && methods.contains("CHAP") && !skips {
                reply.append("AuthMethod", "CHAP")
                authentication = .exchange(CHAPExchange(credentials: credentials, random: random))
            } else if methods.contains("None") && (credentials.isEmpty || isProofOptional) {
                reply.append("AuthMethod", "None")
                authentication = .finished
            } else if credentials.isEmpty {
                throw LoginFailure(
                    status: .authenticationFailure,
                    message: "\(peerName) insists on \(printable(offered)), but no CHAP secret is set for it")
            } else {
                throw mustAuthenticate("and offers \(printable(offered)) only")
            }
        case .exchange(var exchange):
            do throws(CHAPExchange.Failure) {
                switch try exchange.receive(keys) {
                case .challenge(let challenge):
                    for (key, value) in challenge.pairs { reply.append(key, value) }
                    authentication = .exchange(exchange)
                case .authenticated(let user, let proof):
                    for (key, value) in proof.pairs { reply.append(key, value) }
                    self.user = user
                    authentication = .finished
                }
            } catch {
                throw LoginFailure(
                    status: .authenticationFailure, message: "\(peerName) failed CHAP: \(Self.describe(error))")
            }
        }
    }

    private func mustAuthenticate(_ why: String) -> LoginFailure {
        LoginFailure(
            status: .authenticationFailure,
            message: "\(peerName) must authenticate with CHAP for target \(target ?? "discovery") \(why)")
    }

    private static func describe(_ failure: CHAPExchange.Failure) -> String {
        switch failure {
        case .noAlgorithm(let offered): "no common algorithm (it offers \(printable(offered)))"
        case .malformed(let key): "\(key) is missing or malformed"
        case .unknownUser(let user): "the name \"\(printable(user))\" is not the one that is set"
        case .wrongResponse(let user): "wrong secret for \"\(printable(user))\""
        case .reflectedChallenge: "it sent our own challenge back"
        case .noMutualSecret: "it wants the target to authenticate itself, but no mutual secret is set"
        }
    }

    private mutating func negotiate(
        _ keys: TextKeys, _ current: Stage, _ reply: inout TextKeys
    ) throws(LoginFailure) {
        for (key, value) in keys.pairs {
            switch key {
            case "InitiatorName", "InitiatorAlias", "SessionType", "TargetName", "AuthMethod", "CHAP_A", "CHAP_I",
                "CHAP_C", "CHAP_N", "CHAP_R":
                continue
            default: break
            }
            // An answer to something we said.
            if value == "NotUnderstood" || value == "Irrelevant" || value == "Reject" { continue }
            guard settled.insert(key).inserted else {
                throw LoginFailure(
                    status: .initiatorError, message: "\(peerName) negotiates \(key) a second time (RFC 7143 6.3)")
            }
            switch parameters.negotiate(key, value, limits: limits, isDiscovery: target == nil) {
            case .value(let chosen): reply.append(key, chosen)
            case .silent: break
            case .reject: reply.append(key, "Reject")
            case .notUnderstood: reply.append(key, "NotUnderstood")
            case .invalid:
                throw LoginFailure(
                    status: .initiatorError,
                    message: "\(peerName) sent the impossible value \(key)=\(printable(value))")
            }
        }
        if current == .operational && !saidSegmentLength {
            saidSegmentLength = true
            reply.append("MaxRecvDataSegmentLength", String(limits.receiveSegmentBytes))
        }
    }
}
