import NIOCore
import SCSI

/// What a session asks of its connection; all on the connection's event loop.
protocol SessionTransport: AnyObject {
    /// Takes the bytes and sends them.
    func send(_ output: inout ByteBuffer)
    /// False while the peer reads too slowly: produce nothing that can wait.
    var isWritable: Bool { get }
    /// Runs the operation on a thread that may wait, then calls ``Session/blockingFinished(_:_:)``.
    func run(_ operation: BlockingOperation, _ activity: CommandActivity, token: UInt64)
    /// A closure that may be called once from any thread and leads to ``Session/drained(_:)``.
    func drainCallback(token: UInt64) -> @Sendable () -> Void
    /// Closes the connection after what was sent.
    func close(_ reason: String)
}

/// What a session asks of the registry; thread-safe.
protocol SessionDirectory: Sendable {
    /// The LUNs of the session's target, ascending.
    func luns() -> [Int]
    /// Opens an I_T nexus to a LUN; nil when there is no such LUN.
    func attach(lun: Int, initiatorPort: InitiatorPort) -> LogicalUnitNexus?
    /// The targets that the initiator may log in to, each with the addresses at which it can be reached.
    /// - Parameters:
    ///   - name: restricts the answer to one target.
    ///   - localAddress: where the initiator reached us.
    func discover(initiator: String, name: String?, localAddress: String) -> [(iqn: String, addresses: [String])]
    /// TARGET COLD RESET: ends the sessions of the target.
    func dropAllSessions()
}

/// The full-feature phase of one session with its one connection (RFC 7143 ErrorRecoveryLevel 0), without sockets.
///
/// Confined to one event loop. Bytes come in through ``receive(_:)`` and go out through the transport.
final class Session {
    let outcome: LoginOutcome
    let limits: TargetLimits
    let counters: SessionCounters
    let directory: any SessionDirectory
    /// The address at which the initiator reached us, for SendTargets.
    let localAddress: String
    unowned let transport: any SessionTransport
    var parameters: SessionParameters
    var framing: PDUFraming
    var output: ByteBuffer

    // Sequence numbers (RFC 7143 4.2.2).
    var expCmdSN: UInt32
    var maxCmdSN: UInt32
    var statSN: UInt32
    /// PDUs that came before their turn, by CmdSN.
    var held: [UInt32: (header: BasicHeader, data: [UInt8])] = [:]
    var heldBytes = 0

    var nexuses: [Int: LogicalUnitNexus] = [:]
    /// Commands that did not end at once, by initiator task tag.
    var outstanding: [UInt32: OutstandingCommand] = [:]
    /// Reads whose data is still to be sent, in order.
    var reads: [ReadTransfer] = []
    /// Commands that wait for others of their task set, in the order in which they came.
    var dormant: [DormantCommand] = []
    /// A command waits, or one is under way that others have to wait for.
    var isOrdering = false
    var gatheredBytes = 0
    var nextTransferTag: UInt32 = 1
    var nextToken: UInt64 = 1
    /// Blocking operations by token; the command may be gone already.
    var running: [UInt64: RunningOperation] = [:]
    var drains: [UInt64: PendingTaskManagement] = [:]
    var textRequest: [UInt8] = []
    var textAnswer: [UInt8] = []
    var textTag: UInt32 = BasicHeader.reservedTag

    /// When the bytes came that are being handled.
    var receivedAt: UInt64 = 0
    /// Commands in a row that came when the initiator had the answers to all before them: it sends one at a time.
    private var commandsInStep = 0
    /// The StatSN of the next answer when output was last sent, and the one that the initiator expected when it sent
    /// its last command.
    private var sentStatSN: UInt32
    private var seenStatSN: UInt32
    var isClosing = false
    var hasReceived = true
    var silentSince: Int64 = 0
    var pingedAt: Int64?

    /// Output is handed to the transport when it has so many bytes, so that it is bounded.
    static let sendBytes = 256 << 10
    private static let commandsUntilInStep = 16
    /// An initiator that has so many answers before it is in no hurry for more.
    private static let answersAhead: Int32 = 2

