internal import BlockIO
internal import Synchronization

/// The write path: check, allocate, write the data elsewhere, then enter the new places into the head's top layer.
extension PoolCore {
    static let blockBytes = UInt64(Format.blockBytes)

    // MARK: Entry points

    func write(
        _ volume: Volume, at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability
    ) throws(BlockError) {
        try checkAlignment(offset, UInt64(buffer.count))
        guard buffer.count > 0 else { return }
        var record: UInt64?
        if offset % Self.blockBytes == 0, buffer.count % Format.blockBytes == 0 {
            record = try writeBlocks(volume, first: offset / Self.blockBytes, from: buffer, claim: nil)
        } else {
            record = try modify(volume, at: offset, count: buffer.count, readsAll: false) { target throws(BlockError) in
                target.copyMemory(from: buffer)
            }
        }
        try settle(record, durability)
    }

    func compareAndWrite(
        _ volume: Volume, at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError) {
        try checkAlignment(offset, UInt64(expected.count))
        guard expected.count == replacement.count else {
            throw .misaligned(offset: offset, lengthBytes: UInt64(replacement.count))
        }
        guard expected.count > 0 else { return }
        let record = try modify(volume, at: offset, count: expected.count, readsAll: true) {
            target throws(BlockError) in
            for index in 0..<expected.count where target[index] != expected[index] {
                throw .miscompare(offset: offset + UInt64(index))
            }
            target.copyMemory(from: replacement)
        }
        try settle(record, durability)
    }

    func flush(_ volume: Volume) throws(BlockError) {
        let target = try monitor.withLock { () throws(BlockError) in
            guard volume.device != nil, !isClosed else { throw .removed }
            return lastRecord
        }
        try commitForDevice(target)
    }

    func unmap(_ volume: Volume, at offset: UInt64, lengthBytes: UInt64) throws(BlockError) {
        try checkAlignment(offset, lengthBytes)
        let end = offset + lengthBytes
        let firstWhole = (offset + Self.blockBytes - 1) / Self.blockBytes
        let endWhole = end / Self.blockBytes
        if offset % Self.blockBytes == 0, end % Self.blockBytes == 0 {
            try unmapBlocks(volume, firstWhole..<endWhole)
            return try settle(nil, .cached)
        }
        try settle(try fill(volume, offset..<end, with: nil), .cached)
    }

    /// What has to happen before a change is acknowledged: it is durable, or it is in the volatile log with all
    /// before it.
    func settle(_ record: UInt64?, _ durability: WriteDurability) throws(BlockError) {
        if durability == .durable, let record { return try commitForDevice(record) }
        let unnoted = unnotedThrough.load(ordering: .acquiring)
        if unnoted > 0 { try commitForDevice(unnoted) }
    }

    func commitForDevice(_ record: UInt64) throws(BlockError) {
        do {
            try commit(through: record)
        } catch {
            throw Self.blockError(error)
        }
    }

    static func blockError(_ error: PoolError) -> BlockError {
        switch error {
        case .closed: .removed
        case .readOnly: .readOnly
        case .noSpace: .noSpace
        case .io(_, let errno): .io(errno: errno)
        default: .io(errno: 5)
        }
    }

    func checkAlignment(_ offset: UInt64, _ lengthBytes: UInt64) throws(BlockError) {
        guard offset % 512 == 0, lengthBytes % 512 == 0 else {
            throw .misaligned(offset: offset, lengthBytes: lengthBytes)
        }
    }

    // MARK: Parts of blocks

