import BlockIO
import Simulation
import Synchronization
import Testing

@testable import BlockStore

/// Operations in the middle of others. The pool lets go of its lock while it reads, writes and syncs, and that is where
/// another thread may change it: so each such call of the disk is a place for one more operation. What comes between is
/// chosen so that it has to wait for nobody, because there is only one thread.
struct Interruption {
    /// Operations that made something durable so far.
    var durablePoints = 0
    /// Operations that came between others so far.
    fileprivate(set) var count = 0
    /// How many come at one place, and in how many of 100 places.
    fileprivate var atOnce = 1
    fileprivate var percent: UInt64 = 20
    fileprivate var kind = Kind.anything
    /// How many of 100 writes go where the last one went.
    var repeatPercent: UInt64 = 25
    fileprivate var isAllowed = false
    /// Changes of volumes and snapshots may come between, too.
    fileprivate(set) var allowsControl = true
    fileprivate(set) var isRunning = false
    /// The record that was the last one; a change that has entered the pool is not followed by others, because then
    /// their order would be unknown.
    fileprivate var lastRecord: UInt64?
    fileprivate var failure: Simulator.Failure?

    enum Kind {
        case anything
        /// Writes to one volume, over what was written last: for commits.
        case overwrites(VolumeID)
        /// What was written last is overwritten, that becomes durable, and the blocks are used again: for readers.
        case churn(VolumeID)
    }

    fileprivate mutating func endSpecial() {
        kind = .anything
        percent = 20
        atOnce = 1
        repeatPercent = 25
    }
}

extension Simulator {
    func beginInterruptions(_ pool: Pool, _ isInterruptible: Bool, changes: Bool) {
        guard isInterrupted, isInterruptible, !interruption.isRunning else { return }
        interruption.isAllowed = true
        interruption.lastRecord = changes ? pool.core.monitor.withLock { pool.core.lastRecord } : nil
        // SAFETY: the disk calls it in the one thread that there is, and only until `endInterruptions`.
        nonisolated(unsafe) let simulator = self
        disk.setInterruption { simulator.interrupt() }
    }

    func endInterruptions(_ isInterruptible: Bool) throws {
        guard isInterruptible, !interruption.isRunning else { return }
        interruption.isAllowed = false
        disk.setInterruption(nil)
        guard let failure = interruption.failure else { return }
        interruption.failure = nil
        throw failure
    }

    private func interrupt() {
        guard interruption.isAllowed, !interruption.isRunning, interruption.failure == nil, let pool, !disk.isDead,
            generator.chance(interruption.percent), let room = room(in: pool.core)
        else { return }
        interruption.isRunning = true
        withoutPlan {
            do {
                log.append("  meanwhile:")
                interruption.count += 1
                coverage.note(.operationBetween)
                try comeBetween(canCommit: room.canCommit, canMaintain: room.canMaintain)
                for _ in 1..<interruption.atOnce {
                    guard let pool = self.pool, let room = self.room(in: pool.core) else { break }
                    try comeBetween(canCommit: room.canCommit, canMaintain: room.canMaintain)
                }
            } catch let failure as Failure {
                interruption.failure = failure
            } catch {
                interruption.failure = fail("\(error)")
            }
        }
        interruption.isRunning = false
        if interruption.lastRecord != nil, let pool = self.pool {
            interruption.lastRecord = pool.core.monitor.withLock { pool.core.lastRecord }
        }
    }

    /// Whether an operation could go on at once; nil when not, or when the caller holds the lock.
    private func room(in core: PoolCore) -> (canCommit: Bool, canMaintain: Bool)? {
        guard core.monitor.tryLock() else { return nil }
        defer { core.monitor.unlock() }
        guard core.refusal == nil, !core.isCheckpointRequested, !core.isFull,
            core.unnotedThrough.load(ordering: .relaxed) == 0,
            core.overlayEntries < core.options.overlayEntries, core.pendingBytes < core.pendingLimit / 4,
            core.hasMetadataRoom(for: 70), core.space.dataFree > 400,
            core.volumes.values.allSatisfy({ $0.head.layers.count < 32 })
        else { return nil }
        if let last = interruption.lastRecord, last != core.lastRecord { return nil }
        // A log that runs full would have its change wait for the commit that is under way.
        if core.isCommitting, logIsTight { return nil }
        let hasJournalRoom = core.journalUsedBytes + UInt64(core.pendingBytes) < core.superblock.journalBytes / 4
        return (!core.isCommitting && hasJournalRoom, !core.isMaintaining)
    }

    private func comeBetween(canCommit: Bool, canMaintain: Bool) throws {
        let volumes = model.volumes.keys.sorted { $0.description < $1.description }
        guard !volumes.isEmpty else { return }
        switch interruption.kind {
        case .overwrites(let volume) where model.volumes[volume] != nil:
            return try write(volume, mayBeDurable: false)
        case .churn(let volume) where model.volumes[volume] != nil && canCommit:
            return try churn(volume, canMaintain: canMaintain)
        default: break
        }
        let volume = volumes[Int(generator.below(UInt64(volumes.count)))]
        switch generator.below(10) {
        case 0..<4: try write(volume, mayBeDurable: canCommit)
        case 4..<5: try unmap(volume)
        case 5..<7 where canCommit: try snapshot(volumes)
        case 7..<8 where canCommit: try flush(volume)
        case 8..<9 where canCommit && canMaintain:
            try attempt("maintain", as: .checkpoint, isDurable: true, change: { _ in }, { try $0.maintain() })
        case 9..<10 where canCommit && interruption.allowsControl: try control()
        default: try checkReads()
        }
    }

