/// What tells one logical unit from another on every path that leads to it (SPC-4 7.8.6).
///
/// Two logical units with the same ``naa`` in one registry are one logical unit seen through two targets: they share
/// reservations and unit attentions. A clone has an identity of its own; a revert keeps it.
public struct LogicalUnitIdentity: Sendable, Hashable {
    /// The NAA 6 name as 32 lower-case hexadecimal digits, the first of which is `6`.
    public let naa: String
    /// The unit serial number (VPD page 80), at most 64 printable ASCII characters.
    public let serial: String
    /// T10 vendor identification, at most 8 printable ASCII characters.
    public let vendor: String
    /// Product identification, at most 16 printable ASCII characters.
    public let product: String
    /// Product revision level, at most 4 printable ASCII characters.
    public let revision: String

    /// Why an identity is not one.
    public enum Invalid: Error, Equatable, Sendable {
        /// The NAA name is not 32 hexadecimal digits that begin with 6.
        case naa(String)
        /// The named field is too long, empty, or holds characters other than printable ASCII.
        case field(name: String, value: String)
    }

    /// - Throws: ``Invalid`` when a field breaks the limits given at its declaration.
    public init(
        naa: String, serial: String, vendor: String = "STILLPNT", product: String = "Stillpoint",
        revision: String = "0001"
    ) throws(Invalid) {
        let digits = naa.lowercased()
        guard digits.utf8.count == 32, digits.utf8.first == UInt8(ascii: "6"),
            digits.utf8.allSatisfy({ Self.hexValue($0) != nil })
        else { throw .naa(naa) }
        let fields = [
            ("serial", serial, 64), ("vendor", vendor, 8), ("product", product, 16), ("revision", revision, 4),
        ]
        for (name, value, limit) in fields
        where value.isEmpty || value.utf8.count > limit || !value.utf8.allSatisfy({ (0x20...0x7E).contains($0) }) {
            throw .field(name: name, value: value)
        }
        self.naa = digits
        self.serial = serial
        self.vendor = vendor
        self.product = product
        self.revision = revision
    }

    /// The 16 bytes of ``naa``.
    var naaBytes: [UInt8] {
        let digits = naa.utf8.compactMap(Self.hexValue)
        return stride(from: 0, to: 32, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }

    private static func hexValue(_ character: UInt8) -> UInt8? {
        switch character {
        case 0x30...0x39: character - 0x30
        case 0x61...0x66: character - 0x61 + 10
        default: nil
        }
    }
}
