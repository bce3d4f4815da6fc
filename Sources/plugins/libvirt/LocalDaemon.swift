import Glibc
import PluginKit

/// libvirt's daemon on this host, looked at from outside.
struct LocalDaemon {
    /// Of the daemon for QEMU, and of the one for everything.
    var sockets = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"]
    /// Where a daemon notes the guests that run, also those with no definition; they outlive it.
    var runningGuests = "/run/libvirt/qemu"

    /// Nobody listens, and no guest was left running: there is nothing that could not be looked at. Also where libvirt
    /// is installed and not used. Anything else is for libvirt to say.
    var isUnused: Bool {
        sockets.allSatisfy { !isListening($0) }
            && !directoryEntries(runningGuests).contains { $0.hasSuffix(".xml") || $0.hasSuffix(".pid") }
    }

    /// False only for certain: a socket that may not be asked has somebody behind it.
    private func isListening(_ path: String) -> Bool {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { return true }
        defer { close(descriptor) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return true }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        // SAFETY: a sockaddr_un begins as a sockaddr, and its own length is given.
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        return result == 0 || (errno != ENOENT && errno != ECONNREFUSED && errno != ENOTDIR)
    }
}
