import API
import Foundation
import Synchronization
import Testing

@testable import stillpoint

@Suite("Local attachment")
struct LocalAttachmentTests {
    /// A fake machine, a fake node, and a run directory of its own.
    final class Stage {
        let host = FakeHost()
        let node = FakeNode()
        let folder = "/tmp/sp-attach-\(UUID().uuidString.prefix(8))"
        let warnings = Warnings()

        final class Warnings: Sendable {
            let lines = Mutex<[String]>([])
        }

        var directory: AttachmentDirectory { AttachmentDirectory(runDirectory: folder) }

        var attachment: LocalAttachment {
            let warnings = warnings
            return LocalAttachment(
                host: host, node: node,
                nodeAddress: NodeAddress(api: "http://node", tokenFile: "/t", authorityFile: nil),
                directory: directory, warn: { line in warnings.lines.withLock { $0.append(line) } })
        }

        func attach(
            _ name: String = "db", readOnly: Bool = false, initiator: String? = nil,
            way: LocalAttachment.Way = .userSpace
        ) async throws -> AttachmentRecord {
            try await attachment.attach(name, readOnly: readOnly, initiator: initiator, way: way)
        }

        /// Everything that an attachment could leave behind: on the machine, on the node, in the run directory.
        var leftovers: [String] {
            let files = ["/attachments", "/attach"].flatMap {
                (try? FileManager.default.contentsOfDirectory(atPath: folder + $0)) ?? []
            }
            return host.leftovers + node.leftovers + files.filter { !$0.hasSuffix(".lock") }
        }

        deinit { try? FileManager.default.removeItem(atPath: folder) }
    }

    @Test("a volume becomes a device, recorded for the agents, with a secret that is in no command and in no file left")
    func attach() async throws {
        let stage = Stage()
        let record = try await stage.attach()
        #expect(record.device == "/dev/loop0")
        #expect(record.initiator == "iqn.2026-11.io.stillpoint:attach-host-1-db")
        let text = try String(contentsOfFile: stage.directory.publicPath("db"), encoding: .utf8)
        let json = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        #expect(json["volume"] as? String == "db")
        #expect(json["naa"] as? String == "65a53500000000000000000000000001")
        #expect(json["device"] as? String == "/dev/loop0")
        #expect(json["backing"] as? String == record.workDirectory + "/mnt/disk")
        #expect(json["readOnly"] as? Bool == false)
        #expect((json["processes"] as? [Int])?.count == 2)
        #expect(stage.host.log.contains { $0.contains("password-secret=chap") && $0.contains("secret,id=chap,file=") })
        #expect(!stage.host.log.contains { $0.contains("type=fuse") }, "QEMU's FUSE export corrupts")
        #expect(stage.host.log.contains { $0.hasPrefix("losetup --find --show --direct-io=on /") })
        #expect(!FileManager.default.fileExists(atPath: record.secretPath))

        let detached = try await stage.attachment.detach("db", force: false)
        #expect(detached.device == "/dev/loop0")
        #expect(stage.leftovers == [])
        #expect(stage.host.log.contains("sync /dev/loop0"))
        #expect(stage.warnings.lines.withLock { $0 } == [])
    }

    @Test(
        "whatever step fails, nothing is left behind and the error says what the step said",
        arguments: ["qemu-storage-daemon", "losetup --find"])
    func rollBack(step: String) async throws {
        let stage = Stage()
        stage.host.with { $0.failing[step] = "\(step): no luck today" }
        let error = await #expect(throws: CommandFailure.self) { try await stage.attach() }
        #expect(error?.message.contains("no luck today") == true, "\(String(describing: error))")
        #expect(stage.leftovers == [])
    }

    @Test("an nbdfuse that dies takes everything before it back, and its last words are told")
    func fuseDies() async throws {
        let stage = Stage()
        stage.host.with { $0.fuseDies = true }
        let error = await #expect(throws: CommandFailure.self) { try await stage.attach() }
        #expect(error?.message.contains("nbdfuse: cannot connect") == true)
        #expect(stage.leftovers == [])
    }

    @Test("a node that refuses access leaves nothing behind")
    func refused() async throws {
        let stage = Stage()
        stage.node.with { $0.allowFails = true }
        await #expect(throws: APIFailure.self) { try await stage.attach() }
        #expect(stage.leftovers == [])
    }

