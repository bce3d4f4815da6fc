import API
import Foundation
import Testing

@testable import stillpoint_agent

@Suite("Devices")
struct DeviceResolverTests {
    let directory: TemporaryDirectory
    let naa = "6" + String(repeating: "a", count: 31)
    let other = "6" + String(repeating: "b", count: 31)

    init() throws { directory = try TemporaryDirectory() }

    private var resolver: DeviceResolver {
        DeviceResolver(
            sysfs: directory.path + "/sys", devices: "/dev", attachments: directory.path + "/attachments")
    }

    private func note(_ name: String, naa: String, device: String, backing: String, readOnly: Bool = false) throws {
        try directory.write(
            """
            {"volume":"\(name)","naa":"\(naa)","device":"\(device)","iqn":"iqn.x","lun":0,"portal":"127.0.0.1:3260",
             "backing":"\(backing)","readOnly":\(readOnly),"processes":[1]}
            """, to: "attachments/\(name).json")
    }

    @Test("a SCSI disk is found by its identifier, over each of its paths")
    func scsi() throws {
        try directory.write("naa.\(naa)\n", to: "sys/block/sdb/device/wwid")
        try directory.write("naa.\(other)\n", to: "sys/block/sdc/device/wwid")
        try directory.write("t10.ATA\n", to: "sys/block/sda/device/wwid")
        try directory.write("naa.\(naa.uppercased())\n", to: "sys/block/sdd/device/wwid")
        let found = resolver.resolve([VolumeReference(name: "db", naa: naa.uppercased())])
        #expect(found.devices.map(\.path) == ["/dev/sdb", "/dev/sdd"])
        #expect(found.devices.allSatisfy { $0.volume == "db" && $0.naa == naa })
        #expect(found.warnings.isEmpty)
        #expect(resolver.resolve([]).devices.isEmpty)
    }

    @Test("an attachment counts only as long as its loop device has the file it names")
    func attachments() throws {
        try note("db", naa: naa, device: "/dev/loop3", backing: "/run/x/disk")
        try directory.write("/run/x/disk\n", to: "sys/block/loop3/loop/backing_file")
        #expect(
            resolver.resolve([VolumeReference(name: "db", naa: naa)]).devices
                == [DeviceInfo(volume: "db", naa: naa, path: "/dev/loop3")])
        #expect(resolver.candidates() == [VolumeReference(name: "db", naa: naa)])
        try directory.write("/somebody/else\n", to: "sys/block/loop3/loop/backing_file")
        let reused = resolver.resolve([VolumeReference(name: "db", naa: naa)])
        #expect(reused.devices.isEmpty)
        #expect(reused.warnings.count == 1)
    }

    @Test("notes of vanished devices, of snapshots and of strangers are not believed")
    func stale() throws {
        try note("gone", naa: naa, device: "/dev/loop9", backing: "/x")
        try note("copy", naa: naa, device: "/dev/loop4", backing: "/y", readOnly: true)
        try directory.write("/y\n", to: "sys/block/loop4/loop/backing_file")
        try directory.write("{ truncated", to: "attachments/bad.json")
        let found = resolver.resolve([VolumeReference(name: "db", naa: naa)])
        #expect(found.devices.isEmpty)
        #expect(found.warnings.count == 2)
        try FileManager.default.setAttributes(
            [.posixPermissions: 0o777], ofItemAtPath: directory.path + "/attachments")
        #expect(resolver.resolve([VolumeReference(name: "db", naa: naa)]).warnings.count == 1)
    }
}
