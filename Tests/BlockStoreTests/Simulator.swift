import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// One seeded history: the production store on a simulated disk, compared with a model after every crash.
///
/// A loss of power may lose a suffix of the operations after the last durable one, and nothing else: what is found must
/// equal the model after some operation not before the last durable one. The end of the process alone loses nothing
/// that was acknowledged, where there is a volatile log.
final class Simulator {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    struct Options {
        var operations = 150
        var faults = Faults.crashesOnly
        var plantedBug: PlantedBug?
        /// Most crashes end the process only, and there is always a volatile log.
        var endsProcesses = false

        enum Faults {
            case crashesOnly
            /// Also EIO, ENOSPC and failed syncs.
            case errors
        }
    }

    private let seed: UInt64
    let options: Options
    var generator: SeededGenerator
    var disk: SimulatedDisk
    var pool: Pool?
    var model = PoolModel()
    /// The model after each operation since the last durable one; the first is that one.
    var history: [PoolModel] = [PoolModel()]
    var log: [String] = []
    private var volatileLog: SimulatedLog?
    private let logCapacityBytes: Int
    var logIsSmall: Bool { volatileLog != nil && logCapacityBytes != .max }
    /// So many of the last states in the history may be of an operation that was not acknowledged.
    private var unanswered = 0
    /// The next crash is one of the power.
    var losesPower = false
    /// A sync failed, which can cost what was acknowledged and not flushed.
    private var hasFailed = false
    private var boots: UInt64 = 1
    let isTight: Bool
    private let isSmall: Bool
    private let syncsOften: Bool
    private let reusesBlocksFirst: Bool
    private let writesBackEarly: Bool
    /// Much gathers in the journal between two checkpoints.
    private let hasLongJournal: Bool
    /// Other operations come between, where a second thread could.
    let isInterrupted: Bool
    var interruption = Interruption()
    private var plan: (@Sendable (UInt64, SimulatedDisk.Call) -> SimulatedDisk.Fault?)?
    let reclaimPages: Int
    /// So many that the allocation map has several levels.
    private let hasSmallRegions: Bool
    private let walkPages: Int
    private let keepsLittle: Bool
    private var names = 0
    private var lastRange: (volume: VolumeID, range: Range<UInt64>)?
    private var tags: UInt64 = 1
    var writes: UInt64 = 0
    /// Whether the model's blocks are the pool's, and not only their content.
    private(set) var sharingIsKnown = true
    /// Where snapshots are sent to.
    var replica: Replica?
    private(set) var crashes = 0
    private(set) var refused = 0

    init(seed: UInt64, options: Options = Options()) {
        self.seed = seed
        self.options = options
        generator = SeededGenerator(seed: seed)
        isTight = generator.chance(30)
        isSmall = generator.chance(30)
        reusesBlocksFirst = generator.chance(60)
        syncsOften = generator.chance(20)
        keepsLittle = seed % 2 == 0
        // A step that reaches one leaf looks at five pages.
        reclaimPages = 5 + Int(generator.below(generator.chance(60) ? 3 : 12))
        disk = SimulatedDisk(seed: generator.next(), capacityBytes: isTight ? 7 << 20 : .max)
        writesBackEarly = generator.chance(50)
        isInterrupted = generator.chance(50)
        hasLongJournal = generator.chance(15)
        hasSmallRegions = generator.chance(25)
        walkPages = generator.chance(50) ? 512 : 5 + Int(generator.below(8))
        logCapacityBytes = generator.chance(30) ? 300 + Int(generator.below(3000)) : .max
        if generator.chance(60) || options.endsProcesses { volatileLog = freshLog() }
    }

    private func freshLog() -> SimulatedLog {
        boots += 1
        return SimulatedLog(
            bootID: ObjectID(high: seed, low: boots), capacityBytes: logCapacityBytes,
            isDead: { [disk] in disk.isDead })
    }

