import Foundation
package import NIOCore
import NIOHTTP1
import NIOPosix
package import NIOSSL
import NIOTLS

/// Where a peer listens.
package enum HTTPEndpoint: Sendable, Equatable {
    case tcp(host: String, port: Int)
    case unixSocket(path: String)

    /// `HOST:PORT`, with `[…]` around an IPv6 address; nil if it is neither.
    package init?(hostAndPort text: String) {
        guard let colon = text.lastIndex(of: ":"), let port = Int(text[text.index(after: colon)...]),
            (1...65_535).contains(port)
        else { return nil }
        var host = String(text[..<colon])
        if host.hasPrefix("[") && host.hasSuffix("]") {
            host = String(host.dropFirst().dropLast())
        } else if host.contains(":") {
            return nil
        }
        guard !host.isEmpty, !host.contains(where: { $0.isWhitespace || $0 == "/" || $0 == "@" }) else { return nil }
        self = .tcp(host: host, port: port)
    }
}

extension HTTPEndpoint: CustomStringConvertible {
    package var description: String {
        switch self {
        case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .unixSocket(let path): path
        }
    }
}

/// How the peer proves who it is.
package struct LinkSecurity: Sendable {
    package typealias Verification =
        @Sendable ([NIOSSLCertificate], EventLoopPromise<NIOSSLVerificationResult>) -> Void

    package var context: NIOSSLContext
    /// The URI which the peer's certificate must carry, beside a valid chain to the context's roots.
    package var peerURI: String?
    /// The host name that the certificate must be for where the context verifies names; nil for an address.
    package var hostName: String?
    /// Replaces the verification against the context's roots altogether.
    package var verification: Verification?

    package init(
        context: NIOSSLContext, peerURI: String?, hostName: String? = nil, verification: Verification? = nil
    ) {
        self.context = context
        self.peerURI = peerURI
        self.hostName = hostName
        self.verification = verification
    }
}

package struct HTTPCall: Sendable {
    package var method: String
    package var path: String
    package var body: [UInt8]?

    package init(method: String, path: String, body: [UInt8]? = nil) {
        self.method = method
        self.path = path
        self.body = body
    }
}

package struct HTTPAnswer: Sendable {
    package var status: Int
    package var body: [UInt8]
}

/// Why there is no answer.
package enum HTTPFault: Error, Equatable {
    /// Nothing was sent.
    case unreachable(String)
    /// The peer is not who it should be, or does not speak TLS; nothing was sent.
    case wrongPeer(String)
    /// The peer ended the TLS session with an alert: it does not accept our certificate.
    case refusedByPeer(String)
    /// The connection ended before the whole answer was there; the call may have been carried out.
    case broken(String)
    case timedOut
    case malformedAnswer(String)
}

