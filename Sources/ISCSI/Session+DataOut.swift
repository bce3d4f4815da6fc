import NIOCore
import SCSI

/// Data from the initiator: immediate, unsolicited, and asked for by R2T (RFC 7143 4.2.5.2, 11.7, 11.8).
///
/// DataPDUInOrder and DataSequenceInOrder are Yes, so the data of a command comes in ascending order without gaps.
extension Session {
    func beginWrite(
        _ header: BasicHeader, _ activity: CommandActivity, _ operation: DataOutOperation,
        _ data: UnsafeRawBufferPointer
    ) {
        let expected = header.flags & 0x20 != 0 ? Int(header.expectedTransferBytes) : 0
        let wanted = min(operation.lengthBytes, expected)
        if header.isFinal, wanted > 0, data.count >= wanted, wanted % activity.unit.blockBytes == 0 {
            writeAtOnce(header, activity, operation, UnsafeRawBufferPointer(rebasing: data[..<wanted]))
            return
        }
        let command = OutstandingCommand(
            header, activity, .dataOut(operation), account(activity, .write), scsiBytes: operation.lengthBytes,
            wantedBytes: wanted)
        if wanted % activity.unit.blockBytes != 0 {
            // Part of a block cannot be written (FCP-4 9.4.2's rule b, which iSCSI targets follow).
            command.failure = .sense(SenseData(.illegalRequest, .invalidFieldInInformationUnit))
        }
        beginTransfer(command, data)
    }

    /// The usual small write, all of whose data came with it: it is over before anybody could ask about it.
    private func writeAtOnce(
        _ header: BasicHeader, _ activity: CommandActivity, _ operation: DataOutOperation,
        _ data: UnsafeRawBufferPointer
    ) {
        let account = account(activity, .write)
        account.counters.wrote(data.count)
        do throws(CommandEnd) {
            try activity.unit.consume(operation, at: 0, bytes: data, activity: activity)
        } catch {
            respond(
                header, error, account, scsiBytes: operation.lengthBytes, movedBytes: data.count,
                descriptorSense: activity.unit.usesDescriptorSense)
            return
        }
        guard let last = activity.unit.finish(operation) else {
            respond(header, .good, account, scsiBytes: operation.lengthBytes, movedBytes: data.count)
            return
        }
        let command = OutstandingCommand(
            header, activity, .dataOut(operation), account, scsiBytes: operation.lengthBytes,
            wantedBytes: data.count)
        command.receivedBytes = data.count
        run(last, for: command)
    }

    func beginParameterList(
        _ header: BasicHeader, _ activity: CommandActivity, _ operation: ParameterOperation, count: Int,
        _ data: UnsafeRawBufferPointer
    ) {
        let expected = header.flags & 0x20 != 0 ? Int(header.expectedTransferBytes) : 0
        let command = OutstandingCommand(
            header, activity, .parameterList(operation), account(activity, .other), scsiBytes: count,
            wantedBytes: count)
        gatheredBytes += count
        if operation.needsExactLength ? expected != count : expected < count {
            command.failure = .sense(
                SenseData(
                    .illegalRequest,
                    operation.needsExactLength ? .invalidFieldInCDB : .parameterListLengthError))
        } else if gatheredBytes > limits.gatheredBytesPerSession {
            command.failure = .busy
        }
        beginTransfer(command, data)
    }

    /// Takes the immediate data; then more is on its way, or it is asked for, or the command can be carried out.
    private func beginTransfer(_ command: OutstandingCommand, _ data: UnsafeRawBufferPointer) {
        // In the table first: its end takes it out again.
        outstanding[command.header.initiatorTaskTag] = command
        if !data.isEmpty { take(data, for: command) }
        if !command.header.isFinal {
            command.unsolicitedLimit = min(
                parameters.firstBurstBytes, Int(command.header.expectedTransferBytes))
        }
        proceed(command)
    }

    /// Hands the next data of a command to where it belongs.
    private func take(_ data: UnsafeRawBufferPointer, for command: OutstandingCommand) {
        let begin = command.receivedBytes
        command.receivedBytes += data.count
        guard command.failure == nil, begin < command.wantedBytes else { return }
        let bytes = UnsafeRawBufferPointer(rebasing: data[..<min(data.count, command.wantedBytes - begin)])
        switch command.work {
        case .parameterList: command.gathered.append(contentsOf: bytes)
        case .dataOut(let operation):
            command.account.counters.wrote(bytes.count)
            do throws(CommandEnd) {
                try consume(bytes, at: begin, operation, command)
            } catch {
                command.failure = error
            }
        case .absorb, .blocking: break
        }
    }

