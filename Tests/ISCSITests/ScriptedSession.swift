import BlockIO
import NIOCore
import SCSI

@testable import ISCSI

/// A session in the full-feature phase with a target of two LUNs, driven by hand without sockets.
final class ScriptedSession: SessionTransport {
    let registry: TargetRegistry
    let device: any BlockDevice
    private(set) var session: Session!
    var isWritable = true
    private(set) var closeReason: String?
    /// Blocking operations wait here until the test lets them run.
    var blocked: [(operation: BlockingOperation, activity: CommandActivity, token: UInt64)] = []
    var runsBlockingAtOnce = true
    private var received = ByteBuffer()
    private var cmdSN: UInt32 = 100
    var nextTag: UInt32 = 1

    static let iqn = "iqn.2026-11.test:target"
    static let initiator = "iqn.2026-11.test:initiator"

    init(
        parameters: SessionParameters = ScriptedSession.defaults, device: (any BlockDevice)? = nil,
        limits: TargetLimits = .init(), isDiscovery: Bool = false,
        saysPowerOn: Bool = false
    ) throws {
        registry = TargetRegistry(limits: limits)
        self.device = device ?? MemoryDevice(sizeBytes: 16 << 20)
        try registry.addTarget(Self.iqn)
        for lun in 0..<2 {
            try registry.addLUN(
                Self.iqn, lun: lun, device: lun == 0 ? self.device : MemoryDevice(sizeBytes: 1 << 20),
                identity: LogicalUnitIdentity(
                    naa: "6589cfc000000000000000000000000\(lun)", serial: "S\(lun)"))
        }
        try registry.allow(Self.iqn, initiator: .any)
        let outcome = LoginOutcome(
            initiatorPort: InitiatorPort(name: Self.initiator, isid: 1), target: isDiscovery ? nil : Self.iqn,
            parameters: parameters, connectionID: 1, user: nil, commandSN: cmdSN, statusSN: 7)
        session = Session(
            outcome: outcome, limits: limits, counters: SessionCounters(),
            directory: TargetDirectory(
                registry: registry, iqn: isDiscovery ? "" : Self.iqn, saysPowerOn: saysPowerOn),
            localAddress: "192.0.2.1:3260", transport: self)
    }

    static var defaults: SessionParameters {
        var parameters = SessionParameters()
        parameters.initialR2T = false
        parameters.maxOutstandingR2T = 4
        parameters.sendSegmentBytes = 256 << 10
        return parameters
    }

    // MARK: SessionTransport

    func send(_ output: inout ByteBuffer) {
        received.writeBuffer(&output)
        output.clear()
    }

    func run(_ operation: BlockingOperation, _ activity: CommandActivity, token: UInt64) {
        blocked.append((operation, activity, token))
    }

    func drainCallback(token: UInt64) -> @Sendable () -> Void {
        // SAFETY: the tests call everything on one thread.
        nonisolated(unsafe) let session = session!
        return { session.drained(token) }
    }

    func close(_ reason: String) { closeReason = closeReason ?? reason }

    func runBlocked() {
        while !blocked.isEmpty {
            var (operation, activity, token) = blocked.removeFirst()
            while true {
                if let end = activity.unit.step(&operation, activity: activity) {
                    session.blockingFinished(token, end)
                    break
                }
            }
        }
    }

    // MARK: To the target

    /// Sends bytes as they are and lets the session answer.
    func deliver(_ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { session.receive($0) }
        session.flush()
        if runsBlockingAtOnce { runBlocked() }
    }

    func takeCmdSN() -> UInt32 {
        defer { cmdSN &+= 1 }
        return cmdSN
    }

    /// A command PDU; `flags` are F, R, W and the attribute.
    func command(
        _ cdb: [UInt8], flags: UInt8, expected: Int = 0, data: [UInt8] = [], lun: Int = 0, tag: UInt32? = nil,
        cmdSN: UInt32? = nil, isImmediate: Bool = false
    ) -> [UInt8] {
        var header = BasicHeader(.scsiCommand, flags: flags)
        if isImmediate { header[byte: 0] |= 0x40 }
        header.dataSegmentBytes = data.count
        header.lun = AbsentLogicalUnit.encode(lun)
        header.initiatorTaskTag = tag ?? takeTag()
        header[long: 20] = UInt32(expected)
        header.sequenceNumber = cmdSN ?? (isImmediate ? self.cmdSN : takeCmdSN())
        for (index, byte) in cdb.enumerated() { header[byte: 32 + index] = byte }
        return pdu(header, data)
    }

