import API
import Foundation

/// Makes local block devices of volumes and snapshots, and takes them away.
///
/// Every step is noted in the attachment's journal before it is begun; ``undo(_:)`` takes back what is noted, in
/// reverse order, and tolerates whatever is not there. Roll-back after a failure, detach, and cleaning up after a
/// killed attach are all this one function.
struct LocalAttachment: Sendable {
    var host: any AttachmentHost
    var node: any AttachmentNode
    var nodeAddress: NodeAddress
    var directory: AttachmentDirectory
    /// Told what could not be undone, or is worth knowing.
    var warn: @Sendable (String) -> Void = { _ in }

    enum Way: String, CaseIterable, Sendable {
        /// The kernel's initiator where there is one, else user space.
        case auto
        case kernel
        case userSpace = "user-space"
    }

    /// Waits in steps of this, for what other programs do.
    static let pollSeconds = 0.02
    static let startTimeoutSeconds = 30.0
    static let flushTimeoutSeconds = 30.0

    // MARK: Attach

    /// - Parameters:
    ///   - text: `VOLUME`, `SNAPSHOT` or `SNAPSHOT/VOLUME`.
    ///   - initiator: the name to log in with; nil for one of the attachment's own.
    /// - Returns: the attachment, with its device.
    func attach(_ text: String, readOnly: Bool, initiator: String?, way: Way) async throws -> AttachmentRecord {
        guard host.isRoot else {
            throw CommandFailure(
                "Only root can make a block device of \(text)",
                hint: "Run this as root, with --token-file if the node belongs to another user")
        }
        let method = try await method(for: way)
        try directory.prepare()
        let subject = try await AttachmentSubject.resolve(text, on: node)
        let lock = try directory.lock(subject.name)
        defer { withExtendedLifetime(lock) {} }
        if let earlier = directory.read(subject.name) { try await clearAway(earlier) }

        var record = try await plan(subject, readOnly: readOnly, initiator: initiator, method: method)
        do {
            try await openAccess(&record, subject: subject, isInitiatorGiven: initiator != nil)
            switch method {
            case .userSpace: try await attachInUserSpace(&record)
            case .kernel: try await attachThroughKernel(&record)
            }
            record.attachedAt = Date()
            try directory.write(record)
            return record
        } catch {
            await undo(&record)
            throw error
        }
    }

    private func method(for way: Way) async throws -> AttachmentRecord.Method {
        let kernelProblem = await kernelInitiatorProblem()
        switch (way, kernelProblem) {
        case (.kernel, .some(let problem)):
            throw CommandFailure(
                "The kernel's iSCSI initiator cannot be used: \(problem)", hint: "Try --via user-space")
        case (.kernel, nil), (.auto, nil): return .kernel
        case (.userSpace, _), (.auto, .some):
            if let missing = userSpaceProblem() {
                throw CommandFailure(
                    "There is no way to attach a volume here: \(missing)",
                    hint: "apt install qemu-system-common qemu-block-extra libnbd-bin fuse3"
                        + (kernelProblem.map { ". (The kernel's initiator: \($0))" } ?? ""))
            }
            return .userSpace
        }
    }

    /// An earlier attachment of the same name is either there, then this one is refused, or it was cut short.
    private func clearAway(_ earlier: AttachmentRecord) async throws {
        if let device = earlier.device {
            let broken = dead(earlier)
            throw CommandFailure(
                "\(earlier.name) is attached already, as \(device)"
                    + (broken.isEmpty ? "" : ", but \(broken.map(\.command).joined(separator: " and ")) died"),
                hint: "Detach it with: stillpoint volume detach \(earlier.name)")
        }
        var earlier = earlier
        await undo(&earlier)
    }

    private func plan(
        _ subject: AttachmentSubject, readOnly: Bool, initiator: String?, method: AttachmentRecord.Method
    ) async throws -> AttachmentRecord {
        let id = String(UInt32.random(in: .min ... .max), radix: 16)
        // One member may be attached more than once, on hosts of the same name.
        let suffix = subject.snapshotID == nil ? nil : id
        let initiator = initiator ?? InitiatorName.make(host: host.hostName, name: subject.name, suffix: suffix)
        var record = AttachmentRecord(
            name: subject.name, volume: subject.name, naa: "", device: nil, iqn: "", lun: 0, portal: "", backing: "",
            readOnly: readOnly, processes: [], method: method, initiator: initiator, snapshot: subject.snapshotID,
            workDirectory: directory.workDirectory(id: id), ownsAccess: false, begun: [], daemons: [],
            node: nodeAddress, attachedAt: nil)
        switch subject {
        case .volume(let volume):
            guard let export = volume.exports.first else {
                throw CommandFailure(
                    "Volume \(volume.name) is not exported, so there is nothing to attach",
                    hint: "It was made with --no-export")
            }
            record.naa = volume.naa
            try take(export, into: &record)
        case .snapshot(let snapshot, let member):
            record.readOnly = true
            record.begin(.export)
            do {
                let secret = try noteSecret(&record)
                let export = try await node.exportSnapshot(
                    snapshot.id,
                    SnapshotExportRequest(
                        volume: member, initiator: initiator, chapUser: record.chapUser, chapSecret: secret))
                try take(export, into: &record)
                try directory.write(record)
                let lun = try await node.target(export.iqn).luns.first { $0.lun == export.lun }
                record.naa = lun?.naa ?? ""
            } catch {
                await undo(&record)
                throw error
            }
        }
        return record
    }

