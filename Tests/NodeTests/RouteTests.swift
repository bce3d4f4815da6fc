import API
import Foundation
import HTTPTypes
import NIOCore
import NIOHTTP1
import NIOPosix
import Testing

@testable import Node

@Suite("Routes")
struct RouteTests {
    // MARK: The document

    /// With STILLPOINT_WRITE_DOCS=1 the file is written instead.
    @Test("docs/openapi.json is the document that the node serves")
    func documentIsCurrent() async throws {
        try await TestNode.with { node in
            let served = try await node.call(.GET, "/v1/openapi.json", authorization: nil)
            #expect(served.status == 200)
            let file = Documents.file("docs/openapi.json")
            if ProcessInfo.processInfo.environment["STILLPOINT_WRITE_DOCS"] == "1" { try served.body.write(to: file) }
            let stored = try Data(contentsOf: file)
            #expect(stored == served.body, "STILLPOINT_WRITE_DOCS=1 swift test --filter documentIsCurrent writes it")
        }
    }

    @Test("every operation of the document is a route that answers, and every route is in the document")
    func documentMatchesRoutes() async throws {
        try await TestNode.with { node in
            let text = try Data(contentsOf: Documents.file("docs/openapi.json"))
            let document = try #require(try JSONSerialization.jsonObject(with: text) as? [String: Any])
            let paths = try #require(document["paths"] as? [String: [String: Any]])
            var documented: Set<String> = []
            for (path, operations) in paths {
                let concrete = path.replacing(/\{[^}]*\}/, with: "x")
                for method in operations.keys {
                    documented.insert("\(method.uppercased()) \(path)")
                    let answer = try await node.call(
                        .init(rawValue: method.uppercased()), concrete, raw: Data("{}".utf8))
                    let code = answer.failure?.code
                    #expect(
                        code != "routeNotFound" && code != "methodNotAllowed", "\(method) \(path): \(answer.status)")
                }
                for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] where operations[method.lowercased()] == nil {
                    let answer = try await node.call(.init(rawValue: method), concrete)
                    #expect(answer.status == 405, "\(method) \(path) answers \(answer.status) undocumented")
                }
            }
            let registered = Set(RouteTable(node.services).routes.map { "\($0.method.rawValue) \($0.path)" })
            #expect(documented == registered)
        }
    }

    @Test("every schema that the document refers to is in it, and operations have names of their own")
    func documentIsWhole() async throws {
        try await TestNode.with { node in
            let routes = RouteTable(node.services).routes
            #expect(Set(routes.map(\.operation)).count == routes.count)
            let text = OpenAPIDocument.make(routes: routes)
            for reference in text.matches(of: /#\/components\/schemas\/([A-Za-z]+)/) {
                #expect(ObjectSchemas.byName[String(reference.1)] != nil, "\(reference.1)")
            }
            for route in routes { if let body = route.body { #expect(ObjectSchemas.byName[body] != nil) } }
        }
    }

    @Test("every code that the node's sources name is explained in docs/api.md")
    func codesAreDocumented() throws {
        let text = try String(contentsOf: Documents.file("docs/api.md"), encoding: .utf8)
        let sources = try #require(
            FileManager.default.enumerator(at: Documents.file("Sources/Node"), includingPropertiesForKeys: nil))
        var codes: Set<String> = []
        for case let url as URL in sources where url.pathExtension == "swift" {
            let source = try String(contentsOf: url, encoding: .utf8)
            for match in source.matches(of: /(?:code: |conflict\(\s*)"([a-zA-Z]+)"/) { codes.insert(String(match.1)) }
        }
        #expect(codes.count > 20)
        for code in codes.sorted() { #expect(text.contains("`\(code)`"), "\(code)") }
    }

    // MARK: Authorisation

    @Test("without the right token every route but the open ones is closed, whatever the body")
    func closedWithoutToken() async throws {
        try await TestNode.with { node in
            let wrong: [String?] = [
                nil, "Bearer", "Bearer x", "Basic \(node.token)", "Bearer \(node.token)x", node.token,
            ]
            for route in RouteTable(node.services).routes {
                guard case .administrator = route.access else { continue }
                let path = route.path.replacing(/\{[^}]*\}/, with: "x")
                for authorization in wrong {
                    let answer = try await node.call(
                        .init(rawValue: route.method.rawValue), path, raw: Data("{}".utf8), authorization: authorization
                    )
                    #expect(answer.status == 401 && answer.failure?.code == "unauthorized", "\(route.path)")
                    #expect(answer.headers["WWW-Authenticate"].first?.hasPrefix("Bearer") == true)
                }
            }
            #expect(try await node.call(.GET, "/health", authorization: nil).status == 200)
            #expect(try await node.call(.GET, "/metrics", authorization: nil).status == 200)
        }
    }

    @Test("only a peer on this machine counts as one")
    func loopbackPeers() throws {
        for text in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
            let address = try SocketAddress(ipAddress: text, port: 1)
            #expect(NodeRequestContext.isLoopback(address), "\(text)")
        }
        for text in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"] {
            let address = try SocketAddress(ipAddress: text, port: 1)
            #expect(!NodeRequestContext.isLoopback(address), "\(text)")
        }
        #expect(!NodeRequestContext.isLoopback(nil))
    }

    // MARK: Bad input

    struct BadBody: Sendable, CustomTestStringConvertible {
        var path: String
        var body: String
        var status = 400
        var code = "invalidRequest"
        var testDescription: String { "\(path) \(body.prefix(60))" }
    }

    static let badBodies = [
        BadBody(path: "/v1/volumes", body: ""), BadBody(path: "/v1/volumes", body: "nonsense"),
        BadBody(path: "/v1/volumes", body: "[]"), BadBody(path: "/v1/volumes", body: "{\"name\":\"a\"}"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a\",\"sizeBytes\":\"1GiB\"}"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a\",\"sizeBytes\":-4096}"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a\",\"sizeBytes\":4096,\"size\":1}"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a\",\"sizeBytes\":4097}", code: "invalidSize"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a\",\"sizeBytes\":0}", code: "invalidSize"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a\",\"sizeBytes\":70368744181760}", code: "invalidSize"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"a b\",\"sizeBytes\":4096}", code: "invalidName"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"\",\"sizeBytes\":4096}", code: "invalidName"),
        BadBody(path: "/v1/volumes", body: "{\"name\":\"ä\",\"sizeBytes\":4096}", code: "invalidName"),
        BadBody(path: "/v1/snapshots", body: "{\"volumes\":[]}"),
        BadBody(path: "/v1/snapshots", body: "{\"volumes\":[\"a\",\"a\"]}"),
        BadBody(path: "/v1/snapshots", body: "{\"volumes\":[\"a\"]}", status: 404, code: "volumeNotFound"),
        BadBody(path: "/v1/snapshots", body: "{\"volumes\":[\"a\"],\"consistency\":\"perfect\"}"),
        BadBody(path: "/v1/snapshots", body: "{\"volumes\":[\"a\"],\"leaseSeconds\":61}"),
        BadBody(path: "/v1/reverts", body: "{\"volumes\":[\"a\"]}"),
        BadBody(path: "/v1/reverts", body: "{\"volumes\":[\"a\"],\"undo\":true}", status: 404, code: "volumeNotFound"),
        BadBody(
            path: "/v1/clones", body: "{\"snapshot\":\"s\",\"name\":\"c\"}", status: 404, code: "snapshotNotFound"),
        BadBody(path: "/v1/agents/tokens", body: "{\"name\":\"a b\"}"),
        BadBody(path: "/v1/agents/tokens", body: "{\"name\":\"tokens\"}"),
        BadBody(path: "/v1/agents/tokens", body: "{\"name\":\"a\",\"validSeconds\":9}"),
        BadBody(
            path: "/v1/targets/iqn.x/allow", body: "{\"initiator\":\"any\"}", status: 404, code: "targetNotFound"),
        BadBody(path: "/v1/targets/iqn.x/allow", body: "{\"initiator\":\"me\"}", code: "invalidInitiator"),
        BadBody(path: "/v1/targets/iqn.x/allow", body: "{\"initiator\":\"any\",\"chapUser\":\"u\"}"),
        BadBody(
            path: "/v1/targets/iqn.x/allow",
            body: "{\"initiator\":\"any\",\"chapUser\":\"u\",\"chapSecret\":\"short\"}"),
    ]

    @Test("bad bodies are refused with a code and a sentence, and change nothing")
    func badBodiesAreRefused() async throws {
        try await TestNode.with { node in
            for sample in Self.badBodies {
                let answer = try await node.call(.POST, sample.path, raw: Data(sample.body.utf8))
                let failure = try #require(answer.failure, "\(sample.testDescription)")
                #expect(answer.status == sample.status, "\(sample.testDescription): \(failure)")
                #expect(failure.code == sample.code, "\(sample.testDescription): \(failure)")
                #expect(!failure.message.isEmpty)
            }
            #expect(try await node.call(.GET, "/v1/volumes").decode([VolumeInfo].self).isEmpty)
            #expect(try await node.call(.GET, "/v1/targets").decode([TargetInfo].self).isEmpty)
            #expect(try await node.call(.GET, "/v1/jobs").decode([JobInfo].self).isEmpty)
        }
    }

    @Test("unknown query parameters, odd flags and broken escapes are refused")
    func badQueries() async throws {
        try await TestNode.with { node in
            let bad: [(HTTPMethod, String)] = [
                (.GET, "/v1/volumes?verbose=1"), (.DELETE, "/v1/volumes/a?withSnapshots=maybe"),
                (.GET, "/v1/jobs?limit=0"),
            ]
            for (method, path) in bad {
                let answer = try await node.call(method, path)
                #expect(answer.status == 400, "\(path)")
            }
            #expect(try await node.call(.GET, "/v1/volumes/%ff").status == 404)
            #expect(try await node.call(.GET, "/v1/volumes/a%2fb").failure?.code == "volumeNotFound")
        }
    }

    @Test("a body over 1 MiB is refused, whether it says so or not")
    func largeBodies() async throws {
        try await TestNode.with { node in
            let answer = try await node.call(.POST, "/v1/volumes", raw: Data(repeating: 0x20, count: (1 << 20) + 1))
            #expect(answer.status == 413 && answer.failure?.code == "bodyTooLarge")
        }
    }

    @Test("garbage on the API port leaves the node serving")
    func garbage() async throws {
        try await TestNode.with { node in
            let port = try #require(ListenAddress(node.services.addresses.api)).port
            var generator = SystemRandomNumberGenerator()
            var samples: [[UInt8]] = (0..<20).map { _ in (0..<512).map { _ in .random(in: 0...255, using: &generator) }
            }
            samples.append(
                Array("GET / HTTP/1.1\r\nHost: x\r\nX: \(String(repeating: "a", count: 100_000))\r\n\r\n".utf8))
            samples.append(Array("POST /v1/volumes HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".utf8))
            samples.append(Array("POST /v1/enroll HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".utf8))
            samples.append([0x16, 0x03, 0x01, 0x02, 0x00, 0x01])
            for sample in samples {
                let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                    .connect(host: "127.0.0.1", port: port).get()
                try? await channel.writeAndFlush(ByteBuffer(bytes: sample)).get()
                try? await channel.close().get()
            }
            #expect(try await node.call(.GET, "/health", authorization: nil).status == 200)
            #expect(try await node.call(.GET, "/v1/status").status == 200)
        }
    }
}
