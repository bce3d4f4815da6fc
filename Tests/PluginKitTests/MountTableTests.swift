import PluginKit
import Testing

@Suite("Mount table")
struct MountTableTests {
    let table = MountTable(
        text: """
            22 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
            40 22 7:1 / /srv/my\\040data rw,noatime shared:7 master:2 - xfs /dev/loop1 rw,attr2
            41 40 7:2 / /srv/my\\040data/inner ro - ext4 /dev/loop2 ro
            42 22 0:41 /sub /mnt rw - btrfs /dev/sdb rw,subvolid=256,subvol=/sub
            43 22 7:3 / /mnt rw - ext4 /dev/loop3 rw
            nonsense
            44 22 7:3 - ext4
            """)

    @Test("fields are read, escaped paths and optional fields included; broken lines are left out")
    func fields() throws {
        #expect(table.entries.map(\.id) == [22, 40, 41, 42, 43])
        let entry = try #require(table.mount(at: "/srv/my data"))
        #expect(entry.superblock == DeviceNumber(major: 7, minor: 1))
        #expect(entry.options == ["rw", "noatime"])
        #expect(entry.type == "xfs")
        #expect(entry.source == "/dev/loop1")
        #expect(entry.superOptions == ["rw", "attr2"])
        #expect(!entry.isReadOnly)
        #expect(table.mount(at: "/srv/my data/inner")?.isReadOnly == true)
    }

    @Test("a path belongs to the longest mount point above it, and to the mount that covers another")
    func containing() {
        #expect(table.mount(containing: "/srv/my data/inner/a")?.id == 41)
        #expect(table.mount(containing: "/srv/my data/innermost")?.id == 40)
        #expect(table.mount(containing: "/srv/my datas")?.id == 22)
        #expect(table.mount(containing: "/mnt/x")?.id == 43)
        #expect(table.mount(at: "/srv") == nil)
    }
}
