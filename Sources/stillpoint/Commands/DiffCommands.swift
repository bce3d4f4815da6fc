import API
import ArgumentParser
import Foundation

extension SnapshotCommands {
    struct Diff: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show what changed in a volume between two snapshots.",
            discussion: """
                The answer is exact to 4 KiB, holes included, in ascending order, and costs what changed, not what \
                there is. With -o json it is a stream of JSON lines, of which the last has the kind "end".
                """)

        @Argument(help: "Id or name of the older snapshot.", completion: Names.snapshots) var older: String
        @Argument(help: "Id or name of the newer snapshot.", completion: Names.snapshots) var newer: String
        @Option(help: "The member to compare, where the newer one has several.", completion: Names.volumes)
        var volume: String?
        @Option(
            help: "The older one's member, where it is another volume's: a clone against its origin.",
            completion: Names.volumes)
        var fromVolume: String?
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            try await DiffReport.print(
                node.diff(newer, from: older, volume: volume, fromVolume: fromVolume), isJSON: connection.isJSON)
        }
    }
}

extension VolumeCommands {
    struct Diff: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show what changed in a volume since a snapshot, up to now.",
            discussion: """
                A snapshot is taken for it and deleted at the end. To go on from here the next time, take a snapshot \
                and compare with that: stillpoint snapshot diff.
                """)

        @Argument(help: "Name of the volume.", completion: Names.volumes) var name: String
        @Option(help: "Id or name of the snapshot; everything that is mapped without it.", completion: Names.snapshots)
        var since: String?
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            try await DiffReport.print(node.diff(ofVolume: name, from: since), isJSON: connection.isJSON)
        }
    }
}

enum DiffReport {
    /// Lines as they come: a diff can be longer than what memory holds.
    static func print(_ lines: AsyncThrowingStream<DiffLine, any Error>, isJSON: Bool) async throws {
        var sums: [DiffLine.Kind: UInt64] = [:]
        var hasEnded = false
        let encoder = APIJSON.encoder()
        for try await line in lines {
            if line.kind == .end { hasEnded = true }
            if isJSON {
                try write(String(decoding: try encoder.encode(line), as: UTF8.self))
                continue
            }
            switch line.kind {
            case .size:
                if let from = line.fromBytes, let to = line.toBytes, from != to {
                    try write("size    \(from) -> \(to)")
                }
                try write("KIND    OFFSET            LENGTH")
            case .data, .hole:
                let offset = "\(line.offset ?? 0)".padding(toLength: 18, withPad: " ", startingAt: 0)
                try write("\(line.kind.rawValue)    \(offset)\(line.lengthBytes ?? 0)")
                sums[line.kind, default: 0] += line.lengthBytes ?? 0
            case .end: break
            }
        }
        guard hasEnded else {
            throw CommandFailure("The answer was cut off", hint: "Ask again", status: .unreachable)
        }
        if !isJSON {
            Terminal.error(
                "\(Show.bytes(sums[.data] ?? 0)) written, \(Show.bytes(sums[.hole] ?? 0)) became holes")
        }
    }

    private static func write(_ line: String) throws {
        try FileHandle.standardOutput.write(contentsOf: Data((line + "\n").utf8))
    }
}
