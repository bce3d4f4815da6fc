import Foundation

/// This machine.
struct LinuxHost: AttachmentHost {
    var hostName: String { ProcessInfo.processInfo.hostName }
    var isRoot: Bool { geteuid() == 0 }

    func sleep(seconds: Double) async { try? await Task.sleep(for: .seconds(seconds)) }

    // MARK: Processes

    func run(_ command: [String], timeoutSeconds: Double) async throws -> CommandOutput {
        let output = try temporaryFile()
        let errors = try temporaryFile()
        defer {
            close(output)
            close(errors)
        }
        let pid = try spawn(command, output: output, errors: errors, newSession: false)
        let deadline = ContinuousClock.now + .seconds(timeoutSeconds)
        var status: Int32 = 0
        var timedOut = false
        while true {
            let result = waitpid(pid, &status, WNOHANG)
            if result == pid || (result < 0 && errno != EINTR) { break }
            if ContinuousClock.now > deadline {
                timedOut = true
                kill(pid, SIGKILL)
                // Not waited for: a process that hangs in the kernel cannot be ended, and must not hang this one.
                break
            }
            await sleep(seconds: 0.005)
        }
        let signal = status & 0x7f
        return CommandOutput(
            status: timedOut ? 124 : signal == 0 ? (status >> 8) & 0xff : 128 + signal, output: contents(output),
            errors: contents(errors), timedOut: timedOut)
    }

    func launch(_ command: [String], logPath: String) throws -> Int32 {
        let log = open(logPath, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard log >= 0 else {
            throw CommandFailure("The log \(logPath) cannot be written", hint: String(cString: strerror(errno)))
        }
        defer { close(log) }
        return try spawn(command, output: log, errors: log, newSession: true)
    }

    /// `posix_spawn`, because nothing of ours may be inherited but three descriptors: a pipe of the caller's shell that
    /// lives on in a daemon would keep that shell waiting.
    private func spawn(_ command: [String], output: Int32, errors: Int32, newSession: Bool) throws -> Int32 {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_adddup2(&actions, errors, 2)
        let inherited = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
        // Closing one that is gone by then does no harm (glibc ignores it).
        for descriptor in inherited.compactMap(Int32.init) where descriptor > 2 {
            posix_spawn_file_actions_addclose(&actions, descriptor)
        }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        let setSession: Int32 = 0x80  // POSIX_SPAWN_SETSID of <spawn.h>, which Glibc's import hides
        let flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | (newSession ? setSession : 0)
        posix_spawnattr_setflags(&attributes, Int16(flags))
        var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) } + [nil]
        defer { arguments.forEach { free($0) } }
        var pid: pid_t = 0
        let result = posix_spawnp(&pid, command[0], &actions, &attributes, &arguments, environ)
        guard result == 0 else {
            throw CommandFailure("\(command[0]) cannot be started", hint: String(cString: strerror(result)))
        }
        return pid
    }

    func startTicks(of pid: Int32) -> UInt64? {
        // A child of ours that has ended is only kept for us to ask about it.
        var status: Int32 = 0
        _ = waitpid(pid, &status, WNOHANG)
        guard let text = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
            let end = text.lastIndex(of: ")")
        else { return nil }
        // Fields from the third on; the second may contain anything, brackets too (proc(5)).
        let fields = text[text.index(after: end)...].split(separator: " ")
        guard fields.count > 19, fields[0] != "Z", fields[0] != "X" else { return nil }
        return UInt64(fields[19])
    }

    func stop(_ process: AttachmentRecord.BackgroundProcess, graceSeconds: Double) async {
        func isThere() -> Bool { startTicks(of: process.pid) == process.startTicks }
        guard isThere() else { return }
        kill(process.pid, SIGTERM)
        let deadline = ContinuousClock.now + .seconds(graceSeconds)
        while isThere(), ContinuousClock.now < deadline { await sleep(seconds: 0.01) }
        guard isThere() else { return }
        kill(process.pid, SIGKILL)
        for _ in 0..<200 where isThere() { await sleep(seconds: 0.01) }
    }

    func hasCommand(_ name: String) -> Bool {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/sbin:/usr/bin:/sbin:/bin"
        return path.split(separator: ":").contains { access("\($0)/\(name)", X_OK) == 0 }
    }

    private func temporaryFile() throws -> Int32 {
        var template = Array("/tmp/stillpoint-XXXXXX".utf8CString)
        let named = mkstemp(&template)
        guard named >= 0 else {
            throw CommandFailure("No temporary file can be made in /tmp", hint: String(cString: strerror(errno)))
        }
        unlink(template)
        _ = fcntl(named, F_SETFD, FD_CLOEXEC)
        return named
    }

    private func contents(_ descriptor: Int32) -> String {
        // What a command says is shown to people: its first 64 KiB are plenty.
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        let count = pread(descriptor, &bytes, bytes.count, 0)
        return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : ""
    }

    // MARK: Files and devices

    func fileSize(_ path: String) -> UInt64? {
        let attributes = try? FileManager.default.attributesOfItem(atPath: path)
        return (attributes?[.size] as? NSNumber)?.uint64Value
    }

    func isMountPoint(_ path: String) -> Bool {
        MountTable.read().contains { $0.mountPoint == path }
    }

    func loopDevices(backedBy path: String) -> [String] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/sys/block")) ?? []
        return names.filter { $0.hasPrefix("loop") }.sorted().filter { name in
            guard let text = try? String(contentsOfFile: "/sys/block/\(name)/loop/backing_file", encoding: .utf8)
            else { return false }
            let backing = text.trimmingCharacters(in: .newlines)
            // The kernel marks a file that is unlinked, as one on an unmounted FUSE file system may be.
            return backing == path || backing == path + " (deleted)"
        }.map { "/dev/" + $0 }
    }

    func scsiDisk(naa: String) -> String? {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/sys/block")) ?? []
        for name in names.sorted() where name.hasPrefix("sd") {
            guard let text = try? String(contentsOfFile: "/sys/block/\(name)/device/wwid", encoding: .utf8) else {
                continue
            }
            if text.trimmingCharacters(in: .whitespacesAndNewlines).lowercased() == "naa." + naa.lowercased() {
                return "/dev/" + name
            }
        }
        return nil
    }

    func hasKernelInitiator() async -> Bool {
        if access("/sys/module/iscsi_tcp", F_OK) == 0 || access("/sys/class/iscsi_transport/tcp", F_OK) == 0 {
            return true
        }
        guard isRoot, hasCommand("modprobe"), let done = try? await run(["modprobe", "-q", "iscsi_tcp"]) else {
            return false
        }
        return done.status == 0 && access("/sys/class/iscsi_transport/tcp", F_OK) == 0
    }

    func uses(of device: String) -> [DeviceUse] { DeviceUses.find(device) }
}
