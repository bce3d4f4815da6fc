import API
import BlockStore
import Foundation
import Logging

// The way back: of a restore that failed or was cut short, and of one that was made.
extension GuestRestoreResult {
    /// Of a restore that was cut short.
    fileprivate static func takenBack(_ note: GuestRestoreNote) -> GuestRestoreResult {
        GuestRestoreResult(
            restoreID: String(UUID().uuidString.lowercased().prefix(8)), guest: note.guest, uuid: note.uuid,
            agent: note.agent, snapshot: "", steps: ["The restore that was cut short is taken back"], reverted: [],
            keptSnapshot: nil, clones: [], state: [:], undoOf: note.restoreID)
    }
}

extension GuestRestoreDriver {
    // MARK: Taking back

    /// Once, also where the job was cancelled; what is left becomes a job.
    ///
    /// - Returns: what could not be taken back yet.
    func takeBackAtOnce(_ note: GuestRestoreNote) async -> [String] {
        let tried = await Task { await self.attempt(note) }.value
        if !tried.failures.isEmpty { await backlog.begin(tried.note) { await self.attempt($0) } }
        return tried.failures
    }

    /// Takes back what a former process of the node left under way, and goes on with what it was undoing.
    func recoverAfterRestart() async {
        for note in journal.all() {
            logger.notice("a guest's restore was cut short", metadata: ["guest": "\(note.guest)"])
            await backlog.begin(note) { await self.attempt($0) }
        }
    }

    private func attempt(_ note: GuestRestoreNote) async -> GuestRestoreBacklog.Attempt {
        var note = note
        var failures: [String]
        var result: GuestRestoreResult?
        if note.undoing != nil {
            do {
                result = try await continueUndo(&note, InnerReport(outer: nil))
                failures = []
            } catch {
                failures = [APIFailure.from(error).message]
            }
        } else {
            failures = await takeBack(&note)
            // Its job may have kept its result already: this says that there is nothing to undo.
            if failures.isEmpty { result = .takenBack(note) }
        }
        for failure in failures { logger.error("a guest's restore is not taken back: \(failure)") }
        return GuestRestoreBacklog.Attempt(note: note, failures: failures, result: result)
    }

    /// In this order, each only when the one before is done: what is under way on the host ends first; a guest must not
    /// start on volumes that are still to be put back, and what is mounted on the host must not lose its volume.
    private func takeBack(_ note: inout GuestRestoreNote) async -> [String] {
        do {
            if note.isAgentAsked, let failure = await onHost(.halt, note) { return [failure] }
            if let failure = try await putBack(&note) { return [failure] }
            if note.isAgentAsked {
                if let failure = await onHost(.undo, note) { return [failure] }
                note.isAgentAsked = false
                try journal.write(note)
            }
        } catch {
            return [APIFailure.from(error).message]
        }
        var failures: [String] = []
        for name in note.clones { failures += await remove(volume: name) }
        if failures.isEmpty { note.clones = [] }
        failures += await removeTemporary(note)
        if failures.isEmpty { journal.remove(note.restoreID) }
        return failures
    }

    /// - Returns: why the volumes do not hold yet what they held before.
    private func putBack(_ note: inout GuestRestoreNote) async throws -> String? {
        guard !note.revertedVolumes.isEmpty else { return nil }
        guard let kept = try await keptSnapshot(note) else { return nil }
        // Known from now on: putting back keeps something, too, which must not be taken for it.
        note.keptSnapshot = kept
        try journal.write(note)
        do {
            let request = RevertRequest(volumes: note.revertedVolumes, snapshot: kept, drive: true)
            _ = try await sagas.reverts.run(request: request, report: InnerReport(outer: nil))
        } catch {
            return "the volumes could not be put back: \(APIFailure.from(error).message)"
        }
        note.keptSnapshot = nil
        note.revertedVolumes = []
        try journal.write(note)
        return nil
    }

