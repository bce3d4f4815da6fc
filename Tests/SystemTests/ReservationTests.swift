import API
import Foundation
import TestInitiator
import Testing

/// Persistent reservations on the real node: who may write is known again after a kill, before anybody can write.
@Suite("Reservations over a restart", .serialized)
struct ReservationTests {
    private static let block = [UInt8](repeating: 7, count: 512)

    private func start(_ node: TestNode, _ volume: String) throws -> String {
        try node.must("volume", "create", volume, "--size", "64MiB")
        try node.allowAny(volume: volume)
        return try node.json(VolumeInfo.self, "volume", "show", volume).exports[0].iqn
    }

    private func connect(_ node: TestNode, _ target: String, _ name: String, isid: UInt64 = 1) throws -> RawInitiator {
        let path = try RawInitiator(
            node.iscsi, target: target, initiator: "iqn.2026-11.test:\(name)", isid: isid)
        #expect(try path.clearAttentions() == [[0x29, 0]])
        return path
    }

    @Test(
        "kill -9 of the node: a reservation with APTPL keeps others out as before, one without keeps nobody out"
    )
    func killed() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let kept = try start(node, "kept")
        let lost = try start(node, "lost")
        for (target, flags) in [(kept, 0x01), (lost, 0x00)] as [(String, UInt8)] {
            let owner = try connect(node, target, "owner")
            #expect(try owner.reserveOut(0x00, newKey: 0xA1, flags: flags).isGood)
            #expect(try owner.reserveOut(0x01, type: 3, key: 0xA1).isGood)
        }
        node.killHard()
        try node.start()
        let stranger = try connect(node, kept, "stranger")
        #expect(try stranger.reservationKeys() == [0xA1])
        #expect(try stranger.write(lba: 0, Self.block).status == 0x18)
        #expect(try stranger.read(lba: 0, blocks: 1).status == 0x18)
        // Another session of the owner is another I_T nexus; the same one is who it was.
        #expect(try connect(node, kept, "owner", isid: 2).write(lba: 0, Self.block).status == 0x18)
        let owner = try connect(node, kept, "owner")
        #expect(try owner.write(lba: 0, Self.block).isGood)
        let free = try connect(node, lost, "stranger")
        #expect(try free.reservationKeys() == [])
        #expect(try free.write(lba: 0, Self.block).isGood)
        // What is taken back stays taken back.
        #expect(try owner.reserveOut(0x03, key: 0xA1).isGood)
        node.killHard()
        try node.start()
        let last = try connect(node, kept, "stranger")
        #expect(try last.reservationKeys() == [])
        #expect(try last.write(lba: 0, Self.block).isGood)
    }

    @Test("a volume that is deleted takes its reservations with it")
    func deleted() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let target = try start(node, "v")
        do {
            let owner = try connect(node, target, "owner")
            #expect(try owner.reserveOut(0x00, newKey: 0xA1, flags: 0x01).isGood)
        }
        // The session ends with its object; the node notices a moment later.
        let isGone = Shell.wait {
            (try? node.must("volume", "delete", "v")) != nil
        }
        #expect(isGone)
        #expect(node.terminate() == 0, "\(node.log)")
    }
}
