import BlockIO
import Synchronization

/// The SBC-3 commands that name logical blocks.
extension LogicalUnit {
    /// The blocks that a CDB names, in bytes.
    struct Extent {
        var offset: UInt64
        var lengthBytes: Int
    }

    /// Where READ, WRITE, VERIFY and their kind have LBA and length; by CDB size.
    private func rawExtent(_ cdb: CommandBlock) -> (lba: UInt64, blocks: UInt64) {
        switch cdb.opcode >> 5 {
        case 0:
            let blocks = UInt64(cdb[4])
            return (UInt64(cdb.long(0) & 0x1F_FFFF), blocks == 0 ? 256 : blocks)
        case 1, 2: return (UInt64(cdb.long(2)), UInt64(cdb.word(7)))
        case 5: return (UInt64(cdb.long(2)), UInt64(cdb.long(6)))
        default: return (cdb.quad(2), UInt64(cdb.long(10)))
        }
    }

    private func check(lba: UInt64, blocks: UInt64) throws(SenseData) {
        let count = blockCount
        guard lba <= count, blocks <= count - lba else {
            throw SenseData(.illegalRequest, .blockAddressOutOfRange, information: lba)
        }
    }

    /// LBA and length of a data command, checked against size, protection bits and the transfer limit.
    private func extent(_ cdb: CommandBlock) throws(SenseData) -> Extent {
        if cdb.opcode >> 5 != 0, cdb[1] & 0xE0 != 0 { throw .invalidCDB(byte: 1) }
        let (lba, blocks) = rawExtent(cdb)
        try check(lba: lba, blocks: blocks)
        guard blocks <= UInt64(limits.transferBytes / blockBytes) else { throw .illegal(.invalidFieldInCDB) }
        return Extent(offset: lba * UInt64(blockBytes), lengthBytes: Int(blocks) * blockBytes)
    }

    private func forcesUnitAccess(_ cdb: CommandBlock) -> Bool { cdb.opcode >> 5 != 0 && cdb[1] & 0x08 != 0 }

    /// Whether a write must be durable before it is answered.
    private func isDurable(_ cdb: CommandBlock) -> Bool {
        forcesUnitAccess(cdb) || !state.withLock { $0.modes.writeCache }
    }

    private func dataOut(_ kind: DataOutOperation.Kind, _ extent: Extent, isDurable: Bool) -> CommandDisposition {
        if extent.lengthBytes == 0 { return .end(.good) }
        return .dataOut(
            DataOutOperation(
                kind: kind, offset: extent.offset, lengthBytes: extent.lengthBytes, isDurable: isDurable))
    }

    func beginRead(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let extent = try extent(cdb)
        return extent.lengthBytes == 0
            ? .end(.good) : .read(offset: extent.offset, lengthBytes: extent.lengthBytes)
    }

    func beginWrite(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        dataOut(.write, try extent(cdb), isDurable: isDurable(cdb))
    }

    func beginWriteAndVerify(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        // BYTCHK=10b is reserved; 11b (one block compared with all) makes no sense for a write.
        if cdb[1] & 0x04 != 0 { throw .invalidCDB(byte: 1) }
        return dataOut(.writeAndVerify, try extent(cdb), isDurable: true)
    }

    func beginOrWrite(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        dataOut(.or, try extent(cdb), isDurable: isDurable(cdb))
    }

    func beginVerify(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let extent = try extent(cdb)
        switch (cdb[1] >> 1) & 0x03 {
        case 0:
            if extent.lengthBytes == 0 { return .end(.good) }
            let range = extent.offset..<extent.offset + UInt64(extent.lengthBytes)
            return .blocking(BlockingOperation(kind: .check([range])))
        case 1: return dataOut(.compare, extent, isDurable: false)
        default: throw .invalidCDB(byte: 1)
        }
    }

    func beginCompareAndWrite(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        if cdb[1] & 0xE0 != 0 { throw .invalidCDB(byte: 1) }
        let blocks = UInt64(cdb[13])
        try check(lba: cdb.quad(2), blocks: blocks)
        guard blocks <= UInt64(limits.compareAndWriteBytes / blockBytes) else { throw .invalidCDB(byte: 13) }
        // With 0 blocks too: data that comes along with none announced is refused.
        return .parameterList(lengthBytes: 2 * Int(blocks) * blockBytes, ParameterOperation(command: cdb))
    }

    func beginWriteAtomic(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        if cdb[1] & 0xE0 != 0 { throw .invalidCDB(byte: 1) }
        let blocks = UInt64(cdb.word(12))
        try check(lba: cdb.quad(2), blocks: blocks)
        // ATOMIC BOUNDARY: writes that are cut into several atomic ones are not offered (VPD B0).
        guard cdb.word(10) == 0 else { throw .invalidCDB(byte: 10) }
        guard blocks <= UInt64(atomicWriteBytes / blockBytes) else { throw .invalidCDB(byte: 12) }
        // All of it is gathered, because the device takes it at once or not at all.
        return .parameterList(lengthBytes: Int(blocks) * blockBytes, ParameterOperation(command: cdb))
    }

