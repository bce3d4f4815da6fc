import Foundation
import Glibc
import PluginKit
import Testing

@testable import stillpoint_plugin_libvirt

@Suite("Discovery of guests")
struct DiscoverTests {
    static let naa = String(repeating: "6", count: 32)

    private func guest(_ disks: String, name: String = "g1") -> String {
        """
        <domain type='test'><name>\(name)</name><uuid>\(UUID().uuidString.lowercased())</uuid>
        <memory>1024</memory><os><type>hvm</type></os><devices>\(disks)</devices></domain>
        """
    }

    private func iscsi(_ name: String, _ target: String) -> String {
        """
        <disk type='network' device='disk'><driver name='qemu' type='raw'/>
        <source protocol='iscsi' name='\(name)'><host name='127.0.0.1'/></source>
        <target dev='\(target)' bus='virtio'/></disk>
        """
    }

    /// A directory of definitions, as libvirt keeps them, behind a hypervisor that does not answer.
    private func discover(
        _ definitions: [String], fileSystems: [PluginResource] = [], more: [String: JSONValue] = [:]
    ) async throws -> DiscoverResult {
        let folder = FileManager.default.temporaryDirectory.appending(path: "sp-guests-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        for (index, text) in definitions.enumerated() {
            try text.write(to: folder.appending(path: "g\(index).xml"), atomically: true, encoding: .utf8)
        }
        var section: [String: JSONValue] = [
            "uris": .array([.string("qemu:///system?socket=/nonexistent/libvirt")]), "retryCount": .number(1),
            "configDirectory": .string(folder.path),
        ]
        section.merge(more) { $1 }
        let volumes = ["db", "log"].enumerated().map { index, name in
            PluginVolume(
                name: name, naa: Self.naa,
                exports: [.init(target: "iqn.2026-01.example:a", lun: index)])
        }
        return try await LibvirtPlugin().discover(
            DiscoverParameters(devices: [], resources: fileSystems, config: .object(section), volumes: volumes))
    }

    @Test("disks of QEMU's own initiator are matched by target and LUN, others are left alone and said so")
    func networkDisks() async throws {
        let disks =
            iscsi("iqn.2026-01.EXAMPLE:a/0", "vda") + iscsi("iqn.2026-01.example:a/1", "vdb")
            + iscsi("iqn.2026-01.example:b/0", "vdc")
            + "<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sda'/></disk>"
        let found = try await discover([guest(disks), guest(iscsi("iqn.2026-01.example:b/0", "vda"), name: "g2")])
        let resource = try #require(found.resources.first)
        #expect(found.resources.count == 1)
        #expect(resource.volumes == ["db", "log"])
        #expect(resource.layer == .machine)
        #expect(resource.details["disk.vda"] == "iscsi db iqn.2026-01.example:a/0")
        #expect(resource.details["leftAlone.vdc"] == "iqn.2026-01.example:b/0 is on no volume")
        #expect(resource.details["leftAlone.sda"] == "cdrom: /x.iso")
        #expect(resource.details["state"] == "unknown")
        #expect(found.warnings?.contains { $0.contains("2 guests are known from their files") } == true)
    }

    @Test("what an agent inside can know each disk by is told with the volumes that it lies on")
    func guestDisks() async throws {
        let disks =
            iscsi("iqn.2026-01.example:a/0", "vda").replacing("</disk>", with: "<serial> db-1 </serial></disk>")
            + iscsi("iqn.2026-01.example:a/1", "sda").replacing("</disk>", with: "<wwn>5000C50015EA71AD</wwn></disk>")
            + iscsi("iqn.2026-01.example:b/0", "vdc").replacing("</disk>", with: "<serial>other</serial></disk>")
        let resource = try #require(try await discover([guest(disks)]).resources.first)
        #expect(resource.details["machine"] == resource.id)
        #expect(resource.details["guestDisks"] == "vda\tdb-1\t\tdb\nsda\t\t5000c50015ea71ad\tlog")
    }

    @Test("image files are matched by the file system they lie on, with the images they stand on")
    func imageFiles() async throws {
        let folder = FileManager.default.temporaryDirectory.path
        let mount = try #require(MountTable.current().mount(containing: resolvedPath(folder) ?? folder))
        let name = "\(folder)/sp-\(UUID().uuidString)"
        try shell(
            "qemu-img create -q -f raw \(name).img 1M && qemu-img create -q -f qcow2 -b \(name).img -F raw \(name)")
        defer { _ = try? shell("rm -f \(name) \(name).img") }
        let fileSystem = PluginResource(
            id: mount.mountPoint, label: "", layer: .fileSystem, volumes: ["db"],
            details: ["superblock": "\(mount.superblock)"])
        let disk = """
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='\(name)'/>
            <target dev='vda' bus='virtio'/></disk>
            """
        let found = try await discover([guest(disk)], fileSystems: [fileSystem])
        let resource = try #require(found.resources.first)
        #expect(resource.volumes == ["db"])
        #expect(resource.details["fileSystems"] == mount.mountPoint)
        #expect(resource.details["leftAlone.vda"] == nil)
        try shell("rm \(name).img")
        let broken = try await discover([guest(disk)], fileSystems: [fileSystem])
        #expect(broken.resources.first?.details["leftAlone.vda"]?.contains("not known") == true)
    }

    @Test("a guest can be left out, and one that is configured but not there is named")
    func configured() async throws {
        let guests: JSONValue = .array([
            .object(["name": .string("g1"), "ignore": .bool(true)]), .object(["name": .string("gone")]),
        ])
        let found = try await discover([guest(iscsi("iqn.2026-01.example:a/0", "vda"))], more: ["guests": guests])
        #expect(found.resources.isEmpty)
        #expect(found.warnings?.contains { $0.contains("there is no guest gone") } == true)
    }

    @Test("a host whose libvirt is not there or not used is told from one whose libvirt does not answer")
    func unusedDaemon() throws {
        let folder = "/tmp/sp-libvirt-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder + "/qemu", withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let daemon = LocalDaemon(sockets: [folder + "/none", folder + "/sock"], runningGuests: folder + "/qemu")
        #expect(daemon.isUnused)
        let listener = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array("\(folder)/sock".utf8)) }
        let isBound = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
        #expect(isBound && listen(listener, 1) == 0)
        #expect(!daemon.isUnused)
        close(listener)
        #expect(daemon.isUnused, "a daemon that was killed leaves its socket")
        try "".write(toFile: folder + "/qemu/g1.xml", atomically: true, encoding: .utf8)
        #expect(!daemon.isUnused, "and its guests")
        #expect(try LibvirtConfiguration.read(nil).isDefault)
        #expect(try !LibvirtConfiguration.read(.object(["uris": .array([.string("qemu:///system")])])).isDefault)
    }

    @Test(
        "a configuration that makes no sense is refused",
        arguments: [
            ["retryCount": JSONValue.number(0)], ["uris": .array([.string("localhost")])],
            ["memoryDirectory": .string("relative")], ["mode": .string("hibernate")],
        ])
    func badConfiguration(section: [String: JSONValue]) {
        #expect(throws: PluginFailure.self) { try LibvirtConfiguration.read(.object(section)) }
    }
}
