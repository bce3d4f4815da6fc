/// The parameter list of EXTENDED COPY (LID1) (SPC-4 6.4), decoded and checked as far as that goes without the units
/// that it names.
struct ExtendedCopyList: Sendable, Equatable {
    /// What RECEIVE COPY RESULTS (operating parameters) and VPD page 8F tell initiators.
    enum Limits {
        static let cscdDescriptors = 16
        static let segmentDescriptors = 64
        /// Bytes of all descriptors of one list.
        static let descriptorBytes = 16 * 32 + 64 * 32
        /// Bytes of one segment.
        static let segmentBytes: UInt64 = 256 << 20
        /// Copies of one unit that may be under way.
        static let concurrentCopies = 16
    }

    /// A logical unit, named by its NAA name, or one that is not described in a way that names one of ours.
    struct Unit: Sendable, Equatable {
        /// 32 hexadecimal digits; nil where the designator is none that a unit of ours has.
        var naa: String?
        /// Bytes of its logical blocks, as the initiator sees it.
        var blockBytes: Int
    }

    /// Blocks to be copied, in bytes of their units.
    struct Segment: Sendable, Equatable {
        var source: Int
        var destination: Int
        var length: Length
        var sourceLBA: UInt64
        var destinationLBA: UInt64
        var sourceOffset: UInt64 = 0
        var destinationOffset: UInt64 = 0

        enum Length: Sendable, Equatable {
            /// Of the source, or of the destination with the DC bit.
            case blocks(UInt64, ofDestination: Bool)
            case bytes(UInt64)
        }
    }

    /// Nil where the initiator does not want to ask for the result (LIST ID USAGE 11b).
    var identifier: UInt8?
    var units: [Unit] = []
    var segments: [Segment] = []

    private static let headerBytes = 16
    private static let cscdBytes = 32

    init(_ list: [UInt8]) throws(SenseData) {
        guard list.count >= Self.headerBytes else { throw .illegal(.parameterListLengthError) }
        let usage = (list[1] >> 3) & 0x03
        guard usage != 1 else { throw .invalidParameter(byte: 1) }
        if usage == 3 {
            guard list[0] == 0 else { throw .invalidParameter(byte: 0) }
        } else {
            identifier = list[0]
        }
        let cscdLength = Int(list.word(2))
        let segmentLength = Int(list.long(8))
        guard cscdLength + segmentLength <= Limits.descriptorBytes else {
            throw .illegal(.parameterListLengthError)
        }
        // Inline data is for devices that are no block devices.
        guard list.long(12) == 0 else { throw .illegal(.inlineDataLengthExceeded) }
        guard list.count == Self.headerBytes + cscdLength + segmentLength else {
            throw .illegal(.parameterListLengthError)
        }
        guard cscdLength % Self.cscdBytes == 0 else { throw .invalidParameter(byte: 2) }
        guard cscdLength / Self.cscdBytes <= Limits.cscdDescriptors else { throw .illegal(.tooManyTargetDescriptors) }
        for start in stride(from: Self.headerBytes, to: Self.headerBytes + cscdLength, by: Self.cscdBytes) {
            units.append(try Self.unit(list, start))
        }
        var offset = Self.headerBytes + cscdLength
        while offset < list.count {
            guard segments.count < Limits.segmentDescriptors else { throw .illegal(.tooManySegmentDescriptors) }
            segments.append(try Self.segment(list, &offset))
        }
    }

    /// An identification descriptor CSCD descriptor (E4h, SPC-4 6.4.5.2).
    private static func unit(_ list: [UInt8], _ start: Int) throws(SenseData) -> Unit {
        guard list[start] == 0xE4 else {
            throw SenseData(
                .illegalRequest, .unsupportedTargetDescriptor, field: .init(isInCDB: false, byte: UInt16(start)))
        }
        // Device type 00h; the LU ID TYPE and NUL fields are obsolete and ignored.
        guard list[start + 1] & 0x1F == 0 else {
            throw SenseData(
                .illegalRequest, .unsupportedTargetDescriptor, field: .init(isInCDB: false, byte: UInt16(start + 1)))
        }
        let blockBytes = Int(list.long(start + 28) & 0xFF_FFFF)
        let isNAA =
            list[start + 4] & 0x0F == 0x01 && list[start + 5] & 0x3F == 0x03 && list[start + 7] == 16
            && list[start + 8] >> 4 == 6
        guard isNAA else { return Unit(naa: nil, blockBytes: blockBytes) }
        var naa = ""
        for byte in list[start + 8..<start + 24] {
            naa += String(byte >> 4, radix: 16) + String(byte & 0x0F, radix: 16)
        }
        return Unit(naa: naa, blockBytes: blockBytes)
    }

    /// Block to block (02h), and block to block with offsets (0Ah) (SPC-4 6.4.6.4, 6.4.6.9).
    private static func segment(_ list: [UInt8], _ offset: inout Int) throws(SenseData) -> Segment {
        let start = offset
        let at = UInt16(clamping: start)
        guard start + 8 <= list.count else { throw .illegal(.parameterListLengthError) }
        let type = list[start]
        guard type == 0x02 || type == 0x0A else {
            throw SenseData(.illegalRequest, .unsupportedSegmentDescriptor, field: .init(isInCDB: false, byte: at))
        }
        let bytes = type == 0x02 ? 28 : 32
        guard Int(list.word(start + 2)) == bytes - 4 else { throw .invalidParameter(byte: at + 2) }
        guard start + bytes <= list.count else { throw .illegal(.parameterListLengthError) }
        offset = start + bytes
        var segment = Segment(
            source: Int(list.word(start + 4)), destination: Int(list.word(start + 6)), length: .bytes(0),
            sourceLBA: list.quad(start + 12), destinationLBA: list.quad(start + 20))
        if type == 0x02 {
            segment.length = .blocks(UInt64(list.word(start + 10)), ofDestination: list[start + 1] & 0x02 != 0)
        } else {
            segment.length = .bytes(UInt64(list.long(start + 8)))
            segment.sourceOffset = UInt64(list.word(start + 28))
            segment.destinationOffset = UInt64(list.word(start + 30))
        }
        return segment
    }
}
