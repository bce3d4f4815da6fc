import API
import Foundation
import Testing

/// One guest, in every way it can come to rest or fail to.
@Suite("Guests: quiesce", .serialized, .enabled(if: KVMComponents.areThere, "\(KVMComponents.skipReason)"))
struct KVMQuiesceTests {
    static let configuration = """
        pluginConfiguration:
          libvirt:
            fallback: [pause]
            agentTimeoutSeconds: 1
        """

    @Test("frozen, paused and crash copies are told apart, and each snapshot is labelled as what it is")
    func levels() throws {
        let world = try KVMWorld(configuration: Self.configuration)
        defer { world.tearDown() }
        let guest = try world.guest("g1", volumes: ["data"])
        try guest.boot()
        try world.startAgents()
        try discovers(world, guest)
        let shown = try shown(world)
        try frozenCopy(world, guest)
        #expect(try self.shown(world) == shown, "after a freeze")
        try crashCopy(world, guest)
        try pausedCopy(world, guest)
        #expect(try self.shown(world) == shown, "after a pause")
        try failingHook(world, guest)
        try walHook(world, guest)
        try hungAgent(world, guest)
        try hookOfTheHost(world, guest)
        try suspendedAndOff(world, guest)
    }

    /// What virsh tells of the guest: its state, its definitions, snapshots, checkpoints, and what is done to it.
    private func shown(_ world: KVMWorld) throws -> [String] {
        try [
            ["domstate", "g1"], ["dumpxml", "g1"], ["dumpxml", "g1", "--inactive"], ["snapshot-list", "g1"],
            ["checkpoint-list", "g1"], ["domjobinfo", "g1"], ["blockjob", "g1", "vda"], ["domblklist", "g1"],
        ].map { try Shell.check(world.host.prefix + ["virsh", "-q"] + $0) }
    }

    /// A hook on the host for a volume that only QEMU reaches: it runs before the guest is frozen, and after its thaw.
    private func hookOfTheHost(_ world: KVMWorld, _ guest: Guest) throws {
        let folder = world.agent.folder.path
        let script = folder + "/hook.sh"
        let calls = folder + "/calls"
        let status = "virsh qemu-agent-command g1 '{\"execute\":\"guest-fsfreeze-status\"}'"
        try "#!/bin/sh\necho $STILLPOINT_PHASE $STILLPOINT_VOLUMES $(\(status)) >> \(calls)\n"
            .write(toFile: script, atomically: true, encoding: .utf8)
        try Shell.check(["chmod", "755", script])
        world.agent.stopProcess()
        world.agent.configuration = """
            pluginConfiguration:
              libvirt: {guests: [{name: g1, level: application}]}
              hook: {hooks: [{name: app, volumes: [data], quiesce: [\(script)], unquiesce: [\(script)]}]}
            """
        try world.agent.start()
        let made = try world.snapshot(["data"], name: "hooked", "--consistency", "application")
        #expect(made.achievedConsistency == .application)
        #expect(made.evidence?.members.map(\.plugin) == ["hook", "libvirt"])
        let lines = try String(contentsOfFile: calls, encoding: .utf8).split(separator: "\n")
        #expect(lines == ["quiesce data {\"return\":\"thawed\"}", "unquiesce data {\"return\":\"thawed\"}"])
        world.agent.stopProcess()
        world.agent.configuration = "pluginConfiguration: {hook: {hooks: [{name: app, volumes: [data]}]}}\n"
        try world.agent.start()
        let refused = try world.node.cli("snapshot", "create", "data", "--consistency", "application")
        #expect(refused.status != 0 && refused.errors.contains("Plug-in hook could not look"), "\(refused)")
        world.agent.stopProcess()
        world.agent.configuration = Self.configuration
        try world.agent.start()
    }

