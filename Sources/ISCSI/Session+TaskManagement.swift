import SCSI

/// Task management functions (RFC 7143 11.5, 11.6; SAM-5 7).
extension Session {
    enum TaskManagementFunction: UInt8 {
        case abortTask = 1
        case abortTaskSet = 2
        case clearACA = 3
        case clearTaskSet = 4
        case logicalUnitReset = 5
        case targetWarmReset = 6
        case targetColdReset = 7
        case taskReassign = 8
    }

    enum TaskManagementResponse: UInt8 {
        case complete = 0
        case noSuchTask = 1
        case noSuchLUN = 2
        case reassignmentNotSupported = 4
        case notSupported = 5
        case rejected = 255
    }

    func receiveTaskManagement(_ request: BasicHeader) {
        guard let function = TaskManagementFunction(rawValue: request.flags & 0x7F) else {
            respondToTaskManagement(request, .notSupported)
            return
        }
        switch function {
        case .abortTask: abortTask(request)
        case .abortTaskSet, .clearTaskSet, .logicalUnitReset: clearUnit(request, function)
        case .targetWarmReset: resetTarget(request, endsSessions: false)
        case .targetColdReset: resetTarget(request, endsSessions: true)
        case .taskReassign: respondToTaskManagement(request, .reassignmentNotSupported)
        case .clearACA: respondToTaskManagement(request, .notSupported)
        }
    }

    func respondToTaskManagement(_ request: BasicHeader, _ response: TaskManagementResponse) {
        ended(request)
        var header = BasicHeader(.taskManagementResponse)
        header[byte: 2] = response.rawValue
        header.initiatorTaskTag = request.initiatorTaskTag
        emit(numbered(header))
    }

    private func abortTask(_ request: BasicHeader) {
        let tag = request[long: 20]
        if let command = outstanding[tag] {
            guard command.header.lun == request.lun else {
                respondToTaskManagement(request, .noSuchTask)
                return
            }
            forget(command)
            ended(command.header)
            if case .blocking(let token) = command.work {
                // It may be touching the device: the answer waits until it does not.
                running[token]?.command = nil
                running[token]?.taskManagement.append(request)
            } else {
                respondToTaskManagement(request, .complete)
            }
            return
        }
        if let index = reads.firstIndex(where: { $0.header.initiatorTaskTag == tag }) {
            ended(reads.remove(at: index).header)
            respondToTaskManagement(request, .complete)
            return
        }
        if let index = dormantIndex(tag), dormant[index].header.lun == request.lun {
            ended(dormant[index].header)
            forgetDormant { $0.header.initiatorTaskTag == tag }
            respondToTaskManagement(request, .complete)
            return
        }
        abortUnseen(request)
    }

    /// RFC 7143 11.5.1: a command that has not come yet counts as received, and is over.
    private func abortUnseen(_ request: BasicHeader) {
        let number = request[long: 32]
        if let unseen = held[number], unseen.header.initiatorTaskTag == request[long: 20] {
            // It keeps its CmdSN, as a request that does nothing.
            var nothing = BasicHeader(.nopOut)
            nothing.initiatorTaskTag = BasicHeader.reservedTag
            nothing.sequenceNumber = number
            heldBytes -= unseen.data.count
            held[number] = (nothing, [])
            respondToTaskManagement(request, .complete)
            return
        }
        respondToTaskManagement(request, .noSuchTask)
    }

    private func clearUnit(_ request: BasicHeader, _ function: TaskManagementFunction) {
        guard let lun = AbsentLogicalUnit.decode(request.lun), let nexus = nexus(lun) else {
            respondToTaskManagement(request, .noSuchLUN)
            return
        }
        dropCommands { $0 === nexus.unit }
        let token = beginDrain(request, count: 1, endsSessions: false)
        let callback = transport.drainCallback(token: token)
        switch function {
        // The same: each nexus has a task set of its own (TST=001b).
        case .abortTaskSet, .clearTaskSet: nexus.unit.abortTaskSet(of: nexus, completion: callback)
        default: nexus.unit.reset(completion: callback)
        }
    }

    private func resetTarget(_ request: BasicHeader, endsSessions: Bool) {
        let units = directory.luns().compactMap { nexus($0)?.unit }
        dropCommands { _ in true }
        let token = beginDrain(request, count: units.count + 1, endsSessions: endsSessions)
        for unit in units { unit.reset(completion: transport.drainCallback(token: token)) }
        drained(token)
    }

    /// Forgets this session's commands to the units; operations that run are let run, without an answer.
    private func dropCommands(_ belongs: (LogicalUnit) -> Bool) {
        for command in Array(outstanding.values) where belongs(command.activity.unit) {
            forget(command)
            ended(command.header)
            if case .blocking(let token) = command.work { running[token]?.command = nil }
        }
        for command in forgetDormant({ belongs($0.activity.unit) }) { ended(command.header) }
        reads.removeAll { read in
            guard let unit = read.activity?.unit, belongs(unit) else { return false }
            ended(read.header)
            return true
        }
    }

    private func beginDrain(_ request: BasicHeader, count: Int, endsSessions: Bool) -> UInt64 {
        let token = nextToken
        nextToken += 1
        drains[token] = PendingTaskManagement(header: request, remaining: count, endsSessions: endsSessions)
        return token
    }

    /// One of the units that a function waited for has no operation of an aborted command any more.
    func drained(_ token: UInt64) {
        guard var pending = drains[token], !isClosing else { return }
        pending.remaining -= 1
        drains[token] = pending.remaining == 0 ? nil : pending
        guard pending.remaining == 0 else { return }
        respondToTaskManagement(pending.header, .complete)
        flush()
        if pending.endsSessions { directory.dropAllSessions() }
    }
}
