import BlockIO
import ISCSI
import NIOCore
import SCSI
import Synchronization
import TestInitiator
import Testing

@Suite("Two paths to one volume", .serialized)
struct TwoPathsTests {
    private static let name = "iqn.2026-11.test:host"

    private func paths(_ running: RunningServer) async throws -> [RawInitiator] {
        try running.registry.setPortalGroup(2, access: .activeOptimized)
        let second = try await running.server.start(host: "127.0.0.1", port: 0, portalGroupTag: 2).port ?? 0
        return try [running.port, second].enumerated().map { index, port in
            let path = try RawInitiator(
                "127.0.0.1:\(port)", target: RunningServer.open, initiator: Self.name, isid: UInt64(index + 1))
            #expect(try path.clearAttentions() == [[0x29, 0]])
            return path
        }
    }

    @Test("both paths show the same device through different ports, and each is a registrant of its own")
    func identity() async throws {
        let running = try await RunningServer()
        let paths = try await paths(running)
        let pages = try paths.map { try $0.inquiry(page: 0x83) }
        // The NAA name and the T10 designator; then the ports, which differ.
        let unit = 4 + 20 + 4 + 8 + 2
        #expect(pages[0][4..<unit] == pages[1][4..<unit])
        #expect(pages[0] != pages[1])
        let groups = try paths.map { try $0.command([0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], readBytes: 256).data }
        #expect(groups[0] == groups[1] && groups[0].count == 4 + 2 * 12)
        #expect(try paths[0].reserveOut(0x06, newKey: 0x11).isGood)
        #expect(try paths[0].reserveOut(0x01, type: 1, key: 0x11).isGood)
        #expect(try paths[1].reservationKeys() == [0x11])
        let block = [UInt8](repeating: 1, count: 512)
        #expect(try paths[1].write(lba: 0, block).status == 0x18)
        #expect(try paths[1].reserveOut(0x06, newKey: 0x12).isGood)
        #expect(try paths[1].write(lba: 0, block).status == 0x18)
        #expect(try paths[1].reserveOut(0x04, type: 1, key: 0x12, newKey: 0x11).isGood)
        #expect(try paths[1].write(lba: 0, block).isGood)
        #expect(try paths[0].clearAttentions() == [[0x2A, 0x05]])
        #expect(try paths[0].write(lba: 0, block).status == 0x18)
        try await running.stop()
    }

    @Test("a path is cut under a verified load: the other one goes on, and no block is lost or wrong")
    func cut() async throws {
        let running = try await RunningServer(sizeBytes: 16 << 20)
        let paths = try await paths(running)
        var alive = [0, 1]
        var generator = SplitMix(state: 7)
        // What each 4 KiB block holds, as far as it was answered; a write that broke may have happened or not.
        var expected = [UInt8](repeating: 0, count: 1024)
        var uncertain: [Int: UInt8] = [:]
        for step in 0..<2000 {
            let block = Int.random(in: 0..<1024, using: &generator)
            let value = UInt8.random(in: 1...255, using: &generator)
            if step == 700 { paths[0].cut() }
            for path in alive {
                do {
                    let written = try paths[path].write(
                        lba: UInt32(block * 8), [UInt8](repeating: value, count: 4096))
                    #expect(written.isGood)
                    expected[block] = value
                    uncertain[block] = nil
                    break
                } catch is RawInitiator.Failure {
                    #expect(path == 0 && step >= 700)
                    alive = [1]
                    uncertain[block] = value
                }
            }
            alive = alive.count == 2 ? alive.reversed() : alive
        }
        #expect(alive == [1])
        for block in 0..<1024 {
            let found = try paths[1].read(lba: UInt32(block * 8), blocks: 8)
            #expect(found.isGood && found.data == [UInt8](repeating: expected[block], count: 4096))
        }
        #expect(uncertain.isEmpty)
        #expect(running.registry.sessions().count == 1)
        try await running.stop()
    }

    @Test("a group that goes to standby and comes back: 2A/06 on both paths, 04/0B on that one, the other serves on")
    func states() async throws {
        let running = try await RunningServer()
        let paths = try await paths(running)
        let block = [UInt8](repeating: 3, count: 512)
        try running.registry.setPortalGroup(1, access: .standby)
        for path in paths { #expect(try path.write(lba: 0, block).sense == [6, 0x2A, 0x06]) }
        #expect(try paths[0].write(lba: 0, block).sense == [2, 0x04, 0x0B])
        #expect(try paths[1].write(lba: 0, block).isGood)
        let report = try paths[0].command([0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], readBytes: 256).data
        #expect(report[8] & 0x0F == 0x2 && report[20] & 0x0F == 0x0)
        try running.registry.setPortalGroup(1, access: .activeNonOptimized)
        for path in paths { #expect(try path.clearAttentions() == [[0x2A, 0x06]]) }
        #expect(try paths[0].read(lba: 0, blocks: 1).data == block)
        try await running.stop()
    }

    @Test("a volume that grows, and a LUN that comes and goes, are told on every path")
    func onlineChanges() async throws {
        let running = try await RunningServer()
        let paths = try await paths(running)
        running.device.resize(to: 128 << 20)
        running.registry.deviceResized(naa: "6589cfc00000000000000000000000a0")
        for path in paths { #expect(try path.clearAttentions() == [[0x2A, 0x09]]) }
        let size = try paths[0].command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], readBytes: 8).data
        #expect(Array(size[..<4]) == [0, 3, 0xFF, 0xFF])
        let extra = MemoryDevice(sizeBytes: 1 << 20)
        try running.registry.addLUN(
            RunningServer.open, lun: 1, device: extra,
            identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000000b0", serial: "X"))
        for path in paths {
            #expect(try path.clearAttentions() == [[0x3F, 0x0E]])
            #expect(try path.clearAttentions(lun: 1) == [[0x29, 0]])
        }
        try running.registry.removeLUN(RunningServer.open, lun: 1)
        for path in paths {
            #expect(try path.command([0, 0, 0, 0, 0, 0], lun: 1).sense == [5, 0x25, 0])
            #expect(try path.clearAttentions() == [[0x3F, 0x0E]])
        }
        // A revert that a session was allowed to see: contents, and perhaps the size, are others.
        running.registry.deviceReverted(naa: "6589cfc00000000000000000000000a0")
        for path in paths { #expect(try path.clearAttentions() == [[0x28, 0], [0x2A, 0x09]]) }
        try await running.stop()
    }
}
