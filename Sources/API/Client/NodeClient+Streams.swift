import AsyncHTTPClient
import Foundation
public import NIOCore
import NIOHTTP1

// Bodies that are streams: differences, snapshots.

extension NodeClient {
    /// What changed in a member of a snapshot since an older one, line by line.
    ///
    /// - Throws: ``NodeUnreachable`` also where the answer was cut off.
    public func diff(
        _ snapshot: String, from: String?, volume: String? = nil, fromVolume: String? = nil
    ) -> AsyncThrowingStream<DiffLine, any Error> {
        lines(
            "/v1/snapshots/\(segment(snapshot))/diff",
            query: [("from", from), ("volume", volume), ("fromVolume", fromVolume)])
    }

    /// What changed in a volume since a snapshot, up to now.
    public func diff(ofVolume volume: String, from: String?) -> AsyncThrowingStream<DiffLine, any Error> {
        lines("/v1/volumes/\(segment(volume))/diff", query: [("from", from)])
    }

    private func path(_ path: String, _ query: [(String, String?)]) -> String {
        let given = query.compactMap { name, value in value.map { "\(name)=\(queryValue($0))" } }
        return given.isEmpty ? path : path + "?" + given.joined(separator: "&")
    }

    private func lines(_ path: String, query: [(String, String?)]) -> AsyncThrowingStream<DiffLine, any Error> {
        let path = self.path(path, query)
        // Pulled: a reader that is slow keeps the node waiting, and not this process's memory growing.
        let reader = LineReader(open: { [self] in try await stream(path, accepting: "application/x-ndjson").body })
        return AsyncThrowingStream {
            do {
                guard let line = try await reader.next() else { return nil }
                return try APIJSON.decoder().decode(DiffLine.self, from: line)
            } catch let error as APIFailure {
                throw error
            } catch let error as NodeUnreachable {
                throw error
            } catch {
                throw self.unreachable(error)
            }
        }
    }

    /// A snapshot as a stream, whole or as what changed since an older one. `body` gets the pieces as they come.
    public func sendSnapshot(
        _ snapshot: String, from: String? = nil, resume: String? = nil,
        _ body: (ByteBuffer) async throws -> Void
    ) async throws {
        let path = path("/v1/snapshots/\(segment(snapshot))/stream", [("from", from), ("resume", resume)])
        var iterator = try await stream(path, accepting: "application/octet-stream").body.makeAsyncIterator()
        while true {
            let piece: ByteBuffer?
            do {
                piece = try await iterator.next()
            } catch {
                throw unreachable(error)
            }
            guard let piece else { return }
            try await body(piece)
        }
    }

    /// Gives a stream of a snapshot to the node, which makes the snapshot at its end.
    public func receiveSnapshot(
        volume: String? = nil, name: String? = nil, _ stream: some AsyncSequence<ByteBuffer, any Error> & Sendable
    ) async throws -> SnapshotInfo {
        let path = path("/v1/receives", [("volume", volume), ("name", name)])
        return try decode(try await upload(path, stream), path: path)
    }

    public func receives() async throws -> [ReceiveInfo] { try await get("/v1/receives") }

    public func abortReceive(_ idOrName: String) async throws {
        _ = try await delete("/v1/receives/\(segment(idOrName))")
    }
}

/// Lines of a body that comes in pieces. Used by one reader at a time.
private actor LineReader {
    private let open: @Sendable () async throws -> HTTPClientResponse.Body
    private var iterator: HTTPClientResponse.Body.AsyncIterator?
    private var buffer = ByteBuffer()

    init(open: @escaping @Sendable () async throws -> HTTPClientResponse.Body) { self.open = open }

    func next() async throws -> Data? {
        if iterator == nil { iterator = try await open().makeAsyncIterator() }
        while true {
            if let end = buffer.readableBytesView.firstIndex(of: UInt8(ascii: "\n")) {
                let line = buffer.readBytes(length: end - buffer.readerIndex) ?? []
                buffer.moveReaderIndex(forwardBy: 1)
                buffer.discardReadBytes()
                return Data(line)
            }
            guard var current = iterator else { return nil }
            guard var piece = try await current.next(isolation: self) else { return nil }
            iterator = current
            buffer.writeBuffer(&piece)
        }
    }
}
