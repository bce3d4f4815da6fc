import API
import Foundation

/// One local attachment. While it is made it is the journal of what has to be undone; when it is there, a copy of it is
/// what agents recognise the device by.
struct AttachmentRecord: Codable, Equatable, Sendable {
    enum Method: String, Codable, Sendable {
        /// The kernel's iSCSI initiator: a SCSI disk.
        case kernel
        /// qemu-storage-daemon, nbdfuse and a loop device.
        case userSpace
    }

    /// What may have been done and has to be undone, in the order in which it is done. A step is noted before it is
    /// begun.
    enum Step: String, Codable, Sendable, CaseIterable {
        case export, access, workDirectory, daemon, fuse, loop, interface, login
    }

    struct BackgroundProcess: Codable, Equatable, Sendable {
        var pid: Int32
        /// Field 22 of /proc/PID/stat: with the pid it names the process for ever.
        var startTicks: UInt64
        var command: String
    }

    /// `VOLUME`, or `SNAPSHOT/VOLUME`.
    var name: String
    /// The same as `name`: a snapshot's device is never taken for the volume itself.
    var volume: String
    /// 32 hexadecimal digits.
    var naa: String
    /// E.g. `/dev/loop3`; nil until there is one.
    var device: String?
    var iqn: String
    var lun: Int
    /// `HOST:PORT`.
    var portal: String
    /// The file under the loop device; empty with the kernel's initiator.
    var backing: String
    var readOnly: Bool
    /// Pids of `daemons`.
    var processes: [Int32]

    var method: Method
    var initiator: String
    /// The snapshot's id.
    var snapshot: String?
    var workDirectory: String
    /// The initiator's access was given for this attachment, and is taken away with it.
    var ownsAccess: Bool
    /// The initiator proves itself with CHAP under this name; its secret lies in `secretPath` until it is handed over.
    var chapUser: String?
    var begun: [Step]
    var daemons: [BackgroundProcess]
    /// Where the node is, for detach.
    var node: NodeAddress
    var attachedAt: Date?

    var socketPath: String { workDirectory + "/nbd.sock" }
    var mountPoint: String { workDirectory + "/mnt" }
    var secretPath: String { workDirectory + "/chap" }
    var daemonPidPath: String { workDirectory + "/qsd.pid" }
    var fusePidPath: String { workDirectory + "/fuse.pid" }
    var fuseLogPath: String { workDirectory + "/fuse.log" }
    /// The network interface record of open-iscsi that carries the initiator's name.
    var interfaceName: String { "stillpoint-" + ((workDirectory as NSString).lastPathComponent) }

    mutating func begin(_ step: Step) {
        if !begun.contains(step) { begun.append(step) }
    }
}

/// `RUN/attachments`: `NAME.json` for every device that is there, `.NAME.state` for everything that was begun.
struct AttachmentDirectory: Sendable {
    var path: String
    /// Parent of the work directories.
    var workParent: String

    /// A socket's path has at most 107 bytes (unix(7)).
    static let maximumSocketPathBytes = 107

    static func standard() -> AttachmentDirectory { AttachmentDirectory(runDirectory: RunDirectory.path()) }

    init(runDirectory: String) {
        path = runDirectory + "/attachments"
        workParent = runDirectory + "/attach"
    }

    /// Makes the directories: everybody may see what is attached, only the owner what attaches it.
    func prepare() throws {
        for directory in [path, workParent] {
            do {
                try FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
            } catch {
                throw CommandFailure(
                    "The directory \(directory) for attachments cannot be made",
                    hint: "Another place is chosen with STILLPOINT_RUN_DIR (\(reasonText(error)))")
            }
        }
    }

    /// A directory of its own with a short path, because of the socket in it.
    func workDirectory(id: String) -> String {
        let usual = workParent + "/" + id
        return (usual + "/nbd.sock").utf8.count <= Self.maximumSocketPathBytes ? usual : "/tmp/stillpoint-" + id
    }

    // MARK: Records

    func read(_ name: String) -> AttachmentRecord? { record(at: statePath(name)) }

    /// Everything that was begun, sorted by name.
    func records() throws -> [AttachmentRecord] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
        return names.filter { $0.hasPrefix(".") && $0.hasSuffix(".state") }
            .compactMap { record(at: path + "/" + $0) }
            .sorted { $0.name < $1.name }
    }

    /// Writes the journal, and what agents read once there is a device.
    func write(_ record: AttachmentRecord) throws {
        let data = try APIJSON.encoder(pretty: true).encode(record)
        try replace(statePath(record.name), with: data)
        if record.device != nil { try replace(publicPath(record.name), with: data) }
    }

    func remove(_ name: String) {
        unlink(publicPath(name))
        unlink(statePath(name))
    }

    /// Agents do not see the device any more; what has to be undone is still known.
    func withdraw(_ name: String) { unlink(publicPath(name)) }

    func publicPath(_ name: String) -> String { "\(path)/\(stem(name)).json" }

    private func statePath(_ name: String) -> String { "\(path)/.\(stem(name)).state" }

    /// Held while an attachment is made or removed. The lock file stays: removing it would let two hold "the" lock.
    func lock(_ name: String) throws -> FileLock { try FileLock(path: "\(path)/.\(stem(name)).lock") }

    private func record(at path: String) -> AttachmentRecord? {
        FileManager.default.contents(atPath: path).flatMap {
            try? APIJSON.decoder().decode(AttachmentRecord.self, from: $0)
        }
    }

    private func replace(_ path: String, with data: Data) throws {
        do {
            try data.write(to: URL(filePath: path), options: .atomic)
            chmod(path, 0o644)
        } catch {
            throw CommandFailure("The record \(path) cannot be written", hint: reasonText(error))
        }
    }

    /// `/` is in no name of ours, `+` neither; a file's name has at most 255 bytes.
    private func stem(_ name: String) -> String {
        let flat = name.replacingOccurrences(of: "/", with: "+")
        guard flat.utf8.count > 200 else { return flat }
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325  // FNV-1a, so that long names stay different
        for byte in flat.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        return String(flat.prefix(180)) + "+" + String(hash, radix: 16)
    }

}

/// An advisory lock (flock) on a file, released with the object or with the process.
final class FileLock {
    private let descriptor: Int32

    /// Waits for the lock.
    init(path: String) throws {
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            throw CommandFailure("The lock \(path) cannot be opened", hint: String(cString: strerror(errno)))
        }
        while flock(descriptor, LOCK_EX) != 0 {
            guard errno == EINTR else {
                close(descriptor)
                throw CommandFailure("The lock \(path) cannot be taken", hint: String(cString: strerror(errno)))
            }
        }
    }

    deinit { close(descriptor) }
}
