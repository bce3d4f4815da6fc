import API
import Foundation
import Logging
import PluginKit
import Synchronization
import Testing

@testable import stillpoint_agent

@Suite("Holds")
struct HoldTableTests {
    let directory: TemporaryDirectory
    let plugin = FakePlugin()

    init() throws {
        directory = try TemporaryDirectory()
        try directory.write("#!/bin/sh\n", to: "plugins/stillpoint-plugin-fake", mode: 0o755)
        try HoldJournal(directory: directory.path).prepare()
    }

    /// As a freshly started agent has it.
    private func table(
        _ limits: HoldLimits = HoldLimits(), log: any LogHandler = SwiftLogNoOpLogHandler()
    ) -> HoldTable {
        let logger = Logger(label: "test") { _ in log }
        let catalog = PluginCatalog(
            directories: [directory.path + "/plugins"], configuration: [:], launcher: plugin, logger: logger)
        return HoldTable(
            surroundings: HoldSurroundings(
                catalog: catalog, journal: HoldJournal(directory: directory.path), logger: logger,
                protectedPaths: [directory.path], limits: limits))
    }

    private func request(
        _ id: String = "h1", saga: String = "s1", resources: [String] = ["a", "b"], lease: Double = 30
    ) -> HoldRequest {
        HoldRequest(
            holdID: id, sagaID: saga, plugin: "fake",
            resources: resources.map {
                ResourceInfo(plugin: "fake", layer: .application, id: $0, label: $0, volumes: ["v"])
            }, leaseSeconds: lease)
    }

    private var journalled: Int { HoldJournal(directory: directory.path).leftovers().count }

    @Test("a release within the lease proves that every member was still held")
    func release() async throws {
        let table = table()
        let held = try await table.hold(request(), takenAt: .now)
        #expect(held.members.map(\.resource) == ["a", "b"])
        #expect(plugin.atRest == ["a", "b"])
        #expect(journalled == 1)
        let released = try await table.release("h1")
        #expect(released.members.allSatisfy { $0.stillHeld && $0.failure == nil && $0.artifacts == ["lsn": "0/1"] })
        #expect(plugin.atRest.isEmpty)
        #expect(journalled == 0)
        #expect(await table.status().isEmpty)
    }

    @Test("a repeated hold or release gets the first one's answer and does nothing")
    func idempotent() async throws {
        let table = table()
        let first = try await table.hold(request(), takenAt: .now)
        let second = try await table.hold(request(), takenAt: .now)
        #expect(first.members == second.members)
        #expect(plugin.calls(.quiesce) == 1)
        let released = try await table.release("h1")
        #expect(try await table.release("h1") == released)
        #expect(plugin.calls(.unquiesce) == 1)
        await #expect(throws: APIFailure.self) { try await table.hold(request(), takenAt: .now) }
    }

