internal import BlockIO

/// Making a pool and opening one.
extension PoolCore {
    static func create(file: any StorageFile, options: PoolOptions) throws(PoolError) -> PoolCore {
        let blockBytes = UInt64(Format.blockBytes)
        guard options.journalBytes % blockBytes == 0, options.journalBytes >= 128 << 10 else {
            throw .invalidArgument("a journal of \(options.journalBytes) bytes is too small or no multiple of 4096")
        }
        let wanted = file.canGrow ? options.maxSizeBytes : min(options.maxSizeBytes, file.sizeBytes)
        var regionBlocks = Format.maxRegionBlocks
        while regionBlocks > options.leastRegionBlocks, wanted / blockBytes / regionBlocks < 64 { regionBlocks /= 2 }
        let totalBlocks = wanted / blockBytes / regionBlocks * regionBlocks
        let reserved = Format.journalBlock + options.journalBytes / blockBytes
        guard totalBlocks >= reserved + 4 * regionBlocks, totalBlocks <= 1 << 40 else {
            throw .invalidSize(wanted)
        }
        let surroundings = options.surroundings
        var superblock = Superblock(
            poolID: .random(from: surroundings), digestKey: (surroundings.random(), surroundings.random()),
            totalBlocks: totalBlocks,
            regionBlocks: regionBlocks, journalBytes: options.journalBytes)
        superblock.createdAt = surroundings.now()
        do {
            let end = (reserved + regionBlocks - 1) / regionBlocks * regionBlocks
            try file.allocate(at: 0, lengthBytes: end * blockBytes)
            try zeroFill(file, from: 0, to: reserved * blockBytes)
            try file.sync()
        } catch {
            throw error.errno == 28 ? .noSpace : .io(operation: "preparing the pool", errno: error.errno)
        }
        let core = PoolCore(file: file, options: options, superblock: superblock)
        try core.space.reserveForPool(reserved)
        try core.maintain()
        try core.beginVolatileLog(try core.replayVolatileLog())
        core.startWorker()
        return core
    }

