import CLibvirt
import Glibc
import PluginKit
import Synchronization

/// libvirt's event loop, on a thread of its own for the life of the process: keep-alives and events need it.
enum EventLoop {
    /// Once, before the first connection.
    static let isRunning: Bool = {
        virInitialize()
        // Errors are returned to whoever caused them; libvirt would print them as well.
        virSetErrorFunc(nil) { _, _ in }
        guard virEventRegisterDefaultImpl() == 0 else { return false }
        OwnThread.start {
            while true {
                if virEventRunDefaultImpl() < 0 { usleep(100_000) }
            }
        }
        return true
    }()
}

/// What libvirt said went wrong.
struct LibvirtError: Error, Sendable {
    var code: UInt32
    var domain: Int32
    var message: String

    /// Of the calling thread's last call.
    static var last: LibvirtError {
        guard let error = virGetLastError() else { return LibvirtError(code: 0, domain: 0, message: "unknown error") }
        let message = error.pointee.message.map { String(cString: $0) } ?? "unknown error"
        return LibvirtError(
            code: UInt32(bitPattern: error.pointee.code), domain: error.pointee.domain,
            message: message.replacing("\n", with: " "))
    }

    /// The connection, not the guest, is at fault: another one may do better.
    var isOfConnection: Bool {
        [
            VIR_ERR_NO_CONNECT, VIR_ERR_INVALID_CONN, VIR_ERR_RPC, VIR_ERR_SYSTEM_ERROR, VIR_ERR_AUTH_UNAVAILABLE,
            VIR_ERR_LIBSSH, VIR_ERR_GNUTLS_ERROR,
        ].contains { $0.rawValue == code } || message.contains("client socket is closed")
            || message.contains("connection closed") || message.contains("keepalive")
    }

    var isNoDomain: Bool { code == VIR_ERR_NO_DOMAIN.rawValue }

    /// The guest agent is not there, or does not answer.
    var isOfAgent: Bool { code == VIR_ERR_AGENT_UNRESPONSIVE.rawValue || code == VIR_ERR_AGENT_UNSYNCED.rawValue }

    /// What qemu-ga says to everything but a thaw while it keeps file systems frozen.
    var saysFrozen: Bool { message.contains("frozen state") }
}

/// A connection to one hypervisor.
///
/// SAFETY: `@unchecked Sendable`: libvirt's connections may be used by several threads at once (libvirt's API
/// documentation, "virConnectPtr"); the pointer never changes.
final class Hypervisor: @unchecked Sendable {
    let uri: String
    fileprivate let pointer: OpaquePointer

    private init(_ uri: String, _ pointer: OpaquePointer) {
        self.uri = uri
        self.pointer = pointer
    }

    deinit { virConnectClose(pointer) }

    /// Seconds between two keep-alives, and how many may go unanswered before the connection counts as dead.
    private static let keepAlive: (seconds: Int32, count: UInt32) = (2, 2)

    /// Opens a connection, with as many tries as configured.
    ///
    /// - Parameter isWanted: asked between tries.
    /// - Throws: `operatingSystem`.
    static func open(
        _ uri: String, _ configuration: LibvirtConfiguration, isWanted: () -> Bool = { true }
    ) throws(PluginFailure) -> Hypervisor {
        guard EventLoop.isRunning else { throw PluginFailure(.operatingSystem, "libvirt's event loop does not start") }
        var last = ""
        for attempt in 1...configuration.tries {
            if let pointer = virConnectOpenAuth(uri, nil, 0) {
                _ = virConnectSetKeepAlive(pointer, Self.keepAlive.seconds, Self.keepAlive.count)
                return Hypervisor(uri, pointer)
            }
            last = LibvirtError.last.message
            guard attempt < configuration.tries, isWanted() else { break }
            usleep(UInt32(configuration.pauseSeconds * 1e6))
        }
        throw PluginFailure(
            .operatingSystem, "libvirt does not answer at \(uri): \(last)",
            hint: "Is its daemon running, and may the agent use it? Try: virsh -c '\(uri)' list")
    }

    var isAlive: Bool { virConnectIsAlive(pointer) == 1 }

    /// True where guests' files are files of this host.
    var isLocal: Bool { Self.isLocal(uri) }

    static func isLocal(_ uri: String) -> Bool {
        guard let scheme = uri.firstRange(of: "://") else { return false }
        // `qemu+ssh://host/`, `qemu://host/`: a host between the slashes, unless it goes over a local socket.
        let rest = uri[scheme.upperBound...]
        return rest.hasPrefix("/") || uri[..<scheme.lowerBound].hasSuffix("+unix")
    }

