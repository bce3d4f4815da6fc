import SCSI

/// Task attributes (SAM-5 8). Each I_T nexus with a logical unit has a task set of its own (TST=001b in the control
/// mode page), so that one host's ORDERED command that waits for its data holds up no other host.
///
/// As long as an initiator sends only SIMPLE commands, nothing here runs but one comparison in `receiveCommand`.
extension Session {
    /// RFC 7143 11.3.1; untagged commands are treated as SIMPLE ones.
    enum TaskAttribute {
        case simple
        case ordered
        case headOfQueue

        /// Nil for ACA, which is not supported (NORMACA=0), and for reserved values.
        init?(_ header: BasicHeader) {
            switch header.flags & 0x07 {
            case 0, 1: self = .simple
            case 2: self = .ordered
            case 3: self = .headOfQueue
            default: return nil
            }
        }
    }

    /// Whether a command concerns ``enlist(_:_:)``: it has another attribute than SIMPLE, or some other command has.
    func concernsTaskSet(_ header: BasicHeader) -> Bool { isOrdering || header.flags & 0x06 != 0 }

    /// Starts a command, or keeps it until those that go before it have ended.
    func enlist(_ header: BasicHeader, _ data: UnsafeRawBufferPointer) {
        guard let lun = AbsentLogicalUnit.decode(header.lun), let nexus = nexus(lun) else {
            start(header, data)
            return
        }
        let activity = nexus.unit.enlist(nexus)
        guard let attribute = TaskAttribute(header) else {
            endAtOnce(header, activity, .sense(SenseData(.illegalRequest, .invalidMessage)))
            return
        }
        let active = activeCommands()[header.lun] ?? ActiveCommands()
        // Of a unit that is not mapped any more nothing is waited for; the LUN may be another one by now.
        guard activity.endBeforeBegin == nil,
            active.holdsUp(attribute, behind: dormant.lazy.filter { $0.header.lun == header.lun }.map(\.attribute))
        else {
            start(header, data)
            if attribute != .simple && isUnderWay(header.initiatorTaskTag) { isOrdering = true }
            return
        }
        let unsolicited = min(parameters.firstBurstBytes, Int(header.expectedTransferBytes))
        let reserved = header.isFinal ? data.count : unsolicited
        guard gatheredBytes + reserved <= limits.gatheredBytesPerSession else {
            endAtOnce(header, activity, .taskSetFull)
            return
        }
        gatheredBytes += reserved
        isOrdering = true
        dormant.append(
            DormantCommand(
                header: header, attribute: attribute, activity: activity, receivedAt: receivedAt,
                reservedBytes: reserved, data: Array(data)))
    }

    // MARK: What is under way

    /// The commands of one task set that have been started and have not ended.
    struct ActiveCommands {
        var isEmpty = true
        /// One of them is ORDERED or HEAD OF QUEUE.
        var hasPrecedence = false

        mutating func insert(_ attribute: TaskAttribute?) {
            isEmpty = false
            if let attribute, attribute != .simple { hasPrecedence = true }
        }

        /// Whether a command has to wait for these and for the older ones that wait themselves.
        func holdsUp(_ attribute: TaskAttribute, behind waiting: some Sequence<TaskAttribute>) -> Bool {
            switch attribute {
            case .headOfQueue: false
            case .ordered: !isEmpty || waiting.contains { _ in true }
            case .simple: hasPrecedence || waiting.contains(.ordered)
            }
        }
    }

    /// By LUN field.
    private func activeCommands() -> [UInt64: ActiveCommands] {
        var active: [UInt64: ActiveCommands] = [:]
        for command in outstanding.values {
            active[command.header.lun, default: .init()].insert(TaskAttribute(command.header))
        }
        for read in reads { active[read.header.lun, default: .init()].insert(TaskAttribute(read.header)) }
        return active
    }

    private func isUnderWay(_ tag: UInt32) -> Bool {
        outstanding[tag] != nil || reads.contains { $0.header.initiatorTaskTag == tag }
    }