    func takeTag() -> UInt32 {
        defer { nextTag += 1 }
        return nextTag
    }

    func dataOut(
        tag: UInt32, transferTag: UInt32 = BasicHeader.reservedTag, dataSN: UInt32, offset: Int, _ data: [UInt8],
        isFinal: Bool
    ) -> [UInt8] {
        var header = BasicHeader(.dataOut, flags: isFinal ? 0x80 : 0)
        header.dataSegmentBytes = data.count
        header.initiatorTaskTag = tag
        header.targetTransferTag = transferTag
        header.dataSN = dataSN
        header.bufferOffset = UInt32(offset)
        return pdu(header, data)
    }

    func taskManagement(_ function: UInt8, lun: Int = 0, referenced: UInt32 = 0, referencedCmdSN: UInt32 = 0) -> [UInt8]
    {
        var header = BasicHeader(.taskManagement, flags: 0x80 | function)
        header[byte: 0] |= 0x40
        header.lun = AbsentLogicalUnit.encode(lun)
        header.initiatorTaskTag = takeTag()
        header[long: 20] = referenced
        header.sequenceNumber = cmdSN
        header[long: 32] = referencedCmdSN
        return pdu(header, [])
    }

    func text(_ keys: [(String, String)], tag: UInt32 = BasicHeader.reservedTag) -> [UInt8] {
        var text = TextKeys()
        for (key, value) in keys { text.append(key, value) }
        var header = BasicHeader(.textRequest)
        header.initiatorTaskTag = takeTag()
        header.targetTransferTag = tag
        header.sequenceNumber = takeCmdSN()
        header.dataSegmentBytes = text.encoded.count
        return pdu(header, text.encoded)
    }

    func pdu(_ header: BasicHeader, _ data: [UInt8]) -> [UInt8] {
        var buffer = ByteBuffer()
        header.write(to: &buffer)
        if session.framing.headerDigest { appendDigest(&buffer, from: 0) }
        let start = buffer.writerIndex
        buffer.writeBytes(data)
        buffer.writeRepeatingByte(0, count: paddedLength(data.count) - data.count)
        if session.framing.dataDigest && !data.isEmpty { appendDigest(&buffer, from: start) }
        return Array(buffer.readableBytesView)
    }

    private func appendDigest(_ buffer: inout ByteBuffer, from start: Int) {
        let end = buffer.writerIndex
        let digest = buffer.withUnsafeReadableBytes { PDUFraming.digest($0, start..<end) }
        buffer.writeInteger(digest, endianness: .little)
    }

    // MARK: From the target

    struct Answer {
        var header: BasicHeader
        var data: [UInt8]
        var status: UInt8 { header[byte: 3] }
        /// Key, code and qualifier of a response's fixed-format sense data.
        var sense: [UInt8] { data.count >= 16 ? [data[4] & 15, data[14], data[15]] : [] }
    }

    /// All PDUs that came since the last call.
    func answers() -> [Answer] {
        var framing = session.framing
        framing.dataSegmentLimit = 16 << 20
        var answers: [Answer] = []
        while received.readableBytes > 0 {
            guard case .frame(let frame) = received.withUnsafeReadableBytes({ framing.next($0) }),
                !frame.hasDataDigestError,
                let data = received.getBytes(at: received.readerIndex + frame.data.lowerBound, length: frame.data.count)
            else { break }
            received.moveReaderIndex(forwardBy: frame.byteCount)
            answers.append(Answer(header: frame.header, data: data))
        }
        received.discardReadBytes()
        return answers
    }

    /// Sends and collects.
    func exchange(_ bytes: [UInt8]) -> [Answer] {
        deliver(bytes)
        return answers()
    }
}

/// CDBs the tests use.
enum CDB {
    static let testUnitReady: [UInt8] = [0, 0, 0, 0, 0, 0]
    static let synchronizeCache: [UInt8] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    static func read(lba: UInt8, blocks: UInt16) -> [UInt8] {
        [0x28, 0, 0, 0, 0, lba, 0, UInt8(blocks >> 8), UInt8(blocks & 0xFF), 0]
    }
    static func write(lba: UInt8, blocks: UInt16) -> [UInt8] {
        [0x2A, 0, 0, 0, 0, lba, 0, UInt8(blocks >> 8), UInt8(blocks & 0xFF), 0]
    }
}

/// A seeded generator (SplitMix64), so that a failure can be repeated.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
