import API
import Catalog
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

    /// Gives each group the state that it was given last: by the configuration, or by ``setPortalGroup(_:_:)`` since
    /// the configuration last changed.
    func restorePortalGroups(_ groups: Set<UInt16>) async throws {
        let kept = Dictionary(uniqueKeysWithValues: try await catalog.portalStates().map { ($0.group, $0) })
        for group in groups.sorted() {
            let configured = configuredAccess[group, default: .optimized]
            var access = configured
            if let state = kept[group] {
                if state.configured == configured.rawValue, let set = PortalAccess(rawValue: state.access) {
                    access = set
                    logger.notice(
                        "portal group is as it was set, not as configured",
                        metadata: ["group": "\(group)", "access": "\(set)", "configured": "\(configured)"])
                } else {
                    try await catalog.forgetPortalState(group: group)
                }
            }
            try registry.setPortalGroup(group, access: access.state)
        }
    }

    /// Changes how a group's portals reach the volumes; hosts learn of it at once. It outlives a restart, unless the
    /// configuration then says something else than it does now.
    func setPortalGroup(_ group: String, _ request: PortalGroupRequest) async throws -> PortalGroupInfo {
        guard let tag = UInt16(group), registry.portalGroups().contains(where: { $0.tag == tag }) else {
            throw APIFailure(
                status: 404, code: "portalGroupNotFound", message: "there is no portal group \(group.prefix(16))",
                hint: "stillpoint portal list shows them; iscsi.portals in the configuration makes them")
        }
        let configured = configuredAccess[tag, default: .optimized]
        if request.access == configured {
            try await catalog.forgetPortalState(group: tag)
        } else {
            try await catalog.keepPortalState(
                PortalStateRow(group: tag, access: request.access.rawValue, configured: configured.rawValue))
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
