import NIOCore
import SCSI

/// Data to the initiator (RFC 7143 11.7), with the status in the last PDU where the command succeeded.
extension Session {
    // MARK: Parameter data

    func sendParameterData(_ request: BasicHeader, _ bytes: [UInt8], _ account: CommandAccount) {
        let expected = request.flags & 0x40 != 0 ? Int(request.expectedTransferBytes) : 0
        let total = min(bytes.count, expected)
        guard total > 0 else {
            respond(request, .good, account, scsiBytes: bytes.count, movedBytes: 0)
            return
        }
        var read = ReadTransfer(
            header: request, account: account, activity: nil, offset: 0, scsiBytes: bytes.count, totalBytes: total)
        while read.sentBytes < total {
            let count = nextSegment(read)
            let start = beginDataIn()
            output.writeBytes(bytes[read.sentBytes..<read.sentBytes + count])
            completeDataIn(&read, start: start, count: count)
        }
    }

    // MARK: Reads

    func beginRead(_ header: BasicHeader, _ activity: CommandActivity, offset: UInt64, count: Int) {
        let expected = header.flags & 0x40 != 0 ? Int(header.expectedTransferBytes) : 0
        var read = ReadTransfer(
            header: header, account: account(activity, .read), activity: activity, offset: offset, scsiBytes: count,
            totalBytes: min(count, expected))
        guard read.totalBytes > 0 else {
            respond(header, .good, read.account, scsiBytes: count, movedBytes: 0)
            return
        }
        // The usual case goes straight out; a read that has to wait keeps its place behind the others.
        if reads.isEmpty && output.readableBytes < Self.sendBytes && sendNext(&read) { return }
        reads.append(read)
    }

    /// Sends data of waiting reads as long as the peer keeps up.
    func pump() {
        var done = 0
        while done < reads.count, !isClosing, transport.isWritable {
            if sendNext(&reads[done]) { done += 1 }
            if output.readableBytes >= Self.sendBytes { sendOutput() }
        }
        reads.removeFirst(min(done, reads.count))
    }

    private func nextSegment(_ read: ReadTransfer) -> Int {
        let untilBurstEnds = parameters.maxBurstBytes - read.sentBytes % parameters.maxBurstBytes
        return min(read.totalBytes - read.sentBytes, parameters.sendSegmentBytes, untilBurstEnds, Self.sendBytes)
    }

    /// Sends one Data-In PDU.
    /// - Returns: whether the read is over.
    private func sendNext(_ read: inout ReadTransfer) -> Bool {
        guard let activity = read.activity else { return true }
        let count = nextSegment(read)
        let start = beginDataIn()
        let at = read.offset + UInt64(read.sentBytes)
        do throws(CommandEnd) {
            try readDevice(at: at, count: count, activity)
        } catch {
            output.moveWriterIndex(to: start)
            respond(
                read.header, error, read.account, scsiBytes: read.scsiBytes, movedBytes: read.sentBytes,
                dataPDUs: read.dataSN, descriptorSense: activity.unit.usesDescriptorSense)
            return true
        }
        completeDataIn(&read, start: start, count: count)
        read.account.counters.read(count)
        return read.sentBytes == read.totalBytes
    }

    /// Reads straight into the output.
    private func readDevice(at offset: UInt64, count: Int, _ activity: CommandActivity) throws(CommandEnd) {
        let unit = activity.unit
        let block = UInt64(unit.blockBytes)
        let before = Int(offset % block)
        let whole = (before + count + Int(block) - 1) / Int(block) * Int(block)
        var failure: CommandEnd?
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: whole) { buffer in
            do throws(CommandEnd) {
                try unit.read(
                    at: offset - UInt64(before), into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<whole]),
                    activity: activity)
            } catch {
                failure = error
                return 0
            }
            // Segments that the peer wants to be cut inside a block.
            if before > 0, let base = buffer.baseAddress { base.copyMemory(from: base + before, byteCount: count) }
            return count
        }
        if let failure { throw failure }
    }

    /// Leaves room for the header of a Data-In PDU, which is known when its data is.
    private func beginDataIn() -> Int {
        let start = output.writerIndex
        output.writeRepeatingByte(0, count: BasicHeader.byteCount + (framing.headerDigest ? 4 : 0))
        return start
    }

    private func completeDataIn(_ read: inout ReadTransfer, start: Int, count: Int) {
        let dataStart = start + BasicHeader.byteCount + (framing.headerDigest ? 4 : 0)
        finishData(from: dataStart)
        var header = BasicHeader(.dataIn, flags: 0)
        header.dataSegmentBytes = count
        header.initiatorTaskTag = read.header.initiatorTaskTag
        header.targetTransferTag = BasicHeader.reservedTag
        header.dataSN = read.dataSN
        header.bufferOffset = UInt32(read.sentBytes)
        read.sentBytes += count
        read.dataSN &+= 1
        if read.sentBytes == read.totalBytes {
            ended(read.header)
            read.account.ended()
            // F and S: the last PDU carries the status, which is GOOD.
            header.flags = 0x81
            setResidual(
                &header, expected: Int(read.header.expectedTransferBytes), scsiBytes: read.scsiBytes)
            header.sequenceNumber = statSN
            statSN &+= 1
        } else if read.sentBytes % parameters.maxBurstBytes == 0 {
            header.flags = 0x80
        }
        header.expectedNumber = expCmdSN
        header.maxCmdSN = maxCmdSN
        write(header, at: start)
    }

    private func write(_ header: BasicHeader, at start: Int) {
        for word in 0..<6 { output.setInteger(header[word: word], at: start + 8 * word) }
        if framing.headerDigest {
            let digest = outputDigest(start..<start + BasicHeader.byteCount)
            output.setInteger(digest, at: start + BasicHeader.byteCount, endianness: .little)
        }
    }
}
