import BlockIO
import Synchronization

/// EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 6.4, 6.20 and what follows).
extension LogicalUnit {
    private typealias Limits = ExtendedCopyList.Limits

    /// Results of copies that one unit remembers.
    private static var resultLimit: Int { 64 }

    /// A copy, and who asked for it.
    struct CopyRecord {
        var nexus: LogicalUnitNexus
        var number: UInt64
        var result: CopyResult
    }

    func beginExtendedCopy(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        // The other service actions (LID4, tokens, COPY OPERATION ABORT) are not offered.
        guard cdb[1] & 0x1F == 0 else { throw .invalidCDB(byte: 1) }
        let length = Int(cdb.long(10))
        if length == 0 { return .end(.good) }
        guard length <= limits.parameterListBytes else { throw .illegal(.parameterListLengthError) }
        return .parameterList(lengthBytes: length, ParameterOperation(command: cdb))
    }

    func extendedCopy(_ list: [UInt8], nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        let request = try ExtendedCopyList(list)
        var pieces: [CopyOperation.Piece] = []
        for (index, segment) in request.segments.enumerated() {
            if let piece = try piece(segment, index, request, nexus) { pieces.append(piece) }
        }
        var copy = CopyOperation(identifier: request.identifier, segmentCount: request.segments.count, pieces: pieces)
        let refusal: CommandEnd? = state.withLock { state in
            let mine = state.copies.filter { $0.nexus === nexus && $0.result.status == .inProgress }
            if let identifier = request.identifier, mine.contains(where: { $0.result.identifier == identifier }) {
                return .illegal(.operationInProgress)
            }
            let running = state.copies.filter { $0.result.status == .inProgress }.count
            guard running < Limits.concurrentCopies else { return .busy }
            state.nextCopy += 1
            copy.number = state.nextCopy
            state.copies.removeAll { $0.nexus === nexus && $0.result.identifier == request.identifier }
            if state.copies.count >= Self.resultLimit,
                let oldest = state.copies.firstIndex(where: { $0.result.status != .inProgress })
            {
                state.copies.remove(at: oldest)
            }
            state.copies.append(
                CopyRecord(
                    nexus: nexus, number: copy.number,
                    result: CopyResult(
                        identifier: request.identifier, status: .inProgress, segments: 0, copiedBytes: 0)))
            return nil
        }
        if let refusal { return .end(refusal) }
        return .blocking(BlockingOperation(kind: .copy(copy)))
    }

    /// A segment in bytes; nil where there is nothing to copy.
    private func piece(
        _ segment: ExtendedCopyList.Segment, _ index: Int, _ request: ExtendedCopyList, _ nexus: LogicalUnitNexus
    ) throws(SenseData) -> CopyOperation.Piece? {
        let source = try endpoint(segment.source, index, request, nexus)
        let destination = try endpoint(segment.destination, index, request, nexus)
        let length: UInt64
        switch segment.length {
        case .bytes(let bytes): length = bytes
        case .blocks(let blocks, let ofDestination):
            length = blocks * (ofDestination ? destination.blockBytes : source.blockBytes)
        }
        guard length <= Limits.segmentBytes else { throw .illegal(.invalidFieldInParameterList) }
        let from = try place(source, segment.sourceLBA, segment.sourceOffset, length, index)
        let to = try place(destination, segment.destinationLBA, segment.destinationOffset, length, index)
        if length == 0 { return nil }
        return CopyOperation.Piece(
            segment: index, source: source.naa, destination: destination.naa, from: from, to: to, lengthBytes: length)
    }

    private struct Endpoint {
        var naa: String
        var blockBytes: UInt64
        var sizeBytes: UInt64
    }