    private func control() throws {
        switch generator.below(6) {
        case 0..<2: try setAttributes()
        case 2..<4: if let id = pickSnapshot() { try delete(id) }
        case 4..<5: try clone()
        default: try promote()
        }
    }

    /// What is being read is overwritten, the blocks come free as soon as they may, and others are written.
    private func churn(_ volume: VolumeID, canMaintain: Bool) throws {
        defer { interruption.repeatPercent = 100 }
        func isPossible() -> Bool { pool.flatMap { room(in: $0.core) }?.canCommit ?? false }
        try write(volume, mayBeDurable: false)
        for _ in 0..<2 where isPossible() {
            if canMaintain, generator.chance(40) {
                try attempt("maintain", as: .checkpoint, isDurable: true, change: { _ in }, { try $0.maintain() })
            } else {
                try flush(volume)
            }
        }
        interruption.repeatPercent = 0
        for _ in 0..<2 where isPossible() { try write(volume, mayBeDurable: false) }
    }

    /// A commit while others write, and then what shows whether it took too much for its own: the data of a write that
    /// came during its last sync is synced by the next commit only, and a block that was overwritten meanwhile still
    /// belongs to what the commit made durable. So the power fails either in that next commit, when it has written
    /// its batch and a lack of the data's sync leaves the data in the cache, or after some more writes, which would be
    /// in the blocks that came free too early.
    func commitUnderLoad(_ volume: VolumeID) throws {
        setPlan(nil)
        for _ in 0...generator.below(2) where pool != nil { try write(volume, mayBeDurable: false) }
        guard pool != nil else { return }
        interruption.kind = .overwrites(volume)
        interruption.percent = 40
        interruption.repeatPercent = 80
        interruption.atOnce = 1 + Int(generator.below(3))
        let before = interruption.count
        defer { interruption.endSpecial() }
        try attempt(
            "flush under load", as: .flushUnderLoad, isDurable: true, isInterruptible: true,
            change: { _ in },
            { try $0.device(of: volume).flush() })
        guard interruption.count > before, pool != nil else { return }
        interruption.endSpecial()
        switch generator.below(4) {
        case 0..<2: try flushIntoPowerLoss(volume)
        case 2:
            for _ in 0...generator.below(4) where pool != nil { try write(volume, mayBeDurable: false) }
            losesPower = true
            if pool != nil { crash("after a flush under load") }
        default: break
        }
    }

    /// A volume is read while it is overwritten, and blocks come free and are used again: each sector is one that was
    /// there meanwhile. Or a snapshot of it, which must not change.
    func readUnderWay(_ volume: VolumeID) throws {
        setPlan(nil)
        // What is being read must stay.
        interruption.allowsControl = false
        defer {
            interruption.allowsControl = true
            interruption.endSpecial()
        }
        interruption.percent = 50
        interruption.atOnce = 4
        var place: Range<UInt64>?
        if isInterrupted, generator.chance(50) {
            // One place, which is not in the maps on disk yet: from the look-up to the read everything is in its layer.
            for _ in 0...generator.below(2) where pool != nil { try write(volume, mayBeDurable: false) }
            guard pool != nil else { return }
            place = lastPlace(volume)
            interruption.kind = .churn(volume)
            interruption.repeatPercent = 100
            interruption.atOnce = 1
        }
        let snapshot = generator.chance(30) ? pickSnapshot() : nil
        if let snapshot, let expected = model.snapshots[snapshot]!.members[volume] {
            return try attempt(
                "read \(snapshot.description.prefix(4))", as: .readUnderWay, isDurable: false, isInterruptible: true,
                change: { _ in }
            ) { pool in
                let found = try readModel(try pool.device(of: snapshot, volume: volume))
                guard found == expected else { throw self.fail("a snapshot reads otherwise than it was cut") }
            }
        }
        let first = history.count - 1
        let durable = interruption.durablePoints
        var states = [model.volumes[volume]!]
        try attempt(
            "read \(volume.description.prefix(4)) \(place.map { "\($0)" } ?? "")", as: .readUnderWay,
            isDurable: false, isInterruptible: true, change: { _ in }
        ) { pool in
            let found = try readModel(try pool.device(of: volume), only: place)
            // Where something became durable, what was before it is not known any more.
            guard interruption.durablePoints == durable else { return }
            states += history[first...].compactMap { $0.volumes[volume] }
            for sector in Set(states.flatMap(\.sectors.keys)).union(found.sectors.keys)
            where (place?.contains(sector) ?? true) && !found.unreadable.contains(sector / 8) {
                guard states.contains(where: { $0.sectors[sector] == found.sectors[sector] }) else {
                    throw self.fail("sector \(sector) reads as what was never there")
                }
            }
        }
    }
}
