import Synchronization

/// PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16).
extension LogicalUnit {
    func persistentReserveIn(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let state = self.state.withLock { $0.persistent }
        var data: [UInt8] = []
        data.append(long: state.generation)
        switch cdb[1] & 0x1F {
        case 0x00:
            data.append(long: UInt32(state.registrations.count * 8))
            for registration in state.registrations { data.append(quad: registration.key) }
        case 0x01:
            if let held = state.reservation {
                data.append(long: 16)
                data.append(quad: held.kind.isAllRegistrants ? 0 : state.key(of: held.holder) ?? 0)
                data += [0, 0, 0, 0, 0, held.kind.rawValue, 0, 0]
            } else {
                data.append(long: 0)
            }
        case 0x02:
            // SIP_C, ATP_C, and PTPL_C where there is a place to keep them; TMV, PTPL_A, and all six types.
            let canPersist: UInt8 = store == nil ? 0 : 0x01
            data = [0x00, 0x08, 0x0C | canPersist, 0x80 | (state.survivesPowerLoss ? 0x01 : 0), 0xEA, 0x01, 0x00, 0x00]
        case 0x03:
            let descriptors = state.registrations.flatMap { fullStatus($0, state) }
            data.append(long: UInt32(descriptors.count))
            data += descriptors
        default: throw .invalidCDB(byte: 1)
        }
        return .parameterData(Array(data.prefix(Int(cdb.word(7)))))
    }

    private func fullStatus(
        _ registration: PersistentReservations.Registration, _ state: PersistentReservations
    ) -> [UInt8] {
        let holds = state.isHolder(registration.port)
        var data: [UInt8] = []
        data.append(quad: registration.key)
        // ALL_TG_PT is never set: each port has a descriptor of its own.
        data += [0, 0, 0, 0, holds ? 0x01 : 0, holds ? state.reservation?.kind.rawValue ?? 0 : 0, 0, 0, 0, 0]
        data.append(word: registration.port.target.relativeIdentifier)
        let transport = TransportID.encoded(registration.port.initiator)
        data.append(long: UInt32(transport.count))
        return data + transport
    }

    // MARK: OUT

    private static var registerAction: UInt8 { 0x00 }
    private static var moveAction: UInt8 { 0x07 }

    func beginPersistentReserveOut(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let action = cdb[1] & 0x1F
        guard action <= Self.moveAction else { throw .invalidCDB(byte: 1) }
        // Scope: the logical unit is the only one there is.
        let reserves = [0x01, 0x02, 0x04, 0x05].contains(action)
        if reserves {
            guard cdb[2] >> 4 == 0, PersistentReservations.Kind(rawValue: cdb[2] & 0x0F) != nil else {
                throw .invalidCDB(byte: 2)
            }
        }
        let length = Int(cdb.long(5))
        let takesMore = action == Self.registerAction || action == Self.moveAction
        guard length == 24 || takesMore && length > 24 && length <= limits.parameterListBytes else {
            throw .illegal(.parameterListLengthError)
        }
        return .parameterList(lengthBytes: length, ParameterOperation(command: cdb))
    }

    /// What a PERSISTENT RESERVE OUT asks for, its parameter list decoded.
    struct ReservationChange: Sendable {
        var command: CommandBlock
        var list: [UInt8]
    }

    /// With a store it may have to be made durable first, on a thread that may wait.
    func persistentReserveOut(_ cdb: CommandBlock, list: [UInt8], nexus: LogicalUnitNexus) -> CommandDisposition {
        let change = ReservationChange(command: cdb, list: list)
        if store != nil { return .blocking(BlockingOperation(kind: .reserve(change))) }
        do throws(CommandEnd) {
            guard let flag = try publish(change, nexus) else { return .end(.good) }
            return .blocking(BlockingOperation(kind: .drain(flag)))
        } catch {
            return .end(error)
        }
    }

    /// Makes a change durable where it has to be, then lets it take effect.
    /// - Returns: set when the commands that it aborted have left the device; nil when there are none.
    func carryOut(_ change: ReservationChange, _ nexus: LogicalUnitNexus) throws(CommandEnd) -> DrainFlag? {
        guard let store else { return try publish(change, nexus) }
        return try reservationGate.withLock { _ in
            do throws(CommandEnd) {
                // Nobody else changes reservations meanwhile, so what is tried here is what happens below.
                let (before, ports, known) = state.withLock { state in
                    (state.persistent, state.ports.map(\.port), state.nexuses.map(PersistentReservations.Port.init))
                }
                var after = before
                _ = try perform(change, PersistentReservations.Port(nexus), ports, known, &after)
                let isKept = after.survivesPowerLoss && !after.registrations.isEmpty
                if isKept || before.survivesPowerLoss {
                    do throws(ReservationStoreError) {
                        try store.save(isKept ? after.record : nil, naa: identity.naa)
                    } catch {
                        throw .sense(SenseData(.hardwareError, .internalTargetFailure))
                    }
                }
                return Result<DrainFlag?, CommandEnd>.success(try publish(change, nexus))
            } catch {
                return .failure(error)
            }
        }.get()
    }

