internal import BlockIO
internal import Synchronization

/// The read path: look into the layers, then into the map on disk, read the data and check it.
extension PoolCore {
    /// What a device reads from.
    enum Source {
        case volume(Volume)
        case member(Snapshot, Dataset)
    }

    private struct Place {
        var block: UInt64
        var crc: UInt32
        var isKnown: Bool
    }

    /// The dataset behind a source. Called with the lock held.
    private func resolve(_ source: Source) throws(BlockError) -> Dataset {
        guard !isClosed else { throw .removed }
        switch source {
        case .volume(let volume):
            guard volume.device != nil else { throw .removed }
            return volume.head
        case .member(let snapshot, let dataset):
            guard snapshots[snapshot.id] === snapshot else { throw .removed }
            return dataset
        }
    }

    func read(_ source: Source, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError) {
        try checkAlignment(offset, UInt64(buffer.count))
        guard offset % Self.blockBytes != 0 || buffer.count % Format.blockBytes != 0 else {
            return try readBlocks(source, first: offset / Self.blockBytes, into: buffer)
        }
        let first = offset / Self.blockBytes
        let end = (offset + UInt64(buffer.count) + Self.blockBytes - 1) / Self.blockBytes
        let whole = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(end - first) * Format.blockBytes, alignment: Format.blockBytes)
        defer { whole.deallocate() }
        try readBlocks(source, first: first, into: whole)
        let within = Int(offset - first * Self.blockBytes)
        buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: whole[within..<(within + buffer.count)]))
    }

    private func readBlocks(
        _ source: Source, first: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(BlockError) {
        // On the stack where it is short.
        try withUnsafeTemporaryAllocation(of: Place.self, capacity: buffer.count / Format.blockBytes) {
            places throws(BlockError) in
            try readBlocks(source, first: first, into: buffer, places)
        }
    }

    private func readBlocks(
        _ source: Source, first: UInt64, into buffer: UnsafeMutableRawBufferPointer,
        _ places: UnsafeMutableBufferPointer<Place>
    ) throws(BlockError) {
        let count = places.count
        let (root, phase) = try beginRead(source, first: first, places)
        defer { exitRead(phase) }
        try lookUpRest(root, source, first: first, places)
        var pieces: [StorageRead] = []
        var index = 0
        while index < count {
            var run = 1
            let start = places[index].block
            if start == 0 {
                while index + run < count, places[index + run].block == 0 { run += 1 }
            } else {
                while index + run < count, places[index + run].block == start + UInt64(run) { run += 1 }
            }
            let bytes = UnsafeMutableRawBufferPointer(
                rebasing: buffer[(index * Format.blockBytes)..<((index + run) * Format.blockBytes)])
            if start == 0 {
                bytes.initializeMemory(as: UInt8.self, repeating: 0)
            } else if run == count {
                try readPiece(StorageRead(offset: start * Self.blockBytes, buffer: bytes), buffer, first: first)
            } else {
                pieces.append(StorageRead(offset: start * Self.blockBytes, buffer: bytes))
            }
            index += run
        }
        if !pieces.isEmpty { try readPieces(pieces, buffer, first: first) }
        try verify(source, buffer, first: first, places)
    }

    private func readPiece(
        _ piece: StorageRead, _ whole: UnsafeMutableRawBufferPointer, first: UInt64
    ) throws(BlockError) {
        do {
            try file.read(at: piece.offset, into: piece.buffer)
        } catch {
            let block = first + UInt64((piece.buffer.baseAddress! - whole.baseAddress!) / Format.blockBytes)
            whole.initializeMemory(as: UInt8.self, repeating: 0)
            throw .medium(offset: block * Self.blockBytes)
        }
    }

    private func readPieces(
        _ pieces: [StorageRead], _ whole: UnsafeMutableRawBufferPointer, first: UInt64
    ) throws(BlockError) {
        do {
            try file.read(pieces)
        } catch {
            // One by one, to learn which one it was.
            for piece in pieces { try readPiece(piece, whole, first: first) }
        }
    }

    /// Looks into the layers and enters the read phase.
    private func beginRead(
        _ source: Source, first: UInt64, _ places: UnsafeMutableBufferPointer<Place>
    ) throws(BlockError) -> (NodePointer, Int) {
        monitor.lock()
        defer { monitor.unlock() }
        let dataset = try resolve(source)
        let size = dataset.sizeBytes / Self.blockBytes
        guard first <= size, UInt64(places.count) <= size - first else {
            throw .outOfRange(
                offset: first * Self.blockBytes, lengthBytes: UInt64(places.count) * Self.blockBytes,
                sizeBytes: dataset.sizeBytes)
        }
        for index in 0..<places.count {
            var place = Place(block: 0, crc: 0, isKnown: false)
            for layer in dataset.layers {
                if let mapping = layer.lookup(first + UInt64(index)) {
                    place = Place(block: mapping.block, crc: mapping.crc, isKnown: true)
                    break
                }
            }
            places.initializeElement(at: index, to: place)
        }
        return (dataset.root.pointer, enterRead())
    }

    private func lookUpRest(
        _ root: NodePointer, _ source: Source, first: UInt64, _ places: UnsafeMutableBufferPointer<Place>
    ) throws(BlockError) {
        guard !root.isNull else { return }
        var leafIndex = UInt64.max
        var page: Page?
        for index in 0..<places.count where !places[index].isKnown {
            let block = first + UInt64(index)
            if block / Format.leafEntries != leafIndex {
                leafIndex = block / Format.leafEntries
                do {
                    page = try leaf(root: root, block: block)
                } catch {
                    checksumErrors.add(1, ordering: .relaxed)
                    noteDamage(source, block: block, physical: nil)
                    throw .medium(offset: block * Self.blockBytes)
                }
            }
            guard let page else { continue }
            let entry = page[entry: Int(block % Format.leafEntries)]
            guard !entry.isLost else {
                noteDamage(source, block: block, physical: nil)
                throw .medium(offset: block * Self.blockBytes)
            }
            places[index] = Place(block: entry.block, crc: entry.crc, isKnown: true)
        }
    }

    private func verify(
        _ source: Source, _ buffer: UnsafeMutableRawBufferPointer, first: UInt64,
        _ places: UnsafeMutableBufferPointer<Place>
    ) throws(BlockError) {
        for block in 0..<places.count where places[block].block != 0 {
            let part = UnsafeRawBufferPointer(
                rebasing: buffer[(block * Format.blockBytes)..<((block + 1) * Format.blockBytes)])
            guard CRC32C.checksum(part) == places[block].crc || hasBug(.checksumIgnored) else {
                // Wrong data never leaves, not even in the part of the buffer that the caller should ignore.
                buffer.initializeMemory(as: UInt8.self, repeating: 0)
                checksumErrors.add(1, ordering: .relaxed)
                noteDamage(source, block: first + UInt64(block), physical: places[block].block)
                throw .medium(offset: (first + UInt64(block)) * Self.blockBytes)
            }
        }
    }

    func provisioning(
        _ source: Source, at offset: UInt64, maxLengthBytes: UInt64
    ) throws(BlockError) -> ProvisionedRun {
        try checkAlignment(offset, maxLengthBytes)
        let sizeBytes = try monitor.withLock { () throws(BlockError) in try resolve(source).sizeBytes }
        guard offset < sizeBytes else {
            throw .outOfRange(offset: offset, lengthBytes: maxLengthBytes, sizeBytes: sizeBytes)
        }
        // A bounded answer is allowed: the caller asks again from where it ends.
        let end = min(offset + min(maxLengthBytes, 1 << 30), sizeBytes)
        var block = offset / Self.blockBytes
        var isMapped: Bool?
        while block * Self.blockBytes < end {
            let step = Int(min(Format.leafEntries - block % Format.leafEntries, sizeBytes / Self.blockBytes - block))
            let places = UnsafeMutableBufferPointer<Place>.allocate(capacity: step)
            defer { places.deallocate() }
            let (root, phase) = try beginRead(source, first: block, places)
            defer { exitRead(phase) }
            try lookUpRest(root, source, first: block, places)
            for index in 0..<step {
                let mapped = places[index].block != 0
                if isMapped == nil { isMapped = mapped }
                if mapped != isMapped {
                    let stop = min(end, (block + UInt64(index)) * Self.blockBytes)
                    return ProvisionedRun(lengthBytes: stop - offset, isMapped: !mapped)
                }
            }
            block += UInt64(step)
        }
        return ProvisionedRun(lengthBytes: end - offset, isMapped: isMapped ?? false)
    }
}
