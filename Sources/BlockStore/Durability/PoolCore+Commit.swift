internal import BlockIO
internal import Synchronization

/// The journal: records are gathered in memory in the order of their changes, and one thread at a time appends what
/// has gathered as one batch, for all that wait.
extension PoolCore {
    /// Counts and returns the number of a record that was just put into `pending`.
    func didAppendRecord() -> UInt64 {
        lastRecord += 1
        pending.lastRecord = lastRecord
        return lastRecord
    }

    /// Appends a record that is a change of its own.
    func append(_ record: JournalRecord) -> UInt64 {
        defer { noteAppended() }
        return appendPart(record)
    }

    /// Appends a record of a change that has several; `noteAppended()` follows after the last.
    func appendPart(_ record: JournalRecord) -> UInt64 {
        record.encode(into: &pending.writer)
        return didAppendRecord()
    }

    /// As `appendPart`, for a map record.
    func appendMap(
        volume: UInt32, block: UInt64, physical: UInt64, crcs: UnsafeBufferPointer<UInt32>
    ) -> UInt64 {
        JournalRecord.putMap(volume: volume, block: block, physical: physical, crcs: crcs, into: &pending.writer)
        return didAppendRecord()
    }

    var journalUsedBytes: UInt64 { journalEnd.position - journalKeptFrom }

    private var journalKeptFrom: UInt64 {
        hasBug(.journalReusedTooEarly) ? journalEnd.position : superblock.journalStart.position
    }

    /// Bytes of records that are not in the journal yet.
    var pendingBytes: Int { sealedBytes + pending.writer.bytes.count }

    /// The most that may gather; a quarter of the ring is kept for what a checkpoint has to commit before it begins.
    var pendingLimit: Int { Int(superblock.journalBytes / 16) }

    private var hasJournalRoom: Bool {
        let batch = UInt64(BatchHeader.batchBytes(payloadBytes: pendingBytes) + 2 * Format.blockBytes)
        return journalUsedBytes + batch <= superblock.journalBytes * 3 / 4
    }

    /// What a commit does when the journal has only the room that checkpoints need.
    enum WhenJournalFull {
        /// Waits for a checkpoint.
        case wait
        /// Uses that room: for the checkpoint itself.
        case proceed
        /// Returns without having committed: for the thread that would have to do the checkpoint.
        case giveUp
    }

    /// Returns when every record up to `target` is durable, with the data it refers to.
    func commit(through target: UInt64, whenFull: WhenJournalFull = .wait) throws(PoolError) {
        monitor.lock()
        defer { monitor.unlock() }
        while committedRecord < target {
            if isClosed { throw .closed }
            if let failure { throw .readOnly(failure) }
            if isCommitting {
                monitor.wait()
            } else if whenFull != .proceed && !hasJournalRoom {
                requestPass()
                if whenFull == .giveUp { return }
                try awaitPass()
            } else {
                try leadCommit()
            }
        }
    }

    /// Closes the batch that is being gathered.
    func seal() {
        sealedBytes += pending.writer.bytes.count
        if !pending.writer.bytes.isEmpty { batchesAhead += 1 }
        sealed.append(pending)
        pending = PendingRecords(lastRecord: lastRecord, buffer: spareRecords)
        spareRecords = []
    }

    /// Keeps one buffer for the batches to come; a very large one goes.
    private func reuse(_ batches: [PendingRecords]) {
        guard let batch = batches.max(by: { $0.writer.bytes.capacity < $1.writer.bytes.capacity }),
            batch.writer.bytes.capacity > spareRecords.capacity, batch.writer.bytes.capacity <= 4 << 20
        else { return }
        batch.writer.bytes.removeAll(keepingCapacity: true)
        swap(&spareRecords, &batch.writer.bytes)
    }

    /// Called and returns with the lock held; lets go of it while it writes.
    func leadCommit() throws(PoolError) {
        isCommitting = true
        seal()
        // Not in `seal()`: a checkpoint seals too, and its batches are not on their way to the journal yet.
        volatileLog?.turn(staysInFile: hasBug(.logNotTurned))
        retiring = retired
        retired = Retired()
        let batches = sealed
        sealed = []
        sealedBytes = 0
        let mustSyncData = hasUnsyncedData && !hasBug(.dataNotSynced)
        hasUnsyncedData = false
        unsynced = UnsyncedSpans(dueBlocks: unsynced.dueBlocks)
        var end = journalEnd
        monitor.unlock()
        var failed: PoolError?
        var written: UInt64 = 0
        do {
            if mustSyncData { try syncFile("syncing data") }
            for batch in batches { written += try write(batch, &end, syncedThrough: journalEnd.sequence - 1) }
            if written > 0, !hasBug(.journalNotSynced) { try syncFile("syncing the journal") }
        } catch {
            failed = error
        }
        monitor.lock()
        isCommitting = false
        if let failed {
            fail("\(failed)")
            throw failed
        }
        if hasBug(.lateDataTakenForSynced) { hasUnsyncedData = false }
        if hasBug(.lateOverwritesReleased) {
            retiring.overwritten += retired.overwritten
            retiring.unmapped += retired.unmapped
            retired = Retired()
        }
        batchesAhead -= end.sequence - journalEnd.sequence
        journalEnd = end
        committedRecord = batches.last?.lastRecord ?? committedRecord
        reuse(batches)
        if unnotedThrough.load(ordering: .relaxed) <= committedRecord { unnotedThrough.store(0, ordering: .releasing) }
        statistics.commits += 1
        statistics.journalBytesWritten += written
        releaseRetired()
        if journalUsedBytes > superblock.journalBytes / 2 { requestPass() }
        monitor.broadcast()
    }

    private func write(
        _ batch: PendingRecords, _ end: inout JournalPoint, syncedThrough: UInt64
    ) throws(PoolError) -> UInt64 {
        defer { batch.end = end }
        guard !batch.writer.bytes.isEmpty else { return 0 }
        let header = BatchHeader(
            poolTag: superblock.poolID.low, sequence: end.sequence, syncedThrough: syncedThrough,
            previous: end.chain, payloadBytes: UInt32(batch.writer.bytes.count))
        let (bytes, crc) = header.encodeBatch(payload: batch.writer.bytes)
        let ring = superblock.journalBytes
        let place = end.position % ring
        let first = min(UInt64(bytes.count), ring - place)
        let base = Format.journalBlock * UInt64(Format.blockBytes)
        do {
            try bytes.withRawBytes { raw throws(StorageError) in
                try file.write(at: base + place, from: UnsafeRawBufferPointer(rebasing: raw[..<Int(first)]))
                guard Int(first) < raw.count else { return }
                try file.write(at: base, from: UnsafeRawBufferPointer(rebasing: raw[Int(first)...]))
            }
        } catch {
            throw .io(operation: "writing the journal", errno: error.errno)
        }
        end.position += UInt64(bytes.count)
        end.sequence += 1
        end.chain = crc
        return UInt64(bytes.count)
    }

    func syncFile(_ operation: String) throws(PoolError) {
        do {
            try file.sync()
        } catch {
            throw .io(operation: operation, errno: error.errno)
        }
    }

    /// Blocks whose overwriting record is durable have no reference left that recovery could follow.
    func releaseRetired() {
        unlinkedToPunchNow.append(retiring.unmapped)
        unlinkedNow.append(retiring.overwritten)
        retiring = Retired()
        advanceFrees()
        do {
            try releaseSome(most: 512)
        } catch {
            fail("\(error)")
        }
    }
}
