import Glibc

/// A minimal iSCSI initiator on a blocking socket, one command at a time: for tests that need SCSI commands no ordinary
/// client sends, an ISID of their choice, or a connection that breaks at a moment of their choice.
public final class RawInitiator {
    public struct Failure: Error, CustomStringConvertible {
        public var description: String
    }

    /// How a command ended.
    public struct Answer: Equatable {
        public var status: UInt8
        public var data: [UInt8]
        /// Key, code and qualifier; empty without sense data.
        public var sense: [UInt8]
        public var isGood: Bool { status == 0 }
    }

    private let descriptor: Int32
    private var cmdSN: UInt32 = 1
    private var expStatSN: UInt32 = 0
    private var nextTag: UInt32 = 1

    /// Logs in.
    /// - Parameters:
    ///   - address: `HOST:PORT` with an IPv4 host.
    ///   - isid: 48 bits; with the name it is the initiator port.
    public init(_ address: String, target: String, initiator: String, isid: UInt64 = 0x8000_0000_0001) throws {
        descriptor = try Self.connect(address)
        var header = [UInt8](repeating: 0, count: 48)
        header[0] = 0x43
        // Transit from operational negotiation to the full-feature phase.
        header[1] = 0x87
        for index in 0..<6 { header[8 + index] = UInt8(truncatingIfNeeded: isid >> UInt64(40 - 8 * index)) }
        Self.set(&header, 24, cmdSN)
        let keys = [
            "InitiatorName=\(initiator)", "TargetName=\(target)", "SessionType=Normal", "HeaderDigest=None",
            "DataDigest=None", "InitialR2T=No", "ImmediateData=Yes", "MaxRecvDataSegmentLength=262144",
            "FirstBurstLength=262144", "MaxBurstLength=262144",
        ]
        do {
            try send(header, keys.flatMap { Array($0.utf8) + [0] })
            let (answer, _) = try receive()
            guard answer[0] & 0x3F == 0x23, answer[36] == 0, answer[1] & 0x80 != 0 else {
                throw Failure(description: "login answered with \(answer[36]),\(answer[37])")
            }
            expStatSN = Self.long(answer, 24) &+ 1
        } catch {
            Glibc.close(descriptor)
            throw error
        }
    }

    deinit { Glibc.close(descriptor) }

    /// Breaks the connection without a word, as a cut cable does.
    public func cut() { shutdown(descriptor, Int32(SHUT_RDWR)) }

    // MARK: Commands

    /// Sends a command and waits for its end.
    /// - Parameters:
    ///   - data: at most 256 KiB, sent with the command.
    ///   - readBytes: the most that is expected back.
    public func command(_ cdb: [UInt8], lun: UInt8 = 0, data: [UInt8] = [], readBytes: Int = 0) throws -> Answer {
        var header = [UInt8](repeating: 0, count: 48)
        header[0] = 0x01
        header[1] = 0x80 | (readBytes > 0 ? 0x40 : 0) | (data.isEmpty ? 0 : 0x20) | 0x01
        header[9] = lun
        let tag = nextTag
        nextTag &+= 1
        Self.set(&header, 16, tag)
        Self.set(&header, 20, UInt32(max(data.count, readBytes)))
        Self.set(&header, 24, cmdSN)
        Self.set(&header, 28, expStatSN)
        cmdSN &+= 1
        header.replaceSubrange(32..<32 + cdb.count, with: cdb)
        try send(header, data)
        var received: [UInt8] = []
        while true {
            let (answer, bytes) = try receive()
            switch answer[0] & 0x3F {
            case 0x25:
                received += bytes
                guard answer[1] & 0x01 != 0 else { continue }
                expStatSN = Self.long(answer, 24) &+ 1
                return Answer(status: answer[3], data: received, sense: [])
            case 0x21 where Self.long(answer, 16) == tag:
                expStatSN = Self.long(answer, 24) &+ 1
                let sense = bytes.count >= 16 ? [bytes[4] & 0x0F, bytes[14], bytes[15]] : []
                return Answer(status: answer[3], data: received, sense: sense)
            case 0x20: try answerPing(answer)
            case 0x32: expStatSN = Self.long(answer, 24) &+ 1
            default: throw Failure(description: "an answer with the opcode \(answer[0] & 0x3F)")
            }
        }
    }

    /// Sends a task management function (RFC 7143 11.5) and waits for its response.
    public func taskManagement(_ function: UInt8, lun: UInt8 = 0) throws -> UInt8 {
        var header = [UInt8](repeating: 0, count: 48)
        header[0] = 0x42
        header[1] = 0x80 | function
        header[9] = lun
        Self.set(&header, 16, nextTag)
        nextTag &+= 1
        Self.set(&header, 20, 0xFFFF_FFFF)
        Self.set(&header, 24, cmdSN)
        Self.set(&header, 28, expStatSN)
        try send(header, [])
        while true {
            let (answer, _) = try receive()
            guard answer[0] & 0x3F == 0x22 else { continue }
            expStatSN = Self.long(answer, 24) &+ 1
            return answer[2]
        }
    }

    /// Waits for an Async message (RFC 7143 11.9).
    /// - Returns: its event and its third parameter.
    public func asyncMessage() throws -> (event: UInt8, parameter3: UInt16) {
        while true {
            let (answer, _) = try receive()
            if answer[0] & 0x3F == 0x32 { return (answer[36], UInt16(answer[42]) << 8 | UInt16(answer[43])) }
        }
    }

