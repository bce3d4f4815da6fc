import BlockIO
import Glibc
import Simulation
import Testing

@testable import BlockStore

/// What was done, a line for each operation; what is nested is one deeper.
struct HistoryLog {
    private(set) var lines: [String] = []
    /// Printed at once, so that it is there where the process ends in the middle.
    var isPrinted = false

    mutating func append(_ line: String) {
        lines.append(line)
        guard isPrinted else { return }
        print("\(lines.count)  \(line)")
        fflush(nil)
    }
}

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
            /// Also writes that are lost or go elsewhere though they succeed, and rot.
            case lies
        }
    }

    private let seed: UInt64
    private let surroundings: Surroundings
    let options: Options
    var generator: SeededGenerator
    var disk: SimulatedDisk
    var pool: Pool?
    var model = PoolModel()
    /// The model after each operation since the last durable one; the first is that one.
    var history: [PoolModel] = [PoolModel()]
    var log = HistoryLog()
    private var volatileLog: SimulatedLog?
    /// Left by a process, while another one has the pool open without it.
    private var forgottenLog: SimulatedLog?
    private let forgetsLogs: Bool
    /// Of real files, in some histories.
    private var logPlace: SimulatedLog.Place?
    private var logDirectory: VolatileLogTests.MemoryDirectory?
    private let logCapacityBytes: Int
    /// A change that comes between might have to wait for room in the log.
    var logIsTight: Bool { volatileLog.map { logCapacityBytes != .max && $0.freeBytes < 1000 } ?? false }
    /// The next crash is one of the power.
    var losesPower = false
    /// Nothing was done since the pool was opened.
    private var isJustOpened = false
    /// So many of the last states in the history may be of an operation that was not acknowledged.
    private var unanswered = 0
    /// A sync failed, which can cost what was acknowledged and not flushed.
    private var hasFailed = false
    private var boots: UInt64 = 1
    private var lastBootID: ObjectID { ObjectID(high: seed, low: boots) }
    /// The machine runs since the log was written.
    private var canReplay = true
    let isTight: Bool
    private let isSmall: Bool
    let syncsOften: Bool
    private let reusesBlocksFirst: Bool
    let writesBackEarly: Bool
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
    let snapshotLimit: Int
    /// Clones of clones, and snapshots of those.
    let hasDeepClones: Bool
    private let keepsLittle: Bool
    var names = 0
    var lastRange: (volume: VolumeID, range: Range<UInt64>)?
    var tags: UInt64 = 1
    var writes: UInt64 = 0
    /// Whether the model's blocks are the pool's, and not only their content.
    private(set) var sharingIsKnown = true
    /// Where snapshots are sent to.
    var replica: Replica?
    var coverage = Coverage()
    /// The pool cannot be opened any more, as it should be.
    var isOver = false

    init(seed: UInt64, options: Options = Options()) {
        self.seed = seed
        self.options = options
        surroundings = .seeded(seed)
        generator = SeededGenerator(seed: seed)
        let hasLimit = generator.chance(30)
        isTight = hasLimit
        isSmall = generator.chance(30)
        reusesBlocksFirst = generator.chance(60)
        syncsOften = generator.chance(20)
        keepsLittle = seed % 2 == 0
        // A step that reaches one leaf looks at five pages.
        reclaimPages = 5 + Int(generator.below(generator.chance(60) ? 3 : 12))
        // Full after a few writes, in some.
        let mayBeVeryTight = generator.chance(30)
        let isVeryTight = hasLimit && mayBeVeryTight
        let veryLittleBytes = (5 << 19) + generator.below(1 << 20)
        let capacityBytes = isVeryTight ? veryLittleBytes : hasLimit ? 7 << 20 : UInt64.max
        disk = SimulatedDisk(seed: generator.next(), capacityBytes: capacityBytes)
        writesBackEarly = generator.chance(50)
        // Who waits for room would wait for the operation that it interrupts.
        let mayBeInterrupted = generator.chance(50)
        isInterrupted = mayBeInterrupted && !isVeryTight
        hasLongJournal = generator.chance(15)
        hasSmallRegions = generator.chance(25)
        walkPages = generator.chance(50) ? 512 : 5 + Int(generator.below(8))
        forgetsLogs = generator.chance(30)
        snapshotLimit = generator.chance(4) ? 30 : 8
        hasDeepClones = generator.chance(8)
        logCapacityBytes = generator.chance(40) ? 300 + Int(generator.below(3000)) : .max
        let hasLog = generator.chance(60) || options.endsProcesses
        let usesTmpfs = options.endsProcesses && generator.chance(6)
        if hasLog {
            let poolID = newObjectID()
            if usesTmpfs, let directory = try? VolatileLogTests.MemoryDirectory() {
                logDirectory = directory
                logPlace = .init(directory: directory.path, poolID: poolID)
            }
            volatileLog = freshLog()
        }
    }

    private func freshLog() -> SimulatedLog {
        SimulatedLog(
            bootID: lastBootID, capacityBytes: logCapacityBytes, place: logPlace,
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
        options.surroundings = surroundings
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
        defer { coverage.add(disk.effects) }
        for _ in 0..<(options.endsProcesses ? options.operations * 3 / 4 : options.operations) {
            try step()
            if isOver { return }
            if pool == nil { try recover() }
            if isOver { return }
        }
        crash("the end")
        try recover()
        if isOver { return }
        try checkReads()
        try checkDamage()
        if disk.effects.spoiled.isEmpty { try sendAll() }
    }

    func fail(_ text: String) -> Failure {
        Failure(description: "seed \(seed): \(text)\n  " + log.lines.suffix(40).joined(separator: "\n  "))
    }

    /// A digest of all that was done, and of all calls that reached a disk.
    var trace: UInt64 {
        var trace = disk.trace ^ (replica?.disk.trace ?? 0)
        for line in log.lines { for byte in line.utf8 { trace = (trace ^ UInt64(byte)) &* 0x100_0000_01b3 } }
        return trace
    }

    // MARK: Crashing

    func crash(_ why: String) {
        log.append("crash: \(why)")
        abandon()
    }

    /// What a crash does to the process: nothing is written any more, and the memory is gone.
    private func abandon() {
        if let pool { pool.core.monitor.withLock { pool.core.forgetObjects() } }
        pool = nil
    }

    deinit { abandon() }

    func recover() throws {
        // Nothing that was acknowledged is lost when only processes end.
        var mustHaveAll = volatileLog != nil && !hasFailed
        hasFailed = false
        var opened: Pool?
        while opened == nil {
            if let log = volatileLog, log.refusals > 0 { coverage.note(.logFull) }
            if let log = volatileLog, log.isTorn { coverage.note(.logTorn) }
            if !endProcessOrPower() { mustHaveAll = false }
            if forgetOrFindLog() { mustHaveAll = false }
            if generator.chance(options.endsProcesses ? 60 : 25) { planToDieInRecovery() }
            do {
                opened = try Pool.open(on: disk, options: poolOptions())
                // Else nothing of what follows is about the log.
                if volatileLog != nil, opened?.statistics.volatileLog != .active, !disk.isDead {
                    throw fail("the log was not begun: \(opened!.statistics.volatileLog)")
                }
            } catch let failure as Failure {
                throw failure
            } catch {
                guard disk.isDead else {
                    guard isDamaged else { throw fail("opening failed: \(error)") }
                    return try endRefused(error)
                }
                log.append("crash during recovery")
                coverage.note(.crashInRecovery)
            }
            if !disk.isDead { setPlan(nil) }
        }
        if opened!.statistics.recordsFromVolatileLog > 0 {
            coverage.note(.logReplayed)
            guard canReplay else { throw fail("a log of another run of the machine was replayed") }
        }
        try compare(opened!, mustHaveAll: mustHaveAll)
        isJustOpened = true
    }

    /// Recovery ends at one of its last calls, which are those that write.
    private func planToDieInRecovery() {
        let copy = disk.copy()
        var options = poolOptions()
        options.volatileLogStorage = volatileLog?.copy()
        guard let pool = try? Pool.open(on: copy, options: options) else { return }
        pool.core.monitor.withLock { pool.core.forgetObjects() }
        let at = copy.callCount - min(copy.callCount - 1, generator.below(8))
        disk.setPlan { call, _ in call == at ? .powerLoss : nil }
    }

    /// The end of the process alone, which leaves the system's cache and the volatile log, or a loss of power. True for
    /// the former.
    private func endProcessOrPower() -> Bool {
        let endsProcess = generator.chance(options.endsProcesses ? 70 : 30)
        defer { losesPower = false }
        if endsProcess, !losesPower {
            log.append("the process ends")
            coverage.note(.processEnd)
            disk = disk.handedOver()
            canReplay = true
            volatileLog = volatileLog?.handedOver { [disk] in disk.isDead }
            return true
        }
        log.append("the power ends")
        coverage.note(.powerLoss)
        canReplay = false
        boots += 1
        disk = disk.crashed()
        if let old = volatileLog {
            // Now and then the files are still there, of the run before.
            if generator.chance(30) {
                coverage.note(.logOfEarlierRun)
                volatileLog = old.handedOver(bootID: lastBootID) { [disk] in disk.isDead }
            } else {
                old.letGo()
                volatileLog = freshLog()
            }
        }
        return false
    }

    /// Now and then somebody opens the pool without the log, and its files are there again later. True when the log is
    /// not the one that the last process wrote.
    private func forgetOrFindLog() -> Bool {
        if let found = forgottenLog {
            // With another log between the two.
            if volatileLog == nil, generator.chance(60) {
                log.append("the pool gets another log")
                volatileLog = freshLog()
                return true
            }
            log.append("the log of an earlier process is there again")
            coverage.note(.logFoundAgain)
            forgottenLog = nil
            volatileLog = found.handedOver(bootID: lastBootID) { [disk] in disk.isDead }
            return true
        }
        guard volatileLog != nil, logPlace == nil, forgetsLogs, generator.chance(40) else { return false }
        log.append("the pool is opened without its log")
        forgottenLog = volatileLog
        volatileLog = nil
        return true
    }

    /// The process is killed in the middle of a note in the log.
    private func planToDieInLog() {
        volatileLog?.planDeath(after: Int(generator.below(12)), seed: generator.next()) {
            [disk] in disk.kill()
        }
    }

    private func compare(_ opened: Pool, mustHaveAll: Bool) throws {
        // In several stretches where little is kept in memory.
        let memory = keepsLittle ? 10 * 256 * OwnerTable.bytesPerBlock : PoolChecker.defaultMemoryBytes
        let report = PoolChecker.check(opened, memoryBytes: memory)
        guard report.isSound || isDamaged else { throw fail("after recovery: \(report.problems)") }
        let found = try readAll(opened)
        if report.isSound, found.hasUnreadable { throw fail("the checker finds nothing where reads fail") }
        if !report.isSound { coverage.note(.damageFoundByCheck) }
        guard let index = history.lastIndex(of: found) else {
            throw fail(difference(found))
        }
        coverage.note(index < history.count - 1 ? .unflushedLost : .unflushedKept, history.count > 1 ? 1 : 0)
        // The replay of a log ends at data that the disk has spoiled.
        guard !mustHaveAll || isDamaged || index >= history.count - 1 - unanswered else {
            throw fail(
                "the process ended and acknowledged operations are gone: \(index) of \(history.count - 1), with "
                    + "\(opened.statistics.recordsFromVolatileLog) records from the log")
        }
        unanswered = 0
        let statistics = opened.statistics
        log.append(
            "recovered to \(index) of \(history.count - 1), \(statistics.recordsFromVolatileLog) records from the log, "
                + "which is \(statistics.volatileLog)")
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
        text += "\n  the last durable one: " + Self.difference(found, history[0])
        if history.count > 1 { text += "\n  the newest one: " + Self.difference(found, history[history.count - 1]) }
        return text + "\n "
    }

    private static func difference(_ found: PoolModel, _ expected: PoolModel) -> String {
        var parts: [String] = []
        func name(_ id: any CustomStringConvertible) -> String { String(id.description.prefix(4)) }
        func add(_ what: String, _ found: VolumeModel, _ expected: VolumeModel) {
            if found.sizeBytes != expected.sizeBytes {
                parts.append("\(what) has \(found.sizeBytes) bytes for \(expected.sizeBytes)")
            }
            let changed = Set(found.sectors.keys).union(expected.sectors.keys)
                .filter { found.sectors[$0] != expected.sectors[$0] && !found.unreadable.contains($0 / 8) }.sorted()
            guard let first = changed.first else { return }
            let (was, be) = (found.sectors[first] ?? 0, expected.sectors[first] ?? 0)
            parts.append(
                "\(what) differs at \(changed.count) sectors, first \(first) with write \(was >> 40) for \(be >> 40)"
            )
        }
        func compare<Key: Hashable & CustomStringConvertible>(_ kind: String, _ found: Set<Key>, _ expected: Set<Key>) {
            let (more, less) = (found.subtracting(expected), expected.subtracting(found))
            if !more.isEmpty { parts.append("\(kind) too many: \(more.map(name))") }
            if !less.isEmpty { parts.append("\(kind) too few: \(less.map(name))") }
        }
        compare("volumes", Set(found.volumes.keys), Set(expected.volumes.keys))
        compare("snapshots", Set(found.snapshots.keys), Set(expected.snapshots.keys))
        for (id, volume) in found.volumes.sorted(by: { name($0.key) < name($1.key) }) {
            if let other = expected.volumes[id] { add("volume \(name(id))", volume, other) }
        }
        for (id, snapshot) in found.snapshots.sorted(by: { name($0.key) < name($1.key) }) {
            guard let other = expected.snapshots[id] else { continue }
            compare("members of \(name(id))", Set(snapshot.members.keys), Set(other.members.keys))
            for (member, volume) in snapshot.members {
                if let other = other.members[member] { add("snapshot \(name(id)) of \(name(member))", volume, other) }
            }
            if snapshot.attributes != other.attributes { parts.append("attributes of \(name(id)) differ") }
        }
        if found.origins != expected.origins { parts.append("clones stand on other snapshots") }
        return parts.isEmpty ? "no difference" : parts.joined(separator: "; ")
    }

    // MARK: Reading back

    static let leafSectors: UInt64 = (1 << 20) / 512
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
                    // The process was killed in something that came between.
                    if disk.isDead { throw error }
                    guard isDamaged else { throw fail("reading sectors \(range) failed: \(error)") }
                    try readBlocks(of: device, range, into: raw, &result)
                }
                for (index, sector) in range.enumerated() where !result.unreadable.contains(sector / 8) {
                    let part = UnsafeRawBufferPointer(rebasing: raw[(index * 512)..<((index + 1) * 512)])
                    guard let tag = Sector.tag(part) else { throw fail("sector \(sector) is torn") }
                    if tag != 0 { result.sectors[sector] = tag }
                }
            }
        }
        return result
    }

    func readAll(_ pool: Pool) throws -> PoolModel {
        var result = PoolModel()
        result.poolBytes = pool.statistics.sizeBytes
        let snapshots = pool.snapshots()
        for volume in pool.volumes() {
            let content = try readModel(try pool.device(of: volume.id))
            try explain(content.unreadable, pool) { try pool.core.volume(volume.id).head }
            result.volumes[volume.id] = content
            guard let origin = volume.clonedFrom else { continue }
            result.origins[volume.id] = origin.snapshot
            guard snapshots.contains(where: { $0.id == origin.snapshot && $0.has(origin.volume) }) else {
                throw fail("volume \(volume.name) is said to come from a volume that is no member of its origin")
            }
        }
        for snapshot in snapshots {
            var members: [VolumeID: VolumeModel] = [:]
            for member in snapshot.members {
                let content = try readModel(try pool.device(of: snapshot.id, volume: member.volume))
                try explain(content.unreadable, pool) { try pool.core.member(of: snapshot.id, member.volume) }
                members[member.volume] = content
            }
            result.snapshots[snapshot.id] = SnapshotModel(
                name: snapshot.name, members: members, attributes: snapshot.attributes, kind: snapshot.kind,
                hasLostAttributes: isDamaged && snapshot.attributes.isEmpty)
        }
        return result
    }

    func checkReads() throws {
        setPlan(nil)
        guard let pool, try readAll(pool) == model else { throw fail("a read gave other data than was written") }
        if !isDamaged { try checkProvisioning(pool) }
    }

    // MARK: Operations

    /// Runs one operation on pool and model. The model changes when the operation succeeds, or when power was lost
    /// during it; then either outcome is allowed.
    /// `stages` are states on the way to what `change` says, of an operation that is several for a crash.
    func attempt(
        _ name: String, as event: Coverage.Event? = nil, isDurable: Bool, isInterruptible: Bool = false,
        stages: [(inout PoolModel) -> Void] = [], change: (inout PoolModel) -> Void,
        _ body: (Pool) throws -> Void
    )
        throws
    {
        guard let pool else { return }
        log.append(name)
        let first = history.count - 1
        let durable = interruption.durablePoints
        beginInterruptions(pool, isInterruptible, changes: !isDurable && event != .readUnderWay)
        do {
            try body(pool)
            // The process was killed before it could answer.
            if disk.isDead, self.pool != nil { throw BlockError.io(errno: 5) }
            try endInterruptions(isInterruptible)
            guard self.pool != nil else { return }
            if let event { coverage.note(event) }
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
            guard self.pool != nil else { return }
            var changed = model
            change(&changed)
            if disk.isDead {
                append(stages)
                history.append(changed)
                unanswered = stages.count + 1
                crash("power loss")
            } else if case .readOnly(let reason) = pool.statistics.state {
                // Where pages of the allocation map are lost, what they knew to be free cannot be used: room for map
                // pages may run out. The pool says so, and what it has is there when it is opened again.
                let lacksRoom = isDamaged && reason.contains("no room for its map pages")
                if options.faults != .errors || reason.contains("damaged"), !lacksRoom {
                    throw fail("the pool failed by itself: \(reason)")
                }
                coverage.note(.poolFailed)
                append(stages)
                history.append(changed)
                unanswered = stages.count + 1
                hasFailed = true
                crash("the pool failed")
            } else if isNoSpace(error) {
                // These have a reserve.
                if let event, Coverage.needNoSpace.contains(event) { throw fail("\(name) failed: \(error)") }
                coverage.note(.refusedForSpace)
            } else if options.faults == .errors {
                coverage.note(.refusedForError)
            } else if !isDamaged {
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
        if options.faults == .lies, generator.chance(30) {
            planLie(at)
        } else if generator.chance(25) {
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
    func planToDieInCommit() {
        guard !interruption.isRunning, generator.chance(20) else { return }
        let at = disk.callCount + 1 + generator.below(3)
        setPlan { call, _ in call >= at ? .powerLoss : nil }
    }

    private func step() throws {
        if generator.chance(20) { planFault() }
        if !isDamaged, generator.chance(3) { try checkInvariants() }
        if generator.chance(options.endsProcesses ? 12 : 3) { planToDieInLog() }
        if writesBackEarly { pool?.core.writeBackEarly() }
        if generator.chance(options.endsProcesses ? 5 : 2) { return crash("at once") }
        defer { isJustOpened = false }
        // What was found then must be on the disk, whatever the system had it from.
        if isJustOpened, generator.chance(18) {
            losesPower = true
            return crash("soon after an opening")
        }
        // So that the journal is still where that log would continue it.
        if forgottenLog != nil, generator.chance(40) { return crash("soon after an opening without the log") }
        let volumes = model.volumes.keys.sorted { $0.description < $1.description }
        if options.faults == .lies, generator.chance(1), let volume = volumes.first { return try lieInJournal(volume) }
        guard let volume = volumes.isEmpty ? nil : volumes[Int(generator.below(UInt64(volumes.count)))] else {
            return try createVolume()
        }
        var choice = generator.below(100)
        // Attributes fill the journal and need no map pages, so that no checkpoint comes for their sake.
        if hasLongJournal, (42..<93).contains(choice), !model.snapshots.isEmpty, generator.chance(80) { choice = 94 }
        if hasDeepClones, (20..<42).contains(choice) { choice = choice < 32 ? 81 : 66 }
        if snapshotLimit > 8, (20..<42).contains(choice) { choice = 66 }
        switch choice {
        case 0..<40: try write(volume)
        case 40..<42: try writeSame(volume)
        case 42..<45: try unmap(volume)
        case 45..<47: try generator.chance(70) ? unmapParts(volume) : rewrite(volume)
        case 47..<50: try readUnderWay(volume)
        case 50..<55: try compareAndWrite(volume)
        case 55..<65: try makeDurable(volume)
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
            case 3..<5: if !isDamaged { try checkAccounting() }
            default: try measure()
            }
        case 96..<97: try reopen()
        case 97..<98: try checkpoint(volume)
        case 98..<99: try generator.chance(50) ? diff() : send()
        default: try generator.chance(50) ? grow() : scrub()
        }
    }
}

extension SnapshotRecord {
    fileprivate func has(_ volume: VolumeID) -> Bool { members.contains { $0.volume == volume } }
}