    func poolOptions() -> PoolOptions {
        var options = PoolOptions()
        options.maxSizeBytes = isSmall ? 5 << 20 : 24 << 20
        options.journalBytes = 128 << 10
        options.cacheBytes = 64 << 10
        options.overlayEntries = hasLongJournal ? 4000 : 400
        options.hasMaintenanceThread = false
        options.reclaimPagesPerPass = reclaimPages
        options.inlineFrees = reclaimPages % 2 == 0 ? 0 : 64
        options.reusesBlocksFirst = reusesBlocksFirst
        options.earlyWritebackBlocks = writesBackEarly ? 8 : .max
        options.plantedBug = self.options.plantedBug
        options.leastRegionBlocks = hasSmallRegions ? 64 : 256
        options.walkPagesPerStep = walkPages
        options.volatileLogStorage = volatileLog
        // As little in memory as there can be, in half of the histories.
        if keepsLittle {
            options.spaceMapBytes = 0
            options.attributeCacheBytes = 0
        }
        return options
    }

    func run() throws {
        pool = try Pool.create(on: disk, options: poolOptions())
        model.poolBytes = pool!.statistics.sizeBytes
        history = [model]
        for _ in 0..<(options.endsProcesses ? options.operations * 3 / 4 : options.operations) {
            try step()
            if pool == nil { try recover() }
        }
        crash("the end")
        try recover()
        try checkReads()
        try sendAll()
    }

    func fail(_ text: String) -> Failure {
        Failure(description: "seed \(seed): \(text)\n  " + log.suffix(40).joined(separator: "\n  "))
    }

    // MARK: Crashing

    func crash(_ why: String) {
        log.append("crash: \(why)")
        crashes += 1
        abandon()
    }

    /// What a crash does to the process: nothing is written any more, and the memory is gone.
    private func abandon() {
        if let pool { pool.core.monitor.withLock { pool.core.forgetObjects() } }
        pool = nil
    }

    deinit { abandon() }

    private func recover() throws {
        // Nothing that was acknowledged is lost when only processes end.
        var mustHaveAll = volatileLog != nil && !hasFailed
        hasFailed = false
        var opened: Pool?
        while opened == nil {
            if !endProcessOrPower() { mustHaveAll = false }
            if generator.chance(options.endsProcesses ? 60 : 25) { planToDieInRecovery() }
            do {
                opened = try Pool.open(on: disk, options: poolOptions())
            } catch {
                guard disk.isDead else { throw fail("opening failed: \(error)") }
                log.append("crash during recovery")
            }
            if !disk.isDead { setPlan(nil) }
        }
        try compare(opened!, mustHaveAll: mustHaveAll)
    }

    /// Recovery ends at one of its last calls, which are those that write.
    private func planToDieInRecovery() {
        let copy = disk.copy()
        var options = poolOptions()
        options.volatileLogStorage = volatileLog?.handedOver()
        guard let pool = try? Pool.open(on: copy, options: options) else { return }
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        let at = copy.callCount - min(copy.callCount - 1, generator.below(8))
        disk.setPlan { call, _ in call == at ? .powerLoss : nil }
    }

    /// The end of the process alone, which leaves the system's cache and the volatile log, or a loss of power. True for
    /// the former.
    private func endProcessOrPower() -> Bool {
        let endsProcess = generator.chance(options.endsProcesses ? 70 : volatileLog == nil ? 15 : 30)
        defer { losesPower = false }
        if endsProcess, !losesPower {
            log.append("the process ends")
            disk = disk.handedOver()
            volatileLog = volatileLog?.handedOver { [disk] in disk.isDead }
            return true
        }
        log.append("the power ends")
        disk = disk.crashed()
        if let old = volatileLog {
            // Now and then the files are still there, of the run before.
            let fresh = freshLog()
            volatileLog =
                generator.chance(30) ? old.handedOver(bootID: fresh.bootID) { [disk] in disk.isDead } : fresh
        }
        return false
    }

