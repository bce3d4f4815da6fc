public import BlockIO
import Glibc
public import SCSI
import Synchronization

/// Which targets there are, which LUNs they hold, who may log in, and who is logged in.
///
/// All calls are thread-safe and take effect for every later PDU. A session is listed until nothing of it touches a
/// device any more, also when it is being ended: an empty list means that nobody is there.
public final class TargetRegistry: Sendable {
    public let limits: TargetLimits
    let reservationStore: (any ReservationStore)?
    let state = Mutex(State())

    struct State {
        var targets: [String: Target] = [:]
        /// By NAA name: the same unit may be mapped in several targets.
        var units: [String: LogicalUnit] = [:]
        var sessions: [UInt64: LiveSession] = [:]
        /// NAA names of devices that nobody may log in to; with the number of times they were blocked.
        var blocked: [String: Int] = [:]
        var nextSession: UInt64 = 1
        var nextTSIH: UInt16 = 1
        /// Portal groups, and how the ports in them reach the volumes.
        var groups: [UInt16: AsymmetricAccess] = [1: .activeOptimized]
        /// Relative target port identifiers.
        var ports: [TargetPort: UInt16] = [:]
        var usedIdentifiers: Set<UInt16> = []
        /// Empty: discovery is open to all, each seeing what it may log in to.
        var discoveryRules: [InitiatorRule: CHAPCredentials?] = [:]
        var isDiscoveryClosed = false
        var hasDiscoveryRules: Bool { isDiscoveryClosed || !discoveryRules.isEmpty }
    }

    struct Target {
        var port: TargetPort
        var luns: [Int: LogicalUnit] = [:]
        var rules: [InitiatorRule: CHAPCredentials?] = [:]
        /// Of sessions that have ended.
        var totals: TargetMetrics
    }

    /// - Parameter reservationStore: keeps persistent reservations over a restart (APTPL); without one they end with
    ///   the process.
    public init(limits: TargetLimits = .init(), reservationStore: (any ReservationStore)? = nil) {
        self.limits = limits
        self.reservationStore = reservationStore
    }

    // MARK: Targets and LUNs

    /// Adds a target without LUNs that nobody may log in to yet.
    public func addTarget(_ iqn: String) throws(TargetError) {
        guard let name = ISCSIName.normalized(iqn) else { throw .invalidName(iqn) }
        try change { state throws(TargetError) in
            guard state.targets[name] == nil else { throw .targetExists(iqn: name) }
            guard state.targets.count < limits.targets else { throw .limit("targets (\(limits.targets))") }
            state.targets[name] = Target(port: state.port(name, 1), totals: TargetMetrics(iqn: name))
        }
    }

    /// Removes a target and ends its sessions. Returns when their commands have left its devices.
    public func removeTarget(_ iqn: String) throws(TargetError) {
        let name = ISCSIName.normalized(iqn) ?? iqn
        let (units, sessions) = try change { state throws(TargetError) in
            guard let target = state.targets.removeValue(forKey: name) else { throw .noSuchTarget(iqn: iqn) }
            for unit in target.luns.values { state.releaseUnit(unit) }
            state.forgetPorts(of: name)
            return (Array(target.luns.values), state.sessions.values.filter { $0.iqn == name })
        }
        for unit in units { unit.detachAll(targetName: name) }
        for session in sessions { session.control.drop("its target \(name) was removed") }
    }

    /// Maps `device` as `lun`; sessions of the target learn of it through a unit attention (3F/0E).
    public func addLUN(
        _ iqn: String, lun: Int, device: any BlockDevice, identity: LogicalUnitIdentity, isReadOnly: Bool = false
    ) throws(TargetError) {
        let name = ISCSIName.normalized(iqn) ?? iqn
        guard (0..<min(limits.lunsPerTarget, 16_384)).contains(lun) else { throw .invalidLUN(lun) }
        // Reads what was kept, so not under the lock.
        let known = unit(identity.naa)
        let fresh = known == nil ? try makeUnit(device, identity, isReadOnly: isReadOnly) : nil
        let units = try change { state throws(TargetError) in
            guard var target = state.targets[name] else { throw .noSuchTarget(iqn: iqn) }
            guard target.luns[lun] == nil else { throw .lunInUse(iqn: name, lun: lun) }
            guard state.blocked[identity.naa] == nil else { throw .blocked(naa: identity.naa) }
            let unit: LogicalUnit
            if let known = state.units[identity.naa] {
                guard known.device === device, known.identity == identity, known.isReadOnly == isReadOnly,
                    !target.luns.values.contains(where: { $0 === known })
                else { throw .identityInUse(naa: identity.naa) }
                unit = known
            } else {
                // One that was let go of in between is made anew by the next try.
                guard let fresh else { throw .identityInUse(naa: identity.naa) }
                unit = fresh
            }
            let others = Array(target.luns.values)
            target.luns[lun] = unit
            state.units[identity.naa] = unit
            state.targets[name] = target
            state.updatePorts(of: unit)
            return others
        }
        for unit in units { unit.raise(.lunsChanged, targetName: name) }
    }

