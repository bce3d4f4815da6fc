import Simulation

/// What happened in histories, so that a run over many seeds can prove that everything it claims to try was tried, and
/// that faults had consequences that somebody looked at.
struct Coverage {
    enum Event: String, CaseIterable {
        // Operations that succeeded.
        case write, writeOfParts, writeOfZeros, writeAcrossLeaves, durableWrite
        case writeSame, unmap, unmapOfAll, unmapOfParts, compareAndWrite, miscompare, flush, flushUnderLoad,
            readUnderWay, operationBetween
        case createVolume, deleteVolume, resize, snapshot, groupSnapshot, attributes, deleteSnapshot
        case clone, cloneOfClone, revert, undoOfRevert, promote, refusedDeletion
        case diff, spaceAnswer, send, incrementalSend, brokenTransfer
        case checkpoint, growth, scrub, close, manySnapshots
        // How histories were cut.
        case powerLoss, processEnd, crashInRecovery
        case droppedWrite, tornWrite, reorderedWrite
        case logReplayed, logFull, logTorn, logOfEarlierRun, logFoundAgain
        // Faults of the disk.
        case readError, writeError, outOfSpace, failedSync
        case lostWrite, misdirectedWrite, rot, journalLie
        // What was seen of them.
        case unflushedLost, unflushedKept, refusedForSpace, refusedForError, poolFailed
        case mediumError, damageFoundByScrub, damageFoundByCheck, openingRefused
    }

    /// What always works, on a full pool too.
    static let needNoSpace: Set<Event> = [
        .flush, .flushUnderLoad, .unmap, .unmapOfAll, .deleteSnapshot, .deleteVolume, .checkpoint, .close, .scrub,
        .readUnderWay,
    ]

    private(set) var counts: [Event: Int] = [:]

    mutating func note(_ event: Event, _ count: Int = 1) {
        if count > 0 { counts[event, default: 0] += count }
    }

    mutating func add(_ other: Coverage) { counts.merge(other.counts, uniquingKeysWith: +) }

    mutating func add(_ effects: SimulatedDisk.Effects) {
        note(.droppedWrite, effects.dropped)
        note(.tornWrite, effects.torn)
        note(.reorderedWrite, effects.reordered)
        note(.readError, effects.readErrors)
        note(.writeError, effects.writeErrors)
        note(.outOfSpace, effects.outOfSpace)
        note(.failedSync, effects.failedSyncs)
        note(.lostWrite, effects.lostWrites)
        note(.misdirectedWrite, effects.misdirectedWrites)
        note(.rot, effects.rottenBlocks)
    }

    static let everywhere: Set<Event> = Set(Event.allCases).subtracting(
        Set([.readError, .writeError, .failedSync, .refusedForError, .poolFailed]).union(ofLies))
    static let ofErrors: Set<Event> = everywhere.union([
        .readError, .writeError, .failedSync, .refusedForError, .poolFailed,
    ])
    static let ofLies: Set<Event> = [
        .lostWrite, .misdirectedWrite, .rot, .journalLie, .mediumError, .damageFoundByScrub, .damageFoundByCheck,
        .openingRefused,
    ]

    func missing(of expected: Set<Event>) -> [Event] {
        Event.allCases.filter { expected.contains($0) && counts[$0] == nil }
    }

    var table: String {
        Event.allCases.compactMap { event in counts[event].map { "\(event.rawValue) \($0)" } }.joined(separator: ", ")
    }
}
