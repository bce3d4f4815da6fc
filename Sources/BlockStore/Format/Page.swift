internal import BlockIO

/// A parent's reference to a page: where it is, the epoch in which it was written (in the allocation map: the number
/// of blocks in use below it) and what it must hash to. 32 bytes on disk.
struct NodePointer: Equatable, Sendable {
    var block: UInt64
    var birth: UInt64
    var digest: PageDigest

    static let null = NodePointer(block: 0, birth: 0, digest: PageDigest(low: 0, high: 0))
    var isNull: Bool { block == 0 }

    /// Stands for a page that only the page with this digest referred to, and that one cannot be read any more. Two
    /// such marks at one place are equal if and only if the same page was lost.
    static func lost(with digest: PageDigest) -> NodePointer {
        NodePointer(block: Format.lostBlock, birth: 0, digest: digest)
    }
    var isLost: Bool { block == Format.lostBlock }
}

/// A mapped block in a leaf. 16 bytes on disk: block 40 bits, birth epoch 40, flags 16 (zero), CRC-32C 32.
struct LeafEntry: Equatable, Sendable {
    var block: UInt64
    var birth: UInt64
    var crc: UInt32

    static let null = LeafEntry(block: 0, birth: 0, crc: 0)
    var isNull: Bool { block == 0 }

    /// Whether something was mapped here, and what, only the leaf with this digest said, which cannot be read any more.
    static func lost(with digest: PageDigest) -> LeafEntry {
        LeafEntry(
            block: Format.lostBlock, birth: digest.low & Format.maxEpoch, crc: UInt32(truncatingIfNeeded: digest.high))
    }
    var isLost: Bool { block == Format.lostBlock }
}

/// 4096 bytes of the map in memory. Once a page is in the cache or on the disk it does not change any more.
final class Page: @unchecked Sendable {
    // SAFETY: only the thread that made the page writes to it, before it is shared; afterwards it is read-only.
    let raw: UnsafeMutableRawPointer

    /// - Parameter isAligned: for reads past the system's cache. Each such page may take up twice its size, since the
    ///   C library cannot put anything beside it; so those that are kept are not.
    init(isAligned: Bool = false) {
        raw = .allocate(byteCount: Format.blockBytes, alignment: isAligned ? Format.blockBytes : 16)
        raw.initializeMemory(as: UInt8.self, repeating: 0, count: Format.blockBytes)
    }

    init(copying other: Page) {
        raw = .allocate(byteCount: Format.blockBytes, alignment: 16)
        raw.copyMemory(from: other.raw, byteCount: Format.blockBytes)
    }

    deinit { raw.deallocate() }

    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: raw, count: Format.blockBytes) }
    var mutableBytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: raw, count: Format.blockBytes)
    }

    /// The reference at `index` of an interior page (0..<128).
    subscript(child index: Int) -> NodePointer {
        get {
            let at = index * 32
            return NodePointer(
                block: word(at), birth: word(at + 8), digest: PageDigest(low: word(at + 16), high: word(at + 24)))
        }
        set {
            let at = index * 32
            setWord(at, newValue.block)
            setWord(at + 8, newValue.birth)
            setWord(at + 16, newValue.digest.low)
            setWord(at + 24, newValue.digest.high)
        }
    }

    /// The mapping at `index` of a leaf (0..<256).
    subscript(entry index: Int) -> LeafEntry {
        get {
            let first = word(index * 16)
            let second = word(index * 16 + 8)
            return LeafEntry(
                block: first & 0xff_ffff_ffff, birth: first >> 40 | (second & 0xffff) << 24,
                crc: UInt32(truncatingIfNeeded: second >> 32))
        }
        set {
            setWord(index * 16, newValue.block | newValue.birth << 40)
            setWord(index * 16 + 8, (newValue.birth >> 24) & 0xffff | UInt64(newValue.crc) << 32)
        }
    }

    var isZero: Bool { isAllZero(bytes) }

    /// Whether a leaf does not know of each block what it is.
    var hasLostEntries: Bool { (0..<Int(Format.leafEntries)).contains { self[entry: $0].isLost } }

    func word(_ at: Int) -> UInt64 { UInt64(littleEndian: raw.load(fromByteOffset: at, as: UInt64.self)) }
    func setWord(_ at: Int, _ value: UInt64) {
        raw.storeBytes(of: value.littleEndian, toByteOffset: at, as: UInt64.self)
    }
}

/// Whether all bytes are zero; the count must be a multiple of 8.
func isAllZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
    var at = 0
    while at < bytes.count {
        if bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self) != 0 { return false }
        at += 8
    }
    return true
}

/// Verified pages by block number, in sets of eight with second-chance replacement: bounded, never rehashed.
final class PageCache: @unchecked Sendable {
    private struct Way {
        var block: UInt64 = 0
        var wasUsed = false
        var page: Page?
    }

    private static let setWays = 8
    private let setCount: Int
    private let lock = Monitor()
    // SAFETY: both are read and written with `lock` held.
    private var ways: [Way]
    private var hands: [UInt8]
    private var held = 0

    /// Pages in the cache now.
    var pageCount: Int { lock.withLock { held } }

    init(limitBytes: UInt64) {
        var sets = 8
        while UInt64(sets * 2 * Self.setWays * Format.blockBytes) <= limitBytes { sets *= 2 }
        setCount = sets
        ways = Array(repeating: Way(), count: sets * Self.setWays)
        hands = Array(repeating: 0, count: sets)
    }

    private func places(of block: UInt64) -> Range<Int> {
        let mixed = (block ^ (block >> 17)) &* 0x9e37_79b9_7f4a_7c15
        let set = Int(truncatingIfNeeded: mixed >> 32) & (setCount - 1)
        return (set * Self.setWays)..<((set + 1) * Self.setWays)
    }

    subscript(block: UInt64) -> Page? {
        let places = places(of: block)
        return lock.withLock {
            for index in places where ways[index].block == block {
                guard let page = ways[index].page else { return nil }
                if !ways[index].wasUsed { ways[index].wasUsed = true }
                return page
            }
            return nil
        }
    }

    func insert(_ page: Page, at block: UInt64) {
        let places = places(of: block)
        lock.withLock {
            for index in places where ways[index].block == block {
                ways[index].page = page
                return
            }
            let set = places.lowerBound / Self.setWays
            while true {
                let index = places.lowerBound + Int(hands[set])
                hands[set] = (hands[set] + 1) % UInt8(Self.setWays)
                if ways[index].page != nil && ways[index].wasUsed {
                    ways[index].wasUsed = false
                    continue
                }
                if ways[index].page == nil { held += 1 }
                ways[index] = Way(block: block, wasUsed: false, page: page)
                return
            }
        }
    }
}
