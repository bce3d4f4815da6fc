public import BlockIO
import Glibc
import Synchronization

/// A SAM-5 logical unit of device type 00h (SBC-3) over a block device.
///
/// The transport calls ``begin(_:activity:)`` for a command, moves the data it is told to, and answers. All calls are
/// thread-safe. State that several I_T nexuses share (reservations, mode pages, unit attentions) is held under one
/// short lock; no device call is made while it is held.
public final class LogicalUnit: Sendable {
    public let device: any BlockDevice
    public let identity: LogicalUnitIdentity
    /// Exported read-only, whatever the device allows.
    public let isReadOnly: Bool
    public let limits: LogicalUnitLimits
    let store: (any ReservationStore)?
    /// Held by one PERSISTENT RESERVE OUT at a time, on a thread that may wait, until it is durable.
    let reservationGate = Mutex(())
    let state: Mutex<State>

    struct State: ~Copyable {
        var nexuses: [LogicalUnitNexus] = []
        var running = RunningOperations()
        var modes = ModeParameters()
        /// RESERVE(6) (SPC-2); identified by its object.
        var reservedBy: LogicalUnitNexus?
        var persistent: PersistentReservations
        var preventers: [LogicalUnitNexus] = []
        /// Every target port that leads here; empty while nobody has said so.
        var ports: [UnitPort] = []
        /// Groups of ports through which the medium cannot be reached now.
        var restrictedGroups: [UInt16: AsymmetricAccess] = [:]
        /// Copies under way, and the results of earlier ones.
        var copies: [CopyRecord] = []
        var nextCopy: UInt64 = 0
        /// Of nexuses that have ended.
        var statistics = CommandStatistics()
    }

    /// A unit whose reservations end with the process: APTPL is not offered.
    /// - Parameter isReadOnly: refuse writes even where the device would take them.
    public convenience init(
        device: any BlockDevice, identity: LogicalUnitIdentity, isReadOnly: Bool = false,
        limits: LogicalUnitLimits = .init()
    ) {
        self.init(device, identity, isReadOnly: isReadOnly, limits, store: nil, PersistentReservations())
    }

    /// A unit whose persistent reservations can outlive the process.
    /// - Throws: ``ReservationStoreError`` when reservations were kept and cannot be read: then nobody knows who may
    ///   write.
    public convenience init(
        device: any BlockDevice, identity: LogicalUnitIdentity, isReadOnly: Bool = false,
        limits: LogicalUnitLimits = .init(), store: any ReservationStore
    ) throws(ReservationStoreError) {
        var kept = PersistentReservations()
        if let record = try store.load(naa: identity.naa) {
            guard let known = PersistentReservations(record: record) else {
                throw ReservationStoreError("the reservations kept for \(identity.naa) are damaged")
            }
            kept = known
        }
        self.init(device, identity, isReadOnly: isReadOnly, limits, store: store, kept)
    }

    private init(
        _ device: any BlockDevice, _ identity: LogicalUnitIdentity, isReadOnly: Bool, _ limits: LogicalUnitLimits,
        store: (any ReservationStore)?, _ persistent: PersistentReservations
    ) {
        self.device = device
        self.identity = identity
        self.isReadOnly = isReadOnly
        self.limits = limits
        self.store = store
        state = Mutex(State(persistent: persistent))
    }

    /// Bytes of a logical block.
    public var blockBytes: Int { device.geometry.logicalBlockBytes }
    var blockCount: UInt64 { device.sizeBytes / UInt64(blockBytes) }
    /// WCE of the caching page.
    var hasWriteCache: Bool { state.withLock { $0.modes.writeCache } }
    var isWriteProtected: Bool { isReadOnly || device.isReadOnly }

    /// The D_SENSE bit: whether sense data goes out in descriptor format.
    public var usesDescriptorSense: Bool { state.withLock { $0.modes.descriptorSense } }

    /// What all I_T nexuses together have done since the unit was made.
    public var statistics: CommandStatistics {
        state.withLock { state in
            state.nexuses.reduce(into: state.statistics) { $0 += $1.counters.statistics }
        }
    }

    // MARK: I_T nexuses

    /// Discards REPORTED LUNS DATA HAS CHANGED for a nexus that has just read the list.
    public func clearLUNsChanged(for nexus: LogicalUnitNexus) {
        state.withLock { _ in nexus.clear(.lunsChanged) }
    }

    /// Makes the logical unit known to a new I_T nexus. The two hold each other until ``detach(_:)``.
    /// - Parameters:
    ///   - copyDirectory: which other units EXTENDED COPY may reach.
    ///   - saysPowerOn: begin with the unit attention 29/00. The initiator may have known the unit before this process
    ///     did, with reservations, mode parameters and a cache that are not there any more.
    public func attach(
        initiatorPort: InitiatorPort, targetPort: TargetPort, copyDirectory: (any CopyDirectory)? = nil,
        saysPowerOn: Bool = false
    ) -> LogicalUnitNexus {
        let nexus = LogicalUnitNexus(
            unit: self, initiatorPort: initiatorPort, targetPort: targetPort, copyDirectory: copyDirectory)
        if saysPowerOn { nexus.raise(.powerOn) }
        state.withLock { $0.nexuses.append(nexus) }
        return nexus
    }

