import BlockIO
import Synchronization

/// The SPC-4 commands that describe and set up the unit.
extension LogicalUnit {
    // MARK: INQUIRY

    func inquiry(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        let allocation = Int(cdb.word(3))
        let data: [UInt8]
        if cdb[1] & 0x01 != 0 {
            guard let page = vitalProductData(page: cdb[2], nexus: nexus) else { throw .invalidCDB(byte: 2) }
            data = page
        } else {
            // CMDDT is obsolete; a page code needs EVPD.
            if cdb[1] & 0x02 != 0 { throw .invalidCDB(byte: 1) }
            if cdb[2] != 0 { throw .invalidCDB(byte: 2) }
            data = InquiryData.standard(identity)
        }
        return .parameterData(Array(data.prefix(allocation)))
    }

    private func vitalProductData(page: UInt8, nexus: LogicalUnitNexus) -> [UInt8]? {
        switch page {
        case 0x00: InquiryData.page(0x00, InquiryData.supportedPages)
        case 0x80: InquiryData.page(0x80, Array(identity.serial.utf8))
        case 0x83: InquiryData.page(0x83, InquiryData.designators(identity, nexus.targetPort))
        case 0x86: InquiryData.page(0x86, InquiryData.extendedInquiry)
        case 0x8F: InquiryData.page(0x8F, Self.thirdPartyCopyPage)
        case 0xB0:
            InquiryData.page(0xB0, InquiryData.blockLimits(limits, device.geometry, atomicWriteBytes, writeSameBytes))
        // Medium rotation rate 1: nothing turns. WABEREQ and the rest: not reported.
        case 0xB1: InquiryData.page(0xB1, [0x00, 0x01] + [UInt8](repeating: 0, count: 58))
        // The threshold exponent; LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
        case 0xB2: InquiryData.page(0xB2, [thresholdExponent, 0xE4, 0x02, 0x00])
        default: nil
        }
    }

    func requestSense(_ cdb: CommandBlock, nexus: LogicalUnitNexus) -> CommandDisposition {
        let (attention, descriptors) = state.withLock { state in
            (nexus.takeAttention(), cdb[1] & 0x01 != 0)
        }
        let sense = attention.map { SenseData(.unitAttention, $0) } ?? SenseData(.noSense, .none)
        return .parameterData(Array(sense.encoded(descriptorFormat: descriptors).prefix(Int(cdb[4]))))
    }

    // MARK: Mode pages

    func modeSense(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let isShort = cdb.opcode == 0x1A
        guard let control = ModeParameters.Control(rawValue: cdb[2] >> 6), control != .saved else {
            throw .illegal(.savingNotSupported)
        }
        guard cdb[3] == 0 || cdb[3] == 0xFF else { throw .invalidCDB(byte: 3) }
        let modes = state.withLock { $0.modes }
        guard let pages = modes.pages(code: cdb[2] & 0x3F, control: control) else { throw .invalidCDB(byte: 2) }
        let isProtected = isWriteProtected || modes.softwareWriteProtect
        // DPOFUA: FUA is honoured.
        let deviceSpecific: UInt8 = (isProtected ? 0x80 : 0) | 0x10
        let isLong = !isShort && cdb[1] & 0x10 != 0
        let block = cdb[1] & 0x08 != 0 ? [] : blockDescriptor(isLong: isLong)
        var data: [UInt8]
        if isShort {
            data = [0, 0, deviceSpecific, UInt8(block.count)]
        } else {
            data = [0, 0, 0, deviceSpecific, isLong ? 1 : 0, 0, 0, UInt8(block.count)]
        }
        data += block + pages
        if isShort { data[0] = UInt8(data.count - 1) } else { data.set(word: UInt16(data.count - 2), at: 0) }
        return .parameterData(Array(data.prefix(isShort ? Int(cdb[4]) : Int(cdb.word(7)))))
    }

    private func blockDescriptor(isLong: Bool) -> [UInt8] {
        var block: [UInt8] = []
        if isLong {
            block.append(quad: blockCount)
            block.append(long: 0)
        } else {
            block.append(long: UInt32(min(blockCount, 0xFFFF_FFFF)))
        }
        block.append(long: UInt32(blockBytes))
        return block
    }

