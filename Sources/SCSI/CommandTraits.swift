/// What the gate before every command needs to know of an operation code.
struct CommandTraits: Sendable {
    /// How reservations treat a command from an I_T nexus that does not hold them.
    enum Access: UInt8, Sendable {
        /// Allowed in spite of every reservation.
        case always
        /// Allowed in spite of persistent reservations, but not of RESERVE(6).
        case inquiry
        /// Conflicts with exclusive access.
        case read
        /// Conflicts with write exclusive and exclusive access.
        case write
        /// Checked by the command itself.
        case own
    }
    var access: Access
    /// INQUIRY, REPORT LUNS and REQUEST SENSE neither report nor clear a unit attention.
    var bypassesAttention = false
    /// Changes the medium: refused when it is write-protected.
    var writes = false

    static let unknown = CommandTraits(access: .always)

    /// Indexed by operation code.
    static let table: [CommandTraits] = {
        var table = [CommandTraits](repeating: unknown, count: 256)
        for opcode in [0x12, 0xA0, 0x03] { table[opcode] = .init(access: .always, bypassesAttention: true) }
        table[0x00] = .init(access: .inquiry)
        for opcode in [0x25, 0x9E] { table[opcode] = .init(access: .inquiry) }
        for opcode in [0x08, 0x28, 0xA8, 0x88, 0x2F, 0xAF, 0x8F, 0x34, 0x90, 0x37, 0xB7] {
            table[opcode] = .init(access: .read)
        }
        for opcode in [0x0A, 0x2A, 0xAA, 0x8A, 0x2E, 0xAE, 0x8E, 0x41, 0x93, 0x42, 0x89, 0x8B, 0x9C] {
            table[opcode] = .init(access: .write, writes: true)
        }
        for opcode in [0x35, 0x91] { table[opcode] = .init(access: .write) }
        for opcode in [0x15, 0x55, 0x1A, 0x5A, 0x48, 0x83, 0x84] { table[opcode] = .init(access: .write) }
        for opcode in [0x1B, 0x1E, 0x16, 0x56, 0x17, 0x57, 0x5E, 0x5F] { table[opcode] = .init(access: .own) }
        for opcode in [0xA3, 0x4D] { table[opcode] = .init(access: .inquiry) }
        return table
    }()
}
