import API
import ArgumentParser
import Foundation
import Node

struct PoolCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pool", abstract: "What volumes and snapshots live in.",
        subcommands: [Show_.self, Scrub.self, Check.self, Grow.self])

    struct Show_: NodeCommand {
        static let configuration = CommandConfiguration(
            commandName: "show", abstract: "Show the pool: space, state, superblock copies, memory, scrub, alerts.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let pool = try await node.pool()
            if connection.isJSON { return try Output.json(pool) }
            print(PoolReport.description(pool))
        }
    }

    struct Scrub: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Read everything in the pool and compare it with its checksums.",
            discussion: """
                Runs beside everything else, at a limited rate. A wrong block is a medium error for whoever reads it, \
                and an alert; a wrong copy of the superblock is repaired. A scrub that was cancelled, or that the \
                node's end cut short, goes on where it was. Exit code 1 when something wrong was found.
                """)

        @Option(
            help: ArgumentHelp("The most to read in a second, e.g. 200MiB.", valueName: "size"),
            transform: ByteSize.init(parsing:))
        var rate: ByteSize?
        @Flag(help: "Begin anew where a scrub was cancelled.") var restart = false
        @Flag(name: .customLong("no-wait"), help: "Start it and return.") var doesNotWait = false
        @Flag(help: "End the scrub that runs; the next one goes on from there.") var cancel = false
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            if let rate, rate.bytes < 1 << 20 { throw ValidationError("--rate must be at least 1MiB") }
            if cancel, rate != nil || restart || doesNotWait {
                throw ValidationError("--cancel stands alone")
            }
        }

        func run(on node: NodeClient) async throws {
            if cancel {
                try await node.cancelScrub()
                if !connection.isJSON { print("The scrub is being ended; the next one goes on from there") }
                return
            }
            let job = try await node.scrubPool(
                ScrubRequest(bytesPerSecond: rate?.bytes, restart: restart ? true : nil))
            if doesNotWait {
                if connection.isJSON { return try Output.json(job) }
                return print("Job \(job.id) scrubs the pool: stillpoint pool show")
            }
            let ended = try await JobProgress(node: node, isQuiet: connection.isJSON).follow(job)
            guard let scrub = ended.result?.scrub else { return }
            if connection.isJSON { try Output.json(scrub) } else { print(PoolReport.scrub(scrub)) }
            guard scrub.damageCount == 0 else { throw ExitCode.failure }
        }
    }

    struct Grow: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make the pool larger while it is in use.",
            discussion: """
                A pool in a file gets a new limit with --size. One on a block device that was enlarged takes all of \
                it, or as much as --size says.
                """)

        @Option(help: "The new size.", transform: ByteSize.init(parsing:)) var size: ByteSize?
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let pool = try await node.growPool(PoolGrowRequest(sizeBytes: size?.bytes))
            if connection.isJSON { return try Output.json(pool) }
            print("The pool has at most \(Show.bytes(pool.sizeBytes)) now, \(Show.bytes(pool.freeBytes)) are free")
        }
    }

    struct Check: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prove that a pool which no node has open is sound.",
            discussion: """
                Reads it as a start after a crash would and changes nothing: every checksum, every tree, every block \
                free or with exactly one owner. Exit code 1 when something is wrong, or when a node has the pool open.
                """)

        @Option(
            help: ArgumentHelp("The node's configuration file, as for serve.", valueName: "file"),
            completion: .file(extensions: ["yaml", "yml"]))
        var config: String?
        @Option(help: ArgumentHelp("The node's data directory.", valueName: "directory"), completion: .directory)
        var data: String?
        @Option(help: ArgumentHelp("The pool's file or block device itself.", valueName: "path"), completion: .file())
        var path: String?
        @Flag(name: .customLong("no-data"), help: "Check the maps only; do not read the data.") var skipsData = false
        @Option(
            help: ArgumentHelp(
                "The most memory to take, 512MiB where it is not said; with more the maps of a large pool are walked "
                    + "less often.", valueName: "size"),
            transform: ByteSize.init(parsing:))
        var memory: ByteSize?
        @Flag(help: "First rebuild the allocation map from the maps, and free blocks that were set aside.")
        var repair = false
        @Flag(help: "Let the node write again to a pool that had failed, if it is sound.") var clearFailure = false
        // Only its --output matters: no node is asked.
        @OptionGroup var connection: ConnectionOptions

        func validate() throws {
            guard let memory, !poolCheckMemoryRange.contains(memory.bytes) else { return }
            let (least, most) = (poolCheckMemoryRange.lowerBound, poolCheckMemoryRange.upperBound)
            throw ValidationError("--memory must be from \(Show.bytes(least)) to \(Show.bytes(most)), this machine's")
        }

        func run() async throws {
            let result: PoolCheckInfo
            var told = ContinuousClock.now
            let tell: (String) -> Void = { text in
                guard ContinuousClock.now - told >= .seconds(5) else { return }
                told = .now
                Terminal.error("  " + text)
            }
            do {
                let flags = ["data": data.map(Serve.absolute)].compactMapValues { $0 }
                let configuration = try NodeConfiguration.load(file: config.map(Serve.absolute), flags: flags)
                result = try checkPool(
                    configuration, path: path.map(Serve.absolute), verifiesData: !skipsData, repairs: repair,
                    memoryBytes: memory?.bytes, clearsFailure: clearFailure,
                    progress: connection.isJSON ? nil : tell)
            } catch let error as ConfigurationInvalid {
                throw CommandFailure("Nothing was checked: \(error.description)")
            } catch let error as ServeFailure {
                throw CommandFailure("Nothing was checked: \(error.description)")
            }
            if connection.isJSON { try Output.json(result) } else { print(PoolReport.check(result)) }
            guard result.isSound else { throw ExitCode.failure }
        }
    }
}

