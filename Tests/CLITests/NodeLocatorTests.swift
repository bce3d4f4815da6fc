import API
import Foundation
import Testing

@testable import stillpoint

@Suite("Finding the node")
struct NodeLocatorTests {
    private func withRunDirectory<Value>(
        _ nodes: [String: NodeRecord], _ body: (NodeLocator) throws -> Value
    ) throws -> Value {
        let folder = "/tmp/sp-locate-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        for (name, node) in nodes {
            try APIJSON.encoder().encode(node).write(to: URL(filePath: folder + "/" + name))
        }
        return try body(
            NodeLocator(
                environment: ["STILLPOINT_RUN_DIR": folder, "HOME": "/home/x"], user: 7, isReadable: { _ in false }))
    }

    private let here = NodeRecord(
        api: "http://127.0.0.1:11170", tokenFile: "/d/admin-token", authorityFile: nil, pid: getpid())
    private let wide = NodeRecord(
        api: "https://0.0.0.0:11171", tokenFile: "/e/admin-token", authorityFile: "/e/pki/ca.pem", pid: getpid())

    @Test("the node of this machine is found with its token")
    func own() throws {
        try withRunDirectory(["node.json": here]) { (locator: NodeLocator) throws in
            let address = try locator.locate(api: nil, tokenFile: nil, authorityFile: nil)
            #expect(address == NodeAddress(api: here.api, tokenFile: "/d/admin-token", authorityFile: nil))
        }
    }

    @Test("without a node and an address it is an unreachable node, with what to do")
    func none() throws {
        try withRunDirectory([:]) { (locator: NodeLocator) throws in
            let error = #expect(throws: CommandFailure.self) {
                try locator.locate(api: nil, tokenFile: nil, authorityFile: nil)
            }
            #expect(error?.status == .unreachable)
            #expect(error?.hint?.contains("stillpoint serve") == true)
        }
    }

    @Test("an address brings the token of the node that listens there, under any of its names")
    func byAddress() throws {
        try withRunDirectory(["node.json": here, "node-11171.json": wide]) { (locator: NodeLocator) throws in
            for api in ["http://localhost:11170", "http://127.0.0.1:11170/", "127.0.0.1:11170"] {
                #expect(try locator.locate(api: api, tokenFile: nil, authorityFile: nil).tokenFile == "/d/admin-token")
            }
            let address = try locator.locate(api: "https://localhost:11171", tokenFile: nil, authorityFile: nil)
            #expect(address.api == "https://localhost:11171")
            #expect(address.authorityFile == "/e/pki/ca.pem")
        }
    }

    @Test("a token is never taken to another address")
    func elsewhere() throws {
        try withRunDirectory(["node.json": here]) { (locator: NodeLocator) throws in
            for api in ["http://127.0.0.1:9", "https://other.example:11170", "http://192.0.2.1:11170"] {
                #expect(try locator.locate(api: api, tokenFile: nil, authorityFile: nil).tokenFile == nil)
            }
        }
    }

    @Test("options come before the environment, and the environment before what is found")
    func precedence() throws {
        try withRunDirectory(["node.json": here]) { (locator: NodeLocator) throws in
            var locator = locator
            locator.environment["STILLPOINT_API"] = "http://env:1"
            locator.environment["STILLPOINT_TOKEN_FILE"] = "/env/token"
            locator.environment["STILLPOINT_CA_FILE"] = "/env/ca"
            #expect(
                try locator.locate(api: nil, tokenFile: nil, authorityFile: nil)
                    == NodeAddress(api: "http://env:1", tokenFile: "/env/token", authorityFile: "/env/ca"))
            #expect(
                try locator.locate(api: "http://opt:2", tokenFile: "/opt/token", authorityFile: "/opt/ca")
                    == NodeAddress(api: "http://opt:2", tokenFile: "/opt/token", authorityFile: "/opt/ca"))
        }
    }

    @Test("without a record, the default data directory helps the same user on the same machine")
    func dataDirectory() throws {
        try withRunDirectory([:]) { (locator: NodeLocator) throws in
            var locator = locator
            locator.isReadable = { $0 == "/home/x/.local/share/stillpoint/admin-token" }
            let local = try locator.locate(api: "http://127.0.0.1:5", tokenFile: nil, authorityFile: nil)
            #expect(local.tokenFile == "/home/x/.local/share/stillpoint/admin-token")
            let remote = try locator.locate(api: "https://other:5", tokenFile: nil, authorityFile: nil)
            #expect(remote.tokenFile == nil)
        }
    }

    @Test("an address without a scheme is plain on loopback and TLS beyond, as the node's own default is")
    func schemes() throws {
        try withRunDirectory([:]) { (locator: NodeLocator) throws in
            func api(_ text: String) throws -> String {
                try locator.locate(api: text, tokenFile: nil, authorityFile: nil).api
            }
            #expect(try api("localhost:1") == "http://localhost:1")
            #expect(try api("[::1]:1") == "http://[::1]:1")
            #expect(try api("nas.example:1") == "https://nas.example:1")
            #expect(throws: CommandFailure.self) { try api("https://nas.example/path") }
            #expect(throws: CommandFailure.self) { try api("ftp://nas.example") }
        }
    }
}
