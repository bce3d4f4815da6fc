import API
import Foundation
import Testing

/// Several guests in one cut.
@Suite("Guests: groups", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMGroupTests {
    private static let count = 4

    @Test("four guests on four volumes, and the same four on one volume as image files, in one cut")
    func fourGuests() throws {
        let world = try KVMWorld()
        defer { world.tearDown() }
        let images = world.host.folder.path + "/images"
        let device = try world.mountShared("shared", at: images)
        defer { world.unmountShared("shared", at: images) }
        for index in 1...Self.count {
            let guest = try world.guest("g\(index)", volumes: ["own\(index)"])
            let path = try imageFile(world, images, index)
            guest.disks.append(
                GuestDisk(
                    target: "vdb", serial: "img\(index)",
                    source: .file(path, format: index.isMultiple(of: 2) ? "qcow2" : "raw")))
            try guest.define()
            try guest.start()
        }
        for guest in world.guests { try guest.waitForAgent() }
        try world.startAgents()
        let found = try world.node.json(AgentInfo.self, "agent", "show", "kvm1").resources ?? []
        #expect(
            found.filter { $0.layer == .machine }.map(\.label).sorted()
                == ["g1", "g2", "g3", "g4"].map { "guest \($0)" })
        #expect(found.first { $0.plugin == "filesystem" }?.layer == .hostFileSystem, "\(device) carries guests")
        for (index, guest) in world.guests.enumerated() {
            try guest.startWriter(["/mnt/own\(index + 1)/n", "/mnt/img\(index + 1)/n"], pauseMicroseconds: 5_000)
        }
        let volumes = (1...Self.count).map { "own\($0)" } + ["shared"]
        let frozen = try world.snapshot(volumes, name: "frozen", "--consistency", "file-system")
        #expect(frozen.achievedConsistency == .fileSystem)
        let members = frozen.evidence?.members ?? []
        #expect(members.map(\.layer).sorted() == Array(repeating: .machine, count: 4) + [.hostFileSystem])
        #expect(!members.contains { !$0.stillHeldAtRelease })
        _ = try world.snapshot(volumes, name: "crash")
        for guest in world.guests {
            #expect(guest.isRunningFreely(withinSeconds: 30))
            #expect(try guest.writerGoesOn())
        }
        for snapshot in ["frozen", "crash"] {
            let shared = Ext4Image(path: try world.image(of: snapshot, volume: "shared"))
            #expect(try shared.needsRecovery() == (snapshot == "crash"))
            try shared.replayJournal()
            for index in 1...Self.count { try expectPrefix(world, snapshot, index, shared) }
        }
    }

    /// A raw image, or a qcow2 image that stands on one.
    private func imageFile(_ world: KVMWorld, _ folder: String, _ index: Int) throws -> String {
        let raw = "\(folder)/g\(index).img"
        try world.host.run("truncate", "-s", "32M", raw)
        try world.host.run("mkfs.ext4", "-q", "-L", "img\(index)", raw)
        guard index.isMultiple(of: 2) else { return raw }
        let upper = "\(folder)/g\(index).qcow2"
        try world.host.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", upper)
        return upper
    }

    /// Of the numbers that a guest wrote to one disk, then to the other, both hold all up to one number; the two differ
    /// by one at most.
    private func expectPrefix(_ world: KVMWorld, _ snapshot: String, _ index: Int, _ shared: Ext4Image) throws {
        let own = Ext4Image(path: try world.image(of: snapshot, volume: "own\(index)"))
        let copy = "\(world.node.folder.path)/\(snapshot)-g\(index)"
        let name = index.isMultiple(of: 2) ? "g\(index).qcow2" : "g\(index).img"
        try Shell.check(["debugfs", "-R", "dump /\(name) \(copy)", shared.path])
        var image = Ext4Image(path: copy)
        if index.isMultiple(of: 2) {
            let base = "\(copy).base"
            try Shell.check(["debugfs", "-R", "dump /g\(index).img \(base)", shared.path])
            try Shell.check(["qemu-img", "rebase", "-u", "-b", base, "-F", "raw", copy])
            try Shell.check(["qemu-img", "convert", "-O", "raw", copy, copy + ".raw"])
            image = Ext4Image(path: copy + ".raw")
        }
        for one in [own, image] {
            #expect(try one.needsRecovery() == (snapshot == "crash"), "\(snapshot) \(index)")
            try one.replayJournal()
        }
        let first = try own.numbers("/n")
        let second = try image.numbers("/n")
        #expect(first == Array(1...max(1, first.count)), "\(snapshot) \(index)")
        #expect(second == Array(1...max(1, second.count)), "\(snapshot) \(index)")
        #expect((0...1).contains(first.count - second.count), "\(snapshot) \(index): \(first.count) \(second.count)")
    }

    @Test("numbers written by turns to guests of two hosts are a prefix in every snapshot")
    func twoHosts() throws {
        let world = try KVMWorld(hosts: 2)
        defer { world.tearDown() }
        let guests = try [("a", 0), ("b", 1)].map { name, host in
            try world.guest("g-\(name)", volumes: [name], on: world.hosts[host])
        }
        for guest in guests {
            try guest.define()
            try guest.start()
        }
        for guest in guests { try guest.waitForAgent() }
        try world.startAgents()
        let writer = TurnWriter(guests, files: ["/mnt/a/n", "/mnt/b/n"])
        writer.start()
        defer { writer.stop() }
        for round in 1...4 {
            // Some more numbers than at the cut before.
            #expect(Shell.wait { writer.count > round * 3 }, "the writer does not write")
            let level = round.isMultiple(of: 2) ? "crash" : "file-system"
            let made = try world.snapshot(["a", "b"], name: "s\(round)", "--consistency", level)
            if level == "file-system" {
                #expect(made.achievedConsistency == .fileSystem)
                #expect(made.evidence?.members.map(\.agent) == ["kvm1", "kvm2"])
            }
        }
        writer.stop()
        for round in 1...4 {
            let numbers = try ["a", "b"].map { volume in
                let image = Ext4Image(path: try world.image(of: "s\(round)", volume: volume))
                try image.replayJournal()
                return try image.numbers("/n")
            }
            let all = Set(numbers[0] + numbers[1]).sorted()
            #expect(all.count > round, "the writer had hardly begun")
            #expect(all == Array(1...max(1, all.count)), "round \(round): a number is missing")
        }
    }
}

/// Writes 1, 2, 3, … to one guest after the other, each durable before the next is begun.
private final class TurnWriter: @unchecked Sendable {
    // SAFETY: `isWanted`, `isDone` and `written` are only touched under the lock; the rest never changes.
    private let guests: [Guest]
    private let files: [String]
    private let lock = NSLock()
    private var isWanted = true
    private var isDone = false

    init(_ guests: [Guest], files: [String]) {
        self.guests = guests
        self.files = files
    }

    private var goesOn: Bool { lock.withLock { isWanted } }
    private var written = 0
    /// How many numbers are durable.
    var count: Int { lock.withLock { written } }

    func start() {
        Thread.detachNewThread { [self] in
            var number = 1
            while goesOn {
                let turn = number % guests.count
                // While it is frozen the agent takes nothing: the same number again, which a set of numbers bears.
                let written = try? guests[turn].shell("echo \(number) >> \(files[turn]) && sync", seconds: 20)
                guard written != nil else { continue }
                lock.withLock { self.written = number }
                number += 1
            }
            lock.withLock { isDone = true }
        }
    }

    func stop() {
        lock.withLock { isWanted = false }
        _ = Shell.wait { lock.withLock { isDone } }
    }
}
