import API
import BlockStore
import Foundation

/// The guests that agents see now, and those that only snapshots still know.
struct GuestDirectory: Sendable {
    static let plugin = "libvirt"
    private static let discoverSeconds = 40.0

    let inventory: Inventory
    let agents: any AgentCalling

    /// What the agents answered, and what lies on the volumes besides guests.
    struct Seen: Sendable {
        var guests: [GuestInfo] = []
        var resources: [(agent: String, resource: ResourceInfo)] = []
        /// Agents that did not answer.
        var silent: [String] = []
    }

    func look(_ contents: Inventory.Contents) async throws -> Seen {
        let references = contents.volumes.map { VolumeReference(name: $0.name, naa: $0.naa.description) }
        let names = try await agents.names()
        let agents = agents
        let answers = await withTaskGroup(of: (String, DiscoverResponse?).self) { group in
            for name in names {
                group.addTask {
                    let request = DiscoverRequest(volumes: references)
                    return (
                        name, try? await agents.discover(name, request, timeoutSeconds: Self.discoverSeconds)
                    )
                }
            }
            return await group.reduce(into: []) { $0.append($1) }.sorted { $0.0 < $1.0 }
        }
        var seen = Seen()
        for (agent, answer) in answers {
            guard let answer else {
                seen.silent.append(agent)
                continue
            }
            seen.resources += answer.resources.map { (agent, $0) }
            seen.guests += answer.resources.filter { $0.plugin == Self.plugin }.map { Self.guest($0, agent) }
        }
        return seen
    }

    private static func guest(_ resource: ResourceInfo, _ agent: String) -> GuestInfo {
        var disks: [String: String] = [:]
        for (key, value) in resource.details where key.hasPrefix("disk.") {
            disks[String(key.dropFirst("disk.".count))] = value
        }
        return GuestInfo(
            name: resource.details["name"] ?? resource.label, uuid: resource.id, agent: agent,
            state: resource.details["state"] ?? "unknown", volumes: resource.volumes.sorted(), disks: disks,
            mode: resource.details["mode"], snapshots: [])
    }

    /// Snapshots with the evidence of a guest, the newest first.
    static func snapshots(
        of uuid: String, in contents: Inventory.Contents
    ) -> [(record: SnapshotRecord, member: MemberEvidence)] {
        contents.snapshots.compactMap { record in
            let members = contents.attributes[record.id]?.evidence?.members ?? []
            return members.first { $0.plugin == plugin && $0.resource == uuid }.map { (record, $0) }
        }.sorted { $0.record.createdAt > $1.record.createdAt }
    }

    private static func summaries(of uuid: String, in contents: Inventory.Contents) -> [GuestSnapshot] {
        snapshots(of: uuid, in: contents).map { record, member in
            GuestSnapshot(
                name: record.name, createdAt: Date(timeIntervalSince1970: Double(record.createdAt) / 1e9),
                consistency: contents.attributes[record.id]?.achieved ?? .crash,
                hasMemory: member.artifacts["memoryFile"] != nil)
        }
    }

    /// All guests, by name.
    func guests() async throws -> [GuestInfo] {
        let contents = try await inventory.contents()
        var guests = try await look(contents).guests
        let known = Set(guests.map(\.uuid))
        var gone: [String: GuestInfo] = [:]
        for snapshot in contents.snapshots {
            for member in contents.attributes[snapshot.id]?.evidence?.members ?? []
            where member.plugin == Self.plugin && !known.contains(member.resource) {
                gone[member.resource] = GuestInfo(
                    name: member.artifacts["name"] ?? member.label, uuid: member.resource, agent: member.agent,
                    state: "deleted", volumes: member.volumes, disks: [:], mode: nil, snapshots: [])
            }
        }
        guests += gone.values
        for index in guests.indices {
            guests[index].snapshots = Array(Self.summaries(of: guests[index].uuid, in: contents).prefix(1))
        }
        return guests.sorted { ($0.name, $0.uuid) < ($1.name, $1.uuid) }
    }

    /// One guest, by name or UUID.
    func guest(_ nameOrUUID: String) async throws -> GuestInfo {
        let found = Self.matching(nameOrUUID, try await guests())
        var guest = try Self.only(found, nameOrUUID)
        guest.snapshots = Self.summaries(of: guest.uuid, in: try await inventory.contents())
        return guest
    }

    static func matching(_ nameOrUUID: String, _ guests: [GuestInfo]) -> [GuestInfo] {
        let exact = guests.filter { $0.uuid == nameOrUUID.lowercased() }
        if !exact.isEmpty { return exact }
        let named = guests.filter { $0.name == nameOrUUID }
        // One that is there comes before one of the same name that is gone.
        let present = named.filter { $0.state != "deleted" }
        return present.isEmpty ? named : present
    }

    static func only(_ found: [GuestInfo], _ name: String) throws -> GuestInfo {
        guard let first = found.first else {
            throw APIFailure(
                status: 404, code: "guestNotFound",
                message: "no agent sees a guest \"\(name)\" on a volume, and no snapshot holds one",
                hint: "stillpoint guest list shows those that there are; is the host's agent reachable?")
        }
        guard found.count == 1 else {
            let list = found.map { "\($0.uuid) on \($0.agent)" }.joined(separator: ", ")
            throw APIFailure.conflict(
                "guestAmbiguous", "several guests have the name \"\(name)\": \(list)", hint: "Name its UUID")
        }
        return first
    }
}
