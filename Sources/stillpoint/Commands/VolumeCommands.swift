import API
import ArgumentParser

struct VolumeCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "volume", abstract: "Block devices in the pool.",
        subcommands: [
            Create.self, List.self, Show_.self, Resize.self, Delete.self, Revert.self, Attach.self, Detach.self,
            Attachments.self, AttachTarget.self, Diff.self,
        ])

    struct Create: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a volume, exported as LUN 0 of a target of its own.",
            discussion: "The target is closed until an initiator is let in with: stillpoint target allow.")

        @Argument(help: "Name: letters, digits, '.', '_', ':', '@', '-'; at most 128.") var name: String
        @Option(
            help: "Size: 10GiB, 512MiB, 1TiB, 10GB or bytes; a multiple of 4096.", transform: ByteSize.init(parsing:))
        var size: ByteSize
        @Flag(name: .customLong("no-export"), help: "Make no target for it.") var isNotExported = false
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if let problem = size.problemAsVolumeSize { throw ValidationError(problem) }
        }

        func run(on node: NodeClient) async throws {
            let volume = try await node.createVolume(
                VolumeCreateRequest(name: name, sizeBytes: size.bytes, export: isNotExported ? false : nil))
            if connection.isJSON { return try Output.json(volume) }
            print("Volume \(volume.name), \(Show.bytes(volume.sizeBytes)), NAA \(volume.naa)")
            for export in volume.exports {
                print("  LUN \(export.lun) of \(export.iqn) at \(Show.list(export.portals))")
                print("  Let an initiator in: stillpoint target allow \(export.iqn) --initiator NAME")
            }
        }
    }

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the volumes.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let volumes = try await node.volumes()
            if connection.isJSON { return try Output.json(volumes) }
            Output.table(
                VolumeReport.table(volumes),
                whenEmpty: "There are no volumes. Make one with: stillpoint volume create NAME --size 10GiB")
        }
    }

    struct Show_: NodeCommand {
        static let configuration = CommandConfiguration(commandName: "show", abstract: "Show one volume.")

        @Argument(help: "Name of the volume.", completion: Names.volumes) var name: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let volume = try await node.volume(name)
            if connection.isJSON { return try Output.json(volume) }
            print(VolumeReport.description(volume))
        }
    }

    struct Resize: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a volume larger.",
            discussion: "Initiators are told by a unit attention. Shrinking is refused.")

        @Argument(help: "Name of the volume.", completion: Names.volumes) var name: String
        @Option(help: "The new size.", transform: ByteSize.init(parsing:)) var size: ByteSize
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if let problem = size.problemAsVolumeSize { throw ValidationError(problem) }
        }

        func run(on node: NodeClient) async throws {
            let volume = try await node.resizeVolume(name, to: size.bytes)
            if connection.isJSON { return try Output.json(volume) }
            print("Volume \(volume.name) has \(Show.bytes(volume.sizeBytes)) now")
        }
    }

    struct Delete: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Delete a volume.",
            discussion: "Refused while an initiator has a session to it, and while it has snapshots.")

        @Argument(help: "Name of the volume.", completion: Names.volumes) var name: String
        @Flag(help: "Delete its snapshots too.") var withSnapshots = false
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            if let job = try await node.deleteVolume(name, withSnapshots: withSnapshots) {
                _ = try await JobProgress(node: node, isQuiet: true).follow(job)
            }
            if !connection.isJSON { print("Volume \(name) is deleted") }
        }
    }
}

enum VolumeReport {
    static func table(_ volumes: [VolumeInfo]) -> Table {
        Table(
            [
                .left("NAME"), .right("SIZE"), .right("MAPPED"), .right("SNAPSHOTS"), .left("CLONE OF"),
                .left("TARGET"),
                .right("LUN"), .left("CONNECTED"),
            ],
            rows: volumes.map { volume in
                [
                    volume.name, Show.bytes(volume.sizeBytes), Show.bytes(volume.mappedBytes),
                    "\(volume.snapshotCount)",
                    volume.cloneOf ?? "", volume.exports.first?.iqn ?? "",
                    volume.exports.first.map { "\($0.lun)" } ?? "",
                    Show.list(volume.initiators),
                ]
            })
    }

    static func description(_ volume: VolumeInfo) -> String {
        var text = Description()
        text.add("Name", volume.name)
        text.add("Id", volume.id)
        text.add("Size", "\(Show.bytes(volume.sizeBytes)) (\(volume.sizeBytes) bytes)")
        text.add("Mapped", Show.bytes(volume.mappedBytes))
        text.add("NAA", volume.naa)
        text.add("Created", Show.time(volume.createdAt))
        text.add("Clone of", volume.cloneOf)
        text.add("Snapshots", "\(volume.snapshotCount)")
        if let space = volume.space {
            text.add("Holds alone", Show.bytes(space.headBytes))
            if volume.snapshotCount > 0 {
                text.add(
                    "Would free",
                    "\(Show.bytes(space.snapshotBytes)) without its snapshots, \(Show.bytes(space.totalBytes)) without "
                        + "it and them")
            }
        }
        if volume.exports.isEmpty {
            text.add("Exported", "no")
        } else {
            text.add(
                "Exported",
                lines: volume.exports.map { "LUN \($0.lun) of \($0.iqn) at \(Show.list($0.portals))" })
        }
        text.add("Connected", lines: volume.initiators.isEmpty ? ["nobody"] : volume.initiators)
        if let uses = volume.uses, !uses.isEmpty {
            text.add(
                "Used by",
                lines: uses.map { use in
                    "\(use.label)\(use.state.map { ", \($0)" } ?? "") (agent \(use.agent), \(use.plugin))"
                })
        }
        return text.rendered()
    }
}
