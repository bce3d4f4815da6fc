import API
import Foundation
import TestInitiator
import Testing

/// Two portals of a real node to one volume, and `stillpoint portal`.
@Suite("Portals of a node", .serialized)
struct PortalTests {
    @Test("a volume is one device over two portals, and portal set tells the host which to use")
    func states() throws {
        let node = try TestNode()
        defer { node.stop() }
        node.extraEnvironment["STILLPOINT_ISCSI_PORTALS"] = "127.0.0.1:0=2"
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        try node.allowAny(volume: "v")
        let iqn = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let groups = try node.json([PortalGroupInfo].self, "portal", "list")
        #expect(groups.map(\.group) == [1, 2] && groups.allSatisfy { $0.access == .optimized })
        let paths = try groups.enumerated().map { index, group in
            let path = try RawInitiator(
                group.portals[0], target: iqn, initiator: "iqn.2026-11.test:host", isid: UInt64(index + 1))
            #expect(try path.clearAttentions() == [[0x29, 0]])
            return path
        }
        let names = try paths.map { Array(try $0.inquiry(page: 0x83)[4..<24]) }
        #expect(names[0] == names[1])
        let block = [UInt8](repeating: 5, count: 512)
        #expect(try paths[0].write(lba: 0, block).isGood)
        #expect(try paths[1].read(lba: 0, blocks: 1).data == block)
        try node.must("portal", "set", "1", "standby")
        for path in paths { #expect(try path.clearAttentions() == [[0x2A, 0x06]]) }
        #expect(try paths[0].read(lba: 0, blocks: 1).sense == [2, 0x04, 0x0B])
        #expect(try paths[1].read(lba: 0, blocks: 1).data == block)
        #expect(try node.cli("portal", "set", "7", "standby").status == 1)
        #expect(try node.cli("portal", "set", "1", "fast").status == 2)
        for path in paths { path.cut() }
        #expect(node.terminate() == 0, "\(node.log)")
    }
}
