internal import BlockIO

/// Allocates and writes map pages for one checkpoint, and collects what the checkpoint frees. Used by the maintenance
/// pass alone; takes the pool's lock for each change of the space map.
final class MetadataWriter {
    private static let bufferBlocks = 64
    /// So many pages of one checkpoint may be unreadable before the disk is taken for broken, which fails the pool.
    /// Pages that can be read and are wrong have no limit.
    private static let unreadLimit = 64

    private let core: PoolCore
    /// Blocks that the checkpoint being built does not use any more.
    private(set) var freed: [UInt64] = []
    /// The same for data that was overwritten: such blocks are soon used again, so they keep their storage.
    private(set) var overwritten: [UInt64] = []
    private(set) var bytesWritten: UInt64 = 0
    /// Whether a page of a map could not be read: what depends on it is marked as lost or set aside.
    private(set) var hasLosses = false
    private var unreadPages = 0
    private var bufferStart: UInt64 = 0
    private var buffer: [Page] = []
    /// Pages that are allocated but only in `buffer`; readers of this pass must find them.
    private var buffered: [UInt64: Page] = [:]

    init(core: PoolCore) { self.core = core }

    func hasBug(_ bug: PlantedBug) -> Bool { core.hasBug(bug) }

    /// So many blocks a checkpoint frees before what is unmapped by whole leaves is left to reclaim.
    var inlineFrees: Int { core.options.inlineFrees }

    /// The dataset in whose time a layer was written, and its size in blocks.
    func extent(of layer: Layer) -> (dataset: UInt64, blocks: UInt64) {
        core.monitor.withLock { (layer.owner.number, layer.owner.sizeBytes / UInt64(Format.blockBytes)) }
    }

    func allocate() throws(PoolError) -> UInt64 {
        if let block = try takeBlock() { return block }
        // A page of the allocation map was lost, and the reserve with it.
        try core.extendMetadataReserve()
        if let block = try takeBlock() { return block }
        throw .damaged("a checkpoint found no room for its map pages; the reserve was too small")
    }

    private func takeBlock() throws(PoolError) -> UInt64? {
        try core.monitor.withLock { () throws(PoolError) in
            guard let block = try core.space.allocateMetadata() else { return nil }
            try core.space.markDurable(block)
            return block
        }
    }

    func free(_ block: UInt64) throws(PoolError) {
        try core.monitor.withLock { () throws(PoolError) in try core.space.clearDurable(block) }
        freed.append(block)
    }

    func free(_ blocks: [UInt64], overwritten others: [UInt64] = []) throws(PoolError) {
        try core.monitor.withLock { () throws(PoolError) in
            for block in blocks { try core.space.clearDurable(block) }
            for block in others { try core.space.clearDurable(block) }
        }
        freed.append(contentsOf: blocks)
        overwritten.append(contentsOf: others)
    }

    func markDurable(_ blocks: [UInt64]) throws(PoolError) {
        try core.monitor.withLock { () throws(PoolError) in
            for block in blocks { try core.space.markDurable(block) }
        }
    }

    /// For a planted bug.
    func forgetFreed() {
        freed = []
        overwritten = []
    }

    func load(_ pointer: NodePointer) throws(PoolError) -> Page {
        if let page = buffered[pointer.block] { return page }
        return try core.loadPage(pointer)
    }

    /// A page of a map, or nil where it cannot be read: then it is noted as damage, and the caller goes on without it.
    func loadWhole(
        _ pointer: NodePointer, level: Int, start: UInt64, of dataset: UInt64
    ) throws(PoolError) -> Page? {
        if let page = buffered[pointer.block] { return page }
        if pointer.isLost { return nil }
        switch core.tryLoading(pointer) {
        case .success(let page): return page
        case .failure(.io(let operation, let errno)):
            // One place, or the whole disk? What is lost on the word of a disk that fails is lost for good.
            unreadPages += 1
            if unreadPages > Self.unreadLimit { throw .io(operation: operation, errno: errno) }
        case .failure: break
        }
        hasLosses = true
        core.noteLostPage(pointer, level: level, start: start, dataset: dataset)
        return nil
    }

    /// A page above the bitmaps, or nil where it cannot be read.
    func loadBitmapParent(_ pointer: NodePointer) throws(PoolError) -> Page? {
        if let page = buffered[pointer.block] { return page }
        switch core.tryLoading(pointer) {
        case .success(let page): return page
        case .failure(.io(let operation, let errno)):
            unreadPages += 1
            if unreadPages > Self.unreadLimit { throw .io(operation: operation, errno: errno) }
        case .failure: break
        }
        hasLosses = true
        core.noteLostStreamPage(pointer)
        return nil
    }

