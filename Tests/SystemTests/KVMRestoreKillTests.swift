import API
import Foundation
import Testing

/// A restore that is cut short is taken back, whoever dies at whichever step: the guest is never lost, and others do
/// not notice.
@Suite(
    "Guests: kills during a restore", .serialized,
    .enabled(if: KVMComponents.areThere && Components.hasAttachment, "\(KVMComponents.skipReason)"))
struct KVMRestoreKillTests {
    private enum Victim { case node, agent, plugin }

    private static let inPlace: [(step: String, victim: Victim)] = [
        ("guest.clone.after", .node), ("plugin.restore.stop.before", .plugin), ("plugin.restore.stop.after", .agent),
        ("revert.swap.after", .node), ("guest.revert.after", .agent), ("plugin.restore.copied", .node),
        ("plugin.restore.swapped", .agent), ("plugin.restore.defined", .plugin), ("guest.apply.after", .node),
    ]
    private static let beside: [(step: String, victim: Victim)] = [
        ("plugin.restore.copied", .agent), ("plugin.restore.defined", .node),
    ]
    private static let deleted: [(step: String, victim: Victim)] = [
        ("plugin.restore.swapped", .agent), ("plugin.restore.defined", .node), ("plugin.restore.copied", .plugin),
    ]

    @Test("a restore cut short by kill -9 of node, agent or plug-in is taken back: in place, beside, of a lost guest")
    func kills() throws {
        let steps = try PauseDirectory()
        defer { steps.remove() }
        let world = try GuestWorld(environment: steps.environment)
        defer { world.stop() }
        let images = try world.mountVolume("images", sizeText: "512MiB")
        defer { world.unmountVolume("images") }
        let stage = try Stage(world, steps, images)
        defer { stage.end() }
        for (step, victim) in Self.inPlace { try stage.cutShort(["g1"], at: step, victim) }
        for (step, victim) in Self.beside {
            try stage.cutShort(["g1", "--beside", "copy"], at: step, victim)
        }
        try stage.restoreAndUndo()
        try stage.delete()
        for (step, victim) in Self.deleted { try stage.cutShort(["g1"], at: step, victim) }
        // And what was only ever taken back still works.
        try world.node.must("guest", "restore", "g1", "--from", "s1", timeoutSeconds: 180)
        try stage.guest.waitForAgent()
        #expect(try stage.markers() == ["one", "one"])
        try stage.expectOthersUntouched("at the end")
    }

    /// A guest with a volume of its own and an image on a volume that it shares with another guest.
    private final class Stage {
        let world: GuestWorld
        let steps: PauseDirectory
        let images: String
        let guest: Guest
        let other: Guest
        private let otherRun: String
        private let definition: String
        private let foreignLeftovers: Set<String>
        private var isDeleted = false
        private var count = 0

        init(_ world: GuestWorld, _ steps: PauseDirectory, _ images: String) throws {
            (self.world, self.steps, self.images) = (world, steps, images)
            let host = world.host
            foreignLeftovers = Self.leftovers()
            for name in ["g1", "other"] {
                try host.run("truncate", "-s", "32M", "\(images)/\(name).img")
                try host.run("mkfs.ext4", "-q", "-L", "img", "\(images)/\(name).img")
            }
            guest = Guest(host: host, name: "g1")
            guest.disks = [
                try world.node.guestDisk(
                    volume: "g1-data", sizeText: "32MiB", target: "vda", initiator: guest.initiator, host: host,
                    label: "data"),
                GuestDisk(target: "vdb", serial: "img", source: .file("\(images)/g1.img", format: "raw")),
            ]
            other = Guest(host: host, name: "other")
            other.disks = [
                GuestDisk(target: "vda", serial: "img", source: .file("\(images)/other.img", format: "raw"))
            ]
            for one in [guest, other] {
                try one.define()
                try one.start()
            }
            for one in [guest, other] { try one.waitForAgent() }
            try world.agent.start()
            otherRun = try host.virsh("domid", "other")
            definition = try world.definition("g1")
            try mark("one")
            try world.node.must(
                "snapshot", "create", "g1-data", "images", "--consistency", "file-system", "--name", "s1")
            try mark("two")
            try other.startWriter(["/mnt/img/n"], pauseMicroseconds: 50_000)
        }

        func end() { for one in [guest, other] { one.destroy() } }

        func mark(_ text: String) throws {
            try guest.shell("for d in data img; do echo \(text) > /mnt/$d/marker; done; sync")
        }

        func markers() throws -> [String] {
            try guest.shell("cat /mnt/data/marker /mnt/img/marker").split(separator: "\n").map(String.init)
        }

        /// Directories of restores that should be gone when the restore is.
        private static func leftovers() -> Set<String> {
            Set((try? FileManager.default.contentsOfDirectory(atPath: "/run/stillpoint-restore")) ?? [])
        }

