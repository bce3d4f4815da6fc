import BlockIO
import Simulation
import Testing

@testable import BlockStore

/// A pool with volumes, and another that receives.
private final class Transfer {
    let source: Pool
    var disk = SimulatedDisk(seed: 2)
    var target: Pool
    let a = VolumeID.random()
    let b = VolumeID.random()

    init() throws {
        source = try Pool.create(on: SimulatedDisk(seed: 1), options: .small())
        target = try Pool.create(on: disk, options: .small())
        _ = try source.createVolume(id: a, name: "a", sizeBytes: 16 * mib)
        _ = try source.createVolume(id: b, name: "b", sizeBytes: 4 * mib)
    }

    func write(_ blocks: Range<UInt64>, _ tag: UInt64, to volume: VolumeID? = nil) throws {
        let device = try source.device(of: volume ?? a)
        for block in blocks { try device.write(pattern(tag &+ block), at: block * 4096) }
    }

    func snapshot(_ name: String, of volumes: [VolumeID]? = nil) throws -> SnapshotID {
        let id = SnapshotID.random()
        _ = try source.createSnapshot(id: id, name: name, volumes: volumes ?? [a], attributes: Array(name.utf8))
        return id
    }

    func stream(_ id: SnapshotID, from: SnapshotID? = nil, resume: ResumeToken? = nil) throws -> [UInt8] {
        let session = try source.send(id, from: from, resume: resume)
        var bytes: [UInt8] = []
        while let piece = try session.next() { bytes += piece }
        return bytes
    }

    @discardableResult
    func receive(_ bytes: [UInt8], _ options: ReceiveOptions = .init()) throws -> SnapshotRecord {
        let session = target.receive(options)
        // In odd pieces.
        var at = 0
        while at < bytes.count {
            let end = min(bytes.count, at + 100_003)
            try bytes[at..<end].withUnsafeBytes { try session.feed($0) }
            at = end
        }
        return try session.finish()
    }

    func restartTarget() throws {
        disk = disk.crashed()
        target = try Pool.open(on: disk, options: .small())
    }

    /// Whether the received snapshot equals the sent one, member by member.
    func isEqual(_ id: SnapshotID) throws -> Bool {
        let sent = source.snapshots().first { $0.id == id }!
        let received = target.snapshots().first { $0.id == id }!
        guard sent.attributes == received.attributes, sent.createdAt == received.createdAt,
            sent.members.map(\.sizeBytes) == received.members.map(\.sizeBytes)
        else { return false }
        for (mine, theirs) in zip(sent.members, received.members) {
            let count = Int(mine.sizeBytes)
            guard
                try source.device(of: id, volume: mine.volume).read(count, at: 0)
                    == target.device(of: id, volume: theirs.volume).read(count, at: 0)
            else { return false }
        }
        return true
    }
}

/// The records of a stream: where each begins.
private func recordStarts(_ bytes: [UInt8]) -> [Int] {
    var starts: [Int] = []
    var at = 0
    while at < bytes.count {
        starts.append(at)
        var reader = ByteReader(bytes[(at + 16)...])
        at += 32 + Int((try? reader.get(UInt32.self)) ?? 0)
    }
    return starts
}

@Suite("Send and receive")
struct SendReceiveTests {
    @Test("a whole snapshot and its increments arrive as they were, with holes, sizes, evidence and time of the cut")
    func roundTrip() throws {
        let transfer = try Transfer()
        try transfer.write(0..<700, 1)
        let first = try transfer.snapshot("first")
        try transfer.write(100..<120, 2)
        try transfer.source.device(of: transfer.a).unmap(at: 300 * 4096, lengthBytes: 200 * 4096)
        try transfer.source.resizeVolume(transfer.a, sizeBytes: 20 * mib)
        try transfer.write(5000..<5001, 3)
        let second = try transfer.snapshot("second")
        try transfer.source.resizeVolume(transfer.a, sizeBytes: 2 * mib)
        let third = try transfer.snapshot("third")

        #expect(try transfer.receive(try transfer.stream(first)).name == "first")
        #expect(try transfer.isEqual(first))
        let increment = try transfer.stream(second, from: first)
        #expect(increment.count < 30 * 4200)
        try transfer.receive(increment)
        try transfer.receive(try transfer.stream(third, from: second))
        #expect(try transfer.isEqual(second) && transfer.isEqual(first) && transfer.isEqual(third))
        let volume = try #require(transfer.target.volumes().first)
        #expect(transfer.target.volumes().count == 1 && volume.name == "a" && volume.sizeBytes == 2 * mib)
        #expect(volume.naa != transfer.source.volumes()[0].naa)
        try transfer.restartTarget()
        #expect(try transfer.isEqual(second) && PoolChecker.check(transfer.target).problems == [])
        // And back again: the receiver has a common snapshot with the sender.
        let back = SnapshotID.random()
        try transfer.target.device(of: volume.id).write(pattern(77), at: 0)
        _ = try transfer.target.createSnapshot(id: back, name: "back", volumes: [volume.id], attributes: [])
        let session = try transfer.target.send(back, from: third)
        let receiver = transfer.source.receive()
        while let piece = try session.next() { try piece.withUnsafeBytes { try receiver.feed($0) } }
        _ = try receiver.finish()
        #expect(try transfer.source.device(of: transfer.a).read(4096, at: 0) == pattern(77))
    }

