import API
import Foundation
import HTTPTypes
import Hummingbird
import Logging
import NIOCore

/// Numbers that a client of the API port can run into.
enum APILimits {
    static let bodyBytes = 1 << 20
    static let headerFieldBytes = 16 << 10
    static let headerListBytes = 32 << 10
    static let headerFields = 100
    /// Connections at a time; more wait in the kernel's backlog.
    static let connections = 256
    /// Seconds without a byte after which a connection is closed.
    static let idleSeconds: Int64 = 60
    /// Seconds from a request's head to the end of its body.
    static let bodySeconds = 30.0
    /// Seconds between two comments that keep an event stream alive and find out clients that are gone.
    static let heartbeatSeconds = 10.0
}

/// What a request's handlers know about its connection.
struct NodeRequestContext: RequestContext {
    var coreContext: CoreRequestContextStorage
    let remoteAddress: SocketAddress?

    init(source: ApplicationRequestContextSource) {
        coreContext = .init(source: source)
        remoteAddress = source.channel.remoteAddress
    }

    /// True for a client on this machine.
    static func isLoopback(_ address: SocketAddress?) -> Bool {
        guard let address = address?.ipAddress else { return false }
        return address.hasPrefix("127.") || address == "::1" || address.hasPrefix("::ffff:127.")
    }
}

/// Puts the routes behind HTTP: authorisation, bodies, answers, failures as JSON.
struct HTTPAdapter: Sendable {
    let table: RouteTable
    let token: AdministratorToken

    func router() -> Router<NodeRequestContext> {
        let router = Router(context: NodeRequestContext.self)
        router.add(middleware: FailureMiddleware(routes: table.routes))
        for route in table.routes {
            router.on(RouterPath(route.path), method: route.method) { request, context in
                try await respond(to: request, context, route)
            }
        }
        return router
    }

    private func respond(
        to request: Request, _ context: NodeRequestContext, _ route: Route
    ) async throws -> Response {
        try authorise(request, context, route)
        var parameters: [String: String] = [:]
        for name in route.parameters {
            guard let value = context.parameters.get(name)?.removingPercentEncoding else {
                throw APIFailure.invalid("the path is not percent-encoded UTF-8")
            }
            parameters[name] = value
        }
        var query: [String: String] = [:]
        for (name, value) in request.uri.queryParameters {
            guard route.query.contains(where: { $0.name == name }) else {
                throw APIFailure.invalid("there is no query parameter \"\(name.prefix(60))\" here")
            }
            query[String(name)] = String(value)
        }
        let body = route.body == nil ? Data() : try await readBody(request)
        var routed = RouteRequest(parameters: parameters, query: query, body: body)
        guard route.streamType != nil else { return try await response(try await route.handle(routed), route) }
        let stream = BodyStream(request.body)
        routed.stream = stream
        do {
            return try await response(try await route.handle(routed), route)
        } catch {
            return Self.early(APIFailure.from(error), stream)
        }
    }

    // MARK: Authorisation

    private func authorise(_ request: Request, _ context: NodeRequestContext, _ route: Route) throws {
        switch route.access {
        case .open, .enrolment: return
        case .loopbackOrAdministrator where NodeRequestContext.isLoopback(context.remoteAddress): return
        case .loopbackOrAdministrator, .administrator: break
        }
        guard let header = request.headers[.authorization] else {
            throw APIFailure(
                status: 401, code: "unauthorized", message: "the request carries no token",
                hint: "Send the administrator's token: Authorization: Bearer TOKEN")
        }
        let parts = header.split(separator: " ", maxSplits: 1)
        guard parts.count == 2, parts[0].lowercased() == "bearer", token.matches(String(parts[1])) else {
            throw APIFailure(
                status: 401, code: "unauthorized", message: "the token is not this node's",
                hint: "The administrator's token is in the file admin-token of the node's data directory")
        }
    }

    // MARK: Bodies

    private func readBody(_ request: Request) async throws -> Data {
        if let text = request.headers[.contentLength], let length = Int(text), length > APILimits.bodyBytes {
            throw Self.tooLarge
        }
        return try await withThrowingTaskGroup(of: Data.self) { group in
            group.addTask {
                do {
                    return Data(try await request.body.collect(upTo: APILimits.bodyBytes).readableBytesView)
                } catch is NIOTooManyBytesError {
                    throw Self.tooLarge
                }
            }
            group.addTask {
                try await Task.sleep(for: .seconds(APILimits.bodySeconds))
                throw APIFailure(
                    status: 408, code: "requestTimeout",
                    message: "the request's body did not arrive within \(Int(APILimits.bodySeconds)) seconds")
            }
            defer { group.cancelAll() }
            guard let body = try await group.next() else { throw CancellationError() }
            return body
        }
    }

    private static let tooLarge = APIFailure(
        status: 413, code: "bodyTooLarge", message: "the request's body is larger than 1 MiB")

    // MARK: Answers

    private func response(_ answer: RouteAnswer, _ route: Route) async throws -> Response {
        switch answer {
        case .json(let status, let data):
            Self.json(data, status: .init(code: status))
        case .text(let type, let text):
            Response(
                status: .ok, headers: [.contentType: type, .cacheControl: "no-store"],
                body: .init(byteBuffer: ByteBuffer(string: text)))
        case .empty: Response(status: .noContent)
        case .chunks(let type, let chunks): try await Self.chunked(type, chunks)
        case .events(let stream):
            Response(
                status: .ok, headers: [.contentType: "text/event-stream", .cacheControl: "no-store"],
                body: Self.events(stream))
        }
    }