    private func publish(_ change: ReservationChange, _ nexus: LogicalUnitNexus) throws(CommandEnd) -> DrainFlag? {
        let flag = DrainFlag()
        let waits = try state.withLock { state in
            do throws(CommandEnd) {
                let notices = try perform(
                    change, PersistentReservations.Port(nexus), state.ports.map(\.port),
                    state.nexuses.map(PersistentReservations.Port.init), &state.persistent)
                var aborts = false
                for other in state.nexuses {
                    let port = PersistentReservations.Port(other)
                    for notice in notices.attentions where notice.port == port { other.raise(notice.sense) }
                    if notices.aborted.contains(port) {
                        other.abortCommands()
                        aborts = true
                    }
                }
                // This command runs itself, so the drain is never complete at once.
                return Result<Bool, CommandEnd>.success(aborts && !state.running.drain { flag.set() })
            } catch {
                return .failure(error)
            }
        }.get()
        return waits ? flag : nil
    }

    /// - Parameters:
    ///   - ports: all target ports that lead here.
    ///   - known: the I_T nexuses that there are.
    private func perform(
        _ change: ReservationChange, _ port: PersistentReservations.Port, _ ports: [TargetPort],
        _ known: [PersistentReservations.Port], _ reservations: inout PersistentReservations
    ) throws(CommandEnd) -> PersistentReservations.Notices {
        let cdb = change.command
        let list = change.list
        let key = list.quad(0)
        let other = list.quad(8)
        let kind = PersistentReservations.Kind(rawValue: cdb[2] & 0x0F) ?? .writeExclusive
        let action = cdb[1] & 0x1F
        switch action {
        case 0x00, 0x06:
            let options = try registerOptions(change, port, ports, known)
            return try reservations.register(port, key: key, newKey: other, options)
        case 0x01:
            try reservations.reserve(port, key: key, kind: kind)
            return .init()
        case 0x02: return try reservations.release(port, key: key, kind: kind)
        case 0x03: return try reservations.clear(port, key: key)
        case 0x07:
            let goal = try moveGoal(list, ports, known)
            return try reservations.move(
                port, key: key, to: goal, newKey: other, unregisters: list[17] & 0x02 != 0,
                survivesPowerLoss: try keepsOverPowerLoss(list[17], byte: 17))
        default:
            return try reservations.preempt(port, key: key, victim: other, kind: kind, aborts: action == 0x05)
        }
    }

    private func keepsOverPowerLoss(_ flags: UInt8, byte: UInt16) throws(CommandEnd) -> Bool {
        guard flags & 0x01 != 0 else { return false }
        guard store != nil else { throw .sense(.invalidParameter(byte: byte)) }
        return true
    }

    private func registerOptions(
        _ change: ReservationChange, _ port: PersistentReservations.Port, _ ports: [TargetPort],
        _ known: [PersistentReservations.Port]
    ) throws(CommandEnd) -> PersistentReservations.RegisterOptions {
        let list = change.list
        var options = PersistentReservations.RegisterOptions()
        options.ignoresKey = change.command[1] & 0x1F != Self.registerAction
        options.survivesPowerLoss = try keepsOverPowerLoss(list[20], byte: 20)
        if list[20] & 0x04 != 0 { options.otherPorts = ports }
        guard list[20] & 0x08 != 0 else {
            guard list.count == 24 else { throw .illegal(.parameterListLengthError) }
            return options
        }
        // SPEC_I_PT goes with REGISTER only.
        guard !options.ignoresKey else { throw .sense(.invalidParameter(byte: 20)) }
        guard list.count >= 28, Int(list.long(24)) == list.count - 28 else { throw .illegal(.parameterListLengthError) }
        let through = Set([port.target] + options.otherPorts)
        var offset = 28
        while offset < list.count {
            let start = UInt16(clamping: offset)
            let initiators = try initiatorPorts(list, &offset, known)
            guard !initiators.isEmpty else { throw .sense(.invalidParameter(byte: start)) }
            for initiator in initiators {
                options.others += through.map { PersistentReservations.Port(initiator: initiator, target: $0) }
            }
            guard options.others.count <= PersistentReservations.registrationLimit else {
                throw .illegal(.insufficientRegistrationResources)
            }
        }
        return options
    }

    /// The initiator ports that a TransportID names; without an ISID, those that are known.
    private func initiatorPorts(
        _ list: [UInt8], _ offset: inout Int, _ known: [PersistentReservations.Port]
    ) throws(CommandEnd) -> Set<InitiatorPort> {
        let identifier: TransportID
        do throws(SenseData) {
            identifier = try TransportID(list, &offset)
        } catch {
            throw .sense(error)
        }
        if let isid = identifier.isid { return [InitiatorPort(name: identifier.name, isid: isid)] }
        return Set(known.map(\.initiator).filter { $0.name == identifier.name })
    }

    /// The I_T nexus that REGISTER AND MOVE names.
    private func moveGoal(
        _ list: [UInt8], _ ports: [TargetPort], _ known: [PersistentReservations.Port]
    ) throws(CommandEnd) -> PersistentReservations.Port {
        guard list.count >= 28, Int(list.long(20)) == list.count - 24 else { throw .illegal(.parameterListLengthError) }
        guard let target = ports.first(where: { $0.relativeIdentifier == list.word(18) }) else {
            throw .sense(.invalidParameter(byte: 18))
        }
        var offset = 24
        let initiators = try initiatorPorts(list, &offset, known)
        guard let initiator = initiators.first, initiators.count == 1, offset == list.count else {
            throw .sense(.invalidParameter(byte: 24))
        }
        return PersistentReservations.Port(initiator: initiator, target: target)
    }
}

/// Set when the operations of aborted commands have left the device.
final class DrainFlag: Sendable {
    private let value = Atomic<Bool>(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}
