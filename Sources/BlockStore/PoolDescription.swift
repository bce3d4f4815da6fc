internal import BlockIO

/// What one copy of the superblock holds.
public struct SuperblockCopy: Sendable, Equatable {
    /// Where it lies in the pool's file or device, in bytes.
    public var offset: UInt64
    /// Nil where nothing valid is there.
    public var generation: UInt64?
    /// Whether it is what its turn demands.
    public var isGood: Bool
}

/// What the pool holds in memory, in bytes.
public struct PoolMemory: Sendable, Equatable {
    /// What the pool may take for all that grows with its use.
    public var limitBytes: UInt64 = 0
    /// Mappings that are not in the map on disk yet.
    public var overlayBytes: UInt64 = 0
    public var cacheBytes: UInt64 = 0
    public var cacheLimitBytes: UInt64 = 0
    /// Bitmaps of the regions that were touched.
    public var bitmapBytes: UInt64 = 0
}

extension PoolCore {
    /// Reads every copy from the medium. No checkpoint turns them meanwhile.
    func superblockCopies() -> [SuperblockCopy] {
        maintenance.lock()
        defer { maintenance.unlock() }
        let current = monitor.withLock { superblock }
        return (0..<Format.superblockCopies).map { copy in
            let isCurrent = copy % 2 == Int(current.generation % 2)
            let offset = Self.place(ofCopy: copy)
            let bytes = try? Self.readBlock(file, at: offset, uncached: true)
            let read = bytes.flatMap { try? Superblock.decode($0) }
            let isGood = read.map { isCurrent ? $0 == current : $0.isBefore(current) } ?? false
            return SuperblockCopy(offset: offset, generation: read?.generation, isGood: isGood)
        }
    }

    func memory() -> PoolMemory {
        let pages = cache.pageCount
        return monitor.withLock {
            PoolMemory(
                limitBytes: options.memoryBytes,
                // Slots of 16 bytes, from a third to two thirds of them used.
                overlayBytes: UInt64(overlayEntries) * 32, cacheBytes: UInt64(pages * Format.blockBytes),
                cacheLimitBytes: options.cacheBytes,
                bitmapBytes: UInt64(space.regions.count { $0.bits != nil }) * space.regionBlocks / 4)
        }
    }
}

extension Pool {
    /// All copies of the superblock as they are on the medium now.
    public func superblockCopies() -> [SuperblockCopy] { core.superblockCopies() }

    /// What the pool holds in memory now, about.
    public var memory: PoolMemory { core.memory() }

    /// Whether it was opened so, and did not fail since.
    public var isOpenedReadOnly: Bool { core.options.isReadOnly }

    /// How calls reach the disk: `pread` or `uring`.
    public var backend: String { core.file.backend }

    /// Checkpoints written since the pool was made.
    public var generation: UInt64 { core.monitor.withLock { core.superblock.generation } }
}
