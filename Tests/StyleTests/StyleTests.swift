import Foundation
import Testing

/// The rules of docs/ARCHITECTURE.md that a machine can check. A rule that fails names the file and the line.
@Suite("Style")
struct StyleTests {
    static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    /// What each room may import of ours. A room that is not listed may import nothing of ours.
    static let allowedImports: [String: Set<String>] = [
        "CLinux": [], "CLibPQ": [], "CLibvirt": [], "CLibXML2": [], "CZlib": [],
        "BlockIO": ["CLinux"],
        "BlockStore": ["BlockIO", "CLinux"],
        "SCSI": ["BlockIO"],
        "ISCSI": ["SCSI", "BlockIO"],
        "Protection": [],
        "Catalog": [],
        "API": [],
        "PluginKit": ["CLinux"],
        "Node": ["API", "BlockIO", "BlockStore", "Catalog", "CLinux", "ISCSI", "Protection", "SCSI"],
        "stillpoint": ["API", "CLinux", "Node"],
        "stillpoint-agent": ["API", "CLinux", "PluginKit"],
        "plugins/filesystem": ["PluginKit", "CLinux"],
        "plugins/postgresql": ["PluginKit", "CLinux", "CLibPQ"],
        "plugins/hook": ["PluginKit", "CLinux"],
        "plugins/libvirt": ["PluginKit", "CLinux", "CLibvirt", "CLibXML2", "CZlib"],
    ]
    static let ours: Set<String> = [
        "CLinux", "CLibPQ", "CLibvirt", "CLibXML2", "CZlib", "BlockIO", "BlockStore", "SCSI", "ISCSI", "Protection",
        "Catalog", "API", "PluginKit", "Node",
    ]
    static let dataPlane: Set<String> = ["BlockIO", "BlockStore", "SCSI", "ISCSI"]
    static let bannedInDataPlane: Set<String> = [
        "Foundation", "FoundationEssentials", "GRDB", "Hummingbird", "AsyncHTTPClient", "NIOHTTP1",
        "NIOFoundationCompat",
    ]
    static let bannedNameParts = ["Manager", "Helper", "Utils", "Utilities", "Common"]

    struct SourceFile {
        var room: String
        var path: String
        var lines: [Substring]
    }

    static func files(under folder: String) -> [SourceFile] {
        let base = root.appending(path: folder)
        guard let walker = FileManager.default.enumerator(at: base, includingPropertiesForKeys: nil) else { return [] }
        var found: [SourceFile] = []
        for case let url as URL in walker where ["swift", "c", "h"].contains(url.pathExtension) {
            let relative = String(url.path.dropFirst(base.path.count + 1))
            let parts = relative.split(separator: "/")
            let room = parts[0] == "plugins" && parts.count > 2 ? "plugins/\(parts[1])" : String(parts[0])
            guard let text = try? String(contentsOf: url, encoding: .utf8) else { continue }
            let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
            found.append(SourceFile(room: room, path: "\(folder)/\(relative)", lines: lines))
        }
        return found
    }

    static func importedModule(_ line: Substring) -> String? {
        var words = line.split(separator: " ").map(String.init)
        while let first = words.first,
            first.hasPrefix("@") || ["public", "internal", "package", "private"].contains(first)
        {
            words.removeFirst()
        }
        guard words.count >= 2, words[0] == "import" else { return nil }
        let kinds: Set = ["struct", "class", "enum", "protocol", "func", "let", "var", "typealias"]
        let name = kinds.contains(words[1]) && words.count > 2 ? words[2] : words[1]
        return name.split(separator: ".").first.map(String.init)
    }

    @Test("dependencies between the rooms run one way")
    func dependenciesRunOneWay() {
        let sources = Self.files(under: "Sources")
        #expect(sources.count > 20, "the walk over Sources found too little to judge")
        for file in sources {
            guard let allowed = Self.allowedImports[file.room] else {
                Issue.record(
                    "\(file.path): the room '\(file.room)' has no place in the architecture; add it there first")
                continue
            }
            for (index, line) in file.lines.enumerated() {
                guard let module = Self.importedModule(line), Self.ours.contains(module), module != file.room else {
                    continue
                }
                if !allowed.contains(module) {
                    Issue.record("\(file.path):\(index + 1): \(file.room) may not import \(module)")
                }
            }
        }
    }

    @Test("the data plane imports no Foundation, no database and no HTTP")
    func dataPlaneStaysLean() {
        for file in Self.files(under: "Sources") where Self.dataPlane.contains(file.room) {
            for (index, line) in file.lines.enumerated() {
                guard let module = Self.importedModule(line) else { continue }
                #expect(!Self.bannedInDataPlane.contains(module), "\(file.path):\(index + 1): imports \(module)")
            }
        }
    }

    @Test("the pure rooms import nothing that does I/O")
    func protectionIsPure() {
        for file in Self.files(under: "Sources") where file.room == "Protection" {
            for (index, line) in file.lines.enumerated() {
                if let module = Self.importedModule(line) {
                    Issue.record("\(file.path):\(index + 1): Protection is pure logic and may not import \(module)")
                }
            }
        }
    }

    @Test("no file is longer than 800 lines, no line than 120 columns")
    func sizes() {
        for file in Self.files(under: "Sources") + Self.files(under: "Tests") {
            #expect(file.lines.count <= 801, "\(file.path) has \(file.lines.count) lines")
            for (index, line) in file.lines.enumerated() where line.utf8.count > 120 && line.count > 120 {
                Issue.record("\(file.path):\(index + 1): \(line.count) columns")
            }
        }
    }

    /// The name that a line declares as a type, if it does.
    static func declaredType(_ line: Substring) -> String? {
        let kinds: Set<Substring> = ["class", "struct", "enum", "actor", "protocol"]
        let words = line.split(separator: " ", maxSplits: 6)
        guard let kind = words.firstIndex(where: kinds.contains), kind + 1 < words.count,
            words[..<kind].allSatisfy({ $0.allSatisfy { $0.isLowercase || $0 == "@" || $0 == "(" || $0 == ")" } })
        else { return nil }
        return String(words[kind + 1].prefix { $0.isLetter || $0.isNumber })
    }

    @Test("no type or file is called Manager, Helper, Utils or Common")
    func names() {
        for file in Self.files(under: "Sources") + Self.files(under: "Tests") {
            let fileName = file.path.split(separator: "/").last.map(String.init) ?? ""
            for part in Self.bannedNameParts {
                #expect(!fileName.contains(part), "\(file.path): a name with '\(part)' says nothing")
            }
            for (index, line) in file.lines.enumerated() {
                guard let name = Self.declaredType(line) else { continue }
                for part in Self.bannedNameParts where name.contains(part) {
                    Issue.record("\(file.path):\(index + 1): a name with '\(part)' says nothing")
                }
            }
        }
    }

    @Test("every unchecked Sendable and nonisolated(unsafe) says why it is safe")
    func safetyComments() {
        let marks = ["@unchecked Sendable", "nonisolated(unsafe)"]
        for file in Self.files(under: "Sources") where file.path.hasSuffix(".swift") {
            for (index, line) in file.lines.enumerated() where marks.contains(where: line.contains) {
                let near = file.lines[max(0, index - 8)...min(file.lines.count - 1, index + 12)]
                #expect(near.contains { $0.contains("SAFETY:") }, "\(file.path):\(index + 1): lacks a SAFETY comment")
            }
        }
    }
}