    private func consume(
        _ bytes: UnsafeRawBufferPointer, at begin: Int, _ operation: DataOutOperation, _ command: OutstandingCommand
    ) throws(CommandEnd) {
        let unit = command.activity.unit
        let block = unit.blockBytes
        if command.gathered.isEmpty && bytes.count % block == 0 {
            try unit.consume(operation, at: begin, bytes: bytes, activity: command.activity)
            return
        }
        // The peer cuts its data inside a block: what is left over waits for the rest.
        let start = begin - command.gathered.count
        command.gathered.append(contentsOf: bytes)
        let whole = command.gathered.count / block * block
        guard whole > 0 else { return }
        let result: Result<Void, CommandEnd> = command.gathered.withUnsafeBytes { gathered in
            do throws(CommandEnd) {
                try unit.consume(
                    operation, at: start, bytes: UnsafeRawBufferPointer(rebasing: gathered[..<whole]),
                    activity: command.activity)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        command.gathered.removeFirst(whole)
        try result.get()
    }

    /// Decides what comes next for a command that takes data.
    private func proceed(_ command: OutstandingCommand) {
        if command.failure == .aborted {
            end(command, .aborted)
            return
        }
        if command.unsolicitedLimit != nil { return }
        if let failure = command.failure {
            // Data that was asked for is still under way: it is discarded when it comes.
            end(command, failure)
            return
        }
        if command.receivedBytes < command.wantedBytes {
            requestData(command)
            return
        }
        switch command.work {
        case .dataOut(let operation):
            if let last = command.activity.unit.finish(operation) {
                run(last, for: command)
            } else {
                end(command, .good)
            }
        case .parameterList(let operation):
            let next = command.activity.unit.finish(
                operation, list: command.gathered, activity: command.activity)
            switch next {
            case .end(let end): self.end(command, end)
            case .blocking(let operation): run(operation, for: command)
            default: end(command, .good)
            }
        case .absorb: end(command, .good)
        case .blocking: break
        }
    }

    /// Sends as many R2Ts as may be outstanding.
    private func requestData(_ command: OutstandingCommand) {
        command.requestedBytes = max(command.requestedBytes, command.receivedBytes)
        while command.requests.count < parameters.maxOutstandingR2T, command.requestedBytes < command.wantedBytes {
            let count = min(parameters.maxBurstBytes, command.wantedBytes - command.requestedBytes)
            let tag = takeTransferTag()
            var header = BasicHeader(.readyToTransfer)
            header.lun = command.header.lun
            header.initiatorTaskTag = command.header.initiatorTaskTag
            header.targetTransferTag = tag
            header = numbered(header, keepsStatSN: true)
            header.dataSN = command.requestSN
            header.bufferOffset = UInt32(command.requestedBytes)
            header.residual = UInt32(count)
            emit(header)
            command.requestSN &+= 1
            command.requestedBytes += count
            command.requests.append(.init(tag: tag, end: command.requestedBytes))
        }
    }

    // MARK: Data-Out

    func receiveDataOut(_ header: BasicHeader, _ data: UnsafeRawBufferPointer) {
        // Data of a command that ended early, or of none: there is nobody to tell.
        guard let command = outstanding[header.initiatorTaskTag] else {
            if let index = dormantIndex(header.initiatorTaskTag) { receiveDormantData(header, data, at: index) }
            return
        }
        if header.targetTransferTag == BasicHeader.reservedTag {
            receiveUnsolicited(header, data, command)
        } else {
            receiveSolicited(header, data, command)
        }
    }

    private func receiveUnsolicited(
        _ header: BasicHeader, _ data: UnsafeRawBufferPointer, _ command: OutstandingCommand
    ) {
        guard let limit = command.unsolicitedLimit, header.dataSN == command.unsolicitedDataSN,
            Int(header.bufferOffset) == command.receivedBytes, command.receivedBytes + data.count <= limit
        else {
            end(command, .sense(SenseData(.abortedCommand, .unexpectedUnsolicitedData)))
            return
        }
        command.unsolicitedDataSN &+= 1
        take(data, for: command)
        if header.isFinal { command.unsolicitedLimit = nil }
        proceed(command)
    }

    private func receiveSolicited(
        _ header: BasicHeader, _ data: UnsafeRawBufferPointer, _ command: OutstandingCommand
    ) {
        guard let request = command.requests.first, request.tag == header.targetTransferTag,
            header.dataSN == request.dataSN, Int(header.bufferOffset) == command.receivedBytes,
            command.receivedBytes + data.count <= request.end,
            !header.isFinal || command.receivedBytes + data.count == request.end
        else {
            // A tag of a command that used this task tag before is no error of this one.
            let isKnown = command.requests.contains { $0.tag == header.targetTransferTag }
            if isKnown { end(command, .sense(SenseData(.abortedCommand, .dataPhaseError))) }
            return
        }
        command.requests[0].dataSN &+= 1
        take(data, for: command)
        if command.receivedBytes == request.end { command.requests.removeFirst() }
        if command.requests.isEmpty || command.failure != nil || header.isFinal { proceed(command) }
    }
}
