/// Sixteen bytes that name an object of a pool; printed as lower-case UUID text.
struct ObjectID: Hashable, Sendable {
    let high: UInt64
    let low: UInt64

    static func random(from source: Surroundings = Surroundings()) -> ObjectID {
        // RFC 9562 version 4: random apart from version and variant.
        let high = (source.random() & 0xffff_ffff_ffff_0fff) | 0x4000
        let low = (source.random() & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000
        return ObjectID(high: high, low: low)
    }

    init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// Accepts the 36 characters of a UUID in either case.
    init?(text: String) {
        let bytes = Array(text.utf8)
        guard bytes.count == 36 else { return nil }
        var digits: [UInt8] = []
        for (index, byte) in bytes.enumerated() {
            if [8, 13, 18, 23].contains(index) {
                guard byte == UInt8(ascii: "-") else { return nil }
            } else {
                digits.append(byte)
            }
        }
        guard let parsed = hexWords(digits) else { return nil }
        self.init(high: parsed.high, low: parsed.low)
    }

    var text: String {
        let digits = hexDigits(high) + hexDigits(low)
        var result = ""
        for (index, digit) in digits.enumerated() {
            if [8, 12, 16, 20].contains(index) { result.append("-") }
            result.append(digit)
        }
        return result
    }
}

/// Names a volume for as long as it exists.
public struct VolumeID: Hashable, Sendable, CustomStringConvertible {
    let value: ObjectID

    init(_ value: ObjectID) { self.value = value }

    /// Parses UUID text; nil for anything else.
    public init?(_ text: String) {
        guard let value = ObjectID(text: text) else { return nil }
        self.value = value
    }

    /// A new random (version 4) identifier.
    public static func random() -> VolumeID { VolumeID(.random()) }

    /// Lower-case UUID text.
    public var description: String { value.text }
}

/// Names a snapshot, which may have several volumes as members.
public struct SnapshotID: Hashable, Sendable, CustomStringConvertible {
    let value: ObjectID

    init(_ value: ObjectID) { self.value = value }

    /// Parses UUID text; nil for anything else.
    public init?(_ text: String) {
        guard let value = ObjectID(text: text) else { return nil }
        self.value = value
    }

    /// A new random (version 4) identifier.
    public static func random() -> SnapshotID { SnapshotID(.random()) }

    /// Lower-case UUID text.
    public var description: String { value.text }
}

/// The SCSI identity of a volume: an NAA "IEEE Registered Extended" designator (SPC-4 7.8.6.6.5), 16 bytes.
///
/// The company id 5A5350h has the "locally administered" bit set, because the project has no registered one.
public struct NAA: Hashable, Sendable, CustomStringConvertible {
    let value: ObjectID

    init(_ value: ObjectID) { self.value = value }

    /// Parses 32 hexadecimal digits that begin with 6; nil for anything else.
    public init?(_ text: String) {
        guard let words = hexWords(Array(text.utf8)), words.high >> 60 == 6 else { return nil }
        value = ObjectID(high: words.high, low: words.low)
    }

    static func random(from source: Surroundings = Surroundings()) -> NAA {
        NAA(ObjectID(high: 0x65a5_3500_0000_0000 | (source.random() >> 28), low: source.random()))
    }

    /// 32 lower-case hexadecimal digits.
    public var description: String { hexDigits(value.high) + hexDigits(value.low) }

    /// The 16 bytes in the order of the designator.
    public var bytes: [UInt8] {
        [value.high, value.low].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (56 - 8 * $0)) } }
    }
}

private func hexWords(_ digits: [UInt8]) -> (high: UInt64, low: UInt64)? {
    guard digits.count == 32 else { return nil }
    var words: [UInt64] = [0, 0]
    for (index, digit) in digits.enumerated() {
        let nibble: UInt8
        switch digit {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): nibble = digit - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): nibble = digit - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): nibble = digit - UInt8(ascii: "A") + 10
        default: return nil
        }
        words[index / 16] = words[index / 16] << 4 | UInt64(nibble)
    }
    return (words[0], words[1])
}

private func hexDigits(_ word: UInt64) -> String {
    let text = String(word, radix: 16)
    return String(repeating: "0", count: 16 - text.count) + text
}
