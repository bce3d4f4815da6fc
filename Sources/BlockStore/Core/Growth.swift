internal import BlockIO

/// Growing a pool: one journal record. Nothing moves; what lies beyond the old end is handed out from then on.
extension PoolCore {
    /// As many regions as a pool may have: each costs memory once it is used.
    static let maxRegions: UInt64 = 1 << 22

    /// The size that the pool would have, checked. Called with the lock held.
    private func grownBlocks(to wantedBytes: UInt64?) throws(PoolError) -> UInt64 {
        let blockBytes = UInt64(Format.blockBytes)
        let limit: UInt64
        if file.canGrow {
            guard let wantedBytes else {
                throw .invalidArgument("the pool is a file; say the size that it may grow to")
            }
            limit = wantedBytes
        } else {
            let device = file.sizeBytes
            if let wantedBytes, wantedBytes > device {
                throw .invalidArgument(
                    "the device has \(Self.text(device)), less than \(Self.text(wantedBytes)); enlarge it first")
            }
            limit = wantedBytes ?? device
        }
        let blocks = limit / blockBytes / superblock.regionBlocks * superblock.regionBlocks
        guard blocks > totalBlocks else {
            throw .invalidArgument(
                "the pool has \(Self.text(totalBlocks * blockBytes)) and grows in steps of "
                    + "\(Self.text(superblock.regionBlocks * blockBytes)); \(Self.text(limit)) make it no larger")
        }
        guard blocks <= 1 << 40, blocks / superblock.regionBlocks <= Self.maxRegions else {
            let most = min(1 << 40, Self.maxRegions * superblock.regionBlocks) * blockBytes
            throw .invalidArgument("a pool that was made this small can have at most \(Self.text(most))")
        }
        return blocks
    }

    /// An exact size in the largest unit that it is a multiple of: `192 MiB`.
    private static func text(_ bytes: UInt64) -> String {
        let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
        let unit = bytes == 0 ? 0 : min(bytes.trailingZeroBitCount / 10, units.count - 1)
        return "\(bytes >> UInt64(10 * unit)) \(units[unit])"
    }

    func grow(to wantedBytes: UInt64?) throws(PoolError) -> UInt64 {
        let target = try withRoom { () throws(PoolError) in
            if let refusal { throw refusal }
            return try perform(.growPool(totalBlocks: try grownBlocks(to: wantedBytes)))
        }
        try commit(through: target)
        return monitor.withLock { totalBlocks * UInt64(Format.blockBytes) }
    }

    /// The record's effect. Called with the lock held.
    func applyGrow(_ blocks: UInt64) throws(PoolError) {
        guard blocks >= totalBlocks, blocks % superblock.regionBlocks == 0, blocks <= 1 << 40 else {
            throw .damaged("a journal record grows the pool to \(blocks) blocks, which cannot be")
        }
        guard file.canGrow || blocks * UInt64(Format.blockBytes) <= file.sizeBytes else {
            throw .damaged("the pool was grown to \(blocks) blocks and the device has fewer")
        }
        totalBlocks = blocks
        space.raiseLimit(toRegions: Int(blocks / superblock.regionBlocks))
        isFull = false
    }
}

extension Pool {
    /// Makes the pool larger while it is in use; one journal record, durable on return.
    ///
    /// - Parameter sizeBytes: For a file, the most bytes that it may occupy from now on. For a block device that was
    ///   enlarged, nil or at most its size.
    /// - Returns: The new size in bytes, rounded down to whole regions.
    /// - Throws: ``PoolError/invalidArgument(_:)`` where the size is no growth or more than there is.
    @discardableResult
    public func grow(to sizeBytes: UInt64? = nil) throws(PoolError) -> UInt64 { try core.grow(to: sizeBytes) }
}
