import Foundation
import PluginKit

/// What a restore has done to a guest so far, in the agent's directory on a tmpfs: each thing is noted before it is
/// done, so that `undo` knows what to take back whoever was killed meanwhile. Locked while a process works on the
/// restore: a step that outlived its agent and the one that takes it back never work at once.
final class RestoreProgress {
    private let path: String
    private let descriptor: Int32

    /// How long the process of another step may take to end.
    private static let waitSeconds = 60.0

    /// - Throws: `busy` while another process works on the restore; `operatingSystem`.
    init(stateDirectory: String) throws(PluginFailure) {
        path = "\(stateDirectory)/guest-restore.json"
        let lock = "\(stateDirectory)/guest-restore.lock"
        descriptor = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else {
            throw PluginFailure(.operatingSystem, "\(lock) cannot be made: \(errorText(errno))")
        }
        let deadline = MonotonicInstant.now.advanced(bySeconds: Self.waitSeconds)
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            guard errno == EWOULDBLOCK || errno == EINTR, deadline > .now else {
                throw PluginFailure(
                    .busy, "Another process still works on this restore", hint: "Try again when it has ended")
            }
            usleep(50_000)
        }
    }

    deinit { close(descriptor) }

    /// Nil where nothing is noted.
    ///
    /// - Throws: `badState` for a damaged note.
    func read() throws(PluginFailure) -> [String: String]? {
        try RestoreNote.read(path, as: [String: String].self, wayOut: "Bring the guest back by hand")
    }

    /// - Throws: `badState`, `operatingSystem`: then nothing may be done.
    func write(_ state: [String: String]) throws(PluginFailure) { try RestoreNote.write(state, to: path) }
}
