import NIOCore
import SCSI

extension Session {
    // MARK: SCSI commands

    func receiveCommand(_ header: BasicHeader, _ data: UnsafeRawBufferPointer) {
        guard outstanding[header.initiatorTaskTag] == nil, dormantIndex(header.initiatorTaskTag) == nil else {
            reject(header, .taskInProgress)
            ended(header)
            return
        }
        guard outstanding.count + reads.count + dormant.count < limits.commandsPerSession + 32 else {
            reject(header, .immediateCommandReject)
            ended(header)
            return
        }
        let writes = header.flags & 0x20 != 0
        let firstBurst = parameters.firstBurstBytes
        guard writes || (data.isEmpty && header.isFinal),
            data.isEmpty || parameters.immediateData, data.count <= firstBurst,
            data.count <= Int(header.expectedTransferBytes), header.isFinal || !parameters.initialR2T
        else {
            reject(header, .protocolError)
            ended(header)
            return
        }
        if concernsTaskSet(header) {
            enlist(header, data)
        } else {
            start(header, data)
        }
    }

    /// Begins a command.
    /// - Parameter mayReopen: false for one that has waited: it was sent to the unit that was mapped then.
    func start(_ header: BasicHeader, _ data: UnsafeRawBufferPointer, mayReopen: Bool = true) {
        let cdb = CommandBlock(high: header[word: 4], low: header[word: 5])
        let (disposition, activity) = begin(cdb, header, mayReopen: mayReopen)
        guard let activity else {
            carryOutWithoutUnit(header, disposition)
            return
        }
        switch disposition {
        case .detached: endAtOnce(header, activity, .sense(SenseData(.illegalRequest, .logicalUnitNotSupported)))
        case .end(let end): endAtOnce(header, activity, end)
        case .parameterData(let bytes): sendParameterData(header, bytes, account(activity, .other))
        case .read(let offset, let count): beginRead(header, activity, offset: offset, count: count)
        case .dataOut(let operation): beginWrite(header, activity, operation, data)
        case .parameterList(let count, let operation):
            beginParameterList(header, activity, operation, count: count, data)
        case .blocking(let operation):
            let command = OutstandingCommand(
                header, activity, .absorb, account(activity, .other), scsiBytes: 0, wantedBytes: 0)
            run(operation, for: command)
        }
    }

    /// Where a command that has just come is counted.
    func account(_ activity: CommandActivity?, _ kind: CommandCounters.Kind) -> CommandAccount {
        CommandAccount(counters: activity?.nexus.counters ?? counters.own, kind: kind, startedAt: receivedAt)
    }

    private func begin(
        _ cdb: CommandBlock, _ header: BasicHeader, mayReopen: Bool
    ) -> (CommandDisposition, CommandActivity?) {
        if AbsentLogicalUnit.isReportLUNs(cdb) {
            for nexus in nexuses.values { nexus.unit.clearLUNsChanged(for: nexus) }
            return (AbsentLogicalUnit.reportLUNs(cdb, luns: directory.luns()), nil)
        }
        guard let lun = AbsentLogicalUnit.decode(header.lun) else { return (AbsentLogicalUnit.begin(cdb), nil) }
        // A LUN may have been unmapped and mapped again since it was last used: then the nexus is opened anew.
        for _ in 0..<(mayReopen ? 2 : 1) {
            guard let nexus = nexus(lun) else { return (AbsentLogicalUnit.begin(cdb), nil) }
            let started = nexus.unit.begin(cdb, nexus: nexus)
            if case .detached = started.disposition {
                nexuses[lun] = nil
                counters.end(nexus)
                continue
            }
            return (started.disposition, started.activity)
        }
        return (AbsentLogicalUnit.begin(cdb), nil)
    }

    func nexus(_ lun: Int) -> LogicalUnitNexus? {
        if let known = nexuses[lun] { return known }
        guard let nexus = directory.attach(lun: lun, initiatorPort: outcome.initiatorPort) else { return nil }
        nexuses[lun] = nexus
        counters.begin(nexus)
        return nexus
    }

    /// A command that no logical unit was asked about.
    private func carryOutWithoutUnit(_ header: BasicHeader, _ disposition: CommandDisposition) {
        switch disposition {
        case .parameterData(let bytes): sendParameterData(header, bytes, account(nil, .other))
        case .end(let end): respond(header, end, account(nil, .other), scsiBytes: 0, movedBytes: 0)
        default: respond(header, .good, account(nil, .other), scsiBytes: 0, movedBytes: 0)
        }
    }

    /// Ends a command before any of its data was looked at. Unsolicited data that is under way is waited for, so that
    /// it is not taken for something else.
    func endAtOnce(_ header: BasicHeader, _ activity: CommandActivity, _ end: CommandEnd) {
        guard !header.isFinal else {
            respond(
                header, end, account(activity, .other), scsiBytes: 0, movedBytes: 0,
                descriptorSense: end != .good && activity.unit.usesDescriptorSense)
            return
        }
        let command = OutstandingCommand(
            header, activity, .absorb, account(activity, .other), scsiBytes: 0, wantedBytes: 0)
        command.failure = end
        command.receivedBytes = header.dataSegmentBytes
        command.unsolicitedLimit = min(parameters.firstBurstBytes, Int(header.expectedTransferBytes))
        outstanding[header.initiatorTaskTag] = command
    }

    // MARK: The end of a command