    /// Unwritten extents would make each first write of the ring change the file system's own metadata as well.
    private static func zeroFill(_ file: any StorageFile, from: UInt64, to end: UInt64) throws(StorageError) {
        let piece = 1 << 20
        let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: piece, alignment: Format.blockBytes)
        defer { zeros.deallocate() }
        zeros.initializeMemory(as: UInt8.self, repeating: 0)
        var at = from
        while at < end {
            let count = Int(min(UInt64(piece), end - at))
            try file.write(at: at, from: UnsafeRawBufferPointer(rebasing: zeros[..<count]))
            at += UInt64(count)
        }
    }

    static func open(file: any StorageFile, path: String, options: PoolOptions) throws(PoolError) -> PoolCore {
        var options = options
        if !options.isReadOnly { try settleCache(file, options) }
        let superblock = try readSuperblock(file, path: path)
        if superblock.readOnlyFeatures != 0 { options.isReadOnly = true }
        let core = PoolCore(file: file, options: options, superblock: superblock)
        do {
            try core.restore()
        } catch {
            // Volumes and datasets know their pool.
            core.monitor.withLock { core.forgetObjects() }
            throw error
        }
        core.startWorker()
        return core
    }

    /// A process that was killed may have left a batch, and the data before it, in the system's cache only; and where a
    /// sync failed, the cache shows what the disk never got. What is served from now on counts as durable, so it has to
    /// be: it is synced before it is read, and read from the disk.
    private static func settleCache(_ file: any StorageFile, _ options: PoolOptions) throws(PoolError) {
        #if DEBUG
            if options.plantedBug == .cacheTrusted { return }
        #endif
        do {
            try file.sync()
        } catch {
            throw .io(operation: "syncing what an earlier process left", errno: error.errno)
        }
        file.dropCache()
    }

    private func restore() throws(PoolError) {
        try restoreRegions()
        try restoreCatalog()
        try replayJournal()
        let log = options.isReadOnly ? nil : try replayVolatileLog()
        try occupyOverlay()
        // Without the pages above the bitmaps there is nothing that a checkpoint could be written to.
        if space.hasLostKinds, !options.isReadOnly, try rebuildSpace(memoryBytes: options.memoryBytes / 3) == nil {
            throw .damaged(
                "neither the allocation map nor all maps of volumes can be read; only a read-only opening is possible")
        }
        if !options.isReadOnly { try completeSuperblock() }
        if !options.isReadOnly { try beginVolatileLog(log) }
        isCheckpointRequested = hasReclaimableDataset
        requestPassIfDue()
    }

    // MARK: Superblock

    static func place(ofCopy copy: Int) -> UInt64 {
        UInt64(copy) * Format.superblockStride * UInt64(Format.blockBytes)
    }

    static func readBlock(
        _ file: any StorageFile, at offset: UInt64, uncached: Bool = false
    ) throws(StorageError) -> [UInt8] {
        guard uncached else {
            var bytes = [UInt8](repeating: 0, count: Format.blockBytes)
            try bytes.withMutableRawBytes { raw throws(StorageError) in try file.read(at: offset, into: raw) }
            return bytes
        }
        let page = Page(isAligned: true)
        try file.readUncached(at: offset, into: page.mutableBytes)
        return Array(page.bytes)
    }

    static func readSuperblock(_ file: any StorageFile, path: String) throws(PoolError) -> Superblock {
        var newest: Superblock?
        var hasMagic = false
        var readError: StorageError?
        for copy in 0..<Format.superblockCopies {
            let bytes: [UInt8]
            do {
                bytes = try readBlock(file, at: place(ofCopy: copy))
            } catch {
                readError = error
                continue
            }
            var reader = ByteReader(bytes[...])
            if (try? reader.get(UInt64.self)) == Format.superblockMagic { hasMagic = true }
            guard let found = try Superblock.decode(bytes) else { continue }
            if found.generation > newest?.generation ?? 0 { newest = found }
        }
        guard let newest else {
            if hasMagic { throw .damaged("all copies of the superblock in \(path) are wrong") }
            if let readError { throw .io(operation: "reading the superblock of \(path)", errno: readError.errno) }
            throw .notAPool(path: path)
        }
        let blocks = newest.journalBytes / UInt64(Format.blockBytes) + Format.journalBlock
        guard newest.regionBlocks > 0, newest.regionBlocks <= Format.maxRegionBlocks, newest.regionBlocks % 64 == 0,
            newest.totalBlocks <= 1 << 40, blocks < newest.totalBlocks
        else { throw .damaged("the superblock in \(path) has impossible sizes") }
        guard file.sizeBytes >= blocks * UInt64(Format.blockBytes) else {
            throw .damaged("\(path) is cut off: it ends within the journal")
        }
        let needed = newest.totalBlocks * UInt64(Format.blockBytes)
        guard file.canGrow || file.sizeBytes >= needed else {
            throw .damaged("the device \(path) has \(file.sizeBytes) bytes and the pool on it needs \(needed)")
        }
        return newest
    }

    /// Writes half of the copies; the other half keeps the state before until the next time.
    func write(_ superblock: Superblock) throws(PoolError) {
        let bytes = superblock.encoded()
        do {
            for copy in 0..<Format.superblockCopies
            where copy % 2 == Int(superblock.generation % 2) {
                try bytes.withRawBytes { raw throws(StorageError) in
                    try file.write(at: Self.place(ofCopy: copy), from: raw)
                }
            }
        } catch {
            throw .io(operation: "writing the superblock", errno: error.errno)
        }
        if !hasBug(.superblockNotSynced) { try syncFile("syncing the superblock") }
    }

    /// Where a crash came while a superblock was written, one of its copies may be torn or missing: it is written from
    /// the whole one, which is not touched.
    private func completeSuperblock() throws(PoolError) {
        let bytes = superblock.encoded()
        var hasWritten = false
        do {
            for copy in 0..<Format.superblockCopies where copy % 2 == Int(superblock.generation % 2) {
                let found = try? Self.readBlock(file, at: Self.place(ofCopy: copy))
                if found == bytes { continue }
                try bytes.withRawBytes { raw throws(StorageError) in
                    try file.write(at: Self.place(ofCopy: copy), from: raw)
                }
                hasWritten = true
            }
        } catch {
            throw .io(operation: "completing the superblock", errno: error.errno)
        }
        if hasWritten { try syncFile("syncing the completed superblock") }
    }

    // MARK: Checkpoint

    private func restoreRegions() throws(PoolError) {
        let topLevel = superblock.allocationLevel
        func visit(_ pointer: NodePointer, _ level: Int, _ index: Int) throws(PoolError) {
            guard !pointer.isNull else { return }
            if level == 0 {
                guard index < space.regionLimit, let kind = SpaceMap.Kind(rawValue: UInt8(pointer.birth >> 56)) else {
                    throw .damaged("the allocation map describes region \(index), which cannot be")
                }
                let count = Int(pointer.birth & 0xffff_ffff)
                space.restore(region: index, pointer: pointer, kind: kind, count: count)
                return
            }
            guard case .success(let page) = tryLoading(pointer) else {
                // Of nothing below it even the kind is known.
                let first = index << (7 * level)
                let end = min((index + 1) << (7 * level), space.regionLimit)
                for region in first..<max(first, end) { space.restoreLost(region: region) }
                return
            }
            for child in 0..<Int(Format.fanOut) { try visit(page[child: child], level - 1, index << 7 | child) }
        }
        try visit(superblock.allocationRoot, topLevel, 0)
    }

    func readStream(
        _ root: NodePointer, lengthBytes: UInt64, as what: String = "page of attributes"
    ) throws(PoolError) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Int(lengthBytes) + Format.blockBytes)
        try MetadataWriter.forEachStreamPage(
            root, lengthBytes: lengthBytes, load: { pointer throws(PoolError) in try loadPage(pointer, as: what) }
        ) { pointer, level throws(PoolError) in
            if level == 0 { bytes.append(contentsOf: try loadPage(pointer, as: what).bytes) }
        }
        guard UInt64(bytes.count) >= lengthBytes else { throw .damaged("a stream ends too early") }
        bytes.removeLast(bytes.count - Int(lengthBytes))
        return bytes
    }

    private func restoreCatalog() throws(PoolError) {
        let bytes = try readStream(
            superblock.catalogRoot, lengthBytes: superblock.catalogBytes, as: "page of the catalog")
        let image: CatalogImage
        do {
            image = try CatalogImage.decode(bytes)
        } catch {
            throw .damaged("the catalog cannot be read")
        }
        for entry in image.datasets {
            let dataset = Dataset(
                number: entry.number, volume: entry.volume, role: entry.role, epoch: entry.epoch,
                sizeBytes: entry.sizeBytes, tables: tables)
            dataset.cursor = entry.cursor
            dataset.root = entry.root
            datasets[entry.number] = dataset
        }
        for entry in image.datasets where entry.parent != 0 {
            guard let parent = datasets[entry.parent] else { throw .damaged("dataset \(entry.number) has no parent") }
            datasets[entry.number]!.setParent(parent)
        }
        for entry in image.volumes {
            guard let head = datasets[entry.head] else { throw .damaged("volume \(entry.name) has no head") }
            register(
                Volume(
                    number: entry.number, id: entry.id, name: entry.name, naa: entry.naa, createdAt: entry.createdAt,
                    clonedFrom: entry.clonedFrom, head: head))
            pushLayer(head)
        }
        for entry in image.snapshots { try restoreSnapshot(entry) }
        for entry in image.receives {
            for member in entry.members {
                guard let volume = volumes[member.staging] else { throw .damaged("a transfer lacks its volume") }
                volume.isHidden = true
            }
            receives[entry.snapshot] = entry.makeReceive()
        }
    }

    private func restoreSnapshot(_ entry: SnapshotImage) throws(PoolError) {
        var members: [Snapshot.Member] = []
        for member in entry.members {
            guard let dataset = datasets[member.dataset] else {
                throw .damaged("snapshot \(entry.name) lacks the dataset of a member")
            }
            members.append(Snapshot.Member(volume: member.volume, dataset: dataset))
        }
        // Attributes are read when they are asked for.
        register(
            Snapshot(
                id: entry.id, name: entry.name, createdAt: entry.createdAt, kind: entry.kind, epoch: entry.epoch,
                members: members, attributes: entry.attributeBytes == 0 ? [] : nil,
                attributeBytes: entry.attributeBytes, attributesRoot: entry.attributesRoot))
    }

    // MARK: Journal

    /// Applies every batch from the checkpoint on, up to the first that is not whole. Such a batch is a torn tail,
    /// which was never acknowledged, unless a later batch proves that it was once durable.
    private func replayJournal() throws(PoolError) {
        while let (header, batch, crc) = try readBatch(at: journalEnd) {
            do {
                let end = BatchHeader.lengthBytes + Int(header.payloadBytes)
                var reader = ByteReader(batch[BatchHeader.lengthBytes..<end])
                while reader.remaining > 0 { try apply(try JournalRecord.decode(&reader)) }
            } catch let error as PoolError {
                throw error
            } catch {
                throw .damaged("batch \(header.sequence) of the journal cannot be read")
            }
            journalEnd.position += UInt64(batch.count)
            journalEnd.sequence += 1
            journalEnd.chain = crc
        }
        guard !options.isReadOnly, let later = try laterBatch() else { return }
        throw .damaged(
            "batch \(journalEnd.sequence) of the journal was durable and cannot be read any more "
                + "(batch \(later) follows it); only a read-only opening is possible")
    }

    private func readRing(at position: UInt64, count: Int, uncached: Bool) throws(StorageError) -> [UInt8] {
        let ring = superblock.journalBytes
        let base = Format.journalBlock * UInt64(Format.blockBytes)
        let place = position % ring
        let first = Int(min(UInt64(count), ring - place))
        let raw = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: Format.blockBytes)
        defer { raw.deallocate() }
        try readFile(at: base + place, into: .init(rebasing: raw[..<first]), uncached: uncached)
        if first < count { try readFile(at: base, into: .init(rebasing: raw[first...]), uncached: uncached) }
        return Array(raw)
    }

    private func readFile(
        at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer, uncached: Bool
    ) throws(StorageError) {
        if uncached { try file.readUncached(at: offset, into: buffer) } else { try file.read(at: offset, into: buffer) }
    }

    /// The batch that begins at `point` and continues its chain; nil when there is none.
    func readBatch(
        at point: JournalPoint, uncached: Bool = false
    ) throws(PoolError) -> (BatchHeader, [UInt8], UInt32)? {
        guard let found = try wholeBatch(at: point.position, uncached: uncached), found.0.sequence == point.sequence,
            found.0.previous == point.chain
        else { return nil }
        return found
    }

    /// The batch of this pool at a place of the ring, if it is whole.
    private func wholeBatch(
        at position: UInt64, uncached: Bool = false
    ) throws(PoolError) -> (BatchHeader, [UInt8], UInt32)? {
        do {
            let head = try readRing(at: position, count: Format.blockBytes, uncached: uncached)
            guard let (header, crc) = BatchHeader.decode(head), header.poolTag == superblock.poolID.low else {
                return nil
            }
            let count = BatchHeader.batchBytes(payloadBytes: Int(header.payloadBytes))
            guard UInt64(count) <= superblock.journalBytes else { return nil }
            let batch = try readRing(at: position, count: count, uncached: uncached)
            return BatchHeader.verify(batch, crc: crc) || hasBug(.tornBatchAccepted) ? (header, batch, crc) : nil
        } catch {
            throw .io(operation: "reading the journal", errno: error.errno)
        }
    }

    /// A batch that was written only after the one that should come next had become durable.
    private func laterBatch() throws(PoolError) -> UInt64? {
        for position in stride(from: UInt64(0), to: superblock.journalBytes, by: Format.blockBytes) {
            if let (header, _, _) = try wholeBatch(at: position), header.syncedThrough >= journalEnd.sequence {
                return header.sequence
            }
        }
        return nil
    }

    /// Blocks of recovered mappings are in use though the checkpoint's bitmaps do not say so yet.
    private func occupyOverlay() throws(PoolError) {
        if hasBug(.recoveredBlocksFree) { return }
        var seen: Set<UInt64> = []
        for dataset in datasets.values.sorted(by: { $0.number < $1.number }) {
            for layer in dataset.layers where seen.insert(layer.number).inserted {
                var blocks: [UInt64] = []
                layer.forEach { if $1.block != 0 { blocks.append($1.block) } }
                for block in blocks { try space.occupy(block) }
            }
        }
    }
}
