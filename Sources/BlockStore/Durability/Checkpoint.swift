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
        /// For the dataset that gets what the layer's holes detach; 0 where there are no holes.
        var spareNumber: UInt64
        var parent: UInt64
    }

    private struct AttributesToWrite {
        var id: SnapshotID
        var version: UInt64
        var bytes: [UInt8]
    }

    private let core: PoolCore
    private let writer: MetadataWriter
    private var layers: [FrozenLayer] = []
    private var image = CatalogImage()
    /// The newest frozen layer of each dataset that has one.
    private var tops: [UInt64: Layer] = [:]
    private var merged: [UInt64: MapRoot] = [:]
    private var finishedDatasets: [UInt64] = []
    private var reclaimedBlocks: UInt64 = 0
    /// Those that this checkpoint makes.
    private var detachedDatasets: [UInt64] = []
    private var detachedCounts: [UInt64: DetachedCount] = [:]
    private var tables: (SlotTable<DatasetImage>, SlotTable<VolumeImage>, SlotTable<CatalogTables.SnapshotEntry>)?
    private var attributesToWrite: [AttributesToWrite] = []
    private var streamsToFree: [(root: NodePointer, lengthBytes: UInt64)] = []
    private var writtenAttributes: [SnapshotID: (root: NodePointer, version: UInt64, lengthBytes: UInt64)] = [:]
    private var movedCursors: [UInt64: UInt64] = [:]
    private var boundary = PendingRecords(lastRecord: 0)
    private var next: Superblock
    private var regionPointers: [Int: NodePointer] = [:]
    private var hasLostInterior = false

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
                for block in writer.freed + writer.overwritten { try core.space.release(block) }
            }
            writer.forgetFreed()
        }
        try writeAttributes()
        try writeCatalog()
        try writeBitmaps()
        try writer.flush()
        if !core.hasBug(.checkpointNotSynced) { try core.syncFile("syncing a checkpoint") }
        try writeSuperblock()
        publishBitmaps()
        core.monitor.withLock { publish() }
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
        // Holes take numbers of datasets, which are to follow from what was done.
        for dataset in core.tables.layered.values.sorted(by: { $0.number < $1.number }) {
            let frozen = dataset.role == .head ? dataset.layers.dropFirst() : dataset.layers[...]
            tops[dataset.number] = frozen.first
            for layer in frozen where seen.insert(layer.number).inserted {
                layers.append(
                    FrozenLayer(
                        layer: layer, floor: floor(of: layer), spareNumber: layer.holes.isEmpty ? 0 : core.nextDataset,
                        parent: layer.owner.parent?.number ?? 0))
                if !layer.holes.isEmpty { core.nextDataset += 1 }
            }
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
        // Copies in constant time: the objects go on changing their entries meanwhile.
        tables = (core.tables.datasets, core.tables.volumes, core.tables.snapshots)
        for snapshot in core.tables.unwritten.values {
            guard let bytes = snapshot.attributes else { continue }
            attributesToWrite.append(
                AttributesToWrite(id: snapshot.id, version: snapshot.attributesVersion, bytes: bytes))
        }
        image.receives = core.receives.values.map(ReceiveImage.init)
        streamsToFree = core.discardedStreams
        core.discardedStreams = []
        core.attributeBytesToWrite = 0
    }

    /// Writers wait while the state is frozen; they need not wait for it to be put into order.
    private func sortFrozen() {
        if let tables {
            image.datasets = tables.0.elements
            image.volumes = tables.1.elements
            image.snapshots = tables.2.elements.map(\.image)
        }
        tables = nil
        layers.sort { $0.layer.number < $1.layer.number }
        image.datasets.sort { $0.number < $1.number }
        image.volumes.sort { $0.number < $1.number }
        image.receives.sort { $0.name < $1.name }
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
            var (root, detached) = try merge.run(onto: below.flatMap { merged[$0.number] } ?? base)
            if !detached.isNull {
                root.detached.append(frozen.spareNumber)
                if !core.hasBug(.detachedForgotten) { detach(detached, from: frozen) }
            }
            merged[layer.number] = root
        }
        for index in image.datasets.indices {
            if let top = tops[image.datasets[index].number], let root = merged[top.number] {
                image.datasets[index].root = root
            }
        }
    }

    /// What holes took away whole is from now on a deleted dataset beside the layer's.
    private func detach(_ root: NodePointer, from frozen: FrozenLayer) {
        let layer = frozen.layer
        let (volume, sizeBytes) = core.monitor.withLock { (layer.owner.volume, layer.owner.sizeBytes) }
        image.datasets.append(
            DatasetImage(
                number: frozen.spareNumber, volume: volume,
                parent: core.hasBug(.detachedOwnsAll) ? 0 : frozen.parent, role: .doomed, epoch: layer.epoch,
                sizeBytes: sizeBytes, cursor: 0, root: MapRoot(pointer: root, mappedBlocks: MapRoot.uncounted)))
        detachedDatasets.append(frozen.spareNumber)
    }

    /// Oldest first, and one at a time among those that touch each other: whoever was begun is finished before its
    /// parent, its successor or another branch is.
    private func reclaim() throws(PoolError) {
        var budget = core.options.reclaimPagesPerPass
        var touched: Set<UInt64> = []
        let candidates = image.datasets.filter { $0.role == .doomed }
            .sorted { ($0.cursor > 0 ? 0 : 1, $0.epoch, $0.number) < ($1.cursor > 0 ? 0 : 1, $1.epoch, $1.number) }
        guard !candidates.isEmpty else { return }
        let byNumber = Dictionary(uniqueKeysWithValues: image.datasets.map { ($0.number, $0) })
        let uncounted = Set(image.datasets.flatMap(\.root.detached))
        let childrenOf = Dictionary(grouping: image.datasets.filter { $0.parent != 0 }, by: \.parent)
        var parents: [UInt64: UInt64] = [:]
        var cursors: [UInt64: UInt64] = [:]
        for candidate in candidates where budget > 0 {
            let number = candidate.number
            let children = childrenOf[number] ?? []
            // A leaf of the tree beside others touches nobody: what it shares is its parent's, who waits for it.
            let isAside = children.isEmpty && childrenOf[candidate.parent]?.count ?? 0 > 1
            let family = [number] + (isAside ? [] : [candidate.parent] + children.map(\.number))
            guard children.count <= 1 else {
                // Begun, and now waiting for what a hole detached: neither its parent nor its successors may go on.
                if candidate.cursor > 0 { touched.formUnion([number, candidate.parent].filter { $0 != 0 }) }
                continue
            }
            guard touched.isDisjoint(with: family.filter { $0 != 0 }) else { continue }
            touched.formUnion([number, candidate.parent].filter { $0 != 0 } + children.map(\.number))
            let successor = core.hasBug(.reclaimIgnoresSuccessor) ? .null : children.first?.root.pointer ?? .null
            var step = ReclaimStep(
                writer: writer, dataset: number, floor: reclaimFloor(byNumber[candidate.parent], byNumber),
                cursor: candidate.cursor, budget: budget, counts: uncounted.contains(number))
            budget = try step.run(candidate.root.pointer, successor: successor)
            reclaimedBlocks += step.freedBlocks
            detachedCounts[number] = DetachedCount(blocks: step.mappedBlocks, isFinished: step.isFinished)
            guard step.isFinished else {
                cursors[number] = step.cursor + (core.hasBug(.cursorTooFar) ? Format.leafEntries : 0)
                break
            }
            for child in children { parents[child.number] = candidate.parent }
            finishedDatasets.append(number)
        }
        applyReclaim(parents: parents, cursors: cursors)
    }

    private func reclaimFloor(_ parent: DatasetImage?, _ byNumber: [UInt64: DatasetImage]) -> OwnershipFloor {
        guard let parent, !core.hasBug(.reclaimIgnoresParent) else {
            return OwnershipFloor(ahead: 0, behind: 0, cursor: 0)
        }
        let isBegun = parent.role == .doomed && parent.cursor > 0
        return OwnershipFloor(
            ahead: parent.epoch, behind: isBegun ? byNumber[parent.parent]?.epoch ?? 0 : parent.epoch,
            cursor: isBegun ? parent.cursor : 0)
    }

    private func applyReclaim(parents: [UInt64: UInt64], cursors: [UInt64: UInt64]) {
        let finished = Set(finishedDatasets)
        image.datasets.removeAll { finished.contains($0.number) }
        for index in image.datasets.indices {
            let number = image.datasets[index].number
            if let parent = parents[number] { image.datasets[index].parent = parent }
            if let cursor = cursors[number] { image.datasets[index].cursor = cursor }
            image.datasets[index].root.settle(detachedCounts)
        }
        movedCursors = cursors
    }

    // MARK: Streams

    private func writeAttributes() throws(PoolError) {
        for stream in streamsToFree { try writer.freeStream(stream.root, lengthBytes: stream.lengthBytes) }
        for attribute in attributesToWrite {
            let root = try writer.writeStream(attribute.bytes)
            writtenAttributes[attribute.id] = (root, attribute.version, UInt64(attribute.bytes.count))
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
        if hasLostInterior {
            for region in stride(from: 0, to: core.space.regions.count, by: Int(Format.fanOut)) {
                for level in 1...max(1, topLevel) {
                    pages.insert(BitmapPlace(level: level, index: region >> (7 * level)))
                }
            }
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
        if place.level == 0 { return core.monitor.withLock { core.space.regions[place.index].pointer } }
        var level = core.superblock.allocationLevel
        guard place.level <= level, place.index >> (7 * (level - place.level)) == 0 else { return .null }
        var pointer = core.superblock.allocationRoot
        while level > place.level, !pointer.isNull {
            // What cannot be read is set aside, and all pages above the bitmaps are written anew from memory.
            guard let page = try writer.loadBitmapParent(pointer) else {
                hasLostInterior = true
                return .null
            }
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
            // Read ahead, so that nobody waits for the disk with the lock held.
            let old = core.monitor.withLock { core.space.regions[place.index].pointer }
            if !old.isNull { _ = try? writer.load(old) }
            return try core.monitor.withLock { () throws(PoolError) in
                let page = try core.space.durablePage(ofRegion: place.index)
                let region = core.space.regions[place.index]
                return (page, UInt64(region.durableCount) | UInt64(region.kind.rawValue) << 56)
            }
        }
        if place.level == 1 {
            // Memory knows them all.
            let page = Page()
            let first = place.index << 7
            core.monitor.withLock {
                for region in first..<max(first, min(first + Int(Format.fanOut), core.space.regions.count)) {
                    page[child: region - first] = regionPointers[region] ?? core.space.regions[region].pointer
                }
            }
            return (page, 0)
        }
        let old = try oldBitmapPointer(place)
        let page = old.isNull || hasLostInterior ? Page() : Page(copying: try writer.load(old))
        for index in 0..<Int(Format.fanOut) {
            let child = BitmapPlace(level: place.level - 1, index: place.index << 7 | index)
            if let pointer = written[child] { page[child: index] = pointer }
        }
        return (page, 0)
    }

    // MARK: Superblock

    private func writeSuperblock() throws(PoolError) {
        next.generation += 1
        core.noteLostBitmaps()
        if writer.hasLosses || core.monitor.withLock({ core.space.hasLosses }) {
            next.incompatibleFeatures |= Format.featureLosses
        }
        next.journalStart =
            core.hasBug(.boundaryTooLate) ? core.monitor.withLock { core.journalEnd } : boundary.end!
        try core.write(next)
    }

    /// The old pages are still there: writers may come between.
    private func publishBitmaps() {
        let all = Array(regionPointers)
        for first in stride(from: 0, to: all.count, by: 256) {
            core.monitor.withLock {
                for (region, pointer) in all[first..<min(first + 256, all.count)] {
                    core.space.setPointer(pointer, ofRegion: region)
                }
            }
        }
    }

    /// Turns the state in memory to the checkpoint that is now durable. Called with the lock held.
    private func publish() {
        core.superblock = next
        core.statistics.checkpoints += 1
        core.statistics.metadataBytesWritten += writer.bytesWritten
        core.statistics.reclaim.freedBytes += reclaimedBlocks * UInt64(Format.blockBytes)
        let frozenNumbers = Set(layers.map(\.layer.number))
        for dataset in Array(core.tables.layered.values) {
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
        publishDetached()
        for (number, cursor) in movedCursors { core.datasets[number]?.cursor = cursor }
        for number in finishedDatasets {
            guard let dataset = core.datasets.removeValue(forKey: number) else { continue }
            for child in dataset.children { child.setParent(dataset.parent) }
            dataset.setParent(nil)
            dataset.leaveTables()
        }
        publishAttributes()
        core.unlinkedToPunchNow.append(writer.freed)
        core.unlinkedNow.append(writer.overwritten)
        core.lastPassFreed = writer.freed.count + writer.overwritten.count
        core.advanceFrees()
        if core.hasReclaimableDataset { core.isCheckpointRequested = true }
    }

    /// Makes the datasets of what was detached and is not reclaimed yet, and takes off what was counted.
    private func publishDetached() {
        for entry in image.datasets where detachedDatasets.contains(entry.number) {
            let dataset = Dataset(
                number: entry.number, volume: entry.volume, role: .doomed, epoch: entry.epoch,
                sizeBytes: entry.sizeBytes, tables: core.tables)
            dataset.root = entry.root
            dataset.setParent(core.datasets[entry.parent])
            core.datasets[entry.number] = dataset
        }
        guard !detachedCounts.isEmpty else { return }
        var seen: Set<UInt64> = []
        for dataset in core.datasets.values {
            if !dataset.root.detached.isEmpty { dataset.root.settle(detachedCounts) }
            for layer in dataset.layers where seen.insert(layer.number).inserted { layer.base.settle(detachedCounts) }
        }
    }

    private func publishAttributes() {
        for attribute in attributesToWrite {
            guard let written = writtenAttributes[attribute.id] else { continue }
            if let snapshot = core.snapshots[attribute.id], snapshot.attributesVersion == written.version {
                snapshot.attributesWritten(to: written.root)
                if core.tables.attributeBytes > core.options.attributeCacheBytes { snapshot.forgetAttributes() }
            } else {
                // Replaced or deleted while the checkpoint was written.
                core.discardedStreams.append((written.root, written.lengthBytes))
            }
        }
    }
}