    private func makeUnit(
        _ device: any BlockDevice, _ identity: LogicalUnitIdentity, isReadOnly: Bool
    ) throws(TargetError) -> LogicalUnit {
        guard let store = reservationStore else {
            return LogicalUnit(device: device, identity: identity, isReadOnly: isReadOnly)
        }
        do throws(ReservationStoreError) {
            return try LogicalUnit(device: device, identity: identity, isReadOnly: isReadOnly, store: store)
        } catch {
            throw .reservationsUnreadable(naa: identity.naa, reason: error.reason)
        }
    }

    /// Unmaps a LUN; its outstanding commands and later ones get LOGICAL UNIT NOT SUPPORTED. Returns when nothing that
    /// came through it touches the device any more.
    public func removeLUN(_ iqn: String, lun: Int) throws(TargetError) {
        let name = ISCSIName.normalized(iqn) ?? iqn
        let (removed, others) = try change { state throws(TargetError) in
            guard var target = state.targets[name] else { throw .noSuchTarget(iqn: iqn) }
            guard let unit = target.luns.removeValue(forKey: lun) else { throw .noSuchLUN(iqn: name, lun: lun) }
            state.targets[name] = target
            state.releaseUnit(unit)
            return (unit, Array(target.luns.values))
        }
        removed.detachAll(targetName: name)
        for unit in others { unit.raise(.lunsChanged, targetName: name) }
    }

    public func targets() -> [TargetRecord] {
        state.withLock { state in
            state.targets.values.sorted { $0.port.name < $1.port.name }.map { target in
                TargetRecord(
                    iqn: target.port.name,
                    luns: target.luns.sorted { $0.key < $1.key }.map { lun, unit in
                        LUNRecord(
                            lun: lun, identity: unit.identity, sizeBytes: unit.device.sizeBytes,
                            isReadOnly: unit.isReadOnly || unit.device.isReadOnly)
                    },
                    rules: target.rules.sorted { $0.key.sortKey < $1.key.sortKey }.map { rule, chap in
                        .init(initiator: rule, requiresCHAP: chap != nil, isMutual: chap?.mutual != nil)
                    })
            }
        }
    }

    // MARK: Access

    /// Lets an initiator log in, with CHAP when `chap` is given. A second call for the same initiator replaces the
    /// credentials for later logins.
    public func allow(_ iqn: String, initiator: InitiatorRule, chap: CHAPCredentials? = nil) throws(TargetError) {
        let name = ISCSIName.normalized(iqn) ?? iqn
        let rule = try initiator.normalized()
        try change { state throws(TargetError) in
            guard var target = state.targets[name] else { throw .noSuchTarget(iqn: iqn) }
            guard target.rules[rule] != nil || target.rules.count < limits.rulesPerTarget else {
                throw .limit("rules per target (\(limits.rulesPerTarget))")
            }
            target.rules[rule] = .some(chap)
            state.targets[name] = target
        }
    }

    /// Takes a rule back and ends the sessions that stood on it.
    public func deny(_ iqn: String, initiator: InitiatorRule) throws(TargetError) {
        let name = ISCSIName.normalized(iqn) ?? iqn
        let rule = try initiator.normalized()
        let sessions = try change { state throws(TargetError) in
            guard var target = state.targets[name] else { throw .noSuchTarget(iqn: iqn) }
            guard target.rules.removeValue(forKey: rule) != nil else {
                throw .noSuchRule(iqn: name, initiator: rule)
            }
            state.targets[name] = target
            return state.sessions.values.filter { $0.iqn == name && $0.rule == rule }
        }
        for session in sessions { session.control.drop("its access to \(name) was taken back") }
    }

    /// Restricts discovery to initiators with a rule, with CHAP of its own when `chap` is given. The first rule closes
    /// discovery to all others; what an initiator sees is what it may log in to, with or without.
    public func allowDiscovery(initiator: InitiatorRule, chap: CHAPCredentials? = nil) throws(TargetError) {
        let rule = try initiator.normalized()
        try change { state throws(TargetError) in
            guard state.discoveryRules[rule] != nil || state.discoveryRules.count < limits.rulesPerTarget else {
                throw .limit("discovery rules (\(limits.rulesPerTarget))")
            }
            state.discoveryRules[rule] = .some(chap)
        }
    }

    /// Shuts out everybody without a rule, even where no rule is left.
    public func closeDiscovery() throws(TargetError) {
        try change { state throws(TargetError) in state.isDiscoveryClosed = true }
    }

