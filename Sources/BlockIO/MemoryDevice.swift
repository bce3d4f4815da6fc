internal import Synchronization

/// A sparse block device in memory: for tests, and to put behind a target without a pool.
public final class MemoryDevice: BlockDevice {
    private static let blockBytes = 4096

    private struct Contents {
        var sizeBytes: UInt64
        var blocks: [UInt64: [UInt8]] = [:]
    }

    private let contents: Mutex<Contents>
    public let geometry: BlockGeometry
    public let isReadOnly: Bool

    /// A device of `sizeBytes`, a multiple of 512, that reads as zeros.
    public init(sizeBytes: UInt64, geometry: BlockGeometry = .init(), isReadOnly: Bool = false) {
        contents = Mutex(Contents(sizeBytes: sizeBytes))
        self.geometry = geometry
        self.isReadOnly = isReadOnly
    }

    public var sizeBytes: UInt64 { contents.withLock { $0.sizeBytes } }

    /// Everything happens under one lock.
    public var atomicWriteBytes: Int { 128 << 10 }

    public func usage() -> DeviceUsage? {
        contents.withLock { contents in
            let used = UInt64(contents.blocks.count * Self.blockBytes)
            return DeviceUsage(usedBytes: used, availableBytes: max(contents.sizeBytes, used) - used)
        }
    }

    /// Changes the size; what lies beyond a smaller one is forgotten.
    public func resize(to sizeBytes: UInt64) {
        contents.withLock { contents in
            contents.sizeBytes = sizeBytes
            contents.blocks = contents.blocks.filter { $0.key * UInt64(Self.blockBytes) < sizeBytes }
        }
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BlockError) {
        try contents.withLock { contents throws(BlockError) in
            try check(offset, UInt64(buffer.count), contents.sizeBytes)
            copyOut(contents, offset, buffer)
        }
    }

    public func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer, durability: WriteDurability
    ) throws(BlockError) {
        guard !isReadOnly else { throw .readOnly }
        try contents.withLock { contents throws(BlockError) in
            try check(offset, UInt64(buffer.count), contents.sizeBytes)
            copyIn(&contents, offset, buffer)
        }
    }

    public func flush() throws(BlockError) {}

    public func unmap(at offset: UInt64, lengthBytes: UInt64) throws(BlockError) {
        guard !isReadOnly else { throw .readOnly }
        try contents.withLock { contents throws(BlockError) in
            try check(offset, lengthBytes, contents.sizeBytes)
            let blockBytes = UInt64(Self.blockBytes)
            let end = offset + lengthBytes
            for block in contents.blocks.keys where block * blockBytes < end && (block + 1) * blockBytes > offset {
                let from = max(offset, block * blockBytes) - block * blockBytes
                let to = min(end, (block + 1) * blockBytes) - block * blockBytes
                if to - from == blockBytes {
                    contents.blocks[block] = nil
                } else {
                    for index in Int(from)..<Int(to) { contents.blocks[block]![index] = 0 }
                }
            }
        }
    }

    public func writeSame(
        at offset: UInt64, lengthBytes: UInt64, block: [UInt8], durability: WriteDurability
    ) throws(BlockError) {
        guard !isReadOnly else { throw .readOnly }
        guard block.count == geometry.logicalBlockBytes, lengthBytes <= writeSameBytes else {
            throw .misaligned(offset: offset, lengthBytes: lengthBytes)
        }
        try contents.withLock { contents throws(BlockError) in
            try check(offset, lengthBytes, contents.sizeBytes)
            block.withUnsafeBytes { bytes in
                for at in stride(from: offset, to: offset + lengthBytes, by: block.count) {
                    copyIn(&contents, at, bytes)
                }
            }
        }
    }

    public func compareAndWrite(
        at offset: UInt64, expected: UnsafeRawBufferPointer, replacement: UnsafeRawBufferPointer,
        durability: WriteDurability
    ) throws(BlockError) {
        guard !isReadOnly else { throw .readOnly }
        try contents.withLock { contents throws(BlockError) in
            try check(offset, UInt64(expected.count), contents.sizeBytes)
            let current = UnsafeMutableRawBufferPointer.allocate(byteCount: expected.count, alignment: 8)
            defer { current.deallocate() }
            copyOut(contents, offset, current)
            for index in 0..<expected.count where current[index] != expected[index] {
                throw .miscompare(offset: offset + UInt64(index))
            }
            copyIn(&contents, offset, replacement)
        }
    }

    public func provisioning(at offset: UInt64, maxLengthBytes: UInt64) throws(BlockError) -> ProvisionedRun {
        try contents.withLock { contents throws(BlockError) in
            guard offset < contents.sizeBytes else {
                throw .outOfRange(offset: offset, lengthBytes: maxLengthBytes, sizeBytes: contents.sizeBytes)
            }
            let blockBytes = UInt64(Self.blockBytes)
            let end = min(contents.sizeBytes, offset + min(maxLengthBytes, contents.sizeBytes - offset))
            var block = offset / blockBytes
            let isMapped = contents.blocks[block] != nil
            while block * blockBytes < end, (contents.blocks[block] != nil) == isMapped { block += 1 }
            return ProvisionedRun(lengthBytes: min(end, block * blockBytes) - offset, isMapped: isMapped)
        }
    }

    private func check(_ offset: UInt64, _ lengthBytes: UInt64, _ sizeBytes: UInt64) throws(BlockError) {
        let unit = UInt64(geometry.logicalBlockBytes)
        guard offset % unit == 0, lengthBytes % unit == 0 else {
            throw .misaligned(offset: offset, lengthBytes: lengthBytes)
        }
        guard offset <= sizeBytes, lengthBytes <= sizeBytes - offset else {
            throw .outOfRange(offset: offset, lengthBytes: lengthBytes, sizeBytes: sizeBytes)
        }
    }

    private func copyOut(_ contents: Contents, _ offset: UInt64, _ buffer: UnsafeMutableRawBufferPointer) {
        forEachPiece(offset, buffer.count) { block, within, at, count in
            let target = UnsafeMutableRawBufferPointer(rebasing: buffer[at..<(at + count)])
            if let bytes = contents.blocks[block] {
                target.copyBytes(from: bytes[within..<(within + count)])
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    private func copyIn(_ contents: inout Contents, _ offset: UInt64, _ buffer: UnsafeRawBufferPointer) {
        forEachPiece(offset, buffer.count) { block, within, at, count in
            contents.blocks[block, default: [UInt8](repeating: 0, count: Self.blockBytes)]
                .withUnsafeMutableBytes { bytes in
                    UnsafeMutableRawBufferPointer(rebasing: bytes[within..<(within + count)])
                        .copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[at..<(at + count)]))
                }
        }
    }

    private func forEachPiece(_ offset: UInt64, _ length: Int, _ body: (UInt64, Int, Int, Int) -> Void) {
        var at = 0
        while at < length {
            let position = offset + UInt64(at)
            let within = Int(position % UInt64(Self.blockBytes))
            let count = min(length - at, Self.blockBytes - within)
            body(position / UInt64(Self.blockBytes), within, at, count)
            at += count
        }
    }
}
