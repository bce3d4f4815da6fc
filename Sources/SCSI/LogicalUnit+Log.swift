import BlockIO

/// LOG SENSE (SPC-4 6.8): what the unit counts.
extension LogicalUnit {
    private enum LogPage {
        static let supported: UInt8 = 0x00
        static let provisioning: UInt8 = 0x0C
        static let exceptions: UInt8 = 0x2F
        static let allSubpages: UInt8 = 0xFF
    }

    /// Resources are counted in sets of so many logical blocks, as a power of two: one MiB. It is the THRESHOLD
    /// EXPONENT of VPD page B2.
    var thresholdExponent: UInt8 { UInt8(max((1 << 20) / blockBytes, 1).trailingZeroBitCount) }

    func logSense(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        // PPC is obsolete, and there is nothing that could be saved (SP).
        if cdb[1] & 0x03 != 0 { throw .invalidCDB(byte: 1) }
        // Cumulative values; thresholds and defaults are not kept.
        guard cdb[2] >> 6 == 1 || cdb[2] >> 6 == 0 else { throw .invalidCDB(byte: 2) }
        let code = cdb[2] & 0x3F
        let subpage = cdb[3]
        var parameters: [UInt8]
        switch (code, subpage) {
        case (LogPage.supported, 0): parameters = supportedPages
        case (LogPage.supported, LogPage.allSubpages): parameters = supportedPages.flatMap { [$0, 0] }
        case (LogPage.provisioning, 0) where device.usage() != nil:
            parameters = provisioningParameters(from: cdb.word(5))
        // Parameter 0000h: no exception, no temperature.
        case (LogPage.exceptions, 0): parameters = cdb.word(5) == 0 ? [0, 0, 0x03, 4, 0, 0, 0xFF, 0] : []
        default: throw .invalidCDB(byte: subpage == 0 ? 2 : 3)
        }
        // A parameter pointer beyond the last one.
        if parameters.isEmpty { throw .invalidCDB(byte: 5) }
        var data: [UInt8] = [code | (subpage == 0 ? 0 : 0x40), subpage]
        data.append(word: UInt16(parameters.count))
        parameters.insert(contentsOf: data, at: 0)
        return .parameterData(Array(parameters.prefix(Int(cdb.word(7)))))
    }

    private var supportedPages: [UInt8] {
        device.usage() == nil
            ? [LogPage.supported, LogPage.exceptions] : [LogPage.supported, LogPage.provisioning, LogPage.exceptions]
    }

    /// Logical block provisioning (SBC-3 6.4.5): 0001h, what is left in the pool for all; 0002h, what this unit uses.
    private func provisioningParameters(from first: UInt16) -> [UInt8] {
        guard let usage = device.usage() else { return [] }
        let setBytes = UInt64(blockBytes) << UInt64(thresholdExponent)
        var data: [UInt8] = []
        // Scope: 10b, shared with other units; 01b, this one's own.
        let counts: [(UInt16, UInt64, UInt8)] = [
            (0x0001, usage.availableBytes / setBytes, 0x02),
            (0x0002, (usage.usedBytes + setBytes - 1) / setBytes, 0x01),
        ]
        for (code, count, scope) in counts where code >= first {
            data.append(word: code)
            // A binary list parameter.
            data += [0x03, 8]
            data.append(long: UInt32(clamping: count))
            data += [scope, 0, 0, 0]
        }
        return data
    }
}
