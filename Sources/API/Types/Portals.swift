/// How the portals of a group reach the volumes (ALUA): what hosts with several paths choose by.
public enum PortalAccess: String, Codable, Sendable, Equatable, CaseIterable {
    /// Use these paths.
    case optimized
    /// Use these paths where there is no better one.
    case nonOptimized
    /// Commands that need the volume are refused until the state changes.
    case standby
    /// As standby; not even reservations are answered.
    case unavailable
    /// The state is about to change: hosts wait and try again.
    case transitioning
}

/// A portal group.
public struct PortalGroupInfo: Codable, Sendable, Equatable {
    /// 0 to 65535; hosts see it as the target portal group and as the target port group.
    public var group: Int
    public var access: PortalAccess
    /// `HOST:PORT` of each portal.
    public var portals: [String]

    public init(group: Int, access: PortalAccess, portals: [String]) {
        self.group = group
        self.access = access
        self.portals = portals
    }
}

/// `POST /v1/portal-groups/{group}`.
public struct PortalGroupRequest: Codable, Sendable, Equatable {
    public var access: PortalAccess

    public init(access: PortalAccess) { self.access = access }
}