/// One HTTP/1.1 connection that carries one call after another, never two at a time.
///
/// Smaller than a pooled client on purpose: the peer's certificate is looked at before a byte is sent, and the caller
/// learns whether a call that failed can have reached the peer.
package final class HTTPLink: Sendable {
    /// Longest answer taken, in bytes.
    package static let answerLimitBytes = 16 << 20

    private let channel: any Channel

    private init(channel: any Channel) { self.channel = channel }

    package var isUsable: Bool { channel.isActive }

    package static func open(
        _ endpoint: HTTPEndpoint, security: LinkSecurity?, deadline: NIODeadline
    ) async throws -> HTTPLink {
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        let ready = loop.makePromise(of: Void.self)
        let remaining = max(deadline - .now(), .milliseconds(1))
        let bootstrap = ClientBootstrap(group: loop)
            .connectTimeout(remaining)
            .channelOption(.socketOption(.so_keepalive), value: 1)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try configure(channel, endpoint: endpoint, security: security, ready: ready)
                }
            }
        let channel: any Channel
        do {
            switch endpoint {
            case .tcp(let host, let port): channel = try await bootstrap.connect(host: host, port: port).get()
            case .unixSocket(let path): channel = try await bootstrap.connect(unixDomainSocketPath: path).get()
            }
        } catch {
            let fault = error as? HTTPFault ?? .unreachable(reason(of: error))
            ready.fail(fault)
            throw fault
        }
        let timer = loop.scheduleTask(deadline: deadline) {
            ready.fail(HTTPFault.timedOut)
            channel.close(promise: nil)
        }
        defer { timer.cancel() }
        try await withTaskCancellationHandler {
            try await ready.futureResult.get()
        } onCancel: {
            channel.close(promise: nil)
        }
        return HTTPLink(channel: channel)
    }

    /// Sends one call and waits for its answer, until the deadline; on any failure the connection is closed.
    package func exchange(_ call: HTTPCall, deadline: NIODeadline) async throws -> HTTPAnswer {
        let promise = channel.eventLoop.makePromise(of: HTTPAnswer.self)
        let channel = channel
        let timer = channel.eventLoop.scheduleTask(deadline: deadline) {
            promise.fail(HTTPFault.timedOut)
            channel.close(promise: nil)
        }
        defer { timer.cancel() }
        return try await withTaskCancellationHandler {
            let written = channel.eventLoop.makePromise(of: Void.self)
            // On a connection that was closed just now no handler is left to fail the exchange.
            written.futureResult.whenFailure { _ in promise.fail(HTTPFault.broken("the connection was closed")) }
            channel.writeAndFlush(HTTPLinkHandler.Exchange(call: call, promise: promise), promise: written)
            return try await promise.futureResult.get()
        } onCancel: {
            channel.close(promise: nil)
        }
    }

    package func close() { channel.close(promise: nil) }

    private static func configure(
        _ channel: any Channel, endpoint: HTTPEndpoint, security: LinkSecurity?, ready: EventLoopPromise<Void>
    ) throws {
        let pipeline = channel.pipeline.syncOperations
        if let security {
            let tls: NIOSSLClientHandler
            if let verification = security.verification {
                tls = try NIOSSLClientHandler(
                    context: security.context, serverHostname: nil, customVerificationCallback: verification)
            } else {
                tls = try NIOSSLClientHandler(context: security.context, serverHostname: security.hostName)
            }
            try pipeline.addHandler(tls)
        }
        try pipeline.addHTTPClientHandlers()
        let host =
            switch endpoint {
            case .tcp: endpoint.description
            case .unixSocket: "localhost"
            }
        try pipeline.addHandler(HTTPLinkHandler(host: host, security: security, ready: ready))
    }

    fileprivate static func reason(of error: any Error) -> String {
        switch error {
        case let error as IOError: errnoText(error.errnoCode)
        case let error as NIOConnectionError:
            if let first = error.connectionErrors.first {
                reason(of: first.error)
            } else if error.dnsAError != nil || error.dnsAAAAError != nil {
                "the host name \(error.host) cannot be resolved"
            } else {
                "no address answers"
            }
        case ChannelError.connectTimeout: "no answer within the time limit"
        default: String(describing: error)
        }
    }

    private static func errnoText(_ code: CInt) -> String {
        switch code {
        case ECONNREFUSED: "connection refused"
        case EHOSTUNREACH: "no route to the host"
        case ENETUNREACH: "the network is unreachable"
        case ETIMEDOUT: "no answer"
        case ENOENT: "no such socket"
        case EACCES: "permission denied"
        default: String(cString: strerror(code))
        }
    }
}

/// The connection's end of the pipeline: checks the peer, then takes one exchange after another.
private final class HTTPLinkHandler: ChannelDuplexHandler {
    typealias InboundIn = HTTPClientResponsePart
    typealias OutboundIn = Exchange
    typealias OutboundOut = HTTPClientRequestPart

    struct Exchange: Sendable {
        var call: HTTPCall
        var promise: EventLoopPromise<HTTPAnswer>
    }

    private struct Pending {
        var promise: EventLoopPromise<HTTPAnswer>
        var status = 0
        var body: [UInt8] = []
        var keepsAlive = true
    }

    private let host: String
    private let security: LinkSecurity?
    private let ready: EventLoopPromise<Void>
    private var pending: Pending?
    private var isReady = false

    init(host: String, security: LinkSecurity?, ready: EventLoopPromise<Void>) {
        self.host = host
        self.security = security
        self.ready = ready
    }

    func channelActive(context: ChannelHandlerContext) {
        if security == nil { becomeReady() }
        context.fireChannelActive()
    }

    private func becomeReady() {
        isReady = true
        ready.succeed()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case .handshakeCompleted? = event as? TLSUserEvent {
            do {
                try checkPeer(context)
                becomeReady()
            } catch {
                fail(error, context: context)
            }
        }
        context.fireUserInboundEventTriggered(event)
    }

