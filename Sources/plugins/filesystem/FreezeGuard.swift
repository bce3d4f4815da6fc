import Glibc
import PluginKit

/// Says which file systems may be frozen, and why others may not.
struct FreezeGuard {
    /// Those with a freeze of their own in the kernel that leaves nothing for the journal to repair.
    static let freezableTypes: Set = [
        "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "gfs2", "reiserfs", "bcachefs",
    ]
    /// A freeze of these stops half the machine, the way from a log line to its file included.
    static let loggingPaths = ["/var/log", "/var/lib/systemd", "/tmp", "/var/tmp", "/etc", "/home", "/root"]

    private let mounts: MountTable
    /// Superblocks that must not be frozen, and for which path.
    private var protected: [DeviceNumber: String] = [:]

    init(mounts: MountTable, stateDirectory: String, protectedPaths: [String]) {
        self.mounts = mounts
        var paths = [stateDirectory, linkTarget("/proc/self/exe") ?? ""]
        let parent = getppid()
        if parent > 1, let executable = linkTarget("/proc/\(parent)/exe") { paths.append(executable) }
        for path in paths + protectedPaths where path.hasPrefix("/") {
            guard let mount = mounts.mount(containing: Self.existing(path)) else { continue }
            protected[mount.superblock] = protected[mount.superblock] ?? path
        }
    }

    /// The path, or the part of it that is there, without symbolic links.
    private static func existing(_ path: String) -> String {
        var rest = path
        while !rest.isEmpty {
            if let resolved = resolvedPath(rest) { return resolved }
            rest = String(rest[..<(rest.lastIndex(of: "/") ?? rest.startIndex)])
        }
        return "/"
    }

    /// The mount that a resource means now.
    ///
    /// - Throws: `unknownResource` when nothing, or another file system, is mounted there by now.
    func mount(of resource: PluginResource) throws(PluginFailure) -> MountEntry {
        guard let entry = mounts.mount(at: resource.id) else {
            throw PluginFailure(
                .unknownResource, "\(resource.id) is not a mount point",
                hint: "Was it unmounted? Discover again")
        }
        if let expected = resource.details["superblock"], expected != "\(entry.superblock)" {
            throw PluginFailure(
                .unknownResource, "Another file system is mounted at \(resource.id) than was discovered there",
                hint: "Discover again")
        }
        return entry
    }

    /// - Throws: `refused` when it must not be frozen, or cannot be.
    func check(_ entry: MountEntry) throws(PluginFailure) {
        try checkUse(entry)
        if !Self.freezableTypes.contains(entry.type) {
            throw PluginFailure(
                .refused, "\(entry.mountPoint) is \(entry.type), which cannot be frozen",
                hint: "Take a crash-consistent snapshot of it, or protect its applications with a hook")
        }
    }

    /// - Throws: `refused` when the machine or the agent needs it all the time.
    func checkUse(_ entry: MountEntry) throws(PluginFailure) {
        if entry.mountPoint == "/" {
            throw PluginFailure(
                .refused, "The root file system cannot be frozen or unmounted: the machine runs on it",
                hint: "Put the data on a volume of its own")
        }
        if let path = protected[entry.superblock] {
            throw PluginFailure(
                .refused, "\(entry.mountPoint) holds \(path), which must work all the time",
                hint: "Move the agent, its plug-ins and its state directory to another file system")
        }
    }

    func findings(_ resource: PluginResource) -> [PluginFinding] {
        let entry: MountEntry
        do throws(PluginFailure) {
            entry = try mount(of: resource)
            try check(entry)
        } catch {
            return [PluginFinding(.error, resource: resource.id, error.message, hint: error.hint)]
        }
        var findings: [PluginFinding] = []
        if let others = resource.details["otherDevices"] {
            findings.append(
                PluginFinding(
                    .error, resource: resource.id, "\(resource.id) lies also on \(others), which no cut covers",
                    hint: "Add the volume behind it to the snapshot, or move the file system to volumes of its own"))
        }
        if entry.isReadOnly {
            findings.append(PluginFinding(.note, resource: resource.id, "\(resource.id) is read-only: it is at rest"))
        }
        for path in Self.loggingPaths where mounts.mount(containing: path)?.superblock == entry.superblock {
            findings.append(
                PluginFinding(
                    .warning, resource: resource.id,
                    "\(resource.id) holds \(path): many programs stop while it is frozen",
                    hint: "Put the data on a volume of its own"))
        }
        return findings
    }
}
