import BlockIO
import Glibc
import ISCSI
import Logging
import NIOCore
import NIOPosix
import SCSI

/// A real server on loopback, with one open target and one behind mutual CHAP.
final class RunningServer: Sendable {
    let registry: TargetRegistry
    let server: ISCSIServer
    let group: MultiThreadedEventLoopGroup
    let port: Int
    let device: MemoryDevice

    static let open = "iqn.2026-11.test:open"
    static let closed = "iqn.2026-11.test:closed"

    init(
        limits: TargetLimits = .init(), sizeBytes: UInt64 = 64 << 20, geometry: BlockGeometry = .init()
    ) async throws {
        registry = TargetRegistry(limits: limits)
        device = MemoryDevice(sizeBytes: sizeBytes, geometry: geometry)
        for (index, name) in [Self.open, Self.closed].enumerated() {
            try registry.addTarget(name)
            try registry.addLUN(
                name, lun: 0, device: index == 0 ? device : MemoryDevice(sizeBytes: 1 << 20),
                identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000000a\(index)", serial: "R\(index)"))
        }
        try registry.allow(Self.open, initiator: .any)
        try registry.allow(
            Self.closed, initiator: .any,
            chap: CHAPCredentials(
                user: "alice", secret: Array("wonderland-2026".utf8),
                mutual: .init(user: "target", secret: Array("looking-glass-2".utf8))))
        group = MultiThreadedEventLoopGroup(numberOfThreads: 2)
        var logger = Logger(label: "iscsi")
        logger.logLevel = .critical
        server = ISCSIServer(registry: registry, group: group, logger: logger)
        port = try await server.start(host: "127.0.0.1", port: 0).port ?? 0
    }

    func stop() async throws {
        await server.shutdown(graceSeconds: 1)
        try await group.shutdownGracefully()
    }

    /// A connected socket with a receive time-out.
    func connect() throws -> Int32 {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = UInt16(port).bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else { throw IOError(errnoCode: errno, reason: "connect") }
        var timeout = timeval(tv_sec: 60, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        return descriptor
    }

    /// Sends as much as goes; a peer that has closed is no error.
    static func send(_ descriptor: Int32, _ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    }

    /// Reads until the peer closes or nothing comes any more.
    static func readToEnd(_ descriptor: Int32) -> Int {
        var total = 0
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count <= 0 { return total }
            total += count
        }
    }
}

/// Runs a program of the system and collects what it prints.
enum Program {
    static func isInstalled(_ names: String...) -> Bool { names.allSatisfy { access("/usr/bin/\($0)", X_OK) == 0 } }

    /// - Returns: the exit status (124 after the time-out), and standard output and error together.
    static func run(_ arguments: [String], timeoutSeconds: Int = 240) -> (status: Int32, output: String) {
        let quoted = (["timeout", "\(timeoutSeconds)"] + arguments).map { "'\($0)'" }.joined(separator: " ")
        guard let pipe = popen("\(quoted) 2>&1", "r") else { return (-1, "popen failed") }
        var output: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = fread(&buffer, 1, buffer.count, pipe)
            if count == 0 { break }
            output += buffer[..<count]
        }
        let status = pclose(pipe)
        return ((status >> 8) & 0xFF, String(decoding: output, as: UTF8.self))
    }
}
