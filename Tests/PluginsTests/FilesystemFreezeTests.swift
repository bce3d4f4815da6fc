import Foundation
import PluginKit
import Testing

@Suite("Filesystem plug-in: freezing", .serialized, .enabled(if: Machine.hasLoopFileSystems))
struct FilesystemFreezeTests {
    /// A file system that a plug-in holds as `h1`.
    private func held() async throws -> (LoopFileSystem, StateDirectory, RunningPlugin) {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        _ = try await plugin.quiesce("h1", [try await files.resource()], state: state.path)
        return (files, state, plugin)
    }

    /// A file system whose freeze, as `h1`, is inside the kernel and waits there, because what lies below it is frozen.
    private func hanging(
        leaseSeconds: Double
    ) async throws -> (LoopFileSystem, LoopFileSystem, StateDirectory, RunningPlugin, Task<QuiesceResult?, Never>) {
        let lower = try LoopFileSystem(volume: "lower")
        let upper = try LoopFileSystem(volume: "upper", on: lower)
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await upper.resource()
        try shell("sync -f \(upper.mountPoint)")
        try lower.freezeFromOutside()
        let quiesce = Task {
            try? await plugin.quiesce("h1", [resource], state: state.path, leaseSeconds: leaseSeconds)
        }
        try await eventually("it is about to freeze") {
            readText("\(state.path)/filesystem-hold-h1.journal")?.contains("intent") == true
        }
        return (lower, upper, state, plugin, quiesce)
    }

    @Test("a quiesced file system keeps a writer waiting until it is released, and the release proves the hold")
    func holdsWriters() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await files.resource()
        let held = try await plugin.quiesce("h1", [resource], state: state.path)
        #expect(held.members.map(\.resource) == [files.mountPoint])
        #expect(state.files == ["filesystem-hold-h1.journal"])