    /// One of the units that a list names, if the initiator may reach it.
    private func endpoint(
        _ number: Int, _ index: Int, _ request: ExtendedCopyList, _ nexus: LogicalUnitNexus
    ) throws(SenseData) -> Endpoint {
        guard number < request.units.count, let naa = request.units[number].naa else {
            throw CopyOperation.aborted(.unreachableCopyTarget, segment: index)
        }
        let known: Endpoint
        if naa == identity.naa {
            known = Endpoint(naa: naa, blockBytes: UInt64(blockBytes), sizeBytes: device.sizeBytes)
        } else {
            guard let visit = nexus.copyDirectory?.visit(naa: naa, from: nexus) else {
                throw CopyOperation.aborted(.copyTargetUnreachable, segment: index)
            }
            defer { visit.unit.endVisit(visit) }
            known = Endpoint(
                naa: naa, blockBytes: UInt64(visit.unit.blockBytes), sizeBytes: visit.unit.device.sizeBytes)
        }
        let said = request.units[number].blockBytes
        guard said == 0 || UInt64(said) == known.blockBytes else {
            throw .invalidParameter(byte: UInt16(clamping: 16 + 32 * number + 28))
        }
        return known
    }

    /// Where a segment begins, in bytes, checked against the size and the blocks of its unit.
    private func place(
        _ end: Endpoint, _ lba: UInt64, _ offset: UInt64, _ length: UInt64, _ index: Int
    ) throws(SenseData) -> UInt64 {
        let blocks = end.sizeBytes / end.blockBytes
        guard lba <= blocks else { throw Self.beyondTheEnd(lba, index) }
        let start = lba * end.blockBytes + offset
        guard start <= end.sizeBytes, length <= end.sizeBytes - start else { throw Self.beyondTheEnd(lba, index) }
        // Parts of blocks would have to be read, changed and written: nobody asks for that.
        guard offset % end.blockBytes == 0, length % end.blockBytes == 0 else {
            throw .illegal(.invalidFieldInParameterList)
        }
        return start
    }

    /// SPC-4 names no code of its own for this; the LBA is in the INFORMATION field.
    private static func beyondTheEnd(_ lba: UInt64, _ index: Int) -> SenseData {
        var sense = CopyOperation.aborted(.none, segment: index)
        sense.information = lba
        return sense
    }

    // MARK: Progress

    /// Does a part of a copy.
    /// - Returns: how it ended, or nil when there is more to do.
    func step(_ copy: inout CopyOperation, _ nexus: LogicalUnitNexus) -> CommandEnd? {
        do throws(SenseData) {
            let isOver = try copy.step(self, nexus)
            note(copy, isOver ? .completed : .inProgress, nil)
            return isOver ? .good : nil
        } catch {
            note(copy, .failed, error)
            return .sense(error)
        }
    }

    /// A copy that was aborted has failed as far as RECEIVE COPY RESULTS is concerned.
    func abandon(_ copy: CopyOperation) { note(copy, .failed, nil) }

    private func note(_ copy: CopyOperation, _ status: CopyResult.Status, _ sense: SenseData?) {
        state.withLock { state in
            guard let index = state.copies.firstIndex(where: { $0.number == copy.number }) else { return }
            state.copies[index].result.status = status
            state.copies[index].result.copiedBytes = copy.copiedBytes
            state.copies[index].result.segments = copy.pieces.first?.segment ?? copy.segmentCount
            state.copies[index].result.sense = sense
            if status != .inProgress, state.copies[index].result.identifier == nil { state.copies.remove(at: index) }
        }
    }

    // MARK: RECEIVE COPY RESULTS

    func receiveCopyResults(_ cdb: CommandBlock, nexus: LogicalUnitNexus) throws(SenseData) -> CommandDisposition {
        let data: [UInt8]
        switch cdb[1] & 0x1F {
        case 0x00: data = try copyStatus(copyResult(cdb[2], nexus))
        case 0x03: data = Self.operatingParameters
        case 0x04: data = try failedSegment(copyResult(cdb[2], nexus))
        // RECEIVE DATA: no segment holds data.
        default: throw .invalidCDB(byte: 1)
        }
        return .parameterData(Array(data.prefix(Int(cdb.long(10)))))
    }

