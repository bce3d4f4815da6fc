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
            // Nothing beyond the basics: no APTPL, one port at a time. TMV, and all six types.
            data = [0x00, 0x08, 0x00, 0x80, 0xEA, 0x01, 0x00, 0x00]
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
        data += [0, 0, 0, 0, holds ? 0x01 : 0, holds ? state.reservation?.kind.rawValue ?? 0 : 0, 0, 0, 0, 0]
        data.append(word: registration.port.target.relativeIdentifier)
        let transport = transportID(registration.port.initiator)
        data.append(long: UInt32(transport.count))
        return data + transport
    }

    /// An iSCSI TransportID with name and ISID (SPC-4 7.6.4.6).
    private func transportID(_ port: InitiatorPort) -> [UInt8] {
        let digits = String(port.isid, radix: 16)
        let isid = String(repeating: "0", count: max(0, 12 - digits.utf8.count)) + digits
        var name = Array("\(port.name),i,0x\(isid)".utf8) + [0]
        while name.count % 4 != 0 { name.append(0) }
        return [0x45, 0x00, UInt8(name.count >> 8), UInt8(name.count & 0xFF)] + name
    }

    func beginPersistentReserveOut(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let action = cdb[1] & 0x1F
        guard action <= 0x06 else { throw .invalidCDB(byte: 1) }
        // Scope: the logical unit is the only one there is.
        let reserves = [0x01, 0x02, 0x04, 0x05].contains(action)
        if reserves {
            guard cdb[2] >> 4 == 0, PersistentReservations.Kind(rawValue: cdb[2] & 0x0F) != nil else {
                throw .invalidCDB(byte: 2)
            }
        }
        guard cdb.long(5) == 24 else { throw .illegal(.parameterListLengthError) }
        return .parameterList(lengthBytes: 24, ParameterOperation(command: cdb))
    }

    func persistentReserveOut(_ cdb: CommandBlock, list: [UInt8], nexus: LogicalUnitNexus) -> CommandDisposition {
        // SPEC_I_PT, ALL_TG_PT and APTPL are not offered (REPORT CAPABILITIES).
        if list[20] & 0x0D != 0 { return .end(.sense(.invalidParameter(byte: 20))) }
        let flag = DrainFlag()
        let result: Result<Bool, CommandEnd> = state.withLock { state in
            do throws(CommandEnd) {
                let notices = try Self.perform(cdb, list, PersistentReservations.Port(nexus), &state.persistent)
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
                return .success(aborts && !state.running.drain { flag.set() })
            } catch {
                return .failure(error)
            }
        }
        switch result {
        case .failure(let end): return .end(end)
        case .success(let waits): return waits ? .blocking(BlockingOperation(kind: .drain(flag))) : .end(.good)
        }
    }

    private static func perform(
        _ cdb: CommandBlock, _ list: [UInt8], _ port: PersistentReservations.Port,
        _ reservations: inout PersistentReservations
    ) throws(CommandEnd) -> PersistentReservations.Notices {
        let key = list.quad(0)
        let other = list.quad(8)
        let kind = PersistentReservations.Kind(rawValue: cdb[2] & 0x0F) ?? .writeExclusive
        switch cdb[1] & 0x1F {
        case 0x00: return try reservations.register(port, key: key, newKey: other, ignoresKey: false)
        case 0x01: try reservations.reserve(port, key: key, kind: kind)
        case 0x02: return try reservations.release(port, key: key, kind: kind)
        case 0x03: return try reservations.clear(port, key: key)
        case 0x04, 0x05:
            return try reservations.preempt(
                port, key: key, victim: other, kind: kind, aborts: cdb[1] & 0x1F == 0x05)
        default: return try reservations.register(port, key: key, newKey: other, ignoresKey: true)
        }
        return .init()
    }
}

/// Set when the operations of aborted commands have left the device.
final class DrainFlag: Sendable {
    private let value = Atomic<Bool>(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}
