import Synchronization

/// How a group of target ports reaches a logical unit (asymmetric logical unit access, SPC-4 5.15.2).
public enum AsymmetricAccess: UInt8, Sendable, CaseIterable {
    case activeOptimized = 0x0
    case activeNonOptimized = 0x1
    case standby = 0x2
    case unavailable = 0x3
    case transitioning = 0xF

    /// Why a command that needs the medium is refused in this state; nil where it is not.
    var refusal: SenseData? {
        switch self {
        case .activeOptimized, .activeNonOptimized: nil
        case .standby: SenseData(.notReady, .portInStandby)
        case .unavailable: SenseData(.notReady, .portUnavailable)
        case .transitioning: SenseData(.notReady, .accessStateTransition)
        }
    }

    /// Whether the command works in spite of the state (SPC-4 5.15.2.4.4 to 5.15.2.4.6).
    func allows(_ opcode: UInt8) -> Bool {
        switch self {
        case .activeOptimized, .activeNonOptimized: return true
        // INQUIRY, REPORT LUNS, REQUEST SENSE, MAINTENANCE IN; in standby also mode and log pages and reservations.
        case .unavailable, .transitioning: return [0x12, 0xA0, 0x03, 0xA3].contains(opcode)
        case .standby:
            return [0x12, 0xA0, 0x03, 0xA3, 0x15, 0x55, 0x1A, 0x5A, 0x4C, 0x4D, 0x5E, 0x5F].contains(opcode)
        }
    }
}

/// A target port that leads to a logical unit, and the state of its group.
public struct UnitPort: Sendable, Equatable {
    public var port: TargetPort
    public var access: AsymmetricAccess

    public init(port: TargetPort, access: AsymmetricAccess) {
        self.port = port
        self.access = access
    }
}

extension LogicalUnit {
    /// Says which target ports lead here, and how well. Where the state of a group is another than before, every I_T
    /// nexus learns of it (06/2A/06).
    public func setPorts(_ ports: [UnitPort]) {
        state.withLock { state in
            let before = Dictionary(
                state.ports.map { ($0.port.groupTag, $0.access) }, uniquingKeysWith: { first, _ in first })
            state.ports = ports
            state.restrictedGroups = [:]
            for known in ports where known.access.refusal != nil {
                state.restrictedGroups[known.port.groupTag] = known.access
            }
            let changed = ports.contains { known in
                before[known.port.groupTag].map { $0 != known.access } ?? false
            }
            guard changed else { return }
            for nexus in state.nexuses { nexus.raise(.accessStateChanged) }
        }
    }

    /// REPORT TARGET PORT GROUPS (SPC-4 6.37).
    func reportTargetPortGroups(_ cdb: CommandBlock, _ port: TargetPort) throws(SenseData) -> [UInt8] {
        let format = cdb[1] >> 5
        guard format <= 1 else { throw .invalidCDB(byte: 1) }
        let known = state.withLock { $0.ports }
        let ports = known.isEmpty ? [UnitPort(port: port, access: .activeOptimized)] : known
        var groups: [UInt8] = []
        for tag in Set(ports.map(\.port.groupTag)).sorted() {
            let members = ports.filter { $0.port.groupTag == tag }
            guard let access = members.first?.access else { continue }
            // The first optimized group is the preferred one where there is a choice.
            groups += [access.rawValue, Self.supportedStates]
            groups.append(word: tag)
            // Status code: 02h, changed by implicit behaviour; 00h where nothing is known.
            groups += [0, access == .activeOptimized ? 0x00 : 0x02, 0, UInt8(clamping: members.count)]
            for member in members.prefix(255) {
                groups.append(word: 0)
                groups.append(word: member.port.relativeIdentifier)
            }
        }
        var data: [UInt8] = []
        if format == 1 {
            data.append(long: UInt32(4 + groups.count))
            // Format type 001b; implicit transition time in seconds.
            data += [0x10, Self.transitionSeconds, 0, 0]
        } else {
            data.append(long: UInt32(groups.count))
        }
        return data + groups
    }

    /// T_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP.
    private static var supportedStates: UInt8 { 0x80 | 0x08 | 0x04 | 0x02 | 0x01 }
    /// How long an initiator should wait for the end of a transition.
    private static var transitionSeconds: UInt8 { 60 }
}
