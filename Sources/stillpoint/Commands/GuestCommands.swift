import API
import ArgumentParser

struct GuestCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guest", abstract: "Virtual machines on volumes, and their way back from a snapshot.",
        subcommands: [List.self, Show_.self, Restore.self])

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "List the guests that agents see, and those that only snapshots still hold.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let guests = try await node.guests()
            if connection.isJSON { return try Output.json(guests) }
            Output.table(
                Table(
                    [.left("NAME"), .left("AGENT"), .left("STATE"), .left("VOLUMES"), .left("NEWEST SNAPSHOT")],
                    rows: guests.map { guest in
                        [
                            guest.name, guest.agent, guest.state, Show.list(guest.volumes),
                            guest.snapshots.first?.name ?? "",
                        ]
                    }), whenEmpty: "No agent sees a guest on a volume")
        }
    }

    struct Show_: NodeCommand {
        static let configuration = CommandConfiguration(
            commandName: "show", abstract: "Show a guest, where its disks lie, and the snapshots that hold it.")

        @Argument(help: "Name or UUID.", completion: Names.guests) var guest: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let guest = try await node.guest(guest)
            if connection.isJSON { return try Output.json(guest) }
            print("Guest \(guest.name) (\(guest.uuid)), \(guest.state), on \(guest.agent)")
            if let mode = guest.mode { print("  Brought to rest by: \(mode)") }
            print("  Volumes: \(Show.list(guest.volumes))")
            for (target, place) in guest.disks.sorted(by: { $0.key < $1.key }) { print("  Disk \(target): \(place)") }
            Output.table(
                Table(
                    [.left("SNAPSHOT"), .left("TAKEN"), .left("CONSISTENCY"), .left("MEMORY")],
                    rows: guest.snapshots.map {
                        [$0.name, Show.time($0.createdAt), $0.consistency.rawValue, $0.hasMemory ? "yes" : ""]
                    }), whenEmpty: "No snapshot holds its configuration")
        }
    }

    struct Restore: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Bring guests back from a snapshot, and leave all others alone.",
            discussion: """
                In place, a guest is shut down, its disks and its definition are put back, and it is started; one that \
                was deleted comes back. With --beside a second guest is made, with a UUID and MAC addresses of its \
                own. A guest whose image shares a file system with others is restored alone. --undo takes the last \
                restore of a guest back.
                """)

        @Argument(help: "Names or UUIDs.", completion: Names.guests) var guests: [String]
        @Option(
            help: ArgumentHelp(
                "A snapshot, or a clone. Default: the newest snapshot that holds the guest.", valueName: "snapshot"),
            completion: Names.attachable)
        var from: String?
        @Option(help: ArgumentHelp("Make a second guest of this name.", valueName: "name")) var beside: String?
        @Option(help: ArgumentHelp("Only this disk, e.g. vda. May be repeated.", valueName: "target"))
        var disk: [String] = []
        @Flag(inversion: .prefixedNo, help: "Start it after; default: if it ran, was gone, or is new.")
        var start: Bool?
        @Flag(name: .customLong("no-memory"), help: "Boot it, even where the snapshot has its memory.")
        var isWithoutMemory = false
        @Flag(help: "Take the last restore of the guests back.") var undo = false
        @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
        @Flag(name: .shortAndLong, help: "No progress on standard error.") var quiet = false
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if guests.isEmpty { throw ValidationError("Name at least one guest") }
            if beside != nil, guests.count > 1 { throw ValidationError("--beside makes one guest at a time") }
            if undo, from != nil || beside != nil || !disk.isEmpty || start != nil {
                throw ValidationError("--undo takes the last restore back as it was; give nothing else with it")
            }
        }

        func run(on node: NodeClient) async throws {
            let request = GuestRestoreRequest(
                guests: guests, from: from, beside: beside, disks: disk.isEmpty ? nil : disk, start: start,
                memory: isWithoutMemory ? false : nil, undo: undo ? true : nil, dryRun: dryRun ? true : nil)
            let job = try await node.restoreGuests(request)
            let ended = try await JobProgress(node: node, isQuiet: quiet || dryRun).follow(job)
            guard let results = ended.result?.guests else {
                throw CommandFailure("Job \(ended.id) succeeded but does not say what it restored")
            }
            if connection.isJSON { return try Output.json(results) }
            for result in results { report(result) }
        }

        private func report(_ result: GuestRestoreResult) {
            let source = undo ? "the restore \(result.undoOf ?? "")" : result.snapshot
            let verb = undo ? "take back" : "restore"
            let past = undo ? "Took back" : "Restored"
            print(
                dryRun
                    ? "Would \(verb) \(result.guest) on \(result.agent) \(undo ? "as of" : "from") \(source):"
                    : "\(past) \(result.guest) on \(result.agent) \(undo ? "to before" : "from") \(source)")
            for (index, step) in result.steps.enumerated() { print("  \(index + 1). \(step)") }
            guard !dryRun, !undo else { return }
            if let kept = result.keptSnapshot { print("What its volumes held is kept as snapshot \(kept)") }
            print("  Undo: stillpoint guest restore \(result.guest) --undo")
        }
    }
}
