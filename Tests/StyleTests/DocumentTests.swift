import Foundation
import Testing

/// Documents that a machine can check: no link leads nowhere, no page is forgotten.
@Suite("Documents")
struct DocumentTests {
    private static var pages: [String] {
        let folder = StyleTests.root.appending(path: "docs")
        let found = FileManager.default.enumerator(atPath: folder.path)?.compactMap { $0 as? String } ?? []
        return ["README.md", "CHANGELOG.md"] + found.filter { $0.hasSuffix(".md") }.sorted().map { "docs/\($0)" }
    }

    private static func text(_ page: String) throws -> String {
        try String(contentsOf: StyleTests.root.appending(path: page), encoding: .utf8)
    }

    @Test("every link between documents leads to a file")
    func links() throws {
        #expect(Self.pages.count > 15)
        for page in Self.pages {
            let folder = StyleTests.root.appending(path: page).deletingLastPathComponent()
            for match in try Self.text(page).matches(of: /\]\(([^)#\s]+)(#[^)]*)?\)/) {
                let link = String(match.1)
                if link.contains("://") { continue }
                let target = folder.appending(path: link).standardizedFileURL.path
                #expect(FileManager.default.fileExists(atPath: target), "\(page) links to \(link)")
            }
        }
    }

    @Test("every page is in the index docs/README.md")
    func index() throws {
        let index = try Self.text("docs/README.md")
        for page in Self.pages where page.hasPrefix("docs/") && page != "docs/README.md" {
            let name = page.dropFirst("docs/".count)
            #expect(index.contains("](\(name))"), "\(page) is not in docs/README.md")
        }
    }
}