    private func discovers(_ world: KVMWorld, _ guest: Guest) throws {
        let resources = try world.node.json(AgentInfo.self, "agent", "show", "kvm1").resources ?? []
        let found = try #require(resources.first)
        #expect(resources.count == 1)
        #expect(found.label == "guest g1")
        #expect(found.id == guest.uuid)
        #expect(found.volumes == ["data"])
        #expect(found.level == .fileSystem)
        #expect(found.details["disk.vda"]?.hasPrefix("iscsi data ") == true)
        #expect(try world.node.must("agent", "show", "kvm1").contains("guest g1"))
    }

    private func frozenCopy(_ world: KVMWorld, _ guest: Guest) throws {
        try guest.shell("echo kept > /mnt/data/unsynced-1")
        let made = try world.snapshot(["data"], name: "frozen", "--consistency", "file-system")
        #expect(made.achievedConsistency == .fileSystem)
        let member = try #require(made.evidence?.members.first)
        #expect(member.plugin == "libvirt" && member.stillHeldAtRelease)
        #expect(member.artifacts["mode"] == "agent")
        #expect(member.artifacts["domainXML"]?.contains("<name>g1</name>") == true)
        let image = Ext4Image(path: try world.image(of: "frozen", volume: "data"))
        #expect(try !image.needsRecovery())
        #expect(try image.file("/unsynced-1") == "kept\n")
        #expect(guest.isRunningFreely(withinSeconds: 30))
        // Hooks of this guest are not known to bring applications to rest.
        let refused = try world.node.cli("snapshot", "create", "data", "--consistency", "application")
        #expect(refused.status != 0 && refused.errors.contains("only made file-system-consistent"))
    }

    private func crashCopy(_ world: KVMWorld, _ guest: Guest) throws {
        try guest.shell("echo lost > /mnt/data/unsynced-2")
        let made = try world.snapshot(["data"], name: "crash")
        #expect(made.achievedConsistency == .crash)
        let image = Ext4Image(path: try world.image(of: "crash", volume: "data"))
        #expect(try image.needsRecovery())
        #expect(try image.file("/unsynced-2") != "lost\n")
    }

    /// A freeze hook that fails: with `require` there is no snapshot, with `allowLower` the fallback is labelled.
    private func failingHook(_ world: KVMWorld, _ guest: Guest) throws {
        let hook = "/etc/qemu/fsfreeze-hook.d/no"
        try guest.shell("printf '#!/bin/sh\\n[ $1 != freeze ]\\n' > \(hook); chmod +x \(hook)")
        let refused = try world.node.cli(
            "snapshot", "create", "data", "--name", "refused", "--consistency", "file-system")
        #expect(refused.status != 0 && refused.errors.contains("hook"), "\(refused)")
        #expect(try world.node.cli("snapshot", "show", "refused").status != 0)
        #expect(guest.isRunningFreely(withinSeconds: 30))
        let lowered = try world.snapshot(["data"], name: "lowered", "--consistency", "file-system", "--allow-lower")
        #expect(lowered.achievedConsistency == .crash)
        let member = try #require(lowered.evidence?.members.first)
        #expect(member.artifacts["mode"] == "pause" && member.artifacts["fallback"]?.contains("hook") == true)
        #expect(member.level == .crash && member.stillHeldAtRelease)
        #expect(guest.isRunningFreely(withinSeconds: 30))
        try guest.shell("rm \(hook)")
    }

    private func pausedCopy(_ world: KVMWorld, _ guest: Guest) throws {
        world.agent.stopProcess()
        world.agent.configuration = "pluginConfiguration: {libvirt: {mode: pause}}\n"
        try world.agent.start()
        let made = try world.snapshot(["data"], name: "paused", "--consistency", "file-system", "--allow-lower")
        #expect(made.achievedConsistency == .crash)
        let member = try #require(made.evidence?.members.first)
        #expect(member.artifacts["mode"] == "pause" && member.stillHeldAtRelease && member.level == .crash)
        #expect(try Ext4Image(path: world.image(of: "paused", volume: "data")).needsRecovery())
        let refused = try world.node.cli("snapshot", "create", "data", "--consistency", "file-system")
        #expect(refused.status != 0 && refused.errors.contains("only made crash-consistent"))
        #expect(guest.isRunningFreely(withinSeconds: 30))
        world.agent.stopProcess()
        world.agent.configuration = Self.configuration
        try world.agent.start()
    }

