/// An iSCSI TransportID (SPC-4 7.6.4.6): how parameter lists name an initiator port, or all ports of an initiator.
struct TransportID: Equatable {
    var name: String
    /// Nil in the format that names the initiator device, whichever its sessions.
    var isid: UInt64?

    /// The format with name and ISID.
    static func encoded(_ port: InitiatorPort) -> [UInt8] {
        let digits = String(port.isid, radix: 16)
        let isid = String(repeating: "0", count: max(0, 12 - digits.utf8.count)) + digits
        var name = Array("\(port.name),i,0x\(isid)".utf8) + [0]
        while name.count % 4 != 0 { name.append(0) }
        return [0x45, 0x00, UInt8(name.count >> 8), UInt8(name.count & 0xFF)] + name
    }

    /// Reads the TransportID that begins at `offset` and moves `offset` behind it.
    /// - Throws: INVALID FIELD IN PARAMETER LIST, pointing at it.
    init(_ list: [UInt8], _ offset: inout Int) throws(SenseData) {
        let start = offset
        let wrong = SenseData.invalidParameter(byte: UInt16(clamping: start))
        guard start + 4 <= list.count, list[start] & 0x0F == 0x05 else { throw wrong }
        let count = Int(list.word(start + 2))
        // At least a short name with its end, at most a name of 223 bytes with separator and ISID.
        guard (20...256).contains(count), count % 4 == 0, start + 4 + count <= list.count else { throw wrong }
        offset = start + 4 + count
        let text = list[start + 4..<offset].prefix { $0 != 0 }
        guard text.count < count, var name = String(validating: text, as: UTF8.self) else { throw wrong }
        switch list[start] >> 6 {
        case 0: break
        case 1:
            // The separator is ",i,0x", then twelve hexadecimal digits at most.
            guard let comma = name.firstIndex(of: ",") else { throw wrong }
            let rest = name[comma...].lowercased()
            guard rest.hasPrefix(",i,0x"), let value = UInt64(rest.dropFirst(5), radix: 16), value >> 48 == 0 else {
                throw wrong
            }
            isid = value
            name = String(name[..<comma])
        default: throw wrong
        }
        guard !name.isEmpty, name.utf8.count <= 223, !name.contains(",") else { throw wrong }
        self.name = name.lowercased()
    }
}
