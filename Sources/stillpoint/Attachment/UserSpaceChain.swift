import Foundation

// iSCSI in user space: qemu-storage-daemon logs in and serves the LUN over NBD on a unix socket, nbdfuse makes a file
// of that, a loop device makes a block device of the file.
//
// QEMU could export the file itself (`--export type=fuse`), but its version 7.2 corrupts data silently as soon as
// writes are concurrent. That export is never used.
extension LocalAttachment {
    /// Why it cannot be done here; nil when it can.
    func userSpaceProblem() -> String? {
        let missing = ["qemu-storage-daemon", "nbdfuse", "losetup"].filter { !host.hasCommand($0) }
        if !missing.isEmpty { return "\(Show.list(missing)) \(missing.count == 1 ? "is" : "are") not installed" }
        if host.fileSize("/dev/fuse") == nil { return "the kernel has no FUSE (/dev/fuse)" }
        if host.fileSize("/dev/loop-control") == nil { return "the kernel has no loop devices (/dev/loop-control)" }
        return nil
    }

    func attachInUserSpace(_ record: inout AttachmentRecord) async throws {
        try makeWorkDirectory(&record)
        try await startDaemon(&record)
        try await startFuse(&record)
        try await makeLoop(&record)
    }

    private func makeWorkDirectory(_ record: inout AttachmentRecord) throws {
        record.begin(.workDirectory)
        record.backing = record.mountPoint + "/disk"
        try directory.write(record)
        do {
            try FileManager.default.createDirectory(
                atPath: record.mountPoint, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw CommandFailure("The directory \(record.mountPoint) cannot be made")
        }
    }

    // MARK: qemu-storage-daemon

    static func daemonCommand(_ record: AttachmentRecord) -> [String] {
        var device = [
            "driver=iscsi", "node-name=lun", "transport=tcp", "portal=\(escaped(record.portal))",
            "target=\(escaped(record.iqn))", "lun=\(record.lun)", "initiator-name=\(escaped(record.initiator))",
            "read-only=\(record.readOnly ? "on" : "off")", "discard=unmap",
        ]
        var command = ["qemu-storage-daemon", "--daemonize", "--pidfile", record.daemonPidPath]
        if let chapUser = record.chapUser {
            command += ["--object", "secret,id=chap,file=\(escaped(record.secretPath))"]
            device += ["user=\(escaped(chapUser))", "password-secret=chap"]
        }
        command += [
            "--blockdev", device.joined(separator: ","),
            "--nbd-server", "addr.type=unix,addr.path=\(escaped(record.socketPath))",
            "--export", "type=nbd,id=export,node-name=lun,name=disk,writable=\(record.readOnly ? "off" : "on")",
        ]
        return command
    }

    /// QEMU's option syntax: a comma in a value is written twice.
    private static func escaped(_ text: String) -> String { text.replacingOccurrences(of: ",", with: ",,") }

    private func startDaemon(_ record: inout AttachmentRecord) async throws {
        record.begin(.daemon)
        try directory.write(record)
        // It goes into the background after it has logged in and listens, and says on standard error why it cannot.
        let result = try await host.run(Self.daemonCommand(record), timeoutSeconds: Self.startTimeoutSeconds)
        unlink(record.secretPath)
        guard result.status == 0 else {
            throw CommandFailure(
                "qemu-storage-daemon cannot open LUN \(record.lun) of \(record.iqn) at \(record.portal): "
                    + Self.withoutProgramName(result.complaint),
                hint: Self.daemonHint(result.errors))
        }
        guard let pid = Self.pid(in: record.daemonPidPath), add(pid, "qemu-storage-daemon", to: &record) else {
            throw CommandFailure("qemu-storage-daemon ended right after its start")
        }
        try directory.write(record)
    }

    private static func daemonHint(_ errors: String) -> String? {
        if errors.contains("Unknown driver 'iscsi'") { return "apt install qemu-block-extra" }
        if errors.contains("Failed to connect") || errors.contains("Connection refused") {
            return "Can this host reach the portal?"
        }
        return nil
    }

    /// `qemu-storage-daemon: --blockdev driver=iscsi,…: text` is about half the screen before the text.
    private static func withoutProgramName(_ text: String) -> String {
        guard text.hasPrefix("qemu-storage-daemon: "), let end = text.range(of: ": ", options: .backwards) else {
            return text
        }
        return text.contains("--blockdev") ? lastSentence(text) : String(text[end.upperBound...])
    }

    private static func lastSentence(_ text: String) -> String {
        guard let comma = text.range(of: "password-secret=chap: ") ?? text.range(of: "discard=unmap: ") else {
            return text
        }
        return String(text[comma.upperBound...])
    }

    func stopDaemon(_ record: AttachmentRecord) async {
        for daemon in record.daemons where daemon.command == "qemu-storage-daemon" {
            await host.stop(daemon, graceSeconds: 10)
        }
        // Started, but not noted any more: the attach was killed in between.
        if !record.daemons.contains(where: { $0.command == "qemu-storage-daemon" }),
            let pid = Self.pid(in: record.daemonPidPath), let start = host.startTicks(of: pid)
        {
            await host.stop(.init(pid: pid, startTicks: start, command: "qemu-storage-daemon"), graceSeconds: 10)
        }
    }

    // MARK: nbdfuse

    static func fuseCommand(_ record: AttachmentRecord) -> [String] {
        ["nbdfuse", "-P", record.fusePidPath] + (record.readOnly ? ["-r"] : [])
            + [record.backing, "nbd+unix:///disk?socket=\(percentEncoded(record.socketPath))"]
    }

    private static func percentEncoded(_ path: String) -> String {
        path.addingPercentEncoding(withAllowedCharacters: .urlPathAllowed.subtracting(.init(charactersIn: "&?+")))
            ?? path
    }

    private func startFuse(_ record: inout AttachmentRecord) async throws {
        record.begin(.fuse)
        try directory.write(record)
        let pid = try host.launch(Self.fuseCommand(record), logPath: record.fuseLogPath)
        guard add(pid, "nbdfuse", to: &record) else { throw fuseFailure(record) }
        try directory.write(record)
        var waited = 0.0
        while !host.isMountPoint(record.mountPoint) || (host.fileSize(record.backing) ?? 0) == 0 {
            guard host.startTicks(of: pid) != nil else { throw fuseFailure(record) }
            guard waited < Self.startTimeoutSeconds else {
                throw CommandFailure("nbdfuse did not mount \(record.mountPoint) within \(Self.startTimeoutSeconds) s")
            }
            await host.sleep(seconds: Self.pollSeconds)
            waited += Self.pollSeconds
        }
    }

    private func fuseFailure(_ record: AttachmentRecord) -> CommandFailure {
        let log = (try? String(contentsOfFile: record.fuseLogPath, encoding: .utf8)) ?? ""
        let complaint = CommandOutput(status: 1, output: "", errors: log).complaint
        return CommandFailure("nbdfuse cannot make a file of \(record.name): \(complaint)")
    }

    func unmountFuse(_ record: AttachmentRecord) async throws {
        if host.isMountPoint(record.mountPoint) {
            var result = try await host.run(["umount", record.mountPoint])
            if result.status != 0 {
                // Its daemon is dead or something looks at it; the name goes now, the rest when nobody looks any more.
                result = try await host.run(["umount", "-l", record.mountPoint])
            }
            if result.status != 0, host.isMountPoint(record.mountPoint) {
                throw CommandFailure("\(record.mountPoint) cannot be unmounted: \(result.complaint)")
            }
        }
        for daemon in record.daemons where daemon.command == "nbdfuse" { await host.stop(daemon, graceSeconds: 5) }
    }

    // MARK: The loop device

    static func loopCommand(_ record: AttachmentRecord) -> [String] {
        ["losetup", "--find", "--show", "--direct-io=on"] + (record.readOnly ? ["--read-only"] : []) + [record.backing]
    }

    private func makeLoop(_ record: inout AttachmentRecord) async throws {
        record.begin(.loop)
        try directory.write(record)
        let result = try await host.run(Self.loopCommand(record))
        let device = result.output.trimmingCharacters(in: .whitespacesAndNewlines)
        guard result.status == 0, device.hasPrefix("/dev/") else {
            throw CommandFailure("losetup cannot make a device of \(record.backing): \(result.complaint)")
        }
        record.device = device
    }

    func removeLoop(_ record: AttachmentRecord) async throws {
        for device in host.loopDevices(backedBy: record.backing) {
            let result = try await host.run(["losetup", "--detach", device])
            guard result.status == 0 else {
                throw CommandFailure("\(device) cannot be removed: \(result.complaint)")
            }
        }
        // The kernel removes it when the last user has closed it.
        for _ in 0..<250 where !host.loopDevices(backedBy: record.backing).isEmpty {
            await host.sleep(seconds: Self.pollSeconds)
        }
        if let device = host.loopDevices(backedBy: record.backing).first {
            throw CommandFailure(
                "\(device) is still in use",
                hint: host.uses(of: device).first?.wayOut ?? "Try again: stillpoint volume detach \(record.name)")
        }
    }

    // MARK: Processes

    private static func pid(in path: String) -> Int32? {
        (try? String(contentsOfFile: path, encoding: .utf8)).flatMap {
            Int32($0.trimmingCharacters(in: .whitespacesAndNewlines))
        }
    }

    /// - Returns: false when there is no such process any more.
    private func add(_ pid: Int32, _ command: String, to record: inout AttachmentRecord) -> Bool {
        guard let start = host.startTicks(of: pid) else { return false }
        record.daemons.append(.init(pid: pid, startTicks: start, command: command))
        record.processes.append(pid)
        return true
    }
}
