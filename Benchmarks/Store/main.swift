import BlockIO
import BlockStore
import Glibc

// Reads one command a line, `verb key=value …`, and answers each with one line of JSON. Benchmarks/bench.py drives it,
// so that one process can keep a pool open while loads on it and on other things alternate.

struct Command {
    let verb: String
    private let values: [String: String]

    init(_ line: String) {
        let words = line.split(separator: " ").map(String.init)
        verb = words.first ?? ""
        var values: [String: String] = [:]
        for word in words.dropFirst() {
            let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
            values[parts[0]] = parts.count > 1 ? parts[1] : "1"
        }
        self.values = values
    }

    func text(_ key: String, _ fallback: String = "") -> String { values[key] ?? fallback }
    func number(_ key: String, _ fallback: UInt64 = 0) -> UInt64 { values[key].flatMap { UInt64($0) } ?? fallback }
    func real(_ key: String, _ fallback: Double) -> Double { values[key].flatMap { Double($0) } ?? fallback }
}

final class Bench {
    private var pool: Pool?
    private var hollowFile: HollowFile?
    private var subjects: [String: any Subject] = [:]
    private var files: [String: FileSubject] = [:]
    private var volumes: [String: VolumeID] = [:]
    private var snapshotCount = 0

    func run(_ command: Command) throws -> String {
        switch command.verb {
        case "create", "open":
            var options = PoolOptions()
            options.maxSizeBytes = command.number("size", 64 << 40)
            options.journalBytes = command.number("journal", options.journalBytes)
            options.cacheBytes = command.number("cache", options.cacheBytes)
            options.overlayEntries = Int(command.number("overlay", UInt64(options.overlayEntries)))
            options.backend = StorageBackend(rawValue: command.text("io", "auto"))!
            // `stillpoint serve` has one.
            let log = command.text("log")
            options.volatileLogDirectory = log.isEmpty ? nil : log
            if command.number("memory") > 0 { options.limitMemory(toBytes: command.number("memory")) }
            let began = nanoseconds()
            let made = try isHollow(command) ? hollow(command, &options) : plain(command, options)
            pool = made
            snapshotCount = Int(made.statistics.epoch)
            for volume in made.volumes() {
                volumes[volume.name] = volume.id
                subjects[volume.name] = DeviceSubject(try made.device(of: volume.id))
            }
            return "{\"seconds\":\(Double(nanoseconds() - began) / 1e9)}"
        case "close":
            try pool?.close()
            pool = nil
            volumes = [:]
            subjects = subjects.filter { files[$0.key] != nil }
            return "{}"
        case "volume":
            let id = VolumeID.random()
            let name = command.text("name")
            _ = try opened.createVolume(id: id, name: name, sizeBytes: command.number("size"))
            volumes[name] = id
            subjects[name] = DeviceSubject(try opened.device(of: id))
            return "{}"
        case "file":
            let file = try FileSubject(
                path: command.text("path"), isDirect: command.number("direct") == 1,
                allocatesAnew: command.number("anew") == 1)
            subjects[command.text("name")] = file
            files[command.text("name")] = file
            return "{}"
        case "endfile":
            subjects[command.text("name")] = nil
            files.removeValue(forKey: command.text("name"))?.close()
            return "{}"
        case "fill": return try fill(command)
        case "run": return RunningLoad(load(command), on: try subject(command)).join().json
        case "snapshots": return try takeSnapshots(command)
        case "pause": return try pauses(command)
        case "timed": return try timedSnapshots(command)
        case "delete": return try deleteSnapshots(from: command.number("from"), count: command.number("count", .max))
        case "diff": return try diff(command)
        case "unmap":
            let began = nanoseconds()
            try subject(command).unmap(at: command.number("at"), lengthBytes: command.number("length"))
            return "{\"seconds\":\(Double(nanoseconds() - began) / 1e9)}"
        case "check":
            let began = nanoseconds()
            let report = PoolChecker.check(
                opened, verifiesData: false, memoryBytes: command.number("memory", PoolChecker.defaultMemoryBytes))
            return "{\"seconds\":\(Double(nanoseconds() - began) / 1e9),\"problems\":\(report.problems.count),"
                + "\"mapPages\":\(report.mapPages),\"dataBlocks\":\(report.dataBlocks)}"
        case "maintain":
            let began = nanoseconds()
            try opened.maintain()
            return "{\"seconds\":\(Double(nanoseconds() - began) / 1e9)}"
        case "stats": return statistics()
        default: throw Unknown(verb: command.verb)
        }
    }

