import API
import ArgumentParser

extension VolumeCommands {
    struct Revert: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Put volumes back to what a snapshot holds.",
            discussion: """
                What they hold now is kept as a snapshot of its own, to which --undo goes back. Refused while an \
                initiator has a session to one of them; with --drive the agents stop what uses the volumes before, \
                and start it again after.
                """)

        @Argument(help: "Names of the volumes.", completion: Names.volumes) var volumes: [String]
        @Option(
            help: ArgumentHelp("Id or name of the snapshot.", valueName: "snapshot"), completion: Names.snapshots)
        var to: String?
        @Flag(help: "Go back to what the volumes held before their last revert.") var undo = false
        @Flag(help: "Let the agents stop and start what uses the volumes.") var drive = false
        @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
        @Flag(name: .shortAndLong, help: "No progress on standard error.") var quiet = false
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if volumes.isEmpty { throw ValidationError("Name at least one volume") }
            if undo == (to != nil) { throw ValidationError("Give either --to SNAPSHOT or --undo") }
        }

        func run(on node: NodeClient) async throws {
            let request = RevertRequest(
                volumes: volumes, snapshot: to, undo: undo ? true : nil, drive: drive ? true : nil,
                dryRun: dryRun ? true : nil)
            let result: RevertResult
            switch try await node.revert(request) {
            case .done(let done): result = done
            case .accepted(let job):
                let ended = try await JobProgress(node: node, isQuiet: quiet).follow(job)
                guard let revert = ended.result?.revert else {
                    throw CommandFailure("Job \(ended.id) succeeded but does not say what it reverted")
                }
                result = revert
            }
            if connection.isJSON { return try Output.json(result) }
            print(
                dryRun
                    ? "Would revert \(Show.list(result.volumes)) to \(result.revertedTo):"
                    : "Reverted \(Show.list(result.volumes)) to \(result.revertedTo)")
            for (index, step) in result.steps.enumerated() { print("  \(index + 1). \(step)") }
            if let kept = result.keptSnapshot, !dryRun {
                print("What was there before is kept as snapshot \(kept)")
                print("  Undo: stillpoint volume revert \(result.volumes.joined(separator: " ")) --undo")
            }
        }
    }
}
