import CLinux
import Glibc
import PluginKit
import Synchronization

/// A file system that is to be frozen: opened, and known to be the one that is meant.
final class FreezeTarget: Sendable {
    let resource: String
    let mountPoint: String
    let isReadOnly: Bool
    let record: FreezeRecord
    let descriptor: Int32

    /// - Throws: `refused` when what is opened is not that mount: a plain directory would freeze the file system
    /// that it
    ///   lies on.
    init(_ resource: String, _ entry: MountEntry) throws(PluginFailure) {
        let descriptor = open(entry.mountPoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)
        guard descriptor >= 0 else {
            throw PluginFailure(.quiesceFailed, "\(entry.mountPoint) cannot be opened: \(errorText(errno))")
        }
        let status = fileStatus("/proc/self/fd/\(descriptor)")
        let mountLine = readText("/proc/self/fdinfo/\(descriptor)")?.split(separator: "\n" as Character)
            .first { $0.hasPrefix("mnt_id:") }
        let mountID = mountLine.flatMap { Int($0.dropFirst(7).filter(\.isNumber)) }
        let number = status.map { DeviceNumber(UInt64($0.st_dev)) }
        // btrfs gives each subvolume a number of its own, so that only the mount's own number tells there.
        let isSame = number == entry.superblock || entry.superblock.major == 0
        guard mountID == entry.id, isSame, let identity = FileSystemIdentity(descriptor: descriptor) else {
            close(descriptor)
            throw PluginFailure(
                .refused, "\(entry.mountPoint) is not the mount point it was a moment ago", hint: "Discover again")
        }
        self.resource = resource
        self.descriptor = descriptor
        mountPoint = entry.mountPoint
        isReadOnly = entry.isReadOnly
        record = FreezeRecord(
            step: .intent, resource: entry.mountPoint, superblock: "\(entry.superblock)", fsid: identity.fsid)
    }

    deinit { close(descriptor) }

    func record(_ step: FreezeRecord.Step) -> FreezeRecord {
        var record = record
        record.step = step
        return record
    }
}

/// A process that waits in the kernel for as long as the file system is frozen (clinux_canary_start).
final class Canary: Sendable {
    private enum Song { case silent, freezeEnded, useless }

    let descriptor: Int32
    private let processID: pid_t
    private let song = Mutex(Song.silent)

    init?(_ target: FreezeTarget) {
        var descriptor: Int32 = -1
        var pid: pid_t = 0
        let name = "\(target.mountPoint)/.stillpoint-freeze-canary-\(UInt64.random(in: 0 ... .max))"
        guard clinux_canary_start(name, &descriptor, &pid) == 0 else { return nil }
        self.descriptor = descriptor
        processID = pid
    }

    deinit { close(descriptor) }

    /// Whether the freeze has ended since, whoever ended it.
    var freezeEnded: Bool {
        song.withLock { song in
            var polled = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            if song == .silent, poll(&polled, 1, 0) > 0 {
                var code: UInt8 = 0
                // ENOENT: it got through to the directory. Anything else, or nothing because it was killed, says
                // nothing about the freeze.
                song = read(descriptor, &code, 1) == 1 && Int32(code) == ENOENT ? .freezeEnded : .useless
            }
            return song == .freezeEnded
        }
    }

    /// Whether it is still there to tell.
    var isWatching: Bool { !freezeEnded && song.withLock { $0 == .silent } }

    /// After the thaw: it ends by itself, at once.
    func reap() { while waitpid(processID, nil, 0) < 0 && errno == EINTR {} }
}

/// File systems that are frozen.
final class FreezeHold: PluginHold {
    struct Member: Sendable {
        var target: FreezeTarget
        var canary: Canary?
        var frozenAt: MonotonicInstant
        var quiesceSeconds: Double
    }

    private let frozen: [Member]
    private let journal: HoldJournal<FreezeRecord>
    private let stopWatching: WakeDescriptor

    init(_ frozen: [Member], journal: HoldJournal<FreezeRecord>, lease: HoldLease, wakeup: WakeDescriptor) {
        self.frozen = frozen
        self.journal = journal
        stopWatching = wakeup
        let watched = frozen
        OwnThread.start { Self.watch(watched, lease: lease, stop: wakeup) }
    }

    var members: [QuiesceResult.Member] {
        frozen.map { QuiesceResult.Member(resource: $0.target.resource, quiesceSeconds: $0.quiesceSeconds) }
    }

    /// Reports a thaw by somebody else when it happens, not only at the release.
    private static func watch(_ members: [Member], lease: HoldLease, stop: WakeDescriptor) {
        var open = members.filter { $0.canary != nil }
        while !open.isEmpty {
            var polled = open.map { pollfd(fd: $0.canary!.descriptor, events: Int16(POLLIN), revents: 0) }
            polled.append(pollfd(fd: stop.descriptor, events: Int16(POLLIN), revents: 0))
            _ = poll(&polled, nfds_t(polled.count), -1)
            if polled[open.count].revents != 0 { return }
            open.removeAll { member in
                if member.canary!.freezeEnded {
                    lease.reportLost(
                        resource: member.target.resource,
                        reason: "somebody else thawed \(member.target.mountPoint) during the hold")
                }
                return !member.canary!.isWatching
            }
        }
    }

    /// FITHAW succeeds only on a file system that is frozen: on one that somebody thawed meanwhile it fails with
    /// EINVAL.
    /// That alone would not notice a thaw that was followed by another freeze. The canary does: it was started
    /// inside our
    /// freeze and gets through at the first thaw. So: canary silent until now, and FITHAW successful, means that the
    /// freeze which ends here is the one that began with the quiesce.
    func release(_ reason: ReleaseReason) async -> [UnquiesceResult.Member] {
        stopWatching.wake()
        return await withTaskGroup(of: (Int, UnquiesceResult.Member).self) { group in
            for (index, member) in frozen.enumerated() {
                group.addTask { [journal] in (index, await OwnThread.run { Self.thaw(member, journal) }) }
            }
            var results: [(Int, UnquiesceResult.Member)] = []
            for await result in group { results.append(result) }
            let members = results.sorted { $0.0 < $1.0 }.map(\.1)
            if members.allSatisfy({ $0.mayBeQuiesced != true }) { journal.remove() }
            return members
        }
    }

    private static func thaw(_ member: Member, _ journal: HoldJournal<FreezeRecord>) -> UnquiesceResult.Member {
        let endedBefore = member.canary?.freezeEnded ?? false
        let isProven = member.target.isReadOnly || (member.canary?.isWatching ?? false)
        let code = clinux_thaw(member.target.descriptor)
        let quiet = MonotonicInstant.now.seconds(since: member.frozenAt)
        PausePoint.reachBlocking("plugin.filesystem.thaw.after")
        try? journal.append(member.target.record(code == 0 || code == EINVAL ? .thawed : .frozen))
        if code == 0 || code == EINVAL { member.canary?.reap() }
        let failure: String? =
            switch code {
            case 0 where endedBefore: "Somebody else thawed it during the hold and froze it again"
            case 0 where !isProven: "Nothing watched the freeze: that it lasted is not proven"
            case 0: nil
            case EINVAL: "Somebody else thawed it during the hold"
            default: "It could not be thawed: \(errorText(code))"
            }
        return UnquiesceResult.Member(
            resource: member.target.resource, stillHeld: failure == nil, quietSeconds: quiet, failure: failure,
            mayBeQuiesced: code == 0 || code == EINVAL ? nil : true)
    }
}
