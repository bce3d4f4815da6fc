import API
import Foundation
import Synchronization
import TestInitiator
import Testing

/// The real process killed again and again under a load whose every answer is remembered, with snapshots beside it, in
/// the middle of a recovery, too. What was answered is there, flushed or not; what was not answered is there or not,
/// each block of 4 KiB as a whole.
@Suite("A node killed under verified load", .serialized)
struct KillLoopTests {
    @Test("on a file: nothing answered is lost, snapshots hold what they held, and the pool is sound")
    func onFile() throws {
        let node = try TestNode()
        defer { node.stop() }
        node.extraEnvironment["STILLPOINT_POOL_MAXIMUM_SIZE"] = "1GiB"
        try run(node, pool: node.dataFolder + "/pool")
    }

    @Test("on a block device: the same", .enabled(if: Self.hasLoop, "no loop device can be had"))
    func onDevice() throws {
        let node = try TestNode()
        defer { node.stop() }
        let disk = node.folder.path + "/disk"
        try Shell.check(["truncate", "-s", "1G", disk])
        let device = try Shell.check(["losetup", "--find", "--show", disk])
            .trimmingCharacters(in: .whitespacesAndNewlines)
        defer {
            node.killHard()
            _ = try? Shell.run(["losetup", "--detach", device])
        }
        node.extraEnvironment["STILLPOINT_POOL_PATH"] = device
        try run(node, pool: device)
    }

    private static let hasLoop =
        Components.isRoot && access("/dev/loop-control", R_OK | W_OK) == 0
        && (try? Shell.check(["losetup", "-f"])) != nil

