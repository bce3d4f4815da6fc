/// `key=value` pairs of login and text PDUs (RFC 7143 6.1), in the order in which they came.
struct TextKeys: Equatable {
    private(set) var pairs: [(key: String, value: String)] = []

    enum ParseError: Error, Equatable {
        case noEqualsSign
        case keyTooLong
        case invalidKey
        case valueTooLong
        case notUTF8
        case tooManyKeys
        case duplicateKey(String)
    }

    /// Bytes of a key's name (RFC 7143 6.1: 63).
    static let keyLimit = 63
    /// Bytes of a value; CHAP values are the longest that mean anything.
    static let valueLimit = 4096
    static let pairLimit = 128

    init() {}

    /// Parses pairs that are each ended by a zero byte; the last one may lack it.
    init(_ bytes: some Collection<UInt8>) throws(ParseError) {
        for pair in bytes.split(separator: 0, omittingEmptySubsequences: true) {
            guard let equals = pair.firstIndex(of: UInt8(ascii: "=")) else { throw .noEqualsSign }
            let name = pair[..<equals]
            let value = pair[pair.index(after: equals)...]
            guard name.count <= Self.keyLimit else { throw .keyTooLong }
            guard !name.isEmpty, name.allSatisfy(Self.isKeyCharacter) else { throw .invalidKey }
            guard value.count <= Self.valueLimit else { throw .valueTooLong }
            guard pairs.count < Self.pairLimit else { throw .tooManyKeys }
            guard let key = String(validating: name, as: UTF8.self),
                let text = String(validating: value, as: UTF8.self)
            else { throw .notUTF8 }
            guard self[key] == nil else { throw .duplicateKey(key) }
            pairs.append((key, text))
        }
    }

    /// A letter, then letters, digits, `.`, `-`, `+`, `@`, `_` (RFC 7143 6.1), and `#` of vendor keys.
    private static func isKeyCharacter(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        case UInt8(ascii: "."), UInt8(ascii: "-"), UInt8(ascii: "+"), UInt8(ascii: "@"), UInt8(ascii: "_"),
            UInt8(ascii: "#"):
            true
        default: false
        }
    }

    subscript(key: String) -> String? { pairs.first { $0.key == key }?.value }

    var isEmpty: Bool { pairs.isEmpty }

    mutating func append(_ key: String, _ value: String) { pairs.append((key, value)) }

    var encoded: [UInt8] {
        var bytes: [UInt8] = []
        for (key, value) in pairs {
            bytes += key.utf8
            bytes.append(UInt8(ascii: "="))
            bytes += value.utf8
            bytes.append(0)
        }
        return bytes
    }

    static func == (left: TextKeys, right: TextKeys) -> Bool {
        left.pairs.elementsEqual(right.pairs) { $0.key == $1.key && $0.value == $1.value }
    }
}

/// Values as RFC 7143 6.1 writes them.
enum TextValue {
    /// A number: decimal, or hexadecimal after 0x; nil when it is none or does not fit 32 bits.
    static func number(_ text: String) -> UInt32? {
        let digits = text.utf8
        guard !digits.isEmpty else { return nil }
        if text.hasPrefix("0x") || text.hasPrefix("0X") {
            let hexadecimal = digits.dropFirst(2)
            guard !hexadecimal.isEmpty, hexadecimal.allSatisfy({ hexDigit($0) != nil }) else { return nil }
            return UInt32(Substring(hexadecimal), radix: 16)
        }
        guard digits.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        return UInt32(text)
    }

    static func boolean(_ text: String) -> Bool? {
        switch text {
        case "Yes": true
        case "No": false
        default: nil
        }
    }

    static func list(_ text: String) -> [String] { text.split(separator: ",").map(String.init) }

    /// A binary value: hexadecimal after 0x or base64 after 0b (RFC 7143 6.1, 4648). Nil when it is neither, when a
    /// digit is wrong, or when it has more than `limit` bytes.
    static func binary(_ text: String, limit: Int) -> [UInt8]? {
        let body = text.utf8.dropFirst(2)
        switch text.prefix(2) {
        case "0x", "0X": return hexadecimal(body, limit: limit)
        case "0b", "0B": return base64(body, limit: limit)
        default: return nil
        }
    }

    static func hexadecimal(_ bytes: [UInt8]) -> String {
        let digits = Array("0123456789abcdef".utf8)
        var text = Array("0x".utf8)
        for byte in bytes {
            text.append(digits[Int(byte >> 4)])
            text.append(digits[Int(byte & 15)])
        }
        return String(decoding: text, as: UTF8.self)
    }

    private static func hexDigit(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x30...0x39: byte - 0x30
        case 0x41...0x46: byte - 0x41 + 10
        case 0x61...0x66: byte - 0x61 + 10
        default: nil
        }
    }

    private static func hexadecimal(_ body: Substring.UTF8View, limit: Int) -> [UInt8]? {
        guard !body.isEmpty, (body.count + 1) / 2 <= limit else { return nil }
        var result: [UInt8] = []
        // With an odd number of digits the first one stands alone.
        var high: UInt8? = body.count % 2 == 0 ? nil : 0
        for character in body {
            guard let digit = hexDigit(character) else { return nil }
            if let first = high {
                result.append(first << 4 | digit)
                high = nil
            } else {
                high = digit
            }
        }
        return result
    }

    private static func base64(_ body: Substring.UTF8View, limit: Int) -> [UInt8]? {
        let padding = body.reversed().prefix { $0 == UInt8(ascii: "=") }.count
        guard !body.isEmpty, body.count % 4 == 0, padding <= 2, body.count / 4 * 3 - padding <= limit else {
            return nil
        }
        var result: [UInt8] = []
        var bits: UInt32 = 0
        var count = 0
        for character in body.dropLast(padding) {
            guard let value = base64Digit(character) else { return nil }
            bits = bits << 6 | UInt32(value)
            count += 6
            if count >= 8 {
                count -= 8
                result.append(UInt8(truncatingIfNeeded: bits >> UInt32(count)))
            }
        }
        return result
    }

    private static func base64Digit(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x41...0x5A: byte - 0x41
        case 0x61...0x7A: byte - 0x61 + 26
        case 0x30...0x39: byte - 0x30 + 52
        case UInt8(ascii: "+"): 62
        case UInt8(ascii: "/"): 63
        default: nil
        }
    }
}
