/// The mode parameters that an initiator can change; shared by all I_T nexuses, volatile.
struct ModeParameters: Equatable {
    /// Caching page, WCE: writes may stay in the volatile cache until SYNCHRONIZE CACHE.
    var writeCache = true
    /// Control page, D_SENSE.
    var descriptorSense = false
    /// Control page, SWP: software write protect.
    var softwareWriteProtect = false

    /// Which values of a page MODE SENSE asks for (SPC-4 6.11.3).
    enum Control: UInt8 {
        case current = 0
        case changeable = 1
        case defaults = 2
        case saved = 3
    }

    static let cachingPage: UInt8 = 0x08
    static let controlPage: UInt8 = 0x0A
    static let exceptionsPage: UInt8 = 0x1C
    static let allPages: UInt8 = 0x3F

    /// The bytes of the pages `code` asks for; nil when there is no such page.
    func pages(code: UInt8, control: Control) -> [UInt8]? {
        let values = control == .defaults ? ModeParameters() : self
        let known: [(UInt8, [UInt8])] = [
            (Self.cachingPage, values.caching(changeable: control == .changeable)),
            (Self.controlPage, values.control(changeable: control == .changeable)),
            (Self.exceptionsPage, [Self.exceptionsPage, 0x0A] + [UInt8](repeating: 0, count: 10)),
        ]
        let wanted = code == Self.allPages ? known : known.filter { $0.0 == code }
        return wanted.isEmpty ? nil : wanted.flatMap(\.1)
    }

    private func caching(changeable: Bool) -> [UInt8] {
        var page = [UInt8](repeating: 0, count: 20)
        page[0] = Self.cachingPage
        page[1] = 0x12
        page[2] = changeable || writeCache ? 0x04 : 0
        return page
    }

    private func control(changeable: Bool) -> [UInt8] {
        var page = [UInt8](repeating: 0, count: 12)
        page[0] = Self.controlPage
        page[1] = 0x0A
        // TST=001b: a task set for each I_T nexus.
        page[2] = (changeable ? 0 : 0x20) | (changeable || descriptorSense ? 0x04 : 0)
        // Unrestricted reordering: SIMPLE commands of one initiator may overtake each other.
        page[3] = changeable ? 0 : 0x10
        page[4] = changeable || softwareWriteProtect ? 0x08 : 0
        if !changeable { page.set(word: 0xFFFF, at: 8) }
        return page
    }

    /// Takes the pages of a MODE SELECT parameter list. Nothing is changed when one of them is wrong.
    /// - Parameter start: the offset of the first page in `list`.
    mutating func select(_ list: [UInt8], start: Int) throws(SenseData) {
        var new = self
        var offset = start
        while offset < list.count {
            guard offset + 2 <= list.count else { throw .illegal(.parameterListLengthError) }
            let code = list[offset] & 0x3F
            guard list[offset] & 0x40 == 0, let present = pages(code: code, control: .current), code != Self.allPages,
                let mask = pages(code: code, control: .changeable)
            else { throw .invalidParameter(byte: UInt16(offset)) }
            guard Int(list[offset + 1]) + 2 == present.count else { throw .invalidParameter(byte: UInt16(offset + 1)) }
            guard offset + present.count <= list.count else { throw .illegal(.parameterListLengthError) }
            for index in 2..<present.count where (list[offset + index] ^ present[index]) & ~mask[index] != 0 {
                throw .invalidParameter(byte: UInt16(offset + index))
            }
            switch code {
            case Self.cachingPage: new.writeCache = list[offset + 2] & 0x04 != 0
            case Self.controlPage:
                new.descriptorSense = list[offset + 2] & 0x04 != 0
                new.softwareWriteProtect = list[offset + 4] & 0x08 != 0
            default: break
            }
            offset += present.count
        }
        self = new
    }
}
