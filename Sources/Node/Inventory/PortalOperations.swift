import API
import ISCSI
import Logging
import SCSI

extension Inventory {
    /// The portal groups with their portals, by number.
    func portalGroups() -> [PortalGroupInfo] {
        let addresses = portalsByGroup
        return registry.portalGroups().map { record in
            PortalGroupInfo(
                group: Int(record.tag), access: PortalAccess(record.access), portals: addresses[record.tag] ?? [])
        }
    }

    /// Changes how a group's portals reach the volumes; hosts learn of it at once. A restart brings back what the
    /// configuration says.
    func setPortalGroup(_ group: String, _ request: PortalGroupRequest) throws -> PortalGroupInfo {
        guard let tag = UInt16(group), registry.portalGroups().contains(where: { $0.tag == tag }) else {
            throw APIFailure(
                status: 404, code: "portalGroupNotFound", message: "there is no portal group \(group.prefix(16))",
                hint: "stillpoint portal list shows them; iscsi.portals in the configuration makes them")
        }
        try registry.setPortalGroup(tag, access: request.access.state)
        logger.notice(
            "portal group changed", metadata: ["group": "\(tag)", "access": "\(request.access.rawValue)"])
        return PortalGroupInfo(group: Int(tag), access: request.access, portals: portalsByGroup[tag] ?? [])
    }
}

extension PortalAccess {
    var state: AsymmetricAccess {
        switch self {
        case .optimized: .activeOptimized
        case .nonOptimized: .activeNonOptimized
        case .standby: .standby
        case .unavailable: .unavailable
        case .transitioning: .transitioning
        }
    }

    init(_ state: AsymmetricAccess) {
        self =
            switch state {
            case .activeOptimized: .optimized
            case .activeNonOptimized: .nonOptimized
            case .standby: .standby
            case .unavailable: .unavailable
            case .transitioning: .transitioning
            }
    }
}
