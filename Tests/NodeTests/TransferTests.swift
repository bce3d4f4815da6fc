import API
import BlockIO
import BlockStore
import Foundation
import NIOCore
import NIOHTTP1
import Testing

@testable import Node

/// Differences and transfers of snapshots over REST.
@Suite("Transfers")
struct TransferTests {
    private static func client(_ node: TestNode) throws -> NodeClient {
        try NodeClient(.init(url: URL(string: node.api)!, token: node.token))
    }

    private static func withClients<Value>(
        _ nodes: TestNode..., body: ([NodeClient]) async throws -> Value
    ) async throws -> Value {
        let clients = try nodes.map(client)
        let result: Result<Value, any Error>
        do {
            result = .success(try await body(clients))
        } catch {
            result = .failure(error)
        }
        for client in clients { await client.close() }
        return try result.get()
    }

    private static func stream(
        _ client: NodeClient, _ snapshot: String, from: String? = nil, resume: String? = nil
    ) async throws -> [ByteBuffer] {
        var pieces: [ByteBuffer] = []
        try await client.sendSnapshot(snapshot, from: from, resume: resume) { pieces.append($0) }
        return pieces
    }

    /// A body of these pieces, which then ends; with `breaks`, breaks off as soon as that says so.
    private static func body(
        _ pieces: [ByteBuffer], breaks: (@Sendable () async throws -> Bool)? = nil
    ) -> AsyncThrowingStream<ByteBuffer, any Error> {
        AsyncThrowingStream { continuation in
            for piece in pieces { continuation.yield(piece) }
            guard let breaks else { return continuation.finish() }
            Task {
                try? await Self.wait(until: breaks)
                continuation.finish(throwing: CancellationError())
            }
        }
    }

    private static func wait(until condition: @Sendable () async throws -> Bool) async throws {
        for _ in 0..<6000 {
            if try await condition() { return }
            try await Task.sleep(for: .milliseconds(20))
        }
    }

    private static func content(_ node: TestNode, _ snapshot: String) throws -> [UInt8] {
        let pool = node.services.inventory.pool
        let record = try #require(pool.snapshots().first { $0.name == snapshot })
        let device = try pool.device(of: record.id, volume: record.members[0].volume)
        var bytes = [UInt8](repeating: 0, count: Int(device.sizeBytes))
        try bytes.withUnsafeMutableBytes { try device.read(at: 0, into: $0) }
        return bytes
    }

