internal import BlockIO

/// One maintenance pass: merges what is in memory into the maps on disk, frees what deleted datasets had, and turns the
/// superblock to the new state. Writers go on meanwhile in new layers.
///
/// The steps: commit and freeze · merge layers · reclaim · write attributes, catalog and bitmaps · sync · superblock ·
/// sync · publish · punch. A crash before the superblock is durable leaves the old state and its journal untouched.
final class Checkpoint {
    private struct FrozenLayer {
        var layer: Layer
        var floor: OwnershipFloor
    }

    private let core: PoolCore
    private let writer: MetadataWriter
    private var layers: [FrozenLayer] = []
    private var image = CatalogImage()
    /// The newest frozen layer of each dataset that has one.
    private var tops: [UInt64: Layer] = [:]
    private var merged: [UInt64: MapRoot] = [:]
    private var finishedDatasets: [UInt64] = []
    private var attributesToWrite: [(id: SnapshotID, bytes: [UInt8])] = []
    private var streamsToFree: [(root: NodePointer, lengthBytes: UInt64)] = []
    private var writtenAttributes: [SnapshotID: (root: NodePointer, bytes: [UInt8])] = [:]
    private var boundary = PendingRecords(lastRecord: 0)
    private var next: Superblock
    private var regionPointers: [Int: NodePointer] = [:]

    init(core: PoolCore) {
        self.core = core
        writer = MetadataWriter(core: core)
        next = core.superblock
    }

    func run() throws(PoolError) {
        let record = core.monitor.withLock { freeze() }
        sortFrozen()
        try core.commit(through: record, whenFull: .proceed)
        try mergeLayers()
        try reclaim()
        if core.hasBug(.freedReusedTooEarly) {
            try core.monitor.withLock { () throws(PoolError) in
                for block in writer.freed { try core.space.release(block) }
            }
            writer.forgetFreed()
        }
        try writeAttributes()
        try writeCatalog()
        try writeBitmaps()
        try writer.flush()
        if !core.hasBug(.checkpointNotSynced) { try core.syncFile("syncing a checkpoint") }
        try writeSuperblock()
        try core.monitor.withLock { () throws(PoolError) in try publish() }
        try core.punchFreed()
    }

    // MARK: Freeze

    /// Fixes what the checkpoint holds: everything up to the returned record. Called with the lock held.
    private func freeze() -> UInt64 {
        core.isCheckpointRequested = false
        core.hasUnmappedSinceCheckpoint = false
        core.lastRecord += 1
        core.pending.lastRecord = core.lastRecord
        boundary = core.pending
        core.seal()
        var seen: Set<UInt64> = []
        for volume in core.volumes.values.sorted(by: { $0.number < $1.number }) where !volume.head.layers[0].isEmpty {
            core.pushLayer(volume.head)
        }
        for dataset in core.datasets.values {
            let frozen = dataset.role == .head ? dataset.layers.dropFirst() : dataset.layers[...]
            tops[dataset.number] = frozen.first
            for layer in frozen where seen.insert(layer.number).inserted {
                layers.append(FrozenLayer(layer: layer, floor: floor(of: layer)))
            }
            image.datasets.append(
                DatasetImage(
                    number: dataset.number, volume: dataset.volume, parent: dataset.parent?.number ?? 0,
                    role: dataset.role, epoch: dataset.epoch, sizeBytes: dataset.sizeBytes, cursor: dataset.cursor,
                    root: dataset.root))
        }
        freezeCatalog()
        next.epoch = core.epoch
        next.nextDataset = core.nextDataset
        next.nextVolume = core.nextVolume
        next.totalBlocks = core.totalBlocks
        return core.lastRecord
    }

    private func floor(of layer: Layer) -> OwnershipFloor {
        var floor = OwnershipFloor(parent: layer.owner.parent)
        if core.hasBug(.cursorIgnoredWhenFreeing) { floor.ahead = floor.behind }
        return floor
    }