    /// Writes a page to a new block and returns the reference that its parent keeps.
    func write(_ page: Page, birth: UInt64) throws(PoolError) -> NodePointer {
        let block = try allocate()
        try write(page, to: block)
        return NodePointer(block: block, birth: birth, digest: PageDigest(of: page.bytes, key: core.digestKey))
    }

    /// Writes a page to a block that `allocate` gave.
    func write(_ page: Page, to block: UInt64) throws(PoolError) {
        if block != bufferStart + UInt64(buffer.count) || buffer.count >= Self.bufferBlocks { try flush() }
        if buffer.isEmpty { bufferStart = block }
        buffer.append(page)
        buffered[block] = page
    }

    /// Writes out what has gathered. Pages enter the cache only now, so that a cached page is always on the disk.
    func flush() throws(PoolError) {
        guard !buffer.isEmpty else { return }
        let bytes = UnsafeMutableRawBufferPointer.allocate(
            byteCount: buffer.count * Format.blockBytes, alignment: Format.blockBytes)
        defer { bytes.deallocate() }
        for (index, page) in buffer.enumerated() {
            UnsafeMutableRawBufferPointer(rebasing: bytes[(index * Format.blockBytes)...]).copyMemory(from: page.bytes)
        }
        do {
            try core.file.write(at: bufferStart * UInt64(Format.blockBytes), from: UnsafeRawBufferPointer(bytes))
        } catch {
            throw .io(operation: "writing map pages", errno: error.errno)
        }
        bytesWritten += UInt64(bytes.count)
        for (index, page) in buffer.enumerated() { core.cache.insert(page, at: bufferStart + UInt64(index)) }
        buffer = []
        buffered = [:]
    }

    // MARK: Streams

    /// Levels of pages above the pages of a stream.
    static func streamLevel(pages: Int) -> Int {
        var level = 0
        var reach = 1
        while reach < pages {
            reach *= Int(Format.fanOut)
            level += 1
        }
        return level
    }

    static func pageCount(_ lengthBytes: UInt64) -> Int { Int((lengthBytes + 4095) / 4096) }

    /// Pages that a stream takes, those above the bytes included.
    static func streamPages(_ lengthBytes: UInt64) -> Int {
        var count = pageCount(lengthBytes)
        var pages = count
        while count > 1 {
            count = (count + Int(Format.fanOut) - 1) / Int(Format.fanOut)
            pages += count
        }
        return pages
    }

    /// Writes bytes as a tree of pages.
    func writeStream(_ bytes: [UInt8]) throws(PoolError) -> NodePointer {
        guard !bytes.isEmpty else { return .null }
        var pointers: [NodePointer] = []
        var at = 0
        while at < bytes.count {
            let page = Page()
            let count = min(Format.blockBytes, bytes.count - at)
            bytes.withUnsafeBytes {
                page.mutableBytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[at..<(at + count)]))
            }
            pointers.append(try write(page, birth: 0))
            at += count
        }
        while pointers.count > 1 {
            var parents: [NodePointer] = []
            for first in stride(from: 0, to: pointers.count, by: Int(Format.fanOut)) {
                let page = Page()
                for index in first..<min(first + Int(Format.fanOut), pointers.count) {
                    page[child: index - first] = pointers[index]
                }
                parents.append(try write(page, birth: 0))
            }
            pointers = parents
        }
        return pointers[0]
    }

    /// Frees all pages of a stream.
    func freeStream(_ root: NodePointer, lengthBytes: UInt64) throws(PoolError) {
        func visit(_ pointer: NodePointer, _ level: Int) throws(PoolError) {
            guard !pointer.isNull else { return }
            if level > 0 {
                // What only a wrong page leads to is set aside.
                guard let page = try? core.tryLoading(pointer).get() else {
                    hasLosses = true
                    return core.noteLostStreamPage(pointer)
                }
                for index in 0..<Int(Format.fanOut) { try visit(page[child: index], level - 1) }
            }
            try free(pointer.block)
        }
        try visit(root, Self.streamLevel(pages: Self.pageCount(lengthBytes)))
    }

    /// Calls `body` with every page of a stream and its level, children before parents.
    static func forEachStreamPage(
        _ root: NodePointer, lengthBytes: UInt64, load: (NodePointer) throws(PoolError) -> Page,
        _ body: (NodePointer, Int) throws(PoolError) -> Void
    ) throws(PoolError) {
        func visit(_ pointer: NodePointer, _ level: Int) throws(PoolError) {
            guard !pointer.isNull else { return }
            if level > 0 {
                let page = try load(pointer)
                for index in 0..<Int(Format.fanOut) { try visit(page[child: index], level - 1) }
            }
            try body(pointer, level)
        }
        try visit(root, streamLevel(pages: pageCount(lengthBytes)))
    }
}
