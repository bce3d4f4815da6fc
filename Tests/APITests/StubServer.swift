import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

/// An HTTP server that answers what a test tells it to.
final class StubServer: Sendable {
    struct Request: Sendable, Equatable {
        var method: String
        var uri: String
        var authorization: String?
        var body: String
    }

    struct Answer: Sendable {
        var status = 200
        var contentType = "application/json"
        /// Sent as they are, one after another.
        var chunks: [String]
        /// Close the connection before anything is answered.
        var hangsUp = false

        static func json(_ text: String, status: Int = 200) -> Answer { Answer(status: status, chunks: [text]) }
        static let nothing = Answer(status: 204, chunks: [])
    }

    private let channel: any Channel
    private let log = Mutex<[Request]>([])

    var requests: [Request] { log.withLock { $0 } }
    var port: Int { channel.localAddress?.port ?? 0 }
    var url: String { "http://127.0.0.1:\(port)" }

    init(_ answer: @escaping @Sendable (Request) -> Answer) async throws {
        let holder = Holder()
        channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.configureHTTPServerPipeline()
                    try channel.pipeline.syncOperations.addHandler(
                        Handler { request in
                            holder.server.withLock { $0 }?.note(request)
                            return answer(request)
                        })
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        holder.server.withLock { $0 = self }
    }

    func close() async { try? await channel.close() }

    private func note(_ request: Request) { log.withLock { $0.append(request) } }

    private final class Holder: Sendable {
        let server = Mutex<StubServer?>(nil)
    }

    private final class Handler: ChannelInboundHandler {
        typealias InboundIn = HTTPServerRequestPart
        typealias OutboundOut = HTTPServerResponsePart

        private let answer: @Sendable (Request) -> Answer
        private var head: HTTPRequestHead?
        private var body = ""

        init(answer: @escaping @Sendable (Request) -> Answer) { self.answer = answer }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            switch unwrapInboundIn(data) {
            case .head(let head):
                self.head = head
                body = ""
            case .body(let bytes): body += String(buffer: bytes)
            case .end:
                guard let head else { return }
                let request = Request(
                    method: head.method.rawValue, uri: head.uri,
                    authorization: head.headers.first(name: "Authorization"),
                    body: body)
                respond(answer(request), context: context)
            }
        }

        private func respond(_ answer: Answer, context: ChannelHandlerContext) {
            if answer.hangsUp {
                context.close(promise: nil)
                return
            }
            var head = HTTPResponseHead(version: .http1_1, status: .init(statusCode: answer.status))
            head.headers.add(name: "Content-Type", value: answer.contentType)
            if answer.chunks.count < 2 {
                head.headers.add(name: "Content-Length", value: "\(answer.chunks.first?.utf8.count ?? 0)")
            }
            context.writeAndFlush(wrapOutboundOut(.head(head)), promise: nil)
            for chunk in answer.chunks {
                context.writeAndFlush(
                    wrapOutboundOut(.body(.byteBuffer(ByteBuffer(string: chunk)))), promise: nil)
            }
            context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        }
    }
}