    private func freezeCatalog() {
        for volume in core.volumes.values {
            image.volumes.append(
                VolumeImage(
                    number: volume.number, head: volume.head.number, id: volume.id, naa: volume.naa,
                    createdAt: volume.createdAt, clonedFrom: volume.clonedFrom, name: volume.name))
        }
        for snapshot in core.snapshots.values {
            image.snapshots.append(
                SnapshotImage(
                    id: snapshot.id, kind: snapshot.kind, epoch: snapshot.epoch, createdAt: snapshot.createdAt,
                    name: snapshot.name,
                    members: snapshot.members.map { .init(volume: $0.volume, dataset: $0.dataset.number) },
                    attributesRoot: snapshot.attributesRoot, attributeBytes: UInt64(snapshot.attributes.count)))
            if snapshot.attributesRoot.isNull, !snapshot.attributes.isEmpty {
                attributesToWrite.append((snapshot.id, snapshot.attributes))
            }
        }
        streamsToFree = core.discardedStreams
        core.discardedStreams = []
        core.attributeBytesToWrite = 0
    }

    /// Writers wait while the state is frozen; they need not wait for it to be put into order.
    private func sortFrozen() {
        layers.sort { $0.layer.number < $1.layer.number }
        image.datasets.sort { $0.number < $1.number }
        image.volumes.sort { $0.number < $1.number }
        image.snapshots.sort { ($0.epoch, $0.name) < ($1.epoch, $1.name) }
        let order = Dictionary(uniqueKeysWithValues: image.snapshots.enumerated().map { ($1.id, $0) })
        attributesToWrite.sort { order[$0.id]! < order[$1.id]! }
    }

    // MARK: Maps

    private func mergeLayers() throws(PoolError) {
        for frozen in layers {
            let layer = frozen.layer
            // Layers have the order of their numbers: what is below was merged before.
            let (below, base) = core.monitor.withLock { (layer.below, layer.base) }
            var merge = MapMerge(writer: writer, layer: layer, floor: frozen.floor)
            merged[layer.number] = try merge.run(onto: below.flatMap { merged[$0.number] } ?? base)
        }
        for index in image.datasets.indices {
            if let top = tops[image.datasets[index].number], let root = merged[top.number] {
                image.datasets[index].root = root
            }
        }
    }

    /// Oldest first, and one at a time among those that touch each other: whoever was begun is finished before its
    /// parent, its successor or another branch is.
    private func reclaim() throws(PoolError) {
        var budget = core.options.reclaimPagesPerPass
        var touched: Set<UInt64> = []
        let candidates = image.datasets.filter { $0.role == .doomed }
            .sorted { ($0.cursor > 0 ? 0 : 1, $0.epoch, $0.number) < ($1.cursor > 0 ? 0 : 1, $1.epoch, $1.number) }
        guard !candidates.isEmpty else { return }
        let epochs = Dictionary(uniqueKeysWithValues: image.datasets.map { ($0.number, $0.epoch) })
        let childrenOf = Dictionary(grouping: image.datasets.filter { $0.parent != 0 }, by: \.parent)
        var parents: [UInt64: UInt64] = [:]
        var cursors: [UInt64: UInt64] = [:]
        for candidate in candidates where budget > 0 {
            let children = childrenOf[candidate.number] ?? []
            let family = [candidate.number, candidate.parent] + children.map(\.number)
            guard children.count <= 1, touched.isDisjoint(with: family.filter { $0 != 0 }) else { continue }
            touched.formUnion(family.filter { $0 != 0 })
            var parentEpoch = epochs[candidate.parent] ?? 0
            var successor = children.first?.root.pointer ?? .null
            if core.hasBug(.reclaimIgnoresParent) { parentEpoch = 0 }
            if core.hasBug(.reclaimIgnoresSuccessor) { successor = .null }
            var step = ReclaimStep(
                writer: writer, floorEpoch: parentEpoch, cursor: candidate.cursor, budget: budget)
            budget = try step.run(candidate.root.pointer, successor: successor)
            guard step.isFinished else {
                cursors[candidate.number] = step.cursor
                break
            }
            for child in children { parents[child.number] = candidate.parent }
            finishedDatasets.append(candidate.number)
        }
        applyReclaim(parents: parents, cursors: cursors)
    }

