import API
import Foundation
import HTTPTypes
import Hummingbird
import Logging
import NIOCore

/// The routes of `AgentProtocol.swift`, for the TLS port and for the local socket alike.
enum Routes {
    /// Longest request body, in bytes.
    static let bodyLimitBytes = 4 << 20

    static func router(_ service: AgentService, logger: Logger) -> Router<BasicRequestContext> {
        let router = Router(context: BasicRequestContext.self)
        router.add(middleware: FailureMiddleware(logger: logger))
        router.get("/v1/status") { _, _ in try answer(await service.status()) }
        router.post("/v1/discover") { request, _ in
            try answer(await service.discover(try await body(request)))
        }
        router.post("/v1/preflight") { request, _ in
            try answer(await service.discovery.preflight(try await body(request)))
        }
        router.post("/v1/holds") { request, _ in
            let takenAt = ContinuousClock.now
            return try answer(await service.holds.hold(try await body(request), takenAt: takenAt))
        }
        router.post("/v1/holds/:id/renew") { request, context in
            let takenAt = ContinuousClock.now
            return try answer(
                await service.holds.renew(identifier(context), try await body(request), takenAt: takenAt))
        }
        router.post("/v1/holds/:id/release") { _, context in
            try answer(await service.holds.release(identifier(context)))
        }
        router.post("/v1/thaw") { request, _ in
            let thaw: ThawRequest = try await body(request)
            return try answer(await service.holds.thaw(sagaID: thaw.sagaID))
        }
        router.post("/v1/restore/prepare") { request, _ in
            try answer(await service.prepareRestore(try await body(request)))
        }
        router.post("/v1/restore/finish") { request, _ in
            try answer(await service.restores.finish(try await body(request)))
        }
        router.post("/v1/guests/restore") { request, _ in
            try answer(await service.restoreGuest(try await body(request)))
        }
        router.post("/v1/identity/request") { _, _ in try answer(try service.keeper.request()) }
        router.post("/v1/identity/install") { request, _ in
            let state = try await service.keeper.install(try await body(request))
            logger.notice("certificate renewed", metadata: ["until": "\(state.certificateExpiresAt)"])
            return try answer(state)
        }
        router.post("/v1/identity/confirm") { request, _ in
            try answer(try service.keeper.confirm(try await body(request)))
        }
        return router
    }

    private static func identifier(_ context: BasicRequestContext) throws -> String {
        let id = try context.parameters.require("id")
        try SafeIdentifier.check(id, what: "hold's identifier")
        return id
    }

    private static func body<Body: Decodable>(_ request: Request) async throws -> Body {
        let buffer: ByteBuffer
        do {
            buffer = try await request.body.collect(upTo: bodyLimitBytes)
        } catch is NIOTooManyBytesError {
            throw APIFailure(
                status: 413, code: "bodyTooLarge", message: "The request is longer than \(bodyLimitBytes) bytes")
        }
        do {
            return try APIJSON.decoder().decode(Body.self, from: Data(buffer.readableBytesView))
        } catch {
            throw APIFailure(
                status: 400, code: "badRequest", message: "The request is not a valid \(Body.self): \(error)",
                hint: "Node and agent must be of matching versions")
        }
    }

    private static func answer(_ value: some Encodable) throws -> Response {
        response(.ok, try APIJSON.encoder().encode(value))
    }

    static func response(_ status: HTTPResponse.Status, _ data: Data) -> Response {
        Response(
            status: status, headers: [.contentType: "application/json"],
            body: ResponseBody(byteBuffer: ByteBuffer(bytes: data)))
    }
}

/// Turns every error into the one shape that errors have.
private struct FailureMiddleware<Context: RequestContext>: RouterMiddleware {
    let logger: Logger

    func handle(
        _ request: Request, context: Context, next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        do {
            return try await next(request, context)
        } catch {
            let failure: APIFailure
            switch error {
            case let error as APIFailure: failure = error
            case let error as HTTPError where error.status == .notFound:
                failure = APIFailure(
                    status: 404, code: "noSuchRoute", message: "There is no \(request.method) \(request.uri.path) here")
            case let error as HTTPError:
                failure = APIFailure(
                    status: error.status.code, code: "badRequest", message: error.body ?? error.status.reasonPhrase)
            default:
                logger.error("a request failed", metadata: ["path": "\(request.uri.path)", "why": "\(error)"])
                failure = APIFailure(status: 500, code: "internal", message: "The agent failed: \(error)")
            }
            let data = (try? APIJSON.encoder().encode(failure)) ?? Data("{}".utf8)
            return Routes.response(HTTPResponse.Status(code: failure.status), data)
        }
    }
}
