import Testing

@testable import Node

@Suite("Memory of the pool")
struct PoolMemoryTests {
    private static func limit(_ mebibytes: UInt64, node: UInt64 = 256) -> ProcessMemoryLimit {
        ProcessMemoryLimit(bytes: mebibytes << 20, source: "a test", nodeBytes: node << 20)
    }

    private static func mebibytes(_ configured: UInt64?, _ limits: ProcessMemoryLimit...) throws -> UInt64 {
        try PoolMemoryChoice(configured: configured.map { $0 << 20 }, limits: limits).bytes >> 20
    }

    @Test("the default is 768 MiB, or three quarters of what the tightest limit leaves")
    func defaults() throws {
        #expect(try Self.mebibytes(nil) == 768)
        #expect(try Self.mebibytes(nil, Self.limit(8192)) == 768)
        #expect(try Self.mebibytes(nil, Self.limit(1024)) == 576)
        #expect(try Self.mebibytes(nil, Self.limit(2048), Self.limit(512, node: 96), Self.limit(1024)) == 312)
        let choice = try PoolMemoryChoice(configured: nil, limits: [Self.limit(1024)])
        #expect(choice.reason?.contains("576MiB instead of 768MiB") == true)
    }

    @Test("what is configured is used as it is where it fits, and refused with the reason where it does not")
    func configured() throws {
        #expect(try Self.mebibytes(600, Self.limit(1024)) == 600)
        #expect(try Self.mebibytes(4096) == 4096)
        let refusal = #expect(throws: ServeFailure.self) { try Self.mebibytes(800, Self.limit(1024)) }
        for part in ["pool.memory is 800MiB", "1024MiB", "a test", "256MiB for itself"] {
            #expect(refusal?.description.contains(part) == true, "\(part)")
        }
    }

    @Test("a limit that leaves too little for any pool is refused before anything is opened")
    func tooLittle() throws {
        #expect(try Self.mebibytes(nil, Self.limit(342)) == 64)
        let refusal = #expect(throws: ServeFailure.self) { try Self.mebibytes(nil, Self.limit(300)) }
        #expect(refusal?.description.contains("raise the limit") == true)
        #expect(throws: ServeFailure.self) { try Self.mebibytes(nil, Self.limit(100)) }
    }

    @Test("the limits of a control group and of those above it are found, of both versions")
    func controlGroups() {
        #expect(
            ProcessMemoryLimit.controlGroupFiles("0::/system.slice/run.service\n") == [
                "/sys/fs/cgroup/system.slice/run.service/memory.max", "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ])
        #expect(
            ProcessMemoryLimit.controlGroupFiles("7:cpu,memory:/a\n3:cpuset:/b\n0::/\n") == [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory.max",
            ])
        #expect(ProcessMemoryLimit.controlGroupFiles("nonsense") == [])
    }
}