    private func applyReclaim(parents: [UInt64: UInt64], cursors: [UInt64: UInt64]) {
        let finished = Set(finishedDatasets)
        image.datasets.removeAll { finished.contains($0.number) }
        for index in image.datasets.indices {
            let number = image.datasets[index].number
            if let parent = parents[number] { image.datasets[index].parent = parent }
            if let cursor = cursors[number] { image.datasets[index].cursor = cursor }
        }
    }

    // MARK: Streams

    private func writeAttributes() throws(PoolError) {
        for stream in streamsToFree { try writer.freeStream(stream.root, lengthBytes: stream.lengthBytes) }
        for attribute in attributesToWrite {
            let root = try writer.writeStream(attribute.bytes)
            writtenAttributes[attribute.id] = (root, attribute.bytes)
        }
        for index in image.snapshots.indices {
            if let written = writtenAttributes[image.snapshots[index].id] {
                image.snapshots[index].attributesRoot = written.root
            }
        }
    }

    private func writeCatalog() throws(PoolError) {
        try writer.freeStream(next.catalogRoot, lengthBytes: next.catalogBytes)
        let bytes = image.encoded()
        next.catalogRoot = try writer.writeStream(bytes)
        next.catalogBytes = UInt64(bytes.count)
    }

    // MARK: Bitmaps

    /// Bitmap pages are redirected like all others, which changes bitmaps again: first every page that will change gets
    /// its new place, until no more change, and then they are written.
    private func writeBitmaps() throws(PoolError) {
        var places: [BitmapPlace: UInt64] = [:]
        let topLevel = next.allocationLevel
        while true {
            let wanted = core.monitor.withLock { bitmapPages(topLevel) }.filter { places[$0] == nil }
            if wanted.isEmpty { break }
            for place in wanted.sorted() {
                places[place] = isEmptyRegion(place) ? 0 : try writer.allocate()
                let old = try oldBitmapPointer(place)
                if !old.isNull { try writer.free(old.block) }
            }
        }
        var written: [BitmapPlace: NodePointer] = [:]
        for place in places.keys.sorted() {
            if places[place] == 0 {
                written[place] = .null
                regionPointers[place.index] = .null
                continue
            }
            let (page, count) = try bitmapContent(place, written)
            try writer.write(page, to: places[place]!)
            let digest = PageDigest(of: page.bytes, key: core.digestKey)
            written[place] = NodePointer(block: places[place]!, birth: count, digest: digest)
            if place.level == 0 { regionPointers[place.index] = written[place] }
        }
        if let root = written[BitmapPlace(level: topLevel, index: 0)] { next.allocationRoot = root }
    }

    private struct BitmapPlace: Hashable, Comparable {
        var level: Int
        var index: Int

        static func < (left: BitmapPlace, right: BitmapPlace) -> Bool {
            (left.level, left.index) < (right.level, right.index)
        }
    }

    private func bitmapPages(_ topLevel: Int) -> Set<BitmapPlace> {
        var pages: Set<BitmapPlace> = []
        // A pool that has grown may need a taller tree: the old root becomes the first page of its level.
        if topLevel > core.superblock.allocationLevel {
            for level in 0...topLevel { pages.insert(BitmapPlace(level: level, index: 0)) }
        }
        for region in core.space.dirtyRegions {
            for level in 0...topLevel { pages.insert(BitmapPlace(level: level, index: region >> (7 * level))) }
        }
        return pages
    }

