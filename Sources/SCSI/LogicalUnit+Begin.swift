import BlockIO
import Synchronization

/// A command that has passed the gate, or was refused there.
public struct StartedCommand: Sendable {
    public let disposition: CommandDisposition
    public let activity: CommandActivity
}

extension LogicalUnit {
    /// Checks a command against unit attentions, reservations, write protection and its own syntax, and says what is
    /// to be done. Commands that need no data transfer and no waiting are carried out here.
    public func begin(_ cdb: CommandBlock, nexus: LogicalUnitNexus) -> StartedCommand {
        let traits = CommandTraits.table[Int(cdb.opcode)]
        var generation: UInt32 = 0
        var isDetached = false
        let refusal: CommandEnd? = state.withLock { state in
            generation = nexus.generation
            isDetached = nexus.isDetached
            return isDetached ? nil : gate(cdb, traits, nexus, &state)
        }
        let activity = CommandActivity(nexus: nexus, generation: generation)
        if isDetached { return StartedCommand(disposition: .detached, activity: activity) }
        if let refusal { return StartedCommand(disposition: .end(refusal), activity: activity) }
        if let index = cdb.controlIndex, cdb[index] & 0x04 != 0 {
            // NACA: there is no ACA condition to establish (NORMACA=0).
            return StartedCommand(disposition: .end(.sense(.invalidCDB(byte: UInt16(index)))), activity: activity)
        }
        if traits.writes && isWriteProtected {
            return StartedCommand(disposition: .end(.sense(.init(.dataProtect, .writeProtected))), activity: activity)
        }
        do throws(SenseData) {
            return StartedCommand(disposition: try decode(cdb, nexus: nexus), activity: activity)
        } catch {
            return StartedCommand(disposition: .end(.sense(error)), activity: activity)
        }
    }

    private func gate(
        _ cdb: CommandBlock, _ traits: CommandTraits, _ nexus: LogicalUnitNexus, _ state: inout State
    ) -> CommandEnd? {
        if !traits.bypassesAttention, nexus.hasAttention, let attention = nexus.takeAttention() {
            return .sense(SenseData(.unitAttention, attention))
        }
        if !state.restrictedGroups.isEmpty, let access = state.restrictedGroups[nexus.targetPort.groupTag],
            !access.allows(cdb.opcode), let refusal = access.refusal
        {
            return .sense(refusal)
        }
        if let holder = state.reservedBy, holder !== nexus, !isAllowedDespiteReserve6(cdb, traits) {
            return .reservationConflict
        }
        if traits.access != .always, state.persistent.conflicts(with: nexus, access: traits.access) {
            return .reservationConflict
        }
        if traits.writes && state.modes.softwareWriteProtect {
            return .sense(SenseData(.dataProtect, .softwareWriteProtected))
        }
        return nil
    }

    /// SPC-2 5.5.1, table 10: what another nexus may do while a RESERVE(6) reservation stands.
    private func isAllowedDespiteReserve6(_ cdb: CommandBlock, _ traits: CommandTraits) -> Bool {
        switch cdb.opcode {
        // RELEASE of somebody else's reservation is GOOD and does nothing.
        case 0x17, 0x57: true
        case 0x1E: cdb[4] & 0x03 == 0
        default: traits.access == .always
        }
    }

    private func decode(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        switch cdb.opcode {
        case 0x08, 0x28, 0xA8, 0x88: try beginRead(cdb)
        case 0x0A, 0x2A, 0xAA, 0x8A: try beginWrite(cdb)
        case 0x9C: try beginWriteAtomic(cdb)
        case 0x2E, 0xAE, 0x8E: try beginWriteAndVerify(cdb)
        case 0x2F, 0xAF, 0x8F: try beginVerify(cdb)
        case 0x8B: try beginOrWrite(cdb)
        case 0x89: try beginCompareAndWrite(cdb)
        case 0x41, 0x93: try beginWriteSame(cdb)
        case 0x42: beginUnmap(cdb)
        case 0x35, 0x91: try beginSynchronizeCache(cdb)
        case 0x34, 0x90: try beginPrefetch(cdb)
        case 0x00: .end(.good)
        case 0x03: requestSense(cdb, nexus: nexus)
        case 0x12: try inquiry(cdb, nexus: nexus)
        case 0x25: try readCapacity10(cdb)
        case 0x9E: try serviceActionIn(cdb)
        case 0x1A, 0x5A: try modeSense(cdb)
        case 0x15, 0x55: try beginModeSelect(cdb)
        case 0x1B: try startStopUnit(cdb, nexus: nexus)
        case 0x1E: try preventAllow(cdb, nexus: nexus)
        case 0xA3: try maintenanceIn(cdb, nexus: nexus)
        case 0x37, 0xB7: try readDefectData(cdb)
        case 0x16, 0x56: try reserve6(cdb, nexus: nexus)
        case 0x17, 0x57: release6(nexus: nexus)
        case 0x83: try beginExtendedCopy(cdb)
        case 0x84: try receiveCopyResults(cdb, nexus: nexus)
        case 0x4D: try logSense(cdb)
        case 0x5E: try persistentReserveIn(cdb)
        case 0x5F: try beginPersistentReserveOut(cdb)
        default: throw .illegal(.invalidOperationCode)
        }
    }

