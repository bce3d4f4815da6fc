import AsyncHTTPClient
public import Foundation
import NIOCore
import NIOFoundationCompat
import NIOHTTP1
import NIOPosix
import NIOSSL

/// A client of the storage node's REST API: one method per route, typed by the structs in `API/Types`.
///
/// Every method throws ``APIFailure`` when the node answered with an error, ``NodeUnreachable`` when no answer came,
/// and ``UnexpectedAnswer`` when the answer was not one of this API. Call ``close()`` when done.
public final class NodeClient: Sendable {
    public struct Settings: Sendable {
        /// `https://HOST:PORT` or `http://HOST:PORT`, without a path.
        public var url: URL
        /// The administrator's token; nil only for ``NodeClient/health()``.
        public var token: String?
        /// PEM of the certificate authority that must have signed the node's certificate; nil trusts the system's.
        public var authorityPEM: String?
        /// The longest wait for one answer. Event streams are not limited by it.
        public var timeoutSeconds: Double
        /// The longest wait for a connection.
        public var connectTimeoutSeconds: Double

        public init(
            url: URL, token: String? = nil, authorityPEM: String? = nil, timeoutSeconds: Double = 60,
            connectTimeoutSeconds: Double = 5
        ) {
            self.url = url
            self.token = token
            self.authorityPEM = authorityPEM
            self.timeoutSeconds = timeoutSeconds
            self.connectTimeoutSeconds = connectTimeoutSeconds
        }
    }

    public let settings: Settings
    private let base: String
    private let http: HTTPClient

    /// No answer of the API is larger; evidence with all its artifacts is at most 1 MiB per snapshot.
    static let maximumAnswerBytes = 64 << 20

    /// - Throws: ``InvalidNodeSettings`` for a URL that is not `http(s)://HOST[:PORT]`, or a PEM that cannot be read.
    public init(_ settings: Settings) throws {
        self.settings = settings
        guard let scheme = settings.url.scheme?.lowercased(), scheme == "http" || scheme == "https",
            let host = settings.url.host(percentEncoded: true), !host.isEmpty
        else {
            throw InvalidNodeSettings(
                message: "\(settings.url.absoluteString) is not the address of a node",
                hint: "Write it as https://HOST:PORT")
        }
        let bracketed = host.contains(":") && !host.hasPrefix("[") ? "[\(host)]" : host
        base = scheme + "://" + bracketed + (settings.url.port.map { ":\($0)" } ?? "")
        var tls = TLSConfiguration.makeClientConfiguration()
        tls.minimumTLSVersion = .tlsv12
        if let pem = settings.authorityPEM {
            do {
                tls.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(Array(pem.utf8)))
            } catch {
                throw InvalidNodeSettings(
                    message: "The certificate authority given for \(base) is not a PEM certificate", hint: nil)
            }
        }
        var configuration = HTTPClient.Configuration(tlsConfiguration: tls, redirectConfiguration: .disallow)
        configuration.timeout = .init(connect: .milliseconds(Int64(settings.connectTimeoutSeconds * 1000)))
        // Nobody listening is an answer, too: whoever waits for a node asks again.
        configuration.connectionPool.retryConnectionEstablishment = false
        // HTTP/1.1 is enough, and a server-sent event stream then has a connection of its own.
        configuration.httpVersion = .http1Only
        http = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
    }

    public func close() async {
        try? await http.shutdown()
    }

    // MARK: Requests

    /// One answer: its status and its bytes.
    struct Answer {
        var status: Int
        var body: ByteBuffer
    }

    func get<Value: Decodable>(_ path: String, as type: Value.Type = Value.self) async throws -> Value {
        try decode(try await send(.GET, path), as: type, path: path)
    }

    func post<Value: Decodable>(
        _ path: String, _ body: some Encodable, as type: Value.Type = Value.self
    ) async throws -> Value {
        try decode(try await send(.POST, path, body: try APIJSON.encoder().encode(body)), as: type, path: path)
    }

    func delete(_ path: String) async throws -> Answer {
        try await send(.DELETE, path)
    }

    func send(_ method: HTTPMethod, _ path: String, body: Data? = nil) async throws -> Answer {
        let response: HTTPClientResponse
        let bytes: ByteBuffer
        do {
            response = try await http.execute(
                request(method, path, body: body),
                timeout: .milliseconds(Int64(settings.timeoutSeconds * 1000)))
            bytes = try await response.body.collect(upTo: Self.maximumAnswerBytes)
        } catch {
            throw unreachable(error)
        }
        let answer = Answer(status: Int(response.status.code), body: bytes)
        guard (200..<300).contains(answer.status) else { throw failure(answer) }
        return answer
    }

    /// A response whose body goes on for as long as the node sends.
    func stream(_ path: String, accepting type: String = "text/event-stream") async throws -> HTTPClientResponse {
        var request = request(.GET, path, body: nil)
        request.headers.replaceOrAdd(name: "Accept", value: type)
        let response: HTTPClientResponse
        do {
            response = try await http.execute(request, deadline: .distantFuture)
        } catch {
            throw unreachable(error)
        }
        let status = Int(response.status.code)
        guard (200..<300).contains(status) else {
            let bytes = (try? await response.body.collect(upTo: 1 << 20)) ?? ByteBuffer()
            throw failure(Answer(status: status, body: bytes))
        }
        return response
    }

    /// Sends a body as it comes, without a limit of time.
    func upload(_ path: String, _ body: some AsyncSequence<ByteBuffer, any Error> & Sendable) async throws -> Answer {
        var request = request(.POST, path, body: nil)
        request.headers.add(name: "Content-Type", value: "application/octet-stream")
        request.body = .stream(body, length: .unknown)
        let answer: Answer
        do {
            let response = try await http.execute(request, deadline: .distantFuture)
            let bytes = try await response.body.collect(upTo: Self.maximumAnswerBytes)
            answer = Answer(status: Int(response.status.code), body: bytes)
        } catch {
            throw unreachable(error)
        }
        guard (200..<300).contains(answer.status) else { throw failure(answer) }
        return answer
    }

    private func request(_ method: HTTPMethod, _ path: String, body: Data?) -> HTTPClientRequest {
        var request = HTTPClientRequest(url: base + path)
        request.method = method
        request.headers.add(name: "Accept", value: "application/json")
        request.headers.add(name: "User-Agent", value: "stillpoint")
        if let token = settings.token { request.headers.add(name: "Authorization", value: "Bearer \(token)") }
        if let body {
            request.headers.add(name: "Content-Type", value: "application/json")
            request.body = .bytes(ByteBuffer(bytes: body))
        }
        return request
    }

    // MARK: Answers

    func decode<Value: Decodable>(
        _ answer: Answer, as type: Value.Type = Value.self, path: String
    ) throws -> Value {
        do {
            return try APIJSON.decoder().decode(type, from: Data(buffer: answer.body))
        } catch {
            throw UnexpectedAnswer(
                message: "The node at \(base) answered \(path) with something this program does not understand",
                cause: String(describing: error))
        }
    }

    private func failure(_ answer: Answer) -> any Error {
        if var failure = try? APIJSON.decoder().decode(APIFailure.self, from: Data(buffer: answer.body)) {
            failure.status = answer.status
            return failure
        }
        return APIFailure(
            status: answer.status, code: "http\(answer.status)",
            message: "\(base) answered with HTTP status \(answer.status)",
            hint: answer.status == 401
                ? "Give the administrator's token with --token-file"
                : "Is this address a Stillpoint node?")
    }

    func unreachable(_ error: any Error) -> any Error {
        if error is CancellationError { return error }
        return NodeUnreachable(address: base, cause: NodeUnreachable.sentence(for: error))
    }
}

