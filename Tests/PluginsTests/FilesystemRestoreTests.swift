import Foundation
import PluginKit
import Testing

@Suite("Filesystem plug-in: discovery and restore", .serialized, .enabled(if: Machine.hasLoopFileSystems))
struct FilesystemRestoreTests {
    @Test("discovery names the file system, its volume, and where else it is mounted")
    func discovers() async throws {
        let files = try LoopFileSystem(volume: "db", options: "noatime")
        let second = files.directory + "/second"
        try FileManager.default.createDirectory(atPath: second, withIntermediateDirectories: false)
        try shell("mount --bind \(files.mountPoint) \(second)")
        defer { _ = try? shell("umount \(second)") }
        let resource = try await files.resource()
        #expect(resource.id == files.mountPoint)
        #expect(resource.label == "ext4 on \(files.mountPoint)")
        #expect(resource.layer == .fileSystem)
        #expect(resource.volumes == ["db"])
        #expect(resource.details["fstype"] == "ext4")
        #expect(resource.details["alsoMountedAt"] == second)
        let uuid = try shell("blkid -s UUID -o value \(files.loop)")
        #expect(resource.details["uuid"] == nil || resource.details["uuid"] == uuid)
    }

    @Test("a file system on a partition of the volume is found", .enabled(if: Machine.has("sfdisk")))
    func partition() async throws {
        let files = try LoopFileSystem(isPartitioned: true)
        #expect(try await files.resource().volumes == ["vol1"])
    }

    @Test("a device that is not there is a warning, not a failure")
    func missingDevice() async throws {
        let plugin = try RunningPlugin("filesystem")
        let device = PluginDevice(volume: "gone", naa: "", path: "/dev/not-there")
        let result = try await plugin.process.discover(DiscoverParameters(devices: [device]))
        #expect(result.resources == [])
        #expect(result.warnings == ["/dev/not-there of volume gone is not a block device"])
        await plugin.process.end()
    }

    @Test("a restore unmounts, and mounts the volume's device of that moment with the options of before")
    func restores() async throws {
        let files = try LoopFileSystem(options: "noatime,nosuid,errors=remount-ro")
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await files.resource()
        try shell("echo before > \(files.mountPoint)/file")
        let before = try #require(MountTable.current().mount(at: files.mountPoint))
        let parameters = RestoreParameters(
            restoreID: "r1", resources: [resource], devices: [files.device], stateDirectory: state.path)
        let prepared = try await plugin.process.prepareRestore(parameters)
        #expect(prepared.steps == ["Unmounted \(files.mountPoint) (ext4 on \(files.loop))"])
        #expect(MountTable.current().mount(at: files.mountPoint) == nil)

        // The volume comes back as another device.
        try shell("losetup -d \(files.loop)")
        let other = try shell("losetup -f --show \(files.directory)/backing")
        defer { _ = try? shell("umount \(files.mountPoint); losetup -d \(other)", mayFail: true) }
        let finish = RestoreParameters(
            restoreID: "r1", resources: [],
            devices: [PluginDevice(volume: files.volume, naa: files.device.naa, path: other)],
            stateDirectory: state.path)
        #expect(try await plugin.process.finishRestore(finish).steps.count == 1)
        let after = try #require(MountTable.current().mount(at: files.mountPoint))
        #expect(after.source == other)
        #expect(after.options == before.options)
        #expect(after.superOptions == before.superOptions)
        #expect(try shell("cat \(files.mountPoint)/file") == "before")
        #expect(state.files == [])
        await plugin.process.end()
    }

    @Test("a file system in use is not unmounted, and who uses it is named")
    func inUse() async throws {
        let files = try LoopFileSystem()
        let state = try StateDirectory()
        let plugin = try RunningPlugin("filesystem")
        let resource = try await files.resource()
        let user = Process()
        user.executableURL = URL(filePath: "/bin/sleep")
        user.arguments = ["60"]
        user.currentDirectoryURL = URL(filePath: files.mountPoint)
        try user.run()
        defer {
            kill(user.processIdentifier, SIGKILL)
            user.waitUntilExit()
        }
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.process.prepareRestore(
                RestoreParameters(
                    restoreID: "r1", resources: [resource], devices: [files.device], stateDirectory: state.path))
        }
        #expect(failure?.code == .inUse)
        #expect(failure?.message.contains("process \(user.processIdentifier) (sleep, its working directory)") == true)
        #expect(MountTable.current().mount(at: files.mountPoint) != nil)
        #expect(state.files == [])
        await plugin.process.end()
    }
}
