import API
import Catalog
import Foundation
import Logging
import NIOHTTP1
import Synchronization
import Testing

@testable import Node

@Suite("Process and jobs")
struct ProcessTests {
    // MARK: Start and end

    @Test("a second node on the same data directory is refused, named, and does no harm")
    func secondNode() async throws {
        try await TestNode.with { node in
            let failure = await #expect(throws: ServeFailure.self) {
                _ = try await NodeProcess.start(
                    TestNode.configuration(node.directory), logger: Logger(label: "second"))
            }
            let text = try #require(failure?.description)
            #expect(text.contains(node.directory + "/data") && text.contains("process \(getpid())"), "\(text)")
            #expect(try await node.call(.GET, "/v1/status").status == 200)
        }
    }

    @Test("a node that ended leaves its directory to the next, with all that it held")
    func restart() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let first = try await TestNode.start(directory)
        #expect(
            try await first.call(.POST, "/v1/volumes", VolumeCreateRequest(name: "a", sizeBytes: 4096)).status == 201)
        let before: VolumeInfo = try await first.call(.GET, "/v1/volumes/a").decode()
        let status: NodeStatus = try await first.call(.GET, "/v1/status").decode()
        try await first.end()
        let second = try await TestNode.start(directory)
        #expect(second.token == first.token)
        var after: VolumeInfo = try await second.call(.GET, "/v1/volumes/a").decode()
        after.exports[0].portals = before.exports[0].portals
        #expect(after == before)
        #expect(try await second.call(.GET, "/v1/status").decode(NodeStatus.self).nodeID == status.nodeID)
        try await second.end()
    }

    @Test("the record for the CLI is there while the node runs, private, and gone after")
    func runRecord() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        let file = directory + "/run/node.json"
        let record = try APIJSON.decoder().decode(
            NodeRecord.self, from: Data(contentsOf: URL(fileURLWithPath: file)))
        #expect(record.api == node.api && record.pid == getpid())
        #expect(record.tokenFile == directory + "/data/admin-token")
        let attributes = try FileManager.default.attributesOfItem(atPath: file)
        #expect((attributes[.posixPermissions] as? NSNumber)?.intValue == 0o600)
        try await node.end()
        #expect(!FileManager.default.fileExists(atPath: file))
    }

    @Test("a port that is taken is said to be, and everything is given back")
    func takenPort() async throws {
        try await TestNode.with { node in
            let directory = TestNode.newDirectory()
            defer { try? FileManager.default.removeItem(atPath: directory) }
            var configuration = TestNode.configuration(directory)
            configuration.iscsiListen = try #require(ListenAddress(node.services.addresses.iscsi))
            let taken = configuration
            let failure = await #expect(throws: ServeFailure.self) {
                _ = try await NodeProcess.start(taken, logger: Logger(label: "second"))
            }
            #expect(failure?.description.contains(node.services.addresses.iscsi) == true, "\(failure as Any)")
            let again = try await TestNode.start(directory)
            try await again.end()
        }
    }

    @Test("beyond loopback the API speaks TLS with a certificate of the node's authority, and nothing else")
    func tlsBeyondLoopback() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var configuration = TestNode.configuration(directory)
        configuration.apiListen = ListenAddress(host: "0.0.0.0", port: 0)
        let process = try await NodeProcess.start(configuration, logger: Logger(label: "test"))
        let running = Task { try await process.run(endingOn: []) }
        let deadline = ContinuousClock.now + .seconds(120)
        while process.services.addresses.api.isEmpty, ContinuousClock.now < deadline {
            try await Task.sleep(for: .milliseconds(10))
        }
        let port = try #require(ListenAddress(process.services.addresses.api)).port
        let authority = try process.services.identity.authority.certificatePEM
        let good = try NodeClient(
            .init(url: try #require(URL(string: "https://127.0.0.1:\(port)")), authorityPEM: authority))
        #expect(try await good.health().status == "ok")
        await good.close()
        let stranger = try CertificateAuthority(nodeID: "other").certificatePEM
        for (url, pem) in [("https://127.0.0.1:\(port)", stranger), ("http://127.0.0.1:\(port)", authority)] {
            let bad = try NodeClient(.init(url: try #require(URL(string: url)), authorityPEM: pem))
            await #expect(throws: (any Error).self) { _ = try await bad.health() }
            await bad.close()
        }
        let record = try APIJSON.decoder().decode(
            NodeRecord.self, from: Data(contentsOf: URL(fileURLWithPath: directory + "/run/node.json")))
        #expect(record.api == "https://127.0.0.1:\(port)" && record.authorityFile != nil)
        await process.end()
        try await running.value
        await process.stop()
    }

    // MARK: Jobs

    @Test("watchers see a job's steps and its end; a late one sees the end only")
    func events() async throws {
        try await TestNode.with { node in
            let jobs = node.services.jobs
            let (gate, open) = AsyncStream.makeStream(of: Void.self)
            let job = try await jobs.submit(kind: "test.run", subject: "x") { handle in
                handle.step("one")
                for await _ in gate { break }
                handle.succeedStep("one", detail: "done")
                return nil
            }
            let client = try NodeClient(.init(url: try #require(URL(string: node.api)), token: node.token))
            var seen: [JobInfo] = []
            for try await state in client.events(ofJob: job.id) {
                seen.append(state)
                open.yield()
            }
            #expect(seen.first?.state == .running && seen.last?.state == .succeeded)
            #expect(seen.last?.steps.map(\.state) == [.succeeded] && seen.last?.steps.map(\.detail) == ["done"])
            var late: [JobInfo] = []
            for try await state in client.events(ofJob: job.id) { late.append(state) }
            #expect(late == [try #require(seen.last)])
            await client.close()
            #expect(try await node.call(.GET, "/v1/jobs/unknown/events").failure?.code == "jobNotFound")
        }
    }

    @Test("a job that fails says why, closes its open steps, and is kept")
    func failingJob() async throws {
        try await TestNode.with { node in
            let job = try await node.services.jobs.submit(kind: "test.run", subject: "x") { handle in
                handle.step("one")
                throw APIFailure(status: 409, code: "broken", message: "it broke", hint: "mend it")
            }
            var found = job
            let deadline = ContinuousClock.now + .seconds(120)
            while !found.state.isEnded, ContinuousClock.now < deadline {
                found = try await node.call(.GET, "/v1/jobs/\(job.id)").decode()
            }
            #expect(found.failure?.code == "broken" && found.failure?.hint == "mend it")
            #expect(found.steps.map(\.state) == [.failed])
            let list: [JobInfo] = try await node.call(.GET, "/v1/jobs").decode()
            #expect(list == [found])
        }
    }

    @Test("a job that a crash cut short is failed at the next start, with what to do")
    func interruptedJob() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let first = try await TestNode.start(directory)
        let info = JobInfo(
            id: "00000000-0000-4000-8000-000000000001", kind: "snapshot.create", subject: "a", state: .running,
            createdAt: .nowMilliseconds, steps: [JobStep(name: "cut", state: .running, startedAt: .nowMilliseconds)])
        try await first.services.inventory.catalog.setJob(
            JobRecord(
                id: info.id, isEnded: false, createdAt: info.createdAt,
                document: try APIJSON.encoder().encode(info)))
        try await first.end()
        let second = try await TestNode.start(directory)
        var job: JobInfo = try await second.call(.GET, "/v1/jobs/\(info.id)").decode()
        let deadline = ContinuousClock.now + .seconds(120)
        while !job.state.isEnded, ContinuousClock.now < deadline {
            try await Task.sleep(for: .milliseconds(20))
            job = try await second.call(.GET, "/v1/jobs/\(info.id)").decode()
        }
        #expect(job.state == .failed && job.failure?.code == "interrupted" && job.failure?.hint != nil)
        #expect(job.steps.map(\.state) == [.failed])
        try await second.end()
    }

    @Test("at the end running jobs are let end, new ones are refused, and watchers hear the last state")
    func shutdownLetsJobsEnd() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        let (gate, open) = AsyncStream.makeStream(of: Void.self)
        let job = try await node.services.jobs.submit(kind: "test.run", subject: "x") { handle in
            for await _ in gate { break }
            handle.step("late")
            handle.succeedStep("late")
            return nil
        }
        let events = try await node.services.jobs.events(id: job.id)
        let ending = Task { try await node.end() }
        var refused = false
        let deadline = ContinuousClock.now + .seconds(120)
        while !refused, ContinuousClock.now < deadline {
            do {
                _ = try await node.services.jobs.submit(kind: "test.more", subject: "y") { _ in nil }
                try await Task.sleep(for: .milliseconds(20))
            } catch let failure as APIFailure {
                refused = failure.code == "shuttingDown"
            }
        }
        #expect(refused)
        open.yield()
        var last: JobInfo?
        for await state in events { last = state }
        #expect(last?.state == .succeeded && last?.steps.map(\.name) == ["late"])
        try await ending.value
    }

    @Test("a watcher over HTTP hears how a job ended while the node shuts down, and does not keep it from ending")
    func watcherAtShutdown() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        let (gate, open) = AsyncStream.makeStream(of: Void.self)
        let job = try await node.services.jobs.submit(kind: "test.run", subject: "x") { handle in
            handle.step("waits")
            for await _ in gate { break }
            return nil
        }
        let client = try NodeClient(.init(url: try #require(URL(string: node.api)), token: node.token))
        var last: JobInfo?
        var ending: Task<Void, any Error>?
        for try await state in client.events(ofJob: job.id) {
            if ending == nil {
                ending = Task { try await node.end() }
                open.yield()
            }
            last = state
        }
        #expect(last?.state == .succeeded && last?.steps.map(\.name) == ["waits"])
        try await ending?.value
        await client.close()
    }

    @Test("a job that does not end is cancelled when its grace is over")
    func shutdownCancels() async throws {
        let directory = TestNode.newDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let node = try await TestNode.start(directory)
        let cancelled = Mutex(false)
        _ = try await node.services.jobs.submit(kind: "test.run", subject: "x") { _ in
            do {
                try await Task.sleep(for: .seconds(3600))
            } catch {
                cancelled.withLock { $0 = true }
                throw error
            }
            return nil
        }
        await node.services.jobs.shutdown(graceSeconds: 0)
        #expect(cancelled.withLock { $0 })
        try await node.end()
    }
}
