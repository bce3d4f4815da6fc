/// Who is registered with a logical unit and who holds a reservation (SPC-4 5.13). Pure: changes what it is told, and
/// returns who has to be told.
struct PersistentReservations: Sendable {
    enum Kind: UInt8, Sendable {
        case writeExclusive = 1
        case exclusiveAccess = 3
        case writeExclusiveRegistrantsOnly = 5
        case exclusiveAccessRegistrantsOnly = 6
        case writeExclusiveAllRegistrants = 7
        case exclusiveAccessAllRegistrants = 8

        var isAllRegistrants: Bool { rawValue >= 7 }
        var admitsRegistrants: Bool { rawValue >= 5 }
        var isExclusive: Bool { self == .exclusiveAccess || rawValue == 6 || rawValue == 8 }
    }

    /// The I_T nexus of a registration, which outlives the session.
    struct Port: Hashable, Sendable {
        var initiator: InitiatorPort
        var target: TargetPort

        init(_ nexus: LogicalUnitNexus) {
            initiator = nexus.initiatorPort
            target = nexus.targetPort
        }
    }

    struct Registration: Sendable {
        var port: Port
        var key: UInt64
    }

    struct Reservation: Sendable {
        var kind: Kind
        /// The holder; of an all-registrants reservation, the one who made it.
        var holder: Port
    }

    /// Unit attentions for ports that may or may not have a session now.
    struct Notices {
        var attentions: [(port: Port, sense: AdditionalSense)] = []
        /// Ports whose commands are aborted.
        var aborted: [Port] = []
    }

    /// Registrations of one logical unit.
    static let registrationLimit = 256

    private(set) var generation: UInt32 = 0
    private(set) var registrations: [Registration] = []
    private(set) var reservation: Reservation?

    func key(of port: Port) -> UInt64? { registrations.first { $0.port == port }?.key }

    func isHolder(_ port: Port) -> Bool {
        guard let reservation else { return false }
        return reservation.kind.isAllRegistrants ? key(of: port) != nil : reservation.holder == port
    }

    func conflicts(with nexus: LogicalUnitNexus, access: CommandTraits.Access) -> Bool {
        guard let reservation, access == .read || access == .write else { return false }
        let port = Port(nexus)
        if isHolder(port) { return false }
        if reservation.kind.admitsRegistrants && key(of: port) != nil { return false }
        return reservation.kind.isExclusive || access == .write
    }

    /// RESERVE(6) and persistent reservations exclude each other (SPC-4 annex B, CRH=0).
    var allowsReserve6: Bool { registrations.isEmpty }

    // MARK: Service actions

    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
    mutating func register(
        _ port: Port, key: UInt64, newKey: UInt64, ignoresKey: Bool
    ) throws(CommandEnd) -> Notices {
        var notices = Notices()
        if let index = registrations.firstIndex(where: { $0.port == port }) {
            guard ignoresKey || registrations[index].key == key else { throw .reservationConflict }
            if newKey == 0 {
                unregister(port, &notices)
            } else {
                registrations[index].key = newKey
            }
            generation &+= 1
            return notices
        }
        guard ignoresKey || key == 0 else { throw .reservationConflict }
        guard newKey != 0 else { return notices }
        guard registrations.count < Self.registrationLimit else {
            throw .illegal(.insufficientRegistrationResources)
        }
        registrations.append(Registration(port: port, key: newKey))
        generation &+= 1
        return notices
    }

    private mutating func unregister(_ port: Port, _ notices: inout Notices) {
        let wasHolder = isHolder(port)
        registrations.removeAll { $0.port == port }
        guard wasHolder, let held = reservation else { return }
        if held.kind.isAllRegistrants && !registrations.isEmpty { return }
        reservation = nil
        if held.kind.admitsRegistrants {
            notices.attentions += registrations.map { ($0.port, .reservationsReleased) }
        }
    }

    mutating func reserve(_ port: Port, key: UInt64, kind: Kind) throws(CommandEnd) {
        try check(port, key)
        guard let held = reservation else {
            reservation = Reservation(kind: kind, holder: port)
            return
        }
        guard isHolder(port), held.kind == kind else { throw .reservationConflict }
    }

    mutating func release(_ port: Port, key: UInt64, kind: Kind) throws(CommandEnd) -> Notices {
        try check(port, key)
        var notices = Notices()
        guard let held = reservation, isHolder(port) else { return notices }
        guard held.kind == kind else { throw .illegal(.invalidReleaseOfReservation) }
        reservation = nil
        if kind.admitsRegistrants {
            notices.attentions = registrations.filter { $0.port != port }.map { ($0.port, .reservationsReleased) }
        }
        return notices
    }

    mutating func clear(_ port: Port, key: UInt64) throws(CommandEnd) -> Notices {
        try check(port, key)
        var notices = Notices()
        notices.attentions = registrations.filter { $0.port != port }.map { ($0.port, .reservationsPreempted) }
        registrations = []
        reservation = nil
        generation &+= 1
        return notices
    }

    /// PREEMPT, and with `aborts` PREEMPT AND ABORT (SPC-4 5.13.11.4).
    mutating func preempt(
        _ port: Port, key: UInt64, victim: UInt64, kind: Kind, aborts: Bool
    ) throws(CommandEnd) -> Notices {
        try check(port, key)
        let held = reservation
        let holderKey = held.flatMap { self.key(of: $0.holder) }
        var takesOver = false
        let isVictim: (Registration) -> Bool
        if let held, held.kind.isAllRegistrants, victim == 0 {
            takesOver = true
            isVictim = { $0.port != port }
        } else {
            guard victim != 0 else { throw .sense(.invalidParameter(byte: 8)) }
            takesOver = held.map { !$0.kind.isAllRegistrants } ?? false && holderKey == victim
            guard registrations.contains(where: { $0.key == victim }) else { throw .reservationConflict }
            isVictim = { $0.key == victim && $0.port != port }
        }
        var notices = Notices()
        let removed = registrations.filter(isVictim).map(\.port)
        registrations.removeAll(where: isVictim)
        notices.attentions = removed.map { ($0, .registrationsPreempted) }
        if aborts { notices.aborted = removed }
        if takesOver {
            if let held, held.kind != kind {
                notices.attentions += registrations.filter { $0.port != port }.map { ($0.port, .reservationsReleased) }
            }
            reservation = Reservation(kind: kind, holder: port)
        } else if let held, held.kind.isAllRegistrants, self.key(of: held.holder) == nil {
            reservation?.holder = port
        }
        generation &+= 1
        return notices
    }

    /// The nexus must be registered with this key.
    private func check(_ port: Port, _ key: UInt64) throws(CommandEnd) {
        guard self.key(of: port) == key else { throw .reservationConflict }
    }
}