    private func compare(_ opened: Pool, mustHaveAll: Bool) throws {
        // In several stretches where little is kept in memory.
        let memory = keepsLittle ? 10 * 256 * OwnerTable.bytesPerBlock : PoolChecker.defaultMemoryBytes
        let report = PoolChecker.check(opened, memoryBytes: memory)
        guard report.isSound else { throw fail("after recovery: \(report.problems)") }
        let found = try readAll(opened)
        guard let index = history.lastIndex(of: found) else {
            throw fail(difference(found))
        }
        guard !mustHaveAll || index >= history.count - 1 - unanswered else {
            throw fail("the process ended and acknowledged operations are gone: \(index) of \(history.count - 1)")
        }
        unanswered = 0
        log.append("recovered to \(index) of \(history.count - 1)")
        // Which of several states with equal content it is cannot be seen; then the model does not know which blocks
        // are shared.
        let matches = history.filter { $0 == found }
        sharingIsKnown = sharingIsKnown && matches.allSatisfy { $0.hasSameBlocks(as: history[index]) }
        model = history[index]
        history = [model]
        pool = opened
    }

    private func difference(_ found: PoolModel) -> String {
        var text = "what was recovered equals no state from the last durable one on (\(history.count) states)"
        let last = history[history.count - 1]
        text += "; volumes \(found.volumes.count)/\(last.volumes.count)"
        text += ", snapshots \(found.snapshots.count)/\(last.snapshots.count)"
        for (id, volume) in found.volumes {
            guard let expected = last.volumes[id] else { continue }
            let changed = Set(volume.sectors.keys).union(expected.sectors.keys)
                .filter { volume.sectors[$0] != expected.sectors[$0] }.sorted()
            if !changed.isEmpty { text += "; volume \(id) differs at sectors \(changed.prefix(20))" }
        }
        return text
    }

    // MARK: Reading back

    /// Places that are used, in sectors: within a leaf of 2048, over the borders of leaves and of the pages above them,
    /// far away.
    private static let allPlaces: [Range<UInt64>] = [
        0..<640, 1984..<2112, (128 * 2048 - 64)..<(128 * 2048 + 128), (16384 * 2048 - 64)..<(16384 * 2048 + 64),
        ((64 << 20) * 2048 - 128)..<((64 << 20) * 2048),
    ]

    /// Sectors that an operation may touch in a volume.
    static func places(sizeBytes: UInt64) -> [Range<UInt64>] {
        allPlaces.map { $0.clamped(to: 0..<(sizeBytes / 512)) }.filter { !$0.isEmpty }
    }

    /// The place of the last write, where that was to this volume.
    func lastPlace(_ volume: VolumeID) -> Range<UInt64>? {
        guard let last = lastRange, last.volume == volume else { return nil }
        return Self.places(sizeBytes: model.volumes[volume]!.sizeBytes).first { $0.overlaps(last.range) }
    }

    func readModel(_ device: any BlockDevice, only place: Range<UInt64>? = nil) throws -> VolumeModel {
        var result = VolumeModel(sizeBytes: device.sizeBytes)
        for range in Self.places(sizeBytes: device.sizeBytes) where place ?? range == range {
            var bytes = [UInt8](repeating: 0, count: range.count * 512)
            try bytes.withUnsafeMutableBytes { raw in
                do {
                    try device.read(at: range.lowerBound * 512, into: raw)
                } catch {
                    throw fail("reading sectors \(range) failed: \(error)")
                }
                for (index, sector) in range.enumerated() {
                    let part = UnsafeRawBufferPointer(rebasing: raw[(index * 512)..<((index + 1) * 512)])
                    guard let tag = Sector.tag(part) else { throw fail("sector \(sector) is torn") }
                    if tag != 0 { result.sectors[sector] = tag }
                }
            }
        }
        return result
    }

