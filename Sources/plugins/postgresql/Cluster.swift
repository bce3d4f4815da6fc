import Glibc
import PluginKit

/// A PostgreSQL server that runs on this host.
struct Cluster: Sendable, Equatable {
    var dataDirectory: String
    var processID: Int32
    var owner: UserIdentity
    /// Of the `postgres` program.
    var executable: String
    var port: Int
    /// Nil when it listens on no Unix socket.
    var socketDirectory: String?
    var listenAddress: String

    /// A line a human reads in an error.
    var name: String { "PostgreSQL in \(dataDirectory)" }

    /// Where its other files lie, by what they are; without symbolic links.
    var paths: [String: String] {
        var paths = ["data": dataDirectory]
        if let wal = resolvedPath(dataDirectory + "/pg_wal") { paths["wal"] = wal }
        for entry in directoryEntries(dataDirectory + "/pg_tblspc") {
            if let path = resolvedPath("\(dataDirectory)/pg_tblspc/\(entry)") { paths["tablespace \(entry)"] = path }
        }
        return paths
    }

    /// Those found among the processes, and what could not be looked at.
    static func running() -> (clusters: [Cluster], warnings: [String]) {
        var clusters: [Cluster] = []
        var warnings: [String] = []
        let ownNamespace = linkTarget("/proc/self/ns/mnt")
        var foreign = 0
        for process in directoryEntries("/proc").compactMap({ Int32($0) }).sorted() {
            guard let executable = linkTarget("/proc/\(process)/exe").map(withoutDeleted),
                ["postgres", "postmaster"].contains(String(executable.split(separator: "/").last ?? ""))
            else { continue }
            guard linkTarget("/proc/\(process)/ns/mnt") == ownNamespace else {
                foreign += 1
                continue
            }
            // The postmaster works in its data directory, and so do its children; its file tells which one it is.
            guard let directory = linkTarget("/proc/\(process)/cwd").flatMap(resolvedPath),
                let status = fileStatus("/proc/\(process)"), let data = fileStatus(directory)
            else { continue }
            guard let lines = postmasterFile(directory), Int32(lines[0]) == process else { continue }
            // Whoever calls a program of his `postgres` gets nothing done as somebody else.
            guard status.st_uid == data.st_uid, status.st_uid != 0 else {
                warnings.append("process \(process) in \(directory) does not run as the directory's owner; left alone")
                continue
            }
            guard let owner = try? UserIdentity(uid: status.st_uid), let port = Int(lines[3]) else {
                warnings.append("\(directory)/postmaster.pid is not understood")
                continue
            }
            clusters.append(
                Cluster(
                    dataDirectory: directory, processID: process, owner: owner, executable: executable, port: port,
                    socketDirectory: lines[4].isEmpty ? nil : lines[4], listenAddress: lines[5]))
        }
        if foreign > 0 {
            warnings.append("\(foreign) PostgreSQL processes run in containers and are not looked at")
        }
        return (clusters, warnings)
    }

    static func running(in dataDirectory: String) -> Cluster? {
        let resolved = resolvedPath(dataDirectory) ?? dataDirectory
        return running().clusters.first { $0.dataDirectory == resolved }
    }

    /// The lines of postmaster.pid: process, data directory, start time, port, socket directory, address, and more.
    private static func postmasterFile(_ directory: String) -> [String]? {
        let lines = readText(directory + "/postmaster.pid")?
            .split(separator: "\n" as Character, omittingEmptySubsequences: false)
            .map { $0.trimmedOfSpace }
        return lines.flatMap { $0.count >= 6 ? $0 : nil }
    }

    /// A program that was replaced by an update while it ran.
    private static func withoutDeleted(_ path: String) -> String {
        path.hasSuffix(" (deleted)") ? String(path.dropLast(10)) : path
    }
}

/// Which file systems, and through them which volumes, a cluster lies on.
struct Placement {
    var volumes: Set<String> = []
    var mountPoints: Set<String> = []
    /// What lies elsewhere: `wal: /other/pg_wal`.
    var outside: [String] = []

    init(_ cluster: Cluster, fileSystems: [PluginResource], mounts: MountTable) {
        for (what, path) in cluster.paths.sorted(by: { $0.key < $1.key }) {
            let mount = mounts.mount(containing: path)
            let fileSystem = fileSystems.first { resource in
                resource.layer == .fileSystem && mount != nil
                    && (resource.details["superblock"] ?? mounts.mount(at: resource.id).map { "\($0.superblock)" })
                        == mount.map { "\($0.superblock)" }
            }
            if let fileSystem {
                volumes.formUnion(fileSystem.volumes)
                mountPoints.insert(fileSystem.id)
            } else {
                outside.append("\(what): \(path)")
            }
        }
    }
}
