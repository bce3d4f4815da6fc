internal import BlockIO
internal import Synchronization

/// Something that came back from the disk wrong. It was never given to anybody as data.
public struct DamageRecord: Sendable, Equatable {
    public enum Kind: String, Sendable {
        /// A block of a volume or snapshot: reads of it are medium errors until it is written again.
        case data
        /// A page of a volume's map: reads of what it maps are medium errors.
        case map
        /// A page of the allocation map or of the catalog; the pool may not open again.
        case metadata
        /// A batch of the journal that a recovery would need.
        case journal
        /// A copy of the superblock. Others are whole.
        case superblock
    }

    public var kind: Kind
    /// Where it lies in the pool's file or device, in bytes; 0 for what a map lost, and for a map page that a reader of
    /// a volume met.
    public var poolOffset: UInt64
    /// The volume, and the snapshot of it, through which it was found; others may share it.
    public var volume: String?
    public var snapshot: String?
    /// Where it lies in the volume, in bytes, and how much of the volume is concerned.
    public var volumeOffset: UInt64?
    public var lengthBytes: UInt64
    /// Whether it was put right.
    public var isRepaired: Bool
}

extension DamageRecord: CustomStringConvertible {
    public var description: String {
        var place = "\(lengthBytes) bytes at \(poolOffset) of the pool"
        if let volume, let volumeOffset {
            let of = snapshot.map { "snapshot \($0) of volume \(volume)" } ?? "volume \(volume)"
            place = "\(lengthBytes) bytes at \(volumeOffset) of \(of), at \(poolOffset) of the pool"
        }
        let what =
            switch kind {
            case .data: "a data block is not what was written"
            case .map: "a map page is not what was written"
            case .metadata: "a page of the allocation map or catalog is not what was written"
            case .journal: "a batch of the journal is not what was written"
            case .superblock: "a copy of the superblock is not what was written"
            }
        return "\(what): \(place)\(isRepaired ? " (repaired)" : "")"
    }
}

/// What is known to be wrong: bounded, newest last. Guarded by the pool's lock.
struct DamageLedger {
    static let limit = 256

    private(set) var records: [DamageRecord] = []
    /// All that were noted, those forgotten for lack of room too.
    private(set) var total: UInt64 = 0

    mutating func note(_ record: DamageRecord) {
        let known = records.firstIndex {
            $0.kind == record.kind && $0.poolOffset == record.poolOffset
                // What was lost lies nowhere any more; its place in the volume tells it apart.
                && (record.poolOffset > 0
                    || ($0.volume, $0.snapshot, $0.volumeOffset) == (
                        record.volume, record.snapshot, record.volumeOffset
                    ))
        }
        if let known {
            records[known] = record
            return
        }
        total += 1
        if records.count < Self.limit { records.append(record) }
    }

    /// A whole scrub has looked at everything: what it did not find is gone.
    mutating func replace(with found: DamageLedger) { self = found }
}

extension PoolCore {
    /// Notes a wrong block that a read met. Takes the lock.
    func noteDamage(_ source: Source, block: UInt64, physical: UInt64?) {
        monitor.withLock {
            var record = DamageRecord(
                kind: physical == nil ? .map : .data, poolOffset: (physical ?? 0) * UInt64(Format.blockBytes),
                volume: nil, snapshot: nil, volumeOffset: block * UInt64(Format.blockBytes),
                lengthBytes: UInt64(Format.blockBytes), isRepaired: false)
            switch source {
            case .volume(let volume): record.volume = volume.name
            case .member(let snapshot, let dataset):
                record.snapshot = snapshot.name
                record.volume = name(ofVolume: dataset)
            }
            damage.note(record)
        }
    }

    /// A page of a map, or why it cannot be had. It is read again past the system's cache before that is believed: a
    /// cable or a controller may be wrong only once.
    func tryLoading(_ pointer: NodePointer) -> Result<Page, PoolError> {
        var outcome = Result<Page, PoolError>.failure(.damaged("a map page was lost"))
        for attempt in 0..<3 where !pointer.isLost {
            do throws(PoolError) {
                return .success(try loadPage(pointer, uncached: attempt > 0))
            } catch {
                outcome = .failure(error)
            }
        }
        return outcome
    }

    /// In bytes; what lies in no pool at all has the highest offset there is.
    private func poolOffset(of pointer: NodePointer) -> UInt64 {
        let (offset, isBeyond) = pointer.block.multipliedReportingOverflow(by: UInt64(Format.blockBytes))
        return isBeyond ? .max : offset
    }

    /// A page of a map that a checkpoint cannot read. Takes the lock.
    func noteLostPage(_ pointer: NodePointer, level: Int, start: UInt64, dataset number: UInt64) {
        checksumErrors.add(1, ordering: .relaxed)
        let blockBytes = UInt64(Format.blockBytes)
        monitor.withLock {
            let dataset = datasets[number]
            let size = (dataset?.sizeBytes ?? Format.maxVolumeBytes) / blockBytes
            let blocks = min(MapSpan.blocks(level), size > start ? size - start : 0)
            damage.note(
                DamageRecord(
                    kind: .map, poolOffset: poolOffset(of: pointer), volume: dataset.flatMap { name(ofVolume: $0) },
                    snapshot: dataset.flatMap { name(ofSnapshot: $0) }, volumeOffset: start * blockBytes,
                    lengthBytes: blocks * blockBytes, isRepaired: false))
        }
    }

    /// A page of attributes or of an old catalog that leads to others, which are set aside with it. Takes the lock.
    func noteLostStreamPage(_ pointer: NodePointer) {
        checksumErrors.add(1, ordering: .relaxed)
        monitor.withLock {
            damage.note(
                DamageRecord(
                    kind: .metadata, poolOffset: poolOffset(of: pointer), lengthBytes: UInt64(Format.blockBytes),
                    isRepaired: false))
        }
    }

    /// Pages of the allocation map that were met and could not be read. Takes the lock.
    func noteLostBitmaps() {
        for pointer in monitor.withLock({ space.takeNewlyLost() }) { noteLostStreamPage(pointer) }
    }

    /// The snapshot that a dataset is a member of. Called with the lock held.
    func name(ofSnapshot dataset: Dataset) -> String? {
        tables.snapshotOfDataset[dataset.number].flatMap { snapshots[$0]?.name }
    }

    /// The name of the volume whose history a dataset belongs to. Called with the lock held.
    func name(ofVolume dataset: Dataset) -> String? { volumes[dataset.volume]?.name }
}

extension Pool {
    /// What is known to be wrong with the pool's content, at most 256 entries, and how many were found in all.
    public func damage() -> (records: [DamageRecord], total: UInt64) {
        core.noteLostBitmaps()
        return core.monitor.withLock { (core.damage.records, core.damage.total) }
    }
}
