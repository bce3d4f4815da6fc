import BlockIO

/// Cuts the byte stream into PDUs (RFC 7143 11.2). Holds no bytes itself.
struct PDUFraming {
    var headerDigest = false
    var dataDigest = false
    /// The longest data segment that is accepted, in bytes.
    var dataSegmentLimit: Int

    /// Where the parts of a PDU lie, in bytes from its beginning.
    struct Frame: Equatable {
        var header: BasicHeader
        var data: Range<Int>
        var byteCount: Int
        /// Only a PDU in whose data segment an error was found has one; its header is good.
        var hasDataDigestError = false
    }

    enum Step: Equatable {
        case frame(Frame)
        /// So many bytes of the PDU must be there before the next look; more than are there now.
        case needs(Int)
        case failed(FramingError)
    }

    /// After one of these the stream cannot be followed any more: the connection is closed.
    enum FramingError: Error, Equatable {
        case headerDigest
        case dataSegmentTooLong(Int)
        case unexpectedAdditionalHeader(Int)
    }

    /// Bytes of additional header segments that are accepted: an extended CDB of 32 bytes and a bidirectional length.
    static let additionalHeaderLimit = 32

    /// Looks at the PDU that begins at `bytes[0]`.
    func next(_ bytes: UnsafeRawBufferPointer) -> Step {
        guard bytes.count >= BasicHeader.byteCount else { return .needs(BasicHeader.byteCount) }
        let header = BasicHeader(bytes)
        let additional = header.additionalHeaderBytes
        guard additional <= Self.additionalHeaderLimit else { return .failed(.unexpectedAdditionalHeader(additional)) }
        var offset = BasicHeader.byteCount + additional
        if headerDigest {
            guard bytes.count >= offset + 4 else { return .needs(offset + 4) }
            guard Self.digest(bytes, 0..<offset) == Self.storedDigest(bytes, at: offset) else {
                return .failed(.headerDigest)
            }
            offset += 4
        }
        let count = header.dataSegmentBytes
        guard count <= dataSegmentLimit else { return .failed(.dataSegmentTooLong(count)) }
        let data = offset..<offset + count
        let padded = offset..<offset + paddedLength(count)
        offset = padded.upperBound
        if dataDigest && count > 0 { offset += 4 }
        guard bytes.count >= offset else { return .needs(offset) }
        var frame = Frame(header: header, data: data, byteCount: offset)
        if dataDigest && count > 0 {
            frame.hasDataDigestError =
                Self.digest(bytes, padded) != Self.storedDigest(bytes, at: padded.upperBound)
        }
        return .frame(frame)
    }

    static func digest(_ bytes: UnsafeRawBufferPointer, _ range: Range<Int>) -> UInt32 {
        CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[range]))
    }

    /// A digest on the wire is the CRC's least significant byte first (RFC 7143 13.1).
    private static func storedDigest(_ bytes: UnsafeRawBufferPointer, at offset: Int) -> UInt32 {
        UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }
}
