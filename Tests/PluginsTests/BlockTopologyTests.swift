import Foundation
import PluginKit
import Testing

@testable import stillpoint_plugin_filesystem

/// Partitions, device-mapper and btrfs as a made-up sysfs shows them: machines for tests have no device-mapper.
@Suite("Block topology")
struct BlockTopologyTests {
    /// Two disks with a partition each, a mapped device over both partitions, and a disk of its own.
    final class FakeSysfs {
        let path: String

        init() throws {
            let name = "sp-sysfs-\(UUID().uuidString.prefix(8))"
            path = FileManager.default.temporaryDirectory.appending(path: name).path
            try shell(
                """
                mkdir -p \(path)/dev/block \(path)/class/block; cd \(path)
                device() { mkdir -p devices/$1/holders devices/$1/slaves; echo $2 > devices/$1/dev
                    ln -s ../../devices/$1 dev/block/$2; ln -s ../../devices/$1 class/block/${1##*/}; }
                device sdb 8:16; device sdb/sdb1 8:17; echo 1 > devices/sdb/sdb1/partition
                device sdc 8:32; device sdc/sdc2 8:34; echo 2 > devices/sdc/sdc2/partition
                device sdd 8:48; device dm-0 253:0
                touch devices/sdb/sdb1/holders/dm-0 devices/sdc/sdc2/holders/dm-0
                touch devices/dm-0/slaves/sdb1 devices/dm-0/slaves/sdc2
                u=fs/btrfs/0b1c2d3e-0000-4000-8000-000000000001/devices; mkdir -p $u
                ln -s ../../../../devices/sdc $u/sdc; ln -s ../../../../devices/sdd $u/sdd
                """)
        }

        deinit { try? FileManager.default.removeItem(atPath: path) }
    }

    private func numbers(_ texts: String...) -> Set<DeviceNumber> { Set(texts.compactMap { DeviceNumber($0) }) }

    @Test("what stands on a disk is found through partitions and mapped devices")
    func above() throws {
        let sysfs = try FakeSysfs()
        let topology = BlockTopology(sysfs: sysfs.path)
        #expect(topology.above(DeviceNumber(major: 8, minor: 16)) == numbers("8:16", "8:17", "253:0"))
        #expect(topology.above(DeviceNumber(major: 8, minor: 48)) == numbers("8:48"))
    }

    @Test("the disks below a mapped device are found, also those that are no volume of ours")
    func leaves() throws {
        let sysfs = try FakeSysfs()
        let topology = BlockTopology(sysfs: sysfs.path)
        #expect(topology.leaves(DeviceNumber(major: 253, minor: 0)) == numbers("8:16", "8:32"))
        #expect(topology.leaves(DeviceNumber(major: 8, minor: 17)) == numbers("8:16"))
        #expect(topology.leaves(DeviceNumber(major: 8, minor: 48)) == numbers("8:48"))
    }

    @Test("a partition is found again on the device its disk has become")
    func partitions() throws {
        let sysfs = try FakeSysfs()
        let topology = BlockTopology(sysfs: sysfs.path)
        #expect(topology.partition(DeviceNumber(major: 8, minor: 34)) == 2)
        #expect(topology.partition(DeviceNumber(major: 8, minor: 32)) == nil)
        #expect(topology.partitionPath(disk: DeviceNumber(major: 8, minor: 32), partition: 2) == "/dev/sdc2")
        #expect(topology.partitionPath(disk: DeviceNumber(major: 8, minor: 32), partition: 1) == nil)
    }

    @Test("all devices of a btrfs are found from any of them")
    func btrfs() throws {
        let sysfs = try FakeSysfs()
        let topology = BlockTopology(sysfs: sysfs.path)
        let found = topology.btrfs(DeviceNumber(major: 8, minor: 48))
        #expect(found?.uuid == "0b1c2d3e-0000-4000-8000-000000000001")
        #expect(found?.devices == numbers("8:32", "8:48"))
        #expect(topology.btrfs(DeviceNumber(major: 8, minor: 16)) == nil)
    }
}