    /// Sends a SCSI response (RFC 7143 11.4).
    /// - Parameters:
    ///   - scsiBytes: what the CDB would move.
    ///   - movedBytes: what moved.
    func respond(
        _ request: BasicHeader, _ end: CommandEnd, _ account: CommandAccount, scsiBytes: Int, movedBytes: Int,
        dataPDUs: UInt32 = 0, descriptorSense: Bool = false
    ) {
        ended(request)
        if end == .aborted { return }
        account.ended()
        var header = BasicHeader(.scsiResponse)
        header[byte: 3] = end.status
        header.initiatorTaskTag = request.initiatorTaskTag
        let expected = request.flags & 0x60 == 0 ? 0 : Int(request.expectedTransferBytes)
        // A command that failed moved what it moved; one that wanted more than it could get says so in any case.
        setResidual(
            &header, expected: expected, scsiBytes: end == .good || scsiBytes > expected ? scsiBytes : movedBytes)
        header = numbered(header)
        header.dataSN = dataPDUs
        guard case .sense(let sense) = end else {
            if end != .good { account.counters.failed() }
            emit(header)
            return
        }
        if sense.key != .unitAttention { account.counters.failed() }
        let bytes = sense.encoded(descriptorFormat: descriptorSense)
        emit(header, [UInt8(bytes.count >> 8), UInt8(bytes.count & 0xFF)] + bytes)
    }

    /// Exact residuals: underflow when less moves than the initiator expects, overflow when the CDB asks for more.
    func setResidual(_ header: inout BasicHeader, expected: Int, scsiBytes: Int) {
        if scsiBytes < expected {
            header.flags |= 0x02
            header.residual = UInt32(expected - scsiBytes)
        } else if scsiBytes > expected {
            header.flags |= 0x04
            header.residual = UInt32(min(scsiBytes - expected, Int(UInt32.max)))
        }
    }

    /// Ends a command that was outstanding.
    func end(_ command: OutstandingCommand, _ end: CommandEnd) {
        forget(command)
        respond(
            command.header, end, command.account, scsiBytes: command.scsiBytes,
            movedBytes: min(command.receivedBytes, command.wantedBytes), dataPDUs: command.requestSN,
            descriptorSense: end != .good && command.activity.unit.usesDescriptorSense)
    }

    /// Takes a command out of the table without an answer.
    func forget(_ command: OutstandingCommand) {
        guard outstanding.removeValue(forKey: command.header.initiatorTaskTag) != nil else { return }
        if case .parameterList = command.work { gatheredBytes -= command.wantedBytes }
    }

    // MARK: Blocking operations

    /// Runs an operation for a command, which stays outstanding until it is done.
    func run(_ operation: BlockingOperation, for command: OutstandingCommand) {
        forget(command)
        let token = nextToken
        nextToken += 1
        let waiting = OutstandingCommand(
            command.header, command.activity, .blocking(token: token), command.account, scsiBytes: command.scsiBytes,
            wantedBytes: command.wantedBytes)
        waiting.receivedBytes = command.receivedBytes
        waiting.requestSN = command.requestSN
        outstanding[command.header.initiatorTaskTag] = waiting
        running[token] = RunningOperation(command: waiting)
        transport.run(operation, command.activity, token: token)
    }

    func blockingFinished(_ token: UInt64, _ end: CommandEnd) {
        guard let finished = running.removeValue(forKey: token), !isClosing else { return }
        if let command = finished.command { self.end(command, end) }
        for header in finished.taskManagement { respondToTaskManagement(header, .complete) }
        flush()
    }

    // MARK: NOP

    func receiveNopOut(_ request: BasicHeader, _ data: UnsafeRawBufferPointer) {
        ended(request)
        // An answer to our own ping, or a sign of life that wants none.
        guard request.initiatorTaskTag != BasicHeader.reservedTag else { return }
        var header = BasicHeader(.nopIn)
        header.lun = request.lun
        header.initiatorTaskTag = request.initiatorTaskTag
        header.targetTransferTag = BasicHeader.reservedTag
        emit(numbered(header), Array(data.prefix(parameters.sendSegmentBytes)))
    }

    func ping() {
        var header = BasicHeader(.nopIn)
        header.initiatorTaskTag = BasicHeader.reservedTag
        header.targetTransferTag = takeTransferTag()
        emit(numbered(header, keepsStatSN: true))
        flush()
    }

    func takeTransferTag() -> UInt32 {
        let tag = nextTransferTag
        nextTransferTag = tag == BasicHeader.reservedTag - 1 ? 1 : tag + 1
        return tag
    }

    // MARK: Async messages

    /// Asks the initiator to log out within so many seconds (RFC 7143 11.9.1, event 1).
    func requestLogout(seconds: UInt16) {
        async(event: 1, parameter3: seconds)
    }

    /// Says that the target is about to drop the session (event 3), then does.
    func announceDrop(_ reason: String) {
        async(event: 3, parameter3: 0)
        close(reason)
    }

    private func async(event: UInt8, parameter3: UInt16) {
        var header = BasicHeader(.asyncMessage)
        header.initiatorTaskTag = BasicHeader.reservedTag
        header = numbered(header)
        header[byte: 36] = event
        header[byte: 42] = UInt8(parameter3 >> 8)
        header[byte: 43] = UInt8(parameter3 & 0xFF)
        emit(header)
        flush()
    }
}