    /// Ends an I_T nexus: its commands are aborted, its RESERVE(6) reservation and its PREVENT end; persistent
    /// reservations stay.
    public func detach(_ nexus: LogicalUnitNexus) {
        state.withLock { state in
            if !nexus.isDetached { state.statistics += nexus.counters.statistics }
            nexus.isDetached = true
            nexus.generation &+= 1
            state.nexuses.removeAll { $0 === nexus }
            state.preventers.removeAll { $0 === nexus }
            state.copies.removeAll { $0.nexus === nexus }
            if state.reservedBy === nexus { state.reservedBy = nil }
        }
    }

    // MARK: Unit attentions

    /// Tells every I_T nexus, or all but one, about an event with its next command.
    public func raise(_ attention: AdditionalSense, except: LogicalUnitNexus? = nil) {
        state.withLock { state in
            for nexus in state.nexuses where nexus !== except { nexus.raise(attention) }
        }
    }

    /// Tells every I_T nexus that goes through one target.
    public func raise(_ attention: AdditionalSense, targetName: String) {
        state.withLock { state in
            for nexus in state.nexuses where nexus.targetPort.name == targetName { nexus.raise(attention) }
        }
    }

    /// Ends every I_T nexus that goes through one target: the unit is not mapped there any more. Returns when no
    /// operation that came that way touches the device any more; each is a step of a few MiB, or a flush.
    public func detachAll(targetName: String) {
        let ended = state.withLock { state in state.nexuses.filter { $0.targetPort.name == targetName } }
        for nexus in ended { detach(nexus) }
        awaitRunning()
    }

    /// Returns when everything that touched the device at the time of the call has let go of it; each is a step of a
    /// few MiB, or a flush.
    public func awaitRunning() {
        let flag = DrainFlag()
        if state.withLock({ $0.running.drain { flag.set() } }) { return }
        while !flag.isSet { usleep(200) }
    }

    // MARK: Task management

    /// ABORT TASK SET, CLEAR TASK SET (each nexus has a task set of its own) and ABORT TASK: no operation of this nexus
    /// that had begun takes effect after `completion`.
    public func abortTaskSet(of nexus: LogicalUnitNexus, completion: @escaping @Sendable () -> Void) {
        let isDone = state.withLock { state in
            nexus.generation &+= 1
            return state.running.drain(completion)
        }
        if isDone { completion() }
    }

    /// LOGICAL UNIT RESET (SAM-5 6.3.3): aborts all commands, ends RESERVE(6) and PREVENT, and tells every nexus.
    public func reset(completion: @escaping @Sendable () -> Void) {
        let isDone = state.withLock { state in
            for nexus in state.nexuses {
                nexus.generation &+= 1
                nexus.raise(.busDeviceReset)
            }
            state.reservedBy = nil
            state.preventers = []
            state.modes = ModeParameters()
            return state.running.drain(completion)
        }
        if isDone { completion() }
    }

    /// A command that has to wait for others of its task set before it begins: what ends those that have begun ends
    /// it, too.
    public func enlist(_ nexus: LogicalUnitNexus) -> CommandActivity {
        CommandActivity(nexus: nexus, generation: state.withLock { _ in nexus.generation })
    }

    // MARK: Running operations

    /// Counts an operation in, unless its command was aborted, or the unit is not mapped any more where it came from.
    func enter(_ activity: CommandActivity) throws(CommandEnd) -> RunningOperations.Slot {
        try state.withLock { state in
            if activity.nexus.isDetached {
                return Result<RunningOperations.Slot, CommandEnd>.failure(.illegal(.logicalUnitNotSupported))
            }
            guard activity.nexus.generation == activity.generation else { return .failure(.aborted) }
            return .success(state.running.enter())
        }.get()
    }

    func leave(_ slot: RunningOperations.Slot) {
        let finished = state.withLock { $0.running.leave(slot) }
        for completion in finished { completion() }
    }
}

/// One command as far as abort is concerned: it is aborted when its nexus has moved on to another generation.
public struct CommandActivity: Sendable {
    public let nexus: LogicalUnitNexus
    public let generation: UInt32

    init(nexus: LogicalUnitNexus, generation: UInt32) {
        self.nexus = nexus
        self.generation = generation
    }

    public var unit: LogicalUnit { nexus.unit }

    /// Whether another command or the end of the nexus aborted it.
    public var isAborted: Bool { unit.state.withLock { _ in nexus.generation != generation } }

    /// How a command has ended that has not begun; nil when it may begin.
    public var endBeforeBegin: CommandEnd? {
        unit.state.withLock { _ in
            if nexus.isDetached { return .illegal(.logicalUnitNotSupported) }
            return nexus.generation == generation ? nil : .aborted
        }
    }
}

