import API
import Foundation
import HTTPTypes
import NIOCore

/// One operation of the REST API: what it is for people and for programs, and what it does.
///
/// The table of routes is the only place where a route can be made, so that none exists without its description.
struct Route: Sendable {
    enum Access: Sendable {
        /// Anybody.
        case open
        /// A client on this machine without, others with the administrator's token.
        case loopbackOrAdministrator
        /// The administrator's token.
        case administrator
        /// The enrolment token in the body.
        case enrolment
    }

    struct Query: Sendable {
        var name: String
        var summary: String
        var schema: Schema
    }

    struct Answer: Sendable {
        var status: Int
        var summary: String
        var contentType: String
        var schema: Schema?
    }

    var method: HTTPRequest.Method
    /// With `{name}` for a parameter.
    var path: String
    /// Unique; OpenAPI's `operationId`.
    var operation: String
    var summary: String
    var access: Access
    var query: [Query] = []
    /// Name of the body's schema.
    var body: String?
    /// Content type of a body that is handed on as it comes, of any length.
    var streamType: String?
    var answer: Answer
    /// Codes of failures that are particular to this route, by status.
    var failures: [Int: String] = [:]
    var handle: @Sendable (RouteRequest) async throws -> RouteAnswer

    /// The parameters' names in order.
    var parameters: [String] {
        path.split(separator: "/").filter { $0.hasPrefix("{") }.map { String($0.dropFirst().dropLast()) }
    }

    /// Whether a request's path is one of this route's, whatever its parameters.
    func matches(path other: String) -> Bool {
        let mine = path.split(separator: "/")
        let theirs = other.split(separator: "/")
        return mine.count == theirs.count && zip(mine, theirs).allSatisfy { $0.hasPrefix("{") || $0 == $1 }
    }
}

/// A request as a route sees it: no HTTP in it but names and bytes.
struct RouteRequest: Sendable {
    var parameters: [String: String]
    var query: [String: String]
    var body: Data
    /// The body of a route that takes a stream.
    var stream: BodyStream?

    func parameter(_ name: String) throws -> String {
        guard let value = parameters[name], !value.isEmpty else { throw APIFailure.invalid("\(name) is missing") }
        return value
    }

    /// `true`, `false` or nothing.
    func flag(_ name: String) throws -> Bool {
        switch query[name] {
        case nil, "false": return false
        case "true", "": return true
        case let other?: throw APIFailure.invalid("\(name) must be true or false, not \"\(other.prefix(40))\"")
        }
    }

    func number(_ name: String, in range: ClosedRange<Int>, default standard: Int) throws -> Int {
        guard let text = query[name] else { return standard }
        guard let value = Int(text), range.contains(value) else {
            throw APIFailure.invalid(
                "\(name) must be from \(range.lowerBound) to \(range.upperBound), not \"\(text.prefix(40))\"")
        }
        return value
    }

    /// The body as JSON. A field that the type does not know is refused: it is a mistake that would go unseen.
    func decode<Body: Decodable>(_ type: Body.Type, knownFields: Set<String>) throws -> Body {
        guard !body.isEmpty else { throw APIFailure.invalid("the request needs a JSON body") }
        guard let object = try? JSONSerialization.jsonObject(with: body) as? [String: Any] else {
            throw APIFailure.invalid("the body is not a JSON object")
        }
        let unknown = Set(object.keys).subtracting(knownFields).sorted()
        guard unknown.isEmpty else {
            throw APIFailure.invalid(
                "unknown field \(unknown.map { "\"\($0.prefix(60))\"" }.joined(separator: ", "))",
                hint: "Known are \(knownFields.sorted().joined(separator: ", "))")
        }
        do {
            return try APIJSON.decoder().decode(type, from: body)
        } catch let error as DecodingError {
            throw APIFailure.invalid(Self.sentence(error))
        }
    }

    private static func sentence(_ error: DecodingError) -> String {
        func field(_ path: [any CodingKey]) -> String { path.map(\.stringValue).joined(separator: ".") }
        return switch error {
        case .keyNotFound(let key, let context): "the field \"\(field(context.codingPath + [key]))\" is missing"
        case .typeMismatch(_, let context), .valueNotFound(_, let context):
            "the field \"\(field(context.codingPath))\" is of the wrong type"
        case .dataCorrupted(let context):
            context.codingPath.isEmpty
                ? "the body is not JSON" : "the field \"\(field(context.codingPath))\" has no valid value"
        @unknown default: "the body cannot be understood"
        }
    }
}

/// A request's body as it comes. All its iterators read on where the one before stopped: the server allows one only,
/// and what a route left unread has to be read after it.
final class BodyStream: AsyncSequence, @unchecked Sendable {
    // SAFETY: one task reads at a time: the route's, and when that has ended, the one that sends the answer.
    typealias Element = ByteBuffer

    private var inner: any AsyncIteratorProtocol<ByteBuffer, any Error>

    init(_ body: any AsyncSequence<ByteBuffer, any Error> & Sendable) { inner = body.makeAsyncIterator() }

    struct AsyncIterator: AsyncIteratorProtocol {
        fileprivate let stream: BodyStream

        func next() async throws -> ByteBuffer? { try await stream.inner.next(isolation: nil) }
    }

    func makeAsyncIterator() -> AsyncIterator { AsyncIterator(stream: self) }
}

/// An answer's body that is made piece by piece: the next one when the one before has been taken.
struct ChunkSource: Sendable {
    /// Nil at the end. An error cuts the answer off, which the client sees.
    var next: @Sendable () async throws -> Data?
    /// Called once, however it ends.
    var end: @Sendable () async -> Void
}

/// What a route answers.
enum RouteAnswer: Sendable {
    case json(status: Int, Data)
    case text(contentType: String, String)
    case empty
    case chunks(contentType: String, ChunkSource)
    /// Server-sent events until the stream ends.
    case events(AsyncStream<JobInfo>)

    static func value(_ value: some Encodable, status: Int = 200) throws -> RouteAnswer {
        .json(status: status, try APIJSON.encoder().encode(value))
    }
}
