import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// A disk that lies: writes that are lost or go to another place though they succeed, and rot. Whatever it does, no
/// read gives other data than was written: it is right, or a medium error, and that only where something on the way to
/// the block is wrong. What nobody can know is excepted: a lie about the last batch of the journal.
extension Simulator {
    /// Whether the disk has lied.
    var isDamaged: Bool { !disk.effects.spoiled.isEmpty }

    /// The first block behind the journal.
    private var firstBlock: UInt64 { Format.journalBlock + poolOptions().journalBytes / UInt64(Format.blockBytes) }

    /// A few of the disk's blocks lie, in a history at most.
    func planLie(_ at: UInt64) {
        guard disk.effects.spoiled.count < 24, let victim = occupiedBlock() else { return setPlan(nil) }
        log.append("the disk lies soon")
        let first = firstBlock
        switch generator.below(3) {
        case 0:
            log.append("block \(victim) rots")
            disk.rot(block: victim, bit: Int(generator.below(32768)))
        case 1:
            setPlan { call, kind in
                if call == at, case .write(let block) = kind, block >= first { return .lost }
                return nil
            }
        default:
            setPlan { call, kind in
                if call == at, case .write(let block) = kind, block >= first { return .misdirect(block: victim) }
                return nil
            }
        }
    }

    private func occupiedBlock() -> UInt64? {
        let blocks = disk.occupiedBlocks.filter { $0 >= firstBlock }
        return blocks.isEmpty ? nil : blocks[Int(generator.below(UInt64(blocks.count)))]
    }

    /// A batch of the journal is lost or rots, and another one follows it that says that it was durable. A recovery
    /// that needs it must refuse. The history ends here.
    func lieInJournal(_ volume: VolumeID) throws {
        setPlan(nil)
        let journal = Format.journalBlock..<firstBlock
        try write(volume, mayBeDurable: false)
        guard let pool, let before = committed(pool) else { return }
        let isRot = generator.chance(50)
        log.append("the disk lies in the journal")
        let call = disk.callCount
        if !isRot {
            setPlan { number, kind in
                // The first write to the journal from here on.
                if case .write(let block) = kind, journal.contains(block), number <= call + 60 { return .lost }
                return nil
            }
        }
        try attempt("flush", isDurable: true, change: { _ in }, { try $0.device(of: volume).flush() })
        setPlan(nil)
        // Without another batch behind it nobody can know of it.
        if isRot || !disk.effects.spoiled.isDisjoint(with: journal) { isOver = true }
        guard self.pool != nil, let lied = committed(pool), lied.sequence == before.sequence + 1 else { return }
        try write(volume, mayBeDurable: false)
        try attempt("flush", isDurable: true, change: { _ in }, { try $0.device(of: volume).flush() })
        guard self.pool != nil, let after = committed(pool), after.sequence > lied.sequence else { return }
        if isRot {
            let block = before.position / UInt64(Format.blockBytes) % UInt64(journal.count) + Format.journalBlock
            log.append("block \(block) of the journal rots")
            disk.rot(block: block, bit: 8 * Int(generator.below(64)) + Int(generator.below(8)))
        }
        coverage.note(.journalLie)
        guard pool.core.superblock.journalStart.sequence <= before.sequence else { return }
        crash("after a lie in the journal")
        disk = disk.crashed()
        var options = poolOptions()
        options.volatileLogStorage = nil
        do {
            _ = try Pool.open(on: disk, options: options)
            throw fail("a durable batch of the journal is gone and the pool opens")
        } catch let error as PoolError {
            try endRefused(error)
        }
    }

    private func committed(_ pool: Pool) -> JournalPoint? { pool.core.monitor.withLock { pool.core.journalEnd } }