    private func checkPeer(_ context: ChannelHandlerContext) throws {
        guard let wanted = security?.peerURI else { return }
        let certificate = try context.pipeline.syncOperations.nioSSL_peerCertificate()
        let names = certificate.map(CertificateNames.uris) ?? []
        guard names.contains(wanted) else {
            let found = names.isEmpty ? "no name" : names.joined(separator: ", ")
            throw HTTPFault.wrongPeer("its certificate says \(found), not \(wanted)")
        }
    }

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        let exchange = unwrapOutboundIn(data)
        guard pending == nil, context.channel.isActive else {
            let fault = HTTPFault.broken("the connection is closed")
            exchange.promise.fail(fault)
            promise?.fail(fault)
            return
        }
        pending = Pending(promise: exchange.promise)
        var headers: HTTPHeaders = ["host": host, "accept": "application/json"]
        if let body = exchange.call.body {
            headers.add(name: "content-type", value: "application/json")
            headers.add(name: "content-length", value: String(body.count))
        } else if exchange.call.method != "GET" {
            headers.add(name: "content-length", value: "0")
        }
        let head = HTTPRequestHead(
            version: .http1_1, method: HTTPMethod(rawValue: exchange.call.method), uri: exchange.call.path,
            headers: headers)
        context.write(wrapOutboundOut(.head(head)), promise: nil)
        if let body = exchange.call.body, !body.isEmpty {
            context.write(wrapOutboundOut(.body(.byteBuffer(ByteBuffer(bytes: body)))), promise: nil)
        }
        context.write(wrapOutboundOut(.end(nil)), promise: promise)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard pending != nil else {
            context.close(promise: nil)
            return
        }
        switch unwrapInboundIn(data) {
        case .head(let head):
            pending?.status = Int(head.status.code)
            pending?.keepsAlive = head.isKeepAlive
        case .body(let buffer):
            guard pending!.body.count + buffer.readableBytes <= HTTPLink.answerLimitBytes else {
                fail(HTTPFault.malformedAnswer("it is too long"), context: context)
                return
            }
            pending?.body.append(contentsOf: buffer.readableBytesView)
        case .end:
            guard let done = pending, done.status >= 200 else { return }
            pending = nil
            if !done.keepsAlive { context.close(promise: nil) }
            done.promise.succeed(HTTPAnswer(status: done.status, body: done.body))
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        fail(fault(of: error), context: context)
    }

    func channelInactive(context: ChannelHandlerContext) {
        fail(HTTPFault.broken("the connection was closed"), context: context)
        context.fireChannelInactive()
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        fail(HTTPFault.broken("the connection was closed"), context: context)
    }

    private func fault(of error: any Error) -> HTTPFault {
        switch error {
        case let fault as HTTPFault: return fault
        case let error as HTTPParserError: return .malformedAnswer("it is not HTTP: \(error)")
        case is NIOSSLExtraError: return .wrongPeer(String(describing: error))
        case let error as NIOSSLError:
            if case .uncleanShutdown = error { return .broken("the connection was cut") }
            let text = String(describing: error)
            if !isReady {
                return .wrongPeer(
                    text.contains("CERTIFICATE_VERIFY_FAILED")
                        ? "its certificate was not issued by this node's authority"
                        : "the TLS handshake failed: \(text)")
            }
            // In TLS 1.3 the client is done before the server has looked at its certificate.
            return text.contains("ALERT") ? .refusedByPeer(text) : .broken(text)
        default: return .broken(HTTPLink.reason(of: error))
        }
    }

    private func fail(_ error: any Error, context: ChannelHandlerContext) {
        if !isReady {
            let fault = error as? HTTPFault ?? .broken(String(describing: error))
            if case .broken(let text) = fault {
                ready.fail(HTTPFault.broken("the connection ended during the TLS handshake (\(text))"))
            } else {
                ready.fail(fault)
            }
        }
        pending?.promise.fail(error)
        pending = nil
        context.close(promise: nil)
    }
}

/// Names in a certificate.
package enum CertificateNames {
    /// The URIs of the subject's alternative names.
    package static func uris(of certificate: NIOSSLCertificate) -> [String] {
        certificate._subjectAlternativeNames().filter { $0.nameType == .uri }.map { name in
            name.contents.withUnsafeBufferPointer { String(decoding: $0, as: UTF8.self) }
        }
    }
}
