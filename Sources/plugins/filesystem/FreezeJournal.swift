import CLinux
import Glibc
import PluginKit

/// What the plug-in is about to freeze, has frozen, and has thawed.
struct FreezeRecord: Codable, Sendable {
    enum Step: String, Codable { case intent, frozen, refused, thawed }

    var step: Step
    var resource: String
    var superblock: String
    var fsid: String
}

enum FreezeJournal {
    /// Thaws what dead processes of the plug-in left frozen.
    ///
    /// An intent without an answer is thawed too: the process died between the kernel's freeze and its note of it, or
    /// before. In the second case somebody else's freeze of the same file system could be thawed; leaving our own
    /// frozen for ever would be worse. A freeze that was refused, because somebody else's came first, is left alone.
    static func recover(stateDirectory: String) -> RecoverResult {
        var result = RecoverResult(released: [])
        for journal in HoldJournal<FreezeRecord>.abandoned(
            stateDirectory: stateDirectory, plugin: FilesystemPlugin.name)
        {
            var open: [String: FreezeRecord] = [:]
            for record in journal.entries() {
                switch record.step {
                case .intent, .frozen: open[record.superblock] = record
                case .refused, .thawed: open[record.superblock] = nil
                }
            }
            let failures = result.failures.count
            for record in open.values.sorted(by: { $0.resource < $1.resource }) { thaw(record, &result) }
            // Kept when something could not be thawed: the next recovery tries again.
            if result.failures.count == failures { journal.remove() }
        }
        result.failures += HoldJournal<FreezeRecord>.unrecoverable(
            stateDirectory: stateDirectory, plugin: FilesystemPlugin.name)
        return result
    }

    private static func thaw(_ record: FreezeRecord, _ result: inout RecoverResult) {
        let mounts = MountTable.current().entries.filter { "\($0.superblock)" == record.superblock }
        let ordered = mounts.filter { $0.mountPoint == record.resource } + mounts
        for mount in ordered {
            let descriptor = open(mount.mountPoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            defer { close(descriptor) }
            guard FileSystemIdentity(descriptor: descriptor)?.fsid == record.fsid else { continue }
            switch clinux_thaw(descriptor) {
            case 0: result.released.append(record.resource)
            case EINVAL: break  // Not frozen: it had not come to it, or somebody thawed it.
            case let code:
                result.failures.append("\(record.resource) could not be thawed: \(errorText(code))")
            }
            return
        }
        result.failures.append(
            "\(record.resource) was left frozen and is not mounted any more. Mount it and run fsfreeze --unfreeze")
    }
}