    /// The revert may have happened right before the node died: then only the pool knows. Nil: it did not happen.
    private func keptSnapshot(_ note: GuestRestoreNote) async throws -> String? {
        if let kept = note.keptSnapshot { return kept }
        let contents = try await inventory.contents()
        let began = UInt64(max(0, note.startedAt.timeIntervalSince1970) * 1e9)
        let kept = contents.snapshots.filter { snapshot in
            let names = Set(snapshot.members.compactMap { contents.volume($0.volume)?.name })
            return snapshot.kind == .beforeRevert && snapshot.createdAt >= began
                && names == Set(note.revertedVolumes)
        }
        return kept.min { $0.createdAt < $1.createdAt }?.id.description
    }

    /// - Returns: why it did not work.
    private func onHost(_ action: GuestRestoreCall.Action, _ note: GuestRestoreNote) async -> String? {
        var call = GuestRestoreCall(
            action: action, restoreID: note.restoreID, guest: note.uuid, artifacts: ["uri": note.uri])
        call.state = note.state
        call.state?["unfinished"] = "true"
        do {
            let answer: GuestRestoreAnswer = try await ask(note.agent, call, Self.stopSeconds)
            for step in answer.steps { logger.notice("\(step)", metadata: ["restore": "\(note.restoreID)"]) }
            return nil
        } catch {
            return "on the host: \(APIFailure.from(error).message)"
        }
    }

    /// What was made for the time of a restore.
    func removeTemporary(_ note: GuestRestoreNote) async -> [String] {
        var failures: [String] = []
        for name in note.sources { failures += await remove(volume: name) }
        if let name = note.temporarySnapshot, note.clones.isEmpty {
            do { try await inventory.deleteSnapshot(name) } catch {
                let failure = APIFailure.from(error)
                if failure.status != 404 { failures.append("the snapshot \(name) is left: \(failure.message)") }
            }
        }
        return failures
    }

    private func remove(volume name: String) async -> [String] {
        do {
            let info = try await inventory.volume(name)
            for export in info.exports {
                // Shut out first: a session that is still there ends.
                for rule in try await inventory.target(export.iqn).access {
                    _ = try await inventory.deny(export.iqn, TargetDenyRequest(initiator: rule.initiator))
                }
            }
            for attempt in 0..<20 {
                do {
                    try await inventory.deleteVolume(name, withSnapshots: false, onlyClones: true)
                    return []
                } catch let failure as APIFailure where failure.code == "volumeInUse" && attempt < 19 {
                    try await Task.sleep(for: .milliseconds(100))
                }
            }
            return []
        } catch {
            let failure = APIFailure.from(error)
            return failure.status == 404 ? [] : ["the volume \(name) is left: \(failure.message)"]
        }
    }

    // MARK: Undo

    /// Takes the last restore of each guest back, as its job recorded it.
    func undo(
        _ request: GuestRestoreRequest, jobs: [JobInfo], _ report: any SagaReporting, keep: Keep
    ) async throws -> [GuestRestoreResult] {
        // Jobs that failed, too: what they had done before that can be taken back.
        let results = jobs.sorted { $0.createdAt > $1.createdAt }.flatMap { $0.result?.guests ?? [] }
        let undone = Set(results.compactMap(\.undoOf))
        let restores = try request.guests.map { name in
            guard
                let found = results.first(where: {
                    ($0.guest == name || $0.uuid == name.lowercased()) && $0.undoOf == nil
                        && !undone.contains($0.restoreID)
                })
            else {
                throw APIFailure.conflict(
                    "nothingToUndo", "no restore of \"\(name)\" is there to take back",
                    hint: "stillpoint job list shows what was done")
            }
            return found
        }
        if request.dryRun ?? false { return restores.map { Self.undoPlan($0) } }
        var done: [GuestRestoreResult] = []
        for restore in restores {
            let undone = try await alone(restore.uuid, restore.guest) { try await undo(restore, report) }
            try await keep(undone)
            done.append(undone)
        }
        return done
    }