    private func copyResult(_ identifier: UInt8, _ nexus: LogicalUnitNexus) throws(SenseData) -> CopyResult {
        let result = state.withLock { state in
            state.copies.last { $0.nexus === nexus && $0.result.identifier == identifier }?.result
        }
        guard let result else { throw .invalidCDB(byte: 2) }
        return result
    }

    private func copyStatus(_ result: CopyResult) -> [UInt8] {
        var data: [UInt8] = [0, 0, 0, 8, result.status.rawValue]
        data.append(word: UInt16(clamping: result.segments))
        // Transfer count in bytes, or in MiB where that is too many.
        let isLarge = result.copiedBytes > UInt64(UInt32.max)
        data.append(isLarge ? 0x02 : 0x00)
        data.append(long: UInt32(clamping: isLarge ? result.copiedBytes >> 20 : result.copiedBytes))
        return data
    }

    private func failedSegment(_ result: CopyResult) -> [UInt8] {
        guard result.status == .failed, let sense = result.sense else { return [0, 0, 0, 0] }
        let bytes = sense.encoded(descriptorFormat: false)
        var data = [UInt8](repeating: 0, count: 56)
        data.set(long: UInt32(56 + bytes.count), at: 0)
        data += [CommandEnd.sense(sense).status, 0, 0, UInt8(bytes.count)]
        return data + bytes
    }

    /// Codes of the descriptors that a list may hold, ascending.
    static var copyDescriptors: [UInt8] { [0x02, 0x0A, 0xE4] }

    /// SPC-4 6.20.4.
    private static let operatingParameters: [UInt8] = {
        var data = [UInt8](repeating: 0, count: 44)
        // SNLID: a list identifier of zero is one like others.
        data[4] = 0x01
        data.set(word: UInt16(Limits.cscdDescriptors), at: 8)
        data.set(word: UInt16(Limits.segmentDescriptors), at: 10)
        data.set(long: UInt32(Limits.descriptorBytes), at: 12)
        data.set(long: UInt32(Limits.segmentBytes), at: 16)
        data.set(word: UInt16(Limits.concurrentCopies), at: 34)
        data[36] = UInt8(Limits.concurrentCopies)
        // Data segment granularity: 512 bytes.
        data[37] = 9
        data[43] = UInt8(copyDescriptors.count)
        data += copyDescriptors
        data.set(long: UInt32(data.count - 4), at: 0)
        return data
    }()

    /// VPD page 8F (SPC-4 7.8.17): commands, parameter data, descriptors, general copy operations.
    static let thirdPartyCopyPage: [UInt8] = {
        var commands: [UInt8] = [0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04]
        commands.insert(UInt8(commands.count), at: 0)
        var parameters = [UInt8](repeating: 0, count: 28)
        parameters.set(word: UInt16(Limits.cscdDescriptors), at: 8)
        parameters.set(word: UInt16(Limits.segmentDescriptors), at: 10)
        parameters.set(long: UInt32(Limits.descriptorBytes), at: 12)
        var general = [UInt8](repeating: 0, count: 32)
        general.set(long: UInt32(Limits.concurrentCopies), at: 0)
        general.set(long: UInt32(Limits.concurrentCopies), at: 4)
        general.set(long: UInt32(Limits.segmentBytes), at: 8)
        general[12] = 9
        let descriptors: [(UInt16, [UInt8])] = [
            (0x0001, commands), (0x0004, parameters), (0x0008, [UInt8(copyDescriptors.count)] + copyDescriptors),
            (0x8001, general),
        ]
        var page: [UInt8] = []
        for (type, body) in descriptors {
            let padded = body + [UInt8](repeating: 0, count: (4 - body.count % 4) % 4)
            page.append(word: type)
            page.append(word: UInt16(padded.count))
            page += padded
        }
        return page
    }()
}
