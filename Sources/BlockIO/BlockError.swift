/// Why a block device refused or failed a call. The target maps each case to one sense code.
public enum BlockError: Error, Equatable, Sendable {
    /// The range does not lie within the device. SBC: ILLEGAL REQUEST 21/00.
    case outOfRange(offset: UInt64, lengthBytes: UInt64, sizeBytes: UInt64)
    /// Offset or length is no multiple of the logical block size. SBC: ILLEGAL REQUEST 24/00.
    case misaligned(offset: UInt64, lengthBytes: UInt64)
    /// The device is a snapshot, or the pool failed and is read-only. SBC: DATA PROTECT 27/00.
    case readOnly
    /// The pool has no room for this write. SBC: DATA PROTECT 27/07.
    case noSpace
    /// What is stored at this byte offset of the device is not what was written. SBC: MEDIUM ERROR 11/00.
    case medium(offset: UInt64)
    /// `compareAndWrite` found a difference at this byte of the device. SBC: MISCOMPARE 1D/00.
    case miscompare(offset: UInt64)
    /// The operating system answered with this errno. SBC: HARDWARE ERROR 44/00.
    case io(errno: Int32)
    /// The device was deleted or closed. SBC: NOT READY 3E/01... or ILLEGAL REQUEST 25/00 where the LUN is gone.
    case removed
}
