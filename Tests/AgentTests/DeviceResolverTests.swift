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

    @Test("inside of a guest a disk is known by its serial or WWN, if the guest is the one that its host spoke of")
    func guestDisks() throws {
        let guest = "0b1c2d3e-0000-4000-8000-00000000abcd"
        try directory.write(guest.uppercased() + "\n", to: "sys/class/dmi/id/product_uuid")
        try directory.write("a-serial-of-more-tha", to: "sys/block/vda/serial")
        try directory.write("\u{0}\u{80}\u{0}\u{4}db-2", to: "sys/block/sda/device/vpd_pg80")
        try directory.write("naa.5000c50015ea71ad\n", to: "sys/block/sdb/device/wwid")
        try directory.write("twin\n", to: "sys/block/vdb/serial")
        try directory.write("twin\n", to: "sys/block/vdc/serial")
        func look(_ serial: String?, _ wwn: String?, guest: String = guest) -> DeviceResolver.Finding {
            let disk = GuestDiskReference(guest: guest, target: "vdx", serial: serial, wwn: wwn)
            return resolver.resolve([VolumeReference(name: "db", naa: naa, guestDisks: [disk])])
        }
        #expect(
            look("a-serial-of-more-than-20-bytes", nil).devices
                == [DeviceInfo(volume: "db", naa: naa, path: "/dev/vda", guest: guest)])
        #expect(look("db-2", nil).devices.map(\.path) == ["/dev/sda"])
        #expect(look(nil, "5000c50015ea71ad").devices.map(\.path) == ["/dev/sdb"])
        #expect(look("db-2", nil, guest: "another").devices.isEmpty)
        #expect(look("db-2", nil, guest: "another").unseen.isEmpty)
        for (serial, reason) in [("gone", "is not seen in the guest"), ("twin", "vdb, vdc have")] {
            let found = look(serial, nil)
            #expect(found.devices.isEmpty)
            #expect(found.unseen.first?.reason.contains(reason) == true)
            #expect(found.unseen.first?.volumes == ["db"])
        }
        #expect(resolver.machine == guest)
    }

    @Test("a disk that is passed through as it is needs no word of its host")
    func passedThrough() throws {
        try directory.write("guest\n", to: "sys/class/dmi/id/product_uuid")
        try directory.write("naa.\(naa)\n", to: "sys/block/sdb/device/wwid")
        let disk = GuestDiskReference(guest: "guest", target: "sda", serial: "other", wwn: nil)
        let found = resolver.resolve([VolumeReference(name: "db", naa: naa, guestDisks: [disk])])
        #expect(found.devices == [DeviceInfo(volume: "db", naa: naa, path: "/dev/sdb")])
        #expect(found.unseen.isEmpty)
    }
}
