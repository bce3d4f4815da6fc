/// What a target answers for itself, without any logical unit: REPORT LUNS, and commands to LUNs that are not there.
public enum AbsentLogicalUnit {
    /// Whether this is REPORT LUNS, which every LUN of a target answers alike.
    public static func isReportLUNs(_ cdb: CommandBlock) -> Bool { cdb.opcode == 0xA0 }

    /// - Parameter luns: in ascending order, each 0..<16,384.
    public static func reportLUNs(_ cdb: CommandBlock, luns: [Int]) -> CommandDisposition {
        let allocation = Int(cdb.long(6))
        guard allocation >= 16 else { return .end(.sense(.invalidCDB(byte: 6))) }
        var addresses: [Int]
        switch cdb[2] {
        case 0x00, 0x02: addresses = luns
        // Well-known logical units only: there are none.
        case 0x01: addresses = []
        default: return .end(.sense(.invalidCDB(byte: 2)))
        }
        addresses = Array(addresses.prefix((allocation - 8) / 8 + 1))
        var data: [UInt8] = []
        data.append(long: UInt32((cdb[2] == 0x01 ? 0 : luns.count) * 8))
        data.append(long: 0)
        for lun in addresses { data.append(quad: encode(lun)) }
        return .parameterData(Array(data.prefix(allocation)))
    }

    /// The single-level LUN format of SAM-5 4.7: peripheral addressing below 256, flat space above.
    public static func encode(_ lun: Int) -> UInt64 {
        lun < 256 ? UInt64(lun) << 48 : UInt64(0x4000 | lun) << 48
    }

    /// The LUN number in an 8-byte LUN field; nil when it uses another format or further levels.
    public static func decode(_ field: UInt64) -> Int? {
        guard field & 0x0000_FFFF_FFFF_FFFF == 0 else { return nil }
        let first = Int(field >> 48)
        switch first >> 14 {
        case 0: return first < 256 ? first : nil
        case 1: return first & 0x3FFF
        default: return nil
        }
    }

    /// INQUIRY and REQUEST SENSE are answered even here (SPC-4 6.6.1, 6.39.1).
    public static func begin(_ cdb: CommandBlock) -> CommandDisposition {
        switch cdb.opcode {
        case 0x12:
            if cdb[1] & 0x01 != 0 { return .end(.illegal(.logicalUnitNotSupported)) }
            return .parameterData(Array(InquiryData.absent.prefix(Int(cdb.word(3)))))
        case 0x03:
            let sense = SenseData.illegal(.logicalUnitNotSupported)
            return .parameterData(
                Array(sense.encoded(descriptorFormat: cdb[1] & 0x01 != 0).prefix(Int(cdb[4]))))
        default: return .end(.illegal(.logicalUnitNotSupported))
        }
    }
}
