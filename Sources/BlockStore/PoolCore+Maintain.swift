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
            do {
                try file.allocate(at: UInt64(region) * regionBytes, lengthBytes: regionBytes)
            } catch {
                guard error.errno == 28 || error.errno == 122 else {
                    throw .io(operation: "reserving room for map pages", errno: error.errno)
                }
                return
            }
            try monitor.withLock { () throws(PoolError) in
                // A writer may have taken the region meanwhile.
                if region == space.emptyRegion() { space.dedicateToMetadata(region: region) }
            }
        }
    }

    /// Gives freed data blocks back: whole aligned groups that are free now are punched out of the file.
    func punchFreed() throws(PoolError) {
        let (punches, releases) = try monitor.withLock { () throws(PoolError) in
            let blocks = punchable.sorted()
            punchable = []
            return try space.planPunches(blocks)
        }
        for range in punches {
            let start = range.lowerBound * UInt64(Format.blockBytes)
            // What cannot be given back stays allocated; nothing else depends on it.
            try? file.punchHole(at: start, lengthBytes: UInt64(range.count) * UInt64(Format.blockBytes))
        }
        try monitor.withLock { () throws(PoolError) in
            for block in releases { try space.release(block) }
            if !releases.isEmpty { isFull = false }
        }
    }
}