    // MARK: Waking

    /// Starts the commands that need not wait any more, in the order in which they came.
    /// - Returns: whether any was started.
    func wake() -> Bool {
        let waiting = dormant
        dormant = []
        var active = activeCommands()
        var still: [DormantCommand] = []
        for command in waiting {
            let lun = command.header.lun
            let older = still.lazy.filter { $0.header.lun == lun }.map(\.attribute)
            if active[lun, default: .init()].holdsUp(command.attribute, behind: older) {
                still.append(command)
                continue
            }
            startDormant(command)
            if isUnderWay(command.header.initiatorTaskTag) {
                active[lun, default: .init()].insert(command.attribute)
            }
        }
        dormant = isClosing ? [] : still
        isOrdering = !dormant.isEmpty || active.values.contains(where: \.hasPrecedence)
        return still.count < waiting.count
    }

    private func startDormant(_ command: DormantCommand) {
        gatheredBytes -= command.reservedBytes
        let now = receivedAt
        receivedAt = command.receivedAt
        defer { receivedAt = now }
        var header = command.header
        // All unsolicited data that has come counts as immediate.
        header.dataSegmentBytes = command.data.count
        if command.isComplete { header.flags |= 0x80 }
        if let end = command.activity.endBeforeBegin {
            endAtOnce(header, command.activity, end)
        } else {
            command.data.withUnsafeBytes { start(header, $0, mayReopen: false) }
        }
        outstanding[header.initiatorTaskTag]?.unsolicitedDataSN = command.dataSN
    }

    // MARK: While a command waits

    func dormantIndex(_ tag: UInt32) -> Int? {
        dormant.isEmpty ? nil : dormant.firstIndex { $0.header.initiatorTaskTag == tag }
    }

    /// Keeps unsolicited data of a command that waits.
    func receiveDormantData(_ header: BasicHeader, _ data: UnsafeRawBufferPointer, at index: Int) {
        let command = dormant[index]
        guard header.targetTransferTag == BasicHeader.reservedTag, !command.isComplete,
            header.dataSN == command.dataSN, Int(header.bufferOffset) == command.data.count,
            command.data.count + data.count <= command.reservedBytes
        else {
            endDormant(at: index, .sense(SenseData(.abortedCommand, .unexpectedUnsolicitedData)))
            return
        }
        dormant[index].dataSN &+= 1
        dormant[index].data.append(contentsOf: data)
        if header.isFinal { dormant[index].header.flags |= 0x80 }
    }

    func endDormant(at index: Int, _ end: CommandEnd) {
        let command = dormant[index]
        forgetDormant { $0.header.initiatorTaskTag == command.header.initiatorTaskTag }
        respond(
            command.header, end, account(command.activity, .other), scsiBytes: 0, movedBytes: 0,
            descriptorSense: command.activity.unit.usesDescriptorSense)
    }

    /// Takes commands out of the list; who asks for it sees to the command window.
    @discardableResult
    func forgetDormant(_ belongs: (DormantCommand) -> Bool) -> [DormantCommand] {
        let forgotten = dormant.filter(belongs)
        if forgotten.isEmpty { return [] }
        gatheredBytes -= forgotten.reduce(0) { $0 + $1.reservedBytes }
        let tags = Set(forgotten.map(\.header.initiatorTaskTag))
        dormant.removeAll { tags.contains($0.header.initiatorTaskTag) }
        return forgotten
    }
}

/// A command that waits for others of its task set before it begins.
struct DormantCommand {
    /// Final when no more data comes without being asked for.
    var header: BasicHeader
    let attribute: Session.TaskAttribute
    let activity: CommandActivity
    let receivedAt: UInt64
    /// Counted in `gatheredBytes`: what may come unsolicited.
    let reservedBytes: Int
    /// Immediate and unsolicited data.
    var data: [UInt8]
    /// Of the next unsolicited Data-Out.
    var dataSN: UInt32 = 0

    var isComplete: Bool { header.isFinal }
}
