public import BlockIO
public import SCSI

/// Which targets there are, which LUNs they hold, who may log in, and who is logged in.
///
/// All calls are thread-safe and take effect for every later PDU; none waits for I/O.
public final class TargetRegistry: Sendable {
    public let limits: TargetLimits

    public init(limits: TargetLimits = .init()) {
        self.limits = limits
    }

    // MARK: Targets and LUNs

    /// Adds a target without LUNs that nobody may log in to yet.
    public func addTarget(_ iqn: String) throws(TargetError) {}

    /// Removes a target and ends its sessions.
    public func removeTarget(_ iqn: String) throws(TargetError) {}

    /// Maps `device` as `lun`; sessions of the target learn of it through a unit attention (3F/0E).
    public func addLUN(
        _ iqn: String, lun: Int, device: any BlockDevice, identity: LogicalUnitIdentity, isReadOnly: Bool = false
    ) throws(TargetError) {}

    /// Unmaps a LUN; its outstanding commands are ended, later ones get LOGICAL UNIT NOT SUPPORTED.
    public func removeLUN(_ iqn: String, lun: Int) throws(TargetError) {}

    public func targets() -> [TargetRecord] { [] }

    // MARK: Access

    /// Lets an initiator log in, with CHAP when `chap` is given. A second call for the same initiator replaces the
    /// credentials for later logins.
    public func allow(_ iqn: String, initiator: InitiatorRule, chap: CHAPCredentials? = nil) throws(TargetError) {}

    /// Takes a rule back and ends the sessions that stood on it.
    public func deny(_ iqn: String, initiator: InitiatorRule) throws(TargetError) {}

    // MARK: Sessions

    public func sessions() -> [SessionRecord] { [] }

    /// The sessions through which the device of this identity can be reached now: what a revert must not find.
    public func sessions(naa: String) -> [SessionRecord] { [] }

    /// Ends one session; false when there is none with this ``SessionRecord/id``.
    @discardableResult
    public func dropSession(id: UInt64) -> Bool { false }

    /// Refuses logins to every target that holds the device until ``unblockLogins(naa:)``, with a status that makes
    /// initiators try again. Sessions that are there stay.
    public func blockLogins(naa: String) {}

    public func unblockLogins(naa: String) {}

    // MARK: Events of a device

    /// Tells sessions that the capacity changed (unit attention 2A/09).
    public func deviceResized(naa: String) {}

    /// Tells sessions that the contents were replaced (unit attention 28/00).
    public func deviceReverted(naa: String) {}

    /// Tells sessions that the pool is nearly full (unit attention 38/07).
    public func deviceSoftThreshold(naa: String) {}

    public func metrics() -> [TargetMetrics] { [] }
}
