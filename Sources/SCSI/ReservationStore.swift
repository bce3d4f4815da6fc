/// Where logical units keep the persistent reservations that are to outlive a power loss (APTPL, SPC-4 5.13.5).
///
/// Calls come from threads that may wait.
public protocol ReservationStore: Sendable {
    /// Returns when `record` is durable in place of the one before; nil removes it.
    /// - Throws: ``ReservationStoreError`` when it is not durable; the one before must still be there then.
    func save(_ record: [UInt8]?, naa: String) throws(ReservationStoreError)

    /// The record that was saved last.
    func load(naa: String) throws(ReservationStoreError) -> [UInt8]?
}

/// Why reservations could not be kept or found.
public struct ReservationStoreError: Error, Equatable, Sendable {
    /// For the log.
    public let reason: String

    public init(_ reason: String) { self.reason = reason }
}

/// The record of ``ReservationStore``, big-endian:
///
/// | bytes | |
/// |---|---|
/// | 4 | `SPR1` |
/// | 1 | the type of the reservation, 0 for none |
/// | 1 | 0 |
/// | 2 | index of the registration that holds it |
/// | 2 | registrations; then for each: |
/// | 8 | its key |
/// | 8 | the initiator's ISID |
/// | 2 | portal group tag |
/// | 2 | relative target port identifier |
/// | 2 + n | the initiator's name |
/// | 2 + n | the target's name |
extension PersistentReservations {
    private static var magic: [UInt8] { Array("SPR1".utf8) }

    var record: [UInt8] {
        var bytes = Self.magic
        let holder = reservation.flatMap { held in registrations.firstIndex { $0.port == held.holder } }
        bytes += [holder == nil ? 0 : reservation?.kind.rawValue ?? 0, 0]
        bytes.append(word: UInt16(holder ?? 0))
        bytes.append(word: UInt16(registrations.count))
        for registration in registrations {
            let port = registration.port
            bytes.append(quad: registration.key)
            bytes.append(quad: port.initiator.isid)
            bytes.append(word: port.target.groupTag)
            bytes.append(word: port.target.relativeIdentifier)
            for name in [port.initiator.name, port.target.name] {
                let text = Array(name.utf8.prefix(Int(UInt16.max)))
                bytes.append(word: UInt16(text.count))
                bytes += text
            }
        }
        return bytes
    }

    /// What ``record`` wrote; nil for anything else. PRGENERATION begins at 0 again (SPC-4 6.15.2).
    init?(record: [UInt8]) {
        guard record.count >= 10, Array(record[..<4]) == Self.magic, record[5] == 0 else { return nil }
        let count = Int(record.word(8))
        guard (1...Self.registrationLimit).contains(count) else { return nil }
        var offset = 10
        var found: [Registration] = []
        for _ in 0..<count {
            guard let registration = Self.registration(record, &offset),
                !found.contains(where: { $0.port == registration.port })
            else { return nil }
            found.append(registration)
        }
        guard offset == record.count else { return nil }
        var held: Reservation?
        if record[4] != 0 {
            guard let kind = Kind(rawValue: record[4]), Int(record.word(6)) < count else { return nil }
            held = Reservation(kind: kind, holder: found[Int(record.word(6))].port)
        }
        self.init(registrations: found, reservation: held, survivesPowerLoss: true)
    }

    private static func registration(_ bytes: [UInt8], _ offset: inout Int) -> Registration? {
        guard offset + 20 <= bytes.count else { return nil }
        let start = offset
        offset += 20
        guard bytes.quad(start) != 0, let initiator = text(bytes, &offset), let target = text(bytes, &offset) else {
            return nil
        }
        return Registration(
            port: Port(
                initiator: InitiatorPort(name: initiator, isid: bytes.quad(start + 8)),
                target: TargetPort(
                    name: target, groupTag: bytes.word(start + 16), relativeIdentifier: bytes.word(start + 18))),
            key: bytes.quad(start))
    }

    private static func text(_ bytes: [UInt8], _ offset: inout Int) -> String? {
        guard offset + 2 <= bytes.count else { return nil }
        let count = Int(bytes.word(offset))
        offset += 2
        guard offset + count <= bytes.count else { return nil }
        defer { offset += count }
        return String(validating: bytes[offset..<offset + count], as: UTF8.self)
    }
}
