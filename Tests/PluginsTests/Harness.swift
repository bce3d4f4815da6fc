import CLinux
import Foundation
import PluginKit
import Synchronization
import Testing

/// The plug-ins' executables lie beside the test bundle.
enum Built {
    static let directory: String = {
        // The bundle is `.build/debug/NAME.xctest`, run as itself or loaded by a runner.
        let maps = (try? String(contentsOfFile: "/proc/self/maps", encoding: .utf8)) ?? ""
        for line in maps.split(separator: "\n") {
            guard let slash = line.firstIndex(of: "/"), line.hasSuffix(".xctest") else { continue }
            return URL(filePath: String(line[slash...])).deletingLastPathComponent().path
        }
        return URL(filePath: CommandLine.arguments[0]).deletingLastPathComponent().path
    }()

    static func plugin(_ name: String) -> String { "\(directory)/stillpoint-plugin-\(name)" }
}

/// What a test finds on the machine.
enum Machine {
    static let isRoot = geteuid() == 0

    static func has(_ programs: String...) -> Bool {
        programs.allSatisfy { program in
            ["/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"].contains {
                FileManager.default.isExecutableFile(atPath: $0 + program)
            }
        }
    }

    static let hasLoopFileSystems =
        isRoot && FileManager.default.fileExists(atPath: "/dev/loop-control")
        && FileManager.default.fileExists(atPath: "/dev/shm")
        && has("losetup", "mkfs.ext4", "mount", "umount")
}

struct ShellFailure: Error, CustomStringConvertible { var description: String }

/// Runs a shell command and gives its output.
@discardableResult
func shell(_ script: String, mayFail: Bool = false) throws -> String {
    let outcome = try Command(["/bin/sh", "-c", script], timeoutSeconds: 300).run()
    guard outcome.isSuccess || mayFail else {
        throw ShellFailure(description: "\(script): \(outcome.explanation)")
    }
    return outcome.output.trimmingCharacters(in: .whitespacesAndNewlines)
}

/// Waits until something becomes true. The limit is far beyond what it takes: it only ends a hopeless wait.
func eventually(_ what: String, _ condition: () async throws -> Bool) async throws {
    for _ in 0..<2400 {
        if try await condition() { return }
        try await Task.sleep(for: .milliseconds(50))
    }
    throw ShellFailure(description: "within two minutes it did not become true that \(what)")
}

/// A running plug-in with a state directory on a tmpfs, ended when it goes.
final class RunningPlugin: Sendable {
    struct Heard {
        var events: [PluginEvent] = []
        var logs: [String] = []
    }

    private final class Ears: Sendable { let heard = Mutex(Heard()) }

    let process: PluginProcess
    private let ears: Ears

    init(_ name: String, arguments: [String] = []) throws {
        let ears = Ears()
        var options = PluginProcess.Options(executable: Built.plugin(name))
        options.onEvent = { event in ears.heard.withLock { $0.events.append(event) } }
        options.onLog = { line in ears.heard.withLock { $0.logs.append(line) } }
        self.ears = ears
        process = try PluginProcess.start(options)
    }

    var events: [PluginEvent] { ears.heard.withLock { $0.events } }
    var logs: [String] { ears.heard.withLock { $0.logs } }

    func quiesce(
        _ holdID: String, _ resources: [PluginResource], state: String, leaseSeconds: Double = 60,
        config: JSONValue? = nil, protectedPaths: [String]? = nil
    ) async throws -> QuiesceResult {
        try await process.quiesce(
            QuiesceParameters(
                holdID: holdID, resources: resources, leaseSeconds: leaseSeconds, config: config,
                stateDirectory: state, protectedPaths: protectedPaths))
    }

    func unquiesce(_ holdID: String) async throws -> [UnquiesceResult.Member] {
        try await process.unquiesce(UnquiesceParameters(holdID: holdID)).members
    }
}

/// A directory on a tmpfs, removed when it goes.
final class StateDirectory: Sendable {
    let path: String

    init() throws {
        path = "/dev/shm/sp-plugins-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    var files: [String] { directoryEntries(path).sorted() }
}

/// A file system on a loop device, thawed, unmounted and removed when it goes. Nothing else is ever frozen by a test.
final class LoopFileSystem: Sendable {
    /// Beyond every lease in these tests: whatever fails, a freeze does not outlive this.
    private static let watchdogSeconds = 240

