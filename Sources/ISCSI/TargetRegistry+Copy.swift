public import SCSI
import Synchronization

/// Which volumes EXTENDED COPY may reach: those that the initiator could open a session to with what it has shown of
/// itself (CVE-2020-28374, CVE-2021-3139: a copy that reaches more than its initiator).
extension TargetRegistry: CopyDirectory {
    public func visit(naa: String, from nexus: LogicalUnitNexus) -> UnitVisit? {
        state.withLock { state in
            // Under the registry's lock: a unit that is being unmapped or reverted is either not found any more, or
            // the one who unmaps it waits for this visit.
            guard let unit = state.units[naa], state.blocked[naa] == nil else { return nil }
            let initiator = nexus.initiatorPort.name
            guard let own = state.targets[nexus.targetPort.name], let shown = own.rule(for: initiator) else {
                return nil
            }
            let isReachable = state.targets.values.contains { target in
                guard target.luns.values.contains(where: { $0 === unit }) else { return false }
                if target.port == own.port { return true }
                // Its name alone opens a target without CHAP; another secret than the one it showed opens none.
                guard let rule = target.rule(for: initiator) else { return false }
                return rule.chap == nil || rule.chap == shown.chap
            }
            return isReachable ? unit.beginVisit() : nil
        }
    }
}
