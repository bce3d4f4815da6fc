internal import BlockIO

/// WRITE SAME, and UNMAP of a range that begins or ends within a block: however long, one change. What it needs in
/// memory and under the lock has a limit: 256 KiB of data, and a record of the journal for each of them.
extension PoolCore {
    /// 256 KiB, the most that is written to the disk at once.
    private static var heldBlocks: Int { 64 }
    /// Bytes of the journal's records for a block that stands alone on the disk.
    private static var mostRecordBytes: UInt64 { 40 }

    /// 16 MiB, at whose end writers wait a quarter of a millisecond; less where the journal is small, since the records
    /// of several at once, each in the smallest pieces, have to fit into it beside what has gathered.
    var writeSameBytes: UInt64 {
        let blocks = superblock.journalBytes / 64 / Self.mostRecordBytes
        return min(16 << 20, blocks * Self.blockBytes)
    }

    func writeSame(
        _ volume: Volume, at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError) {
        try checkAlignment(offset, lengthBytes)
        guard block.count == BlockGeometry().logicalBlockBytes, lengthBytes <= volumeWriteSameBytes else {
            throw .misaligned(offset: offset, lengthBytes: lengthBytes)
        }
        guard lengthBytes > 0 else { return }
        let isZero = options.detectsZeros && block.allSatisfy { $0 == 0 }
        try settle(try fill(volume, offset..<(offset + lengthBytes), with: isZero ? nil : block), durability)
    }

    var volumeWriteSameBytes: UInt64 { monitor.withLock { writeSameBytes } }

    /// Makes a range of bytes repetitions of `block`, or, without one, a hole, as if at one instant.
    func fill(_ volume: Volume, _ range: Range<UInt64>, with block: [UInt8]?) throws(BlockError) -> UInt64 {
        let first = range.lowerBound / Self.blockBytes
        let end = (range.upperBound + Self.blockBytes - 1) / Self.blockBytes
        // Ends that keep a part of what they hold. They may be the same block.
        let hasHead = range.lowerBound % Self.blockBytes != 0 || range.upperBound < (first + 1) * Self.blockBytes
        let hasTail = range.upperBound % Self.blockBytes != 0 && end - first > (hasHead ? 1 : 0)
        let count = Int(end - first)
        let middle = (hasHead ? 1 : 0)..<(count - (hasTail ? 1 : 0))
        let held = block == nil ? 0 : min(middle.count, Self.heldBlocks)
        let blocks = middle.lowerBound + held + (hasTail ? 1 : 0)
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: max(blocks, 1) * Format.blockBytes, alignment: Format.blockBytes)
        defer { buffer.deallocate() }
        let crcs = UnsafeMutableBufferPointer<UInt32>.allocate(capacity: max(blocks, 1))
        defer { crcs.deallocate() }
        let head = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Format.blockBytes])
        let tail = UnsafeMutableRawBufferPointer(
            rebasing: buffer[(buffer.count - Format.blockBytes)...])
        if let block {
            let start = middle.lowerBound * Format.blockBytes
            repeating(block, into: .init(rebasing: buffer[start..<(start + held * Format.blockBytes)]))
            if held > 0 {
                let crc = CRC32C.checksum(.init(rebasing: buffer[start..<(start + Format.blockBytes)]))
                for index in 0..<held { crcs.initializeElement(at: middle.lowerBound + index, to: crc) }
            }
        }
        let claim = Claim(
            volume: volume.number, blocks: (hasHead ? [first..<(first + 1)] : []) + (hasTail ? [(end - 1)..<end] : []))
        enter(claim)
        defer { leave(claim) }
        while true {
            var pieces = WritePieces()
            if hasHead {
                let isStored = try readEnd(volume, first, range, block, into: head)
                crcs.initializeElement(at: 0, to: isStored ? CRC32C.checksum(.init(head)) : 0)
                pieces.append(WritePiece(index: 0, count: 1, physical: isStored ? 1 : 0))
            }
            if !middle.isEmpty {
                pieces.append(
                    WritePiece(index: middle.lowerBound, count: middle.count, physical: block == nil ? 0 : 1))
            }
            if hasTail {
                let isStored = try readEnd(volume, end - 1, range, block, into: tail)
                crcs.initializeElement(at: blocks - 1, to: isStored ? CRC32C.checksum(.init(tail)) : 0)
                pieces.append(WritePiece(index: count - 1, count: 1, physical: isStored ? 1 : 0))
            }
            let content = BlockContent(
                bytes: .init(buffer), crcs: .init(crcs), count: count, middle: middle, held: held)
            if let record = try store(pieces, content, volume: volume, first: first, claim) { return record }
        }
    }

    /// Reads an end of the range and puts the range's bytes into it. Returns whether it is to be stored.
    private func readEnd(
        _ volume: Volume, _ index: UInt64, _ range: Range<UInt64>, _ block: [UInt8]?,
        into buffer: UnsafeMutableRawBufferPointer
    ) throws(BlockError) -> Bool {
        let start = index * Self.blockBytes
        try read(.volume(volume), at: start, into: buffer)
        let part = range.clamped(to: start..<(start + Self.blockBytes))
        let target = UnsafeMutableRawBufferPointer(
            rebasing: buffer[Int(part.lowerBound - start)..<Int(part.upperBound - start)])
        if let block {
            repeating(block, into: target)
        } else {
            target.initializeMemory(as: UInt8.self, repeating: 0)
        }
        return !(options.detectsZeros && isAllZero(.init(buffer)))
    }

    private func repeating(_ block: [UInt8], into target: UnsafeMutableRawBufferPointer) {
        block.withRawBytes { bytes in
            for start in stride(from: 0, to: target.count, by: bytes.count) {
                UnsafeMutableRawBufferPointer(rebasing: target[start..<(start + bytes.count)]).copyMemory(from: bytes)
            }
        }
    }
}
