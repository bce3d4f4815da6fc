import CLinux
import Glibc
import PluginKit

/// Mounts again what `Unmounting` unmounted, from the volumes' devices as they are now.
struct Mounting {
    private static let deviceWaitSeconds = 10.0
    /// Options of a mount (not of its file system), as mountinfo writes them and as mount(2) takes them.
    private static let flags: [String: UInt] = [
        "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "mand": 64, "dirsync": 128, "noatime": 1_024,
        "nodiratime": 2_048, "relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25,
        "nosymfollow": 256,
    ]
    private static let readOnly: UInt = 1
    private static let bind: UInt = 4_096
    private static let remount: UInt = 32

    private let parameters: RestoreParameters
    private let topology = BlockTopology()

    init(_ parameters: RestoreParameters) { self.parameters = parameters }

    func run() throws(PluginFailure) -> RestoreResult {
        let path = try RestoreState.path(parameters)
        guard let state = try RestoreState.read(path) else {
            return RestoreResult(steps: [])
        }
        var steps: [String] = []
        for mount in state.mounts { steps.append(try self.mount(mount)) }
        unlink(path)
        return RestoreResult(steps: steps)
    }

    /// - Returns: what was done, one sentence.
    func mount(_ mount: RestoreState.Mount) throws(PluginFailure) -> String {
        let table = MountTable.current()
        let source = try device(mount)
        let number = BlockTopology.number(ofPath: source)
        if let there = table.mount(at: mount.mountPoint), there.type == mount.type,
            there.superblock == number || BlockTopology.number(ofPath: there.source) == number
        {
            return "\(mount.mountPoint) is mounted already"
        }
        forgetCachedBlocks(source, table)
        let flags = mount.options.reduce(UInt(0)) { $0 | (Self.flags[$1] ?? 0) }
        let superReadOnly = mount.superOptions.contains("ro") ? Self.readOnly : 0
        // `ro` and `rw` of the file system are a flag; the rest goes to it as text.
        let data = mount.superOptions.filter { !["rw", "ro", "seclabel"].contains($0) }.joined(separator: ",")
        // One that shows a part (a bind mount) is mounted as such; btrfs names the part in its options.
        if mount.root != "/", mount.type != "btrfs" { return try bindMount(mount, number, flags) }
        var code = call(source, mount, flags | superReadOnly, data)
        var note = ""
        if code == EINVAL, !data.isEmpty {
            // Not everything that mountinfo shows is taken back by every kernel.
            code = call(source, mount, flags | superReadOnly, "")
            note = ", without the options \(data)"
        }
        guard code == 0 else {
            throw PluginFailure(
                .restoreFailed, "\(source) cannot be mounted on \(mount.mountPoint): \(errorText(code))",
                hint: "The volume is restored. Look at it with fsck, mount it by hand, and start what was stopped")
        }
        return
            "Mounted \(source) on \(mount.mountPoint) (\(mount.type), \(mount.options.joined(separator: ","))\(note))"
    }

    private func call(_ source: String, _ mount: RestoreState.Mount, _ flags: UInt, _ data: String) -> Int32 {
        Glibc.mount(source, mount.mountPoint, mount.type, flags, data) == 0 ? 0 : errno
    }

    private func bindMount(
        _ mount: RestoreState.Mount, _ number: DeviceNumber?, _ flags: UInt
    ) throws(PluginFailure) -> String {
        let whole = MountTable.current().entries.first { $0.superblock == number && $0.root == "/" }
        guard let whole else {
            throw PluginFailure(
                .restoreFailed, "\(mount.mountPoint) showed \(mount.root) of \(mount.source), which is mounted nowhere",
                hint: "Mount it by hand")
        }
        let from = (whole.mountPoint == "/" ? "" : whole.mountPoint) + mount.root
        guard Glibc.mount(from, mount.mountPoint, nil, Self.bind, nil) == 0,
            Glibc.mount(nil, mount.mountPoint, nil, Self.bind | Self.remount | flags, nil) == 0
        else {
            throw PluginFailure(
                .restoreFailed, "\(from) cannot be mounted on \(mount.mountPoint): \(errorText(errno))",
                hint: "Mount it by hand")
        }
        return "Mounted \(from) on \(mount.mountPoint)"
    }

    /// The path of what is to be mounted; waits for it to appear.
    private func device(_ mount: RestoreState.Mount) throws(PluginFailure) -> String {
        let deadline = MonotonicInstant.now.advanced(bySeconds: Self.deviceWaitSeconds)
        while true {
            if let path = devicePath(mount), BlockTopology.number(ofPath: path) != nil { return path }
            guard deadline > .now else { break }
            usleep(100_000)
        }
        let what =
            mount.volume.map { volume in
                mount.partition.map { "Partition \($0) of volume \(volume)" } ?? "Volume \(volume)"
            } ?? mount.source
        throw PluginFailure(
            .restoreFailed, "\(what) is not there to be mounted on \(mount.mountPoint)",
            hint: "Attach the volume again and repeat the finish")
    }

    private func devicePath(_ mount: RestoreState.Mount) -> String? {
        guard let volume = mount.volume else { return mount.source }
        guard let path = parameters.devices.first(where: { $0.volume == volume })?.path else { return nil }
        guard let partition = mount.partition else { return path }
        return BlockTopology.number(ofPath: path).flatMap {
            topology.partitionPath(disk: $0, partition: partition)
        }
    }

    /// What the kernel still knows of the device from before the restore must not be seen. Not while it is mounted:
    /// then nothing is stale, and what is dirty is the file system's.
    private func forgetCachedBlocks(_ source: String, _ table: MountTable) {
        guard let number = BlockTopology.number(ofPath: source),
            !table.entries.contains(where: { $0.superblock == number })
        else { return }
        let descriptor = open(source, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        _ = clinux_forget_cached_blocks(descriptor)
        close(descriptor)
    }
}
