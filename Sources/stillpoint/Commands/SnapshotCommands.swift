import API
import ArgumentParser

struct SnapshotCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot", abstract: "Snapshots of one or several volumes in one cut.",
        subcommands: [
            Create.self, List.self, ShowOne.self, Space.self, Diff.self, Send.self, Receive.self, Delete.self,
        ])

    struct Create: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Take a snapshot of one or several volumes in one cut.",
            discussion: """
                With --consistency application or file-system the agents bring everything that lies on the volumes to \
                rest around the cut. If the level asked for is not reached, the snapshot fails and leaves nothing \
                behind, unless --allow-lower is given; then its record says what was reached and why.
                """)

        @Argument(help: "Names of the volumes.", completion: Names.volumes) var volumes: [String]
        @Option(
            help: "application, file-system or crash.", completion: .list(["application", "file-system", "crash"]),
            transform: ConsistencyOption.parse)
        var consistency: Consistency = .crash
        @Flag(help: "Keep the snapshot also when a lower consistency was reached.") var allowLower = false
        @Option(help: "A unique name; made from volume and time if not given.") var name: String?
        @Option(
            help: ArgumentHelp(
                "The longest an agent keeps anything quiet without hearing from the node: 2 to 60, default 10.",
                valueName: "seconds"))
        var lease: Double?
        @Flag(
            help: "Say what would be brought to rest, for how long, and what stands in the way; touch nothing.")
        var dryRun = false
        @Flag(name: .shortAndLong, help: "No progress on standard error.") var quiet = false
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if volumes.isEmpty { throw ValidationError("Name at least one volume") }
            if Set(volumes).count != volumes.count { throw ValidationError("A volume is named twice") }
            if let lease, !(2...60).contains(lease) { throw ValidationError("--lease is 2 to 60 seconds") }
        }

        func run(on node: NodeClient) async throws {
            let request = SnapshotCreateRequest(
                volumes: volumes, name: name, consistency: consistency,
                policy: allowLower ? .allowLower : .require, leaseSeconds: lease)
            if dryRun { return try await rehearse(request, on: node) }
            let job = try await node.createSnapshot(request)
            let ended = try await JobProgress(node: node, isQuiet: quiet).follow(job)
            guard let made = ended.result?.snapshot else {
                throw CommandFailure("Job \(ended.id) succeeded but does not say which snapshot it took")
            }
            let snapshot = made.evidence == nil ? (try? await node.snapshot(made.id)) ?? made : made
            if connection.isJSON { return try Output.json(snapshot) }
            print(SnapshotReport.outcome(snapshot))
        }

        /// Exits with 1 where the snapshot would fail.
        private func rehearse(_ request: SnapshotCreateRequest, on node: NodeClient) async throws {
            let preview = try await node.previewSnapshot(request)
            if connection.isJSON { try Output.json(preview) } else { print(SnapshotReport.preview(preview)) }
            if preview.refusal != nil { throw ExitCode(1) }
        }
    }

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the snapshots, of one volume or all.")

        @Argument(help: "Only snapshots of this volume.", completion: Names.volumes) var volume: String?
        @Flag(help: "Also show what deleting each of them would free.") var space = false
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let snapshots = try await node.snapshots(of: volume, withSpace: space)
            if connection.isJSON { return try Output.json(snapshots) }
            Output.table(
                SnapshotReport.table(snapshots),
                whenEmpty: volume.map { "Volume \($0) has no snapshots" } ?? "There are no snapshots")
        }
    }

    struct ShowOne: NodeCommand {
        static let configuration = CommandConfiguration(
            commandName: "show", abstract: "Show one snapshot and the evidence for its consistency.")

        @Argument(help: "Id or name of the snapshot.", completion: Names.snapshots) var snapshot: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let snapshot = try await node.snapshot(snapshot)
            if connection.isJSON { return try Output.json(snapshot) }
            print(SnapshotReport.description(snapshot))
        }
    }

    struct Delete: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Delete snapshots.",
            discussion: """
                FIRST..LAST stands for all snapshots from one to another of the volumes that both have. Refused while \
                a clone of one exists: then none is deleted.
                """)

        @Argument(help: "Ids or names of snapshots, or FIRST..LAST.", completion: Names.snapshots) var snapshots:
            [String]
        @Flag(help: "Delete nothing; say what would be freed, and what stands in the way.") var dryRun = false
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if snapshots.isEmpty { throw ValidationError("Name at least one snapshot") }
        }

        func run(on node: NodeClient) async throws {
            if dryRun {
                return try await SpaceReport.print(snapshots, on: node, asDeletion: true, isJSON: connection.isJSON)
            }
            // Of several all are looked at before one is deleted.
            var names = snapshots
            if names.count > 1 || names[0].contains("..") {
                let chosen = try SpaceReport.select(snapshots, from: try await node.snapshots())
                try SpaceReport.refuseWithClones(chosen, what: "Nothing was deleted")
                names = chosen.map(\.name)
            }
            for snapshot in names {
                if let job = try await node.deleteSnapshot(snapshot) {
                    _ = try await JobProgress(node: node, isQuiet: true).follow(job)
                }
                if !connection.isJSON { print("Snapshot \(snapshot) is deleted") }
            }
        }
    }
}

enum ConsistencyOption {
    @Sendable static func parse(_ text: String) throws -> Consistency {
        switch text.lowercased() {
        case "crash": return .crash
        case "filesystem", "file-system": return .fileSystem
        case "application": return .application
        default: throw ValidationError("'\(text)' is not a consistency: use application, file-system or crash")
        }
    }
}
