internal import Glibc

/// Who owns each block of one stretch of the pool: 16 bytes a block, whatever the pool holds.
struct OwnerTable: ~Copyable {
    enum Kind: UInt64 {
        case none = 0
        case reserved = 1
        case data = 2
        case map = 3
        case stream = 4
        case bitmap = 5
    }

    /// What a block is; two references to it must mean the same.
    struct Owner: Equatable, CustomStringConvertible {
        var kind: Kind
        /// Of a map page.
        var level: UInt64 = 0
        /// Logical block of data; the first of a map page.
        var logical: UInt64 = 0
        var birth: UInt64 = 0
        var crc: UInt32 = 0

        var description: String {
            switch kind {
            case .none: "nothing"
            case .reserved: "reserved"
            case .data: "data of logical block \(logical), born in \(birth)"
            case .map: "a map page of level \(level) for logical blocks from \(logical), born in \(birth)"
            case .stream: "a page of a stream"
            case .bitmap: "a page of the allocation map"
            }
        }

        /// 3 bits of kind, 3 of level, 36 of the logical block and 8 of the CRC; 40 bits of birth and 24 of the CRC.
        /// Bit 50 of the first is for the table.
        var packed: (UInt64, UInt64) {
            (
                kind.rawValue | level << 3 | (logical & 0xf_ffff_ffff) << 6 | UInt64(crc & 0xff) << 42,
                birth & Format.maxEpoch | UInt64(crc >> 8) << 40
            )
        }

        init(kind: Kind, level: UInt64 = 0, logical: UInt64 = 0, birth: UInt64 = 0, crc: UInt32 = 0) {
            self.kind = kind
            self.level = level
            self.logical = logical
            self.birth = birth
            self.crc = crc
        }

        init(packed: (UInt64, UInt64)) {
            kind = Kind(rawValue: packed.0 & 7) ?? .none
            level = packed.0 >> 3 & 7
            logical = packed.0 >> 6 & 0xf_ffff_ffff
            birth = packed.1 & Format.maxEpoch
            crc = UInt32(packed.0 >> 42 & 0xff) | UInt32(packed.1 >> 40) << 8
        }
    }

    static let bytesPerBlock: UInt64 = 16
    private static let leaving: UInt64 = 1 << 50

    private(set) var blocks: Range<UInt64> = 0..<0
    private let capacity: Int
    // SAFETY: `capacity` initialized slots; reached through indices within `blocks` only, which are no more.
    private let slots: UnsafeMutablePointer<(UInt64, UInt64)>

    /// For stretches of so many blocks; one after the other uses the same memory.
    ///
    /// - Throws: where it cannot be had.
    init(capacity: Int) throws(PoolError) {
        self.capacity = capacity
        slots = try reserveZeros(capacity, of: (UInt64, UInt64).self)
    }

    deinit { free(slots) }

    /// Forgets the stretch before; nobody owns anything of this one.
    mutating func begin(_ blocks: Range<UInt64>) {
        precondition(blocks.count <= capacity)
        (slots + 0).update(repeating: (0, 0), count: self.blocks.count)
        self.blocks = blocks
    }

    private func index(_ block: UInt64) -> Int { Int(block - blocks.lowerBound) }

    /// For changes: Swift 6.3 makes invalid code of `slots[…].0 |= …` in a type without copies when it is built for the
    /// thread sanitizer.
    private func slot(of block: UInt64) -> UnsafeMutablePointer<(UInt64, UInt64)> { slots + index(block) }

    /// What a block of the stretch is.
    subscript(block: UInt64) -> Owner { Owner(packed: slots[index(block)]) }

    func isOwned(_ block: UInt64) -> Bool { slots[index(block)].0 & 7 != 0 }

    func isLeaving(_ block: UInt64) -> Bool { slots[index(block)].0 & Self.leaving != 0 }

    /// The block is on its way to being free.
    mutating func markLeaving(_ block: UInt64) {
        if blocks.contains(block) { slot(of: block).pointee.0 |= Self.leaving }
    }

    /// Notes an owner where there is none. Returns the one that was there.
    mutating func claim(_ block: UInt64, _ owner: Owner) -> Owner? {
        if isOwned(block) { return self[block] }
        let packed = owner.packed
        let slot = slot(of: block)
        slot.pointee.0 |= packed.0
        slot.pointee.1 = packed.1
        return nil
    }
}
