/// Something on a host that can be brought to rest.
public struct Resource: Codable, Sendable, Hashable {
    public var plugin: String
    public var layer: QuiesceLayer
    /// Unique within its plug-in on its host.
    public var id: String
    /// For people.
    public var label: String
    /// Names of the volumes it lies on.
    public var volumes: [String]
    public var details: [String: String]
    /// What its quiesce makes of the data on its volumes, where its layer alone does not say: a machine's file systems
    /// may be frozen from within, or its processors may just be stopped. Nil leaves the level to what else is there.
    public var level: ConsistencyLevel?
    /// Of a machine: its UUID as it is seen inside of it.
    public var machine: String?
    /// Of a machine: it does not run.
    public var isOff: Bool?
    /// Of a machine: the agents that run inside of it. The group fills it in.
    public var insideAgents: [String]?
    /// Of a machine: those of its volumes that these agents recognise, and answer for. The group fills it in.
    public var answeredFor: [String]?

    public init(
        plugin: String, layer: QuiesceLayer, id: String, label: String, volumes: [String],
        details: [String: String] = [:], level: ConsistencyLevel? = nil, machine: String? = nil, isOff: Bool? = nil
    ) {
        self.level = level
        self.machine = machine
        self.isOff = isOff
        self.plugin = plugin
        self.layer = layer
        self.id = id
        self.label = label
        self.volumes = volumes
        self.details = details
    }
}

extension Resource {
    /// A machine that says what bringing it to rest makes of its disks.
    var isJudgedByLevel: Bool { layer == .machine && level != nil }

    /// A machine whose file systems are frozen from within as it comes to rest. Agents inside of it leave them to it.
    var freezesFileSystems: Bool { layer == .machine && (level ?? .crash) >= .fileSystem }

    /// The best that its disk on a volume can be when bringing it to rest has made `level` of it.
    func bound(_ level: ConsistencyLevel, on volume: String) -> ConsistencyLevel {
        guard answeredFor?.contains(volume) == true else { return level }
        // What runs in it is known and a member of its own, and so are its file systems, unless it freezes them.
        return freezesFileSystems && level < .fileSystem ? .crash : .application
    }
}

/// Where an agent runs inside of a machine that another agent brings to rest.
public struct InsideMachine: Codable, Sendable, Equatable {
    /// UUID of the machine.
    public var machine: String
    /// The volumes that the agent recognises among its disks.
    public var volumes: Set<String>

    public init(machine: String, volumes: Set<String>) {
        self.machine = machine
        self.volumes = volumes
    }
}

/// A resource with the agent that can reach it.
public struct Member: Codable, Sendable, Hashable {
    public var agent: String
    public var resource: Resource

    public init(agent: String, resource: Resource) {
        self.agent = agent
        self.resource = resource
    }

    public var key: MemberKey { MemberKey(agent: agent, plugin: resource.plugin, resource: resource.id) }

    /// For people: `PostgreSQL 15 main (agent db1)`.
    public var text: String { "\(resource.label) (agent \(agent))" }
}

public struct MemberKey: Codable, Sendable, Hashable, CustomStringConvertible {
    public var agent: String
    public var plugin: String
    public var resource: String

    public init(agent: String, plugin: String, resource: String) {
        self.agent = agent
        self.plugin = plugin
        self.resource = resource
    }

    public var description: String { "\(agent)/\(plugin)/\(resource)" }
}

/// The volumes that one cut separates, what lies on them, and what follows from that for the level.
public struct ConsistencyGroup: Codable, Sendable, Equatable {
    public let volumes: [String]
    public let requested: ConsistencyLevel
    /// Everything on the volumes that the requested level brings to rest, in a stable order.
    public let members: [Member]
    /// Volumes on which something may lie that nobody could look at, with the reason.
    public let unknown: [String: String]
    /// Volumes on which an application may lie that nobody could look at, with the reason.
    public let unknownApplications: [String: String]

    /// - Parameters:
    ///   - discovered: what each agent found, on these and on other volumes.
    ///   - unknown: volumes that an agent uses, or may use, which did not answer; with the reason.
    ///   - unknownApplications: volumes on which the applications could not be looked at; with the reason.
    ///   - inside: the machines that agents say they run in, by agent.
    public init(
        volumes: [String], requested: ConsistencyLevel, discovered: [String: [Resource]], unknown: [String: String],
        unknownApplications: [String: String] = [:], inside: [String: InsideMachine] = [:]
    ) {
        self.volumes = volumes
        self.requested = requested
        self.unknown = unknown
        self.unknownApplications = unknownApplications
        let group = Set(volumes)
        let layers = requested.layers
        var found: [Member] = []
        let joined = Self.join(discovered, inside)
        for (agent, resources) in joined.sorted(by: { $0.key < $1.key }) {
            for resource in resources
            where layers.contains(resource.layer) || (requested == .fileSystem && resource.isJudgedByLevel) {
                guard !group.isDisjoint(with: resource.volumes) else { continue }
                let member = Member(agent: agent, resource: resource)
                if !found.contains(where: { $0.key == member.key }) { found.append(member) }
            }
        }
        members = found.sorted {
            ($0.resource.layer.order, $0.agent, $0.resource.plugin, $0.resource.id)
                < ($1.resource.layer.order, $1.agent, $1.resource.plugin, $1.resource.id)
        }
    }