    /// The pool is not opened for writing. What it still gives to readers must be what was written at some time.
    func endRefused(_ error: any Error) throws {
        log.append("opening is refused: \(error)")
        coverage.note(.openingRefused)
        isOver = true
        guard case .damaged = error as? PoolError else { throw fail("opening failed without a reason: \(error)") }
        var options = poolOptions()
        options.isReadOnly = true
        guard let pool = try? Pool.open(on: disk, options: options) else { return }
        defer { pool.core.monitor.withLock { pool.core.forgetObjects() } }
        for volume in pool.volumes() {
            let content = try readModel(try pool.device(of: volume.id))
            for (sector, tag) in content.sectors
            where tag >> 40 > tags || ![sector, Sector.anywhere].contains(tag & Sector.anywhere) {
                throw fail("sector \(sector) reads as what was never written there")
            }
        }
    }

    /// Reads block by block, and notes which ones cannot be read.
    func readBlocks(
        of device: any BlockDevice, _ range: Range<UInt64>, into raw: UnsafeMutableRawBufferPointer,
        _ result: inout VolumeModel
    ) throws {
        for block in (range.lowerBound / 8)..<(range.upperBound / 8) {
            let from = Int(block * 8 - range.lowerBound) * Sector.bytes
            let part = UnsafeMutableRawBufferPointer(rebasing: raw[from..<(from + Format.blockBytes)])
            do {
                try device.read(at: block * UInt64(Format.blockBytes), into: part)
            } catch BlockError.medium(let offset) where offset == block * UInt64(Format.blockBytes) {
                result.unreadable.insert(block)
                coverage.note(.mediumError)
            } catch {
                if disk.isDead { throw error }
                throw fail("reading block \(block) failed: \(error)")
            }
        }
    }

    /// Each medium error has a cause on the way to its block.
    func explain(_ blocks: Set<UInt64>, _ pool: Pool, in dataset: () throws -> Dataset) throws {
        guard !blocks.isEmpty else { return }
        let spoiled = disk.effects.spoiled
        let core = pool.core
        let dataset = try dataset()
        for block in blocks {
            let (recent, root) = core.monitor.withLock {
                (dataset.layers.lazy.compactMap { $0.lookup(block) }.first, dataset.root.pointer)
            }
            if let recent {
                guard spoiled.contains(recent.block) else { throw fail("block \(block) is sound and cannot be read") }
                continue
            }
            guard isSpoiled(root, block, core, spoiled) else {
                throw fail("block \(block) is sound on the way from the root, and cannot be read")
            }
        }
    }

    private func isSpoiled(_ root: NodePointer, _ block: UInt64, _ core: PoolCore, _ spoiled: Set<UInt64>) -> Bool {
        var pointer = root
        for level in stride(from: Format.mapRootLevel, through: 0, by: -1) {
            if pointer.isLost || spoiled.contains(pointer.block) { return true }
            guard !pointer.isNull, let page = try? core.loadPage(pointer) else { return false }
            guard level > 0 else {
                let entry = page[entry: Int(block % Format.leafEntries)]
                return entry.isLost || spoiled.contains(entry.block)
            }
            let leaf = block / Format.leafEntries
            pointer = page[child: Int(leaf >> UInt64(7 * (level - 1))) & 127]
        }
        return false
    }

    /// A scrub finds what readers would meet.
    func checkDamage() throws {
        guard isDamaged, let pool else { return }
        setPlan(nil)
        var damage: [DamageRecord]?
        try attempt("scrub", as: .scrub, isDurable: true, change: { _ in }) { pool in
            let scrub = try pool.scrub()
            while try scrub.step(maxBytes: 1 << 20) {}
            damage = scrub.report.damage
        }
        guard let damage, self.pool != nil else { return }
        if !damage.isEmpty { coverage.note(.damageFoundByScrub) }
        let found = try readAll(pool)
        guard found == model else { throw fail("a read gave other data than was written") }
        if found.hasUnreadable, damage.isEmpty { throw fail("a scrub finds nothing where reads fail") }
    }
}

extension PoolModel {
    var hasUnreadable: Bool {
        volumes.values.contains { !$0.unreadable.isEmpty }
            || snapshots.values.contains { $0.members.values.contains { !$0.unreadable.isEmpty } }
    }
}
