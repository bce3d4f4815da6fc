internal import BlockIO

extension PoolCore {
    /// One maintenance pass. A failure of it fails the pool.
    func maintain() throws(PoolError) {
        maintenance.lock()
        defer { maintenance.unlock() }
        try monitor.withLock { () throws(PoolError) in
            if let refusal { throw refusal }
            isMaintaining = true
        }
        defer {
            monitor.withLock {
                isMaintaining = false
                passesFinished += 1
                monitor.broadcast()
            }
        }
        do {
            try growMetadataReserve()
            try Checkpoint(core: self).run()
        } catch {
            monitor.withLock { fail("\(error)") }
            throw error
        }
    }

    /// Keeps enough backed blocks for map pages, so that a checkpoint never depends on what data left over.
    private func growMetadataReserve() throws(PoolError) {
        while true {
            let (wanted, isUrgent) = monitor.withLock { () -> (Int?, Bool) in
                let least = overheadPages * 4 + space.regionBlocks / 8
                let demand = min(pagesToMerge * 4, UInt64(options.overlayEntries) * 2)
                guard space.metadataFree < max(least, demand) else { return (nil, false) }
                return (space.emptyRegion(), space.metadataFree < least)
            }
            guard let region = wanted else { return }
            let regionBytes = space.regionBlocks * UInt64(Format.blockBytes)
            // Beyond the least, a reserve may not eat up what data needs.
            if !isUrgent {
                let room = min(
                    file.availableBytes ?? .max, monitor.withLock { space.dataFree } * UInt64(Format.blockBytes))
                let reserveBytes = monitor.withLock { space.metadataFree } * UInt64(Format.blockBytes)
                if room < 16 * (reserveBytes + regionBytes) { return }
            }
            guard try dedicateToMetadata(region) else { return }
        }
    }

    /// False where there is no storage for it.
    private func dedicateToMetadata(_ region: Int) throws(PoolError) -> Bool {
        let regionBytes = space.regionBlocks * UInt64(Format.blockBytes)
        do {
            try file.allocate(at: UInt64(region) * regionBytes, lengthBytes: regionBytes)
        } catch {
            guard error.errno == 28 || error.errno == 122 else {
                throw .io(operation: "reserving room for map pages", errno: error.errno)
            }
            return false
        }
        monitor.withLock {
            // A writer may have taken the region meanwhile.
            if region == space.emptyRegion() { space.dedicateToMetadata(region: region) }
        }
        return true
    }

    /// One more region for map pages, in the middle of a checkpoint whose reserve is gone. Only after a loss: otherwise
    /// the reserve is what was promised.
    func extendMetadataReserve() throws(PoolError) {
        let (region, hasLosses) = monitor.withLock { (space.emptyRegion(), space.hasLosses) }
        if let region, hasLosses { _ = try dedicateToMetadata(region) }
    }

    /// Gives freed data blocks back: whole aligned groups that are free now are punched out of the file.
    func punchFreed() throws(PoolError) {
        let lists = monitor.withLock {
            defer { punchable = BlockLists() }
            return punchable
        }
        let blocks = lists.all.sorted()
        var at = 0
        while at < blocks.count {
            // Not more than a few at a time, because writers wait meanwhile; groups stay whole.
            var end = min(at + 512, blocks.count)
            while end < blocks.count, blocks[end] / 16 == blocks[end - 1] / 16 { end += 1 }
            try punch(Array(blocks[at..<end]))
            at = end
        }
        while monitor.withLock({ !releasable.isEmpty }) {
            try monitor.withLock { () throws(PoolError) in
                try releaseSome(most: 512)
                isFull = false
            }
        }
        while monitor.withLock({ space.isOverLimit }) {
            let before = monitor.withLock { space.bitmapBytes }
            monitor.withLock { space.trim(most: 256) }
            if monitor.withLock({ space.bitmapBytes }) >= before { break }
        }
    }

    private func punch(_ blocks: [UInt64]) throws(PoolError) {
        let (punches, releases) = try monitor.withLock { () throws(PoolError) in try space.planPunches(blocks) }
        for range in punches {
            let start = range.lowerBound * UInt64(Format.blockBytes)
            // What cannot be given back stays allocated; nothing else depends on it.
            try? file.punchHole(at: start, lengthBytes: UInt64(range.count) * UInt64(Format.blockBytes))
        }
        try monitor.withLock { () throws(PoolError) in
            for block in releases { try space.release(block) }
            isFull = false
        }
    }
}
