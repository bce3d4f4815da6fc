import Foundation

/// What a finished command left behind.
struct CommandResult: CustomStringConvertible {
    var arguments: [String]
    var status: Int32
    var output: String
    var errors: String

    var description: String {
        "\(arguments.joined(separator: " ")) ended with \(status)\nstdout: \(output)\nstderr: \(errors)"
    }
}

struct CommandFailed: Error, CustomStringConvertible {
    var description: String
}

/// Runs real programs; everything that they print goes through files, so that no pipe can fill up and block.
enum Shell {
    static let environment = ProcessInfo.processInfo.environment

    static func locate(_ name: String) -> String? {
        if name.hasPrefix("/") { return FileManager.default.isExecutableFile(atPath: name) ? name : nil }
        let folders = (environment["PATH"] ?? "").split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"]
        return folders.map { "\($0)/\(name)" }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }

    static func start(
        _ arguments: [String], environment extra: [String: String] = [:], outputPath: String, errorPath: String? = nil,
        leadsGroup: Bool = false
    ) throws -> ChildProcess {
        try ChildProcess(
            arguments, environment: environment.merging(extra) { $1 }, inputPath: "/dev/null", outputPath: outputPath,
            errorPath: errorPath, leadsGroup: leadsGroup)
    }

    /// Runs to the end, at most `timeoutSeconds`; then it is killed and the result's status is 124.
    static func run(
        _ arguments: [String], environment extra: [String: String] = [:], input: String? = nil,
        timeoutSeconds: Double = 180
    ) throws -> CommandResult {
        let folder = try TemporaryFolder(prefix: "sp-run")
        defer { folder.remove() }
        let inputPath = folder.path + "/in"
        try (input ?? "").write(toFile: inputPath, atomically: false, encoding: .utf8)
        let process = try ChildProcess(
            arguments, environment: environment.merging(extra) { $1 }, inputPath: inputPath,
            outputPath: folder.path + "/out", errorPath: folder.path + "/err")
        let ended = wait(upToSeconds: timeoutSeconds) { !process.isRunning }
        // A process in an uninterruptible wait does not die before its device answers: it is not waited for.
        if !ended { kill(process.processIdentifier, SIGKILL) }
        func text(_ name: String) -> String {
            let path = folder.path + "/" + name
            return String(decoding: (try? Data(contentsOf: URL(filePath: path))) ?? Data(), as: UTF8.self)
        }
        return CommandResult(
            arguments: arguments, status: ended ? process.terminationStatus : 124, output: text("out"),
            errors: text("err"))
    }

    /// Like `run`, but a status other than 0 is an error.
    @discardableResult
    static func check(
        _ arguments: [String], environment: [String: String] = [:], input: String? = nil, timeoutSeconds: Double = 180
    ) throws -> String {
        let result = try run(arguments, environment: environment, input: input, timeoutSeconds: timeoutSeconds)
        guard result.status == 0 else { throw CommandFailed(description: result.description) }
        return result.output
    }

    /// Polls `condition` until it holds; false when it never did. The default only ends a hopeless wait, on the
    /// slowest of machines: less is for what has to be done by then.
    static func wait(upToSeconds seconds: Double = 120, _ condition: () throws -> Bool) rethrows -> Bool {
        let clock = ContinuousClock()
        let deadline = clock.now + .seconds(seconds)
        while clock.now < deadline {
            if try condition() { return true }
            usleep(20_000)
        }
        return try condition()
    }
}

/// A folder under /tmp with a short name: paths of UNIX sockets are limited to 108 bytes.
struct TemporaryFolder {
    let path: String

    init(prefix: String) throws {
        path = "/tmp/\(prefix)-\(UInt32.random(in: 0..<UInt32.max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
    }

    func remove() { try? FileManager.default.removeItem(atPath: path) }
}
