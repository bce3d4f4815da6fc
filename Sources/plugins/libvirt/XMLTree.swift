import CLibXML2
import PluginKit

/// A document that libvirt wrote or will read, as libxml2 keeps it: what this program does not know stays as it was.
///
/// Not `Sendable`: a tree and its elements stay on the thread that made them.
final class XMLTree {
    /// A definition of a guest has some 10 KiB; one of more than this is no such thing.
    static let maximumBytes = 4 << 20

    fileprivate let document: xmlDocPtr

    /// - Throws: `badState` for text that is no XML.
    init(_ text: String) throws(PluginFailure) {
        let bytes = Array(text.utf8)
        guard bytes.count <= Self.maximumBytes else {
            throw PluginFailure(.badState, "\(bytes.count) bytes of XML are more than a guest's definition has")
        }
        // No network, no external entities, nothing on standard error.
        let options = Int32(
            XML_PARSE_NONET.rawValue | XML_PARSE_NOERROR.rawValue | XML_PARSE_NOWARNING.rawValue)
        let parsed = bytes.withUnsafeBytes { raw in
            xmlReadMemory(
                raw.baseAddress?.assumingMemoryBound(to: CChar.self), Int32(raw.count), nil, nil, options)
        }
        guard let parsed else {
            let reason = xmlGetLastError().flatMap { $0.pointee.message }.map { String(cString: $0).trimmedOfSpace }
            throw PluginFailure(.badState, "This is no XML: \(reason ?? "unknown error")")
        }
        document = parsed
    }

    deinit { xmlFreeDoc(document) }

    var root: XMLElement? { xmlDocGetRootElement(document).map { XMLElement($0, of: self) } }

    /// The elements that an XPath names, in the document's order; empty for a path that is none.
    func all(_ path: String) -> [XMLElement] { root?.all(path) ?? [] }

    func first(_ path: String) -> XMLElement? { all(path).first }

    /// Text of the first element or attribute that an XPath names.
    func text(_ path: String) -> String? { root?.text(path) }

    /// As UTF-8 text.
    var description: String {
        var buffer: UnsafeMutablePointer<xmlChar>?
        var count: Int32 = 0
        xmlDocDumpMemoryEnc(document, &buffer, &count, "UTF-8")
        guard let buffer else { return "" }
        defer { clibxml2_free(buffer) }
        return String(decoding: UnsafeBufferPointer(start: buffer, count: Int(count)), as: UTF8.self)
    }
}

/// One element of a tree.
struct XMLElement {
    /// Keeps the document alive for as long as an element of it is used.
    private let tree: XMLTree
    private let node: xmlNodePtr

    fileprivate init(_ node: xmlNodePtr, of tree: XMLTree) {
        self.node = node
        self.tree = tree
    }

    var name: String { String(cString: node.pointee.name) }

    /// The text within, of all its children.
    var text: String {
        get {
            guard let content = xmlNodeGetContent(node) else { return "" }
            defer { clibxml2_free(content) }
            return String(cString: content)
        }
        nonmutating set {
            // The text variant escapes what the content variant would read as markup.
            xmlNodeSetContent(node, nil)
            xmlNodeAddContent(node, newValue)
        }
    }

    /// An attribute's value; set to nil, it is removed.
    subscript(attribute: String) -> String? {
        get {
            guard let value = xmlGetProp(node, attribute) else { return nil }
            defer { clibxml2_free(value) }
            return String(cString: value)
        }
        nonmutating set {
            if let newValue { xmlSetProp(node, attribute, newValue) } else { xmlUnsetProp(node, attribute) }
        }
    }

    /// The elements that an XPath names as seen from here.
    func all(_ path: String) -> [XMLElement] { nodes(path) { $0.pointee.type == XML_ELEMENT_NODE } }

    func first(_ path: String) -> XMLElement? { all(path).first }

    func text(_ path: String) -> String? { nodes(path) { _ in true }.first?.text }

    /// Appends a new element.
    @discardableResult
    func append(_ name: String, _ attributes: [String: String] = [:]) -> XMLElement {
        let child = XMLElement(xmlNewChild(node, nil, name, nil), of: tree)
        for (key, value) in attributes.sorted(by: { $0.key < $1.key }) { child[key] = value }
        return child
    }

    /// Takes it out of the tree. Neither it nor anything within may be used after.
    func remove() {
        xmlUnlinkNode(node)
        xmlFreeNode(node)
    }

    private func nodes(_ path: String, where isWanted: (xmlNodePtr) -> Bool) -> [XMLElement] {
        guard let context = xmlXPathNewContext(tree.document) else { return [] }
        defer { xmlXPathFreeContext(context) }
        context.pointee.node = node
        guard let result = xmlXPathEvalExpression(path, context) else { return [] }
        defer { xmlXPathFreeObject(result) }
        guard result.pointee.type == XPATH_NODESET, let set = result.pointee.nodesetval else { return [] }
        return (0..<Int(set.pointee.nodeNr)).compactMap { index in
            guard let found = set.pointee.nodeTab[index], isWanted(found) else { return nil }
            return XMLElement(found, of: tree)
        }
    }
}
