public import SCSI
import Synchronization

/// An address on which the target listens, and the portal group it belongs to (RFC 7143 4.1.1).
struct Portal: Sendable, Equatable {
    /// A numeric address; `0.0.0.0` or `::` for all of the machine's.
    var host: String
    var port: Int
    var groupTag: UInt16
    /// `host:port` addresses that initiators are told instead; may be empty.
    var advertised: [String] = []

    /// The addresses that SendTargets gives for this portal, with the tag.
    /// - Parameter localAddress: `host:port` on which the initiator that asks reached us.
    func addresses(localAddress: String) -> [String] {
        guard advertised.isEmpty else { return advertised.map { "\($0),\(groupTag)" } }
        let isWildcard = host == "0.0.0.0" || host == "::"
        let own = host.contains(":") ? "[\(host)]" : host
        guard isWildcard, let colon = localAddress.lastIndex(of: ":") else { return ["\(own):\(port),\(groupTag)"] }
        // Who came over IPv6 cannot be told of a portal on all IPv4 addresses: none of them is known to reach it.
        if host == "0.0.0.0", localAddress.hasPrefix("[") { return [] }
        return ["\(localAddress[..<colon]):\(port),\(groupTag)"]
    }
}

/// A portal group as an administrator sees it: it is the target port group of ALUA, too.
public struct PortalGroupRecord: Sendable, Equatable {
    public var tag: UInt16
    public var access: AsymmetricAccess
}

extension TargetRegistry {
    // MARK: Portal groups

    /// Adds a portal group, or changes how its ports reach the volumes. A change takes effect for every later command;
    /// each session learns of it by a unit attention (06/2A/06).
    public func setPortalGroup(_ tag: UInt16, access: AsymmetricAccess) throws(TargetError) {
        try change { state throws(TargetError) in
            guard state.groups[tag] != nil || state.groups.count < limits.portalGroups else {
                throw .limit("portal groups (\(limits.portalGroups))")
            }
            guard state.groups[tag] != access else { return }
            state.groups[tag] = access
            for unit in state.units.values { state.updatePorts(of: unit) }
        }
    }

    public func portalGroups() -> [PortalGroupRecord] {
        state.withLock { state in
            state.groups.sorted { $0.key < $1.key }.map { PortalGroupRecord(tag: $0.key, access: $0.value) }
        }
    }
}

extension TargetRegistry.State {
    /// Tells a unit which target ports lead to it; under the registry's lock.
    mutating func updatePorts(of unit: LogicalUnit) {
        let names = targets.values.filter { $0.luns.values.contains { $0 === unit } }.map(\.port.name).sorted()
        let tags = groups.sorted { $0.key < $1.key }
        unit.setPorts(
            names.flatMap { name in tags.map { UnitPort(port: port(name, $0.key), access: $0.value) } })
    }

    /// The port of a target in a group. Its relative identifier stays the same over restarts, because persistent
    /// reservations name it: it is made from the name, and only where two ports would get the same one does the order
    /// in which they are added matter.
    mutating func port(_ name: String, _ tag: UInt16) -> TargetPort {
        let bare = TargetPort(name: name, groupTag: tag, relativeIdentifier: 0)
        if let known = ports[bare] { return TargetPort(name: name, groupTag: tag, relativeIdentifier: known) }
        // FNV-1a, folded to 16 bits.
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in "\(name),t,0x\(String(tag, radix: 16))".utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        hash ^= hash >> 32
        var identifier = UInt16(truncatingIfNeeded: hash ^ (hash >> 16))
        let isFull = usedIdentifiers.count >= Int(UInt16.max)
        while identifier == 0 || (!isFull && usedIdentifiers.contains(identifier)) { identifier &+= 1 }
        usedIdentifiers.insert(identifier)
        ports[bare] = identifier
        return TargetPort(name: name, groupTag: tag, relativeIdentifier: identifier)
    }

    /// Gives the identifiers of a target that is gone back.
    mutating func forgetPorts(of name: String) {
        for (port, identifier) in ports where port.name == name {
            usedIdentifiers.remove(identifier)
            ports[port] = nil
        }
    }
}
