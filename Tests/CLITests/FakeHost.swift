import API
import Foundation
import Synchronization

@testable import stillpoint

/// A machine whose commands do what a test tells them to, and which remembers what is there.
final class FakeHost: AttachmentHost {
    struct State {
        var log: [String] = []
        /// Commands that fail, by their name; the text is what they say.
        var failing: [String: String] = [:]
        var processes: [Int32: UInt64] = [:]
        var nextPid: Int32 = 4000
        var mounts: Set<String> = []
        var loops: [String: String] = [:]
        var uses: [DeviceUse] = []
        var commands: Set<String> = ["qemu-storage-daemon", "nbdfuse", "losetup"]
        var disk: String?
        var isRoot = true
        var hasKernelInitiator = false
        /// nbdfuse ends right after its start.
        var fuseDies = false
    }

    let state = Mutex(State())

    func with<Value: Sendable>(_ body: (inout sending State) -> sending Value) -> Value { state.withLock(body) }
    var log: [String] { with { $0.log } }
    /// What an attachment leaves on a machine.
    var leftovers: [String] {
        with { $0.processes.keys.map { "process \($0)" } + $0.mounts + $0.loops.keys }
    }

    var hostName: String { "Host_1" }
    var isRoot: Bool { with { $0.isRoot } }

    func run(_ command: [String], timeoutSeconds: Double) async throws -> CommandOutput {
        with { state in
            let text = command.joined(separator: " ")
            state.log.append(text)
            if let complaint = state.failing.first(where: { text.hasPrefix($0.key) })?.value {
                return CommandOutput(status: 1, output: "", errors: complaint)
            }
            var output = ""
            switch command[0] {
            case "qemu-storage-daemon":
                let pid = state.start()
                try? "\(pid)\n".write(toFile: command[3], atomically: true, encoding: .utf8)
            case "losetup" where command[1] == "--find":
                let device = "/dev/loop\(state.loops.count)"
                state.loops[device] = command.last
                output = device + "\n"
            case "losetup": state.loops[command[2]] = nil
            case "umount": state.mounts.remove(command.last ?? "")
            default: break
            }
            return CommandOutput(status: 0, output: output, errors: "")
        }
    }

    func launch(_ command: [String], logPath: String) throws -> Int32 {
        let complaint: String? = with { state in
            state.log.append(command.joined(separator: " "))
            return state.fuseDies ? "nbdfuse: cannot connect\n" : nil
        }
        if let complaint {
            try complaint.write(toFile: logPath, atomically: true, encoding: .utf8)
            return 3999
        }
        return with { state in
            // …/mnt/disk
            state.mounts.insert((command[command.count - 2] as NSString).deletingLastPathComponent)
            return state.start()
        }
    }

    func startTicks(of pid: Int32) -> UInt64? { with { $0.processes[pid] } }

    func stop(_ process: AttachmentRecord.BackgroundProcess, graceSeconds: Double) async {
        with { state in
            guard state.processes[process.pid] == process.startTicks else { return }
            state.log.append("stop \(process.command)")
            state.processes[process.pid] = nil
        }
    }

    func hasCommand(_ name: String) -> Bool { with { $0.commands.contains(name) } }

    func fileSize(_ path: String) -> UInt64? {
        if path.hasPrefix("/dev/") { return 0 }
        return with { state in
            state.mounts.contains((path as NSString).deletingLastPathComponent) ? 4096 : nil
        }
    }

    func isMountPoint(_ path: String) -> Bool { with { $0.mounts.contains(path) } }

    func loopDevices(backedBy path: String) -> [String] {
        with { state in state.loops.filter { $0.value == path }.map(\.key).sorted() }
    }

    func scsiDisk(naa: String) -> String? { with { $0.disk } }
    func hasKernelInitiator() async -> Bool { with { $0.hasKernelInitiator } }
    func uses(of device: String) -> [DeviceUse] { with { $0.uses } }
    func sleep(seconds: Double) async {}
}

extension FakeHost.State {
    mutating func start() -> Int32 {
        nextPid += 1
        processes[nextPid] = UInt64(nextPid) * 100
        return nextPid
    }
}