    private func take(_ export: ExportInfo, into record: inout AttachmentRecord) throws {
        guard let portal = export.portals.first else {
            throw CommandFailure("Target \(export.iqn) has no portal", hint: "Is the node's iSCSI server running?")
        }
        record.iqn = export.iqn
        record.lun = export.lun
        record.portal = portal
    }

    /// Lets the attachment's initiator in, with a secret of its own. An initiator that the user named, and that may log
    /// in already, is left as it is; a snapshot's export knows its only initiator, and the secret, from the start.
    private func openAccess(
        _ record: inout AttachmentRecord, subject: AttachmentSubject, isInitiatorGiven: Bool
    ) async throws {
        if subject.snapshotID != nil { return }
        if isInitiatorGiven {
            let rule = try await node.target(record.iqn).access.first { $0.initiator == record.initiator }
            if let rule {
                guard rule.chapUser == nil else {
                    throw CommandFailure(
                        "\(record.initiator) may log in to \(record.iqn) only with a CHAP secret not known here",
                        hint: "Leave --initiator away, or give another name")
                }
                return
            }
        }
        record.ownsAccess = true
        record.begin(.access)
        let secret = try noteSecret(&record)
        _ = try await node.allow(
            TargetAllowRequest(initiator: record.initiator, chapUser: record.chapUser, chapSecret: secret),
            on: record.iqn)
    }

    /// Makes the secret that the attachment logs in with, in a file of its work directory that only its owner can read.
    private func noteSecret(_ record: inout AttachmentRecord) throws -> String {
        record.begin(.workDirectory)
        record.chapUser = Self.chapUser
        try directory.write(record)
        do {
            try FileManager.default.createDirectory(
                atPath: record.workDirectory, withIntermediateDirectories: false,
                attributes: [.posixPermissions: 0o700])
        } catch {
            throw CommandFailure("The directory \(record.workDirectory) cannot be made")
        }
        let secret = Self.makeSecret()
        try PrivateText.write(secret, to: record.secretPath)
        return secret
    }

    static let chapUser = "stillpoint-attach"

    /// 32 characters of 5 random bits each.
    private static func makeSecret() -> String {
        let alphabet = Array("abcdefghijkmnopqrstuvwxyz2345678")
        var generator = SystemRandomNumberGenerator()
        return String((0..<32).map { _ in alphabet[Int.random(in: alphabet.indices, using: &generator)] })
    }

    // MARK: Detach

    /// - Parameters:
    ///   - text: the attachment's name, or its device.
    ///   - force: go on although what has not been written yet is lost.
    /// - Returns: the attachment as it was.
    func detach(_ text: String, force: Bool) async throws -> AttachmentRecord {
        let found = try Self.find(text, in: directory)
        let lock = try directory.lock(found.name)
        defer { withExtendedLifetime(lock) {} }
        // Another detach may have been quicker.
        guard var record = directory.read(found.name) else { throw Self.notAttached(text) }
        // Whoever waits for a node that is gone, waits in the kernel: the daemons' end is what sets it free.
        if force { await stopProcesses(record, graceSeconds: 0) }
        if let device = record.device {
            try await refuseWhileUsed(device, name: record.name)
            try await flush(record, device: device, force: force)
        }
        directory.withdraw(record.name)
        let whole = record
        await undo(&record)
        return whole
    }

    static func find(_ text: String, in directory: AttachmentDirectory) throws -> AttachmentRecord {
        let records = try directory.records()
        let fitting = records.filter {
            $0.name == text || $0.device == text || "/dev/" + text == $0.device || $0.name.hasPrefix(text + "/")
        }
        guard let found = fitting.first(where: { $0.name == text }) ?? fitting.first else { throw notAttached(text) }
        guard fitting.count == 1 || found.name == text else {
            throw CommandFailure(
                "\(text) is attached more than once: \(Show.list(fitting.map(\.name)))", hint: "Name one of them")
        }
        return found
    }

    private static func notAttached(_ text: String) -> CommandFailure {
        CommandFailure("\(text) is not attached", hint: "See: stillpoint volume attachments")
    }

