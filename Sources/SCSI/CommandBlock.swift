/// A command descriptor block of up to 16 bytes, held in two registers.
public struct CommandBlock: Sendable, Equatable {
    private var high: UInt64
    private var low: UInt64

    /// Bytes 0...7 and 8...15, most significant byte first.
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// The first 16 of `bytes`; missing ones are zero.
    public init(_ bytes: [UInt8]) {
        var words: (UInt64, UInt64) = (0, 0)
        for (index, byte) in bytes.prefix(16).enumerated() {
            if index < 8 {
                words.0 |= UInt64(byte) << (56 - 8 * index)
            } else {
                words.1 |= UInt64(byte) << (56 - 8 * (index - 8))
            }
        }
        self.init(high: words.0, low: words.1)
    }

    public var opcode: UInt8 { UInt8(high >> 56) }

    /// Where the CONTROL byte is: the last one of the lengths that SPC-4 4.2.5.1 gives to groups of operation codes.
    var controlIndex: Int? {
        switch opcode >> 5 {
        case 0: 5
        case 1, 2: 9
        case 4: 15
        case 5: 11
        default: nil
        }
    }

    /// The byte at `index`, 0...15.
    public subscript(index: Int) -> UInt8 {
        index < 8
            ? UInt8(truncatingIfNeeded: high >> UInt64(56 - 8 * index))
            : UInt8(truncatingIfNeeded: low >> UInt64(56 - 8 * (index - 8)))
    }

    /// Two bytes from `index`, big-endian.
    func word(_ index: Int) -> UInt16 { UInt16(self[index]) << 8 | UInt16(self[index + 1]) }

    /// Four bytes from `index`, big-endian.
    func long(_ index: Int) -> UInt32 { UInt32(word(index)) << 16 | UInt32(word(index + 2)) }

    /// Eight bytes from `index`, big-endian.
    func quad(_ index: Int) -> UInt64 { UInt64(long(index)) << 32 | UInt64(long(index + 4)) }
}

/// Big-endian reading of parameter lists; every access is checked by the array.
extension [UInt8] {
    func word(_ index: Int) -> UInt16 { UInt16(self[index]) << 8 | UInt16(self[index + 1]) }
    func long(_ index: Int) -> UInt32 { UInt32(word(index)) << 16 | UInt32(word(index + 2)) }
    func quad(_ index: Int) -> UInt64 { UInt64(long(index)) << 32 | UInt64(long(index + 4)) }

    mutating func append(word value: UInt16) { append(contentsOf: [UInt8(value >> 8), UInt8(value & 0xFF)]) }
    mutating func append(long value: UInt32) {
        append(word: UInt16(value >> 16))
        append(word: UInt16(value & 0xFFFF))
    }
    mutating func append(quad value: UInt64) {
        append(long: UInt32(value >> 32))
        append(long: UInt32(value & 0xFFFF_FFFF))
    }
    mutating func set(word value: UInt16, at index: Int) {
        self[index] = UInt8(value >> 8)
        self[index + 1] = UInt8(value & 0xFF)
    }
    mutating func set(long value: UInt32, at index: Int) {
        set(word: UInt16(value >> 16), at: index)
        set(word: UInt16(value & 0xFFFF), at: index + 2)
    }
    mutating func set(quad value: UInt64, at index: Int) {
        set(long: UInt32(value >> 32), at: index)
        set(long: UInt32(value & 0xFFFF_FFFF), at: index + 4)
    }
}
