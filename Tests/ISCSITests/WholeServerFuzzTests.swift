import BlockIO
import Glibc
import Logging
import NIOCore
import NIOPosix
import SCSI
import Testing

@testable import ISCSI

/// The server as it is but for `accept`: connections are the ends of socket pairs, their bytes damaged captures.
@Suite("The whole server over socket pairs", .serialized)
struct WholeServerFuzzTests {
    private final class Server {
        let registry: TargetRegistry
        let context: ServerContext
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 2)
        private let logger: Logger

        init() throws {
            var limits = TargetLimits()
            limits.loginSeconds = 3
            registry = try Capture.registry(MemoryDevice(sizeBytes: 16 << 20), limits: limits)
            context = ServerContext(registry: registry)
            context.startThreads()
            var logger = Logger(label: "iscsi")
            logger.logLevel = .critical
            self.logger = logger
        }

        /// - Returns: the initiator's end.
        func connect() async throws -> Int32 {
            var pair: [Int32] = [-1, -1]
            guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0 else {
                throw IOError(errnoCode: errno, reason: "socketpair")
            }
            let context = context
            let logger = logger
            _ = try await ClientBootstrap(group: group).channelInitializer { channel in
                guard context.connectionBeganLogin() else { return channel.close() }
                return channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(
                        ConnectionHandler(server: context, portalGroupTag: 1, logger: logger))
                }
            }.withConnectedSocket(pair[0]).get()
            var timeout = timeval(tv_sec: 0, tv_usec: 20_000)
            setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
            return pair[1]
        }

        func stop() async throws {
            await context.stopThreads()
            try await group.shutdownGracefully()
        }
    }

    /// Sends without blocking for a server that has stopped reading, and takes what comes back: at least `least` bytes
    /// where that is asked for, as slow as the machine may be.
    private func exchange(_ descriptor: Int32, _ bytes: [UInt8], pieces: Int, least: Int = 0) -> Int {
        var received = 0
        var buffer = [UInt8](repeating: 0, count: 65_536)
        let piece = max(1, bytes.count / pieces)
        for start in stride(from: 0, to: bytes.count, by: piece) {
            let part = Array(bytes[start..<min(start + piece, bytes.count)])
            let sent = part.withUnsafeBytes {
                send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
            }
            if sent < 0 && errno != EAGAIN { break }
            received += max(0, recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT)))
        }
        let deadline = ContinuousClock.now + .seconds(60)
        while true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count < 0, errno == EAGAIN, received < least, ContinuousClock.now < deadline { continue }
            if count <= 0 { return received }
            received += count
        }
    }

    private func damaged(_ bytes: [UInt8], _ random: inout SplitMix) -> [UInt8] {
        var bytes = bytes
        for _ in 0..<Int.random(in: 1...8, using: &random) where !bytes.isEmpty {
            let at = Int.random(in: 0..<bytes.count, using: &random)
            switch Int.random(in: 0..<5, using: &random) {
            case 0: bytes[at] = UInt8.random(in: .min ... .max, using: &random)
            case 1: bytes[at] ^= 1 << UInt8.random(in: 0...7, using: &random)
            case 2: bytes.removeLast(bytes.count - at)
            case 3:
                let end = min(at + Int.random(in: 1...200, using: &random), bytes.count)
                bytes.insert(contentsOf: bytes[at..<end], at: at)
            default:
                let end = min(at + Int.random(in: 1...60, using: &random), bytes.count)
                bytes.removeSubrange(at..<end)
            }
        }
        return bytes
    }

    @Test("damaged connections neither crash the server nor stay, and an initiator that behaves is served all along")
    func damage() async throws {
        let server = try Server()
        let captures = try Capture.allCases.map { try $0.bytes() }
        let good = try Capture.qemuIO.bytes()
        let wanted = exchange(try await server.connect(), good, pieces: 1, least: 4097)
        #expect(wanted > 4096)
        var random = SplitMix(state: 20_261_121)
        for round in 0..<150 {
            let descriptor = try await server.connect()
            let bytes = damaged(captures[round % captures.count], &random)
            _ = exchange(descriptor, bytes, pieces: Int.random(in: 1...6, using: &random))
            if round % 3 != 0 { shutdown(descriptor, Int32(SHUT_WR)) }
            close(descriptor)
            guard round % 30 == 29 else { continue }
            let check = try await server.connect()
            #expect(exchange(check, good, pieces: 1, least: 4097) > 4096, "after round \(round)")
            close(check)
        }
        for _ in 0..<6000 where !server.registry.sessions().isEmpty {
            try await Task.sleep(for: .milliseconds(20))
        }
        #expect(server.registry.sessions().isEmpty)
        try await server.stop()
    }

    @Test("connections that say nothing, or half a login, are gone after the time for a login")
    func silence() async throws {
        let server = try Server()
        let login = try Capture.iscsiInq.bytes()
        var open: [Int32] = []
        for count in [0, 1, 47, 48, 60] {
            let descriptor = try await server.connect()
            _ = login.withUnsafeBytes { send(descriptor, $0.baseAddress, count, Int32(MSG_NOSIGNAL)) }
            open.append(descriptor)
        }
        for descriptor in open {
            var byte: UInt8 = 0
            var result = -1
            for _ in 0..<6000 where result < 0 { result = recv(descriptor, &byte, 1, 0) }
            #expect(result == 0, "the server closes")
            close(descriptor)
        }
        try await server.stop()
    }
}