    // MARK: Data

    /// Reads for a command whose disposition was ``CommandDisposition/read(offset:lengthBytes:)``.
    /// - Throws: how the command ends.
    public func read(
        at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer, activity: CommandActivity
    ) throws(CommandEnd) {
        let slot = try enter(activity)
        defer { leave(slot) }
        do throws(BlockError) {
            try device.read(at: offset, into: buffer)
        } catch {
            throw .sense(SenseData(error, blockBytes: blockBytes))
        }
    }

    /// Takes the next piece of a command's data: `bytes` belong at `relative` bytes from its beginning. Offset and
    /// length are multiples of the logical block size.
    /// - Throws: how the command ends.
    public func consume(
        _ operation: DataOutOperation, at relative: Int, bytes: UnsafeRawBufferPointer, activity: CommandActivity
    ) throws(CommandEnd) {
        let slot = try enter(activity)
        defer { leave(slot) }
        let offset = operation.offset + UInt64(relative)
        do throws(BlockError) {
            switch operation.kind {
            case .write: try device.write(at: offset, from: bytes, durability: .cached)
            case .writeAndVerify:
                try device.write(at: offset, from: bytes, durability: .cached)
                try compare(bytes, at: offset)
            case .compare: try compare(bytes, at: offset)
            case .or: try or(bytes, at: offset)
            }
        } catch {
            // INFORMATION is the offset of the first difference in the data of the command (SBC-3 4.10).
            if case .miscompare(let at) = error {
                throw .sense(SenseData(.miscompare, .miscompare, information: at - operation.offset))
            }
            throw .sense(SenseData(error, blockBytes: blockBytes))
        }
    }

    private func compare(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(BlockError) {
        let stored = try stored(at: offset, count: bytes.count)
        guard !stored.elementsEqual(bytes) else { return }
        let first = zip(stored, bytes).enumerated().first { $0.element.0 != $0.element.1 }
        throw .miscompare(offset: offset + UInt64(first?.offset ?? 0))
    }

    private func or(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(BlockError) {
        // Two ORWRITEs of one range must not lose each other's bits: who comes second begins anew.
        while true {
            let previous = try stored(at: offset, count: bytes.count)
            var result = previous
            for index in 0..<bytes.count { result[index] |= bytes[index] }
            do throws(BlockError) {
                return try withBytes(previous, result) { (expected, replacement) throws(BlockError) in
                    try device.compareAndWrite(
                        at: offset, expected: expected, replacement: replacement, durability: .cached)
                }
            } catch {
                guard case .miscompare = error else { throw error }
            }
        }
    }

    private func stored(at offset: UInt64, count: Int) throws(BlockError) -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: max(count, 1), alignment: 4096)
        defer { buffer.deallocate() }
        let slice = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
        try device.read(at: offset, into: slice)
        return [UInt8](slice)
    }

    /// What is left to do when all data of a command was consumed; nil when it is over.
    public func finish(_ operation: DataOutOperation) -> BlockingOperation? {
        operation.isDurable && operation.kind != .compare ? BlockingOperation(kind: .flush) : nil
    }

    /// Does a part of a blocking operation; on a thread that may wait.
    /// - Returns: how the command ended, or nil when there is more to do.
    public func step(_ operation: inout BlockingOperation, activity: CommandActivity) -> CommandEnd? {
        do throws(CommandEnd) {
            let slot = try enter(activity)
            defer { leave(slot) }
            if case .reserve(let change) = operation.kind {
                guard let flag = try carryOut(change, activity.nexus) else { return .good }
                operation.kind = .drain(flag)
                return nil
            }
            if case .copy(var copy) = operation.kind {
                defer { operation.kind = .copy(copy) }
                return step(&copy, activity.nexus)
            }
            do throws(BlockError) {
                guard try operation.step(on: device) else { return nil }
                if operation.isDurable { try device.flush() }
                return .good
            } catch {
                throw .sense(SenseData(error, blockBytes: blockBytes))
            }
        } catch {
            if case .copy(let copy) = operation.kind { abandon(copy) }
            return error
        }
    }
}

/// Both arrays as raw bytes, with a typed error.
func withBytes<Failure: Error>(
    _ first: [UInt8], _ second: [UInt8],
    _ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) throws(Failure) -> Void
) throws(Failure) {
    let result: Result<Void, Failure> = first.withUnsafeBytes { first in
        second.withUnsafeBytes { second in
            do throws(Failure) {
                return .success(try body(first, second))
            } catch {
                return .failure(error)
            }
        }
    }
    try result.get()
}
