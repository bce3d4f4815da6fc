import CLibvirt
import Glibc
import PluginKit

/// What was written to a guest's disks since it was started, by the requests of QEMU.
struct WriteCounters: Sendable, Equatable, Codable {
    var requests: Int64 = 0
    var bytes: Int64 = 0
}

// What is done to a guest. Every call blocks its thread.
extension Guest {
    /// How long libvirt waits for this guest's agent, from now on. libvirt gives no way to learn what it was before, so
    /// its default is restored after.
    func limitAgent(seconds: Double) throws(LibvirtError) {
        try check(with { virDomainAgentSetResponseTimeout($0, Int32(max(1, seconds.rounded(.up))), 0) })
    }

    func restoreAgentLimit() {
        let unlimited = Int32(VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK.rawValue)
        _ = with { virDomainAgentSetResponseTimeout($0, unlimited, 0) }
    }

    /// Whether the guest agent answers now, and keeps nothing frozen.
    func askAgent() throws(LibvirtError) {
        var seconds: Int64 = 0
        var nanoseconds: UInt32 = 0
        try check(with { virDomainGetTime($0, &seconds, &nanoseconds, 0) })
    }

    /// Freezes all of the guest's file systems, after its freeze hooks.
    ///
    /// - Returns: how many.
    func freeze() throws(LibvirtError) -> Int {
        try Int(check(with { virDomainFSFreeze($0, nil, 0, 0) }))
    }

    /// - Returns: how many file systems were frozen until now.
    func thaw() throws(LibvirtError) -> Int {
        try Int(check(with { virDomainFSThaw($0, nil, 0, 0) }))
    }

    func suspend() throws(LibvirtError) { try check(with { virDomainSuspend($0) }) }

    func resume() throws(LibvirtError) { try check(with { virDomainResume($0) }) }

    /// Of the named disks together.
    func writes(_ disks: [String]) throws(LibvirtError) -> WriteCounters {
        var total = WriteCounters()
        for disk in disks {
            var counters = virDomainBlockStatsStruct()
            try check(with { virDomainBlockStats($0, disk, &counters, MemoryLayout.size(ofValue: counters)) })
            total.requests += counters.wr_req
            total.bytes += counters.wr_bytes
        }
        return total
    }

    /// Writes the memory of a suspended guest into a file, from which libvirt can restore it, and touches no disk. The
    /// guest stays suspended.
    func saveMemory(to path: String, disks: [String]) throws(LibvirtError) {
        func escaped(_ text: String) -> String {
            text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing("'", with: "&apos;")
        }
        let left = disks.map { "<disk name='\(escaped($0))' snapshot='no'/>" }.joined()
        let text =
            "<domainsnapshot><memory snapshot='external' file='\(escaped(path))'/>"
            + "<disks>\(left)</disks></domainsnapshot>"
        // Without metadata: libvirt forgets it at once, and virsh shows no snapshot.
        let flags = UInt32(VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA.rawValue)
        guard let snapshot = with({ virDomainSnapshotCreateXML($0, text, flags) }) else { throw LibvirtError.last }
        virDomainSnapshotFree(snapshot)
    }

    /// Ends what libvirt is doing with the guest for a long time, such as a save.
    func abortJob() { _ = with { virDomainAbortJob($0) } }

    @discardableResult
    private func check(_ code: Int32) throws(LibvirtError) -> Int32 {
        guard code >= 0 else { throw LibvirtError.last }
        return code
    }
}

/// Tells of what happens to a guest while something of it is held.
final class LifecycleWatch: Sendable {
    private let hypervisor: Hypervisor
    private let number: Int32

    /// - Parameter onEvent: called with a sentence, on libvirt's thread.
    init?(_ guest: Guest, onEvent: @escaping @Sendable (LifecycleEvent) -> Void) {
        final class Box: Sendable {
            let call: @Sendable (LifecycleEvent) -> Void
            init(_ call: @escaping @Sendable (LifecycleEvent) -> Void) { self.call = call }
        }
        // SAFETY: libvirt owns the one reference passed here until it calls the last closure.
        let box = Unmanaged.passRetained(Box(onEvent)).toOpaque()
        hypervisor = guest.hypervisor
        number = guest.with { domain in
            guest.hypervisor.with { connection in
                clibvirt_watch_lifecycle(
                    connection, domain,
                    { _, _, event, detail, opaque in
                        guard let opaque, let event = LifecycleEvent(event, detail) else { return 0 }
                        Unmanaged<Box>.fromOpaque(opaque).takeUnretainedValue().call(event)
                        return 0
                    }, box, { opaque in opaque.map { Unmanaged<Box>.fromOpaque($0).release() } })
            }
        }
        if number < 0 {
            Unmanaged<Box>.fromOpaque(box).release()
            return nil
        }
    }

    func stop() { _ = hypervisor.with { virConnectDomainEventDeregisterAny($0, number) } }
}

enum LifecycleEvent: Sendable, Equatable {
    case started, resumed, stopped, migrated

    init?(_ event: Int32, _ detail: Int32) {
        switch UInt32(event) {
        case VIR_DOMAIN_EVENT_STARTED.rawValue: self = .started
        case VIR_DOMAIN_EVENT_RESUMED.rawValue: self = .resumed
        case VIR_DOMAIN_EVENT_STOPPED.rawValue, VIR_DOMAIN_EVENT_CRASHED.rawValue:
            let isMove =
                UInt32(event) == VIR_DOMAIN_EVENT_STOPPED.rawValue
                && UInt32(detail) == VIR_DOMAIN_EVENT_STOPPED_MIGRATED.rawValue
            self = isMove ? .migrated : .stopped
        default: return nil
        }
    }
}

extension Guest {
    /// What it may use at most.
    var memoryBytes: UInt64 { UInt64(with { virDomainGetMaxMemory($0) }) << 10 }
}
