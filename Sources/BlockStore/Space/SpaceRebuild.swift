/// The allocation map says nothing that the maps do not say too: what was lost of it can be found again.
extension PoolCore {
    /// Walks all maps and frees what is marked and not reached. Returns the number of blocks; nil where a page of a map
    /// cannot be read: then everything stays set aside, because that page may lead to it.
    ///
    /// Writers wait meanwhile, for as long as a check takes: for pools that nobody uses yet.
    func rebuildSpace(memoryBytes: UInt64 = PoolChecker.defaultMemoryBytes) throws(PoolError) -> UInt64? {
        maintenance.lock()
        defer { maintenance.unlock() }
        monitor.lock()
        defer { monitor.unlock() }
        let walks = try PoolWalks(self, memoryBytes: memoryBytes)
        var walk = try PoolWalk(walks, verifiesData: false)
        var freed: UInt64 = 0
        for number in 0..<walks.count {
            freed += try walk.rebuild(number)
            if walk.isBlind { return nil }
        }
        space.hasLosses = false
        // Bit 0 of the features stays: sums go on counting what was lost.
        isCheckpointRequested = true
        isFull = false
        return freed
    }
}