    /// Takes a rule back. Without any rule discovery is open again.
    /// - Throws: ``TargetError/noSuchRule(iqn:initiator:)`` with the name `discovery`.
    public func denyDiscovery(initiator: InitiatorRule) throws(TargetError) {
        let rule = try initiator.normalized()
        try change { state throws(TargetError) in
            guard state.discoveryRules.removeValue(forKey: rule) != nil else {
                throw .noSuchRule(iqn: "discovery", initiator: rule)
            }
            if state.discoveryRules.isEmpty { state.isDiscoveryClosed = false }
        }
    }

    // MARK: Sessions

    public func sessions() -> [SessionRecord] {
        state.withLock { $0.sessions.values.sorted { $0.id < $1.id }.map(\.record) }
    }

    /// The sessions through which the device of this identity can be reached now: what a revert must not find.
    public func sessions(naa: String) -> [SessionRecord] {
        let key = naa.lowercased()
        return state.withLock { state in
            let targets = state.targets.values.filter { $0.luns.values.contains { $0.identity.naa == key } }
            let names = Set(targets.map(\.port.name))
            return state.sessions.values.filter { names.contains($0.iqn) }.sorted { $0.id < $1.id }.map(\.record)
        }
    }

    /// Ends one session; false when there is none with this ``SessionRecord/id``.
    @discardableResult
    public func dropSession(id: UInt64) -> Bool {
        let session = state.withLock { $0.sessions[id] }
        session?.control.drop("an administrator ended it")
        return session != nil
    }

    /// Refuses logins to every target that holds the device until ``unblockLogins(naa:)``, with a status that makes
    /// initiators try again, and copies from other volumes. Sessions that are there stay. Calls are counted: each needs
    /// its own unblocking.
    public func blockLogins(naa: String) {
        let unit = state.withLock { state in
            state.blocked[naa.lowercased(), default: 0] += 1
            return state.units[naa.lowercased()]
        }
        // A copy that came from another volume is under way in no session of this one.
        unit?.awaitRunning()
    }

    public func unblockLogins(naa: String) {
        state.withLock { state in
            guard let count = state.blocked[naa.lowercased()] else { return }
            state.blocked[naa.lowercased()] = count > 1 ? count - 1 : nil
        }
    }

    // MARK: Events of a device

    /// Tells sessions that the capacity changed (unit attention 2A/09).
    public func deviceResized(naa: String) { unit(naa)?.raise(.capacityChanged) }

    /// Tells sessions that the contents were replaced (unit attention 28/00), and with them perhaps the size (2A/09).
    public func deviceReverted(naa: String) {
        let unit = unit(naa)
        unit?.raise(.mediumMayHaveChanged)
        unit?.raise(.capacityChanged)
    }

    /// Tells sessions that the pool is nearly full (unit attention 38/07).
    public func deviceSoftThreshold(naa: String) { unit(naa)?.raise(.thinSoftThreshold) }

    private func unit(_ naa: String) -> LogicalUnit? { state.withLock { $0.units[naa.lowercased()] } }

    /// What was done to each device that is mapped, by NAA name, since it was first mapped.
    public func deviceStatistics() -> [(naa: String, statistics: CommandStatistics)] {
        let units = state.withLock { Array($0.units.values) }
        return units.map { ($0.identity.naa, $0.statistics) }.sorted { $0.naa < $1.naa }
    }

    public func metrics() -> [TargetMetrics] {
        state.withLock { state in
            state.targets.values.sorted { $0.port.name < $1.port.name }.map { target in
                state.sessions.values.filter { $0.iqn == target.port.name }.reduce(into: target.totals) {
                    $0.sessions += 1
                    $0.statistics += $1.counters.statistics
                }
            }
        }
    }

    /// `Mutex.withLock` with a typed error.
    func change<Result: Sendable>(
        _ body: (inout State) throws(TargetError) -> Result
    ) throws(TargetError) -> Result {
        try state.withLock { state in
            do throws(TargetError) {
                return Swift.Result<Result, TargetError>.success(try body(&state))
            } catch {
                return .failure(error)
            }
        }.get()
    }
}

extension TargetRegistry.State {
    /// Forgets a unit that no target maps any more.
    fileprivate mutating func releaseUnit(_ unit: LogicalUnit) {
        let isMapped = targets.values.contains { $0.luns.values.contains { $0 === unit } }
        if isMapped { updatePorts(of: unit) } else { units[unit.identity.naa] = nil }
    }

    /// Takes a session out of the list, its counts into its target's totals.
    mutating func remove(_ session: LiveSession) {
        guard sessions.removeValue(forKey: session.id) != nil else { return }
        targets[session.iqn]?.totals.statistics += session.counters.statistics
    }
}

extension InitiatorRule {
    func normalized() throws(TargetError) -> InitiatorRule {
        guard case .named(let name) = self else { return self }
        guard let normalized = ISCSIName.normalized(name) else { throw .invalidName(name) }
        return .named(normalized)
    }

    fileprivate var sortKey: String {
        switch self {
        case .any: ""
        case .named(let name): name
        }
    }
}
