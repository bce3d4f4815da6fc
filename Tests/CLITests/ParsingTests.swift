import API
import ArgumentParser
import Foundation
import Testing

@testable import stillpoint

@Suite("What people write")
struct ParsingTests {
    @Test(
        "sizes with their units",
        arguments: [
            ("4096", 4096), ("10GiB", 10 << 30), ("512MiB", 512 << 20), ("1TiB", 1 << 40), ("4KiB", 4096),
            ("64tib", 64 << 40),
            ("10 GiB", 10 << 30), ("1GB", 1_000_000_000), ("2KB", 2000), ("0", 0), ("7B", 7),
        ] as [(String, UInt64)])
    func sizes(text: String, bytes: UInt64) throws {
        #expect(try ByteSize(parsing: text).bytes == bytes)
    }

    @Test(
        "what is no size is refused with a reason",
        arguments: [
            "", "GiB", "-1", "1.5GiB", "10G", "10XiB", "0x10", "99999999999999999999", "20000000PiB", "１０GiB", "1 2",
        ])
    func noSizes(text: String) {
        #expect(throws: ByteSize.Problem.self) { try ByteSize(parsing: text) }
    }

    @Test("a volume's size is whole blocks between 4 KiB and 64 TiB")
    func volumeSizes() {
        for bytes: UInt64 in [4096, 8192, 64 << 40] { #expect(ByteSize(bytes: bytes).problemAsVolumeSize == nil) }
        for bytes: UInt64 in [0, 4095, 4097, (64 << 40) + 4096] {
            #expect(ByteSize(bytes: bytes).problemAsVolumeSize != nil)
        }
        #expect(ByteSize(bytes: 10_000).problemAsVolumeSize?.contains("8192 and 12288") == true)
    }

    @Test("both spellings of file-system are a consistency")
    func consistency() throws {
        #expect(try ConsistencyOption.parse("fileSystem") == .fileSystem)
        #expect(try ConsistencyOption.parse("file-system") == .fileSystem)
        #expect(try ConsistencyOption.parse("application") == .application)
        #expect(try ConsistencyOption.parse("crash") == .crash)
        #expect(throws: (any Error).self) { try ConsistencyOption.parse("maybe") }
    }

    @Test("the options of the connection are taken before the noun and after the verb")
    func options() async throws {
        for arguments in [
            ["--api", "http://h:1", "-o", "json", "volume", "show", "db"],
            ["volume", "show", "db", "--api", "http://h:1", "--output", "json"],
            ["--api", "http://h:1", "volume", "show", "-o", "json", "db"],
        ] {
            let command = try #require(
                try await Stillpoint.asyncParseAsRoot(arguments) as? VolumeCommands.Show_)
            #expect(command.connection.api == "http://h:1")
            #expect(command.connection.isJSON)
            #expect(command.name == "db")
        }
    }

    @Test(
        "the contract's commands parse",
        arguments: [
            "volume create db --size 10GiB --no-export", "volume revert a b --to s1 --drive",
            "volume revert a --undo --dry-run",
            "target allow iqn.x --initiator any --chap-user u --chap-secret-file f",
            "target deny iqn.x --initiator any", "session list", "session drop 7", "discovery show",
            "discovery allow --initiator any --chap-user u --chap-secret-file f", "discovery deny --initiator any",
            "snapshot create a b --consistency application --allow-lower --name n --lease 5",
            "snapshot list db -o json",
            "clone create s1 --name c --volume v", "agent token h --valid 60", "job watch j", "status", "configcheck",
            "volume attach s1/db --read-only", "volume detach /dev/loop0 --force", "volume delete db --with-snapshots",
            "serve --data d --iscsi-listen h:1 --api-listen h:2 --config f",
        ])
    func contract(line: String) async throws {
        _ = try await Stillpoint.asyncParseAsRoot(line.split(separator: " ").map(String.init))
    }

    @Test(
        "wrong usage does not parse",
        arguments: [
            "volume create db", "volume create db --size 10XB", "volume create db --size 100", "volume revert a",
            "volume revert a --to s --undo", "target allow iqn.x", "target allow iqn.x --initiator any --chap-user u",
            "session drop", "session drop x", "discovery allow", "discovery allow --initiator any --mutual-user u",
            "snapshot create", "snapshot create a a", "snapshot create a --lease 1",
            "snapshot create a --consistency x",
            "frobnicate", "volume frobnicate", "agent token h --valid 5", "status more",
        ])
    func wrong(line: String) async {
        await #expect(throws: (any Error).self) {
            try await Stillpoint.asyncParseAsRoot(line.split(separator: " ").map(String.init))
        }
    }

    @Test("a secret is the first line of its file, and has the length that CHAP asks for")
    func secrets() throws {
        let path = NSTemporaryDirectory() + "sp-secret-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try "twelve bytes\nmore\n".write(toFile: path, atomically: true, encoding: .utf8)
        #expect(try SecretFile.read(path) == "twelve bytes")
        try "short\n".write(toFile: path, atomically: true, encoding: .utf8)
        #expect(throws: CommandFailure.self) { try SecretFile.read(path) }
        #expect(throws: CommandFailure.self) { try SecretFile.read(path + "-not-there") }
    }

    @Test("an initiator's name is legal whatever the host and the volume are called")
    func initiatorNames() {
        #expect(
            InitiatorName.make(host: "Web_1", name: "DB@x/Ü") == "iqn.2026-11.io.stillpoint:attach-web-1-db-x--")
        let long = InitiatorName.make(host: "h", name: String(repeating: "n", count: 300), suffix: "end")
        #expect(long.utf8.count == 223)
        #expect(long.hasSuffix("-end"))
    }

    @Test("mount points with blanks in them are read as they are")
    func mounts() {
        let line =
            #"36 35 7:3 / /srv/my\040db rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw,errors=continue"#
        #expect(
            MountTable.parse(line + "\ngarbage\n") == [
                .init(device: "7:3", mountPoint: "/srv/my db", source: "/dev/loop3")
            ])
    }

    @Test("names of attachments make file names that are short enough and differ")
    func recordNames() {
        let directory = AttachmentDirectory(runDirectory: "/run/x")
        #expect(directory.publicPath("db") == "/run/x/attachments/db.json")
        #expect(directory.publicPath("s1/db") == "/run/x/attachments/s1+db.json")
        let long = String(repeating: "a", count: 128) + "/" + String(repeating: "b", count: 128)
        let other = String(repeating: "a", count: 128) + "/" + String(repeating: "b", count: 127) + "c"
        #expect((directory.publicPath(long) as NSString).lastPathComponent.utf8.count < 230)
        #expect(directory.publicPath(long) != directory.publicPath(other))
    }

    @Test("a socket's path stays within what the kernel takes")
    func socketPaths() {
        #expect(AttachmentDirectory(runDirectory: "/run/x").workDirectory(id: "12ab") == "/run/x/attach/12ab")
        let deep = AttachmentDirectory(runDirectory: "/" + String(repeating: "d", count: 100))
        #expect(deep.workDirectory(id: "12ab") == "/tmp/stillpoint-12ab")
    }
}
