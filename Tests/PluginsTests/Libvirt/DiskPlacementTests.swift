import Foundation
import PluginKit
import Testing

@testable import stillpoint_plugin_libvirt

/// Guests' disks on multipath, LVM and partitions, as a made-up sysfs shows them: machines for tests have no
/// device-mapper. Only the device nodes are real; nothing stands behind their numbers.
@Suite("Placement of guests' disks", .enabled(if: Machine.isRoot, "device nodes need root"))
struct DiskPlacementTests {
    /// The volume `db` over two paths, a multipath device over them with a partition; the volume `log` as a whole disk.
    /// LVM: `data` on the partition, `wide` on the partition and on `log`, `mixed` on the partition and a disk of the
    /// host's own.
    private final class Host {
        let path: String
        static let numbers = [
            "sdb": "4000:16", "sdc": "4000:32", "sdd": "4000:48", "sde": "4000:64", "dm-0": "4001:0", "dm-1": "4001:1",
            "dm-2": "4001:2", "dm-3": "4001:3", "dm-4": "4001:4",
        ]
        static let below = [
            "dm-0": ["sdb", "sdc"], "dm-1": ["dm-0"], "dm-2": ["dm-1"], "dm-3": ["dm-1", "sdd"],
            "dm-4": ["dm-1", "sde"],
        ]
        static let identifiers = [
            "dm-0": "mpath-3600", "dm-1": "part1-mpath-3600", "dm-2": "LVM-data", "dm-3": "LVM-wide",
            "dm-4": "LVM-mixed",
        ]

        init() throws {
            path = FileManager.default.temporaryDirectory.appending(path: "sp-dm-\(UUID().uuidString.prefix(8))").path
            var script = "mkdir -p \(path)/dev/block \(path)/class/block \(path)/nodes\ncd \(path)\n"
            for (name, number) in Self.numbers.sorted(by: { $0.key < $1.key }) {
                let parts = number.split(separator: ":")
                script += """
                    mkdir -p devices/\(name)/holders devices/\(name)/slaves; echo \(number) > devices/\(name)/dev
                    ln -s ../../devices/\(name) dev/block/\(number); ln -s ../../devices/\(name) class/block/\(name)
                    mknod nodes/\(name) b \(parts[0]) \(parts[1])

                    """
            }
            for (upper, lower) in Self.below {
                for name in lower {
                    script += "touch devices/\(name)/holders/\(upper) devices/\(upper)/slaves/\(name)\n"
                }
            }
            for (name, text) in Self.identifiers {
                script += "mkdir devices/\(name)/dm; echo \(text) > devices/\(name)/dm/uuid\n"
            }
            try shell(script)
        }

        deinit { try? FileManager.default.removeItem(atPath: path) }

        func node(_ name: String) -> String { "\(path)/nodes/\(name)" }

        func placer(_ resources: [PluginResource] = [], mounts: String = "") -> DiskPlacer {
            let naa = String(repeating: "6", count: 32)
            let devices = [("db", "sdb"), ("db", "sdc"), ("log", "sdd")].map {
                PluginDevice(volume: $0.0, naa: naa, path: node($0.1))
            }
            return DiskPlacer(
                DiscoverParameters(devices: devices, resources: resources), isLocal: true,
                topology: BlockTopology(sysfs: path), mounts: MountTable(text: mounts))
        }

        func place(_ name: String) -> DiskPlacement {
            placer().place(
                GuestDisk(
                    target: "vda", kind: .disk, source: .block(path: node(name)), format: "raw", isReadOnly: false))
        }
    }

    @Test("a path, the multipath device, its partition and a logical volume on it all lie on the volume")
    func below() throws {
        let host = try Host()
        for name in ["sdb", "sdc", "dm-0", "dm-1", "dm-2"] {
            let placement = host.place(name)
            #expect(placement.way == .block, "\(name)")
            #expect(placement.volumes == ["db"], "\(name)")
            #expect(placement.outside == nil, "\(name)")
        }
    }

    @Test("a logical volume over two volumes lies on both; one that is partly elsewhere says so")
    func spanning() throws {
        let host = try Host()
        #expect(host.place("dm-3").volumes == ["db", "log"])
        #expect(host.place("dm-3").outside == nil)
        let mixed = host.place("dm-4")
        #expect(mixed.volumes == ["db"])
        #expect(mixed.outside?.contains("/dev/sde, which is no volume") == true)
        let foreign = host.place("sde")
        #expect(foreign.way == nil && foreign.volumes.isEmpty && foreign.outside?.contains("is on no volume") == true)
    }

    @Test("an image file on a file system on a logical volume on multipath is found by its mount")
    func imageFile() throws {
        let host = try Host()
        let mount = "\(host.path)/images"
        try shell("mkdir \(mount); truncate -s 1M \(mount)/web.img")
        let fileSystem = PluginResource(
            id: mount, label: "ext4", layer: .fileSystem, volumes: ["db", "log"], details: ["superblock": "4001:3"])
        let placer = host.placer([fileSystem], mounts: "30 1 4001:3 / \(mount) rw - ext4 /dev/mapper/vg-wide rw\n")
        let placement = placer.place(
            GuestDisk(
                target: "vda", kind: .disk, source: .file(path: "\(mount)/web.img"), format: "raw", isReadOnly: false))
        #expect(placement.way == .file)
        #expect(placement.volumes == ["db", "log"])
        #expect(placement.fileSystems == [mount])
    }
}
