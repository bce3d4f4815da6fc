import BlockIO
import Testing

@testable import BlockStore

/// The bytes of docs/format.md. A change here is a new format version.
@Suite("The on-disk format")
struct FormatTests {
    private let volume = VolumeID("00112233-4455-6677-8899-aabbccddeeff")!
    private let snapshot = SnapshotID("01020304-0506-0708-090a-0b0c0d0e0f10")!

    private func hex(_ bytes: some Sequence<UInt8>) -> String {
        bytes.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
    }

    private func encode(_ record: JournalRecord) -> String {
        var writer = ByteWriter()
        record.encode(into: &writer)
        return hex(writer.bytes)
    }

    @Test("the superblock has the documented bytes and reads back")
    func superblock() throws {
        var block = Superblock(
            poolID: ObjectID(high: 0x1111, low: 0x2222), digestKey: (3, 4), totalBlocks: 0x5555, regionBlocks: 256,
            journalBytes: 1 << 20)
        block.generation = 7
        block.journalStart = JournalPoint(position: 8192, sequence: 9, chain: 0xabcd)
        block.epoch = 12
        block.nextDataset = 13
        block.nextVolume = 14
        block.allocationRoot = NodePointer(block: 15, birth: 16, digest: PageDigest(low: 17, high: 18))
        block.catalogBytes = 19
        block.createdAt = 20
        let bytes = block.encoded()
        #expect(bytes.count == 4096)
        #expect(
            hex(bytes[..<72])
                == "5350504f4f4c3031" + "01000000" + "00100000" + "1111000000000000" + "2222000000000000"
                + "0700000000000000" + "0000000000000000" + "0000000000000000" + "0300000000000000" + "0400000000000000"
        )
        #expect(
            hex(bytes[72..<168])
                == "5555000000000000" + "0001000000000000" + "0000100000000000" + "0020000000000000"
                + "0900000000000000" + "cdab0000" + "0e000000" + "0c00000000000000" + "0d00000000000000"
                + "0f00000000000000" + "1000000000000000" + "1100000000000000" + "1200000000000000")
        #expect(hex(bytes[168..<216]) == String(repeating: "0", count: 64) + "1300000000000000" + "1400000000000000")
        #expect(try Superblock.decode(bytes) == block)
        for damaged in [0, 100, 4000, 4095] {
            var other = bytes
            other[damaged] ^= 1
            #expect(try Superblock.decode(other) == nil)
        }
    }

    @Test("a superblock of another version or with unknown features is refused with a reason")
    func versions() throws {
        var block = Superblock(
            poolID: ObjectID(high: 1, low: 2), digestKey: (3, 4), totalBlocks: 5, regionBlocks: 64, journalBytes: 4096)
        block.incompatibleFeatures = 4
        #expect(throws: PoolError.unsupported("unknown features 4")) { try Superblock.decode(block.encoded()) }
        block.incompatibleFeatures = 0
        var bytes = block.encoded()
        bytes[8] = 2
        let crc = bytes[..<4092].withUnsafeBytes { CRC32C.checksum($0) }
        withUnsafeBytes(of: crc.littleEndian) { bytes.replaceSubrange(4092..., with: $0) }
        #expect(throws: PoolError.unsupported("format version 2; this program knows 1")) {
            try Superblock.decode(bytes)
        }
    }

    @Test("journal records have the documented bytes")
    func records() {
        #expect(
            encode(.map(volume: 1, block: 2, physical: 0x0304, crcs: [0xaabb_ccdd]))
                == "01000000" + "1c000000" + "01000000" + "01000000" + "0200000000000000" + "0403000000000000"
                + "ddccbbaa" + "00000000")
        #expect(
            encode(.unmap(volume: 1, block: 2, count: 3))
                == "02000000" + "18000000" + "01000000" + "00000000" + "0200000000000000" + "0300000000000000")
        #expect(encode(.deleteVolume(volume: 9)) == "05000000" + "04000000" + "09000000" + "00000000")
        #expect(
            encode(.deleteSnapshot(snapshot)) == "07000000" + "10000000" + "0807060504030201" + "100f0e0d0c0b0a09")
        #expect(encode(.promote(volume: 9)) == "0b000000" + "04000000" + "09000000" + "00000000")
        #expect(
            encode(.receivePosition(snapshot, StreamPosition(member: 1, block: 2)))
                == "0d000000" + "20000000" + "0807060504030201" + "100f0e0d0c0b0a09" + "01000000" + "00000000"
                + "0200000000000000")
        #expect(encode(.abortReceive(snapshot)).hasPrefix("0f000000" + "10000000"))
        #expect(encode(.growPool(totalBlocks: 0x0405)) == "14000000" + "08000000" + "0504000000000000")
        let seed = SnapshotSeed(
            id: snapshot, name: "ab", createdAt: 5, kind: .user, members: [.init(volume: 1, dataset: 2)],
            attributes: [7])
        #expect(
            encode(.snapshot(seed))
                == "06000000" + "34000000" + "0807060504030201" + "100f0e0d0c0b0a09" + "0500000000000000" + "00"
                + "02000000" + "6162" + "01000000" + "01000000" + "0200000000000000" + "01000000" + "07" + "00000000")
    }

    @Test("every journal record reads back as it was written, and garbage is refused")
    func roundTrips() throws {
        let origin = CloneOrigin(snapshot: snapshot, volume: volume)
        let made = VolumeSeed(
            number: 3, dataset: 4, id: volume, name: "v:1", naa: .random(), sizeBytes: 1 << 40, createdAt: 6)
        let taken = SnapshotSeed(
            id: snapshot, name: "s", createdAt: 1, kind: .beforeRevert,
            members: [.init(volume: 1, dataset: 2), .init(volume: 3, dataset: 4)], attributes: Array(0..<100))
        let received = ReceiveSeed(
            image: ReceiveImage(
                snapshot: snapshot, from: snapshot, createdAt: 4, kind: .user, name: "r",
                members: [
                    .init(staging: 3, target: volume, name: "v"), .init(staging: 4, target: nil, name: "w"),
                ]),
            stagings: [.init(volume: made, base: origin), .init(volume: made, base: nil)])
        let records: [JournalRecord] = [
            .map(volume: 1, block: 1 << 33, physical: 1 << 39, crcs: [1, 2, 3]),
            .unmap(volume: 1, block: 0, count: 1 << 34), .createVolume(made),
            .resizeVolume(volume: 1, sizeBytes: 1 << 46), .deleteVolume(volume: 8), .snapshot(taken),
            .deleteSnapshot(snapshot), .setAttributes(snapshot, [1, 2]), .clone(made, origin: origin),
            .revert(taken, target: snapshot), .promote(volume: 7), .beginReceive(received),
            .receivePosition(snapshot, StreamPosition(member: 3, block: 1 << 34)), .finishReceive(taken),
            .abortReceive(snapshot), .growPool(totalBlocks: 1 << 39),
        ]
        var writer = ByteWriter()
        for record in records { record.encode(into: &writer) }
        var reader = ByteReader(writer.bytes[...])
        for record in records { #expect(try JournalRecord.decode(&reader) == record) }
        #expect(reader.remaining == 0)
        for cut in 1..<writer.bytes.count {
            var reader = ByteReader(writer.bytes[..<cut])
            #expect(throws: MalformedBytes.self) { while true { _ = try JournalRecord.decode(&reader) } }
        }
    }

    @Test("a batch has the documented head, and any changed bit is noticed")
    func batch() throws {
        let header = BatchHeader(poolTag: 1, sequence: 2, syncedThrough: 3, previous: 4, payloadBytes: 3)
        let (bytes, crc) = header.encodeBatch(payload: [9, 8, 7])
        #expect(bytes.count == 4096)
        #expect(
            hex(bytes[..<56])
                == "53504a524e4c3031" + "0100000000000000" + "0200000000000000" + "0300000000000000" + "04000000"
                + "03000000" + "00000000000000000000000000000000")
        #expect(Array(bytes[64..<68]) == [9, 8, 7, 0])
        let decoded = try #require(BatchHeader.decode(bytes))
        #expect(decoded.header == header)
        #expect(decoded.crc == crc)
        #expect(BatchHeader.verify(bytes, crc: crc))
        for at in [0, 20, 64, 66, 67, 4095] {
            var damaged = bytes
            damaged[at] ^= 0x40
            #expect(!BatchHeader.verify(damaged, crc: crc))
        }
    }

    @Test("leaf entries and references keep all their bits")
    func pages() {
        let page = Page()
        let entry = LeafEntry(block: 0xab_cdef_0123, birth: 0x98_7654_3210, crc: 0xdead_beef)
        page[entry: 255] = entry
        #expect(page[entry: 255] == entry)
        #expect(hex(page.bytes[4080...]) == "2301efcdab103254" + "76980000efbeadde")
        let pointer = NodePointer(block: 1, birth: 2, digest: PageDigest(low: 3, high: 4))
        page[child: 5] = pointer
        #expect(page[child: 5] == pointer)
        #expect(hex(page.bytes[160..<168]) == "0100000000000000")
    }

    @Test("the catalog reads back as it was written")
    func catalog() throws {
        var image = CatalogImage()
        let pointer = NodePointer(block: 1, birth: 2, digest: PageDigest(low: 3, high: 4))
        image.datasets = [
            DatasetImage(
                number: 1, volume: 2, parent: 3, role: .doomed, epoch: 4, sizeBytes: 5, cursor: 6,
                root: MapRoot(pointer: pointer, mappedBlocks: 7))
        ]
        image.volumes = [
            VolumeImage(
                number: 1, head: 2, id: volume, naa: .random(), createdAt: 3,
                clonedFrom: CloneOrigin(snapshot: snapshot, volume: volume), name: "clone")
        ]
        image.snapshots = [
            SnapshotImage(
                id: snapshot, kind: .user, epoch: 1, createdAt: 2, name: "snap",
                members: [.init(volume: volume, dataset: 9)], attributesRoot: pointer, attributeBytes: 77)
        ]
        #expect(try CatalogImage.decode(image.encoded()) == image)
        #expect(throws: MalformedBytes.self) { try CatalogImage.decode(Array(image.encoded().dropLast())) }
    }
}