    @Test("a device that is in use is not taken away, and the error names where it is mounted and the way out")
    func inUse() async throws {
        let stage = Stage()
        _ = try await stage.attach()
        stage.host.with { $0.uses = [.mounted(at: "/srv/db")] }
        let error = await #expect(throws: CommandFailure.self) {
            try await stage.attachment.detach("db", force: false)
        }
        #expect(error?.message == "db was not detached: /dev/loop0 is mounted on /srv/db")
        #expect(error?.hint == "umount /srv/db")
        #expect(stage.host.leftovers.count == 4)
        stage.host.with { $0.uses = [] }
        _ = try await stage.attachment.detach("/dev/loop0", force: false)
        #expect(stage.leftovers == [])
    }

    @Test("a detach whose writes cannot be finished changes nothing; with force it goes on")
    func flushFails() async throws {
        let stage = Stage()
        _ = try await stage.attach()
        stage.host.with { $0.failing["sync"] = "sync: Input/output error" }
        await #expect(throws: CommandFailure.self) { try await stage.attachment.detach("db", force: false) }
        #expect(try stage.directory.records().count == 1)
        _ = try await stage.attachment.detach("db", force: true)
        #expect(stage.leftovers == [])
    }

    @Test("daemons that died do not stand in the way of a detach, and the loss is told")
    func deadDaemons() async throws {
        let stage = Stage()
        let record = try await stage.attach()
        stage.host.with { $0.processes = [:] }
        #expect(stage.attachment.dead(record).map(\.command) == ["qemu-storage-daemon", "nbdfuse"])
        _ = try await stage.attachment.detach("db", force: false)
        #expect(stage.leftovers == [])
        #expect(stage.warnings.lines.withLock { $0.count } == 1)
    }

    @Test("another process with the pid of a dead daemon is left alone")
    func reusedPid() async throws {
        let stage = Stage()
        let record = try await stage.attach()
        stage.host.with { state in for pid in record.processes { state.processes[pid] = 1 } }
        _ = try await stage.attachment.detach("db", force: false)
        #expect(stage.host.with { $0.processes.count } == 2)
    }

    @Test("a detach without the node succeeds and says what is left to do there")
    func nodeAway() async throws {
        let stage = Stage()
        _ = try await stage.attach()
        stage.node.with { $0.isDown = true }
        _ = try await stage.attachment.detach("db", force: false)
        #expect(stage.host.leftovers == [])
        #expect(try stage.directory.records().isEmpty)
        #expect(stage.warnings.lines.withLock { $0.first?.contains("stillpoint target deny") } == true)
    }

    @Test("a detach ends only after the node has seen the session end, so that a revert may follow at once")
    func sessionEnds() async throws {
        let stage = Stage()
        _ = try await stage.attach()
        stage.node.with { $0.lingeringSessions = 3 }
        _ = try await stage.attachment.detach("db", force: false)
        #expect(stage.node.with { $0.lingeringSessions } == 0)
    }

    @Test("an attach that was killed half way is cleared away by the next one, and by a detach")
    func halfAttached() async throws {
        for clearing in ["attach", "detach"] {
            let stage = Stage()
            var record = try await stage.attach()
            // As if it had been killed before losetup's answer was noted.
            stage.directory.remove("db")
            record.device = nil
            record.daemons = [record.daemons[0]]
            try stage.directory.write(record)
            if clearing == "attach" { _ = try await stage.attach() }
            _ = try await stage.attachment.detach("db", force: false)
            // The process that was not noted ends by the unmount, which a fake does not do.
            stage.host.with { $0.processes = [:] }
            #expect(stage.leftovers == [], "\(clearing)")
        }
    }

    @Test("a second attach of the same volume is refused and names the device")
    func twice() async throws {
        let stage = Stage()
        _ = try await stage.attach()
        let error = await #expect(throws: CommandFailure.self) { try await stage.attach() }
        #expect(error?.message == "db is attached already, as /dev/loop0")
        #expect(try stage.directory.records().map(\.device) == ["/dev/loop0"])
    }

    @Test("a snapshot is attached read-only through an export of its own, which goes with it")
    func snapshot() async throws {
        let stage = Stage()
        let record = try await stage.attach("s1/logs")
        #expect(record.readOnly)
        #expect(record.name == "s1/logs")
        #expect(record.naa == "65a535ff")
        #expect(record.initiator.hasPrefix("iqn.2026-11.io.stillpoint:attach-host-1-s1-logs-"))
        #expect(stage.node.log.contains("export snapshot-id logs"))
        #expect(!stage.node.log.contains { $0.hasPrefix("allow") })
        let request = try #require(stage.node.with { $0.exportRequest })
        let secret = try #require(request.chapSecret)
        #expect(request.chapUser == "stillpoint-attach" && secret.utf8.count == 32)
        #expect(stage.host.log.contains { $0.contains("user=stillpoint-attach,password-secret=chap") })
        #expect(!stage.host.log.contains { $0.contains(secret) }, "no secret in a command line")
        #expect(!FileManager.default.fileExists(atPath: record.secretPath))
        #expect(stage.host.log.contains { $0.contains("read-only=on") && $0.contains("writable=off") })
        #expect(stage.host.log.contains { $0.hasPrefix("losetup") && $0.contains("--read-only") })
        _ = try await stage.attachment.detach("s1", force: false)
        #expect(stage.leftovers == [])
    }

    @Test("a snapshot of several volumes asks which, and a failed attach of one removes its export")
    func snapshotMembers() async throws {
        let stage = Stage()
        let error = await #expect(throws: CommandFailure.self) { try await stage.attach("s1") }
        #expect(error?.hint?.contains("s1/db") == true)
        await #expect(throws: CommandFailure.self) { try await stage.attach("s1/other") }
        await #expect(throws: CommandFailure.self) { try await stage.attach("nothing") }
        stage.host.with { $0.failing["losetup"] = "losetup: no free device" }
        await #expect(throws: CommandFailure.self) { try await stage.attach("s1/db") }
        #expect(stage.leftovers == [])
    }

    @Test("an initiator that the user named and that may log in already keeps its access")
    func givenInitiator() async throws {
        let stage = Stage()
        stage.node.with { $0.rules["iqn.mine"] = .some(nil) }
        let record = try await stage.attach(initiator: "iqn.mine")
        #expect(!record.ownsAccess)
        #expect(!stage.host.log.contains { $0.contains("password-secret") })
        _ = try await stage.attachment.detach("db", force: false)
        #expect(stage.node.leftovers == ["iqn.mine"])
        stage.node.with { $0.rules["iqn.mine"] = "user" }
        await #expect(throws: CommandFailure.self) { try await stage.attach(initiator: "iqn.mine") }
        #expect(stage.node.leftovers == ["iqn.mine"])
    }

    @Test("without root, or without the programs, the error says so before anything is done")
    func missing() async throws {
        let stage = Stage()
        stage.host.with { $0.commands = ["losetup"] }
        let error = await #expect(throws: CommandFailure.self) { try await stage.attach() }
        #expect(error?.message.contains("qemu-storage-daemon, nbdfuse are not installed") == true)
        #expect(error?.hint?.contains("apt install") == true)
        let kernel = await #expect(throws: CommandFailure.self) { try await stage.attach(way: .kernel) }
        #expect(kernel?.message.contains("iscsiadm") == true)
        stage.host.with { $0.isRoot = false }
        await #expect(throws: CommandFailure.self) { try await stage.attach() }
        #expect(stage.node.log.isEmpty && stage.host.log.isEmpty)
    }

    @Test("the kernel's initiator is used where there is one, with its secret in open-iscsi's record only")
    func kernel() async throws {
        let stage = Stage()
        stage.host.with { state in
            state.commands.insert("iscsiadm")
            state.hasKernelInitiator = true
            state.disk = "/dev/sdx"
        }
        // No record of open-iscsi is there to put the secret in, so the attach goes back.
        let error = await #expect(throws: CommandFailure.self) { try await stage.attach(way: .auto) }
        #expect(error?.message.contains("open-iscsi's record") == true)
        #expect(stage.leftovers == [])
        #expect(stage.host.log.contains { $0.contains("--logout") })
        // An initiator without CHAP needs none.
        stage.node.with { $0.rules["iqn.mine"] = .some(nil) }
        let record = try await stage.attach(initiator: "iqn.mine", way: .auto)
        #expect(record.device == "/dev/sdx")
        #expect(record.method == .kernel)
        #expect(!stage.host.log.contains { $0.contains("auth.password") })
        _ = try await stage.attachment.detach("db", force: false)
        #expect(stage.host.log.last?.hasSuffix("-o delete") == true)
    }
}