        let writer = Process()
        writer.executableURL = URL(filePath: "/bin/sh")
        writer.arguments = ["-c", "echo x > \(files.mountPoint)/written; touch \(state.path)/done"]
        try writer.run()
        try await eventually("the writer waits in the kernel") {
            let stat = readText("/proc/\(writer.processIdentifier)/stat") ?? ""
            return stat.contains(") D ")
        }
        #expect(!state.files.contains("done"))
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [true])
        writer.waitUntilExit()
        #expect(state.files == ["done"])
        await plugin.process.end()
    }

    @Test("a thaw by somebody else is reported when it happens, and the release does not call it held")
    func thawFromOutside() async throws {
        let (files, state, plugin) = try await held()
        try files.thawFromOutside()
        try await eventually("the loss is reported") { plugin.events.contains { $0.event == .holdLost } }
        #expect(plugin.events.first?.holdID == "h1")
        #expect(plugin.events.first?.resource == files.mountPoint)
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.process.renew(RenewParameters(holdID: "h1", leaseSeconds: 10))
        }
        #expect(failure?.code == .holdLost)
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(!member.stillHeld)
        #expect(member.failure == "Somebody else thawed it during the hold")
        #expect(state.files == [])
        await plugin.process.end()
    }

    @Test("a thaw followed by another freeze is not taken for one unbroken freeze")
    func thawAndFreezeFromOutside() async throws {
        let (files, state, plugin) = try await held()
        try files.thawFromOutside()
        try await eventually("the loss is reported") { plugin.events.contains { $0.event == .holdLost } }
        try files.freezeFromOutside()
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(!member.stillHeld)
        #expect(!files.isFrozen)
        #expect(state.files == [])
        await plugin.process.end()
    }

    @Test("the end of the lease thaws, says so, and a later release calls nothing held")
    func leaseEnds() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        _ = try await plugin.quiesce("h1", [try await files.resource()], state: state.path, leaseSeconds: 8)
        try await eventually("the plug-in released by itself") { plugin.events.contains { $0.event == .released } }
        #expect(plugin.events.last == PluginEvent(.released, holdID: "h1", reason: "leaseEnded"))
        #expect(!files.isFrozen)
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(!member.stillHeld)
        #expect(member.failure == "The lease ended before the release was asked for")
        await plugin.process.end()
    }

    @Test("a renewed lease lasts")
    func renews() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        _ = try await plugin.quiesce("h1", [try await files.resource()], state: state.path, leaseSeconds: 5)
        let renewed = try await plugin.process.renew(RenewParameters(holdID: "h1", leaseSeconds: 60))
        #expect(renewed.remainingLeaseSeconds > 30)
        // Beyond the end of the first lease.
        try await Task.sleep(for: .seconds(5.2))
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [true])
        await plugin.process.end()
    }

    @Test("the end of its input and SIGTERM thaw everything", arguments: [false, true])
    func ends(bySignal: Bool) async throws {
        let (files, state, plugin) = try await held()
        if bySignal { kill(plugin.process.processID, SIGTERM) } else { plugin.process.closeInput() }
        #expect(await plugin.process.waitForExit() == .exited(code: 0))
        #expect(!files.isFrozen)
        #expect(state.files == [])
    }

    @Test("what a killed plug-in left frozen is thawed by recover, once")
    func killed() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let first = try RunningPlugin("filesystem")
        _ = try await first.quiesce("h1", [try await files.resource()], state: state.path)
        first.process.kill()
        #expect(await first.process.waitForExit() == .signalled(signal: SIGKILL))
        #expect(files.isFrozen)
        let second = try RunningPlugin("filesystem")
        let result = try await second.process.recover(RecoverParameters(stateDirectory: state.path))
        #expect(result.released == [files.mountPoint])
        #expect(result.failures == [])
        #expect(!files.isFrozen)
        #expect(state.files == [])
        let again = try await second.process.recover(RecoverParameters(stateDirectory: state.path))
        #expect(again.released == [])
        await second.process.end()
    }

    @Test("killed at any moment of the quiesce, a recover leaves nothing frozen and nothing noted")
    func killedAtAnyMoment() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let resource = try await files.resource()
        for attempt in 0..<25 {
            try shell("dd if=/dev/zero of=\(files.mountPoint)/dirty bs=64k count=32 2>/dev/null")
            let plugin = try RunningPlugin("filesystem")
            let quiesce = Task { try? await plugin.quiesce("h\(attempt)", [resource], state: state.path) }
            try await Task.sleep(for: .milliseconds(attempt * 2))
            plugin.process.kill()
            _ = await plugin.process.waitForExit()
            _ = await quiesce.value
            let next = try RunningPlugin("filesystem")
            let result = try await next.process.recover(RecoverParameters(stateDirectory: state.path))
            #expect(result.failures == [])
            #expect(!files.isFrozen)
            #expect(state.files == [])
            await next.process.end()
        }
    }

    @Test("a freeze that hangs in the kernel is given up within the lease, and undone when the kernel gives it back")
    func hangs() async throws {
        let lower = try LoopFileSystem(volume: "lower")
        let upper = try LoopFileSystem(volume: "upper", on: lower)
        let other = try LoopFileSystem(volume: "other")
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resources = [try await upper.resource(), try await other.resource()]
        try shell("sync -f \(upper.mountPoint)")
        try lower.freezeFromOutside()
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", resources, state: state.path, leaseSeconds: 8)
        }
        #expect(failure?.code == .timedOut)
        #expect(failure?.message == "\(upper.mountPoint) could not be frozen within the lease")
        #expect(!other.isFrozen)
        // Still inside the kernel: should it succeed after a death of the plug-in, a recover must know of it.
        #expect(state.files == ["filesystem-hold-h1.journal"])
        try lower.thawFromOutside()
        try await eventually("the freeze is undone") { state.files == [] }
        #expect(!upper.isFrozen)
        await plugin.process.end()
    }

    @Test("a plug-in killed inside a freeze that hangs leaves what recover thaws")
    func killedInsideFreeze() async throws {
        let (lower, upper, state, first, quiesce) = try await hanging(leaseSeconds: 60)
        try await eventually("a thread waits in the kernel") {
            let tasks = "/proc/\(first.process.processID)/task"
            return directoryEntries(tasks).contains { readText("\(tasks)/\($0)/stat")?.contains(") D ") == true }
        }
        first.process.kill()
        // It is not gone yet: a recovery now says so instead of finding nothing to do.
        let second = try RunningPlugin("filesystem")
        let early = try await second.process.recover(RecoverParameters(stateDirectory: state.path))
        #expect(early.released == [] && early.failures.count == 1)
        try lower.thawFromOutside()
        #expect(await first.process.waitForExit() == .signalled(signal: SIGKILL))
        _ = await quiesce.value
        #expect(upper.isFrozen)
        let result = try await second.process.recover(RecoverParameters(stateDirectory: state.path))
        #expect(result.released == [upper.mountPoint])
        #expect(!upper.isFrozen)
        await second.process.end()
    }

    @Test("a plug-in whose input ends inside a freeze that hangs stays until it has undone it")
    func endsInsideFreeze() async throws {
        let (lower, upper, state, plugin, quiesce) = try await hanging(leaseSeconds: 8)
        plugin.process.closeInput()
        _ = await quiesce.value
        try await Task.sleep(for: .milliseconds(300))
        #expect(plugin.process.exit == nil)
        try lower.thawFromOutside()
        #expect(await plugin.process.waitForExit() == .exited(code: 0))
        #expect(!upper.isFrozen)
        #expect(state.files == [])
    }

    @Test("recover leaves alone what another living process of the plug-in holds, and says so, to be asked again")
    func recoverBesideLiving() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let living = try RunningPlugin("filesystem")
        _ = try await living.quiesce("h1", [try await files.resource()], state: state.path)
        let other = try RunningPlugin("filesystem")
        let result = try await other.process.recover(RecoverParameters(stateDirectory: state.path))
        #expect(result.released == [])
        #expect(result.failures == ["Process \(living.process.processID) still has hold h1, and releases it by itself"])
        #expect(files.isFrozen)
        #expect(try await living.unquiesce("h1").map(\.stillHeld) == [true])
        await other.process.end()
        await living.process.end()
    }

    @Test("what somebody else froze before stays frozen, and the other members of the group are let go")
    func frozenBefore() async throws {
        let foreign = try LoopFileSystem(volume: "a")
        let own = try LoopFileSystem(volume: "b")
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resources = [try await own.resource(), try await foreign.resource()]
        try foreign.freezeFromOutside()
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", resources, state: state.path)
        }
        #expect(failure?.code == .alreadyFrozen)
        #expect(foreign.isFrozen)
        #expect(!own.isFrozen)
        await plugin.process.end()
        let second = try RunningPlugin("filesystem")
        #expect(try await second.process.recover(RecoverParameters(stateDirectory: state.path)).released == [])
        #expect(foreign.isFrozen)
        #expect(state.files == [])
        await second.process.end()
    }

    @Test("several file systems are held together")
    func several() async throws {
        let one = try LoopFileSystem(volume: "a")
        let two = try LoopFileSystem(volume: "b")
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let held = try await plugin.quiesce(
            "h1", [try await one.resource(), try await two.resource()], state: state.path)
        #expect(held.members.count == 2)
        #expect(one.isFrozen && two.isFrozen)
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [true, true])
        #expect(!one.isFrozen && !two.isFrozen)
        await plugin.process.end()
    }

    @Test("a read-only file system is held too")
    func readOnly() async throws {
        let files = try LoopFileSystem(options: "ro")
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        _ = try await plugin.quiesce("h1", [try await files.resource()], state: state.path)
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [true])
        await plugin.process.end()
    }

    @Test("a plain directory is refused: its parent is never frozen")
    func plainDirectory() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let folder = files.mountPoint + "/folder"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
        let resource = PluginResource(id: folder, label: "", layer: .fileSystem, volumes: ["vol1"])
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", [resource], state: state.path)
        }
        #expect(failure?.code == .unknownResource)
        #expect(!files.isFrozen)
        await plugin.process.end()
    }

    @Test("a file system that holds the agent's files is refused, at the preflight and at the quiesce")
    func protected() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await files.resource()
        let inside = files.mountPoint + "/agent/state/not/there/yet"
        let findings = try await plugin.process.preflight(
            PreflightParameters(resources: [resource], stateDirectory: state.path, protectedPaths: [inside])
        ).findings
        #expect(findings.map(\.severity) == [.error])
        #expect(findings.first?.message.contains(inside) == true)
        for (directory, paths) in [(state.path, [inside]), (files.mountPoint, [])] {
            let failure = await #expect(throws: PluginFailure.self) {
                try await plugin.quiesce("h\(paths.count)", [resource], state: directory, protectedPaths: paths)
            }
            #expect(failure?.code == .refused)
        }
        #expect(!files.isFrozen)
        await plugin.process.end()
    }

    @Test("the root file system is refused")
    func root() async throws {
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = PluginResource(id: "/", label: "", layer: .fileSystem, volumes: ["vol1"])
        let findings = try await plugin.process.preflight(
            PreflightParameters(resources: [resource], stateDirectory: state.path)
        ).findings
        #expect(findings.map(\.severity) == [.error])
        await plugin.process.end()
    }

    @Test(
        "the proof holds on other file systems too: a hold is proven, a broken one is not",
        arguments: ["xfs", "btrfs"].filter { Machine.has("mkfs.\($0)") })
    func otherTypes(type: String) async throws {
        let files = try LoopFileSystem(type: type)
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await files.resource()
        #expect(resource.details["fstype"] == type)
        _ = try await plugin.quiesce("h1", [resource], state: state.path)
        #expect(files.isFrozen)
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [true])
        _ = try await plugin.quiesce("h2", [resource], state: state.path)
        try files.thawFromOutside()
        try await eventually("the loss is reported") { plugin.events.contains { $0.holdID == "h2" } }
        try files.freezeFromOutside()
        #expect(try await plugin.unquiesce("h2").map(\.stillHeld) == [false])
        #expect(!files.isFrozen)
        await plugin.process.end()
    }

    @Test(
        "a copy cut inside the hold needs no journal recovery and has the writes that were never synced",
        .enabled(if: Machine.has("dumpe2fs", "debugfs")))
    func copyIsClean() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await files.resource()
        func cut(_ name: String) throws -> (needsRecovery: Bool, content: String) {
            let copy = "\(files.directory)/\(name)"
            try shell("cp --sparse=always \(files.directory)/backing \(copy)")
            let features = try shell("dumpe2fs -h \(copy) 2>/dev/null")
            return (features.contains("needs_recovery"), try shell("debugfs -R 'cat /unsynced' \(copy) 2>/dev/null"))
        }
        try shell("echo precious > \(files.mountPoint)/unsynced")
        let crash = try cut("crash")
        #expect(crash.needsRecovery)
        #expect(crash.content != "precious")
        _ = try await plugin.quiesce("h1", [resource], state: state.path)
        let frozen = try cut("frozen")
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [true])
        #expect(!frozen.needsRecovery)
        #expect(frozen.content == "precious")
        await plugin.process.end()
    }
}