    /// All guests, running or not.
    func guests() throws(LibvirtError) -> [Guest] {
        var list: UnsafeMutablePointer<virDomainPtr?>?
        let count = virConnectListAllDomains(pointer, &list, 0)
        guard count >= 0, let list else { throw LibvirtError.last }
        defer { free(list) }
        return (0..<Int(count)).compactMap { index in list[index].map { Guest($0, self) } }
    }

    /// - Throws: `LibvirtError`, `isNoDomain` where there is none.
    func guest(uuid: String) throws(LibvirtError) -> Guest {
        guard let found = virDomainLookupByUUIDString(pointer, uuid) else { throw LibvirtError.last }
        return Guest(found, self)
    }

    /// The path of a volume of a storage pool.
    func storagePath(pool: String, volume: String) -> String? {
        guard let pool = virStoragePoolLookupByName(pointer, pool) else { return nil }
        defer { virStoragePoolFree(pool) }
        guard let found = virStorageVolLookupByName(pool, volume) else { return nil }
        defer { virStorageVolFree(found) }
        guard let path = virStorageVolGetPath(found) else { return nil }
        defer { free(path) }
        return String(cString: path)
    }

    /// Calls libvirt with the bare connection.
    func with<Value>(_ body: (virConnectPtr) throws -> Value) rethrows -> Value { try body(pointer) }
}

/// One guest on a connection: a domain, as libvirt says.
///
/// SAFETY: `@unchecked Sendable`: as for `Hypervisor`.
final class Guest: @unchecked Sendable {
    enum State: String, Sendable {
        case running, paused, off, other
    }

    let hypervisor: Hypervisor
    fileprivate let pointer: virDomainPtr

    fileprivate init(_ pointer: virDomainPtr, _ hypervisor: Hypervisor) {
        self.pointer = pointer
        self.hypervisor = hypervisor
    }

    deinit { virDomainFree(pointer) }

    /// Calls libvirt with the bare domain.
    func with<Value>(_ body: (virDomainPtr) throws -> Value) rethrows -> Value { try body(pointer) }

    var name: String { virDomainGetName(pointer).map { String(cString: $0) } ?? "" }

    var uuid: String {
        var buffer = [CChar](repeating: 0, count: 37)
        guard virDomainGetUUIDString(pointer, &buffer) == 0 else { return "" }
        return String(decoding: buffer.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// libvirt's number for this run of the guest; nil when it does not run. A restart gives another.
    var runID: Int? {
        let id = virDomainGetID(pointer)
        return id == UInt32.max ? nil : Int(id)
    }

    var isPersistent: Bool { virDomainIsPersistent(pointer) == 1 }

    var startsAlone: Bool {
        var value: Int32 = 0
        return virDomainGetAutostart(pointer, &value) == 0 && value == 1
    }

    /// The state, and libvirt's number for its reason.
    func state() throws(LibvirtError) -> (state: State, reason: Int32) {
        var state: Int32 = 0
        var reason: Int32 = 0
        guard virDomainGetState(pointer, &state, &reason, 0) == 0 else { throw LibvirtError.last }
        switch UInt32(state) {
        case VIR_DOMAIN_RUNNING.rawValue, VIR_DOMAIN_BLOCKED.rawValue: return (.running, reason)
        case VIR_DOMAIN_PAUSED.rawValue: return (.paused, reason)
        case VIR_DOMAIN_SHUTOFF.rawValue, VIR_DOMAIN_CRASHED.rawValue: return (.off, reason)
        default: return (.other, reason)
        }
    }

    /// It is off because it was shut down in order: libvirt knows that until its daemon is started anew.
    func wasShutDown() throws(LibvirtError) -> Bool {
        let (state, reason) = try state()
        return state == .off && UInt32(bitPattern: reason) == VIR_DOMAIN_SHUTOFF_SHUTDOWN.rawValue
    }

    /// The definition: of the running guest, or the one it starts with next. Without secrets.
    func definition(inactive: Bool = false) throws(LibvirtError) -> String {
        let flags = inactive ? UInt32(VIR_DOMAIN_XML_INACTIVE.rawValue) : 0
        guard let text = virDomainGetXMLDesc(pointer, flags) else { throw LibvirtError.last }
        defer { free(text) }
        return String(cString: text)
    }
}
