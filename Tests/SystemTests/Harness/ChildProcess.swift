import Foundation

/// A child of the test. Foundation's own waits for the end of a descriptor that the child's daemons inherit too (a
/// database that `pg_ctl` leaves behind), so it never ends; this one asks for the child itself.
final class ChildProcess {
    let processIdentifier: Int32
    private var endStatus: Int32?

    /// - Parameter leadsGroup: it is the first of a process group of its own, for `killGroup`.
    init(
        _ arguments: [String], environment: [String: String], inputPath: String, outputPath: String,
        errorPath: String?, leadsGroup: Bool = false
    ) throws {
        guard let executable = Shell.locate(arguments[0]) else {
            throw CommandFailed(description: "no \(arguments[0]) here")
        }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        // The threads that tests run on block signals, and a child inherits that: it would not hear SIGTERM.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        // posix_spawnattr_setpgroup: 0, as it is from the start, is a group of the child's own number.
        let group = leadsGroup ? POSIX_SPAWN_SETPGROUP : 0
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | group))
        let writing = O_WRONLY | O_CREAT | O_APPEND
        posix_spawn_file_actions_addopen(&actions, 0, inputPath, O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, outputPath, writing, 0o644)
        if let errorPath {
            posix_spawn_file_actions_addopen(&actions, 2, errorPath, writing, 0o644)
        } else {
            posix_spawn_file_actions_adddup2(&actions, 1, 2)
        }
        let argumentPointers = arguments.map { strdup($0) } + [nil]
        let environmentPointers = environment.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for pointer in argumentPointers + environmentPointers { free(pointer) } }
        var pid: pid_t = 0
        let failure = posix_spawn(&pid, executable, &actions, &attributes, argumentPointers, environmentPointers)
        guard failure == 0 else {
            throw CommandFailed(description: "\(arguments[0]) cannot be started: errno \(failure)")
        }
        processIdentifier = pid
    }

    var isRunning: Bool {
        if endStatus != nil { return false }
        var status: Int32 = 0
        guard waitpid(processIdentifier, &status, WNOHANG) == processIdentifier else { return true }
        // The exit status, or 128 and the signal, as a shell gives it.
        endStatus = status & 0x7F == 0 ? (status >> 8) & 0xFF : 128 + (status & 0x7F)
        return false
    }

    /// 0 while it runs.
    var terminationStatus: Int32 { endStatus ?? 0 }

    func terminate() { if isRunning { kill(processIdentifier, SIGTERM) } }

    /// Ctrl-C, as a terminal does it: everything in its group hears of it.
    func interruptGroup() { kill(-processIdentifier, SIGINT) }

    func killHard() {
        guard isRunning else { return }
        kill(processIdentifier, SIGKILL)
        waitUntilExit()
    }

    /// It and all its children, of one that leads a group.
    func killGroup() {
        kill(-processIdentifier, SIGKILL)
        waitUntilExit()
    }

    func waitUntilExit() { while isRunning { usleep(5_000) } }
}
