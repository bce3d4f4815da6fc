public import Foundation

/// A guest (virtual machine) that lies on volumes, or of which a snapshot holds a copy.
public struct GuestInfo: Codable, Sendable, Equatable {
    public var name: String
    public var uuid: String
    /// The agent that answers for it.
    public var agent: String
    /// `running`, `paused`, `off`, `other`, `unknown`; `deleted` where only snapshots know it.
    public var state: String
    public var volumes: [String]
    /// By target (`vda`): where the disk lies.
    public var disks: [String: String]
    /// How it is brought to rest: `agent`, `pause`, `memory`, `none`.
    public var mode: String?
    /// Snapshots that hold its disks and configuration, the newest first. All of them only in the answer for one guest.
    public var snapshots: [GuestSnapshot]

    public init(
        name: String, uuid: String, agent: String, state: String, volumes: [String], disks: [String: String],
        mode: String?, snapshots: [GuestSnapshot]
    ) {
        self.name = name
        self.uuid = uuid
        self.agent = agent
        self.state = state
        self.volumes = volumes
        self.disks = disks
        self.mode = mode
        self.snapshots = snapshots
    }
}

/// A snapshot, as one guest sees it.
public struct GuestSnapshot: Codable, Sendable, Equatable {
    public var name: String
    public var createdAt: Date
    public var consistency: Consistency
    /// The guest can go on where it was.
    public var hasMemory: Bool

    public init(name: String, createdAt: Date, consistency: Consistency, hasMemory: Bool) {
        self.name = name
        self.createdAt = createdAt
        self.consistency = consistency
        self.hasMemory = hasMemory
    }
}

/// Restores guests, without touching others that share their volumes.
public struct GuestRestoreRequest: Codable, Sendable, Equatable {
    /// Names or UUIDs.
    public var guests: [String]
    /// Id or name of a snapshot, or the name of a clone; default: the newest snapshot that holds the guest.
    public var from: String?
    /// The new guest's name: it is restored beside the original. One guest only.
    public var beside: String?
    /// Targets (`vda`) of the disks to restore; default: all that lie on volumes.
    public var disks: [String]?
    /// Default: a guest that ran is started, and so is one that was gone or is made beside the original.
    public var start: Bool?
    /// Go on with the memory image where there is one. Default true.
    public var memory: Bool?
    /// Take the last restore of the guests back.
    public var undo: Bool?
    /// Say what would be done and do nothing.
    public var dryRun: Bool?

    public init(
        guests: [String], from: String? = nil, beside: String? = nil, disks: [String]? = nil, start: Bool? = nil,
        memory: Bool? = nil, undo: Bool? = nil, dryRun: Bool? = nil
    ) {
        self.guests = guests
        self.from = from
        self.beside = beside
        self.disks = disks
        self.start = start
        self.memory = memory
        self.undo = undo
        self.dryRun = dryRun
    }
}

/// What a restore did (or, with `dryRun`, would do), one for each guest.
public struct GuestRestoreResult: Codable, Sendable, Equatable {
    public var restoreID: String
    /// The guest's name; the new one's where it is beside the original.
    public var guest: String
    public var uuid: String
    public var agent: String
    /// The snapshot that it came from.
    public var snapshot: String
    /// One sentence per step, in order.
    public var steps: [String]
    /// Volumes that were reverted, and the snapshot that keeps what they held.
    public var reverted: [String]
    public var keptSnapshot: String?
    /// Volumes that were made for the guest.
    public var clones: [String]
    /// What an undo gives back to the agent.
    public var state: [String: String]
    /// The restore that this one took back.
    public var undoOf: String?

    public init(
        restoreID: String, guest: String, uuid: String, agent: String, snapshot: String, steps: [String],
        reverted: [String], keptSnapshot: String?, clones: [String], state: [String: String], undoOf: String? = nil
    ) {
        self.restoreID = restoreID
        self.guest = guest
        self.uuid = uuid
        self.agent = agent
        self.snapshot = snapshot
        self.steps = steps
        self.reverted = reverted
        self.keptSnapshot = keptSnapshot
        self.clones = clones
        self.state = state
        self.undoOf = undoOf
    }
}