    private func run(_ node: TestNode, pool: String) throws {
        try node.start()
        try node.must("volume", "create", "v", "--size", "32MiB")
        try node.allowAny(volume: "v")
        let loads = try (0..<2).map { try VerifiedLoad(node, stripe: $0) }
        for round in 0..<4 {
            let threads = DispatchGroup()
            for load in loads { load.start(threads) }
            // A snapshot, a deletion, and a kill at any moment of either or after.
            let beside = try Shell.start(
                [
                    "sh", "-c",
                    "\(Components.bin)/stillpoint snapshot create v --name s\(round) -q; "
                        + "\(Components.bin)/stillpoint snapshot delete s\(max(0, round - 1)) -q",
                ], environment: ["STILLPOINT_RUN_DIR": node.runFolder], outputPath: node.folder.path + "/beside",
                leadsGroup: true)
            let answered = loads.map(\.answered)
            let isUnderWay = Shell.wait { zip(loads, answered).allSatisfy { $0.answered > $1 + 20 } }
            #expect(isUnderWay)
            usleep(UInt32.random(in: 0...900_000))
            node.killHard()
            threads.wait()
            beside.killGroup()
            for _ in 0..<(round % 3) { try killRecovery(node, after: UInt32.random(in: 0...400_000)) }
            try node.start()
            for load in loads { #expect(try load.difference() == nil, "round \(round)") }
        }
        let held = loads.map(\.content)
        try node.must("snapshot", "create", "v", "--name", "held", "-q")
        for load in loads { try load.change(times: 40) }
        let changed = loads.map(\.content)
        try awaitLogouts(node)
        try node.must("volume", "revert", "v", "--to", "held", "-q")
        node.killHard()
        try node.start()
        for (load, content) in zip(loads, held) { #expect(try load.read() == content, "reverted") }
        try awaitLogouts(node)
        try node.must("volume", "revert", "v", "--undo", "-q")
        for (load, content) in zip(loads, changed) { #expect(try load.read() == content, "the revert undone") }
        #expect(node.terminate() == 0, "\(node.log)")
        let check = try node.cli("pool", "check", "--path", pool)
        #expect(check.status == 0, "\(check)")
    }

    /// A volume in use is not reverted, and the node sees the end of a session a moment after the initiator.
    private func awaitLogouts(_ node: TestNode) throws {
        let isFree = try Shell.wait { try node.json(VolumeInfo.self, "volume", "show", "v").initiators.isEmpty }
        #expect(isFree)
    }

    /// A start that does not get far.
    private func killRecovery(_ node: TestNode, after microseconds: UInt32) throws {
        let environment = node.extraEnvironment.merging(["STILLPOINT_RUN_DIR": node.runFolder]) { $1 }
        let process = try Shell.start(
            [
                Components.bin + "/stillpoint", "serve", "--data", node.dataFolder, "--iscsi-listen", "127.0.0.1:0",
                "--api-listen", "127.0.0.1:0",
            ], environment: environment, outputPath: node.folder.path + "/recovery.out")
        usleep(microseconds)
        process.killHard()
    }
}

/// Changes one half of a volume over a session of its own, and knows what has to be there.
private final class VerifiedLoad: @unchecked Sendable {
    // SAFETY: `content` and `open` belong to the load's thread while it runs, and to the test otherwise.
    static let bytes = 16 << 20
    private let node: TestNode
    private let target: String
    private let stripe: Int
    private(set) var content = [UInt8](repeating: 0, count: bytes)
    /// What was sent and not answered.
    private var open: (offset: Int, bytes: [UInt8])?
    private let count = Atomic<Int>(0)

    var answered: Int { count.load(ordering: .relaxed) }

    init(_ node: TestNode, stripe: Int) throws {
        self.node = node
        self.stripe = stripe
        target = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
    }

    private func login() throws -> RawInitiator {
        let path = try RawInitiator(node.iscsi, target: target, initiator: "iqn.2026-11.test:load\(stripe)")
        try path.clearAttentions()
        return path
    }

    /// Goes on until the connection breaks.
    func start(_ group: DispatchGroup) {
        group.enter()
        Thread { [self] in
            do {
                let path = try login()
                while true { try step(path) }
            } catch let error as UnexpectedAnswer {
                Issue.record(error)
            } catch {}
            group.leave()
        }.start()
    }

    func change(times: Int) throws {
        let path = try login()
        for _ in 0..<times { try step(path) }
        _ = try path.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        path.cut()
    }

    private struct UnexpectedAnswer: Error { var sense: [UInt8] }

    private func step(_ path: RawInitiator) throws {
        let kind = Int.random(in: 0..<10)
        // Whole blocks, parts of one, and many at once.
        let sectors = [1, 3, 8, 8, 16, 128].randomElement()!
        let first = Int.random(in: 0...(Self.bytes / 512 - sectors))
        let lba = UInt32(stripe * Self.bytes / 512 + first)
        let range = (first * 512)..<((first + sectors) * 512)
        let tag = UInt8.random(in: 1...255)
        var new = [UInt8](repeating: tag, count: range.count)
        for index in stride(from: 0, to: new.count, by: 512) { new[index] = UInt8(truncatingIfNeeded: answered) }
        switch kind {
        case 0:
            try expectGood(try path.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
        case 1:
            let zeros = [UInt8](repeating: 0, count: range.count)
            try apply(range.lowerBound, zeros) { try path.command(Self.unmap, data: Self.list(lba, sectors)) }
        case 2:
            let compared = min(sectors, 8)
            let old = Array(content[range.lowerBound..<(range.lowerBound + compared * 512)])
            let next = Array(new[..<(compared * 512)])
            try apply(range.lowerBound, next) {
                try path.command(Self.compareAndWrite(lba, compared), data: old + next)
            }
        default: try apply(range.lowerBound, new) { try path.write(lba: lba, new) }
        }
        count.add(1, ordering: .relaxed)
    }

    private func apply(_ offset: Int, _ bytes: [UInt8], _ body: () throws -> RawInitiator.Answer) throws {
        open = (offset, bytes)
        try expectGood(try body())
        content.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
        open = nil
    }

    private func expectGood(_ answer: RawInitiator.Answer) throws {
        guard answer.isGood else { throw UnexpectedAnswer(sense: answer.sense) }
    }

    private static let unmap: [UInt8] = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]

    private static func list(_ lba: UInt32, _ sectors: Int) -> [UInt8] {
        [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0] + big(lba) + big(UInt32(sectors)) + [0, 0, 0, 0]
    }

    private static func compareAndWrite(_ lba: UInt32, _ sectors: Int) -> [UInt8] {
        [0x89, 0, 0, 0, 0, 0] + big(lba) + [0, 0, 0, UInt8(sectors), 0, 0]
    }

    private static func big(_ value: UInt32) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * $0)) }
    }

    func read() throws -> [UInt8] {
        let path = try login()
        defer { path.cut() }
        var bytes: [UInt8] = []
        for first in stride(from: 0, to: Self.bytes / 512, by: 256) {
            let answer = try path.read(lba: UInt32(stripe * Self.bytes / 512 + first), blocks: 256)
            try expectGood(answer)
            bytes += answer.data
        }
        return bytes
    }

    /// Where the volume differs from what it must hold; what was not answered may be there or not.
    func difference() throws -> Int? {
        let found = try read()
        if let open {
            var at = 0
            while at < open.bytes.count {
                let end = min(open.bytes.count, at + 4096 - (open.offset + at) % 4096)
                let place = (open.offset + at)..<(open.offset + end)
                if found[place].elementsEqual(open.bytes[at..<end]) {
                    content.replaceSubrange(place, with: open.bytes[at..<end])
                }
                at = end
            }
            self.open = nil
        }
        return found == content ? nil : zip(found, content).enumerated().first { $1.0 != $1.1 }?.offset
    }
}
