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

        init(initiator: InitiatorPort, target: TargetPort) {
            self.initiator = initiator
            self.target = target
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
    /// APTPL of the last REGISTER: all of this outlives a power loss.
    private(set) var survivesPowerLoss = false

    init(
        registrations: [Registration] = [], reservation: Reservation? = nil, survivesPowerLoss: Bool = false
    ) {
        self.registrations = registrations
        self.reservation = reservation
        self.survivesPowerLoss = survivesPowerLoss
    }

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

    /// Whether one of the initiator's ports, whichever it is, may have this access.
    func admits(initiator name: String, access: CommandTraits.Access) -> Bool {
        guard let reservation else { return true }
        guard reservation.kind.isExclusive || access == .write else { return true }
        return registrations.contains { registration in
            registration.port.initiator.name == name
                && (reservation.kind.admitsRegistrants || isHolder(registration.port))
        }
    }

    /// RESERVE(6) and persistent reservations exclude each other (SPC-4 annex B, CRH=0).
    var allowsReserve6: Bool { registrations.isEmpty }

    // MARK: Service actions

    /// What REGISTER and REGISTER AND IGNORE EXISTING KEY say beside the key.
    struct RegisterOptions {
        var ignoresKey = false
        /// APTPL; nil leaves it.
        var survivesPowerLoss: Bool?
        /// ALL_TG_PT: the ports through which the initiator is registered, or loses its registration, too.
        var otherPorts: [TargetPort] = []
        /// SPEC_I_PT: I_T nexuses that get the same key, unless they have one.
        var others: [Port] = []
    }

    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7). All or nothing.
    mutating func register(
        _ port: Port, key: UInt64, newKey: UInt64, _ options: RegisterOptions = .init()
    ) throws(CommandEnd) -> Notices {
        var new = self
        var notices = Notices()
        let isRegistered = self.key(of: port) != nil
        if isRegistered {
            guard options.ignoresKey || self.key(of: port) == key else { throw .reservationConflict }
            // Only a new registration brings others with it.
            guard options.others.isEmpty else { throw .sense(.invalidCDB(byte: 1)) }
        } else {
            guard options.ignoresKey || key == 0 else { throw .reservationConflict }
            guard newKey != 0 || !options.others.isEmpty else { return notices }
            guard newKey != 0 else { throw .sense(.invalidParameter(byte: 8)) }
        }
        let own = options.otherPorts.map { Port(initiator: port.initiator, target: $0) }
        for each in [port] + own.filter({ $0 != port }) {
            if newKey == 0 {
                new.unregister(each, &notices)
            } else {
                try new.setKey(newKey, of: each)
            }
        }
        for other in options.others where new.key(of: other) == nil { try new.setKey(newKey, of: other) }
        new.survivesPowerLoss = options.survivesPowerLoss ?? survivesPowerLoss
        new.generation &+= 1
        self = new
        return notices
    }

    private mutating func setKey(_ key: UInt64, of port: Port) throws(CommandEnd) {
        if let index = registrations.firstIndex(where: { $0.port == port }) {
            registrations[index].key = key
            return
        }
        guard registrations.count < Self.registrationLimit else {
            throw .illegal(.insufficientRegistrationResources)
        }
        registrations.append(Registration(port: port, key: key))
    }

    /// REGISTER AND MOVE (SPC-4 5.13.8): the reservation goes to another I_T nexus, which is registered with `newKey`.
    mutating func move(
        _ port: Port, key: UInt64, to other: Port, newKey: UInt64, unregisters: Bool, survivesPowerLoss: Bool
    ) throws(CommandEnd) -> Notices {
        try check(port, key)
        guard let held = reservation else { throw .sense(.invalidCDB(byte: 1)) }
        guard isHolder(port) else { throw .reservationConflict }
        // An all-registrants reservation has no single holder that it could be moved to.
        guard !held.kind.isAllRegistrants else { throw .sense(.invalidCDB(byte: 1)) }
        guard newKey != 0 else { throw .sense(.invalidParameter(byte: 8)) }
        guard other != port else { throw .sense(.invalidParameter(byte: 24)) }
        var new = self
        try new.setKey(newKey, of: other)
        new.reservation = Reservation(kind: held.kind, holder: other)
        if unregisters { new.registrations.removeAll { $0.port == port } }
        new.survivesPowerLoss = survivesPowerLoss
        new.generation &+= 1
        self = new
        return Notices()
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
