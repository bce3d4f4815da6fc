import BlockIO

/// Standard INQUIRY data and vital product data pages (SPC-4 6.6, 7.8; SBC-3 6.6).
enum InquiryData {
    /// In ascending order, as SPC-4 7.8.12 demands.
    static let supportedPages: [UInt8] = [0x00, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2]

    /// Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3.
    private static let versions: [UInt16] = [0x00A0, 0x0960, 0x0460, 0x04C0]

    static func standard(_ identity: LogicalUnitIdentity) -> [UInt8] {
        var data = [UInt8](repeating: 0, count: 96)
        data[2] = 0x06
        // HISUP, response data format 2.
        data[3] = 0x12
        data[4] = UInt8(data.count - 5)
        // TPGS=01b: REPORT TARGET PORT GROUPS, states change by themselves only; 3PC: EXTENDED COPY.
        data[5] = 0x18
        // MULTIP: more than one port.
        data[6] = 0x10
        // CMDQUE.
        data[7] = 0x02
        data.replaceSubrange(8..<16, with: padded(identity.vendor, 8))
        data.replaceSubrange(16..<32, with: padded(identity.product, 16))
        data.replaceSubrange(32..<36, with: padded(identity.revision, 4))
        for (index, version) in versions.enumerated() { data.set(word: version, at: 58 + 2 * index) }
        return data
    }

    /// What INQUIRY answers for a LUN that is not there: peripheral qualifier 011b, device type 1Fh.
    static let absent: [UInt8] = {
        var data = [UInt8](repeating: 0, count: 36)
        data[0] = 0x7F
        data[2] = 0x06
        data[3] = 0x12
        data[4] = 31
        data.replaceSubrange(8..<36, with: [UInt8](repeating: 0x20, count: 28))
        return data
    }()

    static func page(_ code: UInt8, _ body: [UInt8]) -> [UInt8] {
        [0x00, code, UInt8(body.count >> 8), UInt8(body.count & 0xFF)] + body
    }

    static func padded(_ text: String, _ count: Int) -> [UInt8] {
        let bytes = Array(text.utf8.prefix(count))
        return bytes + [UInt8](repeating: 0x20, count: count - bytes.count)
    }

    /// Device identification: the unit's NAA name first, then the T10 vendor designator, then the port and device it
    /// was reached through.
    static func designators(_ identity: LogicalUnitIdentity, _ port: TargetPort) -> [UInt8] {
        var body: [UInt8] = [0x01, 0x03, 0x00, 0x10] + identity.naaBytes
        body += designator(0x02, 0x01, padded(identity.vendor, 8) + Array(identity.serial.utf8))
        body += designator(
            0x51, 0x94, [0, 0, UInt8(port.relativeIdentifier >> 8), UInt8(port.relativeIdentifier & 0xFF)])
        body += designator(0x51, 0x95, [0, 0, UInt8(port.groupTag >> 8), UInt8(port.groupTag & 0xFF)])
        let tag = String(port.groupTag, radix: 16)
        let name = port.name + ",t,0x" + String(repeating: "0", count: 4 - tag.utf8.count) + tag
        body += designator(0x53, 0x98, nameString(name))
        body += designator(0x53, 0xA8, nameString(port.name))
        return body
    }

    private static func designator(_ codeSet: UInt8, _ kind: UInt8, _ value: [UInt8]) -> [UInt8] {
        [codeSet, kind, 0, UInt8(value.count)] + value
    }

    /// A SCSI name string: UTF-8, ended by a zero, its length a multiple of four, at most 252 bytes.
    private static func nameString(_ name: String) -> [UInt8] {
        var bytes = Array(name.utf8.prefix(247)) + [0]
        while bytes.count % 4 != 0 { bytes.append(0) }
        return bytes
    }

    /// HEADSUP, ORDSUP, SIMPSUP; V_SUP (a volatile cache that may be left out with FUA); LUICLR.
    static let extendedInquiry: [UInt8] = {
        var body = [UInt8](repeating: 0, count: 60)
        body[1] = 0x07
        body[2] = 0x01
        body[3] = 0x01
        return body
    }()

    static func blockLimits(
        _ limits: LogicalUnitLimits, _ geometry: BlockGeometry, _ atomicWriteBytes: Int, _ writeSameBytes: UInt64
    ) -> [UInt8] {
        let block = geometry.logicalBlockBytes
        let perPhysical = max(geometry.physicalBlockBytes / block, 1)
        var page = [UInt8](repeating: 0, count: 64)
        // WSNZ: WRITE SAME of "everything to the end" is not offered.
        page[4] = 0x01
        page[5] = UInt8(min(limits.compareAndWriteBytes / block, 255))
        page.set(word: UInt16(perPhysical), at: 6)
        page.set(long: UInt32(limits.transferBytes / block), at: 8)
        page.set(long: UInt32((1 << 20) / block), at: 12)
        page.set(long: UInt32(min(limits.unmapBytes / UInt64(block), 0xFFFF_FFFF)), at: 20)
        page.set(long: UInt32(limits.unmapDescriptors), at: 24)
        page.set(long: UInt32(perPhysical), at: 28)
        // UGAVALID, alignment 0.
        page.set(long: 0x8000_0000, at: 32)
        page.set(quad: writeSameBytes / UInt64(block), at: 36)
        // MAXIMUM ATOMIC TRANSFER LENGTH; no alignment, no granularity, no boundaries.
        page.set(long: UInt32(atomicWriteBytes / block), at: 44)
        return Array(page[4...])
    }
}
