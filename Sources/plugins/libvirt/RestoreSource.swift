import Glibc
import PluginKit

/// A clone of a volume with a file system, attached and mounted on this host for as long as something is read from it.
final class RestoreSource {
    let name: String
    let mountPoint: String
    private let runDirectory: String
    private let program: String
    private var isAttached = false
    private var isMounted = false

    private static let parent = "/run/stillpoint-restore"
    private static func runDirectory(_ restoreID: String) -> String { "\(parent)/\(restoreID)" }

    private static let attachSeconds = 60.0
    private static let mountSeconds = 120.0

    /// Attaches and mounts.
    ///
    /// - Throws: `restoreFailed`; then nothing is left behind.
    init(_ source: RestoreCall.Source, restoreID: String) throws(PluginFailure) {
        name = source.name
        // Not under the agent's own directory: the agent would take the clone for a volume that it protects.
        runDirectory = Self.runDirectory(restoreID)
        mountPoint = "\(runDirectory)/mnt-\(source.name)"
        program = try Self.locate()
        for directory in [Self.parent, runDirectory, mountPoint] {
            guard mkdir(directory, 0o700) == 0 || errno == EEXIST else {
                throw PluginFailure(.operatingSystem, "The directory \(directory) cannot be made: \(errorText(errno))")
            }
        }
        do throws(PluginFailure) {
            let device = try attach(source.export)
            try mount(device)
        } catch {
            close()
            throw error
        }
    }

    deinit { close() }

    /// The command line tool knows how to make a block device of a LUN, with and without the kernel's initiator.
    private static func locate() throws(PluginFailure) -> String {
        let own = linkTarget("/proc/self/exe").flatMap { path in path.lastIndex(of: "/").map { path[..<$0] } } ?? ""
        let places = ["\(own)/stillpoint", "/usr/bin/stillpoint", "/usr/local/bin/stillpoint"]
        guard let found = places.first(where: { access($0, X_OK) == 0 }) else {
            throw PluginFailure(
                .restoreFailed, "Files cannot be copied out of a clone: the program stillpoint is not on this host",
                hint: "Install it beside the agent")
        }
        return found
    }

    private func run(_ arguments: [String], seconds: Double) throws(PluginFailure) -> Command.Outcome {
        try Self.run(arguments, in: runDirectory, seconds: seconds)
    }

    private static func run(
        _ arguments: [String], in runDirectory: String, seconds: Double
    ) throws(PluginFailure) -> Command.Outcome {
        var environment = Command.cleanEnvironment
        environment["STILLPOINT_RUN_DIR"] = runDirectory
        return try Command(arguments, environment: environment, timeoutSeconds: seconds).run()
    }

    private func attach(_ export: RestoreCall.Export) throws(PluginFailure) -> String {
        isAttached = true
        let outcome = try run(
            [
                program, "volume", "attach-target", name, "--portal", export.portal, "--iqn", export.iqn, "--lun",
                "\(export.lun)", "--initiator", export.initiator,
            ], seconds: Self.attachSeconds)
        let device = outcome.output.split(separator: "\n").last.map(String.init) ?? ""
        guard outcome.isSuccess, device.hasPrefix("/dev/") else {
            throw PluginFailure(
                .restoreFailed,
                "The clone \(name) could not be attached: stillpoint volume attach-target "
                    + outcome.explanation,
                hint: "Can this host reach \(export.portal)?")
        }
        return device
    }

    private func mount(_ device: String) throws(PluginFailure) {
        // Read-write: it is a clone, and a journal may have to be replayed. XFS refuses a second copy of itself
        // unless it is told that it is one.
        let type =
            try run(["/usr/sbin/blkid", "-p", "-o", "value", "-s", "TYPE", device], seconds: 30).output
            .split(separator: "\n").last.map(String.init) ?? ""
        let options = type == "xfs" ? "nouuid,nosuid,nodev,noexec" : "nosuid,nodev,noexec"
        let outcome = try run(["/usr/bin/mount", "-o", options, device, mountPoint], seconds: Self.mountSeconds)
        guard outcome.isSuccess else {
            throw PluginFailure(
                .restoreFailed,
                "The file system on the clone \(name) could not be mounted: mount \(outcome.explanation)",
                hint: "Is it a file system by itself? One over several volumes cannot be read from one clone")
        }
        isMounted = true
    }

    /// Unmounts and detaches; repeated, it does nothing.
    func close() {
        if isMounted { Self.unmount(mountPoint, runDirectory) }
        isMounted = false
        if isAttached { Self.detach(name, program, runDirectory) }
        isAttached = false
        rmdir(mountPoint)
        Self.removeDirectory(runDirectory)
    }

