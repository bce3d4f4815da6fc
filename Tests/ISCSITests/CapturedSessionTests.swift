import BlockIO
import Glibc
import NIOCore
import SCSI
import Testing

@testable import ISCSI

/// What real initiators sent over loopback to this target (`iqn.2026-11.bench:v`, LUN 1 of 16 MiB), whole connections
/// from the first login PDU to the last: libiscsi 1.19's iscsi-ls -s, iscsi-inq and iscsi-swp, and QEMU 7.2's qemu-io
/// with `write -P 0x5a 4k 4k`, `read`, `flush`, `discard`, `read -P 0`, `write -z 64k 64k`; with a header digest
/// `write -P 0x11 8k 512`, `read`, `flush`. They are fuzzing's corpus, too.
enum Capture: String, CaseIterable {
    case iscsiLS = "iscsi-ls"
    case iscsiInq = "iscsi-inq"
    case iscsiSWP = "iscsi-swp"
    case qemuIO = "qemu-io"
    case qemuIODigest = "qemu-io-digest"

    static let iqn = "iqn.2026-11.bench:v"
    static let lun = 1

    func bytes() throws -> [UInt8] {
        // The tests are compiled through a symbolic link, too.
        let source = try #require(realpath(#filePath, nil))
        defer { free(source) }
        let root = String(cString: source).split(separator: "/").dropLast(3).joined(separator: "/")
        let file = try #require(fopen("/\(root)/Fuzzing/Corpus/Connection/\(rawValue).bin", "r"))
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        let count = fread(&bytes, 1, bytes.count, file)
        return Array(bytes[..<count])
    }

    static func registry(_ device: any BlockDevice, limits: TargetLimits = .init()) throws -> TargetRegistry {
        let registry = TargetRegistry(limits: limits)
        try registry.addTarget(iqn)
        try registry.addLUN(
            iqn, lun: lun, device: device,
            identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000000aa", serial: "B"))
        try registry.allow(iqn, initiator: .any)
        return registry
    }
}

/// One connection from its first byte, without sockets: the login machine, then the session.
final class ReplayedConnection: SessionTransport {
    private let registry: TargetRegistry
    private var login: LoginMachine
    private var session: Session?
    private var input: [UInt8] = []
    private(set) var output: [UInt8] = []
    private(set) var closeReason: String?
    let isWritable = true

    init(_ registry: TargetRegistry) {
        self.registry = registry
        login = LoginMachine(limits: registry.limits, policy: registry, random: countingRandom())
    }

    func receive(_ bytes: ArraySlice<UInt8>) {
        input += bytes
        while session == nil, closeReason == nil, stepLogin() {}
        guard let session, closeReason == nil else { return }
        let used = input.withUnsafeBytes { session.receive($0).used }
        input.removeFirst(used)
        session.flush()
    }

    private func stepLogin() -> Bool {
        let framing = PDUFraming(dataSegmentLimit: registry.limits.textBytes)
        guard case .frame(let frame) = input.withUnsafeBytes({ framing.next($0) }) else { return false }
        let data = Array(input[frame.data])
        input.removeFirst(frame.byteCount)
        switch login.receive(frame.header, data) {
        case .respond(let header, let text): append(header, text)
        case .fail(let header, let failure):
            append(header, [])
            close(failure.message)
        case .drop(let failure): close(failure.message)
        case .open(let outcome):
            let (header, text) = login.accept(tsih: 1)
            append(header, text)
            session = Session(
                outcome: outcome, limits: registry.limits, counters: SessionCounters(),
                directory: TargetDirectory(registry: registry, iqn: outcome.target ?? ""),
                localAddress: "192.0.2.1:3260", transport: self)
        }
        return true
    }

    private func append(_ header: BasicHeader, _ text: [UInt8]) {
        var buffer = ByteBuffer()
        header.write(to: &buffer)
        buffer.writeBytes(text + [UInt8](repeating: 0, count: paddedLength(text.count) - text.count))
        send(&buffer)
    }

    func send(_ output: inout ByteBuffer) {
        self.output += output.readableBytesView
        output.clear()
    }

    func run(_ operation: BlockingOperation, _ activity: CommandActivity, token: UInt64) {
        var operation = operation
        while true {
            guard let end = activity.unit.step(&operation, activity: activity) else { continue }
            session?.blockingFinished(token, end)
            return
        }
    }