/// A node with one volume, `db`, and one snapshot of two volumes, `s1`.
final class FakeNode: AttachmentNode {
    struct State {
        var log: [String] = []
        var rules: [String: String?] = [:]
        var exports: Set<String> = []
        var isDown = false
        /// Sessions that are still seen this many times after a deny.
        var lingeringSessions = 0
        var allowFails = false
        var snapshotMembers = ["db", "logs"]
        var exportRequest: SnapshotExportRequest?
    }

    static let iqn = "iqn.2026-11.io.stillpoint:db"
    static let exportIQN = "iqn.2026-11.io.stillpoint:snapshot:s1"
    let state = Mutex(State())

    func with<Value: Sendable>(_ body: (inout sending State) -> sending Value) -> Value { state.withLock(body) }
    var log: [String] { with { $0.log } }
    var leftovers: [String] { with { Array($0.rules.keys) + $0.exports } }

    private func answer(_ what: String) throws {
        let isDown = with { state in
            state.log.append(what)
            return state.isDown
        }
        if isDown { throw NodeUnreachable(address: "http://node", cause: "it is down") }
    }

    private static func unknown(_ noun: String) -> APIFailure {
        APIFailure(status: 404, code: "\(noun)NotFound", message: "there is no such \(noun)")
    }

    func volume(_ name: String) async throws -> VolumeInfo {
        try answer("volume \(name)")
        guard name == "db" else { throw Self.unknown("volume") }
        return VolumeInfo(
            id: "1", name: "db", sizeBytes: 4096, mappedBytes: 0, naa: "65a53500000000000000000000000001",
            createdAt: Date(), exports: [ExportInfo(iqn: Self.iqn, lun: 0, portals: ["127.0.0.1:3260"])], cloneOf: nil,
            initiators: [], snapshotCount: 0)
    }

    func snapshot(_ idOrName: String) async throws -> SnapshotInfo {
        try answer("snapshot \(idOrName)")
        guard idOrName == "s1" else { throw Self.unknown("snapshot") }
        return SnapshotInfo(
            id: "snapshot-id", name: "s1", kind: .user, volumes: with { $0.snapshotMembers }, createdAt: Date(),
            requestedConsistency: .crash, achievedConsistency: .crash, quietSeconds: 0, sizeBytes: 8192, clones: [],
            evidence: nil)
    }

    func target(_ iqn: String) async throws -> TargetInfo {
        try answer("target \(iqn)")
        return info(iqn)
    }

    private func info(_ iqn: String) -> TargetInfo {
        with { state in
            var sessions: [SessionInfo] = []
            if state.lingeringSessions > 0 {
                state.lingeringSessions -= 1
                sessions = [
                    SessionInfo(
                        id: 1, target: "t", initiator: "iqn.2026-11.io.stillpoint:attach-host-1-db", address: "a",
                        tsih: 1)
                ]
            }
            return TargetInfo(
                iqn: iqn, portals: ["127.0.0.1:3260"],
                luns: [LUNInfo(lun: 0, volume: "db", naa: "65a535ff", isReadOnly: iqn == Self.exportIQN)],
                access: state.rules.sorted { $0.key < $1.key }
                    .map { AccessInfo(initiator: $0.key, chapUser: $0.value, isMutual: false) },
                sessions: sessions)
        }
    }

    func allow(_ request: TargetAllowRequest, on iqn: String) async throws -> TargetInfo {
        try answer("allow \(request.initiator)")
        let refused = with { state in
            if !state.allowFails { state.rules[request.initiator] = .some(request.chapUser) }
            return state.allowFails
        }
        if refused { throw APIFailure(status: 500, code: "catalogFailed", message: "the catalog failed") }
        return info(iqn)
    }

    func deny(_ initiator: String, on iqn: String) async throws -> TargetInfo {
        try answer("deny \(initiator)")
        guard with({ $0.rules.removeValue(forKey: initiator) != nil }) else { throw Self.unknown("rule") }
        return info(iqn)
    }

    func exportSnapshot(_ idOrName: String, _ request: SnapshotExportRequest) async throws -> ExportInfo {
        try answer("export \(idOrName) \(request.volume ?? "")")
        with { state in
            state.exports.insert(Self.exportIQN)
            state.exportRequest = request
        }
        return ExportInfo(iqn: Self.exportIQN, lun: 0, portals: ["127.0.0.1:3260"])
    }

    func removeSnapshotExport(_ idOrName: String, iqn: String) async throws {
        try answer("remove export \(idOrName)")
        with { _ = $0.exports.remove(iqn) }
    }
}