    let directory: String
    let mountPoint: String
    let loop: String
    let volume: String
    private let watchdog: Int32

    /// What its image lies on; it goes later.
    private let lower: LoopFileSystem?

    /// - Parameter lower: holds the image, so that its freeze makes this device hang.
    init(
        volume: String = "vol1", type: String = "ext4", options: String = "rw", isPartitioned: Bool = false,
        on lower: LoopFileSystem? = nil
    ) throws {
        self.lower = lower
        let directory = "/tmp/sp-plugins-\(UUID().uuidString.prefix(8))"
        let mountPoint = directory + "/mnt"
        try FileManager.default.createDirectory(atPath: mountPoint, withIntermediateDirectories: true)
        let megabytes = lower == nil ? 400 : 100
        if let lower { try shell("ln -s \(lower.mountPoint)/image \(directory)/backing") }
        try shell("truncate -s \(megabytes)M \(directory)/backing")
        if isPartitioned { try shell("echo ',,L' | sfdisk -q \(directory)/backing") }
        let loop = try shell("losetup -f --show \(isPartitioned ? "-P" : "") \(directory)/backing")
        self.directory = directory
        self.mountPoint = mountPoint
        self.loop = loop
        self.volume = volume
        do {
            let device = isPartitioned ? loop + "p1" : loop
            // Nothing of ext4 is left to be initialised later: a freeze of what lies below would find it at work.
            let make = type == "ext4" ? "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0" : "mkfs.\(type) -q"
            // Nothing is left to be written either: that could take longer than a short lease on a slow disk.
            try shell(
                "\(make) \(device) && mount -o \(options) \(device) \(mountPoint) && sync -f \(mountPoint)")
            var pid: pid_t = 0
            let script = "sleep \(Self.watchdogSeconds); fsfreeze -u \(mountPoint)"
            let words: [String] = ["/bin/sh", "-c", script]
            let arguments = words.map { (word: String) in strdup(word) } + [nil]
            defer { for argument in arguments { free(argument) } }
            var environment: [UnsafeMutablePointer<CChar>?] = [nil]
            let code = clinux_spawn(
                "/bin/sh", arguments, &environment, "/", -1, -1, -1, 0, 0, 0, 0, nil, 0, &pid)
            guard code == 0 else { throw ShellFailure(description: "no watchdog: \(code)") }
            watchdog = pid
        } catch {
            _ = try? shell("losetup -d \(loop); rm -rf \(directory)", mayFail: true)
            throw error
        }
    }

    deinit {
        kill(-watchdog, SIGKILL)
        waitpid(watchdog, nil, 0)
        // By the file, not by the number: that may be somebody else's device by now.
        let script = """
            fsfreeze -u \(mountPoint); umount \(mountPoint) || { sleep 1; umount -l \(mountPoint); }
            for device in $(losetup -n -O NAME -j \(directory)/backing); do losetup -d $device; done
            rm -rf \(directory)
            """
        _ = try? shell(script, mayFail: true)
    }

    var device: PluginDevice { PluginDevice(volume: volume, naa: String(repeating: "6", count: 32), path: loop) }

    /// Found as the agent finds it.
    func resource() async throws -> PluginResource {
        let plugin = try RunningPlugin("filesystem")
        let result = try await plugin.process.discover(DiscoverParameters(devices: [device]))
        await plugin.process.end()
        return try #require(result.resources.first)
    }

    /// Asks the kernel: a second freeze is refused only while there is a first.
    var isFrozen: Bool {
        let descriptor = open(mountPoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        defer { close(descriptor) }
        switch clinux_freeze(descriptor) {
        case EBUSY: return true
        case 0:
            _ = clinux_thaw(descriptor)
            return false
        case let code:
            Issue.record("the probe of \(mountPoint) failed: \(code)")
            return false
        }
    }

    func freezeFromOutside() throws { try shell("fsfreeze -f \(mountPoint)") }
    func thawFromOutside() throws { try shell("fsfreeze -u \(mountPoint)") }
}
