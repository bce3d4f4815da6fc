internal import BlockIO
internal import Synchronization

/// What was acknowledged and not flushed when a process was killed comes back from its volatile log.
extension PoolCore {
    /// Notes what the batch that is being gathered got since the last time. Called with the lock held, once for each
    /// change.
    func noteAppended() {
        guard let volatileLog, pending.notedBytes < pending.writer.bytes.count else { return }
        let isNoted = volatileLog.append(
            pending.writer.bytes[pending.notedBytes...], sequence: pendingSequence, offset: pending.notedBytes)
        pending.notedBytes = pending.writer.bytes.count
        if !isNoted, !hasBug(.logFailureIgnored) { unnotedThrough.store(lastRecord, ordering: .releasing) }
    }

    /// The sequence that the batch which is being gathered will have in the journal.
    var pendingSequence: UInt64 { journalEnd.sequence + batchesAhead }

    var volatileLogState: VolatileLogState {
        guard let volatileLog else { return .off(reason: volatileLogProblem) }
        return volatileLog.isBroken || unnotedThrough.load(ordering: .relaxed) > 0 ? .full : .active
    }

    /// A file is about twice as long as the records that may gather, since the smallest have the size of an entry's
    /// head.
    private var volatileLogLimitBytes: Int { 4 * pendingLimit + (1 << 20) }

    // MARK: Opening

    /// Replays the log that a killed process left, after the journal. Returns where it is, for the next one.
    func replayVolatileLog() throws(PoolError) -> (any VolatileLogStorage)? {
        guard let storage = volatileLogStorage() else { return nil }
        let header = VolatileLogHeader(
            poolID: superblock.poolID, bootID: storage.bootID, session: superblock.session)
        try replay(entries(of: storage, header))
        return storage
    }

    /// Makes what was replayed durable, and begins a new log.
    func beginVolatileLog(_ storage: (any VolatileLogStorage)?) throws(PoolError) {
        guard let storage else { return try beginSession(0) }
        if hasBug(.logDroppedTooEarly) { for file in 0..<2 { _ = storage.clear(file: file) } }
        // The journal had room for all of it when it was acknowledged.
        if statistics.recordsFromVolatileLog > 0 { try commit(through: lastRecord, whenFull: .proceed) }
        // From here on the old files are obsolete, and the next entries belong to another session.
        let session = options.surroundings.random() | 1
        try beginSession(session)
        volatileLog = VolatileLog(
            storage: storage,
            header: VolatileLogHeader(poolID: superblock.poolID, bootID: storage.bootID, session: session),
            limitBytes: volatileLogLimitBytes)
        if volatileLog == nil { volatileLogProblem = "its files cannot be written" }
    }

    private func volatileLogStorage() -> (any VolatileLogStorage)? {
        if let storage = options.volatileLogStorage { return storage }
        guard let directory = options.volatileLogDirectory else { return nil }
        do {
            return try MemoryFileLogStorage(directory: directory, poolID: superblock.poolID)
        } catch {
            volatileLogProblem = error.reason
            return nil
        }
    }

    /// A log of another session is void, whoever opens the pool next.
    private func beginSession(_ session: UInt64) throws(PoolError) {
        guard superblock.session != session else { return }
        var next = superblock
        next.generation += 1
        next.session = session
        try write(next)
        superblock = next
    }

    /// The entries of both files that continue the journal, in their order.
    private func entries(of storage: any VolatileLogStorage, _ header: VolatileLogHeader) -> [VolatileLogEntry] {
        guard header.session != 0 else { return [] }
        var found: [VolatileLogEntry] = []
        for file in 0..<2 {
            let bytes = storage.contents(ofFile: file)
            guard var head = VolatileLogHeader.decode(bytes[...]) else { continue }
            if hasBug(.logBootIgnored) { head.bootID = header.bootID }
            if hasBug(.logSessionIgnored) { head.session = header.session }
            guard head == header else { continue }
            found.append(contentsOf: VolatileLogEntry.run(bytes, acceptsTorn: hasBug(.logTornAccepted)))
        }
        if !hasBug(.logRepeatsJournal) { found.removeAll { $0.sequence < journalEnd.sequence } }
        found.sort { $0.number < $1.number }
        guard let first = found.first, first.offset == 0,
            first.sequence == journalEnd.sequence || hasBug(.logRepeatsJournal)
        else { return [] }
        var count = 1
        while count < found.count, found[count].follows(found[count - 1]) || hasBug(.logGapAccepted) { count += 1 }
        return Array(found[..<count])
    }

    // MARK: Replaying

    private func replay(_ entries: [VolatileLogEntry]) throws(PoolError) {
        var sequence = entries.first?.sequence ?? 0
        for entry in entries {
            let records: [JournalRecord]
            do {
                records = try Self.decode(entry.records)
            } catch {
                throw doesNotFit("entry \(entry.number) cannot be read")
            }
            guard holdsData(of: records) else { return }
            do {
                for record in records { try apply(record) }
            } catch {
                throw doesNotFit("\(error)")
            }
            // The batches stay as they were: one that is in the journal must not be replayed from the log again.
            if entry.sequence != sequence { seal() }
            sequence = entry.sequence
            lastRecord += UInt64(records.count)
            pending.writer.bytes.append(contentsOf: entry.records)
            pending.notedBytes = pending.writer.bytes.count
            pending.lastRecord = lastRecord
            hasUnsyncedData = true
            statistics.recordsFromVolatileLog += UInt64(records.count)
        }
    }

    private func doesNotFit(_ what: String) -> PoolError {
        .damaged(
            "its volatile log does not fit: \(what). "
                + "Removing the log's files lets the pool open without what was not flushed")
    }

    private static func decode(_ bytes: [UInt8]) throws(MalformedBytes) -> [JournalRecord] {
        var records: [JournalRecord] = []
        var reader = ByteReader(bytes[...])
        while reader.remaining > 0 { records.append(try JournalRecord.decode(&reader)) }
        return records
    }

    /// Whether the blocks that the records refer to hold what was written there.
    private func holdsData(of records: [JournalRecord]) -> Bool {
        let piece = 256
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: piece * Format.blockBytes, alignment: Format.blockBytes)
        defer { buffer.deallocate() }
        for case .map(_, _, let physical, let crcs) in records {
            guard physical <= totalBlocks, UInt64(crcs.count) <= totalBlocks - physical else {
                return false
            }
            for start in stride(from: 0, to: crcs.count, by: piece) {
                let count = min(piece, crcs.count - start)
                let target = UnsafeMutableRawBufferPointer(rebasing: buffer[..<(count * Format.blockBytes)])
                do {
                    try file.read(at: (physical + UInt64(start)) * UInt64(Format.blockBytes), into: target)
                } catch {
                    return false
                }
                for index in 0..<count {
                    let block = UnsafeRawBufferPointer(
                        rebasing: target[(index * Format.blockBytes)..<((index + 1) * Format.blockBytes)])
                    guard CRC32C.checksum(block) == crcs[start + index] else { return false }
                }
            }
        }
        return true
    }
}