    private static func undoPlan(_ restore: GuestRestoreResult) -> GuestRestoreResult {
        var plan = restore
        plan.undoOf = restore.restoreID
        plan.steps = ["stop \(restore.guest)"]
        if restore.keptSnapshot != nil {
            plan.steps.append("put \(restore.reverted.joined(separator: ", ")) back to what was there before")
        }
        if !restore.clones.isEmpty { plan.steps.append("delete \(restore.clones.joined(separator: ", "))") }
        plan.steps.append("bring back the files and the definition from before")
        return plan
    }

    private func undo(
        _ restore: GuestRestoreResult, _ report: any SagaReporting
    ) async throws -> GuestRestoreResult {
        var result = restore
        result.undoOf = restore.restoreID
        result.restoreID = String(UUID().uuidString.lowercased().prefix(8))
        result.steps = []
        result.keptSnapshot = nil
        var note = GuestRestoreNote(
            restoreID: restore.restoreID, guest: restore.guest, uuid: restore.uuid, agent: restore.agent,
            uri: restore.state["uri"] ?? "", isBeside: !restore.clones.isEmpty, state: restore.state,
            revertedVolumes: restore.reverted, keptSnapshot: restore.keptSnapshot, clones: restore.clones,
            undoing: result)
        try journal.write(note)
        await report.stepBegan("guest.undo", detail: restore.guest)
        do {
            result = try await continueUndo(&note, report)
        } catch {
            let failure = APIFailure.from(error)
            await report.stepFailed("guest.undo", detail: failure.message)
            let left = note
            await backlog.begin(left) { await self.attempt($0) }
            throw APIFailure(
                status: failure.status, code: failure.code, message: failure.message,
                hint: [failure.hint, "The job \(GuestRestoreBacklog.jobKind) keeps trying"].compactMap(\.self)
                    .joined(separator: ". "))
        }
        await report.stepSucceeded("guest.undo", detail: result.steps.joined(separator: "; "))
        return result
    }

    /// Each step is noted when it is done; a guest that is stopped and volumes that are put back twice are no harm.
    private func continueUndo(
        _ note: inout GuestRestoreNote, _ report: any SagaReporting
    ) async throws -> GuestRestoreResult {
        guard var result = note.undoing else { throw APIFailure.invalid("nothing is being undone") }
        var call = GuestRestoreCall(
            action: .stop, restoreID: note.restoreID, guest: note.uuid, artifacts: ["uri": note.uri])
        call.state = note.state
        await crashPoint.hit("guest.undo.before")
        if note.clones.isEmpty, note.keptSnapshot != nil || result.steps.isEmpty {
            let answer: GuestRestoreAnswer = try await ask(note.agent, call, Self.stopSeconds)
            result.steps += answer.steps
        }
        if let kept = note.keptSnapshot {
            let request = RevertRequest(volumes: note.revertedVolumes, snapshot: kept, drive: true)
            let reverted = try await sagas.reverts.run(request: request, report: InnerReport(outer: report))
            result.keptSnapshot = reverted.keptSnapshot
            result.steps.append("\(note.revertedVolumes.joined(separator: ", ")) hold what they held before")
            note.keptSnapshot = nil
            note.undoing = result
            try journal.write(note)
        }
        await crashPoint.hit("guest.undo.reverted")
        call.action = .undo
        let answer: GuestRestoreAnswer = try await ask(note.agent, call, Self.stopSeconds)
        result.steps += answer.steps
        for name in note.clones { result.steps += await remove(volume: name) }
        // Where the restore came from a clone, what it made stood on a snapshot of that.
        note.clones = []
        note.temporarySnapshot = Self.temporaryPrefix + note.restoreID
        result.steps += await removeTemporary(note)
        await crashPoint.hit("guest.undo.after")
        journal.remove(note.restoreID)
        return result
    }
}
