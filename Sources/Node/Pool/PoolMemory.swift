import API
import BlockStore
import Foundation
import Glibc

/// A limit of this process's memory.
struct ProcessMemoryLimit: Sendable, Equatable {
    var bytes: UInt64
    /// What sets it, for people.
    var source: String
    /// What of it the node needs beside the pool: its code, threads, connections, catalog.
    var nodeBytes: UInt64

    /// Code, stacks and what is only reserved count as well.
    private static let addressBytes: UInt64 = 256 << 20
    private static let residentBytes: UInt64 = 96 << 20

    /// The limits that there are now.
    static func all() -> [ProcessMemoryLimit] {
        var limits: [ProcessMemoryLimit] = []
        if let bytes = resourceLimit(RLIMIT_AS) {
            // Threads that are still to come are among the least; more of them on a larger machine.
            let now = addressesInUse() + 128 << 20
            limits.append(
                ProcessMemoryLimit(
                    bytes: bytes, source: "the limit of its addresses (ulimit -v)",
                    nodeBytes: max(addressBytes, now)))
        }
        if let bytes = resourceLimit(RLIMIT_DATA) {
            limits.append(
                ProcessMemoryLimit(bytes: bytes, source: "the limit of its data (ulimit -d)", nodeBytes: addressBytes))
        }
        if let bytes = controlGroupLimit() {
            limits.append(
                ProcessMemoryLimit(
                    bytes: bytes, source: "the limit of its control group (memory.max)", nodeBytes: residentBytes))
        }
        limits.append(
            ProcessMemoryLimit(
                bytes: ProcessInfo.processInfo.physicalMemory, source: "the machine's memory", nodeBytes: residentBytes)
        )
        return limits
    }

    private static func resourceLimit(_ resource: __rlimit_resource) -> UInt64? {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(resource.rawValue), &limit) == 0, limit.rlim_cur != rlim_t.max else {
            return nil
        }
        return UInt64(limit.rlim_cur)
    }

    private static func addressesInUse() -> UInt64 {
        let pages = text("/proc/self/statm")?.split(separator: " ").first.flatMap { UInt64($0) }
        return (pages ?? 0) * UInt64(sysconf(Int32(_SC_PAGESIZE)))
    }

    /// The lowest of those of the group and of the groups above it, of either version of control groups.
    private static func controlGroupLimit() -> UInt64? {
        guard let groups = text("/proc/self/cgroup") else { return nil }
        return controlGroupFiles(groups).compactMap { text($0) }.compactMap {
            UInt64($0.trimmingCharacters(in: .whitespacesAndNewlines))
        }
        // Version 1 says "none" as the largest number of whole pages.
        .filter { $0 < 1 << 62 }.min()
    }

    /// The files that may hold a limit, for what `/proc/self/cgroup` says. In a container the group's path may be one
    /// that only the host knows; the file at the top is then its own.
    static func controlGroupFiles(_ groups: String) -> [String] {
        groups.split(separator: "\n").flatMap { line -> [String] in
            let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard fields.count == 3 else { return [] }
            let isOld = fields[1].split(separator: ",").contains("memory")
            guard isOld || (fields[0] == "0" && fields[1].isEmpty) else { return [] }
            let top = isOld ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup"
            let file = isOld ? "memory.limit_in_bytes" : "memory.max"
            var names = fields[2].split(separator: "/")
            var files: [String] = []
            while true {
                files.append(([top] + names.map(String.init) + [file]).joined(separator: "/"))
                if names.popLast() == nil { return files }
            }
        }
    }

    private static func text(_ path: String) -> String? { try? String(contentsOfFile: path, encoding: .utf8) }
}

/// How much memory the pool gets: what is configured, or 768 MiB, or less where the process has not as much.
struct PoolMemoryChoice: Sendable, Equatable {
    var bytes: UInt64
    /// Why it is less than usual; nil where it is not.
    var reason: String?

    static let usualBytes: UInt64 = 768 << 20

    /// - Throws: ``ServeFailure`` where what is configured, or the least that a pool needs, does not fit.
    init(configured: UInt64?, limits: [ProcessMemoryLimit]) throws(ServeFailure) {
        let least = PoolOptions.leastMemoryBytes
        bytes = configured ?? Self.usualBytes
        for limit in limits {
            let room = limit.bytes > limit.nodeBytes ? limit.bytes - limit.nodeBytes : 0
            let has = "the node may use \(Self.mebibytes(limit.bytes)) because of \(limit.source)"
            let needs = "it needs \(Self.mebibytes(limit.nodeBytes)) for itself"
            if let configured {
                guard configured > room else { continue }
                throw ServeFailure(
                    "pool.memory is \(Self.mebibytes(configured)), which does not fit: \(has), and \(needs). "
                        + "Configure less (at least \(Self.mebibytes(least))), or nothing, or raise the limit")
            }
            // A quarter is for what the C library cannot give back at once.
            let share = room / 4 * 3
            guard share >= least else {
                throw ServeFailure(
                    "\(has); \(needs), and at least \(Self.mebibytes(least / 3 * 4)) for the pool: raise the limit")
            }
            guard share < bytes else { continue }
            bytes = share
            reason = "\(Self.mebibytes(share)) instead of \(Self.mebibytes(Self.usualBytes)): \(has)"
        }
    }

    private static func mebibytes(_ bytes: UInt64) -> String { "\(bytes >> 20)MiB" }
}
