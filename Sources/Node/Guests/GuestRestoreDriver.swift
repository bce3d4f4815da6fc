import API
import BlockStore
import Foundation
import Logging
import Protection
import Synchronization

/// Restores guests: plans, clones, reverts, and has the agent do what the host must do. Whatever fails is taken back.
final class GuestRestoreDriver: Sendable {
    /// Clones and snapshots that live only as long as a restore begin with this.
    static let temporaryPrefix = "guest-restore."
    private static let surveySeconds = 120.0
    static let stopSeconds = 4_000.0
    /// Copies of large images take their time.
    private static let applySeconds = 24.0 * 3_600

    let directory: GuestDirectory
    let inventory: Inventory
    let sagas: Sagas
    let journal: GuestRestoreJournal
    let backlog: GuestRestoreBacklog
    let logger: Logger
    let crashPoint: CrashPoint
    private let registry: AgentRegistry
    /// Guests that are restored, or taken back, right now: by UUID.
    private let underWay = Mutex<Set<String>>([])

    init(
        inventory: Inventory, registry: AgentRegistry, sagas: Sagas, jobs: JobEngine, dataDirectory: String,
        logger: Logger, crashPoint: CrashPoint = .fromEnvironment
    ) {
        self.inventory = inventory
        self.registry = registry
        self.sagas = sagas
        self.logger = logger
        self.crashPoint = crashPoint
        journal = GuestRestoreJournal(dataDirectory: dataDirectory)
        backlog = GuestRestoreBacklog(jobs: jobs, journal: journal, logger: logger)
        directory = GuestDirectory(
            inventory: inventory, agents: AgentAdapter(registry: registry, targets: inventory.registry))
    }

    /// One guest, looked at and planned.
    struct Prepared: Sendable {
        var restoreID: String
        var guest: GuestInfo
        var snapshot: BlockStore.SnapshotRecord?
        /// The clone that the data is taken from instead.
        var fromClone: VolumeRecord?
        var artifacts: [String: String]
        var survey: GuestSurvey
        var plan: GuestRestorePlan
        var beside: GuestIdentity?

        var sourceName: String { fromClone?.name ?? snapshot?.name ?? "" }
    }

    /// Keeps for good what was done to one guest, so that it can be undone whatever comes of the others.
    typealias Keep = @Sendable (GuestRestoreResult) async throws -> Void

    /// Restores all guests of the request, one after another; all are planned before the first is touched.
    func run(
        _ request: GuestRestoreRequest, _ report: any SagaReporting, keep: Keep
    ) async throws -> [GuestRestoreResult] {
        await report.stepBegan("guest.plan", detail: request.guests.joined(separator: ", "))
        let prepared: [Prepared]
        do {
            prepared = try await prepare(request)
        } catch {
            await report.stepFailed("guest.plan", detail: APIFailure.from(error).message)
            throw error
        }
        await report.stepSucceeded("guest.plan", detail: nil)
        if request.dryRun ?? false {
            return prepared.map { one in
                result(
                    one, steps: one.survey.warnings.map { "note: \($0)" } + one.plan.sentences, GuestRestoreNote(one))
            }
        }
        var done: [GuestRestoreResult] = []
        for one in prepared {
            do {
                done.append(try await alone(one.guest.uuid, one.guest.name) { try await restore(one, report, keep) })
            } catch {
                let failure = APIFailure.from(error)
                guard !done.isEmpty else { throw failure }
                let names = done.map(\.guest)
                throw APIFailure(
                    status: failure.status, code: failure.code,
                    message: "\(failure.message); restored before it: \(names.joined(separator: ", "))",
                    hint: [
                        failure.hint,
                        "To take those back: stillpoint guest restore \(names.joined(separator: " ")) --undo",
                    ].compactMap(\.self).joined(separator: ". "))
            }
        }
        return done
    }

