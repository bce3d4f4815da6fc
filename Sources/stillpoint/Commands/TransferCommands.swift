import API
import ArgumentParser
import Foundation
import NIOCore

extension SnapshotCommands {
    struct Send: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Write a snapshot to standard output as a stream for snapshot receive.",
            discussion: """
                With --from only what changed since that snapshot is sent; the receiver must have it. A transfer that \
                broke goes on with the token that the receiver shows (stillpoint receive list).

                  stillpoint snapshot send NEW --from OLD | stillpoint --api https://OTHER:PORT snapshot receive
                """)

        @Argument(help: "Id or name of the snapshot.", completion: Names.snapshots) var snapshot: String
        @Option(help: "Id or name of an older snapshot that the receiver has.", completion: Names.snapshots)
        var from: String?
        @Option(help: "The receiver's token for a transfer that broke.") var resume: String?
        @Flag(name: .shortAndLong, help: "No progress on standard error.") var quiet = false
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            guard isatty(STDOUT_FILENO) == 0 else {
                throw CommandFailure.usage(
                    "A stream is not for a terminal", hint: "Write it to a file (> FILE) or a pipe")
            }
            var progress = TransferProgress(verb: "sent", isQuiet: quiet)
            try await node.sendSnapshot(snapshot, from: from, resume: resume) { piece in
                try FileHandle.standardOutput.write(contentsOf: Data(piece.readableBytesView))
                progress.add(piece.readableBytes)
            }
            progress.end()
        }
    }

    struct Receive: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a snapshot of the stream on standard input.",
            discussion: """
                A whole snapshot makes new volumes, which are not exported; --volume names the volume of one that has \
                a single member. An increment goes to the volumes of the older snapshot, which must be what they were \
                then and have no initiator logged in. What came of a stream that broke is kept until it is resumed or \
                aborted, and is not visible as a snapshot.
                """)

        @Option(help: "Name of the new volume; the sender's if not given.") var volume: String?
        @Option(help: "Name of the snapshot; the sender's if not given.") var name: String?
        @Flag(name: .shortAndLong, help: "No progress on standard error.") var quiet = false
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            guard isatty(STDIN_FILENO) == 0 else {
                throw CommandFailure.usage(
                    "A stream does not come from a terminal", hint: "Read it from a file (< FILE) or a pipe")
            }
            let snapshot: SnapshotInfo
            do {
                snapshot = try await node.receiveSnapshot(
                    volume: volume, name: name, StandardInput(isQuiet: quiet))
            } catch {
                if let open = try? await node.receives(), !open.isEmpty {
                    Terminal.error("What was received is kept; stillpoint receive list shows how to go on")
                }
                throw error
            }
            if connection.isJSON { return try Output.json(snapshot) }
            print("Snapshot \(snapshot.name) of \(Show.list(snapshot.volumes)) is received and verified")
            print("  id \(snapshot.id)")
        }
    }
}

/// Transfers that have begun at a node and not ended.
struct ReceiveCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "receive", abstract: "Transfers of snapshots that have begun here and not ended.",
        subcommands: [List.self, Abort.self])

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the transfers, and how each goes on.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let all = try await node.receives()
            if connection.isJSON { return try Output.json(all) }
            Output.table(
                Table(
                    [
                        .left("SNAPSHOT"), .left("VOLUMES"), .right("CAME TO"), .right("OF"), .left("NOW"),
                        .left("FROM"), .left("TOKEN"),
                    ],
                    rows: all.map { one in
                        [
                            one.name, Show.list(one.volumes), Show.bytes(one.offsetBytes), Show.bytes(one.sizeBytes),
                            one.isActive ? "receiving" : "", one.from ?? "", one.resumeToken,
                        ]
                    }), whenEmpty: "No transfer is open")
        }
    }

    struct Abort: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "Throw away what was received of a snapshot.")

        @Argument(help: "Id or name of the snapshot.") var snapshot: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            try await node.abortReceive(snapshot)
            if !connection.isJSON { print("What was received of \(snapshot) is thrown away") }
        }
    }
}

/// Standard input in pieces, read on a thread of its own, the next one when the one before was taken.
struct StandardInput: AsyncSequence, Sendable {
    typealias Element = ByteBuffer

    var isQuiet: Bool

    struct AsyncIterator: AsyncIteratorProtocol {
        fileprivate var progress: TransferProgress

        mutating func next() async throws -> ByteBuffer? {
            let data = try await withCheckedThrowingContinuation { continuation in
                DispatchQueue.global().async {
                    continuation.resume(with: Result { try FileHandle.standardInput.read(upToCount: 1 << 18) })
                }
            }
            guard let data, !data.isEmpty else {
                progress.end()
                return nil
            }
            progress.add(data.count)
            return ByteBuffer(bytes: data)
        }
    }

    func makeAsyncIterator() -> AsyncIterator {
        AsyncIterator(progress: TransferProgress(verb: "received", isQuiet: isQuiet))
    }
}

/// A line on standard error every two seconds.
struct TransferProgress {
    private let verb: String
    private let isQuiet: Bool
    private let start = ContinuousClock.now
    private var last = ContinuousClock.now
    private var bytes: UInt64 = 0

    init(verb: String, isQuiet: Bool) {
        self.verb = verb
        self.isQuiet = isQuiet
    }

    mutating func add(_ count: Int) {
        bytes += UInt64(count)
        guard !isQuiet, last.duration(to: .now) > .seconds(2) else { return }
        last = .now
        say()
    }

    func end() { if !isQuiet { say() } }

    private func say() {
        let seconds = max(0.001, Double(start.duration(to: .now) / .seconds(1)))
        Terminal.error("\(Show.bytes(bytes)) \(verb), \(Show.bytes(UInt64(Double(bytes) / seconds)))/s")
    }
}
