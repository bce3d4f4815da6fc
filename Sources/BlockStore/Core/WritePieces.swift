internal import BlockIO

/// Blocks of a write that stand together on the disk; `physical` 0 means zeros, which are not stored.
struct WritePiece {
    /// Counted from the first block of the write.
    var index: Int
    var count: Int
    var physical: UInt64
}

/// The pieces of a write, in order. The first one needs no memory of its own, and a usual write has no other.
struct WritePieces: Sequence {
    private var first: WritePiece?
    private var rest: [WritePiece] = []
    /// Blocks that are stored, not zeros.
    private(set) var stored = 0
    private(set) var hasHole = false
    /// Behind the last piece, taken for as long as it is being written: it gets storage with it.
    var held: Range<UInt64>?

    /// Whether so many blocks of zeros are entered as one range.
    static func isHole(_ count: Int) -> Bool { count >= Int(Format.leafEntries) }

    private var last: WritePiece? { rest.last ?? first }

    mutating func append(_ piece: WritePiece) {
        if piece.physical != 0 { stored += piece.count } else if Self.isHole(piece.count) { hasHole = true }
        if first == nil { first = piece } else { rest.append(piece) }
    }

    /// Appends one block that has no place yet to the last piece, or as a new one.
    mutating func append(index: Int, isStored: Bool) {
        guard let last, (last.physical != 0) == isStored else {
            return append(WritePiece(index: index, count: 1, physical: isStored ? 1 : 0))
        }
        if isStored { stored += 1 } else if Self.isHole(last.count + 1) { hasHole = true }
        if rest.isEmpty { first?.count += 1 } else { rest[rest.count - 1].count += 1 }
    }

    func makeIterator() -> Iterator { Iterator(pieces: self) }

    struct Iterator: IteratorProtocol {
        fileprivate let pieces: WritePieces
        private var index = -1

        fileprivate init(pieces: WritePieces) { self.pieces = pieces }

        mutating func next() -> WritePiece? {
            defer { index += 1 }
            if index < 0 { return pieces.first }
            return index < pieces.rest.count ? pieces.rest[index] : nil
        }
    }
}

/// What the blocks of a write hold, with their checksums: bytes for each of them, or the same for all blocks of the
/// *middle*, of which only so many are held as one piece on the disk can have.
struct BlockContent {
    private let bytes: UnsafeRawBufferPointer
    private let crcs: UnsafeBufferPointer<UInt32>
    private let middle: Range<Int>
    private let held: Int
    let count: Int

    /// All bytes of a write, and a checksum for each block.
    init(bytes: UnsafeRawBufferPointer, crcs: UnsafeBufferPointer<UInt32>) {
        self.bytes = bytes
        self.crcs = crcs
        count = crcs.count
        middle = count..<count
        held = 0
    }

    /// Of `count` blocks those of `middle` are the same. `bytes` and `crcs` have what comes before it, `held` of the
    /// middle's blocks (none where it is a hole), and what comes after it.
    init(
        bytes: UnsafeRawBufferPointer, crcs: UnsafeBufferPointer<UInt32>, count: Int, middle: Range<Int>, held: Int
    ) {
        self.bytes = bytes
        self.crcs = crcs
        self.count = count
        self.middle = middle
        self.held = held
    }

    /// For how many blocks leaves are changed entry by entry; a hole needs two at its ends.
    var scatteredBlocks: Int {
        held > 0 || middle.isEmpty ? count : count - middle.count + 2 * Int(Format.leafEntries)
    }

    /// Blocks that one piece which begins at `index` can have.
    func longestRun(at index: Int) -> Int { middle.contains(index) ? held : count - index }

    private func position(of index: Int) -> Int {
        if index < middle.lowerBound { return index }
        return index < middle.upperBound ? middle.lowerBound : index - middle.count + held
    }

    func bytes(of piece: WritePiece) -> UnsafeRawBufferPointer {
        let from = position(of: piece.index) * Format.blockBytes
        return UnsafeRawBufferPointer(rebasing: bytes[from..<(from + piece.count * Format.blockBytes)])
    }

    func crcs(of piece: WritePiece) -> UnsafeBufferPointer<UInt32> {
        let from = position(of: piece.index)
        return UnsafeBufferPointer(rebasing: crcs[from..<(from + piece.count)])
    }
}