    @Test("a hold request that comes after its release, or after its saga's thaw, brings nothing to rest")
    func late() async throws {
        let table = table()
        await #expect(throws: APIFailure.self) { try await table.release("h1") }
        let late = await #expect(throws: APIFailure.self) { try await table.hold(request(), takenAt: .now) }
        #expect(late?.code == "holdReleased" && late?.status == 409)
        _ = await table.thaw(sagaID: "s2")
        let thawed = await #expect(throws: APIFailure.self) {
            try await table.hold(request("h2", saga: "s2"), takenAt: .now)
        }
        #expect(thawed?.code == "holdReleased")
        #expect(plugin.calls(.quiesce) == 0 && plugin.atRest.isEmpty && journalled == 0)
        // Another saga is not concerned, nor is a thaw of everything a ban on what comes after it.
        _ = await table.thaw(sagaID: nil)
        _ = try await table.hold(request("h3", saga: "s3"), takenAt: .now)
        _ = try await table.release("h3")
    }

    @Test("what is remembered of late requests has a bound")
    func tombstonesAreBounded() async throws {
        let table = table()
        for number in 0...HoldTable.memoryLimit + 50 {
            await #expect(throws: APIFailure.self) { try await table.release("unknown-\(number)") }
        }
        #expect(await table.tombstoneCount == HoldTable.memoryLimit)
        await #expect(throws: APIFailure.self) { try await table.release("../../etc") }
        #expect(await table.tombstoneCount == HoldTable.memoryLimit)
    }

    @Test("two requests for one hold at the same time quiesce once")
    func simultaneous() async throws {
        let table = table()
        async let first = table.hold(request(), takenAt: .now)
        async let second = table.hold(request(), takenAt: .now)
        #expect(try await first.members == second.members)
        #expect(plugin.calls(.quiesce) == 1)
        _ = try await table.release("h1")
    }

    @Test("the end of the lease releases by itself, and a later release says that it was not held")
    func leaseEnd() async throws {
        let table = table()
        _ = try await table.hold(request(lease: 6), takenAt: .now)
        #expect(await eventually { await table.status().isEmpty })
        #expect(plugin.atRest.isEmpty)
        let released = try await table.release("h1")
        #expect(released.members.count == 2)
        #expect(released.members.allSatisfy { !$0.stillHeld && $0.failure?.contains("lease") == true })
        #expect(journalled == 0)
    }

    @Test("the lease counts from when the request was taken, not from when the quiesce was done")
    func leaseStart() async throws {
        let table = table()
        await #expect(throws: APIFailure.self) {
            try await table.hold(request(lease: 1), takenAt: .now - .seconds(2))
        }
        #expect(plugin.atRest.isEmpty)
    }

    @Test("a renewed lease lasts longer, and an ended one cannot be renewed")
    func renew() async throws {
        let table = table()
        _ = try await table.hold(request(lease: 5), takenAt: .now)
        let renewed = try await table.renew("h1", RenewRequest(leaseSeconds: 60), takenAt: .now)
        #expect(renewed.remainingLeaseSeconds > 50)
        _ = try await table.release("h1")
        await #expect(throws: APIFailure.self) {
            try await table.renew("h1", RenewRequest(leaseSeconds: 60), takenAt: .now)
        }
    }

    @Test("a plug-in that dies while it holds is recovered at once, and the hold counts as lost")
    func pluginDies() async throws {
        let table = table()
        _ = try await table.hold(request(), takenAt: .now)
        plugin.holder?.die()
        #expect(await eventually { plugin.atRest.isEmpty })
        let released = try await table.release("h1")
        #expect(released.members.allSatisfy { !$0.stillHeld && $0.failure != nil })
        #expect(plugin.calls(.recover) == 1)
    }

    @Test("what cannot be recovered is tried again until it is, and shown until then")
    func recoveryRepeats() async throws {
        plugin.script.withLock { $0.failingRecoveries = 3 }
        var limits = HoldLimits()
        limits.retrySeconds = 0.02...0.05
        let table = table(limits)
        _ = try await table.hold(request(), takenAt: .now)
        plugin.holder?.die()
        #expect(await eventually { plugin.atRest.isEmpty })
        #expect(await eventually { await table.status().isEmpty })
        #expect(plugin.calls(.recover) == 4)
        #expect(journalled == 0)
    }

    @Test("a plug-in that does not answer the release is killed and recovered")
    func stuckRelease() async throws {
        plugin.script.withLock { $0.isUnquiesceStuck = true }
        var limits = HoldLimits()
        limits.unquiesceSeconds = 0.1
        let table = table(limits)
        _ = try await table.hold(request(), takenAt: .now)
        let released = try await table.release("h1")
        #expect(released.members.allSatisfy { !$0.stillHeld })
        #expect(plugin.atRest.isEmpty)
    }

    @Test("a quiesce that does not end within the lease is given up, and nothing stays at rest")
    func stuckQuiesce() async throws {
        plugin.script.withLock { $0.isQuiesceStuck = true }
        let table = table()
        await #expect(throws: APIFailure.self) { try await table.hold(request(lease: 3), takenAt: .now) }
        #expect(await eventually { await table.status().isEmpty })
        #expect(plugin.atRest.isEmpty)
        #expect(journalled == 0)
    }

    @Test("a release during the quiesce ends it, and proves nothing")
    func releaseDuringQuiesce() async throws {
        plugin.script.withLock { $0.isQuiesceStuck = true }
        let table = table()
        let holding = Task { try await table.hold(request(), takenAt: .now) }
        #expect(await eventually { !plugin.atRest.isEmpty })
        plugin.holder?.die()
        let released = try await table.release("h1")
        #expect(released.members.allSatisfy { !$0.stillHeld })
        await #expect(throws: APIFailure.self) { try await holding.value }
        #expect(plugin.atRest.isEmpty)
    }

    @Test("a refused quiesce says why and what to do")
    func refusedQuiesce() async throws {
        plugin.script.withLock { $0.quiesceError = PluginFailure(.refused, "it is busy", hint: "Wait") }
        let table = table()
        let failure = await #expect(throws: APIFailure.self) { try await table.hold(request(), takenAt: .now) }
        #expect(failure?.message.contains("it is busy") == true)
        #expect(failure?.hint == "Wait")
        #expect(await table.status().isEmpty)
    }

    @Test("a hold that the plug-in reports as lost does not count")
    func holdLost() async throws {
        let log = RecordedLog()
        let table = table(log: log)
        _ = try await table.hold(request(), takenAt: .now)
        plugin.holder?.say(PluginEvent(.holdLost, holdID: "h1", resource: "a", reason: "connection lost"))
        // The event is looked at in its own time; a fact that comes after the release could not be known.
        #expect(await eventually { log.contains("no longer held: connection lost") })
        let members = try await table.release("h1").members
        #expect(members.map(\.stillHeld) == [false, true])
        #expect(members[0].failure == "connection lost")
    }

    @Test("a plug-in that cannot prove the hold at release makes it not held")
    func unproven() async throws {
        plugin.script.withLock { $0.isStillHeld = false }
        let table = table()
        _ = try await table.hold(request(), takenAt: .now)
        let members = try await table.release("h1").members
        #expect(members.allSatisfy { !$0.stillHeld && $0.failure != nil })
    }

    @Test("a thaw releases the saga's holds only, and takes away their evidence")
    func thaw() async throws {
        let table = table()
        _ = try await table.hold(request("h1", saga: "s1", resources: ["a"]), takenAt: .now)
        _ = try await table.hold(request("h2", saga: "s2", resources: ["b"]), takenAt: .now)
        #expect(await table.thaw(sagaID: "s1").released == ["fake/a"])
        #expect(plugin.atRest == ["b"])
        #expect(try await table.release("h1").members.allSatisfy { !$0.stillHeld })
        #expect(await table.thaw(sagaID: nil).released == ["fake/b"])
        #expect(plugin.atRest.isEmpty)
    }

    @Test("what is held cannot be held a second time by another hold")
    func occupied() async throws {
        let table = table()
        _ = try await table.hold(request("h1", resources: ["a"]), takenAt: .now)
        let failure = await #expect(throws: APIFailure.self) {
            try await table.hold(request("h2", resources: ["a", "b"]), takenAt: .now)
        }
        #expect(failure?.code == "resourceHeld")
        _ = try await table.release("h1")
        #expect(
            await eventually { (try? await table.hold(request("h3", resources: ["a"]), takenAt: .now)) != nil })
        _ = try await table.release("h3")
    }

    @Test("a restarted agent releases what a dead one left")
    func restart() async throws {
        let first = table()
        _ = try await first.hold(request(), takenAt: .now)
        // The first agent is gone: nobody will ever ask it again.
        plugin.holder?.die()
        let second = table()
        _ = await second.recoverLeftovers()
        #expect(plugin.atRest.isEmpty)
        #expect(await eventually { journalled == 0 })
        await #expect(throws: APIFailure.self) { try await second.release("h1") }
    }

    @Test("a stopped agent has released everything and takes no new holds")
    func stop() async throws {
        let table = table()
        _ = try await table.hold(request(), takenAt: .now)
        _ = await table.stop()
        #expect(plugin.atRest.isEmpty)
        await #expect(throws: APIFailure.self) { try await table.hold(request("h2"), takenAt: .now) }
    }

    @Test(
        "a senseless request is refused and changes nothing",
        arguments: [
            ("", 10.0, ["a"]), ("../x", 10, ["a"]), (".x", 10, ["a"]), ("ok", 0, ["a"]), ("ok", 1e9, ["a"]),
            ("ok", 10, []), ("ok", 10, ["a", "a"]),
        ])
    func senseless(id: String, lease: Double, resources: [String]) async throws {
        let table = table()
        await #expect(throws: APIFailure.self) {
            try await table.hold(request(id, resources: resources, lease: lease), takenAt: .now)
        }
        #expect(plugin.atRest.isEmpty)
        #expect(journalled == 0)
    }
}