    /// MAXIMUM ATOMIC TRANSFER LENGTH, in bytes.
    var atomicWriteBytes: Int { min(device.atomicWriteBytes, limits.transferBytes) }

    func beginSynchronizeCache(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let (lba, blocks) = rawExtent(cdb)
        try check(lba: lba, blocks: blocks)
        return .blocking(BlockingOperation(kind: .flush))
    }

    /// PRE-FETCH: there is no cache of our own to fill; the range is checked.
    func beginPrefetch(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let (lba, blocks) = rawExtent(cdb)
        try check(lba: lba, blocks: blocks)
        return .end(.good)
    }

    func beginWriteSame(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let is16 = cdb.opcode == 0x93
        let unmaps = cdb[1] & 0x08 != 0
        let hasNoData = is16 && cdb[1] & 0x01 != 0
        // Protection information, LBDATA/PBDATA (obsolete), ANCHOR: not there.
        if cdb[1] & 0xF0 != 0 || cdb[1] & 0x06 != 0 { throw .invalidCDB(byte: 1) }
        let (lba, blocks) = rawExtent(cdb)
        try check(lba: lba, blocks: blocks)
        guard blocks > 0, blocks <= writeSameBytes / UInt64(blockBytes) else {
            throw .invalidCDB(byte: is16 ? 10 : 7)
        }
        if hasNoData {
            return fill(lba: lba, blocks: blocks, pattern: nil, unmaps: unmaps)
        }
        return .parameterList(lengthBytes: blockBytes, ParameterOperation(command: cdb))
    }

    /// MAXIMUM WRITE SAME LENGTH, in bytes: the device takes so much as one change.
    var writeSameBytes: UInt64 { min(device.writeSameBytes, limits.writeSameBytes) }

    /// WRITE SAME with its block: zeros with UNMAP deallocate, everything else is written.
    func fill(lba: UInt64, blocks: UInt64, pattern: [UInt8]?, unmaps: Bool) -> CommandDisposition {
        let start = lba * UInt64(blockBytes)
        let range = start..<start + blocks * UInt64(blockBytes)
        let durable = !state.withLock { $0.modes.writeCache }
        if range.isEmpty { return .end(.good) }
        let isZero = pattern?.allSatisfy { $0 == 0 } ?? true
        // NDOB without UNMAP asks for zeros that stay allocated; a thin volume reads zeros either way.
        if isZero && (unmaps || pattern == nil) {
            return .blocking(BlockingOperation(kind: .unmap([range]), isDurable: durable))
        }
        let block = pattern ?? [UInt8](repeating: 0, count: blockBytes)
        return .blocking(BlockingOperation(kind: .fill(range, block: block), isDurable: durable))
    }

    func beginUnmap(_ cdb: CommandBlock) -> CommandDisposition {
        if cdb[1] & 0x01 != 0 { return .end(.sense(.invalidCDB(byte: 1))) }
        let length = Int(cdb.word(7))
        if length == 0 { return .end(.good) }
        if length < 8 { return .end(.illegal(.parameterListLengthError)) }
        return .parameterList(lengthBytes: length, ParameterOperation(command: cdb))
    }

    // MARK: With their parameter list