    private func refuseWhileUsed(_ device: String, name: String) async throws {
        // A moment for udev and the like, which look at a device on their own and let go of it.
        var uses = host.uses(of: device)
        for _ in 0..<20 {
            guard !uses.isEmpty, uses.allSatisfy({ if case .openedBy = $0 { true } else { false } }) else { break }
            await host.sleep(seconds: 0.1)
            uses = host.uses(of: device)
        }
        guard let first = uses.first else { return }
        throw CommandFailure(
            "\(name) was not detached: \(device) is \(uses.map(\.sentence).joined(separator: "; "))",
            hint: first.wayOut)
    }

    /// Brings what lies in the page cache to the node, so that nothing is lost by taking the device away.
    private func flush(_ record: AttachmentRecord, device: String, force: Bool) async throws {
        if record.readOnly || force { return }
        let died = dead(record)
        guard died.isEmpty else {
            warn(
                "\(died.map(\.command).joined(separator: " and ")) had died: what was not flushed to \(record.name) "
                    + "by then is lost")
            return
        }
        let result = try await host.run(["sync", device], timeoutSeconds: Self.flushTimeoutSeconds)
        guard result.status == 0 else {
            throw CommandFailure(
                "\(record.name) was not detached: writes to \(device) cannot be finished: \(result.complaint)",
                hint: "Is the node up? With --force what is not written yet is thrown away")
        }
    }

    /// Daemons that should run and do not.
    func dead(_ record: AttachmentRecord) -> [AttachmentRecord.BackgroundProcess] {
        record.daemons.filter { host.startTicks(of: $0.pid) != $0.startTicks }
    }

    // MARK: Undo

    /// Takes back what the journal says was begun, the latest first.
    func undo(_ record: inout AttachmentRecord) async {
        var isComplete = true
        for step in AttachmentRecord.Step.allCases.reversed() where record.begun.contains(step) {
            do {
                try await undo(step, of: record)
            } catch let error as CommandFailure {
                isComplete = false
                warn(error.message + (error.hint.map { ". \($0)" } ?? ""))
            } catch {
                // The node does not answer or refuses: what remains there does no harm, and is said.
                warn(Outcome.explain(error)?.message ?? "\(error)")
            }
        }
        if isComplete {
            directory.remove(record.name)
        } else {
            try? directory.write(record)
        }
    }

    private func undo(_ step: AttachmentRecord.Step, of record: AttachmentRecord) async throws {
        switch step {
        case .loop: try await removeLoop(record)
        case .fuse: try await unmountFuse(record)
        case .daemon: await stopDaemon(record)
        case .login: try await logOut(record)
        case .interface: await removeInterface(record)
        case .workDirectory: removeWorkDirectory(record)
        case .access where !record.iqn.isEmpty: try await closeAccess(record)
        case .export where !record.iqn.isEmpty: try await removeExport(record)
        case .access, .export: break
        }
    }

    func stopProcesses(_ record: AttachmentRecord, graceSeconds: Double) async {
        for daemon in record.daemons { await host.stop(daemon, graceSeconds: graceSeconds) }
    }

    /// Shuts the attachment's initiator out, and waits until the node has seen its session end: a revert straight after
    /// a detach must not find it.
    private func closeAccess(_ record: AttachmentRecord) async throws {
        guard record.ownsAccess else { return }
        do {
            var target = try await node.deny(record.initiator, on: record.iqn)
            for _ in 0..<250 {
                guard target.sessions.contains(where: { $0.initiator == record.initiator }) else { return }
                await host.sleep(seconds: Self.pollSeconds)
                target = try await node.target(record.iqn)
            }
        } catch let error as APIFailure where error.status == 404 || error.status == 400 {
            // The volume is gone, the rule was taken away by hand, or there can be none for such a name.
        } catch let error as NodeUnreachable {
            throw APIFailure(
                status: 503, code: "unreachable",
                message:
                    "\(error.description). \(record.initiator) may still log in to \(record.iqn); take that away with: "
                    + "stillpoint target deny \(record.iqn) --initiator \(record.initiator)")
        }
    }

    private func removeExport(_ record: AttachmentRecord) async throws {
        guard let snapshot = record.snapshot else { return }
        do {
            try await node.removeSnapshotExport(snapshot, iqn: record.iqn)
        } catch let error as APIFailure where error.status == 404 {
            // The snapshot is gone, and its exports with it.
        }
    }

    private func removeWorkDirectory(_ record: AttachmentRecord) {
        for path in [
            record.secretPath, record.socketPath, record.daemonPidPath, record.fusePidPath, record.fuseLogPath,
        ] {
            unlink(path)
        }
        rmdir(record.mountPoint)
        rmdir(record.workDirectory)
    }
}

/// A file that only its owner can read.
enum PrivateText {
    static func write(_ text: String, to path: String) throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else {
            throw CommandFailure("The file \(path) cannot be made", hint: String(cString: strerror(errno)))
        }
        defer { close(descriptor) }
        let bytes = Array(text.utf8)
        guard Glibc.write(descriptor, bytes, bytes.count) == bytes.count else {
            throw CommandFailure("The file \(path) cannot be written", hint: String(cString: strerror(errno)))
        }
    }
}
