/// Decides how one guest is brought back from a snapshot, disk by disk. No I/O: what it must know is given.
///
/// In place, a disk that has its volume for itself comes back by a revert of the volume, which keeps what was there. An
/// image file on a file system is copied out of a clone, so that the other files of the file system stay as they are.
/// Beside the original, a volume becomes a clone that the new guest reaches over iSCSI, and a file a second file.
public struct GuestRestorePlan: Sendable, Equatable {
    /// What is known of one disk.
    public struct Disk: Sendable, Equatable {
        public enum Way: Sendable, Equatable {
            case network
            case block(isWhole: Bool)
            /// On a file system: the path within it, and the whole path.
            case file(relativePath: String, path: String)
            /// It lies on no volume.
            case none
        }

        public var target: String
        public var way: Way
        public var volumes: [String]
        /// For people.
        public var source: String

        public init(target: String, way: Way, volumes: [String], source: String) {
            self.target = target
            self.way = way
            self.volumes = volumes
            self.source = source
        }
    }

    public struct Memory: Sendable, Equatable {
        public var volumes: [String]
        public var relativePath: String

        public init(volumes: [String], relativePath: String) {
            self.volumes = volumes
            self.relativePath = relativePath
        }
    }

    /// Everything that the decision depends on.
    public struct Situation: Sendable {
        public enum Presence: Sendable { case running, off, absent }

        public var guest: String
        public var presence: Presence
        public var disks: [Disk]
        /// The image that the snapshot has of the guest's memory.
        public var memory: Memory?
        /// Volumes that the snapshot holds and that still exist.
        public var held: Set<String>
        /// What else lies on each volume: labels.
        public var tenants: [String: [String]]
        /// The data comes from a clone, whose volumes cannot be reverted to.
        public var isFromClone: Bool
        public var nameIsTaken: Bool

        public init(
            guest: String, presence: Presence, disks: [Disk], memory: Memory?, held: Set<String>,
            tenants: [String: [String]], isFromClone: Bool, nameIsTaken: Bool
        ) {
            self.guest = guest
            self.presence = presence
            self.disks = disks
            self.memory = memory
            self.held = held
            self.tenants = tenants
            self.isFromClone = isFromClone
            self.nameIsTaken = nameIsTaken
        }
    }

    public struct Wish: Sendable {
        /// The new guest's name; nil restores in place.
        public var beside: String?
        /// Nil means all.
        public var disks: [String]?
        public var start: Bool?
        public var memory: Bool

        public init(beside: String? = nil, disks: [String]? = nil, start: Bool? = nil, memory: Bool = true) {
            self.beside = beside
            self.disks = disks
            self.start = start
            self.memory = memory
        }
    }

    public enum Action: Sendable, Equatable {
        /// Its volume is reverted.
        case revert
        /// It becomes a clone of the volume.
        case attachClone(ofVolume: String)
        /// It is copied out of a clone of the volume.
        case copy(fromCloneOf: String, relativePath: String, destination: String)
    }

    /// Why there is no way.
    public struct Refusal: Error, Sendable, Equatable {
        public var message: String
        public var hint: String?
    }

    public var actions: [String: Action] = [:]
    /// In order of their names.
    public var revertedVolumes: [String] = []
    /// Cloned for the time of the restore, to copy files out of.
    public var sourceVolumes: [String] = []
    /// Set where the guest goes on from its memory.
    public var memory: Memory?
    public var stopsGuest = false
    public var starts = false
    /// The plan for people, in order.
    public var sentences: [String] = []

    /// - Throws: ``Refusal``, with the first thing that stands in the way.
    public init(_ situation: Situation, _ wish: Wish) throws(Refusal) {
        if situation.nameIsTaken {
            throw Refusal(
                message: "there is another guest with the name \(wish.beside ?? situation.guest)",
                hint: "Give another one with --beside NAME")
        }
        let chosen = try Self.choose(situation, wish)
        var used: [String] = []
        for disk in chosen {
            guard disk.way != .none else { continue }
            for volume in disk.volumes where !situation.held.contains(volume) {
                throw Refusal(
                    message:
                        "disk \(disk.target) of \(situation.guest) lies on \(volume), which the snapshot does not hold",
                    hint: "Choose another snapshot, or leave the disk out: name the others with --disk")
            }
            guard disk.volumes.count == 1, let volume = disk.volumes.first else {
                throw Refusal(
                    message: "disk \(disk.target) of \(situation.guest) lies on several volumes at once: "
                        + disk.volumes.joined(separator: ", "),
                    hint: "Revert the volumes together: stillpoint volume revert \(disk.volumes.joined(separator: " "))"
                )
            }
            let action = try Self.action(disk, volume, situation, wish)
            actions[disk.target] = action
            sentences.append(Self.sentence(disk, volume, action))
            switch action {
            case .revert: revertedVolumes.append(volume)
            case .copy: used.append(volume)
            case .attachClone: break
            }
        }
        try planMemory(situation, wish, &used)
        guard !actions.isEmpty else {
            throw Refusal(
                message: "no disk of \(situation.guest) lies on a volume that could be restored",
                hint: "stillpoint guest show \(situation.guest) says where they lie")
        }
        revertedVolumes = Array(Set(revertedVolumes)).sorted()
        sourceVolumes = Array(Set(used)).sorted()
        finish(situation, wish)
    }