    init(
        outcome: LoginOutcome, limits: TargetLimits, counters: SessionCounters, directory: any SessionDirectory,
        localAddress: String, transport: any SessionTransport
    ) {
        self.outcome = outcome
        self.limits = limits
        self.counters = counters
        self.directory = directory
        self.localAddress = localAddress
        self.transport = transport
        parameters = outcome.parameters
        framing = PDUFraming(
            headerDigest: outcome.parameters.headerDigest, dataDigest: outcome.parameters.dataDigest,
            dataSegmentLimit: limits.receiveSegmentBytes)
        output = ByteBufferAllocator().buffer(capacity: Self.sendBytes + (64 << 10))
        expCmdSN = outcome.commandSN
        maxCmdSN = outcome.commandSN &+ UInt32(limits.commandsPerSession) &- 1
        statSN = outcome.statusSN
        sentStatSN = outcome.statusSN
        seenStatSN = outcome.statusSN
    }

    var isDiscovery: Bool { outcome.target == nil }

    // MARK: Input

    /// Handles the whole PDUs in `bytes`.
    /// - Returns: how many bytes were used up, and how many the next PDU needs at least.
    func receive(_ bytes: UnsafeRawBufferPointer) -> (used: Int, needed: Int) {
        hasReceived = true
        receivedAt = MonotonicClock.nanoseconds()
        var used = 0
        while !isClosing && transport.isWritable {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[used...])
            switch framing.next(rest) {
            case .needs(let count):
                return (used, count)
            case .failed(let error):
                close("the stream cannot be followed any more: \(error)")
            case .frame(let frame):
                used += frame.byteCount
                handle(frame, data: UnsafeRawBufferPointer(rebasing: rest[frame.data]))
                if output.readableBytes >= Self.sendBytes { sendOutput() }
            }
        }
        return (used, BasicHeader.byteCount)
    }

    /// Hands the output to the transport, and takes the empty buffer back. While the transport has it nobody else does:
    /// what it calls may produce output of its own, which follows.
    func sendOutput() {
        var full = ByteBuffer()
        swap(&full, &output)
        sentStatSN = statSN
        transport.send(&full)
        if output.capacity == 0 { output = full }
    }

    /// Sends what the last PDUs produced.
    func flush() {
        pump()
        while isOrdering, !isClosing, wake() { pump() }
        if output.readableBytes > 0 { sendOutput() }
    }

    private func handle(_ frame: PDUFraming.Frame, data: UnsafeRawBufferPointer) {
        if frame.hasDataDigestError {
            dataDigestFailed(frame.header)
            return
        }
        let header = frame.header
        guard let opcode = header.opcode else {
            reject(header, .commandNotSupported)
            return
        }
        switch opcode {
        case .dataOut: receiveDataOut(header, data)
        case .scsiCommand, .taskManagement, .nopOut, .textRequest, .logoutRequest: admit(header, opcode, data)
        case .snack: reject(header, .snackReject)
        default: reject(header, .protocolError)
        }
    }

    /// Delivers commands in the order of CmdSN (RFC 7143 4.2.2.1).
    private func admit(_ header: BasicHeader, _ opcode: Opcode, _ data: UnsafeRawBufferPointer) {
        if header.isImmediate {
            execute(header, opcode, data)
            return
        }
        let number = header.sequenceNumber
        let distance = Int32(bitPattern: number &- expCmdSN)
        // Outside the window: silently ignored.
        guard distance >= 0, Int32(bitPattern: maxCmdSN &- number) >= 0 else { return }
        if distance > 0 {
            guard held[number] == nil else { return }
            guard heldBytes + data.count <= limits.gatheredBytesPerSession else {
                close("it sent too much data ahead of its turn")
                return
            }
            heldBytes += data.count
            held[number] = (header, Array(data))
            return
        }
        expCmdSN &+= 1
        execute(header, opcode, data)
        while !held.isEmpty, !isClosing, let next = held.removeValue(forKey: expCmdSN) {
            expCmdSN &+= 1
            heldBytes -= next.data.count
            next.data.withUnsafeBytes { data in
                if let opcode = next.header.opcode { execute(next.header, opcode, data) }
            }
        }
    }

    private func execute(_ header: BasicHeader, _ opcode: Opcode, _ data: UnsafeRawBufferPointer) {
        if isDiscovery && (opcode == .scsiCommand || opcode == .taskManagement) {
            reject(header, .protocolError)
            ended(header)
            return
        }
        switch opcode {
        case .scsiCommand:
            noteStep(header)
            receiveCommand(header, data)
        case .taskManagement: receiveTaskManagement(header)
        case .nopOut: receiveNopOut(header, data)
        case .textRequest: receiveText(header, data)
        default: receiveLogout(header)
        }
    }

    /// Whether the initiator sends one command at a time, so that its next one may follow soon.
    var isInStep: Bool { commandsInStep >= Self.commandsUntilInStep }

    /// It took its time: the next ones must show anew that it is quick.
    func fellOutOfStep() { commandsInStep = 0 }

    /// Whether the initiator has not seen many of the answers that were sent: it does not wait for more of them yet.
    var isInitiatorBehind: Bool { Int32(bitPattern: sentStatSN &- seenStatSN) >= Self.answersAhead }

    private func noteStep(_ header: BasicHeader) {
        seenStatSN = header.expectedNumber
        if header.expectedNumber == statSN { commandsInStep &+= 1 } else { commandsInStep = 0 }
    }

    /// Opens the command window by one when a command that took a place in it is over.
    func ended(_ header: BasicHeader) {
        if !header.isImmediate { maxCmdSN &+= 1 }
    }

    /// RFC 7143 7.8: the PDU is discarded. At ErrorRecoveryLevel 0 a command whose data is lost ends with a CRC error;
    /// after anything else the connection ends.
    private func dataDigestFailed(_ header: BasicHeader) {
        reject(header, .dataDigestError)
        if header.opcode == .dataOut, let command = outstanding[header.initiatorTaskTag] {
            end(command, .sense(SenseData(.abortedCommand, .protocolServiceCRCError)))
            return
        }
        if header.opcode == .dataOut, let index = dormantIndex(header.initiatorTaskTag) {
            endDormant(at: index, .sense(SenseData(.abortedCommand, .protocolServiceCRCError)))
            return
        }
        flush()
        close("a data digest was wrong")
    }

    // MARK: Output

    /// Writes a PDU whose data segment is at hand.
    func emit(_ header: BasicHeader, _ data: [UInt8] = []) {
        var header = header
        header.dataSegmentBytes = data.count
        let start = output.writerIndex
        header.write(to: &output)
        finishHeader(from: start)
        if data.isEmpty { return }
        let dataStart = output.writerIndex
        output.writeBytes(data)
        finishData(from: dataStart)
    }

    /// Adds the header digest to the header that begins at `start`.
    func finishHeader(from start: Int) {
        guard framing.headerDigest else { return }
        let digest = outputDigest(start..<start + BasicHeader.byteCount)
        output.writeInteger(digest, endianness: .little)
    }

    /// Pads the data segment that begins at `start` and adds its digest.
    func finishData(from start: Int) {
        let count = output.writerIndex - start
        output.writeRepeatingByte(0, count: paddedLength(count) - count)
        guard framing.dataDigest else { return }
        let digest = outputDigest(start..<output.writerIndex)
        output.writeInteger(digest, endianness: .little)
    }

    func outputDigest(_ range: Range<Int>) -> UInt32 {
        let base = output.readerIndex
        return output.withUnsafeReadableBytes {
            PDUFraming.digest($0, range.lowerBound - base..<range.upperBound - base)
        }
    }

    /// Fills in ExpCmdSN and MaxCmdSN, and StatSN, which is used up unless `keepsStatSN`.
    func numbered(_ header: BasicHeader, keepsStatSN: Bool = false) -> BasicHeader {
        var header = header
        header.sequenceNumber = statSN
        if !keepsStatSN { statSN &+= 1 }
        header.expectedNumber = expCmdSN
        header.maxCmdSN = maxCmdSN
        return header
    }

    func reject(_ rejected: BasicHeader, _ reason: RejectReason) {
        var header = BasicHeader(.reject)
        header[byte: 2] = reason.rawValue
        header.initiatorTaskTag = BasicHeader.reservedTag
        var bytes: [UInt8] = []
        for word in 0..<6 {
            for shift in stride(from: 56, through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: rejected[word: word] >> UInt64(shift)))
            }
        }
        emit(numbered(header), bytes)
    }

    func close(_ reason: String) {
        guard !isClosing else { return }
        isClosing = true
        transport.close(reason)
    }

    /// The connection is gone: every command is aborted and every nexus ends.
    func tearDown() {
        isClosing = true
        for nexus in nexuses.values { nexus.unit.detach(nexus) }
        nexuses = [:]
        outstanding = [:]
        dormant = []
        reads = []
        held = [:]
    }

    // MARK: Time

    /// - Parameter now: seconds on a monotonic clock. To be called about once a second.
    func tick(_ now: Int64) {
        if hasReceived {
            hasReceived = false
            silentSince = now
            pingedAt = nil
        } else if let pingedAt {
            if now - pingedAt >= limits.pingSeconds { close("it gave no sign of life for \(now - silentSince) s") }
        } else if now - silentSince >= limits.idleSeconds {
            pingedAt = now
            ping()
        }
    }
}