    private func readAll(_ pool: Pool) throws -> PoolModel {
        var result = PoolModel()
        result.poolBytes = pool.statistics.sizeBytes
        for volume in pool.volumes() {
            result.volumes[volume.id] = try readModel(try pool.device(of: volume.id))
            if let origin = volume.clonedFrom { result.origins[volume.id] = origin.snapshot }
        }
        for snapshot in pool.snapshots() {
            var members: [VolumeID: VolumeModel] = [:]
            for member in snapshot.members {
                members[member.volume] = try readModel(try pool.device(of: snapshot.id, volume: member.volume))
            }
            result.snapshots[snapshot.id] = SnapshotModel(
                name: snapshot.name, members: members, attributes: snapshot.attributes, kind: snapshot.kind)
        }
        return result
    }

    func checkReads() throws {
        setPlan(nil)
        guard let pool, try readAll(pool) == model else { throw fail("a read gave other data than was written") }
        try checkProvisioning(pool)
    }

    // MARK: Operations

    /// Runs one operation on pool and model. The model changes when the operation succeeds, or when power was lost
    /// during it; then either outcome is allowed.
    /// `stages` are states on the way to what `change` says, of an operation that is several for a crash.
    func attempt(
        _ name: String, isDurable: Bool, isInterruptible: Bool = false, stages: [(inout PoolModel) -> Void] = [],
        change: (inout PoolModel) -> Void, _ body: (Pool) throws -> Void
    )
        throws
    {
        guard let pool else { return }
        log.append(name)
        let first = history.count - 1
        let durable = interruption.durablePoints
        beginInterruptions(pool, isInterruptible, changes: !isDurable)
        do {
            try body(pool)
            try endInterruptions(isInterruptible)
            guard self.pool != nil else { return }
            if !isDurable { append(stages) }
            change(&model)
            // What came between is after it, and what that made durable stays so.
            if !isDurable || interruption.durablePoints > durable {
                history.append(model)
            } else {
                history = isInterruptible ? history[first...] + [model] : [model]
            }
            if isDurable { interruption.durablePoints += 1 }
        } catch let error as Failure {
            throw error
        } catch {
            try endInterruptions(isInterruptible)
            log.append("  -> \(error)")
            refused += 1
            guard self.pool != nil else { return }
            var changed = model
            change(&changed)
            if disk.isDead {
                append(stages)
                history.append(changed)
                unanswered = stages.count + 1
                crash("power loss")
            } else if case .readOnly(let reason) = pool.statistics.state {
                if options.faults == .crashesOnly || reason.contains("damaged") {
                    throw fail("the pool failed by itself: \(reason)")
                }
                append(stages)
                history.append(changed)
                unanswered = stages.count + 1
                hasFailed = true
                crash("the pool failed")
            } else if options.faults == .crashesOnly, !isNoSpace(error) {
                throw fail("\(name) failed: \(error)")
            }
        }
    }

    private func append(_ stages: [(inout PoolModel) -> Void]) {
        var changed = model
        for stage in stages {
            stage(&changed)
            history.append(changed)
        }
    }

    private func isNoSpace(_ error: any Error) -> Bool {
        (error as? BlockError) == .noSpace || (error as? PoolError) == .noSpace
    }

    /// What goes wrong, from now on.
    func setPlan(_ plan: (@Sendable (UInt64, SimulatedDisk.Call) -> SimulatedDisk.Fault?)?) {
        self.plan = plan
        disk.setPlan(plan)
    }

    /// Nothing goes wrong meanwhile.
    func withoutPlan(_ body: () -> Void) {
        disk.setPlan(nil)
        body()
        disk.setPlan(plan)
    }

