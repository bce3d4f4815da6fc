import API
import ArgumentParser

struct CloneCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "clone", abstract: "Volumes of their own identity, made from a snapshot at once.",
        subcommands: [Create.self, List.self, Promote.self, Delete.self])

    struct Create: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a volume from a snapshot.",
            discussion:
                "The clone can be written; the snapshot stays as it is, and cannot be deleted before its clones.")

        @Argument(help: "Id or name of the snapshot.", completion: Names.snapshots) var snapshot: String
        @Option(help: "Name of the new volume.") var name: String
        @Option(help: "The member to clone, where the snapshot has several.", completion: Names.volumes)
        var volume: String?
        @Flag(name: .customLong("no-export"), help: "Make no target for it.") var isNotExported = false
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let clone = try await node.createClone(
                CloneRequest(snapshot: snapshot, volume: volume, name: name, export: isNotExported ? false : nil))
            if connection.isJSON { return try Output.json(clone) }
            print("Clone \(clone.name) of snapshot \(snapshot), \(Show.bytes(clone.sizeBytes)), NAA \(clone.naa)")
            for export in clone.exports {
                print("  LUN \(export.lun) of \(export.iqn) at \(Show.list(export.portals))")
            }
        }
    }

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the clones.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let clones = try await node.clones()
            if connection.isJSON { return try Output.json(clones) }
            Output.table(VolumeReport.table(clones), whenEmpty: "There are no clones")
        }
    }

    struct Promote: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a clone the owner of the snapshots that it stands on.",
            discussion: """
                The snapshot it was cloned from and all older ones of that volume become the clone's, and that volume \
                becomes a clone of it, which can then be deleted. Nothing is copied, and no content changes.
                """)

        @Argument(help: "Name of the clone.", completion: Names.clones) var name: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let result = try await node.promoteClone(name)
            if connection.isJSON { return try Output.json(result) }
            print("Volume \(name) owns \(Show.list(result.snapshots)) now")
            print("  Volume \(result.formerOwner), which owned them, is a clone of \(name)'s snapshots")
        }
    }

    struct Delete: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "Delete a clone. A volume that is none is refused.")

        @Argument(help: "Name of the clone.", completion: Names.clones) var name: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            if let job = try await node.deleteClone(name) {
                _ = try await JobProgress(node: node, isQuiet: true).follow(job)
            }
            if !connection.isJSON { print("Clone \(name) is deleted") }
        }
    }
}
