import Glibc
import SCSI
import Synchronization

/// How the registry reaches the connection of a session; may be called from any thread.
struct SessionControl: Sendable {
    /// Tells the initiator and closes the connection.
    var drop: @Sendable (_ reason: String) -> Void
    /// Asks the initiator to log out within so many seconds.
    var requestLogout: @Sendable (UInt16) -> Void
    /// Closes the connection without a word and calls back when nothing of the session touches a device any more.
    var replace: @Sendable (_ completion: @escaping @Sendable () -> Void) -> Void
}

/// A session in the full-feature phase.
final class LiveSession: Sendable {
    let id: UInt64
    /// Empty for a discovery session.
    let iqn: String
    let initiatorPort: InitiatorPort
    let portalGroupTag: UInt16
    let rule: InitiatorRule?
    let address: String
    let tsih: UInt16
    let connectedAt: Int64
    let counters: SessionCounters
    let control: SessionControl

    init(
        id: UInt64, outcome: LoginOutcome, rule: InitiatorRule?, address: String, tsih: UInt16,
        counters: SessionCounters, control: SessionControl
    ) {
        self.id = id
        iqn = outcome.target ?? ""
        initiatorPort = outcome.initiatorPort
        portalGroupTag = outcome.portalGroupTag
        self.rule = rule
        self.address = address
        self.tsih = tsih
        self.counters = counters
        self.control = control
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        connectedAt = Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
    }

    var record: SessionRecord {
        SessionRecord(
            id: id, iqn: iqn, initiator: initiatorPort.name, address: address, portalGroupTag: portalGroupTag,
            tsih: tsih, connectedAt: connectedAt, statistics: counters.statistics, isDiscovery: iqn.isEmpty)
    }
}

extension TargetRegistry: LoginPolicy {
    func authorize(initiator: String, target: String?) -> LoginAuthorization {
        state.withLock { state in
            guard let target else {
                if state.hasDiscoveryRules { return state.admitToDiscovery(initiator) }
                // Any secret that this initiator has at one of the targets proves who it is.
                let known = state.targets.values.compactMap { $0.rule(for: initiator)?.chap }
                return .allowed(credentials: known, isOptional: true)
            }
            switch state.admit(initiator: initiator, target: target) {
            case .failure(let failure): return .refused(failure)
            case .success(let rule):
                return .allowed(credentials: rule.chap.map { [$0] } ?? [])
            }
        }
    }

    func loginRefused(target: String?) {
        guard let target else { return }
        state.withLock { $0.targets[target]?.totals.loginsRefused += 1 }
    }

    /// Enters a session in the list; everything that was checked before is checked again, because it may have changed
    /// while the login went on.
    /// - Returns: the session, and those with the same name and ISID that it replaces (RFC 7143 6.3.5): it may begin
    ///   when they have ended.
    func open(
        _ outcome: LoginOutcome, address: String, counters: SessionCounters, control: SessionControl
    ) -> Result<(session: LiveSession, replaced: [LiveSession]), LoginFailure> {
        state.withLock { state in
            var rule: InitiatorRule?
            if let target = outcome.target {
                switch state.admit(initiator: outcome.initiatorPort.name, target: target) {
                case .failure(let failure): return .failure(failure)
                case .success(let found): rule = found.rule
                }
            } else if state.hasDiscoveryRules,
                case .refused(let failure) = state.admitToDiscovery(outcome.initiatorPort.name)
            {
                return .failure(failure)
            }
            let iqn = outcome.target ?? ""
            let replaced = state.sessions.values.filter {
                !iqn.isEmpty && $0.iqn == iqn && $0.initiatorPort == outcome.initiatorPort
                    && $0.portalGroupTag == outcome.portalGroupTag
            }
            guard state.sessions.count < limits.sessions else {
                return .failure(
                    LoginFailure(
                        status: .outOfResources, message: "there are \(limits.sessions) sessions already"))
            }
            let session = LiveSession(
                id: state.nextSession, outcome: outcome, rule: rule, address: address, tsih: state.takeTSIH(),
                counters: counters, control: control)
            state.nextSession += 1
            state.sessions[session.id] = session
            state.targets[iqn]?.totals.loginsAccepted += 1
            return .success((session, replaced))
        }
    }

    /// The connection of a session is gone, and nothing of it touches a device any more.
    func closed(_ session: LiveSession) {
        state.withLock { $0.remove(session) }
    }