    func beginModeSelect(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        // PF=0 is vendor-specific, SP=1 would save: neither is there.
        guard cdb[1] & 0x11 == 0x10 else { throw .invalidCDB(byte: 1) }
        let length = cdb.opcode == 0x15 ? Int(cdb[4]) : Int(cdb.word(7))
        if length == 0 { return .end(.good) }
        return .parameterList(lengthBytes: length, ParameterOperation(command: cdb))
    }

    private func modeSelect(
        _ cdb: CommandBlock, list: [UInt8], nexus: LogicalUnitNexus
    ) throws(SenseData) -> CommandDisposition {
        let header = cdb.opcode == 0x15 ? 4 : 8
        guard list.count >= header else { throw .illegal(.parameterListLengthError) }
        let blockDescriptor = header == 4 ? Int(list[3]) : Int(list.word(6))
        guard list.count >= header + blockDescriptor else { throw .illegal(.parameterListLengthError) }
        let result: Result<Void, SenseData> = state.withLock { state in
            do throws(SenseData) {
                let before = state.modes
                try state.modes.select(list, start: header + blockDescriptor)
                if state.modes != before {
                    for other in state.nexuses where other !== nexus { other.raise(.modeParametersChanged) }
                }
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        try result.get()
        return .end(.good)
    }

    // MARK: With their parameter list

    /// Carries out a command whose parameter list is complete.
    public func finish(
        _ operation: ParameterOperation, list: [UInt8], activity: CommandActivity
    ) -> CommandDisposition {
        do throws(CommandEnd) {
            let slot = try enter(activity)
            defer { leave(slot) }
            do throws(SenseData) {
                return try carryOut(operation.command, list: list, nexus: activity.nexus)
            } catch {
                throw .sense(error)
            }
        } catch {
            return .end(error)
        }
    }

    private func carryOut(
        _ cdb: CommandBlock, list: [UInt8], nexus: LogicalUnitNexus
    ) throws(SenseData) -> CommandDisposition {
        switch cdb.opcode {
        case 0x89: try compareAndWrite(cdb, list: list)
        case 0x9C: try writeAtomic(cdb, list: list)
        case 0x41, 0x93: try writeSame(cdb, list: list)
        case 0x42: try unmap(list)
        case 0x15, 0x55: try modeSelect(cdb, list: list, nexus: nexus)
        case 0x83: try extendedCopy(list, nexus: nexus)
        case 0x5F: persistentReserveOut(cdb, list: list, nexus: nexus)
        default: throw .illegal(.invalidOperationCode)
        }
    }

    // MARK: Small commands

    /// START STOP UNIT: there is no motor. Stopping writes the cache out; the unit stays ready, because a host that
    /// shuts down must not take a shared volume away from the others.
    func startStopUnit(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        let powerCondition = cdb[4] >> 4
        guard [0, 1, 2, 3, 7, 10, 11].contains(powerCondition) else { throw .invalidCDB(byte: 4) }
        if powerCondition == 0 {
            // LOEJ: the medium cannot be removed.
            if cdb[4] & 0x02 != 0 { throw .invalidCDB(byte: 4) }
            if cdb[4] & 0x01 == 0 {
                let isForeign = state.withLock { state in
                    state.persistent.conflicts(with: nexus, access: .write)
                }
                if isForeign { return .end(.reservationConflict) }
                if cdb[4] & 0x04 == 0 { return .blocking(BlockingOperation(kind: .flush)) }
            }
        }
        return .end(.good)
    }

    func preventAllow(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        guard cdb[4] & 0x03 < 2 else { throw .invalidCDB(byte: 4) }
        let prevents = cdb[4] & 0x01 != 0
        let isConflict = state.withLock { state in
            if prevents && state.persistent.conflicts(with: nexus, access: .write) { return true }
            state.preventers.removeAll { $0 === nexus }
            if prevents { state.preventers.append(nexus) }
            return false
        }
        return .end(isConflict ? .reservationConflict : .good)
    }

    // MARK: RESERVE(6)

    func reserve6(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        // Extents and third parties went with SPC-2.
        guard cdb[1] & 0x1F == 0 else { throw .invalidCDB(byte: 1) }
        let isFree = state.withLock { state in
            guard state.persistent.allowsReserve6 else { return false }
            state.reservedBy = nexus
            return true
        }
        return .end(isFree ? .good : .reservationConflict)
    }

    func release6(nexus: LogicalUnitNexus) -> CommandDisposition {
        state.withLock { state in
            if state.reservedBy === nexus { state.reservedBy = nil }
        }
        return .end(.good)
    }
}