    struct Unknown: Error { var verb: String }

    private func plain(_ command: Command, _ options: PoolOptions) throws -> Pool {
        let path = command.text("path")
        return try command.verb == "create"
            ? Pool.create(path: path, options: options) : Pool.open(path: path, options: options)
    }

    private func isHollow(_ command: Command) -> Bool { command.number("hollow") == 1 }

    private func hollow(_ command: Command, _ options: inout PoolOptions) throws -> Pool {
        // Zeros are to be mapped like anything else.
        options.detectsZeros = false
        let isNew = command.verb == "create"
        let file = HollowFile(try HostFile(path: command.text("path"), mode: isNew ? .create : .readWrite))
        hollowFile = file
        return try isNew ? Pool.create(on: file, options: options) : Pool.open(on: file, options: options)
    }

    /// Maps a volume from `from` to `to` with blocks of zeros, as far as it gets in `seconds`.
    private func fill(_ command: Command) throws -> String {
        let subject = try subject(command)
        guard let zeros = hollowFile?.zeros else { throw Unknown(verb: "fill of a pool that is not hollow") }
        let began = nanoseconds()
        let deadline = began + UInt64(command.real("seconds", 60) * 1e9)
        var offset = command.number("from")
        while offset < command.number("to"), nanoseconds() < deadline {
            try subject.write(at: offset, from: zeros)
            offset += UInt64(zeros.count)
        }
        try subject.flush()
        return "{\"filled\":\(offset),\"seconds\":\(Double(nanoseconds() - began) / 1e9)}"
    }

    private var opened: Pool { pool! }

    private func subject(_ command: Command) throws -> any Subject {
        guard let subject = subjects[command.text("on")] else { throw Unknown(verb: command.text("on")) }
        return subject
    }

    private func load(_ command: Command) -> Load {
        var load = Load()
        load.isWrite = command.text("op", "write") == "write"
        load.pattern = Load.Pattern(rawValue: command.text("pattern", "random"))!
        load.depth = Int(command.number("depth", 1))
        load.threads = Int(command.number("threads"))
        load.blockBytes = Int(command.number("block", 4096))
        load.sizeBytes = command.number("size", 1 << 30)
        load.seconds = command.real("seconds", 2)
        load.calls = command.number("calls")
        load.flushInterval = command.number("flush")
        load.stepBytes = command.number("step")
        load.seed = command.number("seed", 1)
        return load
    }

    private func snapshot(_ names: [String]) throws {
        snapshotCount += 1
        let ids = names.compactMap { volumes[$0] }
        _ = try opened.createSnapshot(id: .random(), name: "s\(snapshotCount)", volumes: ids, attributes: [])
    }

    /// `count` snapshots, each after `writes` random writes. Tells the time of each call.
    private func takeSnapshots(_ command: Command) throws -> String {
        var times = Histogram()
        let name = command.text("on")
        let writes = command.number("writes")
        var parts = load(command)
        parts.calls = writes
        for index in 0..<command.number("count", 1) {
            if writes > 0 {
                parts.seed = index + 77
                _ = RunningLoad(parts, on: try subject(command)).join()
            }
            let began = nanoseconds()
            try snapshot([name])
            times.add(nanoseconds() - began)
        }
        return describe(times)
    }

    /// A snapshot every `every` seconds while the load runs.
    private func timedSnapshots(_ command: Command) throws -> String {
        let running = RunningLoad(load(command), on: try subject(command))
        let name = command.text("on")
        let began = nanoseconds()
        var times = Histogram()
        let every = command.real("every", 1)
        var next = every
        while Double(nanoseconds() - began) / 1e9 < command.real("seconds", 2) {
            usleep(1000)
            guard Double(nanoseconds() - began) / 1e9 >= next else { continue }
            next += every
            let start = nanoseconds()
            try snapshot([name])
            times.add(nanoseconds() - start)
        }
        return "{\"load\":\(running.join().json),\"snapshots\":\(describe(times))}"
    }

