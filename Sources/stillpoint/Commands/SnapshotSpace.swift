import API
import ArgumentParser
import Foundation

extension SnapshotCommands {
    struct Space: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Say what snapshots hold: what deleting them all would free.",
            discussion: """
                FIRST..LAST stands for all snapshots from one to another of the volumes that both have. Without \
                arguments, all snapshots are listed with what each of them alone would free. What two snapshots share \
                is freed only when both are deleted, so the answer for several is more than the sum of the answers.
                """)

        @Argument(help: "Ids or names of snapshots, or FIRST..LAST.", completion: Names.snapshots)
        var snapshots: [String] = []
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            if snapshots.isEmpty {
                let all = try await node.snapshots(withSpace: true)
                if connection.isJSON { return try Output.json(all) }
                return Output.table(SnapshotReport.table(all), whenEmpty: "There are no snapshots")
            }
            try await SpaceReport.print(snapshots, on: node, asDeletion: false, isJSON: connection.isJSON)
        }
    }
}

enum SpaceReport {
    /// Asks what deleting the snapshots would free and prints the answer; with `asDeletion` also what refuses it.
    static func print(_ names: [String], on node: NodeClient, asDeletion: Bool, isJSON: Bool) async throws {
        let chosen = try select(names, from: try await node.snapshots())
        let space = try await node.space(SpaceRequest(snapshots: chosen.map(\.id)))
        if isJSON {
            try Output.json(space)
        } else {
            let what = chosen.count == 1 ? "snapshot \(chosen[0].name)" : "these \(chosen.count) snapshots"
            Swift.print("Deleting \(what) would free \(SnapshotReport.freed(space))")
            if chosen.count > 1 { for snapshot in chosen { Swift.print("  \(snapshot.name)") } }
        }
        if asDeletion { try refuseWithClones(chosen, what: "It would be refused") }
    }

    /// Throws where a snapshot has clones, and names all of them.
    static func refuseWithClones(_ chosen: [SnapshotInfo], what: String) throws {
        let held = chosen.filter { !$0.clones.isEmpty }
        guard !held.isEmpty else { return }
        let reasons = held.map { "the snapshot \"\($0.name)\" has clones: \(Show.list($0.clones))" }
        throw CommandFailure(
            "\(what): \(reasons.joined(separator: "; "))",
            hint: "Delete the clones first (stillpoint clone delete); or, to keep one and do without the snapshot's "
                + "volume, make it the owner (stillpoint clone promote)")
    }

    /// The snapshots that the arguments name; `FIRST..LAST` names those between two, in the order of their cuts.
    static func select(_ names: [String], from all: [SnapshotInfo]) throws -> [SnapshotInfo] {
        func one(_ name: String) -> SnapshotInfo? { all.first { $0.id == name } ?? all.first { $0.name == name } }
        var chosen: [SnapshotInfo] = []
        for name in names {
            if let snapshot = one(name) {
                chosen.append(snapshot)
                continue
            }
            guard let dots = name.range(of: ".."), let first = one(String(name[..<dots.lowerBound])),
                let last = one(String(name[dots.upperBound...]))
            else {
                throw CommandFailure(
                    "There is no snapshot \"\(name)\"", hint: "stillpoint snapshot list shows those that there are")
            }
            let volumes = Set(first.volumes).intersection(last.volumes)
            guard !volumes.isEmpty, first.createdAt <= last.createdAt else {
                throw CommandFailure(
                    "\(name) is no range: the two have no volume in common, or the first is the younger one")
            }
            chosen += all.filter { snapshot in
                (first.createdAt...last.createdAt).contains(snapshot.createdAt)
                    && !volumes.isDisjoint(with: snapshot.volumes)
            }
        }
        var seen: Set<String> = []
        return chosen.filter { seen.insert($0.id).inserted }
    }
}