    @Test("a group arrives as one snapshot, and a volume that joined it later comes whole")
    func groups() throws {
        let transfer = try Transfer()
        try transfer.write(0..<10, 1)
        let first = try transfer.snapshot("first")
        try transfer.receive(try transfer.stream(first))
        try transfer.write(0..<20, 2, to: transfer.b)
        try transfer.write(5..<6, 3)
        let both = try transfer.snapshot("both", of: [transfer.a, transfer.b])
        var options = ReceiveOptions()
        options.volumeName = "x"
        let bytes = try transfer.stream(both, from: first)
        #expect(throws: PoolError.refusedStream("it is of 2 volumes, and one name was given")) {
            try transfer.receive(bytes, options)
        }
        try transfer.receive(bytes)
        #expect(try transfer.isEqual(both))
        #expect(transfer.target.volumes().map(\.name) == ["a", "b"])
    }

    @Test("a stream that ends too early, at whatever place, makes no snapshot, and the rest makes it whole")
    func truncated() throws {
        let transfer = try Transfer()
        try transfer.write(0..<1500, 1)
        let id = try transfer.snapshot("s")
        let bytes = try transfer.stream(id)
        var options = ReceiveOptions()
        options.positionBytes = 1 << 20
        let starts = recordStarts(bytes)
        for cut in [0, 10, 32] + starts.dropFirst().flatMap({ [$0, $0 + 32, $0 + 40] }) where cut < bytes.count {
            #expect(throws: PoolError.self) { try transfer.receive(Array(bytes[..<cut]), options) }
            #expect(transfer.target.snapshots().isEmpty && transfer.target.volumes().isEmpty)
        }
        let record = try #require(transfer.target.receives().first)
        #expect(record.volumes == ["a"] && !record.isActive && record.offsetBytes > 0)
        try transfer.restartTarget()
        let token = try #require(transfer.target.receives().first).token
        #expect(ResumeToken(token.description) == token && ResumeToken(token.description + "0") == nil)
        let rest = try transfer.stream(id, resume: token)
        #expect(rest.count < bytes.count / 2)
        try transfer.receive(rest, options)
        #expect(try transfer.isEqual(id) && transfer.target.receives().isEmpty)
        #expect(PoolChecker.check(transfer.target).problems == [])
    }

    @Test("a flipped bit anywhere is found, and nothing comes of it")
    func flipped() throws {
        let transfer = try Transfer()
        try transfer.write(0..<40, 1)
        let id = try transfer.snapshot("s")
        let bytes = try transfer.stream(id)
        var places = Array(stride(from: 0, to: bytes.count, by: 1709))
        for start in recordStarts(bytes) { places += (start..<min(start + 40, bytes.count)) }
        for place in places {
            var changed = bytes
            changed[place] ^= 0x10
            #expect(throws: PoolError.self, "at \(place)") { try transfer.receive(changed) }
            #expect(transfer.target.snapshots().isEmpty)
        }
        if let open = transfer.target.receives().first { try transfer.target.abortReceive(open.snapshot) }
        #expect(throws: PoolError.badStream("bytes follow its end")) { try transfer.receive(bytes + [0]) }
        try transfer.receive(bytes)
        #expect(try transfer.isEqual(id))
    }

    /// A stream in which one block was exchanged and all checksums of records made right again.
    private func forged(_ bytes: [UInt8]) throws -> [UInt8] {
        var parser = StreamParser()
        bytes.withUnsafeBytes { parser.feed($0) }
        var result: [UInt8] = []
        var sequence: UInt64 = 0
        while var record = try parser.next() {
            if case .data(let member, let block, var content) = record {
                content[100] ^= 1
                record = .data(member: member, block: block, bytes: content)
            }
            record.encode(sequence: sequence, into: &result)
            sequence += 1
        }
        return result
    }

    @Test("content that is not the sender's is found by the digest though every record is whole")
    func digest() throws {
        let transfer = try Transfer()
        try transfer.write(0..<4, 1)
        let id = try transfer.snapshot("s")
        let wrong = try forged(try transfer.stream(id))
        #expect(throws: PoolError.self) { try transfer.receive(wrong) }
        #expect(transfer.target.snapshots().isEmpty)
        try transfer.target.abortReceive(id)
        #if DEBUG
            var options = PoolOptions.small()
            options.plantedBug = .digestNotCompared
            transfer.target = try Pool.create(on: SimulatedDisk(seed: 5), options: options)
            try transfer.receive(wrong)
            #expect(try !transfer.isEqual(id))
        #endif
    }

    @Test("a stream of another version, or of nothing, is refused by name")
    func versions() throws {
        let transfer = try Transfer()
        let id = try transfer.snapshot("s")
        var bytes = try transfer.stream(id)
        let starts = recordStarts(bytes)
        bytes[32 + 8] = 2
        var begin = Array(bytes[..<starts[1]])
        StreamRecord.fillHeader(of: .begin, sequence: 0, payload: 32, in: &begin)
        #expect(throws: PoolError.unsupportedStream("version 2, and this program knows 1")) {
            try transfer.receive(begin)
        }
        #expect(throws: PoolError.badStream("it is no stream of a snapshot")) {
            try transfer.receive(Array(repeating: 7, count: 4096))
        }
        #expect(throws: PoolError.badStream("it ends before it says what it is")) { try transfer.receive([]) }
        #expect(transfer.target.receives().isEmpty)
    }

    @Test("an increment is refused without its base, on a changed volume, and where the snapshot is already")
    func refusals() throws {
        let transfer = try Transfer()
        try transfer.write(0..<10, 1)
        let first = try transfer.snapshot("first")
        try transfer.write(0..<2, 2)
        let second = try transfer.snapshot("second")
        let increment = try transfer.stream(second, from: first)
        #expect(throws: PoolError.self) { try transfer.receive(increment) }
        try transfer.receive(try transfer.stream(first))
        #expect(throws: PoolError.refusedStream("snapshot first (\(first)) is here already")) {
            try transfer.receive(try transfer.stream(first))
        }
        let volume = transfer.target.volumes()[0].id
        try transfer.target.device(of: volume).write(pattern(9), at: 0)
        let changed = PoolError.refusedStream(
            "volume a is not what it was in the snapshot that the increment is to; revert it to that snapshot first")
        #expect(throws: changed) { try transfer.receive(increment) }
        _ = try transfer.target.revert(
            volumes: [volume], to: first, keepAs: .random(), keepName: "kept", attributes: [])
        var options = ReceiveOptions()
        options.volumeName = "other"
        #expect(throws: PoolError.refusedStream("the increment belongs to volume a, not to other")) {
            try transfer.receive(increment, options)
        }

        // Written to while the increment comes in: refused at the end, and the volume keeps what was written.
        let session = transfer.target.receive()
        try increment.withUnsafeBytes { try session.feed($0) }
        #expect(throws: PoolError.hasClones(["a transfer of second that has not ended"])) {
            try transfer.target.deleteSnapshot(first)
        }
        try transfer.target.device(of: volume).write(pattern(8), at: 4096)
        #expect(throws: changed) { try session.finish() }
        #expect(try transfer.target.device(of: volume).read(4096, at: 4096) == pattern(8))
        #expect(transfer.target.snapshots().count == 2)

        _ = try transfer.target.revert(
            volumes: [volume], to: first, keepAs: .random(), keepName: "kept2", attributes: [])
        try transfer.receive(increment)
        #expect(try transfer.isEqual(second))
        #expect(try transfer.target.device(of: volume).read(4096, at: 0) == pattern(2))
    }

    @Test("a transfer is received by one session at a time, goes on from its place only, and can be thrown away")
    func sessions() throws {
        let transfer = try Transfer()
        try transfer.write(0..<1000, 1)
        let id = try transfer.snapshot("s")
        let bytes = try transfer.stream(id)
        let session = transfer.target.receive()
        try bytes[..<3_000_000].withUnsafeBytes { try session.feed($0) }
        #expect(throws: PoolError.refusedStream("snapshot s is being received already")) {
            try transfer.receive(bytes)
        }
        #expect(throws: PoolError.self) { try transfer.target.abortReceive(id) }
        session.suspend()
        let later = ResumeToken(snapshot: id, from: nil, position: StreamPosition(member: 0, block: 990))
        #expect(throws: PoolError.self) { try transfer.receive(try transfer.stream(id, resume: later)) }
        #expect(throws: PoolError.self) {
            try transfer.stream(
                id, resume: ResumeToken(snapshot: .random(), from: nil, position: StreamPosition()))
        }
        try transfer.target.abortReceive(id)
        #expect(transfer.target.receives().isEmpty)
        repeat { try transfer.target.maintain() } while transfer.target.statistics.reclaimsPending > 0
        let report = PoolChecker.check(transfer.target)
        #expect(report.dataBlocks == 0 && report.isSound)
        #expect(throws: PoolError.self) { try transfer.receive(try transfer.stream(id, resume: later)) }
        try transfer.receive(bytes)
        #expect(try transfer.isEqual(id))
    }

    @Test("the same bytes as ever: a small stream, record by record")
    func golden() throws {
        let begin = StreamBegin(
            pool: ObjectID(high: 1, low: 2), snapshot: SnapshotID(ObjectID(high: 3, low: 4)),
            from: SnapshotID(ObjectID(high: 5, low: 6)), createdAt: 7, kind: .user, name: "s",
            start: StreamPosition(member: 0, block: 9),
            members: [.init(volume: VolumeID(ObjectID(high: 10, low: 11)), name: "v", sizeBytes: 8192, base: 0)])
        let records: [StreamRecord] = [
            .begin(begin), .hole(member: 0, block: 9, count: 3),
            .memberEnd(member: 0, digest: ContentDigest(mappedBlocks: 1, low: 2, high: 3)), .attributes([1, 2, 3]),
            .end(dataBlocks: 4, holeBlocks: 5),
        ]
        var bytes: [UInt8] = []
        for (index, record) in records.enumerated() { record.encode(sequence: UInt64(index), into: &bytes) }
        let hex = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        #expect(hex == Self.goldenHex)
        var parser = StreamParser()
        bytes.withUnsafeBytes { parser.feed($0) }
        for record in records { #expect(try parser.next() == record) }
        #expect(try parser.next() == nil && parser.isBetweenRecords)
    }

    @Test("a digest follows from another by what differs, and is the same for the same content in another pool")
    func digests() throws {
        let transfer = try Transfer()
        try transfer.write(0..<600, 1)
        let first = try transfer.snapshot("first")
        try transfer.write(10..<500, 2)
        try transfer.source.device(of: transfer.a).unmap(at: 0, lengthBytes: 4096)
        let second = try transfer.snapshot("second")
        let core = transfer.source.core
        _ = try transfer.stream(second, from: first)
        let datasets = try core.monitor.withLock {
            (try core.member(of: first, transfer.a), try core.member(of: second, transfer.a))
        }
        let whole = try core.digest(of: datasets.1, base: nil) {}
        core.monitor.withLock { core.digests = [:] }
        _ = try core.digest(of: datasets.0, base: nil) {}
        let stepped = try core.digest(of: datasets.1, base: datasets.0) {}
        #expect(whole == stepped && whole.mappedBlocks == 599)
    }

    @Test("the digest of a leaf is what docs/send-stream.md says, computed by another program")
    func goldenDigest() {
        let page = Page()
        page[entry: 3] = LeafEntry(block: 9, birth: 1, crc: 0x1234_5678)
        page[entry: 255] = LeafEntry(block: 10, birth: 2, crc: 1)
        var digest = ContentDigest()
        digest.add(page, index: 5)
        let golden = ContentDigest(mappedBlocks: 2, low: 0xcad2_c86a_d369_ec79, high: 0xb89d_f8eb_42da_374a)
        #expect(digest == golden)
    }

    static let goldenHex =
        "535053520100000000000000000000008e0000000dd7adb9000000000672d317535053454e4430310100000001000000"
        + "010000000000000002000000000000000300000000000000040000000000000005000000000000000600000000000000"
        + "07000000000000000000000000000000000000000000000009000000000000000100000073010000000a000000000000"
        + "000b00000000000000002000000000000000000000000000000100000076535053520300000001000000000000001800"
        + "00005e495624000000009b3191ce00000000000000000900000000000000030000000000000053505352040000000200"
        + "00000000000020000000401e6e0a000000003b99e1fe0000000000000000010000000000000002000000000000000300"
        + "00000000000053505352050000000300000000000000030000001ef230f100000000dd5811a301020353505352060000"
        + "0004000000000000001800000021aa145200000000c640d2bb0400000000000000050000000000000000000000000000"
        + "00"
}