/// The node did not answer: nothing listens there, the network is down, its certificate is not the expected one, or the
/// connection was lost in between, in which case it is not known whether the request was carried out.
public struct NodeUnreachable: Error, Sendable, Equatable, CustomStringConvertible {
    public var address: String
    public var cause: String

    public init(address: String, cause: String) {
        self.address = address
        self.cause = cause
    }

    public var description: String { "The node at \(address) cannot be reached: \(cause)" }

    static func sentence(for error: any Error) -> String {
        switch error {
        case let error as HTTPClientError where error == .connectTimeout: "no connection within the time limit"
        case let error as HTTPClientError where error == .deadlineExceeded: "no answer within the time limit"
        case let error as HTTPClientError where error == .readTimeout: "no answer within the time limit"
        case let error as HTTPClientError where error == .remoteConnectionClosed:
            "it closed the connection before it answered"
        case let error as NIOConnectionError:
            (error.connectionErrors.last.map { reason($0.error) } ?? error.dnsAError.map { "\($0)" })
                ?? "its name cannot be resolved"
        default: reason(error)
        }
    }

    private static func reason(_ error: any Error) -> String {
        if let error = error as? IOError { return String(cString: strerror(error.errnoCode)) }
        if error is NIOSSLError || error is NIOSSLExtraError || error is BoringSSLError {
            let details = String(describing: error)
            if details.contains("CERTIFICATE_VERIFY_FAILED") {
                return "its certificate was not signed by the authority given, or trusted here"
            }
            if details.contains("failedToValidateHostname") { return "its certificate is not for this host name" }
            if details.contains("WRONG_VERSION_NUMBER") { return "it does not speak TLS" }
            return "TLS failed (\(details))"
        }
        return String(describing: error)
    }
}

/// The other side answered, but not as this API does.
public struct UnexpectedAnswer: Error, Sendable, CustomStringConvertible {
    public var message: String
    public var cause: String

    public var description: String { "\(message). (\(cause))" }
}

/// The address or the certificate authority given for a node cannot be used.
public struct InvalidNodeSettings: Error, Sendable, CustomStringConvertible {
    public var message: String
    public var hint: String?

    public var description: String { hint.map { "\(message). \($0)" } ?? message }
}
