public import BlockIO

/// What the transport has to do for a command after ``LogicalUnit/begin(_:nexus:)``.
public enum CommandDisposition: Sendable {
    /// The nexus has ended; the LUN may be mapped anew by now.
    case detached
    /// It is over; no data moves.
    case end(CommandEnd)
    /// Send these bytes, already cut to the allocation length, then GOOD.
    case parameterData([UInt8])
    /// Send this range of the device, then GOOD.
    case read(offset: UInt64, lengthBytes: Int)
    /// Fetch the data and hand it to ``LogicalUnit/consume(_:at:bytes:activity:)`` piece by piece, in order.
    case dataOut(DataOutOperation)
    /// Fetch so many bytes, then call ``LogicalUnit/finish(_:list:activity:)``.
    case parameterList(lengthBytes: Int, ParameterOperation)
    /// Run this on a thread that may wait.
    case blocking(BlockingOperation)
}

/// A command whose data goes to the device as it comes.
public struct DataOutOperation: Sendable {
    public enum Kind: Sendable {
        case write
        /// WRITE AND VERIFY: written, then read back and compared.
        case writeAndVerify
        /// VERIFY with BYTCHK=01b: compared with what is stored.
        case compare
        /// ORWRITE: what is stored or'ed with what comes.
        case or
    }
    public var kind: Kind
    public var offset: UInt64
    public var lengthBytes: Int
    /// FUA, or the write cache is off: the answer waits for the disk.
    public var isDurable: Bool
}

/// A command that is carried out when all of its parameter list is there.
public struct ParameterOperation: Sendable {
    var command: CommandBlock
}

/// A command that may wait for the disk or takes long. It is done in steps, so that many of them share few threads.
public struct BlockingOperation: Sendable {
    enum Kind: Sendable {
        case flush
        case unmap([Range<UInt64>])
        /// Fills the range with repetitions of the block, as one change.
        case fill(Range<UInt64>, block: [UInt8])
        /// Reads the range and thereby checks it against its checksums.
        case check([Range<UInt64>])
        /// Waits until no aborted command touches the device any more (PREEMPT AND ABORT).
        case drain(DrainFlag)
        /// PERSISTENT RESERVE OUT where reservations are kept.
        /// In a box, as the next one, so that the commands of every day stay small.
        indirect case reserve(LogicalUnit.ReservationChange)
        /// EXTENDED COPY.
        indirect case copy(CopyOperation)
    }
    var kind: Kind
    /// Flush after the last step.
    var isDurable = false
}

extension SenseData {
    /// The sense of a device's error (the table of ``BlockError``).
    public init(_ error: BlockError, blockBytes: Int) {
        let block = UInt64(max(blockBytes, 1))
        switch error {
        case .outOfRange(let offset, _, _):
            self.init(.illegalRequest, .blockAddressOutOfRange, information: offset / block)
        case .misaligned: self.init(.illegalRequest, .invalidFieldInCDB)
        case .readOnly: self.init(.dataProtect, .writeProtected)
        case .noSpace: self.init(.dataProtect, .spaceAllocationFailed)
        case .medium(let offset): self.init(.mediumError, .unrecoveredReadError, information: offset / block)
        // Who compared knows where its data began, and says so itself.
        case .miscompare: self.init(.miscompare, .miscompare)
        case .io: self.init(.hardwareError, .internalTargetFailure)
        case .removed: self.init(.illegalRequest, .logicalUnitNotSupported)
        }
    }
}

extension ParameterOperation {
    /// Whether the initiator has to send exactly the bytes the command takes: part of a block, or blocks that the
    /// command does not name, mean that the two disagree about what is written.
    public var needsExactLength: Bool {
        switch command.opcode {
        case 0x89, 0x41, 0x93, 0x9C: true
        default: false
        }
    }
}
