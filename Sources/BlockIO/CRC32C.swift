internal import CLinux

/// CRC-32C (Castagnoli), as iSCSI's digests (RFC 7143 13.1) and the store's blocks use it.
public enum CRC32C {
    /// The checksum of `bytes`. Pass an earlier result as `seed` to continue over several pieces.
    public static func checksum(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
        guard let base = bytes.baseAddress else { return seed }
        return clinux_crc32c(seed, base, bytes.count)
    }

    /// The same without the processor's instruction; tests compare the two.
    static func portableChecksum(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
        guard let base = bytes.baseAddress else { return seed }
        return clinux_crc32c_portable(seed, base, bytes.count)
    }
}

/// A keyed 128-bit digest: SipHash-2-4-128. It detects wrong, lost and misplaced pages; it is no signature.
public struct PageDigest: Hashable, Sendable {
    public var low: UInt64
    public var high: UInt64

    public init(low: UInt64, high: UInt64) {
        self.low = low
        self.high = high
    }

    public init(of bytes: UnsafeRawBufferPointer, key: (UInt64, UInt64)) {
        var out: (UInt64, UInt64) = (0, 0)
        withUnsafeMutableBytes(of: &out) { raw in
            // SAFETY: a tuple of two UInt64 is laid out as the C function's array of two.
            let words = raw.baseAddress!.assumingMemoryBound(to: UInt64.self)
            clinux_siphash128(key.0, key.1, bytes.baseAddress, bytes.count, words)
        }
        self.init(low: out.0, high: out.1)
    }
}