    func compareAndWrite(_ cdb: CommandBlock, list: [UInt8]) throws(SenseData) -> CommandDisposition {
        let offset = cdb.quad(2) * UInt64(blockBytes)
        let half = list.count / 2
        if half == 0 { return .end(.good) }
        let result: Result<Void, BlockError> = list.withUnsafeBytes { bytes in
            do throws(BlockError) {
                try device.compareAndWrite(
                    at: offset, expected: UnsafeRawBufferPointer(rebasing: bytes[..<half]),
                    replacement: UnsafeRawBufferPointer(rebasing: bytes[half...]), durability: .cached)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        switch result {
        case .success: break
        // INFORMATION is the offset of the first difference in the data that was compared (SBC-3 5.2).
        case .failure(.miscompare(let at)): throw SenseData(.miscompare, .miscompare, information: at - offset)
        case .failure(let error): throw SenseData(error, blockBytes: blockBytes)
        }
        return isDurable(cdb) ? .blocking(BlockingOperation(kind: .flush)) : .end(.good)
    }

    func writeAtomic(_ cdb: CommandBlock, list: [UInt8]) throws(SenseData) -> CommandDisposition {
        if list.isEmpty { return .end(.good) }
        let offset = cdb.quad(2) * UInt64(blockBytes)
        let result: Result<Void, BlockError> = list.withUnsafeBytes { bytes in
            do throws(BlockError) {
                return .success(try device.write(at: offset, from: bytes, durability: .cached))
            } catch {
                return .failure(error)
            }
        }
        if case .failure(let error) = result { throw SenseData(error, blockBytes: blockBytes) }
        return isDurable(cdb) ? .blocking(BlockingOperation(kind: .flush)) : .end(.good)
    }

    func writeSame(_ cdb: CommandBlock, list: [UInt8]) throws(SenseData) -> CommandDisposition {
        let (lba, blocks) = rawExtent(cdb)
        return fill(lba: lba, blocks: blocks, pattern: list, unmaps: cdb[1] & 0x08 != 0)
    }

    func unmap(_ list: [UInt8]) throws(SenseData) -> CommandDisposition {
        let descriptorBytes = Int(list.word(2))
        guard descriptorBytes <= list.count - 8 else { throw .illegal(.parameterListLengthError) }
        let count = descriptorBytes / 16
        guard count <= limits.unmapDescriptors else { throw .illegal(.invalidFieldInParameterList) }
        var ranges: [Range<UInt64>] = []
        var total: UInt64 = 0
        for index in 0..<count {
            let lba = list.quad(8 + 16 * index)
            let blocks = UInt64(list.long(16 + 16 * index))
            try check(lba: lba, blocks: blocks)
            if blocks == 0 { continue }
            let start = lba * UInt64(blockBytes)
            ranges.append(start..<start + blocks * UInt64(blockBytes))
            total += blocks * UInt64(blockBytes)
        }
        guard total <= limits.unmapBytes else { throw .illegal(.invalidFieldInParameterList) }
        let durable = !state.withLock { $0.modes.writeCache }
        if ranges.isEmpty { return .end(.good) }
        if total > limits.inlineUnmapBytes || durable {
            return .blocking(BlockingOperation(kind: .unmap(ranges), isDurable: durable))
        }
        do throws(BlockError) {
            for range in ranges {
                try device.unmap(at: range.lowerBound, lengthBytes: range.upperBound - range.lowerBound)
            }
        } catch {
            throw SenseData(error, blockBytes: blockBytes)
        }
        return .end(.good)
    }

    // MARK: Capacity

    func readCapacity10(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        if cdb[8] & 0x01 == 0, cdb.long(2) != 0 { throw .invalidCDB(byte: 2) }
        var data: [UInt8] = []
        data.append(long: UInt32(min(max(blockCount, 1) - 1, 0xFFFF_FFFF)))
        data.append(long: UInt32(blockBytes))
        return .parameterData(data)
    }

    func serviceActionIn(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        switch cdb[1] & 0x1F {
        case 0x10:
            var data = [UInt8](repeating: 0, count: 32)
            data.set(quad: max(blockCount, 1) - 1, at: 0)
            data.set(long: UInt32(blockBytes), at: 8)
            let perPhysical = max(device.geometry.physicalBlockBytes / blockBytes, 1)
            data[13] = UInt8(perPhysical.trailingZeroBitCount & 0x0F)
            // LBPME, LBPRZ: thin, and unmapped blocks read as zeros.
            data[14] = 0xC0
            return .parameterData(Array(data.prefix(Int(cdb.long(10)))))
        case 0x12: return try getLBAStatus(cdb)
        default: throw .invalidCDB(byte: 1)
        }
    }

    /// Descriptors that one GET LBA STATUS answers with at most.
    private static var statusDescriptorLimit: Int { 32 }

    private func getLBAStatus(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        let block = UInt64(blockBytes)
        var lba = cdb.quad(2)
        let end = blockCount
        guard lba < end else { throw SenseData(.illegalRequest, .blockAddressOutOfRange, information: lba) }
        let room = max(1, min((Int(cdb.long(10)) - 8) / 16, Self.statusDescriptorLimit))
        var data = [UInt8](repeating: 0, count: 8)
        do throws(BlockError) {
            for _ in 0..<room where lba < end {
                let most = min(end - lba, UInt64(UInt32.max))
                let run = try device.provisioning(at: lba * block, maxLengthBytes: most * block)
                let blocks = min(max(run.lengthBytes / block, 1), most)
                data.append(quad: lba)
                data.append(long: UInt32(blocks))
                data += [run.isMapped ? 0 : 1, 0, 0, 0]
                lba += blocks
            }
        } catch {
            throw SenseData(error, blockBytes: blockBytes)
        }
        data.set(long: UInt32(data.count - 4), at: 0)
        return .parameterData(Array(data.prefix(Int(cdb.long(10)))))
    }

    /// READ DEFECT DATA: a volume has no defects; both lists are empty.
    func readDefectData(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        if cdb.opcode == 0x37 {
            let data: [UInt8] = [0, cdb[2] & 0x1F, 0, 0]
            return .parameterData(Array(data.prefix(Int(cdb.word(7)))))
        }
        let data: [UInt8] = [0, cdb[1] & 0x1F, 0, 0, 0, 0, 0, 0]
        return .parameterData(Array(data.prefix(Int(cdb.long(6)))))
    }
}