    /// Runs `body` unless something is being done to the guest already, or was begun and is not taken back yet.
    func alone<Value: Sendable>(
        _ uuid: String, _ name: String, _ body: () async throws -> Value
    ) async throws -> Value {
        let isFree = underWay.withLock { $0.insert(uuid).inserted }
        defer { if isFree { underWay.withLock { _ = $0.remove(uuid) } } }
        guard isFree, !journal.all().contains(where: { $0.uuid == uuid }) else {
            throw APIFailure.conflict(
                "guestRestoreUnderWay", "a restore of \"\(name)\" is under way, or is being taken back",
                hint: "stillpoint job list shows the job; wait for its end")
        }
        return try await body()
    }

    // MARK: Plan

    private func prepare(_ request: GuestRestoreRequest) async throws -> [Prepared] {
        let contents = try await inventory.contents()
        let seen = try await directory.look(contents)
        let all = try await directory.guests()
        var prepared: [Prepared] = []
        for name in request.guests {
            let guest = try GuestDirectory.only(GuestDirectory.matching(name, all), name)
            prepared.append(try await prepare(guest, request, contents, seen))
        }
        guard Set(prepared.map(\.guest.uuid)).count == prepared.count else {
            throw APIFailure.invalid("a guest is named twice")
        }
        return prepared
    }

    private func prepare(
        _ guest: GuestInfo, _ request: GuestRestoreRequest, _ contents: Inventory.Contents,
        _ seen: GuestDirectory.Seen
    ) async throws -> Prepared {
        let (snapshot, clone) = try Self.source(of: guest, request.from, contents)
        let members = contents.attributes[snapshot.id]?.evidence?.members ?? []
        let member = members.first { $0.plugin == GuestDirectory.plugin && $0.resource == guest.uuid }
        var artifacts = member?.artifacts ?? [:]
        // Of another instant than the disks, for all that is proven: a guest that went on from it would damage them.
        if let member, !(member.heldBeforeCut && member.releasedAfterCut && member.stillHeldAtRelease) {
            artifacts["memoryFile"] = nil
        }
        let restoreID = String(UUID().uuidString.lowercased().prefix(8))
        let beside = request.beside.map { GuestIdentity(name: $0, uuid: UUID().uuidString.lowercased()) }
        var call = GuestRestoreCall(
            action: .survey, restoreID: restoreID, guest: guest.uuid, artifacts: artifacts)
        call.beside = beside
        let survey: GuestSurvey = try await ask(guest.agent, call, Self.surveySeconds)
        var held = Set(snapshot.members.compactMap { contents.volume($0.volume)?.name })
        if let clone { held = [clone.clonedFrom.flatMap { contents.volume($0.volume)?.name } ?? ""] }
        let situation = GuestRestorePlan.Situation(
            guest: survey.name, presence: survey.state == "absent" ? .absent : survey.state == "off" ? .off : .running,
            disks: survey.disks.map(Self.disk),
            memory: survey.memory.map {
                GuestRestorePlan.Memory(volumes: $0.volumes, relativePath: $0.relativePath)
            }, held: held, tenants: Self.tenants(besides: guest.uuid, seen), isFromClone: clone != nil,
            nameIsTaken: survey.nameIsTaken)
        let wish = GuestRestorePlan.Wish(
            beside: request.beside, disks: request.disks, start: request.start, memory: request.memory ?? true)
        do throws(GuestRestorePlan.Refusal) {
            let plan = try GuestRestorePlan(situation, wish)
            return Prepared(
                restoreID: restoreID, guest: guest, snapshot: snapshot, fromClone: clone,
                artifacts: artifacts, survey: survey, plan: plan, beside: beside)
        } catch {
            throw APIFailure.conflict("guestNotRestorable", error.message, hint: error.hint)
        }
    }

