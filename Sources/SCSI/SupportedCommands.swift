/// What REPORT SUPPORTED OPERATION CODES tells (SPC-4 6.35): each command with its CDB usage data.
struct SupportedCommand: Sendable {
    let opcode: UInt8
    let serviceAction: UInt16?
    /// Bits that are looked at, for each byte of the CDB; its count is the CDB's length.
    let usage: [UInt8]

    private init(_ usage: [UInt8], serviceAction: UInt16? = nil) {
        opcode = usage[0]
        self.serviceAction = serviceAction
        self.usage = usage
    }

    private static func six(_ opcode: UInt8, _ b1: UInt8, _ b2: UInt8, _ b3: UInt8, _ b4: UInt8) -> Self {
        Self([opcode, b1, b2, b3, b4, 0x07])
    }

    /// LBA in 2...5, length in 7...8.
    private static func ten(_ opcode: UInt8, _ flags: UInt8) -> Self {
        Self([opcode, flags, 0xFF, 0xFF, 0xFF, 0xFF, 0x3F, 0xFF, 0xFF, 0x07])
    }

    /// LBA in 2...5, length in 6...9.
    private static func twelve(_ opcode: UInt8, _ flags: UInt8) -> Self {
        Self([opcode, flags] + [UInt8](repeating: 0xFF, count: 8) + [0x3F, 0x07])
    }

    /// LBA in 2...9, length in 10...13.
    private static func sixteen(_ opcode: UInt8, _ flags: UInt8) -> Self {
        Self([opcode, flags] + [UInt8](repeating: 0xFF, count: 12) + [0x3F, 0x07])
    }

    private static func inTen(_ opcode: UInt8, action: UInt16) -> Self {
        Self([opcode, UInt8(action), 0, 0, 0, 0, 0, 0xFF, 0xFF, 0x07], serviceAction: action)
    }

    private static func copyResults(_ action: UInt16) -> Self {
        Self(
            [0x84, 0x1F, 0xFF] + [UInt8](repeating: 0, count: 7) + [0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07],
            serviceAction: action)
    }

    private static func persistentOut(_ action: UInt16) -> Self {
        Self([0x5F, UInt8(action), 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x07], serviceAction: action)
    }

    static let all: [SupportedCommand] = [
        six(0x00, 0, 0, 0, 0), six(0x03, 0x01, 0, 0, 0xFF), six(0x08, 0x1F, 0xFF, 0xFF, 0xFF),
        six(0x0A, 0x1F, 0xFF, 0xFF, 0xFF), six(0x12, 0x01, 0xFF, 0xFF, 0xFF), six(0x15, 0x11, 0, 0, 0xFF),
        six(0x16, 0, 0, 0, 0), six(0x17, 0, 0, 0, 0), six(0x1A, 0x08, 0xFF, 0xFF, 0xFF),
        six(0x1B, 0x01, 0, 0x0F, 0xF7), six(0x1E, 0, 0, 0, 0x03),
        Self([0x25, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x01, 0x07]), ten(0x28, 0xF8), ten(0x2A, 0xF8),
        ten(0x2E, 0xFE), ten(0x2F, 0xFE), ten(0x34, 0x02), ten(0x35, 0x02),
        Self([0x37, 0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0x07]), ten(0x41, 0xF8),
        Self([0x42, 0x01, 0, 0, 0, 0, 0x3F, 0xFF, 0xFF, 0x07]),
        Self([0x55, 0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0x07]),
        Self([0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]), Self([0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]),
        Self([0x5A, 0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0x07]),
        inTen(0x5E, action: 0), inTen(0x5E, action: 1), inTen(0x5E, action: 2), inTen(0x5E, action: 3),
        persistentOut(0), persistentOut(1), persistentOut(2), persistentOut(3), persistentOut(4), persistentOut(5),
        persistentOut(6), persistentOut(7),
        Self([0x83, 0x1F] + [UInt8](repeating: 0, count: 8) + [0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07], serviceAction: 0),
        copyResults(0x00), copyResults(0x03), copyResults(0x04),
        sixteen(0x88, 0xF8),
        Self([0x89, 0xF8] + [UInt8](repeating: 0xFF, count: 8) + [0, 0, 0, 0xFF, 0x3F, 0x07]),
        sixteen(0x8A, 0xF8), sixteen(0x8B, 0xF8), sixteen(0x8E, 0xFE), sixteen(0x8F, 0xFE), sixteen(0x90, 0x02),
        sixteen(0x91, 0x02), sixteen(0x93, 0xF9),
        Self([0x9C, 0xF8] + [UInt8](repeating: 0xFF, count: 12) + [0x3F, 0x07]),
        Self([0x4D, 0, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x07]),
        Self([0x9E, 0x10] + [UInt8](repeating: 0xFF, count: 12) + [0, 0x07], serviceAction: 0x10),
        Self([0x9E, 0x12] + [UInt8](repeating: 0xFF, count: 12) + [0, 0x07], serviceAction: 0x12),
        Self([0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07]),
        Self([0xA3, 0x0A, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07], serviceAction: 0x0A),
        Self([0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07], serviceAction: 0x0C),
        Self([0xA3, 0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07], serviceAction: 0x0D),
        twelve(0xA8, 0xF8), twelve(0xAA, 0xF8), twelve(0xAE, 0xFE), twelve(0xAF, 0xFE),
        Self([0xB7, 0x1F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x07]),
    ]

