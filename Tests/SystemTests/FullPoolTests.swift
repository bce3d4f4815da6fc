import API
import Foundation
import TestInitiator
import Testing

/// A pool that fills up under an initiator, and has room again, without a restart.
@Suite("A pool that fills up", .serialized)
struct FullPoolTests {
    private static let pieceBytes = 256 << 10

    private static func piece(_ tag: UInt8) -> [UInt8] { [UInt8](repeating: tag, count: pieceBytes) }

    private static func lba(_ index: Int) -> UInt32 { UInt32(index * pieceBytes / 512) }

    /// Writes a piece; a unit attention says only that the threshold was reached once more.
    private static func write(_ path: RawInitiator, _ index: Int, _ tag: UInt8) throws -> RawInitiator.Answer {
        let answer = try path.write(lba: lba(index), piece(tag))
        return answer.sense.first == 6 ? try write(path, index, tag) : answer
    }

    private static func read(_ path: RawInitiator, _ index: Int) throws -> RawInitiator.Answer {
        let answer = try path.read(lba: lba(index), blocks: UInt16(pieceBytes / 512))
        return answer.sense.first == 6 ? try read(path, index) : answer
    }

    /// UNMAP of `count` pieces from the first on.
    private static func unmap(_ path: RawInitiator, pieces count: Int) throws -> RawInitiator.Answer {
        let blocks = UInt32(count * pieceBytes / 512)
        var list = [UInt8](repeating: 0, count: 24)
        list[1] = 22
        list[3] = 16
        for index in 0..<4 { list[16 + index] = UInt8(truncatingIfNeeded: blocks >> UInt32(24 - 8 * index)) }
        return try path.command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], data: list)
    }

    @Test(
        "threshold as a unit attention, full as DATA PROTECT, what was written is whole, and UNMAP makes room again"
    )
    func fills() throws {
        let node = try TestNode()
        defer { node.stop() }
        node.extraEnvironment["STILLPOINT_POOL_MAXIMUM_SIZE"] = "192MiB"
        node.extraEnvironment["STILLPOINT_POOL_SOFT_THRESHOLD"] = "60"
        try node.start()
        try node.must("volume", "create", "v", "--size", "1GiB")
        try node.allowAny(volume: "v")
        let target = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let path = try RawInitiator(node.iscsi, target: target, initiator: "iqn.2026-11.test:filler")
        _ = try path.clearAttentions()

        // Until nothing goes in any more. The threshold is looked at once a second, so it may come at any time after.
        var written = 0
        var attentions: [[UInt8]] = []
        var refusal: RawInitiator.Answer?
        while refusal == nil, written < 4096 {
            let answer = try path.write(lba: Self.lba(written), Self.piece(UInt8(written % 250 + 1)))
            if answer.isGood {
                written += 1
            } else if answer.sense.first == 6 {
                attentions.append(Array(answer.sense[1...]))
            } else {
                refusal = answer
            }
        }
        // DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT: not a medium error.
        #expect(refusal?.sense == [7, 0x27, 7])
        #expect(written > 100)
        // THIN PROVISIONING SOFT THRESHOLD REACHED.
        let isTold = Shell.wait {
            attentions += (try? path.clearAttentions()) ?? []
            return attentions.contains([0x38, 7])
        }
        #expect(isTold)
        for index in [0, written / 2, written - 1] {
            let read = try Self.read(path, index)
            #expect(read.data == Self.piece(UInt8(index % 250 + 1)))
        }
        #expect(try path.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).isGood)

        #expect(try Self.unmap(path, pieces: written / 2).isGood)
        for index in 0..<(written / 4) {
            #expect(try Self.write(path, index, 251).isGood)
        }
        #expect(try Self.read(path, 1).data == Self.piece(251))
        let gap = try Self.read(path, written / 2 - 1)
        #expect(gap.data == Self.piece(0))
        #expect(node.terminate() == 0, "\(node.log)")
    }
}
