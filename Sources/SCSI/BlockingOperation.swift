import BlockIO
import Glibc

extension BlockingOperation {
    /// Bytes read by one step, so that many long commands take turns.
    private static var stepBytes: UInt64 { 4 << 20 }
    /// Bytes deallocated by one step.
    private static var unmapStepBytes: UInt64 { 1 << 30 }

    /// Does a part on the unit's own device.
    /// - Returns: whether the operation is complete.
    mutating func step(on device: any BlockDevice) throws(BlockError) -> Bool {
        switch kind {
        case .flush:
            try device.flush()
            return true
        case .drain(let flag):
            // Rare, and over within one device operation: looking again is cheaper than a thread kept waiting.
            if !flag.isSet { usleep(500) }
            return flag.isSet
        case .unmap(var ranges):
            guard let part = next(&ranges, Self.unmapStepBytes) else { return true }
            try device.unmap(at: part.lowerBound, lengthBytes: part.upperBound - part.lowerBound)
            kind = .unmap(ranges)
            return ranges.isEmpty
        case .fill(let range, let block):
            let length = range.upperBound - range.lowerBound
            try device.writeSame(at: range.lowerBound, lengthBytes: length, block: block, durability: .cached)
            return true
        // The unit's, not the device's: LogicalUnit does them.
        case .reserve, .copy: return true
        case .check(var ranges):
            guard let part = next(&ranges, Self.stepBytes) else { return true }
            try Self.check(part, device)
            kind = .check(ranges)
            return ranges.isEmpty
        }
    }

    /// Takes at most `limit` bytes off the front of `ranges`.
    private func next(_ ranges: inout [Range<UInt64>], _ limit: UInt64) -> Range<UInt64>? {
        guard let first = ranges.first else { return nil }
        let end = min(first.upperBound, first.lowerBound + limit)
        if end == first.upperBound {
            ranges.removeFirst()
        } else {
            ranges[0] = end..<first.upperBound
        }
        return first.lowerBound..<end
    }

    private static func check(_ range: Range<UInt64>, _ device: any BlockDevice) throws(BlockError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(min(range.upperBound - range.lowerBound, 256 << 10)), alignment: 4096)
        defer { buffer.deallocate() }
        var offset = range.lowerBound
        while offset < range.upperBound {
            let count = Int(min(range.upperBound - offset, UInt64(buffer.count)))
            try device.read(at: offset, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
            offset += UInt64(count)
        }
    }
}
