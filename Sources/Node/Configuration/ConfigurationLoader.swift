import API
public import Foundation
import Yams

/// Something that is wrong with the configuration.
public struct ConfigurationProblem: Error, Sendable, Equatable, CustomStringConvertible {
    /// `FILE:LINE`, `FILE`, `environment NAME` or `flag --NAME`.
    public var location: String
    public var message: String

    public var description: String { "\(location): \(message)" }

    init(_ location: String, _ message: String) {
        self.location = location
        self.message = message
    }
}

/// All that is wrong with a configuration.
public struct ConfigurationInvalid: Error, Sendable, CustomStringConvertible {
    public var problems: [ConfigurationProblem]

    public var description: String {
        "the configuration has \(problems.count) problem\(problems.count == 1 ? "" : "s"):\n"
            + problems.map { "  \($0)" }.joined(separator: "\n")
    }
}

extension NodeConfiguration {
    /// The file that is read where none is named, if it exists.
    public static let defaultFile = "/etc/stillpoint/node.yaml"

    /// Puts file, environment and flags together.
    ///
    /// - Parameters:
    ///   - file: A file that must exist; nil for ``defaultFile`` if it exists.
    ///   - environment: `STILLPOINT_…` variables; others are ignored.
    ///   - flags: By name without dashes, e.g. `["data": "/srv/sp", "api-listen": "127.0.0.1:0"]`.
    /// - Throws: ``ConfigurationInvalid`` with everything that is wrong.
    public static func load(
        file: String? = nil, environment: [String: String] = ProcessInfo.processInfo.environment,
        flags: [String: String] = [:]
    ) throws -> NodeConfiguration {
        let (configuration, problems) = read(file: file, environment: environment, flags: flags)
        guard problems.isEmpty else { throw ConfigurationInvalid(problems: problems) }
        return configuration
    }

    /// Everything that is wrong, in the order file, environment, flags, whole; for `configcheck`. Nothing is changed.
    public static func check(
        file: String? = nil, environment: [String: String] = ProcessInfo.processInfo.environment,
        flags: [String: String] = [:]
    ) -> [ConfigurationProblem] {
        read(file: file, environment: environment, flags: flags).problems
    }

    private static func read(
        file: String?, environment: [String: String], flags: [String: String]
    ) -> (configuration: NodeConfiguration, problems: [ConfigurationProblem]) {
        var configuration = NodeConfiguration(environment: environment)
        var problems: [ConfigurationProblem] = []
        var places: [String: String] = [:]
        let path = file ?? environment["STILLPOINT_CONFIG"] ?? defaultFile
        let isNamed = file != nil || environment["STILLPOINT_CONFIG"] != nil
        if isNamed || FileManager.default.fileExists(atPath: path) {
            problems += configuration.apply(file: path, places: &places)
        }
        for setting in ConfigurationSetting.all {
            guard let text = environment[setting.environment], !text.isEmpty else { continue }
            let place = "environment \(setting.environment)"
            places[setting.key] = place
            if let message = setting.apply(text, &configuration) { problems.append(.init(place, message)) }
        }
        for (flag, text) in flags.sorted(by: { $0.key < $1.key }) {
            guard let setting = ConfigurationSetting.all.first(where: { $0.flag == flag }) else {
                problems.append(.init("flag --\(flag)", "there is no such setting"))
                continue
            }
            places[setting.key] = "flag --\(flag)"
            if let message = setting.apply(text, &configuration) {
                problems.append(.init("flag --\(flag)", message))
            }
        }
        if problems.isEmpty { problems += configuration.check(places: places) }
        return (configuration, problems)
    }

    /// What is wrong with the values taken together and with the files they name.
    public func check() -> [ConfigurationProblem] { check(places: [:]) }

    private func check(places: [String: String]) -> [ConfigurationProblem] {
        var problems: [ConfigurationProblem] = []
        func report(_ key: String, _ message: String) {
            problems.append(.init(places[key] ?? "default \(key)", message))
        }
        if (apiCertificateFile == nil) != (apiKeyFile == nil) {
            report(
                apiCertificateFile == nil ? "api.key" : "api.certificate",
                "api.certificate and api.key are given together or not at all")
        }
        for (key, file) in [("api.certificate", apiCertificateFile), ("api.key", apiKeyFile)] {
            guard let file, !FileManager.default.isReadableFile(atPath: file) else { continue }
            report(key, "cannot read \(file)")
        }
        if apiListen.port == iscsiListen.port, apiListen.port != 0, apiListen.host == iscsiListen.host {
            report("iscsi.listen", "is the same as api.listen (\(apiListen))")
        }
        let addresses = [iscsiListen, apiListen] + iscsiPortals.map(\.address)
        for (index, address) in addresses.enumerated() where index > 1 && address.port != 0 {
            if addresses[..<index].contains(address) { report("iscsi.portals", "names \(address) twice") }
        }
        for group in iscsiGroups.keys.sorted() where group != 1 && !iscsiPortals.contains(where: { $0.group == group })
        {
            report("iscsi.groups", "names the group \(group), in which there is no portal")
        }
        if dataDirectory.isEmpty || dataDirectory == "/" {
            report("data", "must name a directory of its own")
        }
        var isDirectory: ObjCBool = false
        if FileManager.default.fileExists(atPath: dataDirectory, isDirectory: &isDirectory), !isDirectory.boolValue {
            report("data", "\(dataDirectory) is not a directory")
        }
        return problems
    }

