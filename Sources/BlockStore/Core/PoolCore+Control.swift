internal import BlockIO
internal import Synchronization

/// Checks and records behind the pool's calls. Those without their own locking are called with the lock held.
extension PoolCore {
    func checkName(_ name: String) throws(PoolError) {
        let allowed = name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                true
            default: ".:_@-".utf8.contains(byte)
            }
        }
        guard (1...128).contains(name.utf8.count), allowed else { throw .invalidName(name) }
    }

    func checkSize(_ sizeBytes: UInt64) throws(PoolError) {
        guard sizeBytes > 0, sizeBytes <= Format.maxVolumeBytes, sizeBytes % UInt64(Format.blockBytes) == 0 else {
            throw .invalidSize(sizeBytes)
        }
    }

    func checkAttributes(_ bytes: [UInt8]) throws(PoolError) {
        let limit = min(Format.maxAttributeBytes, Int(superblockJournalBytes / 16))
        guard bytes.count <= limit else {
            throw .invalidArgument("\(bytes.count) bytes of attributes are more than \(limit)")
        }
    }

    private var superblockJournalBytes: UInt64 { monitor.withLock { superblock.journalBytes } }

    func checkNewVolume(_ id: VolumeID, _ name: String) throws(PoolError) {
        guard volumeNumbers[id] == nil else { throw .exists("volume \(id)") }
        guard tables.volumeNames[name] == nil else { throw .exists("volume \(name)") }
    }

    func volumeSeed(id: VolumeID, name: String, sizeBytes: UInt64) -> VolumeSeed {
        VolumeSeed(
            number: nextVolume, dataset: nextDataset, id: id, name: name, naa: .random(from: options.surroundings),
            sizeBytes: sizeBytes, createdAt: options.surroundings.now())
    }

    func snapshotSeed(
        id: SnapshotID, name: String, volumes: [VolumeID], kind: SnapshotKind, attributes: [UInt8]
    ) throws(PoolError) -> SnapshotSeed {
        guard snapshots[id] == nil else { throw .exists("snapshot \(id)") }
        guard tables.snapshotNames[name] == nil else { throw .exists("snapshot \(name)") }
        guard !volumes.isEmpty else { throw .invalidArgument("a snapshot needs at least one volume") }
        guard Set(volumes).count == volumes.count else { throw .invalidArgument("a volume is named twice") }
        guard epoch < Format.maxEpoch - 1 else { throw .unsupported("the pool has used up its epochs") }
        var members: [SnapshotSeed.Member] = []
        for (index, volume) in volumes.enumerated() {
            members.append(
                SnapshotSeed.Member(volume: try self.volume(volume).number, dataset: nextDataset + UInt64(index)))
        }
        return SnapshotSeed(
            id: id, name: name, createdAt: options.surroundings.now(), kind: kind, members: members,
            attributes: attributes)
    }

    /// Runs `body` with the lock held, when the next checkpoint has room for what it adds.
    func withRoom<R>(_ body: () throws(PoolError) -> R) throws(PoolError) -> R {
        monitor.lock()
        defer { monitor.unlock() }
        var passesLeft = 3
        while !hasMetadataRoom(for: 64) {
            if let refusal { throw refusal }
            guard passesLeft > 0 else { throw .noSpace }
            passesLeft -= 1
            try awaitPass()
        }
        return try body()
    }

    /// Applies a record and appends it to the journal; the caller commits.
    func perform(_ record: JournalRecord) throws(PoolError) -> UInt64 {
        if let refusal { throw refusal }
        try apply(record)
        defer { requestPassIfDue() }
        return append(record)
    }

    /// Names of the volumes that were cloned from the snapshot, and still stand on it.
    func clones(of snapshot: Snapshot) -> [String] {
        let clones = (tables.clonesOfSnapshot[snapshot.id] ?? []).compactMap { volumes[$0] }
        let transfers = receives.values.filter { $0.from == snapshot.id }
        return clones.filter { !$0.isHidden }.map(\.name).sorted() + transfers.map(\.title).sorted()
    }

    func record(of volume: Volume) -> VolumeRecord {
        let recent = volume.head.layers.reduce(0) { $0 + UInt64($1.count) }
        let blocks = min(volume.head.root.mappedBlocks + recent, volume.head.sizeBytes / UInt64(Format.blockBytes))
        return VolumeRecord(
            id: volume.id, name: volume.name, naa: volume.naa, sizeBytes: volume.head.sizeBytes,
            mappedBytes: blocks * UInt64(Format.blockBytes), createdAt: volume.createdAt, clonedFrom: volume.clonedFrom)
    }

    func currentStatistics() -> PoolStatistics {
        let available = file.availableBytes
        return monitor.withLock {
            let blockBytes = UInt64(Format.blockBytes)
            var result = statistics
            result.sizeBytes = totalBlocks * blockBytes
            result.usedBytes = space.busyBlocks * blockBytes
            result.freeBytes = space.dataFree * blockBytes
            if let available { result.freeBytes = min(result.freeBytes, available) }
            result.epoch = epoch
            result.overlayEntries = UInt64(overlayEntries)
            result.journalUsedBytes = journalUsedBytes
            result.journalSizeBytes = superblock.journalBytes
            result.dataBytesWritten = dataBytesWritten.load(ordering: .relaxed)
            result.checksumErrors = checksumErrors.load(ordering: .relaxed)
            noteReclaim(&result.reclaim)
            result.volatileLog = volatileLogState
            if let failure {
                result.state = .readOnly(reason: failure)
            } else if options.isReadOnly {
                result.state = .readOnly(reason: readOnlyReason)
            } else {
                result.state = isFull ? .full : .healthy
            }
            return result
        }
    }

    private func noteReclaim(_ progress: inout ReclaimProgress) {
        progress.pending = UInt64(tables.doomed.count)
        for dataset in tables.doomed.values {
            if dataset.children.count > 1 {
                progress.waiting += 1
            } else {
                progress.sizeBytes += dataset.sizeBytes
                progress.doneBytes += min(dataset.sizeBytes, dataset.cursor * UInt64(Format.blockBytes))
            }
        }
        progress.leavingBytes = UInt64(leavingBlocks * Format.blockBytes)
    }

    // MARK: Maintenance

    func requestPass() {
        guard !isCheckpointRequested else { return }
        isCheckpointRequested = true
        monitor.broadcast()
    }

    func wakeMaintenance() {
        monitor.withLock {
            isCheckpointRequested = true
            monitor.broadcast()
        }
    }

    /// Asks for a checkpoint when the overlay or the pages it will need grow large.
    func requestPassIfDue() {
        if overlayEntries >= options.overlayEntries || pagesToMerge + overheadPages > space.metadataFree / 2 {
            requestPass()
        }
        if isWorkerIdle, isCommitDue || unsynced.isDue {
            isWorkerIdle = false
            monitor.broadcast()
        }
    }

    /// Whether the maintenance thread commits though nobody waits for it: so that no writer has to wait for room, and
    /// that overwritten blocks come back while the page cache still has them.
    private var isCommitDue: Bool {
        !isCommitting && (pendingBytes > pendingLimit / 2 || retired.overwritten.count >= Self.retiredLimit)
    }

    /// 32 MiB of overwritten blocks.
    private static var retiredLimit: Int { 8192 }

    /// Waits until a pass that began after now has ended, or runs one where the pool has no thread for it. Called and
    /// returns with the lock held.
    func awaitPass() throws(PoolError) {
        if !options.hasMaintenanceThread {
            monitor.unlock()
            defer { monitor.lock() }
            try maintain()
            return
        }
        let target = passesFinished + (isMaintaining ? 2 : 1)
        requestPass()
        while passesFinished < target {
            if let refusal { throw refusal }
            if isClosing { throw .closed }
            isCheckpointRequested = true
            monitor.broadcast()
            monitor.wait()
        }
    }

    func startWorker() {
        guard options.hasMaintenanceThread, !options.isReadOnly else { return }
        worker = WorkerThread { [self] in work() }
    }

    private func work() {
        monitor.lock()
        while !isClosing {
            let mustCommit = isCommitDue
            let target = lastRecord
            let mustCheckpoint = isCheckpointRequested
            guard failure == nil, mustCommit || mustCheckpoint || unsynced.isDue else {
                isWorkerIdle = true
                let isIdle = !monitor.wait(seconds: 5)
                isWorkerIdle = false
                if isIdle, hasUnmappedSinceCheckpoint || hasPunchesPending { isCheckpointRequested = true }
                continue
            }
            monitor.unlock()
            writeBackEarly()
            // A failure has been noted in the pool's state.
            if mustCheckpoint {
                try? maintain()
            } else if mustCommit {
                try? commit(through: target, whenFull: .giveUp)
            }
            monitor.lock()
        }
        monitor.unlock()
    }

    /// Has the disk begin with what was written, so that the next sync finds less to do.
    func writeBackEarly() {
        let spans = monitor.withLock {
            if unsynced.isDue, hasBug(.writebackTakenForSync) { hasUnsyncedData = false }
            return unsynced.isDue ? unsynced.take() : []
        }
        for span in spans {
            let lengthBytes = UInt64(span.count) * UInt64(Format.blockBytes)
            file.startWriteback(at: span.lowerBound * UInt64(Format.blockBytes), lengthBytes: lengthBytes)
        }
    }

    func close() throws(PoolError) {
        let worker = try monitor.withLock { () throws(PoolError) in
            guard !isClosed, !isClosing else { throw .closed }
            isClosing = true
            monitor.broadcast()
            return self.worker
        }
        worker?.join()
        var failed: PoolError?
        if monitor.withLock({ refusal == nil }) {
            do {
                try maintain()
            } catch {
                failed = error
            }
        }
        monitor.withLock {
            isClosed = true
            monitor.broadcast()
            for volume in volumes.values { volume.device = nil }
        }
        // Readers hold no lock while they read; the file must outlive them.
        monitor.withLock { while isCommitting { monitor.wait() } }
        awaitReaders()
        if failed == nil {
            do {
                try commitTheLast()
            } catch {
                failed = error
            }
        }
        monitor.withLock { forgetObjects() }
        file.close()
        if let failed { throw failed }
    }

    /// Nothing can enter any more: what did so since the last pass gets into the journal, and the log has served.
    private func commitTheLast() throws(PoolError) {
        monitor.lock()
        defer { monitor.unlock() }
        guard failure == nil, !options.isReadOnly else { return }
        if committedRecord < lastRecord { try leadCommit() }
        volatileLog?.remove()
        volatileLog = nil
    }

    /// Lets go of volumes, datasets and layers, which refer to each other. The pool must be closed.
    func forgetObjects() {
        isClosed = true
        for volume in volumes.values { volume.device = nil }
        for dataset in datasets.values {
            dataset.leaveTables()
            dataset.setParent(nil)
            // They refer back to it.
            dataset.layers = []
        }
        // The tables know them, and they the tables.
        tables.unwritten = [:]
        volumes = [:]
        volumeNumbers = [:]
        snapshots = [:]
        receives = [:]
        datasets = [:]
    }
}
