/// What an attachment needs of this machine; a test puts something else in its place.
protocol AttachmentHost: Sendable {
    /// Runs a command to its end.
    ///
    /// - Throws: ``CommandFailure`` when it cannot be started.
    func run(_ command: [String], timeoutSeconds: Double) async throws -> CommandOutput

    /// Starts a command in a session of its own, so that it outlives this program and its terminal.
    ///
    /// - Parameter logPath: takes its standard output and error.
    func launch(_ command: [String], logPath: String) throws -> Int32

    /// When the process started, in ticks since boot; nil when there is none, or it has only not been waited for yet.
    func startTicks(of pid: Int32) -> UInt64?

    /// Ends a process: asks, waits up to `graceSeconds`, then insists. A process that is gone, or another one that has
    /// its pid by now, is left alone.
    func stop(_ process: AttachmentRecord.BackgroundProcess, graceSeconds: Double) async

    func hasCommand(_ name: String) -> Bool
    func fileSize(_ path: String) -> UInt64?
    func isMountPoint(_ path: String) -> Bool
    /// Loop devices with this backing file, e.g. `/dev/loop3`.
    func loopDevices(backedBy path: String) -> [String]
    /// The SCSI disk with this NAA identifier, e.g. `/dev/sdb`.
    func scsiDisk(naa: String) -> String?
    /// The kernel has, or can load, the iSCSI initiator over TCP.
    func hasKernelInitiator() async -> Bool
    /// Who uses a block device; empty when nobody does.
    func uses(of device: String) -> [DeviceUse]

    func sleep(seconds: Double) async
    var hostName: String { get }
    var isRoot: Bool { get }
}

extension AttachmentHost {
    func run(_ command: [String]) async throws -> CommandOutput { try await run(command, timeoutSeconds: 30) }
}

struct CommandOutput: Equatable, Sendable {
    /// The exit status; 128 plus the signal's number for one that ended by a signal.
    var status: Int32
    var output: String
    var errors: String
    var timedOut = false

    /// The last line that says something, for an error message.
    var complaint: String {
        if timedOut { return "it did not end in time" }
        let lines = (errors.isEmpty ? output : errors).split(separator: "\n").map(String.init)
        return lines.last { !$0.allSatisfy(\.isWhitespace) } ?? "it ended with status \(status) and said nothing"
    }
}

/// Why a device cannot be taken away.
enum DeviceUse: Equatable, Sendable {
    case mounted(at: String)
    case swap
    /// A device that stands on it: LVM, md, dm.
    case holder(String)
    case openedBy(pid: Int32, command: String)
    /// Claimed, but by nobody that can be seen from here, e.g. mounted in another mount namespace.
    case claimed

    var sentence: String {
        switch self {
        case .mounted(let path): "mounted on \(path)"
        case .swap: "used as swap"
        case .holder(let name): "part of \(name)"
        case .openedBy(let pid, let command): "held open by \(command) (process \(pid))"
        case .claimed: "in use elsewhere, e.g. mounted in another mount namespace"
        }
    }

    var wayOut: String {
        switch self {
        case .mounted(let path): "umount \(path)"
        case .swap: "Take it out with swapoff"
        case .holder(let name): "Stop \(name), e.g. with vgchange -an, mdadm --stop or dmsetup remove"
        case .openedBy(let pid, _): "End process \(pid)"
        case .claimed: "Unmount it there"
        }
    }
}