    private func planFault() {
        let base = disk.callCount
        let at = base + 1 + generator.below(40)
        if generator.chance(25) {
            setPlan { call, _ in call >= at ? .powerLoss : nil }
        } else if options.faults == .errors, generator.chance(30) {
            let kind = generator.below(3)
            setPlan { call, kindOfCall in
                guard call >= at else { return nil }
                switch (kind, kindOfCall) {
                case (0, .sync): return call < at + 20 ? .fail(errno: 5) : nil
                case (1, .write): return call == at ? .fail(errno: 28) : nil
                case (2, .read), (2, .write): return call == at ? .fail(errno: 5) : nil
                default: return nil
                }
            }
        } else {
            setPlan(nil)
        }
    }

    /// What follows is a long batch; now and then it is torn.
    private func planToDieInCommit() {
        guard !interruption.isRunning, generator.chance(20) else { return }
        let at = disk.callCount + 1 + generator.below(3)
        setPlan { call, _ in call >= at ? .powerLoss : nil }
    }

    private func step() throws {
        if generator.chance(20) { planFault() }
        if generator.chance(3) { try checkInvariants() }
        if writesBackEarly { pool?.core.writeBackEarly() }
        if generator.chance(options.endsProcesses ? 5 : 2) { return crash("at once") }
        let volumes = model.volumes.keys.sorted { $0.description < $1.description }
        guard let volume = volumes.isEmpty ? nil : volumes[Int(generator.below(UInt64(volumes.count)))] else {
            return try createVolume()
        }
        var choice = generator.below(100)
        // Attributes fill the journal and need no map pages, so that no checkpoint comes for their sake.
        if hasLongJournal, (42..<93).contains(choice), !model.snapshots.isEmpty, generator.chance(80) { choice = 94 }
        switch choice {
        case 0..<42: try write(volume)
        case 42..<46: try unmap(volume)
        case 46..<48: try generator.chance(70) ? unmapParts(volume) : rewrite(volume)
        case 48..<50: try readUnderWay(volume)
        case 50..<55: try compareAndWrite(volume)
        case 55..<65: try isInterrupted && generator.chance(40) ? commitUnderLoad(volume) : flush(volume)
        case 65..<74: try snapshot(volumes)
        case 74..<80: try deleteSnapshot()
        case 80..<83: try clone()
        case 83..<84: try promote()
        case 84..<88: try revert()
        case 88..<90: try createVolume()
        case 90..<92: try deleteVolume(volume)
        case 92..<94: try resize(volume)
        case 94..<95: try setAttributes()
        case 95..<96:
            switch generator.below(10) {
            case 0..<3: try checkReads()
            case 3..<5: try checkAccounting()
            default: try measure()
            }
        case 96..<97: try reopen()
        case 97..<98: try checkpoint(volume)
        case 98..<99: try generator.chance(50) ? diff() : send()
        default: try generator.chance(50) ? grow() : scrub()
        }
    }

    func pickRange(_ volume: VolumeID, aligned: Bool) -> Range<UInt64>? {
        let places = Self.places(sizeBytes: model.volumes[volume]!.sizeBytes)
        guard !places.isEmpty else { return nil }
        // Often the same blocks again.
        if aligned, let last = lastRange, last.volume == volume, generator.chance(interruption.repeatPercent),
            places.contains(where: { $0.lowerBound <= last.range.lowerBound && last.range.upperBound <= $0.upperBound })
        {
            return last.range
        }
        let place = places[Int(generator.below(UInt64(places.count)))]
        let unit: UInt64 = aligned ? 8 : 1
        let total = UInt64(place.count)
        let first = generator.below(total / unit) * unit
        let limit = min(total - first, aligned ? (generator.chance(15) ? 600 : 64) : 24)
        let count = max(unit, generator.below(limit + 1) / unit * unit)
        let range = (place.lowerBound + first)..<(place.lowerBound + first + min(count, total - first))
        if aligned { lastRange = (volume, range) }
        return range
    }

    private func nextTag() -> UInt64 {
        tags += 1
        return tags << 40
    }