    func liveSessions() -> [LiveSession] { state.withLock { Array($0.sessions.values) } }
}

extension TargetRegistry.Target {
    func rule(for initiator: String) -> (rule: InitiatorRule, chap: CHAPCredentials?)? {
        rules.best(for: initiator)
    }
}

extension [InitiatorRule: CHAPCredentials?] {
    /// A name's own rule goes before the one for any.
    fileprivate func best(for initiator: String) -> (rule: InitiatorRule, chap: CHAPCredentials?)? {
        for rule in [InitiatorRule.named(initiator), .any] {
            if let chap = self[rule] { return (rule, chap) }
        }
        return nil
    }
}

extension TargetRegistry.State {
    fileprivate func admitToDiscovery(_ initiator: String) -> LoginAuthorization {
        guard let rule = discoveryRules.best(for: initiator) else {
            return .refused(
                LoginFailure(
                    status: .authorizationFailure,
                    message: "initiator \(printable(initiator)) is not allowed to discover targets"))
        }
        return .allowed(credentials: rule.chap.map { [$0] } ?? [])
    }

    fileprivate func admit(
        initiator: String, target name: String
    ) -> Result<(rule: InitiatorRule, chap: CHAPCredentials?), LoginFailure> {
        let initiatorText = printable(initiator)
        guard let target = targets[name] else {
            return .failure(
                LoginFailure(
                    status: .notFound,
                    message: "initiator \(initiatorText) asked for target \(printable(name)), which does not exist"))
        }
        guard let rule = target.rule(for: initiator) else {
            return .failure(
                LoginFailure(
                    status: .authorizationFailure,
                    message: "initiator \(initiatorText) is not allowed on target \(name)"))
        }
        if let unit = target.luns.values.first(where: { blocked[$0.identity.naa] != nil }) {
            return .failure(
                LoginFailure(
                    status: .serviceUnavailable,
                    message: "initiator \(initiatorText) has to wait: volume \(unit.identity.naa) of target \(name) "
                        + "is being reverted"))
        }
        return .success(rule)
    }

    /// A session handle that is not in use; 0 means none.
    fileprivate mutating func takeTSIH() -> UInt16 {
        let used = Set(sessions.values.map(\.tsih))
        repeat {
            nextTSIH = nextTSIH == .max ? 1 : nextTSIH + 1
        } while used.contains(nextTSIH)
        return nextTSIH
    }
}

/// What the sessions of one target see of the registry.
struct TargetDirectory: SessionDirectory {
    let registry: TargetRegistry
    /// Empty for a discovery session.
    let iqn: String
    /// The group of the portal through which the session came.
    var portalGroupTag: UInt16 = 1
    /// All portals; when there are none, initiators are told the address where they reached us.
    var portals: [Portal] = []
    /// Each I_T nexus begins with the unit attention 29/00.
    var saysPowerOn = true

    func luns() -> [Int] {
        registry.state.withLock { $0.targets[iqn]?.luns.keys.sorted() ?? [] }
    }

    func attach(lun: Int, initiatorPort: InitiatorPort) -> LogicalUnitNexus? {
        // The unit's own lock is taken inside the registry's, never the other way round; so a LUN cannot be removed
        // between the look-up and the attachment.
        registry.state.withLock { state in
            guard let target = state.targets[iqn], let unit = target.luns[lun] else { return nil }
            return unit.attach(
                initiatorPort: initiatorPort, targetPort: state.port(target.port.name, portalGroupTag),
                copyDirectory: registry, saysPowerOn: saysPowerOn)
        }
    }

    func discover(initiator: String, name: String?, localAddress: String) -> [(iqn: String, addresses: [String])] {
        let addresses =
            portals.isEmpty
            ? ["\(localAddress),\(portalGroupTag)"] : portals.flatMap { $0.addresses(localAddress: localAddress) }
        return registry.state.withLock { state in
            let targets = state.targets.values.filter { target in
                target.rule(for: initiator) != nil && (name == nil || target.port.name == name)
            }
            return targets.sorted { $0.port.name < $1.port.name }.map { target in
                (target.port.name, addresses)
            }
        }
    }

    func dropAllSessions() {
        let sessions = registry.state.withLock { state in state.sessions.values.filter { $0.iqn == iqn } }
        for session in sessions { session.control.drop("the target was reset") }
    }
}