    /// An application that a hook brings to rest: SQLite's write-ahead log is empty in the snapshot.
    private func walHook(_ world: KVMWorld, _ guest: Guest) throws {
        let hook = "/etc/qemu/fsfreeze-hook.d/sqlite"
        let database = "/mnt/data/app.db"
        try guest.shell(
            """
            sqlite3 \(database) 'PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER);' > /dev/null
            printf '#!/bin/sh\\n[ $1 = freeze ] || exit 0\\nsqlite3 \(database) "PRAGMA wal_checkpoint(TRUNCATE)"\\n' \
                > \(hook)
            chmod +x \(hook)
            ( (echo 'INSERT INTO t VALUES (1),(2),(3);'; sleep 600) | setsid sqlite3 \(database)
            ) < /dev/null > /dev/null 2>&1 &
            while [ "$(sqlite3 \(database) 'SELECT count(*) FROM t')" != 3 ]; do sleep 0.2; done
            """)
        let wal = "cat /mnt/data/app.db-wal | wc -c"
        #expect(try Int(guest.shell(wal).trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0 > 0)
        _ = try world.snapshot(["data"], name: "wal", "--consistency", "file-system")
        let image = Ext4Image(path: try world.image(of: "wal", volume: "data"))
        #expect(try image.file("/app.db-wal") == "")
        let copy = world.node.folder.path + "/app.db"
        try Shell.check(["debugfs", "-R", "dump /app.db \(copy)", image.path])
        #expect(try Shell.check(["sqlite3", copy, "SELECT sum(n) FROM t"]) == "6\n")
        try guest.shell("killall sqlite3 sleep; rm \(hook); true")
    }

    /// A guest agent that hangs is given up within the lease, and nothing of it comes true when it goes on.
    private func hungAgent(_ world: KVMWorld, _ guest: Guest) throws {
        try guest.shell(
            """
            (sleep 1; kill -STOP $(pidof qemu-ga); sleep 30; kill -CONT $(pidof qemu-ga)) < /dev/null > /dev/null 2>&1 &
            """)
        let hangs = try Shell.wait {
            try world.host.virshResult(
                "qemu-agent-command", "g1", "--timeout", "1", #"{"execute":"guest-ping"}"#
            ).status != 0
        }
        #expect(hangs)
        let refused = try world.node.cli(
            "snapshot", "create", "data", "--name", "hung", "--consistency", "file-system", "--lease", "5")
        #expect(refused.status != 0 && refused.errors.contains("does not answer"), "\(refused)")
        let lowered = try world.snapshot(
            ["data"], name: "hung-lowered", "--consistency", "file-system", "--allow-lower", "--lease", "5")
        #expect(lowered.achievedConsistency == .crash)
        #expect(guest.isRunningFreely(withinSeconds: 90))
    }

    private func suspendedAndOff(_ world: KVMWorld, _ guest: Guest) throws {
        try world.host.virsh("suspend", "g1")
        let refused = try world.node.cli(
            "snapshot", "create", "data", "--name", "suspended", "--consistency", "file-system")
        #expect(refused.status != 0 && refused.errors.contains("suspended already"), "\(refused)")
        #expect(guest.state == "paused", "somebody else's pause is his")
        try world.host.virsh("resume", "g1")
        try world.host.virsh("shutdown", "g1")
        #expect(Shell.wait { guest.state == "shut off" })
        let off = try world.snapshot(["data"], name: "off", "--consistency", "file-system")
        #expect(off.achievedConsistency == .fileSystem)
        #expect(off.evidence?.members.first?.artifacts["mode"] == "off")
        #expect(try !Ext4Image(path: world.image(of: "off", volume: "data")).needsRecovery())
        #expect(guest.state == "shut off")
        #expect(try world.host.virsh("snapshot-list", "g1", "--name").isEmpty)
    }
}