/// The initiator's end of an I_T nexus: iSCSI name and ISID (RFC 7143 4.4.2).
public struct InitiatorPort: Sendable, Hashable {
    public let name: String
    /// The 48-bit initiator session identifier.
    public let isid: UInt64

    public init(name: String, isid: UInt64) {
        self.name = name
        self.isid = isid
    }
}

/// The target's end: its iSCSI name, portal group tag and relative port identifier. Name and tag say which it is.
public struct TargetPort: Sendable, Hashable {
    public let name: String
    public let groupTag: UInt16
    public let relativeIdentifier: UInt16

    public static func == (first: Self, second: Self) -> Bool {
        first.groupTag == second.groupTag && first.name == second.name
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(name)
        hasher.combine(groupTag)
    }

    public init(name: String, groupTag: UInt16, relativeIdentifier: UInt16) {
        self.name = name
        self.groupTag = groupTag
        self.relativeIdentifier = relativeIdentifier
    }
}

/// What a logical unit keeps for one I_T nexus.
///
/// SAFETY: the variables are read and written only under the lock of ``unit``.
public final class LogicalUnitNexus: @unchecked Sendable {
    public let unit: LogicalUnit
    public let initiatorPort: InitiatorPort
    public let targetPort: TargetPort
    let copyDirectory: (any CopyDirectory)?
    public let counters = CommandCounters()
    fileprivate(set) var generation: UInt32 = 0
    fileprivate(set) var isDetached = false
    private var attentions: [AdditionalSense] = []

    /// Unit attentions that may wait for one nexus.
    static let attentionLimit = 16

    init(
        unit: LogicalUnit, initiatorPort: InitiatorPort, targetPort: TargetPort,
        copyDirectory: (any CopyDirectory)?
    ) {
        self.copyDirectory = copyDirectory
        self.unit = unit
        self.initiatorPort = initiatorPort
        self.targetPort = targetPort
    }

    /// Aborts every command of the nexus that has begun; under the unit's lock.
    func abortCommands() { generation &+= 1 }

    func raise(_ attention: AdditionalSense) {
        if !attentions.contains(attention), attentions.count < Self.attentionLimit { attentions.append(attention) }
    }

    func takeAttention() -> AdditionalSense? { attentions.isEmpty ? nil : attentions.removeFirst() }

    func clear(_ attention: AdditionalSense) { attentions.removeAll { $0 == attention } }

    var hasAttention: Bool { !attentions.isEmpty }
}

/// Limits that VPD page B0 tells initiators, in logical blocks unless said otherwise.
public struct LogicalUnitLimits: Sendable {
    /// Bytes of one READ or WRITE.
    public var transferBytes = 32 << 20
    /// Bytes of one COMPARE AND WRITE (each half).
    public var compareAndWriteBytes = 64 << 10
    /// Descriptors of one UNMAP.
    public var unmapDescriptors = 256
    /// Bytes of one UNMAP.
    public var unmapBytes: UInt64 = 512 << 20
    /// Bytes of one WRITE SAME; the device may take less as one change.
    public var writeSameBytes: UInt64 = 16 << 20
    /// Bytes that UNMAP handles on the caller's thread; more goes to a thread that may wait.
    public var inlineUnmapBytes: UInt64 = 1 << 20
    /// Bytes of any parameter list.
    public var parameterListBytes = 64 << 10

    public init() {}
}

/// Which operations are touching the device, so that an abort can be answered when none of the aborted ones is.
struct RunningOperations: ~Copyable {
    struct Slot { fileprivate let index: Int }

    private var counts = (0, 0)
    private var current = 0
    /// Waiting for the slot that is not current to become empty.
    private var draining: [@Sendable () -> Void] = []
    /// Came while another drain was under way.
    private var queued: [@Sendable () -> Void] = []

    mutating func enter() -> Slot {
        if current == 0 { counts.0 += 1 } else { counts.1 += 1 }
        return Slot(index: current)
    }

    /// Returns what was waiting for this operation.
    mutating func leave(_ slot: Slot) -> [@Sendable () -> Void] {
        if slot.index == 0 { counts.0 -= 1 } else { counts.1 -= 1 }
        guard !draining.isEmpty, count(of: 1 - current) == 0 else { return [] }
        var finished = draining
        draining = []
        if !queued.isEmpty {
            if counts == (0, 0) {
                finished += queued
            } else {
                draining = queued
                current = 1 - current
            }
            queued = []
        }
        return finished
    }

    /// True when nothing runs; else `completion` is returned by the ``leave(_:)`` of the last running operation.
    mutating func drain(_ completion: @escaping @Sendable () -> Void) -> Bool {
        if counts == (0, 0) { return true }
        if draining.isEmpty {
            draining.append(completion)
            current = 1 - current
        } else {
            queued.append(completion)
        }
        return false
    }

    private func count(of index: Int) -> Int { index == 0 ? counts.0 : counts.1 }
}