    private static func unmount(_ mountPoint: String, _ runDirectory: String) {
        let outcome = try? run(["/usr/bin/umount", mountPoint], in: runDirectory, seconds: mountSeconds)
        if outcome?.isSuccess == true { return }
        _ = try? run(["/usr/bin/umount", "-l", mountPoint], in: runDirectory, seconds: 30)
    }

    private static func detach(_ name: String, _ program: String, _ runDirectory: String) {
        let outcome = try? run([program, "volume", "detach", name], in: runDirectory, seconds: attachSeconds)
        if outcome?.isSuccess == true { unlink("\(runDirectory)/attachments/.\(name).lock") }
    }

    /// What is still attached keeps its records, and the directory.
    private static func removeDirectory(_ runDirectory: String) {
        for name in ["attachments", "attach"] { rmdir("\(runDirectory)/\(name)") }
        rmdir(runDirectory)
    }

    /// Takes away what a step of a restore left that was killed.
    static func cleanUp(restoreID: String) {
        let directory = runDirectory(restoreID)
        guard fileStatus(directory) != nil, let program = try? locate() else { return }
        for entry in directoryEntries(directory) where entry.hasPrefix("mnt-") {
            let mountPoint = "\(directory)/\(entry)"
            if MountTable.current().mount(at: mountPoint) != nil { unmount(mountPoint, directory) }
            rmdir(mountPoint)
        }
        for entry in directoryEntries("\(directory)/attachments") where entry.hasPrefix(".") {
            if entry.hasSuffix(".state") { detach(String(entry.dropFirst().dropLast(6)), program, directory) }
        }
        for entry in directoryEntries("\(directory)/attachments") where entry.hasSuffix(".lock") {
            // Nothing was begun under this name, or all of it is gone.
            let state = "\(directory)/attachments/\(entry.dropLast(5)).state"
            if fileStatus(state) == nil { unlink("\(directory)/attachments/\(entry)") }
        }
        removeDirectory(directory)
    }

    /// The whole path of a file of the source.
    ///
    /// - Throws: `restoreFailed` for a path that leads out of it, or a file that is not there.
    func path(_ relative: String) throws(PluginFailure) -> String {
        let whole = "\(mountPoint)/\(relative)"
        // Symbolic links within the clone belong to the past; none may lead into the present.
        guard let resolved = resolvedPath(whole), resolved.hasPrefix(mountPoint + "/") else {
            throw PluginFailure(.restoreFailed, "The snapshot has no file \(relative) on \(name)")
        }
        return resolved
    }
}

/// Copies of image files, each made beside its destination and put in place by a rename.
struct FileReplacement {
    /// What was there before, and is kept.
    static func kept(_ path: String, _ restoreID: String) -> String { "\(path).before-\(restoreID)" }
    static func fresh(_ path: String, _ restoreID: String) -> String { "\(path).restore-\(restoreID)" }

    private static let copySeconds = 24.0 * 3_600

    /// Copies `source` to `fresh(path)`, holes and owner included, and makes it durable.
    static func copy(_ source: String, to path: String, _ restoreID: String) throws(PluginFailure) {
        let fresh = fresh(path, restoreID)
        var command = Command(
            ["/usr/bin/cp", "--sparse=always", "--preserve=all", "--force", "--", source, fresh],
            timeoutSeconds: copySeconds)
        command.diesWithUs = true
        let outcome = try command.run()
        guard outcome.isSuccess else {
            unlink(fresh)
            throw PluginFailure(
                .restoreFailed, "\(path) could not be copied out of the snapshot: cp \(outcome.explanation)",
                hint: "Is there space for a second copy? What is there now is kept until it is deleted")
        }
        _ = try Command(["/usr/bin/sync", "--", fresh], timeoutSeconds: copySeconds).run()
    }

    /// Puts the copy in place, and keeps what is there.
    ///
    /// - Returns: whether there was anything.
    static func swap(_ path: String, _ restoreID: String) throws(PluginFailure) -> Bool {
        let isThere = fileStatus(path) != nil
        if isThere { try rename(path, kept(path, restoreID)) }
        do throws(PluginFailure) {
            try rename(fresh(path, restoreID), path)
        } catch {
            if isThere { try? rename(kept(path, restoreID), path) }
            throw error
        }
        return isThere
    }

    static func rename(_ from: String, _ to: String) throws(PluginFailure) {
        guard Glibc.rename(from, to) == 0 else {
            throw PluginFailure(.restoreFailed, "\(from) cannot be renamed to \(to): \(errorText(errno))")
        }
    }
}