enum PoolReport {
    static func description(_ pool: PoolInfo) -> String {
        var text = Description()
        text.add("Path", pool.path)
        text.add("I/O", pool.backend)
        text.add("State", state(pool.state, pool.failure))
        text.add("Size", "at most \(Show.bytes(pool.sizeBytes))")
        text.add("Used", "\(Show.bytes(pool.usedBytes)), \(pool.usedPercent) % of what is used and free")
        text.add("Free", Show.bytes(pool.freeBytes))
        text.add("Threshold", "\(pool.softThresholdPercent) %")
        text.add("Journal", "\(Show.bytes(pool.journalUsedBytes)) of \(Show.bytes(pool.journalSizeBytes)) in use")
        text.add("Epoch", "\(pool.epoch), checkpoint \(pool.generation)")
        text.add(
            "Superblock",
            lines: pool.superblockCopies.map { copy in
                let what = copy.generation.map { "generation \($0)" } ?? "nothing valid"
                return "copy at \(copy.offset): \(what), \(copy.isGood ? "good" : "WRONG")"
            })
        let memory = pool.memory
        text.add(
            "Memory",
            "at most \(Show.bytes(memory.limitBytes)); now \(Show.bytes(memory.overlayBytes)) recent mappings, "
                + "\(Show.bytes(memory.cacheBytes)) of \(Show.bytes(memory.cacheLimitBytes)) page cache, "
                + "\(Show.bytes(memory.bitmapBytes)) bitmaps")
        text.add("Reclaim", reclaim(pool.reclaim))
        text.add("Last scrub", pool.scrub.map(scrub) ?? "never")
        text.add("Alerts", lines: pool.alerts.isEmpty ? ["none"] : pool.alerts.flatMap(alert))
        return text.rendered()
    }

    static func reclaim(_ reclaim: ReclaimInfo) -> String {
        var parts: [String] = []
        let active = reclaim.pending - min(reclaim.pending, reclaim.waiting)
        if active > 0 {
            let percent = reclaim.sizeBytes == 0 ? 0 : reclaim.doneBytes * 100 / reclaim.sizeBytes
            parts.append("\(active) deleted under way, \(percent) % of \(Show.bytes(reclaim.sizeBytes)) looked through")
        }
        if reclaim.waiting > 0 {
            parts.append("\(reclaim.waiting) deleted until one of the states that stand on it is, too")
        }
        if reclaim.leavingBytes > 0 { parts.append("\(Show.bytes(reclaim.leavingBytes)) of the used on their way out") }
        if parts.isEmpty { parts.append("nothing to do") }
        if reclaim.freedBytes > 0 { parts.append("\(Show.bytes(reclaim.freedBytes)) freed since the start") }
        return parts.joined(separator: "; ")
    }

    static func state(_ state: PoolStatus.State, _ failure: String?) -> String {
        let word = state == .healthy ? "healthy" : state == .full ? "FULL" : "READ-ONLY"
        return failure.map { "\(word): \($0)" } ?? word
    }

    static func alert(_ alert: PoolAlert) -> [String] { ["\(alert.kind): \(alert.message)", "  \(alert.hint)"] }

    static func scrub(_ scrub: ScrubInfo) -> String {
        var text =
            switch scrub.state {
            case .running: "running since \(Show.time(scrub.startedAt))"
            case .finished: "finished \(Show.time(scrub.endedAt ?? scrub.startedAt))"
            case .cancelled: "ended before its end"
            }
        text += ", \(Show.bytes(scrub.bytesRead)) of about \(Show.bytes(scrub.expectedBytes)) read, "
        text += scrub.damageCount == 0 ? "nothing wrong" : "\(scrub.damageCount) WRONG"
        if scrub.repairedSuperblocks > 0 { text += ", \(scrub.repairedSuperblocks) superblock copies repaired" }
        return ([text] + scrub.damage.map { "  " + $0 }).joined(separator: "\n")
    }

    static func check(_ result: PoolCheckInfo) -> String {
        guard result.isSound || result.volumes + result.snapshots > 0 || result.mapPages > 0 else {
            return (["\(result.path) was not checked:"] + (result.problems + result.advice).map { "  " + $0 })
                .joined(separator: "\n")
        }
        let head =
            "\(result.path): \(result.volumes) volumes, \(result.snapshots) snapshots, \(result.mapPages) map pages, "
            + "\(result.dataBlocks) data blocks in the maps, \(result.verifiedBlocks) data blocks read"
            + (result.repairedBlocks.map { "; \($0) blocks that had no owner were freed" } ?? "")
            + (result.setAsideBlocks.map { $0 > 0 ? "; \($0) blocks are set aside" : "" } ?? "")
        guard !result.isSound else { return head + "\nThe pool is sound" }
        let advice = result.advice.isEmpty ? [] : ["What to do:"] + result.advice.map { "  " + $0 }
        return ([head, "The pool is NOT sound:"] + result.problems.map { "  " + $0 } + advice)
            .joined(separator: "\n")
    }
}
