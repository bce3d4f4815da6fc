import Testing

@testable import BlockIO

@Suite("Checksums")
struct CRC32CTests {
    private func crc(_ bytes: [UInt8]) -> UInt32 { bytes.withUnsafeBytes { CRC32C.checksum($0) } }

    /// Values of RFC 3720, appendix B.4.
    @Test("CRC-32C gives the values that RFC 3720 lists")
    func published() {
        #expect(crc([UInt8](repeating: 0, count: 32)) == 0x8a91_36aa)
        #expect(crc([UInt8](repeating: 0xff, count: 32)) == 0x62a8_ab43)
        #expect(crc((0..<32).map { $0 }) == 0x46dd_794e)
        #expect(crc(Array("123456789".utf8)) == 0xe306_9283)
        #expect(crc([]) == 0)
    }

    @Test("the processor's instruction and the table agree at every length and over pieces")
    func portable() {
        let bytes = (0..<300).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ 13) }
        bytes.withUnsafeBytes { raw in
            for count in 0...300 {
                let part = UnsafeRawBufferPointer(rebasing: raw[..<count])
                #expect(CRC32C.checksum(part) == CRC32C.portableChecksum(part))
                let rest = UnsafeRawBufferPointer(rebasing: raw[count...])
                #expect(CRC32C.checksum(rest, seed: CRC32C.checksum(part)) == CRC32C.checksum(raw))
            }
        }
    }

    /// The first vector of the reference implementation's 128-bit table: key 00…0f, no input.
    @Test("the page digest is SipHash-2-4-128")
    func sipHash() {
        let key: (UInt64, UInt64) = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908)
        let empty = PageDigest(of: UnsafeRawBufferPointer(start: nil, count: 0), key: key)
        #expect(empty.low == 0xe6a8_25ba_047f_81a3)
        #expect(empty.high == 0x9302_55c7_1472_f66d)
        let page = [UInt8](repeating: 7, count: 4096)
        var other = page
        other[4095] ^= 1
        #expect(
            page.withUnsafeBytes { PageDigest(of: $0, key: key) }
                != other.withUnsafeBytes { PageDigest(of: $0, key: key) })
    }
}