    /// Command timeouts descriptor (SPC-4 6.35.4): nothing is promised.
    private static let timeouts: [UInt8] = [0x00, 0x0A] + [UInt8](repeating: 0, count: 10)

    /// - Parameter withTimeouts: the RCTD bit.
    static func list(withTimeouts: Bool) -> [UInt8] {
        var data: [UInt8] = [0, 0, 0, 0]
        for command in all {
            data += [command.opcode, 0]
            data.append(word: command.serviceAction ?? 0)
            data += [0, (withTimeouts ? 0x02 : 0) | (command.serviceAction == nil ? 0 : 0x01)]
            data.append(word: UInt16(command.usage.count))
            if withTimeouts { data += timeouts }
        }
        data.set(long: UInt32(data.count - 4), at: 0)
        return data
    }

    /// Supported as the standard says (011b) with usage data, or not supported (001b).
    static func one(_ command: SupportedCommand?, withTimeouts: Bool) -> [UInt8] {
        guard let command else { return [0, 0x01, 0, 0] }
        var data: [UInt8] = [0, 0x03 | (withTimeouts ? 0x80 : 0)]
        data.append(word: UInt16(command.usage.count))
        return data + command.usage + (withTimeouts ? timeouts : [])
    }
}

extension LogicalUnit {
    func maintenanceIn(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        let data: [UInt8]
        switch cdb[1] & 0x1F {
        case 0x0A: data = try reportTargetPortGroups(cdb, nexus.targetPort)
        case 0x0C: data = try reportSupportedOperationCodes(cdb)
        case 0x0D:
            // ATS, ATSS, CTSS, LURS, TRS; then I_T nexus reset is not there.
            data = cdb[2] & 0x80 != 0 ? [0xF8 | 0x02, 0, 0, 0x0C] + [UInt8](repeating: 0, count: 12) : [0xFA, 0, 0, 0]
        default: throw .invalidCDB(byte: 1)
        }
        return .parameterData(Array(data.prefix(Int(cdb.long(6)))))
    }

    private func reportSupportedOperationCodes(_ cdb: CommandBlock) throws(SenseData) -> [UInt8] {
        let withTimeouts = cdb[2] & 0x80 != 0
        let opcode = cdb[3]
        let action = cdb.word(4)
        let known = SupportedCommand.all.filter { $0.opcode == opcode }
        let hasActions = known.contains { $0.serviceAction != nil }
        switch cdb[2] & 0x07 {
        case 0: return SupportedCommand.list(withTimeouts: withTimeouts)
        case 1:
            if hasActions { throw .invalidCDB(byte: 2) }
            return SupportedCommand.one(known.first, withTimeouts: withTimeouts)
        case 2:
            if !known.isEmpty && !hasActions { throw .invalidCDB(byte: 2) }
            return SupportedCommand.one(known.first { $0.serviceAction == action }, withTimeouts: withTimeouts)
        case 3:
            let command = known.first { $0.serviceAction == nil || $0.serviceAction == action }
            return SupportedCommand.one(command, withTimeouts: withTimeouts)
        default: throw .invalidCDB(byte: 2)
        }
    }
}