    /// The snapshot that is meant, or the clone and the snapshot that it was made of.
    private static func source(
        of guest: GuestInfo, _ name: String?, _ contents: Inventory.Contents
    ) throws -> (BlockStore.SnapshotRecord, VolumeRecord?) {
        if let name {
            if let snapshot = try? contents.snapshot(name) { return (snapshot, nil) }
            if let clone = contents.volumes.first(where: { $0.name == name && $0.clonedFrom != nil }),
                let origin = contents.snapshots.first(where: { $0.id == clone.clonedFrom?.snapshot })
            {
                return (origin, clone)
            }
            throw APIFailure.unknown("snapshot", name)
        }
        if let newest = GuestDirectory.snapshots(of: guest.uuid, in: contents).first { return (newest.record, nil) }
        let holding = contents.snapshots.filter { snapshot in
            let names = Set(snapshot.members.compactMap { contents.volume($0.volume)?.name })
            return !guest.volumes.isEmpty && names.isSuperset(of: guest.volumes)
        }
        guard let newest = holding.max(by: { $0.createdAt < $1.createdAt }) else {
            throw APIFailure.conflict(
                "noSnapshotOfGuest", "no snapshot holds the guest \"\(guest.name)\"",
                hint: "Take one: stillpoint snapshot create \(guest.volumes.joined(separator: " "))")
        }
        return (newest, nil)
    }

    private static func disk(_ disk: GuestSurvey.Disk) -> GuestRestorePlan.Disk {
        let way: GuestRestorePlan.Disk.Way =
            switch disk.way {
            case "network": .network
            case "block": .block(isWhole: disk.isWhole)
            case "file": .file(relativePath: disk.relativePath ?? "", path: disk.path ?? "")
            default: .none
            }
        return GuestRestorePlan.Disk(
            target: disk.target, way: way, volumes: disk.volumes, source: disk.source)
    }

    /// What a revert of a volume would take along, besides the guest and what an agent inside of it sees.
    private static func tenants(besides uuid: String, _ seen: GuestDirectory.Seen) -> [String: [String]] {
        let inside = seen.resources.first { $0.resource.id == uuid }?.resource.details["insideAgent"]
        var tenants: [String: [String]] = [:]
        for (agent, resource) in seen.resources where resource.id != uuid && agent != inside {
            // What it lies on is found by itself; a hook lies on nothing.
            if resource.layer == .application { continue }
            for volume in resource.volumes { tenants[volume, default: []].append("\(resource.label) on \(agent)") }
        }
        return tenants
    }

    // MARK: Restore

    private func restore(
        _ one: Prepared, _ report: any SagaReporting, _ keep: Keep
    ) async throws -> GuestRestoreResult {
        var note = GuestRestoreNote(one)
        var steps: [String] = []
        let made: GuestRestoreResult
        do {
            var call = try await makeClones(one, &note, report)
            if one.beside == nil {
                steps += try await stop(one, &note, report)
                steps += try await revert(one, &note, report)
            }
            let copies = (call.disks ?? [:]).values.compactMap { $0.way == "copy" ? $0.destination : nil }.sorted()
            note.state["copies"] = copies.isEmpty ? nil : copies.joined(separator: "\n")
            if let beside = one.beside { note.state["beside"] = beside.uuid }
            note.state["firmware"] = one.artifacts["nvramPath"].map { path in
                one.beside.map { "\(path).\($0.uuid)" } ?? path
            }
            call.state = note.state
            note.isAgentAsked = true
            try journal.write(note)
            await crashPoint.hit("guest.apply.before")
            await report.stepBegan("guest.apply", detail: one.beside?.name ?? one.guest.name)
            let answer: GuestRestoreAnswer = try await ask(one.guest.agent, call, Self.applySeconds)
            await crashPoint.hit("guest.apply.after")
            note.state = answer.state
            steps += answer.steps
            made = result(one, steps: steps, note)
            try await keep(made)
            await report.stepSucceeded("guest.apply", detail: answer.steps.joined(separator: "; "))
        } catch {
            await report.stepFailed("guest.apply", detail: APIFailure.from(error).message)
            let failures = await takeBackAtOnce(note)
            await report.stepCompensated(
                "guest.apply", detail: failures.isEmpty ? nil : failures.joined(separator: "; "))
            let failure = APIFailure.from(error)
            let after =
                failures.isEmpty
                ? "everything is as it was before"
                : failures.joined(separator: "; ") + "; the job \(GuestRestoreBacklog.jobKind) keeps trying"
            throw APIFailure(
                status: failure.status, code: failure.code,
                message: "\(one.guest.name) was not restored: \(failure.message)",
                hint: [failure.hint, "After the failure: \(after)"].compactMap(\.self).joined(separator: ". "))
        }
        var done = made
        done.steps += await removeTemporary(note)
        journal.remove(note.restoreID)
        return done
    }