    func write(_ volume: VolumeID, mayBeDurable: Bool = true) throws {
        let isAligned = generator.chance(70) || interruption.repeatPercent > 25
        guard let range = pickRange(volume, aligned: isAligned) else { return }
        let tag = generator.chance(10) ? 0 : nextTag()
        // Zeros over zeros would make a new block that looks like the old one.
        if tag == 0, !range.contains(where: { model.volumes[volume]!.sectors[$0] != nil }) { return }
        let isDurable = mayBeDurable && generator.chance(syncsOften ? 60 : 10)
        writes += 1
        let serial = writes
        let bytes = Sector.run(range, tag: tag)
        try attempt(
            "write \(volume.description.prefix(4)) \(range) \(tag >> 40) \(isDurable ? "durable" : "")",
            isDurable: isDurable, isInterruptible: !isDurable,
            change: { $0.volumes[volume]!.write(range, tag: tag, serial: serial) },
            { pool in
                try pool.device(of: volume).write(
                    bytes, at: range.lowerBound * 512, durability: isDurable ? .durable : .cached)
            })
    }

    func unmap(_ volume: VolumeID) throws {
        if generator.chance(15) {
            let size = model.volumes[volume]!.sizeBytes
            return try attempt(
                "unmap all of \(volume.description.prefix(4))", isDurable: false,
                change: { $0.volumes[volume]!.unmap(0..<(size / 512)) },
                { try $0.device(of: volume).unmap(at: 0, lengthBytes: size) })
        }
        guard let range = generator.chance(25) ? pickStretch(volume) : pickRange(volume, aligned: true) else { return }
        try attempt(
            "unmap \(volume.description.prefix(4)) \(range)", isDurable: false,
            change: { $0.volumes[volume]!.unmap(range) },
            { try $0.device(of: volume).unmap(at: range.lowerBound * 512, lengthBytes: UInt64(range.count) * 512) })
    }

    private func compareAndWrite(_ volume: VolumeID) throws {
        guard let range = pickRange(volume, aligned: false) else { return }
        let sectors = model.volumes[volume]!.sectors
        var expected: [UInt8] = []
        for sector in range {
            var bytes = [UInt8](repeating: 0, count: 512)
            bytes.withUnsafeMutableBytes { Sector.fill($0, tag: sectors[sector] ?? 0) }
            expected += bytes
        }
        let tag = nextTag()
        let replacement = Sector.run(range, tag: tag)
        writes += 1
        let serial = writes
        let spoils = generator.chance(30)
        // Often the very last byte.
        let spoilt = generator.chance(30) ? expected.count - 1 : Int(generator.below(UInt64(expected.count)))
        if spoils { expected[spoilt] ^= 0xff }
        try attempt(
            "compare and write \(volume.description.prefix(4)) \(range) \(tag >> 40) \(spoils ? "(differs)" : "")",
            isDurable: false,
            change: { if !spoils { $0.volumes[volume]!.write(range, tag: tag, serial: serial) } },
            { pool in
                do {
                    let device = try pool.device(of: volume)
                    try expected.withUnsafeBytes { old in
                        try replacement.withUnsafeBytes { new in
                            try device.compareAndWrite(
                                at: range.lowerBound * 512, expected: old, replacement: new, durability: .cached)
                        }
                    }
                    if spoils { throw self.fail("a comparison with other data succeeded") }
                } catch BlockError.miscompare where spoils {
                }
            })
    }

    func flush(_ volume: VolumeID) throws {
        if isInterrupted { planToDieInCommit() }
        let before = interruption.count
        try attempt(
            "flush", isDurable: true, isInterruptible: true, change: { _ in }, { try $0.device(of: volume).flush() })
        guard interruption.count > before, !interruption.isRunning, pool != nil else { return }
        // What came between must not count as flushed.
        switch generator.below(3) {
        case 0:
            let at = disk.callCount + 1 + generator.below(3)
            setPlan { call, _ in call >= at ? .powerLoss : nil }
            try attempt("flush", isDurable: true, change: { _ in }, { try $0.device(of: volume).flush() })
        case 1:
            for _ in 0..<3 where pool != nil { try write(volume, mayBeDurable: false) }
            if pool != nil { crash("after a flush") }
        default: break
        }
    }

