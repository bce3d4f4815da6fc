/// One bounded step of freeing what a deleted dataset alone has: walks its map beside its successor's in lock step.
///
/// With P the parent, D the dataset and N its only successor: a block of D is free when it was born after P's epoch and
/// N has another one, or none, at its place. A reference equal in both, or not younger than P, ends the descent.
struct ReclaimStep {
    private let writer: MetadataWriter
    private let floorEpoch: UInt64
    /// Pages that may still be looked at.
    private var budget: Int
    /// Logical block at which the next step goes on.
    private(set) var cursor: UInt64
    private(set) var isFinished = true

    init(writer: MetadataWriter, floorEpoch: UInt64, cursor: UInt64, budget: Int) {
        self.writer = writer
        self.floorEpoch = floorEpoch
        self.cursor = cursor
        self.budget = budget
    }

    /// Returns the budget that is left.
    mutating func run(_ root: NodePointer, successor: NodePointer) throws(PoolError) -> Int {
        try walk(root, successor, level: Format.mapRootLevel, start: 0)
        return budget
    }

    private mutating func walk(
        _ pointer: NodePointer, _ successor: NodePointer, level: Int, start: UInt64
    ) throws(PoolError) {
        if pointer.isNull || pointer == successor || pointer.birth <= floorEpoch { return }
        // Stopping here leaves everything before `start` done and everything from it on untouched.
        guard budget > 0 else {
            isFinished = false
            // On the way back down to the cursor, `start` lies before it.
            cursor = max(cursor, start)
            return
        }
        budget -= 1
        let page = try writer.load(pointer)
        let other = successor.isNull ? nil : try writer.load(successor)
        if level == 0 {
            var freed = [pointer.block]
            for index in 0..<Int(Format.leafEntries) {
                let entry = page[entry: index]
                if entry.isNull || entry.birth <= floorEpoch || other?[entry: index].block == entry.block { continue }
                freed.append(entry.block)
            }
            try writer.free(freed)
            return
        }
        let span = Format.leafEntries << UInt64(7 * (level - 1))
        for index in 0..<Int(Format.fanOut) {
            let childStart = start + UInt64(index) * span
            if childStart + span <= cursor { continue }
            try walk(page[child: index], other?[child: index] ?? .null, level: level - 1, start: childStart)
            if !isFinished { return }
        }
        try writer.free(pointer.block)
    }
}