    private static func choose(_ situation: Situation, _ wish: Wish) throws(Refusal) -> [Disk] {
        guard let names = wish.disks else { return situation.disks }
        var chosen: [Disk] = []
        for name in names {
            guard let disk = situation.disks.first(where: { $0.target == name }) else {
                throw Refusal(
                    message: "\(situation.guest) has no disk \(name)",
                    hint: "It has \(situation.disks.map(\.target).joined(separator: ", "))")
            }
            guard disk.way != .none else {
                throw Refusal(
                    message: "disk \(name) of \(situation.guest) lies on no volume: \(disk.source)", hint: nil)
            }
            chosen.append(disk)
        }
        return chosen
    }

    private static func action(
        _ disk: Disk, _ volume: String, _ situation: Situation, _ wish: Wish
    ) throws(Refusal) -> Action {
        switch disk.way {
        case .file(let relativePath, let path):
            let destination = wish.beside.map { Self.second(path, for: $0) } ?? path
            return .copy(fromCloneOf: volume, relativePath: relativePath, destination: destination)
        case .block(isWhole: false) where wish.beside != nil:
            throw Refusal(
                message: "disk \(disk.target) of \(situation.guest), \(disk.source), is a part of \(volume) "
                    + "(a partition or a logical volume), which cannot be given to a second guest",
                hint: "Restore it in place, or clone the volume and attach the clone by hand")
        case .network, .block:
            if wish.beside != nil { return .attachClone(ofVolume: volume) }
            if situation.isFromClone {
                throw Refusal(
                    message: "disk \(disk.target) of \(situation.guest) is the volume \(volume) itself, which cannot "
                        + "go back to what a clone holds",
                    hint: "Restore it beside the original (--beside NAME), or from a snapshot of \(volume)")
            }
            let others = situation.tenants[volume] ?? []
            guard others.isEmpty else {
                throw Refusal(
                    message: "disk \(disk.target) of \(situation.guest) shares the volume \(volume) with "
                        + others.joined(separator: ", ") + ", which a revert would take along",
                    hint: "Restore it beside the original: --beside NAME")
            }
            return .revert
        case .none: throw Refusal(message: "disk \(disk.target) lies on no volume", hint: nil)
        }
    }

    /// The file of a second guest: `/srv/web1.qcow2` becomes `/srv/web1.NAME.qcow2`.
    static func second(_ path: String, for name: String) -> String {
        let slash = path.lastIndex(of: "/") ?? path.startIndex
        guard let dot = path.lastIndex(of: "."), dot > slash else { return "\(path).\(name)" }
        return "\(path[..<dot]).\(name)\(path[dot...])"
    }

    private static func sentence(_ disk: Disk, _ volume: String, _ action: Action) -> String {
        switch action {
        case .revert: "\(disk.target): revert volume \(volume); what it holds now is kept as a snapshot"
        case .attachClone: "\(disk.target): a clone of volume \(volume)"
        case .copy(_, let relativePath, let destination):
            "\(disk.target): copy \(relativePath) out of a clone of \(volume) to \(destination); "
                + "what is there now is kept beside it"
        }
    }

    private mutating func planMemory(
        _ situation: Situation, _ wish: Wish, _ used: inout [String]
    ) throws(Refusal) {
        guard let image = situation.memory, wish.memory else { return }
        // A running guest's memory fits to all of its disks at that instant, and to its old identity.
        guard wish.beside == nil, wish.disks == nil else {
            sentences.append("the memory image is not used: it fits only to the whole guest, in place")
            return
        }
        guard image.volumes.count == 1, let volume = image.volumes.first, situation.held.contains(volume) else {
            throw Refusal(
                message: "the memory image of \(situation.guest) is not in the snapshot",
                hint: "Restore without it: --no-memory")
        }
        memory = image
        used.append(volume)
    }

    private mutating func finish(_ situation: Situation, _ wish: Wish) {
        if wish.beside == nil, situation.presence == .running {
            stopsGuest = true
            sentences.insert("shut \(situation.guest) down", at: 0)
        }
        let name = wish.beside ?? situation.guest
        if let beside = wish.beside {
            sentences.append("define \(beside) with a UUID and MAC addresses of its own")
        } else if situation.presence == .absent {
            sentences.append("define \(name) again, as the snapshot holds it")
        } else {
            sentences.append("give \(name) the definition that the snapshot holds")
        }
        starts = wish.start ?? (wish.beside != nil || situation.presence != .off)
        if memory != nil, starts {
            sentences.append("let \(name) go on where the snapshot stopped it")
        } else {
            memory = nil
            if starts { sentences.append("start \(name)") }
        }
    }
}