    // MARK: The file

    private mutating func apply(file: String, places: inout [String: String]) -> [ConfigurationProblem] {
        let text: String
        do {
            let data = try Data(contentsOf: URL(fileURLWithPath: file))
            guard data.count <= 1 << 20 else { return [.init(file, "is larger than 1 MiB")] }
            guard let decoded = String(data: data, encoding: .utf8) else { return [.init(file, "is not UTF-8 text")] }
            text = decoded
        } catch {
            return [.init(file, "cannot be read: \(reasonText(error))")]
        }
        do {
            guard let root = try compose(yaml: text) else { return [] }
            guard case .mapping(let mapping) = root else {
                return [.init(line(file, root), "must be a mapping of settings, such as data: /srv/stillpoint")]
            }
            return apply(mapping, prefix: "", file: file, places: &places)
        } catch let error as YamlError {
            return [Self.problem(error, file)]
        } catch {
            return [.init(file, "is not YAML: \(error)")]
        }
    }

    private mutating func apply(
        _ mapping: Yams.Node.Mapping, prefix: String, file: String, places: inout [String: String]
    ) -> [ConfigurationProblem] {
        var problems: [ConfigurationProblem] = []
        var seen: Set<String> = []
        for (keyNode, value) in mapping {
            let place = line(file, keyNode)
            guard let name = keyNode.string else {
                problems.append(.init(place, "a setting's name must be text"))
                continue
            }
            let key = prefix + name
            guard seen.insert(key).inserted else {
                problems.append(.init(place, "\"\(key)\" is given twice"))
                continue
            }
            if case .mapping(let nested) = value,
                ConfigurationSetting.all.contains(where: { $0.key.hasPrefix(key + ".") })
            {
                problems += apply(nested, prefix: key + ".", file: file, places: &places)
            } else if let setting = ConfigurationSetting.byKey[key] {
                places[key] = place
                guard let text = Self.text(value) else {
                    problems.append(.init(place, "\"\(key)\" must have one value"))
                    continue
                }
                if let message = setting.apply(text, &self) { problems.append(.init(place, "\(key) \(message)")) }
            } else {
                problems.append(.init(place, Self.unknown(key)))
            }
        }
        return problems
    }

    /// A scalar's text, or a sequence of scalars joined by commas.
    private static func text(_ node: Yams.Node) -> String? {
        switch node {
        case .scalar(let scalar): scalar.string.isEmpty ? nil : scalar.string
        case .sequence(let sequence):
            sequence.allSatisfy { $0.scalar != nil } ? sequence.compactMap(\.string).joined(separator: ",") : nil
        default: nil
        }
    }

    private static func unknown(_ key: String) -> String {
        let sections = Set(ConfigurationSetting.all.compactMap { $0.key.split(separator: ".").first.map(String.init) })
        if sections.contains(key) { return "\"\(key)\" needs settings below it, indented" }
        let known = ConfigurationSetting.all.map(\.key)
        let near = known.min { distance($0, key) < distance($1, key) }
        // `iscsiListen` is as near to `iscsi.listen` as a person would say.
        if let near, distance(near, key.lowercased()) <= 3 {
            return "unknown setting \"\(key)\"; did you mean \"\(near)\"?"
        }
        return "unknown setting \"\(key)\"; known are \(known.joined(separator: ", "))"
    }

    /// Levenshtein's distance, for "did you mean".
    private static func distance(_ left: String, _ right: String) -> Int {
        let right = Array(right)
        var row = Array(0...right.count)
        for (index, character) in left.enumerated() {
            var previous = row[0]
            row[0] = index + 1
            for column in right.indices {
                let substitution = previous + (character == right[column] ? 0 : 1)
                previous = row[column + 1]
                row[column + 1] = min(substitution, row[column] + 1, previous + 1)
            }
        }
        return row[right.count]
    }

    private func line(_ file: String, _ node: Yams.Node) -> String {
        node.mark.map { "\(file):\($0.line)" } ?? file
    }

    private static func problem(_ error: YamlError, _ file: String) -> ConfigurationProblem {
        switch error {
        case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
            .composer(_, let problem, let mark, _):
            ConfigurationProblem("\(file):\(mark.line)", "is not YAML: \(problem)")
        case .duplicatedKeysInMapping(let duplicates, let context):
            ConfigurationProblem(
                "\(file):\(context.mark.line)",
                "given twice: \(duplicates.joined(separator: ", "))")
        default: ConfigurationProblem(file, "is not YAML: \(error)")
        }
    }
}