    /// A data region that the checkpoint does not use needs no bitmap. Data regions do not change while this is
    /// decided: the pages that are being placed go to metadata regions.
    private func isEmptyRegion(_ place: BitmapPlace) -> Bool {
        guard place.level == 0 else { return false }
        return core.monitor.withLock {
            let region = core.space.regions[place.index]
            return region.kind != .metadata && region.durableCount == 0
        }
    }

    private func oldBitmapPointer(_ place: BitmapPlace) throws(PoolError) -> NodePointer {
        var level = core.superblock.allocationLevel
        guard place.level <= level, place.index >> (7 * (level - place.level)) == 0 else { return .null }
        var pointer = core.superblock.allocationRoot
        while level > place.level, !pointer.isNull {
            let page = try writer.load(pointer)
            level -= 1
            pointer = page[child: (place.index >> (7 * (level - place.level))) & 127]
        }
        return pointer
    }

    /// A page's new content, and what its parent keeps beside the reference.
    private func bitmapContent(
        _ place: BitmapPlace, _ written: [BitmapPlace: NodePointer]
    ) throws(PoolError) -> (Page, UInt64) {
        if place.level == 0 {
            return try core.monitor.withLock { () throws(PoolError) in
                let page = Page()
                let bits = try core.space.bits(ofRegion: place.index)
                for word in 0..<bits.words { page.setWord(word * 8, bits.durable[word]) }
                let region = core.space.regions[place.index]
                return (page, UInt64(region.durableCount) | UInt64(region.kind.rawValue) << 56)
            }
        }
        let old = try oldBitmapPointer(place)
        let page = old.isNull ? Page() : Page(copying: try writer.load(old))
        for index in 0..<Int(Format.fanOut) {
            let child = BitmapPlace(level: place.level - 1, index: place.index << 7 | index)
            if let pointer = written[child] { page[child: index] = pointer }
        }
        return (page, 0)
    }

    // MARK: Superblock

    private func writeSuperblock() throws(PoolError) {
        next.generation += 1
        next.journalStart = boundary.end!
        try core.write(next)
    }

    /// Turns the state in memory to the checkpoint that is now durable. Called with the lock held.
    private func publish() throws(PoolError) {
        core.superblock = next
        core.statistics.checkpoints += 1
        core.statistics.metadataBytesWritten += writer.bytesWritten
        for (region, pointer) in regionPointers { core.space.setPointer(pointer, ofRegion: region) }
        let frozenNumbers = Set(layers.map(\.layer.number))
        for dataset in core.datasets.values {
            // What was cut since the freeze stands on frozen layers too.
            guard let newest = dataset.layers.first(where: { frozenNumbers.contains($0.number) }) else { continue }
            dataset.root = merged[newest.number]!
            dataset.layers.removeAll { frozenNumbers.contains($0.number) }
            for layer in dataset.layers {
                if let below = layer.below, let root = merged[below.number] {
                    layer.below = nil
                    layer.base = root
                }
            }
        }
        for frozen in layers {
            core.overlayEntries -= frozen.layer.count
            core.pagesToMerge -= frozen.layer.accountedPages
        }
        for dataset in image.datasets {
            guard let live = core.datasets[dataset.number] else { continue }
            live.cursor = dataset.cursor
        }
        for number in finishedDatasets {
            guard let dataset = core.datasets.removeValue(forKey: number) else { continue }
            for child in dataset.children { child.setParent(dataset.parent) }
            dataset.setParent(nil)
        }
        publishAttributes()
        core.unlinkedToPunchNow.append(contentsOf: writer.freed)
        core.lastPassFreed = writer.freed.count
        try core.advanceFrees()
        if core.hasReclaimableDataset { core.isCheckpointRequested = true }
    }

    private func publishAttributes() {
        for (id, written) in writtenAttributes {
            if let snapshot = core.snapshots[id], snapshot.attributesRoot.isNull, snapshot.attributes == written.bytes {
                snapshot.attributesRoot = written.root
            } else {
                // Replaced or deleted while the checkpoint was written.
                core.discardedStreams.append((written.root, UInt64(written.bytes.count)))
            }
        }
    }
}