    static func json(_ data: Data, status: HTTPResponse.Status) -> Response {
        Response(
            status: status, headers: [.contentType: "application/json", .cacheControl: "no-store"],
            body: .init(byteBuffer: ByteBuffer(bytes: data)))
    }

    /// The first piece is made before the answer begins, so that what is wrong from the start is an answer of its own.
    private static func chunked(_ type: String, _ chunks: ChunkSource) async throws -> Response {
        let first: Data?
        do {
            first = try await chunks.next()
        } catch {
            await chunks.end()
            throw error
        }
        return Response(
            status: .ok, headers: [.contentType: type, .cacheControl: "no-store"],
            body: ResponseBody { writer in
                do {
                    var piece = first
                    while let data = piece {
                        try await writer.write(ByteBuffer(bytes: data))
                        piece = try await chunks.next()
                    }
                    await chunks.end()
                } catch {
                    await chunks.end()
                    throw error
                }
                try await writer.finish(nil)
            })
    }

    /// A failure that is known before the body has come to its end: it is sent at once, and then the body is read for a
    /// moment, because a connection that is closed with bytes unread takes the answer along.
    private static func early(_ failure: APIFailure, _ stream: BodyStream) -> Response {
        let data = (try? APIJSON.encoder().encode(failure)) ?? Data()
        return Response(
            status: .init(code: failure.status),
            headers: [.contentType: "application/json", .cacheControl: "no-store", .connection: "close"],
            body: ResponseBody { writer in
                try await writer.write(ByteBuffer(bytes: data))
                try? await withThrowingTaskGroup(of: Void.self) { group in
                    group.addTask { for try await _ in stream {} }
                    group.addTask { try await Task.sleep(for: .seconds(2)) }
                    try await group.next()
                    group.cancelAll()
                }
                try await writer.finish(nil)
            })
    }

    private enum StreamEvent: Sendable {
        case job(JobInfo)
        case heartbeat
    }

    private static func events(_ jobs: AsyncStream<JobInfo>) -> ResponseBody {
        ResponseBody { writer in
            // Jobs and heartbeats in one stream: a write must not be interrupted by the other.
            let (events, continuation) = AsyncStream.makeStream(
                of: StreamEvent.self, bufferingPolicy: .bufferingNewest(4))
            let forwarding = Task {
                for await job in jobs { continuation.yield(.job(job)) }
                continuation.finish()
            }
            let beating = Task {
                while true {
                    try await Task.sleep(for: .seconds(APILimits.heartbeatSeconds))
                    continuation.yield(.heartbeat)
                }
            }
            defer {
                forwarding.cancel()
                beating.cancel()
            }
            let encoder = APIJSON.encoder()
            for await event in events {
                switch event {
                case .heartbeat: try await writer.write(ByteBuffer(string: ": still there\n\n"))
                case .job(let job):
                    let text = String(decoding: try encoder.encode(job), as: UTF8.self)
                    try await writer.write(ByteBuffer(string: "event: job\ndata: \(text)\n\n"))
                }
            }
            try await writer.finish(nil)
        }
    }
}

/// Turns every error into the API's failure, and says 405 where the path exists with another method.
struct FailureMiddleware: RouterMiddleware {
    let routes: [Route]

    func handle(
        _ request: Request, context: NodeRequestContext,
        next: (Request, NodeRequestContext) async throws -> Response
    ) async throws -> Response {
        do {
            return try await next(request, context)
        } catch let error as HTTPError where error.status == .notFound {
            return respond(unknownRoute(request))
        } catch let error as any HTTPResponseError {
            return respond(
                APIFailure(
                    status: error.status.code, code: "http\(error.status.code)",
                    message: error.status.reasonPhrase.lowercased()))
        } catch {
            let failure = APIFailure.from(error)
            if failure.status >= 500 {
                context.logger.error(
                    "request failed",
                    metadata: [
                        "method": "\(request.method)", "path": "\(request.uri.path)", "failure": "\(failure)",
                    ])
            }
            return respond(failure)
        }
    }

    private func unknownRoute(_ request: Request) -> APIFailure {
        let methods = routes.filter { $0.matches(path: request.uri.path) }.map(\.method.rawValue)
        if methods.isEmpty {
            return APIFailure(
                status: 404, code: "routeNotFound", message: "there is nothing at \(request.uri.path.prefix(200))",
                hint: "GET /v1/openapi.json describes what there is")
        }
        return APIFailure(
            status: 405, code: "methodNotAllowed",
            message: "\(request.method.rawValue) is not for \(request.uri.path.prefix(200))",
            hint: "Use \(methods.sorted().joined(separator: " or "))")
    }

    private func respond(_ failure: APIFailure) -> Response {
        let data = (try? APIJSON.encoder().encode(failure)) ?? Data()
        var response = HTTPAdapter.json(data, status: .init(code: failure.status))
        if failure.status == 401 { response.headers[.wwwAuthenticate] = "Bearer realm=\"stillpoint\"" }
        // A body that was not read would be taken for the next request's head.
        if failure.status == 413 || failure.status == 408 { response.headers[.connection] = "close" }
        return response
    }
}
