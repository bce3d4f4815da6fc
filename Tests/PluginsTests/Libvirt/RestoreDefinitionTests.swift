import PluginKit
import Testing

@testable import stillpoint_plugin_libvirt

@Suite("Restored guests' definitions")
struct RestoreDefinitionTests {
    static let original = """
        <domain type='kvm' id='7' xmlns:x='http://example.org/x'>
          <name>web1</name><uuid>11111111-2222-3333-4444-555555555555</uuid><title>web1</title>
          <genid>0aaaaaaa-2222-3333-4444-555555555555</genid>
          <metadata><x:note>kept &amp; untouched</x:note></metadata>
          <os><type arch='x86_64' machine='q35'>hvm</type><nvram>/var/lib/libvirt/qemu/nvram/web1.fd</nvram></os>
          <sysinfo type='smbios'><system>
            <entry name='uuid'>11111111-2222-3333-4444-555555555555</entry></system></sysinfo>
          <devices>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/web1.qcow2'/>
              <backingStore type='file'><source file='/srv/base.img'/></backingStore><target dev='vda'/></disk>
            <disk type='block' device='lun' sgio='filtered'><driver name='qemu' type='raw'/><source dev='/dev/sdc'/>
              <target dev='sdb'/><serial>abc</serial></disk>
            <disk type='file' device='cdrom'><source file='/iso/debian.iso'/><target dev='sdc'/></disk>
            <disk type='file' device='disk'><source file='/local/swap.img'/><target dev='vdd'/></disk>
            <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
              <target dev='vnet0'/></interface>
            <interface type='network'><mac address='52:54:00:00:00:02'/><source network='default'/></interface>
            <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web1/a'/>
              <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
            <graphics type='vnc' port='5901' autoport='no'/>
            <hostdev mode='subsystem' type='pci'><source/></hostdev>
          </devices>
        </domain>
        """

    private func beside() throws -> XMLTree {
        var definition = try RestoreDefinition(Self.original)
        var next = 0
        definition.becomeAnother(
            name: "web2", uuid: "99999999-2222-3333-4444-555555555555", nvram: "/nvram/web2.fd",
            address: {
                next += 1
                return "52:54:00:aa:00:0\(next)"
            })
        definition.keepDisks(["vda", "sdb"])
        try definition.replace("vda", with: .file(path: "/srv/web1.web2.qcow2"))
        try definition.replace(
            "sdb",
            with: .iscsi(
                host: "10.0.0.1", port: "3260", iqn: "iqn.x:clone", lun: 0, initiator: "iqn.y:web2", user: "guest",
                secretUsage: "iqn.x:clone"))
        #expect(definition.notes.contains { $0.contains("vdd") })
        return try XMLTree(definition.text)
    }

    @Test("a second guest shares no identity with the first")
    func identity() throws {
        let tree = try beside()
        #expect(tree.text("name") == "web2")
        #expect(tree.text("uuid") == "99999999-2222-3333-4444-555555555555")
        #expect(tree.root?["id"] == nil)
        #expect(tree.text("sysinfo/system/entry") == "99999999-2222-3333-4444-555555555555")
        #expect(
            tree.all("devices/interface/mac").map { $0["address"] } == ["52:54:00:aa:00:01", "52:54:00:aa:00:02"])
        #expect(tree.first("devices/interface/target") == nil)
        #expect(tree.text("os/nvram") == "/nvram/web2.fd")
        #expect(tree.text("genid")?.isEmpty == true)
        #expect(tree.first("devices/channel/source") == nil)
        #expect(tree.first("devices/graphics")?["autoport"] == "yes")
        #expect(tree.first("devices/hostdev") == nil)
        let text = tree.description
        #expect(!text.contains("11111111-2222") && !text.contains("52:54:00:00:00"))
    }

    @Test("disks have new sources; CD-ROMs, serials and what is unknown here stay")
    func disks() throws {
        let tree = try beside()
        #expect(tree.all("devices/disk").compactMap { $0.text("target/@dev") } == ["vda", "sdb", "sdc"])
        #expect(tree.text("devices/disk[1]/source/@file") == "/srv/web1.web2.qcow2")
        #expect(tree.first("devices/disk[1]/backingStore") == nil)
        let network = try #require(tree.first("devices/disk[2]"))
        #expect(network["type"] == "network" && network["device"] == "disk" && network["sgio"] == nil)
        #expect(network.text("source/@name") == "iqn.x:clone/0")
        #expect(network.text("source/host/@port") == "3260")
        #expect(network.text("source/auth/secret/@usage") == "iqn.x:clone")
        #expect(network.text("source/initiator/iqn/@name") == "iqn.y:web2")
        #expect(network.text("serial") == "abc")
        #expect(tree.text("metadata/*")?.contains("kept & untouched") == true)
    }

    @Test("a disk that is not there, and text that is no definition, are refused")
    func refused() throws {
        var definition = try RestoreDefinition(Self.original)
        #expect(throws: PluginFailure.self) { try definition.replace("vdz", with: .file(path: "/x")) }
        #expect(throws: PluginFailure.self) { _ = try RestoreDefinition("<network/>") }
        #expect(throws: PluginFailure.self) { _ = try RestoreDefinition("not XML") }
    }
}
