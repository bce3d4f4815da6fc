import Glibc
import PluginKit

/// What would go wrong with a guest, asked beforehand.
struct Inspection {
    private let resource: PluginResource
    private let configuration: LibvirtConfiguration

    init(_ resource: PluginResource, _ configuration: LibvirtConfiguration) {
        self.resource = resource
        self.configuration = configuration
    }

    func findings() -> [PluginFinding] {
        do {
            let hypervisor = try Hypervisor.open(try GuestTarget.uri(resource), configuration)
            let guest = try hypervisor.guest(uuid: resource.id)
            let definition = try GuestDefinition(try guest.definition())
            let own = configuration.guest(name: definition.name, uuid: definition.uuid)
            return disks(definition) + (try state(guest, definition, own))
        } catch let error as LibvirtError where error.isNoDomain {
            return [finding(.error, "There is no \(resource.label) any more", "Was it deleted, or moved?")]
        } catch let error as PluginFailure {
            return [finding(.error, error.message, error.hint)]
        } catch {
            return [finding(.error, "\(resource.label) cannot be looked at: \(Discover.text(error))")]
        }
    }

    private func finding(
        _ severity: PluginFinding.Severity, _ message: String, _ hint: String? = nil
    ) -> PluginFinding {
        PluginFinding(severity, resource: resource.id, message, hint: hint)
    }

    private func disks(_ definition: GuestDefinition) -> [PluginFinding] {
        definition.disks.compactMap { disk in
            guard let why = resource.details["leftAlone.\(disk.target)"] else { return nil }
            if disk.kind == .cdrom || disk.kind == .floppy {
                return finding(.note, "The drive \(disk.target) of \(resource.label) is left alone (\(why))")
            }
            return finding(
                .warning, "The disk \(disk.target) of \(resource.label) is not in the snapshot: \(why)",
                "Move it to a volume, or restore the guest without it")
        }
    }

    private func state(
        _ guest: Guest, _ definition: GuestDefinition, _ own: LibvirtConfiguration.Guest
    ) throws(LibvirtError) -> [PluginFinding] {
        switch try guest.state().state {
        case .off:
            let isClean = try guest.wasShutDown()
            return [
                finding(
                    .note,
                    "\(resource.label) does not run: its disks are taken as they lie"
                        + (isClean ? "" : ". It is not known to have been shut down in order"))
            ]
        case .paused:
            return [
                finding(
                    .error, "\(resource.label) is suspended already, by somebody else",
                    "virsh resume \(definition.name), then try again")
            ]
        case .other:
            return [finding(.error, "\(resource.label) is neither running nor off", "virsh domstate shows its state")]
        case .running: break
        }
        let severity: PluginFinding.Severity = (own.fallback ?? []).isEmpty ? .error : .warning
        switch own.mode ?? .agent {
        case .agent:
            return agent(guest, definition, severity)
        case .pause where own.insideAgent == nil:
            return [finding(.note, "\(resource.label) is paused: what it has not written yet is not in the snapshot")]
        case .memory: return memory(guest, severity)
        case .pause, .none: return []
        }
    }

    private func agent(
        _ guest: Guest, _ definition: GuestDefinition, _ severity: PluginFinding.Severity
    ) -> [PluginFinding] {
        guard definition.agent != .none else {
            return [
                finding(
                    severity, "\(resource.label) has no channel for a guest agent",
                    "Add the channel org.qemu.guest_agent.0 to its definition, or use the mode pause")
            ]
        }
        do throws(LibvirtError) {
            try guest.limitAgent(seconds: configuration.agentTimeoutSeconds ?? GuestRound.defaultAgentSeconds)
            defer { guest.restoreAgentLimit() }
            try guest.askAgent()
            return []
        } catch {
            let failure = AgentTrouble.explain(error, label: resource.label, name: definition.name)
            return [finding(severity, failure.message, failure.hint)]
        }
    }

    private func memory(_ guest: Guest, _ severity: PluginFinding.Severity) -> [PluginFinding] {
        let hint = "Set memoryDirectory to a directory on a file system of a volume of the snapshot"
        guard guest.hypervisor.isLocal else {
            return [finding(severity, "The memory of a guest of another host cannot be kept", "Run an agent there")]
        }
        guard let directory = configuration.memoryDirectory else {
            return [finding(severity, "There is no place for the memory of \(resource.label)", hint)]
        }
        guard resource.details["memoryFileSystem"] != nil else {
            return [finding(severity, "\(directory) is on no volume: the memory would not be in the snapshot", hint)]
        }
        let needed = guest.memoryBytes
        var room = statvfs()
        guard statvfs(directory, &room) == 0 else {
            return [finding(severity, "\(directory) cannot be looked at: \(errorText(errno))", hint)]
        }
        let free = UInt64(room.f_bavail) * UInt64(room.f_frsize)
        guard free > needed else {
            return [
                finding(
                    severity,
                    "\(directory) has \(free >> 20) MiB left, the memory of \(resource.label) may take \(needed >> 20)")
            ]
        }
        return []
    }
}
