import BlockIO
import Glibc
import ISCSI
import SCSI
import Testing

@Suite("Real initiators over loopback", .serialized)
struct RealInitiatorTests {
    static let hasLibiscsi = Program.isInstalled("iscsi-ls", "iscsi-inq", "iscsi-test-cu")
    static let hasQEMU = Program.isInstalled("qemu-img", "qemu-io")

    @Test("iscsi-ls -s lists what the initiator may reach, iscsi-inq reads its pages", .enabled(if: hasLibiscsi))
    func libiscsi() async throws {
        let running = try await RunningServer()
        let portal = "iscsi://127.0.0.1:\(running.port)"
        let list = Program.run(["iscsi-ls", "-s", "iscsi://alice%wonderland-2026@127.0.0.1:\(running.port)"])
        #expect(list.status == 0)
        #expect(list.output.contains("\(RunningServer.open) Portal:127.0.0.1:\(running.port),1"))
        #expect(list.output.contains("\(RunningServer.closed) Portal"))
        #expect(Program.run(["iscsi-inq", "\(portal)/\(RunningServer.open)/0"]).output.contains("Vendor:STILLPNT"))
        let identification = Program.run(
            ["iscsi-inq", "--evpd=1", "--pagecode=0x83", "\(portal)/\(RunningServer.open)/0"])
        #expect(identification.status == 0)
        let refused = Program.run(["iscsi-inq", "\(portal)/\(RunningServer.closed)/0"])
        #expect(refused.status != 0 && refused.output.contains("Authentication failure"))
        let wrong = Program.run(
            ["iscsi-inq", "iscsi://alice%wonderland-2027@127.0.0.1:\(running.port)/\(RunningServer.closed)/0"])
        #expect(wrong.status != 0)
        let right = Program.run(
            ["iscsi-inq", "iscsi://alice%wonderland-2026@127.0.0.1:\(running.port)/\(RunningServer.closed)/0"])
        #expect(right.status == 0, "\(right.output)")
        try await running.stop()
    }

    @Test("QEMU writes, reads, flushes, discards and zeroes, with and without digests", .enabled(if: hasQEMU))
    func qemu() async throws {
        let running = try await RunningServer()
        for digest in ["none", "crc32c"] {
            let options =
                "driver=iscsi,transport=tcp,portal=127.0.0.1:\(running.port),target=\(RunningServer.open),lun=0"
                + ",header-digest=\(digest)"
            let result = Program.run([
                "qemu-io", "--image-opts", options, "-c", "write -P 0x5a 1M 4M", "-c", "read -P 0x5a 1M 4M", "-c",
                "write -P 0x11 -f 512 512", "-c", "read -P 0x11 512 512", "-c", "flush", "-c", "discard 2M 1M", "-c",
                "read -P 0 2M 1M", "-c", "write -z 3M 1M", "-c", "read -P 0 3M 1M", "-c", "aio_write -P 7 8M 256k",
                "-c", "aio_write -P 8 9M 256k", "-c", "aio_flush", "-c", "read -P 7 8M 256k", "-c",
                "read -P 8 9M 256k",
            ])
            #expect(result.status == 0, "\(result.output)")
            #expect(!result.output.contains("failed"), "\(result.output)")
        }
        try await running.stop()
    }

    @Test("two paths to one unit are recognised as one, and work at once", .enabled(if: hasLibiscsi))
    func multipath() async throws {
        let running = try await RunningServer()
        let second = "iqn.2026-11.test:second"
        try running.registry.addTarget(second)
        try running.registry.addLUN(
            second, lun: 5, device: running.device,
            identity: LogicalUnitIdentity(naa: "6589cfc00000000000000000000000a0", serial: "R0"))
        try running.registry.allow(second, initiator: .any)
        let portal = "iscsi://127.0.0.1:\(running.port)"
        let result = Program.run(
            [
                "iscsi-test-cu", "--dataloss", "--fail", "-n", "-t", "ALL.MultipathIO",
                "\(portal)/\(RunningServer.open)/0", "\(portal)/\(second)/5",
            ], timeoutSeconds: 400)
        #expect(result.status == 0, "\(result.output.suffix(4000))")
        #expect(!result.output.contains("Multipath unavailable"))
        try await running.stop()
    }

    @Test("garbage, silence and half-open connections do no harm while an initiator works", .enabled(if: hasQEMU))
    func garbage() async throws {
        var limits = TargetLimits()
        limits.loginSeconds = 2
        limits.connectionsInLogin = 16
        let running = try await RunningServer(limits: limits)
        var generator = SplitMix(state: 42)
        let silent = try (0..<8).map { _ in try running.connect() }
        for _ in 0..<60 {
            let descriptor = try running.connect()
            let count = Int.random(in: 1...5000, using: &generator)
            RunningServer.send(descriptor, (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &generator) })
            close(descriptor)
        }
        for (_, hexadecimal, _) in CapturedLogins.all {
            let bytes = CapturedLogins.bytes(hexadecimal)
            for cut in [1, 47, 48, 49, bytes.count - 1] {
                let descriptor = try running.connect()
                RunningServer.send(descriptor, Array(bytes[..<cut]))
                close(descriptor)
            }
        }
        // While every place for a login is taken by those that have not been noticed to be gone, it is sent away.
        var result: (status: Int32, output: String) = (1, "")
        for _ in 0..<60 where result.status != 0 {
            result = Program.run([
                "qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", "-c", "read -P 1 0 1M",
                "iscsi://127.0.0.1:\(running.port)/\(RunningServer.open)/0",
            ])
        }
        #expect(result.status == 0, "\(result.output)")
        for descriptor in silent {
            // Closed by the target when the login took too long.
            #expect(RunningServer.readToEnd(descriptor) == 0)
            close(descriptor)
        }
        for _ in 0..<6000 where !running.registry.sessions().isEmpty { try await Task.sleep(for: .milliseconds(20)) }
        #expect(running.registry.sessions().isEmpty)
        try await running.stop()
    }

    @Test("revoked access, a removed target and shutdown end sessions that are in use", .enabled(if: hasQEMU))
    func endsSessions() async throws {
        let running = try await RunningServer()
        let url = "iscsi://127.0.0.1:\(running.port)/\(RunningServer.open)/0"
        // SAFETY: the pipe is used by this test only.
        nonisolated(unsafe) let pipe = popen("timeout 600 qemu-io -f raw '\(url)' >/dev/null 2>&1", "w")
        for _ in 0..<6000 where running.registry.sessions().isEmpty { try await Task.sleep(for: .milliseconds(20)) }
        let sessions = running.registry.sessions(naa: "6589cfc00000000000000000000000a0")
        #expect(sessions.count == 1 && sessions.first?.iqn == RunningServer.open)
        try running.registry.deny(RunningServer.open, initiator: .any)
        for _ in 0..<6000 where !running.registry.sessions().isEmpty { try await Task.sleep(for: .milliseconds(20)) }
        #expect(running.registry.sessions().isEmpty)
        try await running.stop()
        fputs("quit\n", pipe)
        pclose(pipe)
    }
}
