import API
import Foundation
import TestInitiator
import Testing

/// A node on a system that fails it: a disk that refuses a sync, a kernel that forbids io_uring. Both are made with a
/// small library that is loaded into the node's process.
@Suite("A system that fails", .serialized, .enabled(if: Interposer.compiler != nil, "needs a C compiler"))
struct HostileSystemTests {
    @Test(
        "a refused sync fails the flush and the pool; killed at that moment the node opens it read-only until a check"
    )
    func failedSync() throws {
        let node = try TestNode()
        defer { node.stop() }
        let order = node.folder.path + "/fail-sync"
        node.extraEnvironment["LD_PRELOAD"] = try Interposer.build(
            Interposer.failingSync(order: order, of: node.dataFolder + "/pool"), in: node.folder.path)
        try node.start()
        try node.must("volume", "create", "v", "--size", "16MiB")
        try node.allowAny(volume: "v")
        let path = try Self.initiator(node)
        let first = [UInt8](repeating: 1, count: 8192)
        #expect(try path.write(lba: 0, first).isGood)
        #expect(try path.command(Self.synchronizeCache).isGood)
        #expect(try path.write(lba: 0, [UInt8](repeating: 2, count: 4096)).isGood)
        #expect(FileManager.default.createFile(atPath: order, contents: nil))
        #expect(try path.command(Self.synchronizeCache).sense == [4, 0x44, 0])
        // Nothing in between: who was told of the failure can rely on it.
        node.killHard()
        try FileManager.default.removeItem(atPath: order)

        try node.start()
        var status = try node.json(NodeStatus.self, "status")
        #expect(status.pool.state == .readOnly)
        #expect(status.pool.failure?.contains("syncing data failed: Input/output error") == true)
        #expect(status.pool.alerts.first?.hint.contains("stillpoint pool check") == true)
        let reader = try Self.initiator(node)
        #expect(try reader.read(lba: 8, blocks: 8).data == Array(first[..<4096]))
        #expect(try reader.write(lba: 0, first).sense == [7, 0x27, 0])
        let refused = try node.cli("volume", "create", "w", "--size", "16MiB")
        #expect(refused.status == 1 && refused.errors.contains("pool check --clear-failure"), "\(refused)")
        #expect(node.terminate() == 0, "\(node.log)")

        try node.must("pool", "check", "--data", node.dataFolder, "--clear-failure")
        try node.start()
        status = try node.json(NodeStatus.self, "status")
        #expect(status.pool.state == .healthy)
        let writer = try Self.initiator(node)
        #expect(try writer.write(lba: 0, first).isGood)
        #expect(try writer.command(Self.synchronizeCache).isGood)
        #expect(node.terminate() == 0, "\(node.log)")
    }

    @Test(
        "where the kernel forbids io_uring the node serves with pread and says why; told to use it, it does not start")
    func noUring() throws {
        let node = try TestNode()
        defer { node.stop() }
        node.extraEnvironment["LD_PRELOAD"] = try Interposer.build(Interposer.noUring, in: node.folder.path)
        try node.start()
        let pool = try node.json(PoolInfo.self, "pool", "show")
        #expect(pool.backend == "pread (no io_uring: Operation not permitted)")
        try node.must("volume", "create", "v", "--size", "16MiB")
        try node.allowAny(volume: "v")
        let path = try Self.initiator(node)
        for index in 0..<UInt32(8) {
            #expect(try path.write(lba: index * 64, [UInt8](repeating: UInt8(index + 1), count: 4096)).isGood)
        }
        #expect(try path.read(lba: 7 * 64, blocks: 8).data == [UInt8](repeating: 8, count: 4096))
        #expect(node.terminate() == 0, "\(node.log)")

        let forced = try Shell.run(
            [
                Components.bin + "/stillpoint", "serve", "--data", node.folder.path + "/other", "--iscsi-listen",
                "127.0.0.1:0", "--api-listen", "127.0.0.1:0",
            ],
            environment: node.extraEnvironment.merging(
                ["STILLPOINT_POOL_IO": "uring", "STILLPOINT_RUN_DIR": node.folder.path + "/run2"]
            ) { $1 })
        #expect(forced.status == 1)
        #expect(forced.errors.contains("pool.io is uring") && forced.errors.contains("Operation not permitted"))
        #expect(!FileManager.default.fileExists(atPath: node.folder.path + "/other/pool"), "nothing was made")
    }

    private static let synchronizeCache: [UInt8] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]

    private static func initiator(_ node: TestNode) throws -> RawInitiator {
        let target = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let path = try RawInitiator(node.iscsi, target: target, initiator: "iqn.2026-11.test:hostile")
        _ = try path.clearAttentions()
        return path
    }
}

/// Makes libraries that come before the system's own functions, or change what the kernel allows.
private enum Interposer {
    static let compiler = ["cc", "gcc", "clang"].first { Shell.locate($0) != nil }

    static func build(_ source: String, in folder: String) throws -> String {
        let file = folder + "/interposed"
        try source.write(toFile: file + ".c", atomically: true, encoding: .utf8)
        try Shell.check([
            try #require(compiler), "-shared", "-fPIC", "-o", file + ".so", file + ".c", "-ldl",
        ])
        return file + ".so"
    }

    /// fdatasync of `path` fails with EIO while there is a file `order`.
    static func failingSync(order: String, of path: String) -> String {
        """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <stdio.h>
        #include <string.h>
        #include <unistd.h>
        int fdatasync(int fd) {
            char link[64], file[4096];
            if (access("\(order)", F_OK) == 0) {
                snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
                ssize_t length = readlink(link, file, sizeof file - 1);
                file[length < 0 ? 0 : length] = 0;
                if (strcmp(file, "\(path)") == 0) {
                    errno = EIO;
                    return -1;
                }
            }
            return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
        }
        """
    }

    /// io_uring_setup is answered with EPERM, as by the filter of Docker and containerd.
    static let noUring = """
        #include <errno.h>
        #include <linux/filter.h>
        #include <linux/seccomp.h>
        #include <stddef.h>
        #include <stdlib.h>
        #include <sys/prctl.h>
        #define IO_URING_SETUP 425
        __attribute__((constructor)) static void forbid(void) {
            struct sock_filter filter[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IO_URING_SETUP, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
            };
            struct sock_fprog program = {4, filter};
            if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
        }
        """
}
