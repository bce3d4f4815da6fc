import BlockIO
import Synchronization

/// Which units a copy may reach; answered by the target's registry. Without one, a unit copies within itself only.
public protocol CopyDirectory: Sendable {
    /// Opens the unit for one step, unless the initiator may not reach it, or it is not mapped now. Nobody takes the
    /// unit away before ``LogicalUnit/endVisit(_:)``.
    func visit(naa: String, from nexus: LogicalUnitNexus) -> UnitVisit?
}

/// A unit that a copy from another one is touching.
public struct UnitVisit {
    public let unit: LogicalUnit
    fileprivate let slot: RunningOperations.Slot
}

extension LogicalUnit {
    /// Counts a copy step in that did not come as a command of this unit.
    public func beginVisit() -> UnitVisit { UnitVisit(unit: self, slot: state.withLock { $0.running.enter() }) }

    public func endVisit(_ visit: UnitVisit) { leave(visit.slot) }

    /// Whether this initiator may read or write here as far as reservations and write protection go. A copy comes
    /// through no I_T nexus of this unit, so what one of the initiator's ports may do, it may.
    fileprivate func admitsCopy(from nexus: LogicalUnitNexus, writes: Bool) -> Bool {
        if writes && isWriteProtected { return false }
        return state.withLock { state in
            if writes && state.modes.softwareWriteProtect { return false }
            if let holder = state.reservedBy, holder.initiatorPort.name != nexus.initiatorPort.name { return false }
            return state.persistent.admits(initiator: nexus.initiatorPort.name, access: writes ? .write : .read)
        }
    }
}

/// The segments of an EXTENDED COPY that are still to be copied.
struct CopyOperation: Sendable {
    /// A segment in bytes, what was copied taken off.
    struct Piece: Sendable {
        var segment: Int
        var source: String
        var destination: String
        var from: UInt64
        var to: UInt64
        var lengthBytes: UInt64
    }

    let identifier: UInt8?
    let segmentCount: Int
    var pieces: [Piece]
    var copiedBytes: UInt64 = 0
    /// Which of the unit's copies it is.
    var number: UInt64 = 0

    /// Bytes copied by one step, so that many long commands take turns.
    static let stepBytes: UInt64 = 4 << 20
    private static let bufferBytes: UInt64 = 256 << 10

    /// Copies a part of the first piece; the units are held meanwhile.
    mutating func step(_ own: LogicalUnit, _ nexus: LogicalUnitNexus) throws(SenseData) -> Bool {
        guard let piece = pieces.first else { return true }
        let source = try visit(piece.source, own, nexus, piece)
        defer { if let source { source.unit.endVisit(source) } }
        let destination = try visit(piece.destination, own, nexus, piece)
        defer { if let destination { destination.unit.endVisit(destination) } }
        let from = source?.unit ?? own
        let to = destination?.unit ?? own
        guard from.admitsCopy(from: nexus, writes: false), to.admitsCopy(from: nexus, writes: true) else {
            throw Self.aborted(.thirdPartyDeviceFailure, piece)
        }
        let count = min(piece.lengthBytes, Self.stepBytes)
        // Where the two overlap, the end is copied first when the copy goes up, so that nothing is read that was
        // written.
        let goesBackwards = from === to && piece.to > piece.from && piece.to < piece.from + piece.lengthBytes
        let skip = goesBackwards ? piece.lengthBytes - count : 0
        do throws(BlockError) {
            try Self.copy(
                from.device, piece.from + skip, to.device, piece.to + skip, count, goesBackwards: goesBackwards)
            if !to.hasWriteCache { try to.device.flush() }
        } catch {
            var sense = Self.aborted(.thirdPartyDeviceFailure, piece)
            if case .medium(let offset) = error { sense.information = offset / UInt64(max(from.blockBytes, 1)) }
            throw sense
        }
        copiedBytes += count
        if count == piece.lengthBytes {
            pieces.removeFirst()
        } else {
            pieces[0].lengthBytes -= count
            if !goesBackwards {
                pieces[0].from += count
                pieces[0].to += count
            }
        }
        return pieces.isEmpty
    }

    /// Nil for the unit that the command came to: it is held by the command itself.
    private func visit(
        _ naa: String, _ own: LogicalUnit, _ nexus: LogicalUnitNexus, _ piece: Piece
    ) throws(SenseData) -> UnitVisit? {
        if naa == own.identity.naa { return nil }
        guard let visit = nexus.copyDirectory?.visit(naa: naa, from: nexus) else {
            throw Self.aborted(.copyTargetUnreachable, piece)
        }
        return visit
    }

    /// COPY ABORTED, with the segment in the COMMAND-SPECIFIC INFORMATION field (SPC-4 6.4.4).
    static func aborted(_ reason: AdditionalSense, _ piece: Piece) -> SenseData {
        aborted(reason, segment: piece.segment)
    }

    static func aborted(_ reason: AdditionalSense, segment: Int) -> SenseData {
        var sense = SenseData(.copyAborted, reason)
        sense.commandSpecific = UInt64(segment)
        return sense
    }

    private static func copy(
        _ source: any BlockDevice, _ from: UInt64, _ destination: any BlockDevice, _ to: UInt64, _ count: UInt64,
        goesBackwards: Bool
    ) throws(BlockError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(min(count, bufferBytes)), alignment: 4096)
        defer { buffer.deallocate() }
        var done: UInt64 = 0
        while done < count {
            var length = min(count - done, UInt64(buffer.count))
            var at = goesBackwards ? count - done - length : done
            if !goesBackwards {
                // What is a hole there becomes one here, however long it is.
                let run = try source.provisioning(at: from + at, maxLengthBytes: count - done)
                if !run.isMapped {
                    length = min(max(run.lengthBytes, 1), count - done)
                    try destination.unmap(at: to + at, lengthBytes: length)
                    done += length
                    continue
                }
                length = min(length, run.lengthBytes)
                at = done
            }
            let slice = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(length)])
            try source.read(at: from + at, into: slice)
            try destination.write(at: to + at, from: UnsafeRawBufferPointer(slice), durability: .cached)
            done += length
        }
    }
}

/// How a copy ended, for RECEIVE COPY RESULTS.
struct CopyResult: Sendable {
    enum Status: UInt8, Sendable {
        case inProgress = 0
        case completed = 1
        case failed = 2
    }
    /// Nil where nobody will ask.
    var identifier: UInt8?
    var status: Status
    var segments: Int
    var copiedBytes: UInt64
    var sense: SenseData?
}