    @Test("a diff is told line by line, holes included, between snapshots and up to now")
    func diff() async throws {
        try await TestNode.with { node in
            _ = try await HistoryTests.make(node, "a")
            try HistoryTests.write(node, "a", 0..<600, tag: 1)
            _ = try await HistoryTests.snap(node, ["a"], "s1")
            try HistoryTests.write(node, "a", 10..<20, tag: 2)
            let pool = node.services.inventory.pool
            try pool.device(of: pool.volumes()[0].id).unmap(at: 500 * 4096, lengthBytes: 50 * 4096)
            _ = try await HistoryTests.snap(node, ["a"], "s2")
            try HistoryTests.write(node, "a", 700..<701, tag: 3)
            try await Self.withClients(node) { clients in
                var lines: [DiffLine] = []
                for try await line in clients[0].diff("s2", from: "s1") { lines.append(line) }
                let size: UInt64 = 16 << 20
                #expect(
                    lines == [
                        DiffLine(kind: .size, fromBytes: size, toBytes: size),
                        DiffLine(kind: .data, offset: 10 * 4096, lengthBytes: 10 * 4096),
                        DiffLine(kind: .hole, offset: 500 * 4096, lengthBytes: 50 * 4096),
                        DiffLine(kind: .end, toBytes: size),
                    ])
                lines = []
                for try await line in clients[0].diff(ofVolume: "a", from: "s2") { lines.append(line) }
                #expect(lines.count == 3 && lines[1].offset == 700 * 4096 && lines[1].kind == .data)
                #expect(pool.snapshots().count == 2, "the snapshot of a diff is still there")
                await #expect(throws: APIFailure.self) {
                    for try await _ in clients[0].diff("nothing", from: "s1") {}
                }
            }
            _ = try await HistoryTests.make(node, "b")
            _ = try await HistoryTests.snap(node, ["b"], "sb")
            let unrelated = try await node.call(.GET, "/v1/snapshots/sb/diff?from=s1")
            #expect(unrelated.status == 409 && unrelated.failure?.code == "snapshotsUnrelated")
            #expect(try await node.call(.GET, "/v1/snapshots/s2/diff?offset=1").status == 400)
        }
    }

    @Test("a snapshot and its increment go from one node to another, with the evidence, and break off without a trace")
    func transfer() async throws {
        try await TestNode.with { source in
            try await TestNode.with { target in
                _ = try await HistoryTests.make(source, "a")
                try HistoryTests.write(source, "a", 0..<3000, tag: 1)
                let first = try await HistoryTests.snap(source, ["a"], "s1")
                try HistoryTests.write(source, "a", 100..<200, tag: 2)
                _ = try await HistoryTests.snap(source, ["a"], "s2")
                try await Self.withClients(source, target) { clients in
                    let (from, to) = (clients[0], clients[1])
                    let pieces = try await Self.stream(from, "s1")
                    // Only what has arrived can stay: the connection breaks off after the node has taken something.
                    let taking = target.services.inventory.pool
                    let half = Self.body(Array(pieces[..<(pieces.count / 2)])) {
                        taking.statistics.dataBytesWritten >= 1 << 20
                    }
                    await #expect(throws: (any Error).self) { try await to.receiveSnapshot(half) }
                    try await Self.wait(until: { try await to.receives().allSatisfy { !$0.isActive } })
                    #expect(try await to.snapshots().isEmpty)
                    #expect(try await to.volumes().isEmpty)
                    let open = try #require(try await to.receives().first)
                    #expect(open.snapshot == first.id && open.offsetBytes > 0)
                    let rest = try await Self.stream(from, "s1", resume: open.resumeToken)
                    let received = try await to.receiveSnapshot(Self.body(rest))
                    #expect(received.id == first.id && received.name == "s1" && received.volumes == ["a"])
                    #expect(received.createdAt == first.createdAt && received.evidence == first.evidence)
                    #expect(try Self.content(target, "s1") == Self.content(source, "s1"))

                    let increment = try await Self.stream(from, "s2", from: "s1")
                    #expect(increment.reduce(0) { $0 + $1.readableBytes } < 110 * 4096)
                    _ = try await to.receiveSnapshot(Self.body(increment))
                    #expect(try Self.content(target, "s2") == Self.content(source, "s2"))
                    #expect(try await to.receives().isEmpty)
                }
            }
        }
    }

    @Test("a stream that cannot be taken is answered with why, early, and an open transfer can be thrown away")
    func refusals() async throws {
        try await TestNode.with { source in
            try await TestNode.with { target in
                _ = try await HistoryTests.make(source, "a")
                try HistoryTests.write(source, "a", 0..<3000, tag: 1)
                _ = try await HistoryTests.snap(source, ["a"], "s1")
                try HistoryTests.write(source, "a", 0..<3000, tag: 2)
                _ = try await HistoryTests.snap(source, ["a"], "s2")
                try await Self.withClients(source, target) { clients in
                    let (from, to) = (clients[0], clients[1])
                    func code(_ pieces: [ByteBuffer], volume: String? = nil) async throws -> String? {
                        do {
                            _ = try await to.receiveSnapshot(volume: volume, Self.body(pieces))
                            return nil
                        } catch let failure as APIFailure {
                            return failure.code
                        }
                    }
                    let increment = try await Self.stream(from, "s2", from: "s1")
                    #expect(try await code(increment) == "streamRefused")
                    #expect(try await code([ByteBuffer(repeating: 7, count: 100_000)]) == "badStream")
                    #expect(try await code([]) == "badStream")
                    let whole = try await Self.stream(from, "s1")
                    #expect(try await code(Array(whole[..<2]), volume: "x") == "badStream")
                    #expect(try await to.receives().map(\.volumes) == [["x"]])
                    #expect(try await code(whole, volume: "y") == "streamRefused")
                    try await to.abortReceive("s1")
                    #expect(try await to.receives().isEmpty)
                    #expect(try await code(whole, volume: "not a name") == "invalidName")
                    #expect(try await code(whole) == nil)
                    let unknown = try await target.call(.DELETE, "/v1/receives/nothing")
                    #expect(unknown.failure?.code == "receiveNotFound")
                    let token = try await source.call(.GET, "/v1/snapshots/s1/stream?resume=sp1-00")
                    #expect(token.status == 400)
                }
            }
        }
    }
}