        func cutShort(_ arguments: [String], at step: String, _ victim: Victim) throws {
            count += 1
            let label = "\(arguments.joined(separator: " ")) at \(step), \(victim)"
            let restoring = try begin(arguments + ["--from", "s1"], step, label)
            try kill(victim, step)
            #expect(Shell.wait(upToSeconds: 120) { !restoring.isRunning }, "\(label): the command goes on")
            #expect(restoring.terminationStatus != 0, "\(label): it succeeded")
            restoring.killHard()
            try expectSettled(label)
            try expectAsBefore(label)
        }

        private func begin(_ arguments: [String], _ step: String, _ label: String) throws -> ChildProcess {
            try steps.arm(step)
            let path = "\(world.node.folder.path)/restore-\(count)"
            let restoring = try Shell.start(
                [Components.bin + "/stillpoint", "guest", "restore"] + arguments,
                environment: ["STILLPOINT_RUN_DIR": world.node.runFolder], outputPath: path)
            let isReached = Shell.wait(upToSeconds: 120) { steps.isReached(step) || !restoring.isRunning }
            let said = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
            #expect(isReached && steps.isReached(step), "\(label): \(said) \(world.agent.log.suffix(1500))")
            return restoring
        }

        private func kill(_ victim: Victim, _ step: String) throws {
            switch victim {
            case .node:
                world.node.killHard()
                steps.release(step)
                try world.node.start()
            case .agent:
                world.agent.killHard()
                steps.release(step)
                try world.agent.start()
            case .plugin:
                let children = try Shell.run([
                    "pgrep", "-P", "\(world.agent.pid)", "-f", "stillpoint-plugin-libvirt",
                ]).output
                for line in children.split(separator: "\n") {
                    if let pid = Int32(line) { Foundation.kill(pid, SIGKILL) }
                }
                steps.release(step)
            }
        }

        private func expectSettled(_ label: String) throws {
            let isSettled = try Shell.wait(upToSeconds: 120) {
                try world.node.json([JobInfo].self, "job", "list").allSatisfy { $0.state.isEnded }
            }
            let jobs = try world.node.must("job", "list")
            #expect(isSettled, "\(label): a job goes on: \(jobs) \(world.node.log.suffix(1500))")
        }

        private func expectAsBefore(_ label: String) throws {
            let states = try world.host.states()
            if isDeleted {
                #expect(states == ["other": "running"], "\(label)")
            } else {
                #expect(states == ["g1": "running", "other": "running"], "\(label)")
                try guest.waitForAgent()
                #expect(try markers() == ["two", "two"], "\(label)")
                #expect(try world.definition("g1") == definition, "\(label)")
            }
            let files = try world.host.run("ls", images).split(separator: "\n").map(String.init).sorted()
            #expect(files.filter { $0.hasPrefix("g1") } == (isDeleted ? [] : ["g1.img"]), "\(label)")
            try expectOthersUntouched(label)
        }

        func expectOthersUntouched(_ label: String) throws {
            #expect(try world.host.virsh("domid", "other") == otherRun, "\(label): the other guest was stopped")
            #expect(try other.writerGoesOn(), "\(label)")
            #expect(try world.node.json([VolumeInfo].self, "clone", "list").isEmpty, "\(label): a clone is left")
            #expect(Self.leftovers().subtracting(foreignLeftovers).isEmpty, "\(label)")
            let notes = try? FileManager.default.contentsOfDirectory(atPath: world.node.dataFolder + "/guest-restores")
            #expect(notes?.isEmpty ?? true, "\(label)")
        }

        /// A restore that was made, and whose undo is cut short: the undo goes on after the restart.
        func restoreAndUndo() throws {
            try world.node.must("guest", "restore", "g1", "--from", "s1", timeoutSeconds: 180)
            try guest.waitForAgent()
            #expect(try markers() == ["one", "one"])
            let step = "guest.undo.reverted"
            let label = "undo at \(step)"
            let undoing = try begin(["g1", "--undo"], step, label)
            try kill(.node, step)
            #expect(Shell.wait(upToSeconds: 120) { !undoing.isRunning }, "\(label)")
            undoing.killHard()
            try expectSettled(label)
            #expect(try world.host.states() == ["g1": "running", "other": "running"], "\(label)")
            try guest.waitForAgent()
            #expect(try markers() == ["two", "two"], "\(label)")
            let again = try world.node.cli("guest", "restore", "g1", "--undo")
            #expect(again.status != 0 && again.errors.contains("no restore"), "it was undone once: \(again)")
            // What the restored guest wrote is kept by an undo.
            try world.host.run("sh", "-c", "rm \(images)/g1.img.undone-*")
        }

        func delete() throws {
            try world.host.virsh("destroy", "g1")
            try world.host.virsh("undefine", "g1")
            try world.host.run("rm", "\(images)/g1.img")
            isDeleted = true
        }
    }
}