    /// Waits until the target closes the connection.
    public func awaitClose() {
        while (try? receive()) != nil {}
    }

    /// TEST UNIT READY until there is no unit attention any more.
    /// - Returns: the codes and qualifiers of those that there were.
    @discardableResult
    public func clearAttentions(lun: UInt8 = 0) throws -> [[UInt8]] {
        var found: [[UInt8]] = []
        while true {
            let answer = try command([0, 0, 0, 0, 0, 0], lun: lun)
            guard answer.status == 2, answer.sense.first == 6 else { return found }
            found.append(Array(answer.sense[1...]))
        }
    }

    public func write(lba: UInt32, _ data: [UInt8], lun: UInt8 = 0) throws -> Answer {
        let blocks = UInt16(data.count / 512)
        return try command(
            [0x2A, 0] + Self.bytes(lba) + [0, UInt8(blocks >> 8), UInt8(blocks & 0xFF), 0], lun: lun, data: data)
    }

    public func read(lba: UInt32, blocks: UInt16, lun: UInt8 = 0) throws -> Answer {
        try command(
            [0x28, 0] + Self.bytes(lba) + [0, UInt8(blocks >> 8), UInt8(blocks & 0xFF), 0], lun: lun,
            readBytes: Int(blocks) * 512)
    }

    public func inquiry(page: UInt8) throws -> [UInt8] {
        try command([0x12, 1, page, 1, 0, 0], readBytes: 256).data
    }

    /// PERSISTENT RESERVE OUT; `flags` are byte 20 of the list: 01h APTPL, 04h ALL_TG_PT.
    public func reserveOut(
        _ action: UInt8, type: UInt8 = 0, key: UInt64 = 0, newKey: UInt64 = 0, flags: UInt8 = 0
    ) throws -> Answer {
        var list = [UInt8](repeating: 0, count: 24)
        for index in 0..<8 {
            list[index] = UInt8(truncatingIfNeeded: key >> UInt64(56 - 8 * index))
            list[8 + index] = UInt8(truncatingIfNeeded: newKey >> UInt64(56 - 8 * index))
        }
        list[20] = flags
        return try command([0x5F, action, type, 0, 0, 0, 0, 0, 24, 0], data: list)
    }

    /// The keys that are registered.
    public func reservationKeys() throws -> [UInt64] {
        let data = try command([0x5E, 0, 0, 0, 0, 0, 0, 2, 0, 0], readBytes: 512).data
        guard data.count >= 8 else { return [] }
        return stride(from: 8, to: data.count - 7, by: 8).map { start in
            data[start..<start + 8].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        }
    }

    // MARK: PDUs

    private func answerPing(_ ping: [UInt8]) throws {
        guard Self.long(ping, 20) != 0xFFFF_FFFF else { return }
        var header = [UInt8](repeating: 0, count: 48)
        header[0] = 0x40
        header[1] = 0x80
        Self.set(&header, 16, 0xFFFF_FFFF)
        Self.set(&header, 20, Self.long(ping, 20))
        Self.set(&header, 24, cmdSN)
        Self.set(&header, 28, expStatSN)
        try send(header, [])
    }

    private func send(_ header: [UInt8], _ data: [UInt8]) throws {
        var bytes = header
        bytes[5] = UInt8(data.count >> 16 & 0xFF)
        bytes[6] = UInt8(data.count >> 8 & 0xFF)
        bytes[7] = UInt8(data.count & 0xFF)
        bytes += data + [UInt8](repeating: 0, count: (4 - data.count % 4) % 4)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw Failure(description: "the connection broke while sending (errno \(errno))") }
            done += count
        }
    }

    private func receive() throws -> (header: [UInt8], data: [UInt8]) {
        let header = try receive(48)
        let count = Int(header[5]) << 16 | Int(header[6]) << 8 | Int(header[7])
        let data = try receive((count + 3) / 4 * 4)
        return (header, Array(data.prefix(count)))
    }

    private func receive(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let received = bytes.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress! + done, count - done, 0) }
            guard received > 0 else { throw Failure(description: "the connection broke (errno \(errno))") }
            done += received
        }
        return bytes
    }

    private static func connect(_ address: String) throws -> Int32 {
        guard let colon = address.lastIndex(of: ":"), let port = UInt16(address[address.index(after: colon)...]) else {
            throw Failure(description: "\(address) is no HOST:PORT")
        }
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var socketAddress = sockaddr_in()
        socketAddress.sin_family = sa_family_t(AF_INET)
        socketAddress.sin_port = port.bigEndian
        socketAddress.sin_addr.s_addr = inet_addr(String(address[..<colon]))
        let result = withUnsafePointer(to: &socketAddress) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else {
            let reason = errno
            Glibc.close(descriptor)
            throw Failure(description: "cannot connect to \(address): \(String(cString: strerror(reason)))")
        }
        var timeout = timeval(tv_sec: 120, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        var one: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
        return descriptor
    }

    private static func set(_ bytes: inout [UInt8], _ index: Int, _ value: UInt32) {
        bytes.replaceSubrange(index..<index + 4, with: Self.bytes(value))
    }

    private static func long(_ bytes: [UInt8], _ index: Int) -> UInt32 {
        bytes[index..<index + 4].reduce(0) { $0 << 8 | UInt32($1) }
    }

    private static func bytes(_ value: UInt32) -> [UInt8] {
        [UInt8(value >> 24), UInt8(value >> 16 & 0xFF), UInt8(value >> 8 & 0xFF), UInt8(value & 0xFF)]
    }
}