    /// Identifiers follow from the seed too, so that a history can be replayed.
    func newID() -> String {
        let digits = Array(
            String(generator.next() | 1 << 63, radix: 16) + String(generator.next() | 1 << 63, radix: 16))
        return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(digits[$0]) }.joined(separator: "-")
    }

    func newName(_ prefix: String) -> String {
        // The name of something that was deleted may come again.
        if names > 0, generator.chance(20), let pool, replica == nil {
            let name = "\(prefix)\(1 + generator.below(UInt64(names)))"
            if !pool.hasSnapshot(named: name), !pool.volumes().contains(where: { $0.name == name }) { return name }
        }
        names += 1
        return "\(prefix)\(names)"
    }

    private func createVolume() throws {
        guard model.volumes.count < 4 else { return }
        let id = VolumeID(newID())!
        let sizes: [UInt64] = [2 << 20, 200 << 20, 1 << 40, 64 << 40]
        let size = sizes[Int(generator.below(4))]
        let name = newName("v")
        try attempt(
            "create \(id.description.prefix(4)) \(name)", isDurable: true,
            change: { $0.create(id, sizeBytes: size) },
            { _ = try $0.createVolume(id: id, name: name, sizeBytes: size) })
    }

    private func deleteVolume(_ volume: VolumeID) throws {
        guard !model.snapshots.values.contains(where: { $0.members[volume] != nil }) else {
            #expect(throws: PoolError.self) { try pool!.deleteVolume(volume) }
            return
        }
        try attempt(
            "delete volume \(volume.description.prefix(4))", isDurable: true,
            change: { $0.delete(volume) },
            { try $0.deleteVolume(volume) })
    }

    func resize(_ volume: VolumeID) throws {
        // Some end within a place that is used, in the middle of a leaf.
        let sizes: [UInt64] = [
            2 << 20, 129 << 20, 200 << 20, 64 << 40, 20 << 12, 258 << 12, (128 << 20) - (3 << 12),
            (128 << 20) + (1 << 12),
        ]
        let size = sizes[Int(generator.below(generator.chance(50) ? 4 : 8))]
        try attempt(
            "resize \(volume.description.prefix(4)) to \(size)", isDurable: true,
            change: { $0.volumes[volume]!.resize(size) },
            { try $0.resizeVolume(volume, sizeBytes: size) })
    }

    func snapshot(_ volumes: [VolumeID]) throws {
        guard model.snapshots.count < 8 else { return }
        let members = volumes.filter { _ in generator.chance(60) }
        guard !members.isEmpty else { return }
        let id = SnapshotID(newID())!
        let name = newName("s")
        let attributes = [UInt8](repeating: UInt8(truncatingIfNeeded: names), count: Int(generator.below(6000)))
        planToDieInCommit()
        try attempt(
            "snapshot \(id.description.prefix(4)) \(name) of \(members.count)", isDurable: true,
            change: { $0.snapshot(members, as: id, name: name, attributes: attributes, kind: .user) },
            { _ = try $0.createSnapshot(id: id, name: name, volumes: members, attributes: attributes) })
    }

    func pickSnapshot() -> SnapshotID? {
        let all = model.snapshots.keys.sorted { $0.description < $1.description }
        return all.isEmpty ? nil : all[Int(generator.below(UInt64(all.count)))]
    }

    /// Often with a crash soon after it, when what it freed is used again and nothing was synced since.
    private func checkpoint(_ volume: VolumeID) throws {
        try maintain()
        guard generator.chance(50) else { return }
        for _ in 0...generator.below(4) where pool != nil { try write(volume) }
        if pool != nil { crash("after a checkpoint") }
    }

    func maintain() throws {
        try attempt(
            "maintain", isDurable: true, isInterruptible: true, change: { _ in },
            { pool in
                pool.core.writeBackEarly()
                try pool.maintain()
            })
    }

    /// Often the one that a head stands on, with writes between the steps of its reclaim.
    private func deleteSnapshot() throws {
        var chosen = pickSnapshot()
        let heads = model.heads.keys.sorted { $0.description < $1.description }.filter {
            model.heads[$0]!.parent != nil
        }
        var volume: VolumeID?
        if !heads.isEmpty, generator.chance(50) {
            volume = heads[Int(generator.below(UInt64(heads.count)))]
            chosen = model.heads[volume!]!.parent!.snapshot
        }
        guard let chosen else { return }
        try delete(chosen)
        guard generator.chance(50) else { return }
        for _ in 0...generator.below(3) {
            let volumes = model.volumes.keys.sorted { $0.description < $1.description }
            guard pool != nil, !volumes.isEmpty else { return }
            try maintain()
            let target = volume ?? volumes[Int(generator.below(UInt64(volumes.count)))]
            for _ in 0..<3 where pool != nil && model.volumes[target] != nil { try write(target) }
        }
    }

    func delete(_ id: SnapshotID) throws {
        guard !model.origins.values.contains(id) else {
            #expect(throws: PoolError.self) { try pool!.deleteSnapshot(id) }
            return
        }
        try attempt(
            "delete snapshot \(id.description.prefix(4))", isDurable: true, change: { $0.delete(id) },
            { try $0.deleteSnapshot(id) })
    }

    func setAttributes() throws {
        guard let id = pickSnapshot() else { return }
        let attributes = [UInt8](repeating: UInt8(truncatingIfNeeded: tags), count: Int(generator.below(7000)))
        planToDieInCommit()
        try attempt(
            "set attributes of \(id.description.prefix(4))", isDurable: true,
            change: { $0.snapshots[id]!.attributes = attributes },
            { try $0.setAttributes(of: id, attributes) })
    }

    func clone() throws {
        guard model.volumes.count < 5, let snapshot = pickSnapshot() else { return }
        let members = model.snapshots[snapshot]!.members
        let source = members.keys.sorted { $0.description < $1.description }[0]
        let id = VolumeID(newID())!
        let name = newName("c")
        try attempt(
            "clone \(snapshot.description.prefix(4)) as \(id.description.prefix(4))", isDurable: true,
            change: { $0.clone(snapshot, source, as: id) },
            { _ = try $0.clone(snapshot: snapshot, volume: source, newID: id, name: name) })
    }

    func revert() throws {
        guard model.snapshots.count < 10, let snapshot = pickSnapshot() else { return }
        let members = model.snapshots[snapshot]!.members
        let volumes = members.keys.filter { model.volumes[$0] != nil }.sorted { $0.description < $1.description }
        guard !volumes.isEmpty else { return }
        let kept = SnapshotID(newID())!
        let name = newName("k")
        try attempt(
            "revert to \(snapshot.description.prefix(4)) keeping \(kept.description.prefix(4))", isDurable: true,
            change: { model in
                model.snapshot(volumes, as: kept, name: name, attributes: [], kind: .beforeRevert)
                model.revert(volumes, to: snapshot)
            },
            { _ = try $0.revert(volumes: volumes, to: snapshot, keepAs: kept, keepName: name, attributes: []) })
    }

    /// What was acknowledged before a close ended is there, whether it was flushed or not.
    private func reopen() throws {
        try attempt("close", isDurable: true, isInterruptible: true, change: { _ in }, { try $0.close() })
        guard pool != nil else { return }
        history = [model]
        setPlan(nil)
        pool = nil
        try recover()
    }
}
