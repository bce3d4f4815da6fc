import Foundation
import PluginKit
import Testing

@testable import stillpoint_plugin_libvirt

@Suite("Definitions of guests")
struct GuestDefinitionTests {
    static let text = """
        <domain type='qemu' id='3'>
          <name>web &amp; db</name>
          <uuid>0B1C2D3E-0000-4000-8000-00000000ABCD</uuid>
          <metadata>
            <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
              <libosinfo:os id="http://microsoft.com/win/2k22"/>
            </libosinfo:libosinfo>
          </metadata>
          <os><type>hvm</type><nvram>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram></os>
          <devices>
            <disk type='network' device='disk'>
              <driver name='qemu' type='raw'/>
              <source protocol='iscsi' name='IQN.2026-01.example:db/7'><host name='127.0.0.1' port='3260'/></source>
              <target dev='vda' bus='virtio'/>
            </disk>
            <disk type='block' device='disk'>
              <source dev='/dev/mapper/mpatha'/><target dev='vdb' bus='virtio'/>
            </disk>
            <disk type='file' device='disk'>
              <driver name='qemu' type='qcow2'/><source file='/srv/a.qcow2'/>
              <backingStore type='file'><format type='raw'/><source file='/srv/base.img'/>
                <backingStore/></backingStore>
              <target dev='vdc' bus='virtio'/>
            </disk>
            <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sda'/><readonly/></disk>
            <disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
            <disk type='volume' device='disk'>
              <source pool='fast' volume='v1'/><target dev='vdd'/>
            </disk>
            <hostdev mode='subsystem' type='scsi'>
              <source protocol='iscsi' name='iqn.2026-01.example:db/8'/><alias name='hostdev0'/>
            </hostdev>
            <channel type='unix'>
              <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
            </channel>
            <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
          </devices>
        </domain>
        """

    @Test("every way a disk gets to a guest is read from its definition")
    func disks() throws {
        let guest = try GuestDefinition(Self.text)
        #expect(guest.name == "web & db")
        #expect(guest.uuid == "0b1c2d3e-0000-4000-8000-00000000abcd")
        #expect(guest.agent == .connected)
        #expect(guest.hasTPM)
        #expect(guest.isWindows)
        #expect(guest.nvram == "/var/lib/libvirt/qemu/nvram/web_VARS.fd")
        let sources = Dictionary(uniqueKeysWithValues: guest.disks.map { ($0.target, $0.source) })
        #expect(sources["vda"] == .iscsi(target: "iqn.2026-01.example:db", lun: 7))
        #expect(sources["vdb"] == .block(path: "/dev/mapper/mpatha"))
        #expect(sources["vdc"] == .file(path: "/srv/a.qcow2"))
        #expect(sources["vdd"] == .storagePool(pool: "fast", volume: "v1"))
        #expect(sources["hostdev0"] == .iscsi(target: "iqn.2026-01.example:db", lun: 8))
        #expect(sources["sdb"] == .some(nil))
        #expect(guest.disks.filter { $0.kind == .cdrom }.map(\.target) == ["sda", "sdb"])
        #expect(guest.disks.first { $0.target == "vdc" }?.backing == [.file(path: "/srv/base.img")])
        // Without the empty element at its end, a chain is not known.
        #expect(guest.disks.first { $0.target == "vda" }?.backing == nil)
    }

    @Test("text that is no definition is refused, and nothing of the file system gets into it")
    func badText() {
        for text in ["", "not XML", "<domain/>", "<network><name>x</name><uuid>y</uuid></network>"] {
            #expect(throws: PluginFailure.self) { try GuestDefinition(text) }
        }
        let external = """
            <!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/hostname">]>
            <domain><name>a&x;</name><uuid>0b1c2d3e-0000-4000-8000-00000000abcd</uuid></domain>
            """
        #expect((try? GuestDefinition(external))?.name ?? "a" == "a")
    }

    @Test("what this program does not know survives a change of the definition")
    func editing() throws {
        let tree = try XMLTree("<domain a='1'><name>x</name><q:y xmlns:q='urn:q'>1 &lt; 2</q:y></domain>")
        tree.first("name")?.text = "a & b"
        tree.first("name")?["id"] = "7"
        tree.root?.append("uuid").text = "u"
        #expect(tree.text("name") == "a & b")
        #expect(tree.description.contains("<name id=\"7\">a &amp; b</name>"))
        #expect(tree.description.contains("1 &lt; 2"))
        tree.first("uuid")?.remove()
        #expect(tree.first("uuid") == nil)
        #expect(tree.all("no[such").isEmpty)
    }
}
