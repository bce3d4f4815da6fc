import Foundation

/// A configuration file of NetApp's Snap Creator Framework: one `NAME=VALUE` a line, `#` begins a comment line.
struct SnapCreatorFile: Equatable {
    struct Setting: Equatable {
        var name: String
        var value: String
        var line: Int
    }

    /// In the file's order, those without a value left out.
    private(set) var settings: [Setting] = []

    /// Larger than any configuration of Snap Creator.
    static let maximumBytes = 1 << 20

    /// - Throws: ``ConfigurationError``, with the line.
    init(_ data: Data) throws {
        guard data.count <= Self.maximumBytes else {
            throw ConfigurationError("it has \(data.count) bytes; a configuration of Snap Creator has some kilobytes")
        }
        guard !data.contains(0), let text = String(validating: data, as: UTF8.self) else {
            throw ConfigurationError("it is not text in UTF-8")
        }
        var lines: [String: Int] = [:]
        // A line ends with LF, or CR and LF, which are one Character.
        for (index, raw) in text.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline).enumerated() {
            let line = raw.trimmingCharacters(in: .whitespaces)
            if line.isEmpty || line.hasPrefix("#") { continue }
            guard let equals = line.firstIndex(of: "=") else {
                throw ConfigurationError("line \(index + 1) is no NAME=VALUE: \(line.prefix(40))")
            }
            let name = line[..<equals].trimmingCharacters(in: .whitespaces)
            let isLegal = name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_") }
            guard isLegal, let first = name.first, first.isLetter else {
                throw ConfigurationError("line \(index + 1): “\(name.prefix(40))” is no name of a setting")
            }
            if let before = lines[name] {
                throw ConfigurationError("line \(index + 1): \(name) was set in line \(before) already")
            }
            lines[name] = index + 1
            let value = Self.unquoted(line[line.index(after: equals)...].trimmingCharacters(in: .whitespaces))
            if !value.isEmpty { settings.append(Setting(name: name, value: value, line: index + 1)) }
        }
    }

    /// Quotes around a whole value are not a part of it.
    private static func unquoted(_ text: String) -> String {
        guard text.count >= 2, let first = text.first, first == text.last, first == "\"" || first == "'" else {
            return text
        }
        return String(text.dropFirst().dropLast())
    }

    subscript(name: String) -> String? { settings.first { $0.name == name }?.value }
}

extension String {
    fileprivate init?(validating data: Data, as encoding: UTF8.Type) {
        guard let text = String(data: data, encoding: .utf8) else { return nil }
        self = text
    }
}
