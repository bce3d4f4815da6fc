import Foundation

/// A line of /proc/self/mountinfo.
struct MountTable {
    struct Entry: Equatable {
        /// `MAJOR:MINOR`.
        var device: String
        var mountPoint: String
        var source: String
    }

    static func read() -> [Entry] {
        guard let text = try? String(contentsOfFile: "/proc/self/mountinfo", encoding: .utf8) else { return [] }
        return parse(text)
    }

    /// Format: proc(5). Blanks in paths are written as octal escapes.
    static func parse(_ text: String) -> [Entry] {
        text.split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ").map(String.init)
            guard fields.count > 6, let separator = fields.firstIndex(of: "-"), separator + 2 < fields.count else {
                return nil
            }
            return Entry(
                device: fields[2], mountPoint: unescape(fields[4]), source: unescape(fields[separator + 2]))
        }
    }

    private static func unescape(_ text: String) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.first {
            let digits = rest.dropFirst().prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest = rest.dropFirst(4)
            } else {
                bytes.append(byte)
                rest = rest.dropFirst()
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Who uses a block device or one of its partitions.
enum DeviceUses {
    static func find(_ device: String) -> [DeviceUse] {
        let name = (device as NSString).lastPathComponent
        let system = "/sys/block/" + name
        let entries = (try? FileManager.default.contentsOfDirectory(atPath: system)) ?? []
        let partitions = entries.filter { $0.hasPrefix(name) }.sorted()
        let devices = [device] + partitions.map { "/dev/" + $0 }
        let numbers = ([system] + partitions.map { system + "/" + $0 }).compactMap { number(at: $0) }

        var uses: [DeviceUse] = MountTable.read()
            .filter { numbers.contains($0.device) || devices.contains($0.source) }
            .map { .mounted(at: $0.mountPoint) }
        if let swaps = try? String(contentsOfFile: "/proc/swaps", encoding: .utf8),
            swaps.split(separator: "\n").contains(where: { line in devices.contains { line.hasPrefix($0 + " ") } })
        {
            uses.append(.swap)
        }
        for path in [system] + partitions.map({ system + "/" + $0 }) {
            let holders = (try? FileManager.default.contentsOfDirectory(atPath: path + "/holders")) ?? []
            uses += holders.sorted().map { .holder("/dev/" + $0) }
        }
        uses += openers(of: Set(devices))
        if uses.isEmpty, isClaimed(devices) { uses.append(.claimed) }
        return uses
    }

    private static func number(at path: String) -> String? {
        (try? String(contentsOfFile: path + "/dev", encoding: .utf8))?.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private static func openers(of devices: Set<String>) -> [DeviceUse] {
        let processes = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return processes.compactMap(Int32.init).sorted().filter { $0 != getpid() }.compactMap { pid in
            let folder = "/proc/\(pid)/fd"
            let descriptors = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
            let isOpen = descriptors.contains { descriptor in
                (try? FileManager.default.destinationOfSymbolicLink(atPath: folder + "/" + descriptor))
                    .map(devices.contains) ?? false
            }
            guard isOpen else { return nil }
            let command = (try? String(contentsOfFile: "/proc/\(pid)/comm", encoding: .utf8)) ?? "a process"
            return .openedBy(pid: pid, command: command.trimmingCharacters(in: .whitespacesAndNewlines))
        }
    }

    /// An exclusive open fails with EBUSY as long as the kernel itself holds the device, whatever the namespace.
    private static func isClaimed(_ devices: [String]) -> Bool {
        devices.contains { device in
            let descriptor = open(device, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK)
            if descriptor >= 0 {
                close(descriptor)
                return false
            }
            return errno == EBUSY
        }
    }
}
