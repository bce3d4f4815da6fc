/// SPC-4 4.5.6.
public enum SenseKey: UInt8, Sendable {
    case noSense = 0x0
    case notReady = 0x2
    case mediumError = 0x3
    case hardwareError = 0x4
    case illegalRequest = 0x5
    case unitAttention = 0x6
    case dataProtect = 0x7
    case copyAborted = 0xA
    case abortedCommand = 0xB
    case miscompare = 0xE
}

/// An additional sense code and its qualifier (SPC-4 annex F).
public struct AdditionalSense: Sendable, Hashable {
    public let code: UInt8
    public let qualifier: UInt8

    public init(_ code: UInt8, _ qualifier: UInt8) {
        self.code = code
        self.qualifier = qualifier
    }

    public static let none = Self(0x00, 0x00)
    public static let operationInProgress = Self(0x00, 0x16)
    public static let accessStateTransition = Self(0x04, 0x0A)
    public static let portInStandby = Self(0x04, 0x0B)
    public static let portUnavailable = Self(0x04, 0x0C)
    public static let sanitizeInProgress = Self(0x04, 0x1B)
    public static let accessStateChanged = Self(0x2A, 0x06)
    public static let unreachableCopyTarget = Self(0x08, 0x04)
    public static let thirdPartyDeviceFailure = Self(0x0D, 0x01)
    public static let inlineDataLengthExceeded = Self(0x26, 0x0B)
    public static let commandSequenceError = Self(0x2C, 0x00)
    public static let unexpectedUnsolicitedData = Self(0x0C, 0x0C)
    public static let notEnoughUnsolicitedData = Self(0x0C, 0x0D)
    public static let invalidFieldInInformationUnit = Self(0x0E, 0x03)
    public static let unrecoveredReadError = Self(0x11, 0x00)
    public static let parameterListLengthError = Self(0x1A, 0x00)
    public static let miscompare = Self(0x1D, 0x00)
    public static let invalidOperationCode = Self(0x20, 0x00)
    public static let blockAddressOutOfRange = Self(0x21, 0x00)
    public static let invalidFieldInCDB = Self(0x24, 0x00)
    public static let logicalUnitNotSupported = Self(0x25, 0x00)
    public static let invalidFieldInParameterList = Self(0x26, 0x00)
    public static let parameterNotSupported = Self(0x26, 0x01)
    public static let invalidReleaseOfReservation = Self(0x26, 0x04)
    public static let tooManyTargetDescriptors = Self(0x26, 0x06)
    public static let unsupportedTargetDescriptor = Self(0x26, 0x07)
    public static let tooManySegmentDescriptors = Self(0x26, 0x08)
    public static let unsupportedSegmentDescriptor = Self(0x26, 0x09)
    public static let writeProtected = Self(0x27, 0x00)
    public static let softwareWriteProtected = Self(0x27, 0x02)
    public static let spaceAllocationFailed = Self(0x27, 0x07)
    public static let mediumMayHaveChanged = Self(0x28, 0x00)
    public static let powerOn = Self(0x29, 0x00)
    public static let busDeviceReset = Self(0x29, 0x03)
    public static let nexusLoss = Self(0x29, 0x07)
    public static let modeParametersChanged = Self(0x2A, 0x01)
    public static let reservationsPreempted = Self(0x2A, 0x03)
    public static let reservationsReleased = Self(0x2A, 0x04)
    public static let registrationsPreempted = Self(0x2A, 0x05)
    public static let capacityChanged = Self(0x2A, 0x09)
    public static let thinSoftThreshold = Self(0x38, 0x07)
    public static let savingNotSupported = Self(0x39, 0x00)
    public static let mediumNotPresent = Self(0x3A, 0x00)
    public static let inquiryDataChanged = Self(0x3F, 0x03)
    public static let lunsChanged = Self(0x3F, 0x0E)
    public static let internalTargetFailure = Self(0x44, 0x00)
    public static let protocolServiceCRCError = Self(0x47, 0x05)
    public static let invalidMessage = Self(0x49, 0x00)
    public static let dataPhaseError = Self(0x4B, 0x00)
    public static let removalPrevented = Self(0x53, 0x02)
    public static let insufficientRegistrationResources = Self(0x55, 0x04)
    public static let copyTargetUnreachable = Self(0x0D, 0x02)
}

