import API
import Foundation
import TestInitiator
import Testing

/// `stillpoint pool check` on a real pool file, which is damaged in places that are found as docs/format.md says.
@Suite("Pool check", .serialized)
struct PoolCheckTests {
    private static let blockBytes = 4096
    private static let pieces = 200

    /// The file of a pool, read with nothing but the document.
    private struct PoolFile {
        let path: String

        func block(_ number: UInt64) throws -> [UInt8] {
            let file = try #require(FileHandle(forReadingAtPath: path))
            defer { try? file.close() }
            try file.seek(toOffset: number * UInt64(blockBytes))
            return [UInt8](try file.read(upToCount: blockBytes) ?? Data())
        }

        static func word(_ bytes: [UInt8], _ at: Int) -> UInt64 {
            (0..<8).reduce(0) { $0 | UInt64(bytes[at + $1]) << UInt64(8 * $1) }
        }

        /// The copy with the highest generation.
        func superblock() throws -> [UInt8] {
            let copies = try [0, 16, 32, 48].map { try block($0) }.filter { $0[0..<8].elementsEqual("SPPOOL01".utf8) }
            return try #require(copies.max { Self.word($0, 32) < Self.word($1, 32) })
        }

        /// A bitmap of a region that holds data: the root of a small pool's allocation map refers to all of them.
        func dataBitmap() throws -> UInt64 {
            let root = try block(Self.word(superblock(), 136))
            let references = (0..<128).map { (Self.word(root, $0 * 32), Self.word(root, $0 * 32 + 8) >> 56) }
            return try #require(references.first { $0.0 != 0 && $0.1 == 1 }).0
        }

        /// The root of the map of the first dataset in the catalog.
        func mapRoot() throws -> UInt64 {
            let catalog = try block(Self.word(superblock(), 168))
            return Self.word(catalog, 12 + 48)
        }

        func flipBit(in number: UInt64) throws {
            let file = try #require(FileHandle(forUpdatingAtPath: path))
            defer { try? file.close() }
            let at = number * UInt64(blockBytes) + 40
            try file.seek(toOffset: at)
            let byte = try #require(try file.read(upToCount: 1)?.first)
            try file.seek(toOffset: at)
            try file.write(contentsOf: Data([byte ^ 4]))
            try file.synchronize()
        }
    }

    private static func check(_ node: TestNode, _ options: String...) throws -> (CommandResult, PoolCheckInfo?) {
        let result = try node.cli(["pool", "check", "--data", node.dataFolder, "-o", "json"] + options)
        return (result, try? APIJSON.decoder().decode(PoolCheckInfo.self, from: Data(result.output.utf8)))
    }

    private static func connect(_ node: TestNode) throws -> RawInitiator {
        let target = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let path = try RawInitiator(node.iscsi, target: target, initiator: "iqn.2026-11.test:check")
        _ = try path.clearAttentions()
        return path
    }

    private static func write(_ path: RawInitiator, _ piece: Int, _ tag: UInt8) throws {
        let answer = try path.write(lba: UInt32(piece * 16), [UInt8](repeating: tag, count: 8192))
        try #require(answer.isGood, "\(answer)")
    }

    private static func holds(_ path: RawInitiator, _ piece: Int, _ tag: UInt8) throws -> Bool {
        try path.read(lba: UInt32(piece * 16), blocks: 16).data == [UInt8](repeating: tag, count: 8192)
    }

    /// A node with a volume that holds something, and its pool's file.
    private static func makeNode() throws -> (TestNode, PoolFile) {
        let node = try TestNode()
        node.extraEnvironment["STILLPOINT_POOL_MAXIMUM_SIZE"] = "256MiB"
        try node.start()
        try node.must("volume", "create", "v", "--size", "1GiB")
        try node.allowAny(volume: "v")
        let path = try connect(node)
        for piece in 0..<pieces { try write(path, piece, UInt8(piece + 1)) }
        #expect(try path.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).isGood)
        return (node, PoolFile(path: node.dataFolder + "/pool"))
    }

    @Test("a check refuses a pool that a node has open, and calls a sound one sound, for people and for programs")
    func sound() throws {
        let (node, _) = try Self.makeNode()
        defer { node.stop() }
        for option in ["--no-data", "--repair"] {
            let (refused, _) = try Self.check(node, option)
            #expect(refused.status == 1 && refused.errors.contains("a node has the pool"), "\(refused)")
        }
        #expect(node.terminate() == 0, "\(node.log)")
        let (result, found) = try Self.check(node)
        #expect(result.status == 0, "\(result)")
        #expect(found?.isSound == true && found?.volumes == 1 && found?.setAsideBlocks == 0, "\(result)")
        #expect(found?.dataBlocks == UInt64(2 * Self.pieces) && found?.repairedBlocks == nil, "\(result)")
        let text = try node.cli("pool", "check", "--path", node.dataFolder + "/pool", "--repair")
        #expect(text.status == 0 && text.output.contains("sound"), "\(text)")
        #expect(try node.cli("pool", "check", "--path", node.dataFolder + "/nothing").status == 1)
        #expect(try node.cli("pool", "check", "--nonsense").status == 2)
    }

    @Test("a wrong bitmap page costs room until a repair frees it, and never data")
    func wrongBitmap() throws {
        let (node, file) = try Self.makeNode()
        defer { node.stop() }
        #expect(node.terminate() == 0, "\(node.log)")
        try file.flipBit(in: file.dataBitmap())
        let (wrong, _) = try Self.check(node)
        #expect(wrong.status == 1 && wrong.output.contains("allocation map"), "\(wrong)")

        // The node serves it, and what is written makes a checkpoint set the region's free blocks aside.
        try node.start()
        var path = try Self.connect(node)
        for piece in 0..<Self.pieces { #expect(try Self.holds(path, piece, UInt8(piece + 1))) }
        for piece in 0..<(Self.pieces / 2) { try Self.write(path, piece, 251) }
        #expect(try path.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).isGood)
        // The node would wait for the session to end.
        path.cut()
        #expect(node.terminate() == 0, "\(node.log)")
        let (aside, found) = try Self.check(node)
        #expect(aside.status == 0 && found?.isSound == true, "\(aside)")
        let setAside = try #require(found?.setAsideBlocks)
        #expect(setAside > 0)

        let (repaired, report) = try Self.check(node, "--repair")
        #expect(repaired.status == 0 && report?.isSound == true, "\(repaired)")
        #expect(report?.repairedBlocks == setAside && report?.setAsideBlocks == 0, "\(repaired)")
        #expect(try Self.check(node, "--repair").1?.repairedBlocks == 0)
        try node.start()
        path = try Self.connect(node)
        for piece in 0..<Self.pieces {
            #expect(try Self.holds(path, piece, piece < Self.pieces / 2 ? 251 : UInt8(piece + 1)))
        }
        path.cut()
        #expect(node.terminate() == 0, "\(node.log)")
    }

    @Test("while a map page cannot be read a repair changes nothing, and says what to do")
    func wrongMapPage() throws {
        let (node, file) = try Self.makeNode()
        defer { node.stop() }
        #expect(node.terminate() == 0, "\(node.log)")
        try file.flipBit(in: file.mapRoot())
        let (wrong, found) = try Self.check(node)
        #expect(wrong.status == 1 && found?.isSound == false, "\(wrong)")
        #expect(found?.problems.contains { $0.contains("map page") } == true, "\(wrong)")
        let (refused, _) = try Self.check(node, "--repair")
        #expect(refused.status == 1 && refused.errors.contains("nothing was repaired"), "\(refused)")
        #expect(try Self.check(node).1?.problems == found?.problems)
    }
}