    private func makeClones(
        _ one: Prepared, _ note: inout GuestRestoreNote, _ report: any SagaReporting
    ) async throws -> GuestRestoreCall {
        var call = GuestRestoreCall(
            action: .apply, restoreID: one.restoreID, guest: one.guest.uuid, artifacts: one.artifacts)
        call.beside = one.beside
        call.start = one.plan.starts
        try journal.write(note)
        await crashPoint.hit("guest.clone.before")
        await report.stepBegan("guest.clone", detail: nil)
        let snapshot = try await sourceSnapshot(one, &note)
        var sources: [String: String] = [:]
        for volume in one.plan.sourceVolumes {
            let name = Self.temporaryPrefix + one.restoreID + "." + String(volume.prefix(80))
            note.sources.append(name)
            try journal.write(note)
            let initiator = "iqn.2026-11.io.stillpoint:restore-\(Self.secret(20))"
            let export = try await clone(snapshot, one, volume, as: name, initiator: initiator, user: nil, secret: nil)
            sources[volume] = name
            call.sources = (call.sources ?? []) + [GuestRestoreSource(name: name, export: export)]
        }
        var disks: [String: GuestDiskRestore] = [:]
        for (target, action) in one.plan.actions {
            switch action {
            case .revert: disks[target] = GuestDiskRestore(way: "keep")
            case .copy(let volume, let path, let destination):
                disks[target] = GuestDiskRestore(
                    way: "copy", source: sources[volume], path: path, destination: destination)
            case .attachClone(let volume):
                let beside = one.beside?.name ?? one.guest.name
                let name = Self.volumeName("\(beside).\(target)")
                note.clones.append(name)
                try journal.write(note)
                let export = try await clone(
                    snapshot, one, volume, as: name,
                    initiator: "iqn.2008-11.org.linux-kvm:\(one.beside?.uuid ?? one.guest.uuid)", user: "guest",
                    secret: Self.secret(32))
                disks[target] = GuestDiskRestore(way: "attach", export: export)
            }
        }
        call.disks = disks
        if let memory = one.plan.memory, let volume = memory.volumes.first {
            call.memory = GuestMemorySource(source: sources[volume] ?? "", path: memory.relativePath)
        }
        await crashPoint.hit("guest.clone.after")
        let made = note.sources + note.clones
        await report.stepSucceeded(
            "guest.clone", detail: made.isEmpty ? "none is needed" : made.joined(separator: ", "))
        return call
    }

    /// The snapshot that clones are made of. A clone as the source is snapshotted first: it may go on being written.
    private func sourceSnapshot(_ one: Prepared, _ note: inout GuestRestoreNote) async throws -> String {
        guard let clone = one.fromClone else { return one.snapshot?.id.description ?? "" }
        let name = Self.temporaryPrefix + one.restoreID
        note.temporarySnapshot = name
        try journal.write(note)
        let request = SnapshotCreateRequest(volumes: [clone.name], name: name, consistency: .crash)
        _ = try await sagas.snapshots.run(request: request, report: InnerReport(outer: nil))
        return name
    }

    private func clone(
        _ snapshot: String, _ one: Prepared, _ volume: String, as name: String, initiator: String, user: String?,
        secret: String?
    ) async throws -> GuestExport {
        let member = one.fromClone?.name ?? volume
        let made = try await inventory.createClone(CloneRequest(snapshot: snapshot, volume: member, name: name))
        guard let export = made.exports.first, let portal = export.portals.first else {
            throw APIFailure(status: 500, code: "noExport", message: "the clone \(name) has no target")
        }
        _ = try await inventory.allow(
            export.iqn, TargetAllowRequest(initiator: initiator, chapUser: user, chapSecret: secret))
        return GuestExport(
            portal: portal, iqn: export.iqn, lun: export.lun, initiator: initiator, user: user, secret: secret)
    }