    /// Reads the blocks around a range, lets `edit` change the range, and writes them, all as if at one instant: when
    /// another change of the blocks comes between, it starts over. Some caller always gets through.
    private func modify(
        _ volume: Volume, at offset: UInt64, count: Int, readsAll: Bool,
        edit: (UnsafeMutableRawBufferPointer) throws(BlockError) -> Void
    ) throws(BlockError) -> UInt64 {
        let first = offset / Self.blockBytes
        let end = (offset + UInt64(count) + Self.blockBytes - 1) / Self.blockBytes
        let blocks = Int(end - first)
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: blocks * Format.blockBytes, alignment: Format.blockBytes)
        defer { buffer.deallocate() }
        let within = Int(offset - first * Self.blockBytes)
        let target = UnsafeMutableRawBufferPointer(rebasing: buffer[within..<(within + count)])
        let claim = Claim(volume: volume.number, blocks: [first..<end])
        enter(claim)
        defer { leave(claim) }
        while true {
            if readsAll || blocks <= 2 {
                try read(.volume(volume), at: first * Self.blockBytes, into: buffer)
            } else {
                let tail = buffer.count - Format.blockBytes
                try read(
                    .volume(volume), at: first * Self.blockBytes,
                    into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<Format.blockBytes]))
                try read(
                    .volume(volume), at: (end - 1) * Self.blockBytes,
                    into: UnsafeMutableRawBufferPointer(rebasing: buffer[tail...]))
            }
            try edit(target)
            if let record = try writeBlocks(volume, first: first, from: UnsafeRawBufferPointer(buffer), claim: claim) {
                return record
            }
        }
    }

    func enter(_ claim: Claim) { monitor.withLock { claims.append(claim) } }

    func leave(_ claim: Claim) { monitor.withLock { claims.removeAll { $0 === claim } } }

    // MARK: Whole blocks

    /// Returns the number of the last journal record, or nil when the claim was broken.
    private func writeBlocks(
        _ volume: Volume, first: UInt64, from buffer: UnsafeRawBufferPointer, claim: Claim?
    ) throws(BlockError) -> UInt64? {
        // On the stack where it is short, as what else a usual write needs.
        try withUnsafeTemporaryAllocation(of: UInt32.self, capacity: buffer.count / Format.blockBytes) {
            crcs throws(BlockError) in
            try writeBlocks(volume, first: first, from: buffer, crcs: crcs, claim)
        }
    }

    private func writeBlocks(
        _ volume: Volume, first: UInt64, from buffer: UnsafeRawBufferPointer,
        crcs: UnsafeMutableBufferPointer<UInt32>, _ claim: Claim?
    ) throws(BlockError) -> UInt64? {
        var pieces = WritePieces()
        for index in 0..<crcs.count {
            let block = UnsafeRawBufferPointer(
                rebasing: buffer[(index * Format.blockBytes)..<((index + 1) * Format.blockBytes)])
            let isZero = options.detectsZeros && isAllZero(block)
            crcs.initializeElement(at: index, to: isZero ? 0 : CRC32C.checksum(block))
            pieces.append(index: index, isStored: !isZero)
        }
        let content = BlockContent(bytes: buffer, crcs: UnsafeBufferPointer(crcs))
        return try store(pieces, content, volume: volume, first: first, claim)
    }

    /// Stores blocks and enters all of them at one instant. Returns as `writeBlocks`.
    func store(
        _ pieces: WritePieces, _ content: BlockContent, volume: Volume, first: UInt64, _ claim: Claim?
    ) throws(BlockError) -> UInt64? {
        var attempt = 0
        while true {
            let (placed, phase) = try place(pieces, content, volume: volume, first: first)
            // Closing the pool waits for writers the same way as for readers.
            defer { exitRead(phase) }
            do throws(BlockError) {
                try writeData(placed, content)
            } catch {
                giveBack(placed)
                guard error == .noSpace, attempt < 2 else { throw error }
                try makeRoomInFileSystem(attempt)
                attempt += 1
                continue
            }
            dataBytesWritten.add(UInt64(pieces.stored * Format.blockBytes), ordering: .relaxed)
            return try enter(placed, content, volume: volume, first: first, claim)
        }
    }

    private func writeData(_ pieces: WritePieces, _ content: BlockContent) throws(BlockError) {
        do throws(StorageError) {
            for piece in pieces where piece.physical != 0 {
                let offset = piece.physical * Self.blockBytes
                let bytes = content.bytes(of: piece)
                if let held = pieces.held, held.lowerBound == piece.physical + UInt64(piece.count) {
                    try file.write(
                        at: offset, from: bytes, backing: (held.upperBound - piece.physical) * Self.blockBytes)
                } else {
                    try file.write(at: offset, from: bytes)
                }
            }
        } catch {
            // ENOSPC and EDQUOT: what the pool lies on is full; nothing was acknowledged, so nothing is lost.
            throw error.errno == 28 || error.errno == 122 ? .noSpace : .io(errno: error.errno)
        }
    }

    /// The file system is full: freed blocks that still have storage come first from now on, and a pass may give some
    /// back.
    private func makeRoomInFileSystem(_ attempt: Int) throws(BlockError) {
        monitor.lock()
        defer { monitor.unlock() }
        if attempt > 0, canFreeMore { try awaitPassForDevice() }
        if attempt > 0 { isFull = true }
        space.rewind()
    }

    /// Waits for room and allocates: pieces may fall apart into several runs.
    private func place(
        _ pieces: WritePieces, _ content: BlockContent, volume: Volume, first: UInt64
    ) throws(BlockError) -> (WritePieces, Int) {
        monitor.lock()
        defer { monitor.unlock() }
        try admit(
            volume, first: first, count: content.count, scattered: content.scatteredBlocks, stored: pieces.stored)
        guard pieces.stored > 0 else { return (pieces, enterRead()) }
        var placed = WritePieces()
        do throws(PoolError) {
            for piece in pieces {
                guard piece.physical != 0 else {
                    placed.append(piece)
                    continue
                }
                var done = 0
                while done < piece.count {
                    let most = min(piece.count - done, content.longestRun(at: piece.index))
                    guard let run = try space.allocateData(most) else { throw PoolError.noSpace }
                    placed.append(WritePiece(index: piece.index + done, count: run.count, physical: run.lowerBound))
                    done += run.count
                    if done == piece.count, piece.index + done == content.count {
                        placed.held = space.holdGroup(behind: run)
                    }
                }
            }
        } catch {
            try? releaseLocked(placed)
            throw Self.blockError(error)
        }
        return (placed, enterRead())
    }

    private func releaseLocked(_ pieces: WritePieces) throws(PoolError) {
        if let held = pieces.held { try space.releaseHeld(held) }
        for piece in pieces where piece.physical != 0 {
            try space.release(piece.physical..<(piece.physical + UInt64(piece.count)))
        }
    }

    private func giveBack(_ pieces: WritePieces) {
        monitor.withLock {
            do {
                try releaseLocked(pieces)
            } catch {
                fail("\(error)")
            }
        }
    }

    /// The instant at which a write takes effect.
    private func enter(
        _ pieces: WritePieces, _ content: BlockContent, volume: Volume, first: UInt64, _ claim: Claim?
    ) throws(BlockError) -> UInt64? {
        monitor.lock()
        defer { monitor.unlock() }
        let count = content.count
        do throws(BlockError) {
            try checkWritable(volume, first: first, count: UInt64(count))
        } catch {
            try? releaseLocked(pieces)
            throw error
        }
        if let claim, claim.isBroken, !hasBug(.claimIgnored) {
            claim.isBroken = false
            try? releaseLocked(pieces)
            return nil
        }
        if let held = pieces.held { releaseOrFail { () throws(PoolError) in try space.releaseHeld(held) } }
        breakClaims(volume.number, first..<(first + UInt64(count)), except: claim)
        var record: UInt64 = 0
        // As for every large hole.
        if pieces.hasHole, needsLayer(volume, unmapping: count) { pushLayer(volume.head) }
        changeTop(volume.head) { top in
            for piece in pieces {
                let block = first + UInt64(piece.index)
                if piece.physical == 0 {
                    record = appendPart(.unmap(volume: volume.number, block: block, count: UInt64(piece.count)))
                    enterHole(block..<(block + UInt64(piece.count)), top)
                } else {
                    let crcs = content.crcs(of: piece)
                    record = appendMap(volume: volume.number, block: block, physical: piece.physical, crcs: crcs)
                    top.insert(run: piece.physical, crcs: crcs, for: block) { retired.append($0, isUnmapped: false) }
                    unsynced.append(piece.physical..<(piece.physical + UInt64(piece.count)))
                    hasUnsyncedData = true
                }
            }
        }
        noteAppended()
        requestPassIfDue()
        // Each write makes a few freed blocks available, so that they need no pass.
        if !releasable.isEmpty { releaseOrFail { () throws(PoolError) in try releaseSome(most: 32) } }
        if hasBug(.overwrittenReusedTooEarly) {
            retiring = retired
            retired = Retired()
            releaseRetired()
        }
        return record
    }

    /// Zeros of a write: a few are entries, since many small ranges would cost more, and many are one range.
    private func enterHole(_ blocks: Range<UInt64>, _ top: Layer) {
        guard !WritePieces.isHole(blocks.count) else {
            top.unmap(blocks) { retired.append($0, isUnmapped: true) }
            hasUnmappedSinceCheckpoint = true
            return
        }
        for block in blocks {
            let old = top.insert(RecentMapping(block: 0, crc: 0), for: block)
            if old != 0 { retired.append(old, isUnmapped: true) }
        }
    }

    private func releaseOrFail(_ body: () throws(PoolError) -> Void) {
        do {
            try body()
        } catch {
            fail("\(error)")
        }
    }

    private func unmapBlocks(_ volume: Volume, _ blocks: Range<UInt64>) throws(BlockError) {
        monitor.lock()
        defer { monitor.unlock() }
        try admit(volume, first: blocks.lowerBound, count: blocks.count, scattered: 0, stored: 0)
        _ = applyUnmap(volume, blocks, isReplay: false)
        requestPassIfDue()
    }

    /// Enters a hole into the head's top layer.
    func applyUnmap(_ volume: Volume, _ blocks: Range<UInt64>, isReplay: Bool) -> UInt64 {
        breakClaims(volume.number, blocks, except: nil)
        if needsLayer(volume, unmapping: blocks.count) { pushLayer(volume.head) }
        let record =
            isReplay || hasBug(.unmapNotJournalled)
            ? 0 : append(.unmap(volume: volume.number, block: blocks.lowerBound, count: UInt64(blocks.count)))
        changeTop(volume.head) { top in
            top.unmap(blocks) {
                if !isReplay { retired.append($0, isUnmapped: true) }
            }
        }
        hasUnmappedSinceCheckpoint = true
        return record
    }

    /// A large hole over many entries goes into a layer of its own, so that nobody waits while they are removed.
    private func needsLayer(_ volume: Volume, unmapping count: Int) -> Bool {
        count > 16384 && volume.head.layers[0].count > 4096
    }

    // MARK: Admission

    private func checkWritable(_ volume: Volume, first: UInt64, count: UInt64) throws(BlockError) {
        guard !isClosed, volume.device != nil else { throw .removed }
        guard refusal == nil else { throw .readOnly }
        let size = volume.head.sizeBytes / Self.blockBytes
        guard first <= size, count <= size - first else {
            throw .outOfRange(
                offset: first * Self.blockBytes, lengthBytes: count * Self.blockBytes, sizeBytes: volume.head.sizeBytes)
        }
    }

    /// Returns when a change may enter the overlay, `stored` of whose blocks take room, and `scattered` lie in leaves
    /// that it does not cover. Only near the pool's limits does it wait for a maintenance pass.
    private func admit(
        _ volume: Volume, first: UInt64, count: Int, scattered: Int, stored: Int
    ) throws(BlockError) {
        var passesLeft = 3
        if !options.hasMaintenanceThread, isCheckpointRequested { try awaitPassForDevice() }
        while true {
            try checkWritable(volume, first: first, count: UInt64(count))
            if overlayEntries > 2 * options.overlayEntries || pendingBytes > pendingLimit
                || longestChain(volume) > 64
            {
                try relievePressure()
                continue
            }
            let leaves = stored == 0 ? 2 : UInt64(scattered) / Format.leafEntries + 2
            let hasRoom = hasMetadataRoom(for: leaves * 5)
            if hasRoom && (stored == 0 || space.dataFree >= UInt64(stored)) {
                if stored > 0 { isFull = false }
                return
            }
            if passesLeft > 0 && canFreeMore {
                passesLeft = lastPassFreed > 0 && hasReclaimableDataset ? passesLeft : passesLeft - 1
                try awaitPassForDevice()
                continue
            }
            if stored == 0, space.metadataFree > 0, hasMetadataRoom(for: 2) { return }
            isFull = true
            throw .noSpace
        }
    }

    private func longestChain(_ volume: Volume) -> Int { volume.head.layers.count }

    /// With a bitmap that was lost the reserve for map pages may be gone, which a pass makes up for.
    private var canFreeMore: Bool {
        overlayEntries > 0 || pagesToMerge > 0 || hasFreesPending || hasReclaimableDataset || space.hasLosses
    }

    var hasReclaimableDataset: Bool {
        tables.doomed.values.contains { $0.children.count <= 1 }
    }

    private func relievePressure() throws(BlockError) {
        if pendingBytes > pendingLimit {
            let target = lastRecord
            monitor.unlock()
            defer { monitor.lock() }
            try commitForDevice(target)
        } else {
            try awaitPassForDevice()
        }
    }

    private func awaitPassForDevice() throws(BlockError) {
        do {
            try awaitPass()
        } catch {
            throw Self.blockError(error)
        }
    }
}
