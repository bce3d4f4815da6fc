import Glibc
import PluginKit

/// Unmounts the file systems on the volumes, so that the volumes can be changed under them.
struct Unmounting {
    private static let attempts = 10
    private static let pauseMicroseconds: UInt32 = 300_000

    private let parameters: RestoreParameters
    private let guardian: FreezeGuard
    private let topology = BlockTopology()
    private let table = MountTable.current()

    init(_ parameters: RestoreParameters) {
        self.parameters = parameters
        guardian = FreezeGuard(
            mounts: table, stateDirectory: parameters.stateDirectory, protectedPaths: parameters.protectedPaths ?? [])
    }

    func run() throws(PluginFailure) -> RestoreResult {
        let path = try RestoreState.path(parameters)
        if let done = try RestoreState.read(path), parameters.resources.allSatisfy({ table.mount(at: $0.id) == nil }) {
            return RestoreResult(steps: done.mounts.map { "\($0.mountPoint) is unmounted already" })
        }
        var mounts: [(MountEntry, String)] = []
        // Those that carry guests, too: their guests were stopped before.
        for resource in parameters.resources
        where resource.layer == .fileSystem || resource.layer == .hostFileSystem {
            guard let entry = table.mount(at: resource.id) else { continue }
            _ = try guardian.mount(of: resource)
            try guardian.checkUse(entry)
            mounts += table.entries.filter { $0.superblock == entry.superblock }.map { ($0, resource.id) }
        }
        // Mounting numbers grow, and what was mounted later may lie on what was mounted before.
        let order = Dictionary(uniqueKeysWithValues: table.entries.enumerated().map { ($1.id, $0) })
        mounts.sort { (order[$0.0.id] ?? 0) < (order[$1.0.id] ?? 0) }
        let state = RestoreState(mounts: mounts.map { remembered($0.0, $0.1) })
        try state.write(path)
        var done: [RestoreState.Mount] = []
        for (mount, entry) in zip(state.mounts, mounts.map(\.0)).reversed() {
            do throws(PluginFailure) {
                try unmount(entry)
                done.append(mount)
            } catch {
                // As it was before: all or none.
                for undone in done.reversed() { _ = try? Mounting(parameters).mount(undone) }
                unlink(path)
                throw error
            }
        }
        return RestoreResult(steps: done.map { "Unmounted \($0.mountPoint) (\($0.type) on \($0.source))" })
    }

    private func remembered(_ entry: MountEntry, _ resource: String) -> RestoreState.Mount {
        var mount = RestoreState.Mount(
            mountPoint: entry.mountPoint, type: entry.type, root: entry.root, options: entry.options,
            superOptions: entry.superOptions, source: entry.source, volume: nil, partition: nil, resource: resource)
        guard let number = BlockTopology.number(ofPath: entry.source) else { return mount }
        let status = resolvedPath("/sys/dev/block/\(number)/..")
        for device in parameters.devices {
            guard let own = BlockTopology.number(ofPath: device.path) else { continue }
            if own == number {
                mount.volume = device.volume
            } else if let partition = topology.partition(number), status == resolvedPath("/sys/dev/block/\(own)") {
                mount.volume = device.volume
                mount.partition = partition
            }
        }
        return mount
    }

    private func unmount(_ entry: MountEntry) throws(PluginFailure) {
        var code: Int32 = 0
        for attempt in 0..<Self.attempts {
            if umount2(entry.mountPoint, Int32(UMOUNT_NOFOLLOW)) == 0 { return }
            code = errno
            guard code == EBUSY else { break }
            if attempt + 1 < Self.attempts { usleep(Self.pauseMicroseconds) }
        }
        guard code == EBUSY else {
            throw PluginFailure(.restoreFailed, "\(entry.mountPoint) cannot be unmounted: \(errorText(code))")
        }
        let users = MountUsers(mountPoint: entry.mountPoint, table: .current()).describe()
        throw PluginFailure(
            .inUse,
            "\(entry.mountPoint) cannot be unmounted: it is in use"
                + (users.isEmpty ? "" : " by \(users.joined(separator: ", "))"),
            hint: "End what uses it, then try again")
    }
}

/// Who keeps a mount busy.
struct MountUsers {
    private static let maximumNamed = 12

    var mountPoint: String
    var table: MountTable

    func describe() -> [String] {
        var users: [String] = []
        for entry in table.entries where entry.mountPoint != mountPoint && entry.mountPoint.isBelow(mountPoint) {
            users.append("the file system mounted at \(entry.mountPoint)")
        }
        for device in directoryEntries("/sys/block").sorted() {
            let backing = readText("/sys/block/\(device)/loop/backing_file")?.trimmedOfSpace
            if backing?.isBelow(mountPoint) == true { users.append("the loop device /dev/\(device)") }
        }
        for line in (readText("/proc/swaps") ?? "").split(separator: "\n" as Character) {
            let file = line.prefix { $0 != " " }
            if String(file).isBelow(mountPoint) { users.append("the swap file \(file)") }
        }
        for process in directoryEntries("/proc").compactMap({ Int32($0) }).sorted() {
            guard let reason = use(of: process) else { continue }
            let name = readText("/proc/\(process)/comm")?.trimmedOfSpace ?? "?"
            users.append("process \(process) (\(name), \(reason))")
        }
        let rest = users.count - Self.maximumNamed
        return rest > 0 ? users.prefix(Self.maximumNamed) + ["\(rest) more"] : users
    }

    private func use(of process: Int32) -> String? {
        let base = "/proc/\(process)"
        for (link, reason) in [("cwd", "its working directory"), ("root", "its root"), ("exe", "its program")]
        where linkTarget("\(base)/\(link)")?.isBelow(mountPoint) == true {
            return reason
        }
        for descriptor in directoryEntries("\(base)/fd") {
            if let target = linkTarget("\(base)/fd/\(descriptor)"), target.isBelow(mountPoint) {
                return "has \(target) open"
            }
        }
        for line in (readText("\(base)/maps") ?? "").split(separator: "\n" as Character) {
            if let slash = line.firstIndex(of: "/"), String(line[slash...]).isBelow(mountPoint) {
                return "has \(line[slash...]) mapped"
            }
        }
        return nil
    }
}
