import Crypto

/// The hash functions of CHAP (RFC 7143 12.1.3, 13.x; the IANA registry of PPP authentication algorithms).
enum CHAPAlgorithm: Int, CaseIterable {
    case md5 = 5
    case sha1 = 6
    case sha256 = 7
    case sha3 = 8

    /// In the order in which the target prefers them.
    static let preference: [CHAPAlgorithm] = [.sha3, .sha256, .sha1, .md5]

    var digestBytes: Int {
        switch self {
        case .md5: 16
        case .sha1: 20
        case .sha256, .sha3: 32
        }
    }

    /// The best one of a CHAP_A list, or nil.
    static func choose(from list: String) -> CHAPAlgorithm? {
        let offered = TextValue.list(list).compactMap { TextValue.number($0).flatMap { Self(rawValue: Int($0)) } }
        return preference.first(where: offered.contains)
    }

    /// RFC 1994 4.1: the hash of identifier, secret and challenge.
    func response(identifier: UInt8, secret: [UInt8], challenge: [UInt8]) -> [UInt8] {
        let message = [identifier] + secret + challenge
        switch self {
        case .md5: return Array(Insecure.MD5.hash(data: message))
        case .sha1: return Array(Insecure.SHA1.hash(data: message))
        case .sha256: return Array(SHA256.hash(data: message))
        case .sha3: return Array(SHA3_256.hash(data: message))
        }
    }
}

/// The target's part of one CHAP exchange, one-way or mutual.
struct CHAPExchange {
    /// Bytes of a challenge that an initiator may send (RFC 7143 13.x: 1024).
    static let challengeLimit = 1024

    /// Whose secrets are accepted. A discovery session may have several; CHAP_N chooses.
    let credentials: [CHAPCredentials]
    let random: @Sendable (Int) -> [UInt8]
    private var state = State.waitingForAlgorithms

    private enum State {
        case waitingForAlgorithms
        case waitingForResponse(CHAPAlgorithm, identifier: UInt8, challenge: [UInt8])
        case finished
    }

    enum Failure: Error, Equatable {
        /// No algorithm in common.
        case noAlgorithm(offered: String)
        /// A key is missing or its value is no value.
        case malformed(String)
        case unknownUser(String)
        case wrongResponse(user: String)
        /// The initiator asks the target to answer the target's own challenge.
        case reflectedChallenge
        /// The initiator wants the target to prove itself, and the target has no secret for that.
        case noMutualSecret
    }

    enum Outcome: Equatable {
        case challenge(TextKeys)
        /// The initiator is who it says; the keys answer its own challenge, if any.
        case authenticated(user: String, TextKeys)
    }

    init(credentials: [CHAPCredentials], random: @escaping @Sendable (Int) -> [UInt8]) {
        self.credentials = credentials
        self.random = random
    }

    mutating func receive(_ keys: TextKeys) throws(Failure) -> Outcome {
        switch state {
        case .waitingForAlgorithms:
            guard let offered = keys["CHAP_A"] else { throw .malformed("CHAP_A") }
            guard let algorithm = CHAPAlgorithm.choose(from: offered) else { throw .noAlgorithm(offered: offered) }
            let identifier = random(1)[0]
            // As long as the digest: a shorter one would weaken it, a longer one buys nothing.
            let challenge = random(algorithm.digestBytes)
            state = .waitingForResponse(algorithm, identifier: identifier, challenge: challenge)
            var answer = TextKeys()
            answer.append("CHAP_A", String(algorithm.rawValue))
            answer.append("CHAP_I", String(identifier))
            answer.append("CHAP_C", TextValue.hexadecimal(challenge))
            return .challenge(answer)
        case .waitingForResponse(let algorithm, let identifier, let challenge):
            state = .finished
            return try verify(keys, algorithm, identifier: identifier, challenge: challenge)
        case .finished: throw .malformed("CHAP")
        }
    }

    private func verify(
        _ keys: TextKeys, _ algorithm: CHAPAlgorithm, identifier: UInt8, challenge: [UInt8]
    ) throws(Failure) -> Outcome {
        guard let name = keys["CHAP_N"] else { throw .malformed("CHAP_N") }
        guard let text = keys["CHAP_R"], let response = TextValue.binary(text, limit: algorithm.digestBytes) else {
            throw .malformed("CHAP_R")
        }
        // The whole name, byte by byte: Swift's == would take different Unicode spellings for equal.
        guard let known = credentials.first(where: { $0.user.utf8.elementsEqual(name.utf8) }) else {
            throw .unknownUser(name)
        }
        let expected = algorithm.response(identifier: identifier, secret: known.secret, challenge: challenge)
        guard Self.isEqual(expected, response) else { throw .wrongResponse(user: name) }
        return .authenticated(user: name, try answer(keys, known, algorithm, ownChallenge: challenge))
    }

    private func answer(
        _ keys: TextKeys, _ known: CHAPCredentials, _ algorithm: CHAPAlgorithm, ownChallenge: [UInt8]
    ) throws(Failure) -> TextKeys {
        var answer = TextKeys()
        if keys["CHAP_I"] == nil && keys["CHAP_C"] == nil { return answer }
        guard let number = keys["CHAP_I"].flatMap(TextValue.number), let identifier = UInt8(exactly: number) else {
            throw .malformed("CHAP_I")
        }
        guard let text = keys["CHAP_C"], let challenge = TextValue.binary(text, limit: Self.challengeLimit) else {
            throw .malformed("CHAP_C")
        }
        guard !challenge.elementsEqual(ownChallenge) else { throw .reflectedChallenge }
        guard let mutual = known.mutual else { throw .noMutualSecret }
        let response = algorithm.response(identifier: identifier, secret: mutual.secret, challenge: challenge)
        answer.append("CHAP_N", mutual.user)
        answer.append("CHAP_R", TextValue.hexadecimal(response))
        return answer
    }

    /// In a time that does not depend on where they differ.
    private static func isEqual(_ left: [UInt8], _ right: [UInt8]) -> Bool {
        guard left.count == right.count else { return false }
        return zip(left, right).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0
    }
}