    /// What snapshots cost the writers: the time of the writes that overlap a call of createSnapshot. With `control` the
    /// call is a flush, which tells what the disk and the machine do by themselves.
    private func pauses(_ command: Command) throws -> String {
        var parts = load(command)
        parts.calls = 0
        parts.seconds = 3600
        let subject = try subject(command)
        let running = RunningLoad(parts, on: subject)
        let isControl = command.number("control") == 1
        var calls = Histogram()
        for _ in 0..<command.number("count", 200) {
            usleep(UInt32(command.number("everyus", 5000)))
            let began = nanoseconds()
            running.openWindow()
            if isControl { try subject.flush() } else { try snapshot([command.text("on")]) }
            running.closeWindow()
            calls.add(nanoseconds() - began)
        }
        running.end()
        let result = running.join()
        return "{\"load\":\(result.json),\"pause\":\(describe(result.inWindow)),\"call\":\(describe(calls))}"
    }

    /// What differs between two snapshots.
    private func diff(_ command: Command) throws -> String {
        let snapshots = opened.snapshots()
        func id(_ key: String) throws -> SnapshotID {
            let index = Int(command.number(key))
            guard snapshots.indices.contains(index) else { throw Unknown(verb: "snapshot \(index)") }
            return snapshots[index].id
        }
        guard let volume = volumes[command.text("on")] else { throw Unknown(verb: command.text("on")) }
        let began = nanoseconds()
        let diff = try opened.diff(from: id("from"), to: id("to"), volume: volume)
        var extents = 0
        var bytes: UInt64 = 0
        while let found = try diff.next() {
            extents += found.count
            bytes += found.reduce(0) { $0 + $1.lengthBytes }
        }
        return "{\"seconds\":\(Double(nanoseconds() - began) / 1e9),\"extents\":\(extents),\"bytes\":\(bytes)}"
    }

    private func deleteSnapshots(from first: UInt64, count: UInt64) throws -> String {
        let began = nanoseconds()
        for (index, snapshot) in opened.snapshots().enumerated()
        where index >= first && UInt64(index) - first < count { try opened.deleteSnapshot(snapshot.id) }
        let deleted = nanoseconds()
        while opened.statistics.reclaimsPending > 0 { try opened.maintain() }
        let ended = nanoseconds()
        return "{\"deleteSeconds\":\(Double(deleted - began) / 1e9),"
            + "\"reclaimSeconds\":\(Double(ended - deleted) / 1e9)}"
    }

    private func describe(_ times: Histogram) -> String {
        "{\"count\":\(times.count),\"p50us\":\(Double(times.quantile(0.5)) / 1000),"
            + "\"p99us\":\(Double(times.quantile(0.99)) / 1000),\"maxus\":\(Double(times.longest) / 1000)}"
    }

    private func statistics() -> String {
        let now = opened.statistics
        return "{\"used\":\(now.usedBytes),\"data\":\(now.dataBytesWritten),\"metadata\":\(now.metadataBytesWritten),"
            + "\"journal\":\(now.journalBytesWritten),\"commits\":\(now.commits),\"checkpoints\":\(now.checkpoints),"
            + "\"overlay\":\(now.overlayEntries),\"reclaims\":\(now.reclaimsPending)}"
    }
}

/// Past the C library's buffer, so that whoever asked gets it now.
func answer(_ text: String) {
    let line = Array((text + "\n").utf8)
    line.withUnsafeBytes { _ = write(1, $0.baseAddress, $0.count) }
}

let bench = Bench()
while let line = readLine() {
    let command = Command(line)
    if command.verb.isEmpty { continue }
    if command.verb == "quit" { break }
    do {
        answer(try bench.run(command))
    } catch {
        answer("{\"error\":\"\(error)\"}")
    }
}
