/// A size as people write it: `10GiB`, `512MiB`, `1TiB` (powers of 1024), `10GB` (powers of 1000), or plain bytes.
struct ByteSize: Equatable, Sendable {
    var bytes: UInt64

    /// What a volume's size must be a multiple of.
    static let blockBytes: UInt64 = 4096
    static let maximumVolumeBytes: UInt64 = 64 << 40

    enum Problem: Error, Equatable, CustomStringConvertible {
        case notANumber(String)
        case unknownUnit(String)
        case tooLarge(String)

        var description: String {
            switch self {
            case .notANumber(let text):
                "'\(text)' is not a size. Write a whole number and a unit, e.g. 10GiB, 512MiB, 1TiB, or plain bytes"
            case .unknownUnit(let unit):
                "'\(unit)' is no unit of size. Use KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (of 1000)"
            case .tooLarge(let text): "'\(text)' is more than can be counted"
            }
        }
    }

    init(bytes: UInt64) { self.bytes = bytes }

    init(parsing text: String) throws(Problem) {
        let trimmed = text.trimmed
        let digits = trimmed.prefix { $0.isASCII && $0.isNumber }
        guard !digits.isEmpty else { throw .notANumber(text) }
        guard let count = UInt64(digits) else { throw .tooLarge(text) }
        let unit = String(trimmed.dropFirst(digits.count)).trimmed
        guard let factor = Self.units[unit.lowercased()] else {
            if unit.first == "." || unit.first == "," { throw .notANumber(text) }
            throw .unknownUnit(unit)
        }
        let (product, overflow) = count.multipliedReportingOverflow(by: factor)
        guard !overflow else { throw .tooLarge(text) }
        bytes = product
    }

    private static let units: [String: UInt64] = [
        "": 1, "b": 1,
        "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50,
        "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000, "tb": 1_000_000_000_000, "pb": 1_000_000_000_000_000,
    ]

    /// Whether a volume can have this size.
    ///
    /// - Returns: nil when it can, else why not and what would do.
    var problemAsVolumeSize: String? {
        if bytes < Self.blockBytes { return "A volume has at least 4KiB" }
        if bytes > Self.maximumVolumeBytes { return "A volume has at most 64TiB" }
        if !bytes.isMultiple(of: Self.blockBytes) {
            let below = bytes / Self.blockBytes * Self.blockBytes
            return "A volume's size is a multiple of 4096 bytes; \(bytes) is not. Near it are \(below) and "
                + "\(below + Self.blockBytes)"
        }
        return nil
    }
}

extension String {
    fileprivate var trimmed: String {
        var text = Substring(self)
        while text.first == " " { text.removeFirst() }
        while text.last == " " { text.removeLast() }
        return String(text)
    }
}
