import Foundation

/// What guests need of this machine.
enum KVMComponents {
    /// Programs of the packages that `scripts/setup.sh test` installs.
    private static let programs = [
        "libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "busybox", "sqlite3", "cpio", "lz4", "cc", "unshare",
        "nsenter", "debugfs", "e2fsck",
    ]
    static let missing = programs.filter { Shell.locate($0) == nil }
    static let areThere = Components.isRoot && missing.isEmpty
    static let skipReason = "guests need root and the programs of scripts/setup.sh test; missing: \(missing)"

    static let repository = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path

    /// The folder with the guest's kernel and initramfs, built at the first use and kept.
    static func guestImage() throws -> String {
        try Shell.check([repository + "/scripts/build-guest.sh"], timeoutSeconds: 240)
            .trimmingCharacters(in: .whitespacesAndNewlines)
    }
}

/// A host of virtual machines: a libvirtd of the test's own in a mount namespace of its own. Two of them are two hosts.
final class KVMHost {
    let folder: TemporaryFolder
    let image: String
    private static let script = KVMComponents.repository + "/scripts/private-libvirtd.sh"

    init() throws {
        image = try KVMComponents.guestImage()
        folder = try TemporaryFolder(prefix: "sp-kvm")
    }

    /// Put before a command, it runs on this host: what it mounts, and the daemon it reaches, are this host's.
    var prefix: [String] { [Self.script, "exec", folder.path] }
    var daemonPID: Int32? { pid("libvirtd.pid") }

    private func pid(_ name: String) -> Int32? {
        (try? String(contentsOfFile: folder.path + "/" + name, encoding: .utf8))
            .flatMap { Int32($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
    }

    func start() throws {
        try Shell.check(
            [Self.script, "start", folder.path, image + "/cache"],
            environment: ["PRIVATE_LIBVIRTD_OWNER": "\(getpid())"], timeoutSeconds: 240)
    }

    func killDaemon() {
        guard let pid = daemonPID else { return }
        kill(pid, SIGKILL)
        _ = Shell.wait { kill(pid, 0) != 0 }
    }

    func restartDaemon() throws { try Shell.check([Self.script, "daemon", folder.path], timeoutSeconds: 240) }

    /// Destroys the guests and everything else that runs on this host.
    func stop() {
        _ = try? Shell.run([Self.script, "stop", folder.path], timeoutSeconds: 120)
        folder.remove()
    }

    /// A command on this host that must succeed; its output.
    @discardableResult
    func run(_ arguments: String..., timeoutSeconds: Double = 180) throws -> String {
        try Shell.check(prefix + arguments, timeoutSeconds: timeoutSeconds)
    }

    @discardableResult
    func virsh(_ arguments: String..., timeoutSeconds: Double = 180) throws -> String {
        try Shell.check(prefix + ["virsh", "-q"] + arguments, timeoutSeconds: timeoutSeconds)
    }

    func virshResult(_ arguments: String..., timeoutSeconds: Double = 180) throws -> CommandResult {
        try Shell.run(prefix + ["virsh", "-q"] + arguments, timeoutSeconds: timeoutSeconds)
    }

    /// The names of all guests that are defined, by their state (`running`, `shut off`, `paused`).
    func states() throws -> [String: String] {
        var found: [String: String] = [:]
        for name in try virsh("list", "--all", "--name").split(separator: "\n") where !name.isEmpty {
            found[String(name)] = try virsh("domstate", String(name)).trimmingCharacters(in: .whitespacesAndNewlines)
        }
        return found
    }

    /// Keeps a CHAP secret as libvirt does it; disks refer to it by `usage`.
    func defineSecret(usage: String, value: String) throws {
        let file = folder.path + "/secret.xml"
        let uuid = UUID().uuidString.lowercased()
        try """
        <secret ephemeral='no' private='yes'><uuid>\(uuid)</uuid>\
        <usage type='iscsi'><target>\(usage)</target></usage></secret>
        """.write(toFile: file, atomically: true, encoding: .utf8)
        try virsh("secret-define", file)
        let valueFile = folder.path + "/secret.value"
        try value.write(toFile: valueFile, atomically: true, encoding: .utf8)
        defer { try? FileManager.default.removeItem(atPath: valueFile) }
        try virsh("secret-set-value", uuid, "--file", valueFile, "--plain")
    }
}
