import NIOCore

/// Operation codes (RFC 7143 11.2.1.2); the immediate bit is not part of them.
enum Opcode: UInt8 {
    case nopOut = 0x00
    case scsiCommand = 0x01
    case taskManagement = 0x02
    case loginRequest = 0x03
    case textRequest = 0x04
    case dataOut = 0x05
    case logoutRequest = 0x06
    case snack = 0x10
    case nopIn = 0x20
    case scsiResponse = 0x21
    case taskManagementResponse = 0x22
    case loginResponse = 0x23
    case textResponse = 0x24
    case dataIn = 0x25
    case logoutResponse = 0x26
    case readyToTransfer = 0x31
    case asyncMessage = 0x32
    case reject = 0x3F
}

/// The 48 bytes of a basic header segment, as six big-endian words (RFC 7143 11.2.1).
struct BasicHeader: Equatable {
    static let byteCount = 48
    /// The reserved value of task tags.
    static let reservedTag: UInt32 = 0xFFFF_FFFF

    private var words: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)

    /// - Precondition: `bytes` has at least 48 bytes.
    init(_ bytes: UnsafeRawBufferPointer) {
        precondition(bytes.count >= Self.byteCount)
        func word(_ index: Int) -> UInt64 {
            UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8 * index, as: UInt64.self))
        }
        words = (word(0), word(1), word(2), word(3), word(4), word(5))
    }

    init(_ opcode: Opcode, flags: UInt8 = 0x80) {
        words = (UInt64(opcode.rawValue) << 56 | UInt64(flags) << 48, 0, 0, 0, 0, 0)
    }

    static func == (left: BasicHeader, right: BasicHeader) -> Bool { left.words == right.words }

    func write(to buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(words.0, words.1, words.2, words.3, words.4, words.5)
    }

    // MARK: Fields that all PDUs have

    var isImmediate: Bool { words.0 & 1 << 62 != 0 }
    var rawOpcode: UInt8 { UInt8(words.0 >> 56) & 0x3F }
    var opcode: Opcode? { Opcode(rawValue: rawOpcode) }
    var flags: UInt8 {
        get { UInt8(truncatingIfNeeded: words.0 >> 48) }
        set { words.0 = words.0 & ~(0xFF << 48) | UInt64(newValue) << 48 }
    }
    /// The F bit (the T bit of login requests).
    var isFinal: Bool { flags & 0x80 != 0 }
    /// Bytes of additional header segments.
    var additionalHeaderBytes: Int { Int(UInt8(truncatingIfNeeded: words.0 >> 24)) * 4 }
    /// Bytes of the data segment, without padding.
    var dataSegmentBytes: Int {
        get { Int(words.0 & 0xFF_FFFF) }
        set { words.0 = words.0 & ~0xFF_FFFF | UInt64(newValue & 0xFF_FFFF) }
    }
    /// Bytes 8...15.
    var lun: UInt64 {
        get { words.1 }
        set { words.1 = newValue }
    }
    var initiatorTaskTag: UInt32 {
        get { UInt32(words.2 >> 32) }
        set { words.2 = words.2 & 0xFFFF_FFFF | UInt64(newValue) << 32 }
    }

    /// The four bytes at `offset`, a multiple of 4 from 16 on.
    subscript(long offset: Int) -> UInt32 {
        get {
            let word = self[word: offset / 8]
            return offset % 8 == 0 ? UInt32(word >> 32) : UInt32(word & 0xFFFF_FFFF)
        }
        set {
            let old = self[word: offset / 8]
            self[word: offset / 8] =
                offset % 8 == 0
                ? old & 0xFFFF_FFFF | UInt64(newValue) << 32 : old & ~0xFFFF_FFFF | UInt64(newValue)
        }
    }

    /// The byte at `offset`, 0...47.
    subscript(byte offset: Int) -> UInt8 {
        get { UInt8(truncatingIfNeeded: self[word: offset / 8] >> UInt64(56 - 8 * (offset % 8))) }
        set {
            let shift = UInt64(56 - 8 * (offset % 8))
            self[word: offset / 8] = self[word: offset / 8] & ~(0xFF << shift) | UInt64(newValue) << shift
        }
    }

    /// Eight bytes from `8 * index`.
    subscript(word index: Int) -> UInt64 {
        get {
            switch index {
            case 0: words.0
            case 1: words.1
            case 2: words.2
            case 3: words.3
            case 4: words.4
            default: words.5
            }
        }
        set {
            switch index {
            case 0: words.0 = newValue
            case 1: words.1 = newValue
            case 2: words.2 = newValue
            case 3: words.3 = newValue
            case 4: words.4 = newValue
            default: words.5 = newValue
            }
        }
    }
}

/// The names of header fields that only some PDUs have; the offsets are those of RFC 7143 11.
extension BasicHeader {
    /// Target transfer tag of Data-Out, NOP and text PDUs; referenced task tag of task management requests.
    var targetTransferTag: UInt32 {
        get { self[long: 20] }
        set { self[long: 20] = newValue }
    }
    /// CmdSN of requests, StatSN of responses.
    var sequenceNumber: UInt32 {
        get { self[long: 24] }
        set { self[long: 24] = newValue }
    }
    /// ExpStatSN of requests, ExpCmdSN of responses.
    var expectedNumber: UInt32 {
        get { self[long: 28] }
        set { self[long: 28] = newValue }
    }
    var maxCmdSN: UInt32 {
        get { self[long: 32] }
        set { self[long: 32] = newValue }
    }
    /// DataSN of data PDUs, R2TSN, ExpDataSN of SCSI responses.
    var dataSN: UInt32 {
        get { self[long: 36] }
        set { self[long: 36] = newValue }
    }
    var bufferOffset: UInt32 {
        get { self[long: 40] }
        set { self[long: 40] = newValue }
    }
    /// Residual count of SCSI responses and Data-In, desired length of R2T.
    var residual: UInt32 {
        get { self[long: 44] }
        set { self[long: 44] = newValue }
    }
    /// Expected data transfer length of SCSI commands.
    var expectedTransferBytes: UInt32 { self[long: 20] }
}

/// Rounded up to whole 4-byte words, as every segment on the wire is.
func paddedLength(_ count: Int) -> Int { (count + 3) & ~3 }

/// Reasons of a Reject PDU (RFC 7143 11.17.1).
enum RejectReason: UInt8 {
    case dataDigestError = 0x02
    case snackReject = 0x03
    case protocolError = 0x04
    case commandNotSupported = 0x05
    case immediateCommandReject = 0x06
    case taskInProgress = 0x07
    case invalidPDUField = 0x09
    case longOperationReject = 0x0A
}
