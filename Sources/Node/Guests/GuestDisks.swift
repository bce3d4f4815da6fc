import API
import Synchronization

/// Which disks of which guests lie on which volumes, as the guests' hosts say, and which agents run inside of guests:
/// so that an agent in a guest can recognise volumes that only its host reaches.
///
/// It holds what each agent answered last. Nothing here is kept over a restart: a saga asks anew.
final class GuestDisks: Sendable {
    /// What a machine's `guestDisks` says of one disk (docs/plugins.md).
    struct Disk: Sendable, Hashable {
        var reference: GuestDiskReference
        var volumes: [String]
        /// What the guest is called.
        var label: String

        var isRecognisable: Bool { reference.serial != nil || reference.wwn != nil }
    }

    private struct State {
        var disks: [String: [Disk]] = [:]
        var machines: [String: String] = [:]
    }

    private let state = Mutex(State())

    /// Takes what an agent answered.
    func learn(_ answer: DiscoverResponse, of agent: String) {
        let found = answer.resources.filter { $0.layer == .machine }.flatMap(Self.disks)
        let isBlind = (answer.unseen ?? []).contains { $0.layer != .application }
        state.withLock { state in
            state.machines[agent] = answer.machine
            // What cannot be looked at now is not gone.
            let looked = Set(found.map(\.reference.guest))
            let kept = isBlind ? (state.disks[agent] ?? []).filter { !looked.contains($0.reference.guest) } : []
            state.disks[agent] = found + kept
        }
    }

    func forget(_ agent: String) {
        state.withLock { state in
            state.disks[agent] = nil
            state.machines[agent] = nil
        }
    }

    /// One disk a line: target, serial, WWN and volumes, with tabs between.
    static func disks(_ machine: ResourceInfo) -> [Disk] {
        guard let uuid = machine.details["machine"]?.lowercased() else { return [] }
        return (machine.details["guestDisks"] ?? "").split(separator: "\n").compactMap { line in
            let parts = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 4, !parts[3].isEmpty else { return nil }
            return Disk(
                reference: GuestDiskReference(
                    guest: uuid, target: parts[0], serial: parts[1].isEmpty ? nil : parts[1],
                    wwn: parts[2].isEmpty ? nil : parts[2].lowercased()),
                volumes: parts[3].split(separator: ",").map(String.init), label: machine.label)
        }
    }

    /// The disks of the guest that an agent runs in; empty for an agent on a host.
    func disks(around agent: String) -> [Disk] {
        state.withLock { state in
            guard let machine = state.machines[agent] else { return [] }
            // A guest that moved is known on two hosts.
            let all = state.disks.filter { $0.key != agent }.values.joined()
            return Set(all.filter { $0.reference.guest == machine })
                .sorted { ($0.reference.target, "\($0.volumes)") < ($1.reference.target, "\($1.volumes)") }
        }
    }

    /// Volumes with the disks by which the guest that the agent runs in has them; as they are for an agent on a host.
    func located(_ volumes: [VolumeReference], for agent: String) -> [VolumeReference] {
        let disks = disks(around: agent).filter(\.isRecognisable)
        guard !disks.isEmpty else { return volumes }
        return volumes.map { volume in
            var volume = volume
            let own = disks.filter { $0.volumes.contains(volume.name) }.map(\.reference)
            if !own.isEmpty { volume.guestDisks = own }
            return volume
        }
    }

    /// Disks that an agent inside of the guest cannot recognise, with what to do about it.
    func unrecognisable(around agent: String) -> [UnseenInfo] {
        disks(around: agent).filter { !$0.isRecognisable }.map { disk in
            let target = disk.reference.target
            return UnseenInfo(
                plugin: "agent", layer: .application,
                reason:
                    "the disk \(target) of \(disk.label) has no serial by which it could be told in the guest. Give it "
                    + "one: virt-xml \(disk.reference.guest) --edit target=\(target) --disk serial=\(target)",
                scope: .named, volumes: disk.volumes)
        }
    }
}

/// Agents that are asked at the same time what they find: when all have answered, or failed to, it is known which
/// disks of guests lie where.
final class DiscoveryRound: Sendable {
    private struct State {
        var open: Set<String>
        var waiting: [CheckedContinuation<Void, Never>] = []
    }

    private let state: Mutex<State>

    init(_ agents: some Sequence<String>) { state = Mutex(State(open: Set(agents))) }

    /// The agent has answered or failed; returns when all have.
    func answered(_ agent: String) async {
        await withCheckedContinuation { continuation in
            let ready = state.withLock { state -> [CheckedContinuation<Void, Never>] in
                state.open.remove(agent)
                state.waiting.append(continuation)
                guard state.open.isEmpty else { return [] }
                defer { state.waiting = [] }
                return state.waiting
            }
            for one in ready { one.resume() }
        }
    }
}