    func drainCallback(token: UInt64) -> @Sendable () -> Void {
        // SAFETY: the tests call everything on one thread.
        nonisolated(unsafe) let session = session
        return { session?.drained(token) }
    }

    func close(_ reason: String) { closeReason = closeReason ?? reason }

    /// The PDUs that went out, login responses first.
    func answers() -> [(header: BasicHeader, data: [UInt8])] {
        var framing = PDUFraming(dataSegmentLimit: 1 << 24)
        var answers: [(BasicHeader, [UInt8])] = []
        var rest = output[...]
        while !rest.isEmpty {
            let step = Array(rest).withUnsafeBytes { framing.next($0) }
            guard case .frame(let frame) = step else {
                Issue.record("no PDU: \(step)")
                break
            }
            let start = rest.startIndex
            answers.append((frame.header, Array(rest[start + frame.data.lowerBound..<start + frame.data.upperBound])))
            rest = rest.dropFirst(frame.byteCount)
            if frame.header.opcode == .loginResponse, frame.header.flags & 0x83 == 0x83 {
                framing.headerDigest = session?.parameters.headerDigest ?? false
                framing.dataDigest = session?.parameters.dataDigest ?? false
            }
        }
        return answers
    }
}

@Suite("Whole connections of real initiators, as captured")
struct CapturedSessionTests {
    private func replay(
        _ capture: Capture, onto device: MemoryDevice = MemoryDevice(sizeBytes: 16 << 20), piece: Int = .max
    ) throws -> ReplayedConnection {
        let connection = ReplayedConnection(try Capture.registry(device))
        let bytes = try capture.bytes()
        for start in stride(from: 0, to: bytes.count, by: min(piece, bytes.count)) {
            connection.receive(bytes[start..<min(start + min(piece, bytes.count), bytes.count)])
        }
        return connection
    }

    @Test(
        "every command of every capture is answered, none is rejected, and the connection ends by logout",
        arguments: Capture.allCases)
    func answered(_ capture: Capture) throws {
        let connection = try replay(capture)
        #expect(connection.closeReason == "it logged out" || connection.closeReason == nil, "\(capture)")
        let answers = connection.answers()
        #expect(answers.allSatisfy { $0.header.opcode != .reject })
        for answer in answers where answer.header.opcode == .scsiResponse && answer.header[byte: 3] != 0 {
            // A new I_T nexus begins with 29/00; and a mode or VPD page that is not there is asked for in vain.
            #expect(answer.data.count >= 16 && [0x05, 0x06].contains(answer.data[4] & 0x0F), "\(capture): \(answer)")
        }
        let statSN = answers.filter { $0.header.opcode != .readyToTransfer && $0.header.flags & 0x81 != 0 }
            .filter { $0.header.opcode != .dataIn || $0.header.flags & 1 != 0 }.map(\.header.sequenceNumber)
        for (before, after) in zip(statSN, statSN.dropFirst()) { #expect(after == before &+ 1, "\(capture)") }
    }

    @Test("QEMU's write is on the device, its reads bring it back, its discard makes zeros")
    func qemu() throws {
        let device = MemoryDevice(sizeBytes: 16 << 20)
        let reads = try replay(.qemuIO, onto: device).answers().filter { $0.header.opcode == .dataIn }.map(\.data)
        #expect(reads.contains([UInt8](repeating: 0x5A, count: 4096)))
        #expect(reads.last { $0.count == 4096 } == [UInt8](repeating: 0, count: 4096))
        let digested = try replay(.qemuIODigest, onto: device)
        let data = digested.answers().filter { $0.header.opcode == .dataIn }.map(\.data)
        #expect(data.contains { $0.count >= 512 && $0[..<512].allSatisfy { $0 == 0x11 } })
    }

    @Test("iscsi-ls is told the target and its address")
    func discovery() throws {
        let text = try replay(.iscsiLS).answers().filter { $0.header.opcode == .textResponse }.flatMap(\.data)
        #expect(
            try TextKeys(text).pairs.map(\.value) == [Capture.iqn, "192.0.2.1:3260,1"])
    }

    @Test("wherever TCP cuts the stream, the answers are the same", arguments: Capture.allCases)
    func cuts(_ capture: Capture) throws {
        let whole = try replay(capture).output
        for piece in [1, 7, 47, 48, 49, 1000] { #expect(try replay(capture, piece: piece).output == whole) }
    }
}
