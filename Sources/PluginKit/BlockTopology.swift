import Glibc

/// How block devices stand on one another: partitions, device-mapper, MD and LVM, as sysfs shows it.
public struct BlockTopology: Sendable {
    /// `/sys`, or a made-up one in tests.
    public var sysfs: String

    public init(sysfs: String = "/sys") { self.sysfs = sysfs }

    private func directory(_ device: DeviceNumber) -> String { "\(sysfs)/dev/block/\(device)" }

    private func number(_ path: String) -> DeviceNumber? {
        readText("\(path)/dev").flatMap { DeviceNumber($0.trimmedOfSpace) }
    }

    public func name(_ device: DeviceNumber) -> String {
        resolvedPath(directory(device)).map { "/dev/\($0.split(separator: "/").last ?? "")" } ?? "\(device)"
    }

    /// The device and everything that stands on it.
    public func above(_ device: DeviceNumber) -> Set<DeviceNumber> {
        var found: Set = [device]
        var open = [device]
        while let next = open.popLast() {
            let base = directory(next)
            let partitions = directoryEntries(base).filter { access("\(base)/\($0)/partition", F_OK) == 0 }
            let holders = directoryEntries("\(base)/holders")
            let higher = partitions.map { "\(base)/\($0)" } + holders.map { "\(sysfs)/class/block/\($0)" }
            for number in higher.compactMap({ number($0) }) where found.insert(number).inserted {
                open.append(number)
            }
        }
        return found
    }

    /// The devices at the bottom that the device stands on; itself when it stands on none.
    public func leaves(_ device: DeviceNumber) -> Set<DeviceNumber> {
        var leaves: Set<DeviceNumber> = []
        var seen: Set = [device]
        var open = [device]
        while let next = open.popLast() {
            let base = directory(next)
            var lower = directoryEntries("\(base)/slaves").compactMap { number("\(sysfs)/class/block/\($0)") }
            if lower.isEmpty, access("\(base)/partition", F_OK) == 0, let disk = resolvedPath(base + "/.."),
                let number = number(disk)
            {
                lower = [number]
            }
            if lower.isEmpty { leaves.insert(next) }
            for number in lower where seen.insert(number).inserted { open.append(number) }
        }
        return leaves
    }

    /// What a volume that is itself a multipath or a partition stands on belongs to it.
    public func leavesOf(_ devices: Set<DeviceNumber>) -> Set<DeviceNumber> {
        devices.reduce(into: []) { $0.formUnion(leaves($1)) }
    }

    /// The number of the partition, and nil for a device that is none.
    public func partition(_ device: DeviceNumber) -> Int? {
        readText("\(directory(device))/partition").flatMap { Int($0.trimmedOfSpace) }
    }

    /// The device's path of a disk's partition.
    public func partitionPath(disk: DeviceNumber, partition: Int) -> String? {
        let base = directory(disk)
        return directoryEntries(base).first {
            readText("\(base)/\($0)/partition").map { $0.trimmedOfSpace } == "\(partition)"
        }.map { "/dev/\($0)" }
    }

    /// The devices of the btrfs that a device belongs to, and its UUID.
    public func btrfs(_ device: DeviceNumber) -> (uuid: String, devices: Set<DeviceNumber>)? {
        for uuid in directoryEntries("\(sysfs)/fs/btrfs") where uuid.utf8.count == 36 {
            let base = "\(sysfs)/fs/btrfs/\(uuid)/devices"
            let devices = Set(directoryEntries(base).compactMap { number("\(base)/\($0)") })
            if devices.contains(device) { return (uuid, devices) }
        }
        return nil
    }

    public static func number(ofPath path: String) -> DeviceNumber? {
        guard let status = fileStatus(path), status.st_mode & S_IFMT == S_IFBLK else { return nil }
        return DeviceNumber(UInt64(status.st_rdev))
    }
}

extension StringProtocol {
    /// Without white space at both ends.
    public var trimmedOfSpace: String {
        String(drop { $0.isWhitespace }.reversed().drop { $0.isWhitespace }.reversed())
    }
}