    /// Machines learn which agents run inside of them, and these leave the file systems to a machine that freezes them.
    private static func join(
        _ discovered: [String: [Resource]], _ inside: [String: InsideMachine]
    ) -> [String: [Resource]] {
        guard !inside.isEmpty else { return discovered }
        var joined = discovered
        var frozen: [String: Set<String>] = [:]
        for (host, resources) in discovered {
            for (index, resource) in resources.enumerated() {
                guard resource.layer == .machine, let machine = resource.machine else { continue }
                let guests = inside.filter { $0.value.machine == machine && $0.key != host }
                guard !guests.isEmpty else { continue }
                let recognised = guests.values.reduce(into: Set<String>()) { $0.formUnion($1.volumes) }
                joined[host]?[index].insideAgents = guests.keys.sorted()
                joined[host]?[index].answeredFor = recognised.intersection(resource.volumes).sorted()
                guard resource.freezesFileSystems else { continue }
                for agent in guests.keys { frozen[agent, default: []].formUnion(resource.volumes) }
            }
        }
        for (agent, volumes) in frozen {
            joined[agent]?.removeAll { $0.layer == .fileSystem && volumes.isSuperset(of: $0.volumes) }
        }
        return joined
    }

    /// The level of one volume when exactly the members in `proven` have a proven quiet window.
    ///
    /// `application` if at least one application lies on it, in a machine or not, and everything on it is proven;
    /// `fileSystem` if every file system on it is proven and there is at least one; else `crash`. Never more than any
    /// machine on it that says what it can give. Nothing more than `crash` where something may lie on it that nobody
    /// could look at, nor than `fileSystem` where that is an application. What lies also on volumes that the cut does
    /// not cover was quiet, perhaps, but the snapshot holds only a part of it: it proves nothing.
    ///
    /// - Parameter levels: what quiescing made of members, where that differs from what was expected of them.
    public func level(
        of volume: String, proven: Set<MemberKey>, levels: [MemberKey: ConsistencyLevel] = [:]
    ) -> ConsistencyLevel {
        guard unknown[volume] == nil else { return .crash }
        let here = members.filter { $0.resource.volumes.contains(volume) }
        let isProven = { (member: Member) in proven.contains(member.key) && outside(member).isEmpty }
        let judged = here.filter(\.resource.isJudgedByLevel).map { member in
            (member.resource, isProven(member) ? levels[member.key] ?? member.resource.level ?? .crash : .crash)
        }
        let machines = judged.map(\.1)
        let most = judged.map { $0.bound($1, on: volume) }.min() ?? .application
        let hasApplication = here.contains { $0.resource.layer == .application } || machines.contains(.application)
        if requested == .application, hasApplication, here.allSatisfy(isProven), most == .application,
            unknownApplications[volume] == nil
        {
            return .application
        }
        let fileSystems = here.filter { $0.resource.layer == .fileSystem || $0.resource.layer == .hostFileSystem }
        let isFrozenWithin = machines.contains { $0 >= .fileSystem }
        if requested >= .fileSystem, !fileSystems.isEmpty || isFrozenWithin, fileSystems.allSatisfy(isProven) {
            return min(most, .fileSystem)
        }
        return .crash
    }

    /// The level of the snapshot: the least of its volumes'.
    public func level(proven: Set<MemberKey>, levels: [MemberKey: ConsistencyLevel] = [:]) -> ConsistencyLevel {
        volumes.map { level(of: $0, proven: proven, levels: levels) }.min() ?? .crash
    }

    /// Why the requested level cannot be reached even if everything in `usable` comes to rest; one sentence for each
    /// volume that falls short. Empty where it can.
    public func shortfalls(
        usable: Set<MemberKey>, levels: [MemberKey: ConsistencyLevel] = [:]
    ) -> [String] {
        volumes.compactMap { volume in
            let attainable = level(of: volume, proven: usable, levels: levels)
            guard attainable < requested else { return nil }
            let reason = shortfall(of: volume, usable, levels)
            return "volume \(volume) can only be \(attainable.text)-consistent: \(reason)"
        }
    }

    private func shortfall(
        of volume: String, _ usable: Set<MemberKey>, _ levels: [MemberKey: ConsistencyLevel]
    ) -> String {
        if let reason = unknown[volume] ?? unknownApplications[volume] { return reason }
        let here = members.filter { $0.resource.volumes.contains(volume) }
        if here.isEmpty { return "no agent found anything on it that could be brought to rest" }
        for member in here {
            let missing = outside(member)
            guard !missing.isEmpty else { continue }
            return "\(member.text) lies also on \(missing.joined(separator: ", ")), which this snapshot does not "
                + "contain; add it to the group"
        }
        let missing = here.filter { !usable.contains($0.key) }.map(\.text)
        if !missing.isEmpty { return "\(missing.joined(separator: ", ")) cannot be brought to rest" }
        let lesser = here.filter(\.resource.isJudgedByLevel).compactMap { member -> String? in
            let level = member.resource.bound(levels[member.key] ?? member.resource.level ?? .crash, on: volume)
            return level < requested ? "\(member.text) is only made \(level.text)-consistent" : nil
        }
        if !lesser.isEmpty { return lesser.joined(separator: ", ") }
        return requested == .application ? "no application was found on it" : "no file system was found on it"
    }

    /// Volumes that a member lies on and that the cut does not cover, sorted.
    private func outside(_ member: Member) -> [String] {
        member.resource.volumes.filter { !volumes.contains($0) }.sorted()
    }

    /// What a person should know also where less than the requested level is allowed: a resource that lies on other
    /// volumes too.
    public var warnings: [String] {
        members.compactMap { member in
            let outside = outside(member)
            guard !outside.isEmpty else { return nil }
            return "\(member.text) lies also on \(outside.joined(separator: ", ")), which this snapshot does "
                + "not contain; add it to the group to be able to restore \(member.resource.label) from it"
        }
    }
}
