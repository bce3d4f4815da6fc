import BlockIO

/// A pool's file that keeps nothing of what is written from ``zeros``: a hole of the file reads as zeros too. So a volume
/// of any size is mapped through the store's own way, checksums, journal, map pages and bitmaps included, without room
/// for its data.
///
/// For making a pool only. Nothing is synced and nothing is reserved, which lets a compressing file system compress the
/// map; and what zeros are written over must never have held anything else, which is true of a new pool's data.
final class HollowFile: StorageFile {
    /// What volumes are filled from: 1 MiB of zeros, told by its address.
    // SAFETY: never changed, and never freed: a process has one such file.
    nonisolated(unsafe) let zeros: UnsafeRawBufferPointer
    private let file: HostFile

    init(_ file: HostFile) {
        self.file = file
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        zeros = UnsafeRawBufferPointer(memory)
    }

    var sizeBytes: UInt64 { file.sizeBytes }
    var canGrow: Bool { true }
    var availableBytes: UInt64? { file.availableBytes }
    var backend: String { "hollow" }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StorageError) {
        try file.read(at: offset, into: buffer)
    }

    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(StorageError) {
        let isZeros = buffer.baseAddress.map { $0 >= zeros.baseAddress! && $0 < zeros.baseAddress! + zeros.count }
        if isZeros != true { try file.write(at: offset, from: buffer) }
    }

    func sync() throws(StorageError) {}
    func punchHole(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {}
    func allocate(at offset: UInt64, lengthBytes: UInt64) throws(StorageError) {}
    func close() { file.close() }
}