    private func stop(
        _ one: Prepared, _ note: inout GuestRestoreNote, _ report: any SagaReporting
    ) async throws -> [String] {
        note.isAgentAsked = true
        try journal.write(note)
        await crashPoint.hit("guest.stop.before")
        await report.stepBegan("guest.stop", detail: one.guest.name)
        let call = GuestRestoreCall(
            action: .stop, restoreID: one.restoreID, guest: one.guest.uuid, artifacts: one.artifacts)
        let answer: GuestRestoreAnswer = try await ask(one.guest.agent, call, Self.stopSeconds)
        await crashPoint.hit("guest.stop.after")
        note.state = answer.state
        try journal.write(note)
        await report.stepSucceeded("guest.stop", detail: answer.steps.joined(separator: "; "))
        return answer.steps
    }

    private func revert(
        _ one: Prepared, _ note: inout GuestRestoreNote, _ report: any SagaReporting
    ) async throws -> [String] {
        guard !one.plan.revertedVolumes.isEmpty else { return [] }
        // Driven: a host that has one of the volumes as a block device lets go of it, and none may be silent.
        note.revertedVolumes = one.plan.revertedVolumes
        try journal.write(note)
        await crashPoint.hit("guest.revert.before")
        let request = RevertRequest(
            volumes: one.plan.revertedVolumes, snapshot: one.snapshot?.id.description, drive: true)
        let reverted = try await sagas.reverts.run(request: request, report: InnerReport(outer: report))
        await crashPoint.hit("guest.revert.after")
        note.keptSnapshot = reverted.keptSnapshot
        try journal.write(note)
        return ["\(one.plan.revertedVolumes.joined(separator: ", ")) went back to \(reverted.revertedTo)"]
            + reverted.steps
    }

    // MARK: Small things

    func ask<Answer: Decodable & Sendable>(
        _ agent: String, _ call: GuestRestoreCall, _ seconds: Double
    ) async throws -> Answer {
        let references = try await inventory.volumeRecords()
            .map { VolumeReference(name: $0.name, naa: $0.naa.description) }
        let request = GuestRestoreAgentRequest(call: call, volumes: inventory.registry.located(references))
        return try await registry.client(agent).restoreGuest(request, timeoutSeconds: seconds)
    }

    private func result(_ one: Prepared, steps: [String], _ note: GuestRestoreNote) -> GuestRestoreResult {
        var state = note.state
        state["uri"] = one.survey.uri
        return GuestRestoreResult(
            restoreID: one.restoreID, guest: one.beside?.name ?? one.guest.name,
            uuid: one.beside?.uuid ?? one.guest.uuid, agent: one.guest.agent, snapshot: one.sourceName, steps: steps,
            reverted: one.plan.revertedVolumes, keptSnapshot: note.keptSnapshot, clones: note.clones, state: state)
    }

    private static func secret(_ count: Int) -> String {
        let alphabet = Array("abcdefghijkmnopqrstuvwxyz2345678")
        var generator = SystemRandomNumberGenerator()
        return String((0..<count).map { _ in alphabet[Int.random(in: alphabet.indices, using: &generator)] })
    }

    /// A guest's name may have characters that a volume's may not.
    private static func volumeName(_ text: String) -> String {
        String(text.map { $0.isASCII && ($0.isLetter || $0.isNumber || "._:@-".contains($0)) ? $0 : "-" }.prefix(128))
    }
}

extension GuestRestoreNote {
    init(_ one: GuestRestoreDriver.Prepared) {
        self.init(
            restoreID: one.restoreID, guest: one.guest.name, uuid: one.beside?.uuid ?? one.guest.uuid,
            agent: one.guest.agent, uri: one.survey.uri, isBeside: one.beside != nil)
    }
}

/// Of a saga within a restore: its steps are the job's, but its recovery must not end the job.
struct InnerReport: SagaReporting {
    let jobID = ""
    let outer: (any SagaReporting)?

    func stepBegan(_ name: String, detail: String?) async { await outer?.stepBegan(name, detail: detail) }
    func stepSucceeded(_ name: String, detail: String?) async { await outer?.stepSucceeded(name, detail: detail) }
    func stepFailed(_ name: String, detail: String?) async { await outer?.stepFailed(name, detail: detail) }
    func stepCompensated(_ name: String, detail: String?) async { await outer?.stepCompensated(name, detail: detail) }
}