/// Why a command ended with CHECK CONDITION.
public struct SenseData: Error, Sendable, Equatable {
    public var key: SenseKey
    public var additional: AdditionalSense
    /// The INFORMATION field: an LBA, or the offset of the first difference of a comparison.
    public var information: UInt64?
    /// The COMMAND-SPECIFIC INFORMATION field: of EXTENDED COPY, the segment that failed.
    public var commandSpecific: UInt64?
    /// The byte of the CDB or the parameter list that is wrong (SKSV, SPC-4 4.5.2.4.2).
    public var field: FieldPointer?

    public struct FieldPointer: Sendable, Equatable {
        public var isInCDB: Bool
        public var byte: UInt16
    }

    public init(_ key: SenseKey, _ additional: AdditionalSense, information: UInt64? = nil, field: FieldPointer? = nil)
    {
        self.key = key
        self.additional = additional
        self.information = information
        self.field = field
    }

    static func illegal(_ additional: AdditionalSense) -> SenseData { SenseData(.illegalRequest, additional) }

    /// INVALID FIELD IN CDB, pointing at the byte.
    static func invalidCDB(byte: UInt16) -> SenseData {
        SenseData(.illegalRequest, .invalidFieldInCDB, field: .init(isInCDB: true, byte: byte))
    }

    /// INVALID FIELD IN PARAMETER LIST, pointing at the byte.
    static func invalidParameter(byte: UInt16) -> SenseData {
        SenseData(.illegalRequest, .invalidFieldInParameterList, field: .init(isInCDB: false, byte: byte))
    }

    /// - Parameter descriptorFormat: the D_SENSE bit of the control mode page.
    public func encoded(descriptorFormat: Bool) -> [UInt8] {
        descriptorFormat ? encodedAsDescriptors() : encodedFixed()
    }

    private func encodedFixed() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 18)
        // VALID only when the value fits the field's four bytes.
        let information = information.flatMap { $0 <= UInt64(UInt32.max) ? $0 : nil }
        bytes[0] = information == nil ? 0x70 : 0xF0
        bytes[2] = key.rawValue
        if let information {
            for index in 0..<4 { bytes[3 + index] = UInt8(truncatingIfNeeded: information >> (24 - 8 * index)) }
        }
        bytes[7] = 10
        if let commandSpecific {
            for index in 0..<4 { bytes[8 + index] = UInt8(truncatingIfNeeded: commandSpecific >> (24 - 8 * index)) }
        }
        bytes[12] = additional.code
        bytes[13] = additional.qualifier
        if let field {
            bytes[15] = field.isInCDB ? 0xC0 : 0x80
            bytes[16] = UInt8(field.byte >> 8)
            bytes[17] = UInt8(field.byte & 0xFF)
        }
        return bytes
    }

    private func encodedAsDescriptors() -> [UInt8] {
        var bytes: [UInt8] = [0x72, key.rawValue, additional.code, additional.qualifier, 0, 0, 0, 0]
        if let information {
            bytes += [0x00, 0x0A, 0x80, 0x00]
            for shift in stride(from: 56, through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: information >> shift))
            }
        }
        if let commandSpecific {
            bytes += [0x01, 0x0A, 0x00, 0x00]
            for shift in stride(from: 56, through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: commandSpecific >> shift))
            }
        }
        if let field {
            bytes += [
                0x02, 0x06, 0, 0, field.isInCDB ? 0xC0 : 0x80, UInt8(field.byte >> 8), UInt8(field.byte & 0xFF), 0,
            ]
        }
        bytes[7] = UInt8(bytes.count - 8)
        return bytes
    }
}

/// How a command ended (SAM-5 5.3.1).
public enum CommandEnd: Error, Sendable, Equatable {
    case good
    case sense(SenseData)
    case reservationConflict
    case busy
    /// There is no room for a command that has to wait for others.
    case taskSetFull
    /// Another nexus ended it; nothing is said about it any more (TAS=0).
    case aborted

    /// The status byte; ``aborted`` has none and gives TASK ABORTED.
    public var status: UInt8 {
        switch self {
        case .good: 0x00
        case .sense: 0x02
        case .busy: 0x08
        case .reservationConflict: 0x18
        case .taskSetFull: 0x28
        case .aborted: 0x40
        }
    }

    static func illegal(_ additional: AdditionalSense) -> CommandEnd { .sense(.illegal(additional)) }
}