/// A command that waits for data, for the device, or for its turn to send.
final class OutstandingCommand {
    let header: BasicHeader
    let activity: CommandActivity
    let work: Work
    let account: CommandAccount
    /// Bytes the CDB asks for, and bytes that are taken: the lesser of that and what the initiator has.
    let scsiBytes: Int
    let wantedBytes: Int
    /// Bytes that came; the offset at which the next ones must begin.
    var receivedBytes = 0
    /// Bytes asked for by R2Ts, or sent without.
    var requestedBytes = 0
    /// Unsolicited data is still to come; its limit in bytes.
    var unsolicitedLimit: Int?
    var unsolicitedDataSN: UInt32 = 0
    var requests: [TransferRequest] = []
    var requestSN: UInt32 = 0
    /// Data of an incomplete block, or of the parameter list.
    var gathered: [UInt8] = []
    /// How it will end when all data that comes without being asked for is there.
    var failure: CommandEnd?

    enum Work {
        case dataOut(DataOutOperation)
        case parameterList(ParameterOperation)
        /// Only waits for the end of unsolicited data.
        case absorb
        case blocking(token: UInt64)
    }

    struct TransferRequest {
        var tag: UInt32
        var end: Int
        var dataSN: UInt32 = 0
    }

    init(
        _ header: BasicHeader, _ activity: CommandActivity, _ work: Work, _ account: CommandAccount, scsiBytes: Int,
        wantedBytes: Int
    ) {
        self.header = header
        self.account = account
        self.activity = activity
        self.work = work
        self.scsiBytes = scsiBytes
        self.wantedBytes = wantedBytes
    }
}

/// A read of which some Data-In PDUs are still to be sent.
struct ReadTransfer {
    var header: BasicHeader
    var account: CommandAccount
    /// Nil for data that is at hand.
    var activity: CommandActivity?
    var offset: UInt64
    var scsiBytes: Int
    /// What is sent: the lesser of the CDB's length and the initiator's.
    var totalBytes: Int
    var sentBytes = 0
    var dataSN: UInt32 = 0
}

/// A blocking operation and the command that waits for it; nil when that was aborted.
struct RunningOperation {
    var command: OutstandingCommand?
    /// Answers that wait for the end of the operation.
    var taskManagement: [BasicHeader] = []
}

/// A task management function that waits for operations to leave the device.
struct PendingTaskManagement {
    var header: BasicHeader
    var remaining: Int
    var endsSessions = false
}
