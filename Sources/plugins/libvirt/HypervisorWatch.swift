import CLibvirt
import Glibc
import PluginKit

/// Tells when a hypervisor's guests, or their disks, are others than before.
enum HypervisorWatch {
    /// Between looks at a connection, and between tries to open one.
    private static let pauseMicroseconds: UInt32 = 2_000_000

    /// Never returns: the process ends with its input. A daemon that is started anew is found again.
    static func run(
        _ uri: String, _ configuration: LibvirtConfiguration, onChange: @escaping @Sendable (String) -> Void
    ) {
        var once = configuration
        once.retryCount = 1
        var wasLost = false
        while true {
            if let hypervisor = try? Hypervisor.open(uri, once) {
                let watch = GuestsWatch(hypervisor) { onChange("\($0) at \(uri)") }
                if wasLost { onChange("libvirt answers again at \(uri)") }
                while hypervisor.isAlive { usleep(pauseMicroseconds) }
                watch.stop()
                onChange("libvirt does not answer any more at \(uri)")
            }
            wasLost = true
            usleep(pauseMicroseconds)
        }
    }

    /// The callbacks on one connection.
    private final class GuestsWatch {
        private let hypervisor: Hypervisor
        private var numbers: [Int32] = []

        private final class Box: Sendable {
            let call: @Sendable () -> Void
            init(_ call: @escaping @Sendable () -> Void) { self.call = call }
        }

        init(_ hypervisor: Hypervisor, onChange: @escaping @Sendable (String) -> Void) {
            self.hypervisor = hypervisor
            hypervisor.with { connection in
                numbers.append(
                    clibvirt_watch_lifecycle(
                        connection, nil,
                        { _, _, _, _, opaque in
                            HypervisorWatch.tell(opaque)
                            return 0
                        }, Self.box { onChange("a guest was defined, started, stopped or removed") },
                        HypervisorWatch.release))
                for event in [VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED] {
                    numbers.append(
                        clibvirt_watch_devices(
                            connection, Int32(event.rawValue), { _, _, _, opaque in HypervisorWatch.tell(opaque) },
                            Self.box { onChange("a guest got or lost a device") }, HypervisorWatch.release))
                }
                numbers.append(
                    clibvirt_watch_block_jobs(
                        connection, { _, _, _, _, _, opaque in HypervisorWatch.tell(opaque) },
                        Self.box { onChange("a guest's disk was moved") }, HypervisorWatch.release))
            }
        }

        // SAFETY: libvirt owns the one reference passed here until it calls `release`; where it refuses a callback, the
        // few bytes stay with the process.
        private static func box(_ call: @escaping @Sendable () -> Void) -> UnsafeMutableRawPointer {
            Unmanaged.passRetained(Box(call)).toOpaque()
        }

        static func call(_ opaque: UnsafeMutableRawPointer) {
            Unmanaged<Box>.fromOpaque(opaque).takeUnretainedValue().call()
        }

        static func release(_ opaque: UnsafeMutableRawPointer) { Unmanaged<Box>.fromOpaque(opaque).release() }

        func stop() {
            hypervisor.with { connection in
                for number in numbers where number >= 0 { _ = virConnectDomainEventDeregisterAny(connection, number) }
            }
        }
    }

    private static func tell(_ opaque: UnsafeMutableRawPointer?) { if let opaque { GuestsWatch.call(opaque) } }

    private static let release: @convention(c) (UnsafeMutableRawPointer?) -> Void = { opaque in
        if let opaque { GuestsWatch.release(opaque) }
    }
}
